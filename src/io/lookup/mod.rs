//! Looks accounts' endpoints up in the customer's table.
//!
//! One statement answers for a batch of accounts: rows and snapshot belong together, so that the
//! caller can tell which invalidations the rows have seen already.
//!
//! Accounts are text here, columns are what the customer made them. The statement compares in the
//! column's own type, so that the customer's index serves; for that each value must be one of that
//! type, and a single `abc` for a `bigint` column would fail the whole batch. So values are sifted
//! first by the column's type as the catalog has it: what cannot be a value of the type cannot stand
//! in the column either, and has no endpoints. The type's OID comes back with the rows: if a
//! migration has changed it since we read the catalog, the catalog is read again and the answer
//! thrown away.

mod list;
mod row;
mod session;

#[cfg(test)]
mod tests;

pub use list::{Listed, list};
pub use session::connect;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::config;
use crate::engine::endpoint::{Endpoint, Routes};
use crate::engine::event::AccountId;

use super::ident::{quote_ident, quote_literal, quote_table};
use super::sql::{error_text, is_transient};

/// Why nothing was looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The table has no such column, or there is no such table.
    #[error("{table} has no column {column}; correct `{key}`")]
    NoColumn {
        /// The table, as the configuration names it.
        table: String,
        /// The column.
        column: String,
        /// The configuration's key.
        key: &'static str,
    },
    /// The row's columns are not what they must be.
    #[error("the endpoint table cannot be read: {0}")]
    Shape(String),
    /// A column's type changes faster than it can be read.
    #[error("the type of an account column has just been changed")]
    TypeChanged,
    /// The server refused, or the session was lost.
    #[error("cannot look endpoints up: {}", error_text(.0))]
    Sql(#[from] tokio_postgres::Error),
}

impl LookupError {
    /// Whether trying again, on a new connection where this one is lost, may well succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoColumn { .. } | Self::Shape(_) => false,
            Self::TypeChanged => true,
            Self::Sql(error) => is_transient(error),
        }
    }
}

/// What a look-up found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// `pg_current_snapshot()` as text, of the statement that read the rows.
    pub snapshot: String,
    /// One entry for each account asked for, in that order; often without endpoints. Where all together
    /// would take too much memory it ends early, but not before the first: ask again for the others.
    pub routes: Vec<(AccountId, Routes)>,
}

/// The look-ups that a configuration makes.
#[derive(Debug)]
pub struct Lookups {
    endpoints: Column,
    accounts: Option<(Column, String)>,
    /// A `jsonb` object of an endpoint's row, over the alias `e`.
    document: String,
    /// The endpoint table's id column, quoted.
    id: String,
    /// What the endpoints of one account, or of one answer, may take in memory, in bytes.
    max_bytes: usize,
    /// What the catalog said last. Never held across an await.
    plan: Mutex<Option<Arc<Plan>>>,
}

/// A column that holds accounts.
#[derive(Debug)]
struct Column {
    /// The table, as the configuration names it.
    table: String,
    name: String,
    key: &'static str,
}

/// The statement, for the types that the account columns had when the catalog was read.
#[derive(Debug)]
struct Plan {
    sql: String,
    endpoints: ColumnType,
    accounts: Option<ColumnType>,
}

/// What the catalog says of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ColumnType {
    oid: u32,
    /// The type under all domains, quoted, for a cast.
    cast: String,
    kind: Kind,
}

/// Which texts can be values of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int2,
    Int4,
    Int8,
    Uuid,
    /// All of them.
    Text,
    /// Not known here: compared as text, without the help of an index.
    Other,
}

impl Kind {
    fn of(type_name: &str, category: i8) -> Self {
        match type_name {
            "int2" => Self::Int2,
            "int4" => Self::Int4,
            "int8" => Self::Int8,
            "uuid" => Self::Uuid,
            _ if category == i8::from_be_bytes([b'S']) => Self::Text,
            _ => Self::Other,
        }
    }

    fn holds(self, text: &str) -> bool {
        match self {
            Self::Int2 => text.parse::<i16>().is_ok(),
            Self::Int4 => text.parse::<i32>().is_ok(),
            Self::Int8 => text.parse::<i64>().is_ok(),
            // The form that PostgreSQL prints, which is the form that accounts come in.
            Self::Uuid => {
                text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_hexdigit(),
                    })
            }
            Self::Text | Self::Other => !text.contains('\0'),
        }
    }
}

impl ColumnType {
    /// A comparison of the column with a text.
    fn equals(&self, column: &str, text: &str) -> String {
        match self.kind {
            Kind::Int2 | Kind::Int4 | Kind::Int8 | Kind::Uuid | Kind::Text => {
                format!("{column} = {text}::{}", self.cast)
            }
            Kind::Other => format!("{column}::text = {text}"),
        }
    }
}

