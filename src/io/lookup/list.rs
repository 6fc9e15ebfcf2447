//! The endpoint table for a person who looks at it: no secrets, no headers.

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::LookupError;
use crate::config;
use crate::io::ident::{quote_ident, quote_table};

/// An endpoint's row, as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The row's id.
    pub id: String,
    /// The account that owns it.
    pub account: String,
    /// Where requests go. May hold secrets: show its host alone.
    #[serde(skip)]
    pub url: String,
    /// Whether the customer has it switched on.
    pub enabled: bool,
}

/// Lists endpoints by their ids' bytes, those behind `after`; of `ids` and of `account` where given.
///
/// Compares texts, without the help of the customer's indexes: not for the path of an event.
///
/// # Errors
/// [`LookupError::Sql`].
pub async fn list(
    client: &Client,
    endpoints: &config::Endpoints,
    ids: Option<&[String]>,
    account: Option<&str>,
    after: &str,
    limit: i64,
) -> Result<Vec<Listed>, LookupError> {
    let column = |name: &str| format!("e.{}", quote_ident(name));
    let sql = format!(
        "SELECT {id}::text COLLATE \"C\" AS id, {account}::text, coalesce({url}::text, ''),
                coalesce({enabled}, false)
         FROM {table} e
         WHERE ($1::text[] IS NULL OR {id}::text = ANY ($1))
           AND ($2::text IS NULL OR {account}::text = $2)
           AND {id}::text COLLATE \"C\" > $3 ORDER BY 1 LIMIT $4",
        id = column(&endpoints.id),
        account = column(&endpoints.account),
        url = column(&endpoints.url),
        enabled = column(&endpoints.enabled),
        table = quote_table(&endpoints.table),
    );
    let rows = client
        .query_typed(
            &sql,
            &[
                (&ids, Type::TEXT_ARRAY),
                (&account, Type::TEXT),
                (&after, Type::TEXT),
                (&limit, Type::INT8),
            ],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Listed {
                id: row.try_get(0)?,
                account: row.try_get::<_, Option<String>>(1)?.unwrap_or_default(),
                url: row.try_get(2)?,
                enabled: row.try_get(3)?,
            })
        })
        .collect()
}
