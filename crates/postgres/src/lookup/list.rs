//! The endpoint table for a person who looks at it: no secrets, no headers.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::session::Patience;
use super::statement::{Source, Types};
use super::{LookupError, Lookups, Plan, row};
use crate::sql::is_row_error;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, ID_MAX_BYTES};
use walhook_sign::{self as sign, Weakness};

/// An endpoint's row, as far as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The row's id.
    pub id: String,
    /// The account that owns it.
    pub account: String,
    /// Where requests go. May hold secrets: show its host alone.
    pub url: String,
    /// The event types that it wants, as patterns.
    pub event_types: Vec<String>,
    /// Whether the customer has it switched on.
    pub enabled: bool,
    /// Why the row cannot be used, where it cannot.
    pub invalid: Option<String>,
    /// What is weak about its secrets.
    pub weak: Option<Weakness>,
}

/// Which endpoints are to be listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Which<'a> {
    /// These.
    pub ids: Option<&'a [String]>,
    /// Those of this account.
    pub account: Option<&'a str>,
    /// Those whose ids' bytes are above.
    pub after: &'a str,
    /// So many at most.
    pub limit: i64,
}

impl Lookups {
    /// Lists endpoints by their ids' bytes.
    ///
    /// Compares ids as texts, without the help of the customer's indexes: not for the path of an event.
    ///
    /// # Errors
    /// [`LookupError`]
    pub async fn list(
        &self,
        client: &Client,
        which: Which<'_>,
    ) -> Result<Vec<Listed>, LookupError> {
        let patience = Patience::begin(self.lock_patience);
        loop {
            match self.list_now(client, which).await {
                Err(error) if patience.has_more(&error).await => {}
                listed => return listed,
            }
        }
    }

    async fn list_now(
        &self,
        client: &Client,
        which: Which<'_>,
    ) -> Result<Vec<Listed>, LookupError> {
        let plan = self.read_catalog(client).await?;
        let of = which.account.map(|account| plan.types.account.value(account));
        if matches!(of, Some(None)) {
            return Ok(Vec::new());
        }
        let account = of.flatten();
        let sql = statement(&self.source, &plan.types, account.is_some(), Content::Rows);
        let Which { ids, after, limit, .. } = which;
        let all: [(&(dyn ToSql + Sync), Type); 4] = [
            (&ids, Type::TEXT_ARRAY),
            (&account, Type::TEXT),
            (&after, Type::TEXT),
            (&limit, Type::INT8),
        ];
        match client.query_typed(&sql, &all).await {
            Ok(rows) => rows.iter().map(|row| self.listed(row)).collect(),
            Err(error) if is_row_error(&error) => {
                let sql = statement(&self.source, &plan.types, account.is_some(), Content::Keys);
                let rows = match client.query_typed(&sql, &all).await {
                    Ok(rows) => rows,
                    // The account asked for is no value of the column's type.
                    Err(error) if account.is_some() && is_row_error(&error) => return Ok(vec![]),
                    Err(error) => return Err(error.into()),
                };
                self.isolated(client, &plan, &rows).await
            }
            Err(error) => Err(error.into()),
        }
    }

    fn listed(&self, row: &Row) -> Result<Listed, LookupError> {
        let account: Option<&str> = row.try_get(0)?;
        let account = AccountId::new(account.unwrap_or_default());
        Ok(Listed::of(&row::read(&row::RowText::of(row, 1)?, &account, &self.prefix)))
    }

    /// The endpoints of these rows, each by itself.
    async fn isolated(
        &self,
        client: &Client,
        plan: &Plan,
        rows: &[Row],
    ) -> Result<Vec<Listed>, LookupError> {
        let mut keys = Vec::with_capacity(rows.len());
        for row in rows {
            let (account, id): (Option<&str>, Option<&str>) = (row.try_get(0)?, row.try_get(1)?);
            keys.push((AccountId::new(account.unwrap_or_default()), id.unwrap_or_default()));
        }
        let mut accounts: Vec<AccountId> =
            keys.iter().map(|(account, _)| account.clone()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let mut listed = Vec::with_capacity(keys.len());
        for account in accounts {
            let of_account = self.isolate(client, plan, std::slice::from_ref(&account)).await?;
            for (of, id) in keys.iter().filter(|(of, _)| *of == account) {
                let found = of_account.routes.iter().find_map(|(_, routes)| {
                    routes.endpoints.iter().find(|endpoint| endpoint.id.as_str() == *id)
                });
                let refused = of_account.routes.iter().find_map(|(_, r)| r.refused.as_deref());
                listed.push(found.map_or_else(
                    || Listed::of(&row::unreadable(id, of, refused.unwrap_or("it cannot be read"))),
                    |endpoint| Listed::of(endpoint),
                ));
            }
        }
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listed)
    }
}

impl Listed {
    fn of(endpoint: &Endpoint) -> Self {
        let weak = endpoint.secrets.iter().find_map(|secret| sign::judge(secret).ok().flatten());
        Self {
            id: endpoint.id.to_string(),
            account: endpoint.account.to_string(),
            url: endpoint.url.clone(),
            event_types: endpoint.event_types.clone(),
            enabled: endpoint.enabled,
            invalid: endpoint.invalid.clone(),
            weak,
        }
    }
}

/// What a listed row holds behind its account.
#[derive(Clone, Copy)]
enum Content {
    /// All that is read of an endpoint.
    Rows,
    /// Its id alone.
    Keys,
}

fn statement(source: &Source, types: &Types, of_account: bool, content: Content) -> String {
    let id = format!(
        "coalesce({}, '{}') COLLATE pg_catalog.\"C\"",
        source.id_text(&types.id),
        row::NO_ID
    );
    let account = if of_account {
        types.account.equals(&source.account, "$2::pg_catalog.text")
    } else {
        "$2::pg_catalog.text IS NULL".to_owned()
    };
    let columns = match content {
        Content::Rows => source.row(&types.id),
        Content::Keys => source.short_id(&types.id),
    };
    format!(
        "SELECT pg_catalog.left({}, {ID_MAX_BYTES}), {columns}
         FROM {} e
         WHERE ($1::pg_catalog.text[] IS NULL OR {id} OPERATOR(pg_catalog.=) ANY ($1::pg_catalog.text[]))
           AND {account} AND {id} OPERATOR(pg_catalog.>) $3::pg_catalog.text
         ORDER BY {id} LIMIT $4::bigint",
        types.account.text(&source.account),
        source.table,
    )
}