impl Lookups {
    /// Prepares the look-ups that the configuration asks for.
    #[must_use]
    pub fn new(endpoints: &config::Endpoints, accounts: Option<&config::Accounts>) -> Self {
        let column = |name: &str| format!("e.{}", quote_ident(name));
        let optional =
            |name: &Option<String>| name.as_deref().map_or_else(|| "NULL".to_owned(), column);
        // The id as text: the JSON number of a bigint would do, that of a numeric might not.
        let document = format!(
            "jsonb_build_object('id', {}::text, 'url', {}, 'event_types', {}, 'secret', {},
                    'enabled', {}, 'headers', {}, 'max_in_flight', {}, 'rate_per_second', {})",
            column(&endpoints.id),
            column(&endpoints.url),
            column(&endpoints.event_types),
            column(&endpoints.secret),
            column(&endpoints.enabled),
            optional(&endpoints.headers),
            optional(&endpoints.max_in_flight),
            optional(&endpoints.rate_per_second),
        );
        Self {
            endpoints: Column {
                table: endpoints.table.clone(),
                name: endpoints.account.clone(),
                key: "endpoints.account",
            },
            accounts: accounts.map(|accounts| {
                let id = Column {
                    table: accounts.table.clone(),
                    name: accounts.id.clone(),
                    key: "accounts.id",
                };
                (id, accounts.weight.clone())
            }),
            document,
            id: column(&endpoints.id),
            max_bytes: usize::MAX,
            plan: Mutex::new(None),
        }
    }

    /// The same, but an account whose endpoints would take more than so many bytes of memory is
    /// [`Routes::too_large`], and an answer ends before the account with which it would.
    #[must_use]
    pub fn bounded(self, max_bytes: usize) -> Self {
        Self { max_bytes, ..self }
    }

    /// Looks `accounts` up by one statement. None at all still yields a snapshot.
    ///
    /// # Errors
    /// [`LookupError`]; which see for what may be tried again.
    pub async fn fetch(
        &self,
        client: &Client,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        if let Some(plan) = self.known_plan() {
            // An error may come from a type that has changed just as well: read the catalog again.
            if let Ok(Some(fetched)) = self.execute(client, &plan, accounts).await {
                return Ok(fetched);
            }
        }
        let plan = self.read_catalog(client).await?;
        self.execute(client, &plan, accounts).await?.ok_or(LookupError::TypeChanged)
    }

    fn known_plan(&self) -> Option<Arc<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn read_catalog(&self, client: &Client) -> Result<Arc<Plan>, LookupError> {
        let endpoints = self.endpoints.read_type(client).await?;
        let accounts = match &self.accounts {
            Some((id, _)) => Some(id.read_type(client).await?),
            None => None,
        };
        let sql = self.statement(&endpoints, accounts.as_ref());
        let plan = Arc::new(Plan { sql, endpoints, accounts });
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&plan));
        Ok(plan)
    }

    /// One row for each endpoint, one for each account without, and one when there is no account.
    /// `$1` and `$2`: the accounts, null where the endpoint (or account) table cannot have them.
    fn statement(&self, endpoints: &ColumnType, accounts: Option<&ColumnType>) -> String {
        let account = format!("e.{}", quote_ident(&self.endpoints.name));
        let weights = self.accounts.as_ref().zip(accounts);
        let weight = weights.map_or_else(
            || "NULL::float8".to_owned(),
            |((column, weight), kind)| {
                format!(
                    "(SELECT w.{}::float8 FROM {} w WHERE {} LIMIT 1)",
                    quote_ident(weight),
                    quote_table(&column.table),
                    kind.equals(&format!("w.{}", quote_ident(&column.name)), "a.weighed"),
                )
            },
        );
        format!(
            "SELECT pg_current_snapshot()::text, {}, {}, a.at, f.document, {weight}
             FROM (SELECT) one
             LEFT JOIN unnest($1::text[], $2::text[]) WITH ORDINALITY a(account, weighed, at) ON true
             LEFT JOIN LATERAL (SELECT {}::text AS document, {} AS id FROM {} e WHERE {}) f ON true
             ORDER BY a.at, f.id",
            self.endpoints.type_oid(),
            self.accounts.as_ref().map_or_else(|| "NULL::oid".to_owned(), |(c, _)| c.type_oid()),
            self.document,
            self.id,
            quote_table(&self.endpoints.table),
            endpoints.equals(&account, "a.account"),
        )
    }

    /// `None`: the plan is for other types than the columns have now.
    async fn execute(
        &self,
        client: &Client,
        plan: &Plan,
        accounts: &[AccountId],
    ) -> Result<Option<Fetched>, LookupError> {
        let sift = |kind: Option<Kind>| -> Vec<Option<&str>> {
            let fits = |a: &&str| kind.is_some_and(|kind| kind.holds(a));
            accounts.iter().map(|a| Some(a.as_str()).filter(fits)).collect()
        };
        let in_endpoints = sift(Some(plan.endpoints.kind));
        let in_accounts = sift(plan.accounts.as_ref().map(|a| a.kind));
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&in_endpoints, Type::TEXT_ARRAY), (&in_accounts, Type::TEXT_ARRAY)];
        let mut rows = pin!(client.query_typed_raw(&plan.sql, parameters).await?);
        let mut answer = Answer::new(accounts, self.max_bytes);
        let mut snapshot: Option<String> = None;
        // One row at a time: an account may have hundreds of thousands.
        while let Some(row) = rows.try_next().await? {
            if snapshot.is_none() {
                let oids: (Option<u32>, Option<u32>) = (row.try_get(1)?, row.try_get(2)?);
                if oids != (Some(plan.endpoints.oid), plan.accounts.as_ref().map(|a| a.oid)) {
                    return Ok(None);
                }
                snapshot = Some(row.try_get(0)?);
            }
            if !answer.add(&row)? {
                break;
            }
        }
        let snapshot = snapshot.ok_or_else(|| shape("the statement yields no row"))?;
        Ok(Some(Fetched { snapshot, routes: answer.into_routes() }))
    }
}

