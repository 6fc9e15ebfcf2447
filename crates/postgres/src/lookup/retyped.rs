//! A column that a migration has given another type: its values may then be none that can be used, of any
//! row. That is an outage of the table and nothing that its rows are to blame for, so that no event of
//! theirs becomes a dead letter for it.

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::once::Once;
use super::statement::Accounts;
use super::{Fetched, LookupError, Lookups, Plan};
use crate::ident::quote_table;

/// The types of the table's columns, by their names.
pub(super) type ColumnTypes = BTreeMap<String, String>;

impl Lookups {
    /// The types of the endpoint table's columns that are read.
    pub(super) async fn column_types(&self, client: &Client) -> Result<ColumnTypes, LookupError> {
        let sql = "SELECT a.attname::pg_catalog.text, pg_catalog.format_type(a.atttypid, NULL)
             FROM pg_catalog.pg_attribute a
             WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1)
               AND a.attnum OPERATOR(pg_catalog.>) 0::smallint AND NOT a.attisdropped";
        let table = quote_table(&self.account.table);
        let rows = client.query_typed(sql, &[(&table, Type::TEXT)]).await?;
        let mut types = ColumnTypes::new();
        for row in &rows {
            let name: String = row.try_get(0)?;
            if self.columns.contains(&name) {
                types.insert(name, row.try_get(1)?);
            }
        }
        Ok(types)
    }

    /// Refuses an answer in which no endpoint can be used any more since a column has another type.
    pub(super) async fn ensure_not_retyped(
        &self,
        client: &Client,
        plan: &Plan,
        fetched: &Fetched,
    ) -> Result<(), LookupError> {
        let endpoints = || fetched.routes.iter().flat_map(|(_, routes)| &routes.endpoints);
        if endpoints().all(|endpoint| endpoint.invalid.is_none()) {
            return Ok(());
        }
        let now = self.column_types(client).await?;
        let Some(then) = self.memory().column_types.clone() else { return Ok(()) };
        let changed = then.iter().find_map(|(column, was)| {
            now.get(column).filter(|is| *is != was).map(|is| (column, was, is))
        });
        let Some((column, was, is)) = changed else { return Ok(()) };
        let mut usable = endpoints().any(|endpoint| endpoint.invalid.is_none());
        if !usable && let Some(good) = self.last_good() {
            let Once { fetched, .. } = self.once(client, plan, &[good], Accounts::One).await?;
            let mut endpoints = fetched.routes.iter().flat_map(|(_, routes)| &routes.endpoints);
            usable = endpoints.any(|endpoint| endpoint.invalid.is_none());
        } else {
            usable = true;
        }
        if usable {
            self.memory().column_types = Some(now);
            return Ok(());
        }
        Err(LookupError::Retyped {
            table: self.account.table.clone(),
            column: column.clone(),
            was: was.clone(),
            is: is.clone(),
        })
    }
}