/// The answer as far as it was read.
struct Answer {
    accounts: Vec<(AccountId, Found)>,
    max_bytes: usize,
    /// What the accounts before the last one take.
    bytes: usize,
    /// The account that was read last.
    last: usize,
}

/// What was read of one account.
struct Found {
    endpoints: Vec<Arc<Endpoint>>,
    bytes: usize,
    weight: f64,
    too_large: bool,
}

impl Answer {
    fn new(accounts: &[AccountId], max_bytes: usize) -> Self {
        let none = || Found { endpoints: Vec::new(), bytes: 0, weight: 1.0, too_large: false };
        let accounts = accounts.iter().map(|account| (account.clone(), none())).collect();
        Self { accounts, max_bytes, bytes: 0, last: 0 }
    }

    /// Adds a row of the answer, which come account by account. False: the answer ends before its account.
    fn add(&mut self, row: &Row) -> Result<bool, LookupError> {
        // Null when there was no account to ask for.
        let Some(at) = row.try_get::<_, Option<i64>>(3)? else { return Ok(true) };
        let not_asked = || shape("the statement answers for an account that was not asked for");
        let at = usize::try_from(at).ok().and_then(|at| at.checked_sub(1)).ok_or_else(not_asked)?;
        if at != self.last {
            self.bytes += self.accounts.get(self.last).map_or(0, |(_, before)| before.bytes);
            self.last = at;
        }
        let (account, found) = self.accounts.get_mut(at).ok_or_else(not_asked)?;
        let weight: Option<f64> = row.try_get(5)?;
        found.weight = weight.filter(|w| w.is_finite() && *w > 0.0).unwrap_or(1.0);
        if found.too_large {
            return Ok(true);
        }
        if let Some(document) = row.try_get::<_, Option<&str>>(4)? {
            let endpoint = Arc::new(row::read(document, account)?);
            found.bytes += endpoint.size_bytes();
            found.endpoints.push(endpoint);
        }
        if self.bytes > 0 && self.bytes + found.bytes > self.max_bytes {
            self.accounts.truncate(at);
            return Ok(false);
        }
        if found.bytes > self.max_bytes {
            (found.endpoints, found.bytes, found.too_large) = (Vec::new(), 0, true);
        }
        Ok(true)
    }

    /// The statement orders by the column's type, 9 before 10; routes are found by bytes.
    fn into_routes(self) -> Vec<(AccountId, Routes)> {
        let routes = |(account, found): (AccountId, Found)| match found.too_large {
            true => (account, Routes::too_large(found.weight)),
            false => (account, Routes::new(found.endpoints, found.weight)),
        };
        self.accounts.into_iter().map(routes).collect()
    }
}

fn shape(what: &str) -> LookupError {
    LookupError::Shape(what.to_owned())
}

impl Column {
    /// SQL for the OID of the column's type at this moment.
    fn type_oid(&self) -> String {
        format!(
            "(SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass({})
              AND attname = {} AND NOT attisdropped)",
            quote_literal(&quote_table(&self.table)),
            quote_literal(&self.name)
        )
    }

    async fn read_type(&self, client: &Client) -> Result<ColumnType, LookupError> {
        let sql = format!(
            "WITH RECURSIVE t AS (
                 SELECT t.* FROM pg_catalog.pg_type t WHERE t.oid = {oid}
                 UNION ALL
                 SELECT base.* FROM pg_catalog.pg_type base JOIN t ON t.typbasetype = base.oid
                 WHERE t.typtype = 'd')
             SELECT {oid}, t.typname::text, n.nspname::text, t.typcategory
             FROM t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype <> 'd'",
            oid = self.type_oid()
        );
        let row = client.query_typed_opt(&sql, &[]).await?;
        let row = row.ok_or_else(|| LookupError::NoColumn {
            table: self.table.clone(),
            column: self.name.clone(),
            key: self.key,
        })?;
        let (name, schema): (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
        Ok(ColumnType {
            oid: row.try_get(0)?,
            cast: format!("{}.{}", quote_ident(schema), quote_ident(name)),
            kind: Kind::of(name, row.try_get(3)?),
        })
    }
}
