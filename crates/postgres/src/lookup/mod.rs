//! Looks accounts' endpoints up in the customer's table.
//!
//! One statement answers for a batch of accounts: rows and snapshot belong together, so that the
//! caller can tell which invalidations the rows have seen already.
//!
//! Accounts are text here, columns are what the customer made them. The statement compares in the
//! column's own type, by the equality that joins go by, so that the customer's index serves; for that each
//! value must be one of that type, and a single `abc` for a `bigint` column would fail the whole batch. So
//! values are sifted first by the column's type as the catalog has it: what cannot be a value of the type
//! cannot stand in the column either, and has no endpoints. The types' OIDs come back with the rows: if a
//! migration has changed one since we read the catalog, the catalog is read again and the answer thrown
//! away.
//!
//! No row fails another's (see `statement` and `isolate`), and an answer is bounded: what is too much
//! for one is left for the next.

mod apart;
mod column;
mod error;
mod isolate;
mod list;
mod memory;
mod once;
mod retyped;
mod row;
mod session;
mod statement;

#[cfg(test)]
mod tests;

pub use apart::{Answer, Apart, Failing};
pub use error::LookupError;
pub use list::{Listed, Which};
pub use row::{positive as weight, reserved};
pub use session::{LookupSession, connect};

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::pg::DatabaseUrl;
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::AccountId;
use walhook_core::settings;

use super::sql::is_row_error;
use column::Column;
use memory::Memory;
use once::{Once, TooMuch};
use session::{LOCK_PATIENCE, Patience};
use statement::{Accounts, Source, Types, WeightSource};

/// A look-up that takes longer may have lost the index that it goes by, or there may be one by now.
const USUALLY: Duration = Duration::from_millis(500);

/// How long batches are asked for by the slower statement after the quicker one was refused.
const FENCED: Duration = Duration::from_secs(60);

/// What a look-up found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// `pg_current_snapshot()` as text, of the statement that read the rows; of several, of the oldest.
    pub snapshot: String,
    /// One entry for each account that is answered for, often without endpoints. Where all together would
    /// take too much memory, or too long, some are missing, but not all: ask again for them. Or for those that are
    /// `costly`, by look-ups that are not for few rows.
    pub routes: Vec<(AccountId, Routes)>,
    /// Accounts that have more rows than a few, where [no more are asked for](Lookups::of_few): they are not answered
    /// for.
    pub costly: Vec<AccountId>,
    /// What the endpoints take in memory.
    bytes: usize,
}

impl Fetched {
    fn add(&mut self, other: Self) {
        self.routes.extend(other.routes);
        self.costly.extend(other.costly);
        self.bytes += other.bytes;
    }
}

/// What look-ups need to know.
#[derive(Debug, Clone, Copy)]
pub struct LookupSettings<'a> {
    /// The database that holds the tables.
    pub url: &'a DatabaseUrl,
    /// `[endpoints]`
    pub endpoints: &'a settings::Endpoints,
    /// `[accounts]`
    pub accounts: Option<&'a settings::Accounts>,
    /// `delivery.header_prefix`: a row's own headers must not begin so.
    pub header_prefix: &'a str,
    /// What the endpoints of one account may take in memory, in bytes.
    pub max_account_bytes: usize,
}

/// The look-ups that a configuration makes.
#[derive(Debug)]
pub struct Lookups {
    source: Source,
    account: Column,
    id: Column,
    weights: Option<WeightSource>,
    /// The names of the endpoint table's columns that are read.
    columns: Vec<String>,
    /// `delivery.header_prefix`.
    prefix: String,
    /// What the endpoints of one account, or of one answer, may take in memory, in bytes.
    max_bytes: usize,
    /// Of accounts with more rows than a few only the names are asked for, as far as there is an index.
    asks_for_few: bool,
    /// How long it is tried where others hold a lock.
    lock_patience: Duration,
    /// Never held across an await.
    memory: Mutex<Memory>,
}

/// The statements, for the types that the columns had when the catalog was read.
#[derive(Debug, Clone)]
struct Plan {
    batch: String,
    fenced: String,
    /// Where there is an index.
    few: Option<String>,
    one: String,
    ids: String,
    some: String,
    types: Types,
    /// The statement for one account that asks for no weights, where another does.
    unweighted: Option<String>,
}

impl Plan {
    fn without_weights(&self) -> Option<Self> {
        let one = self.unweighted.clone()?;
        Some(Self { one, unweighted: None, ..self.clone() })
    }
}

impl Lookups {
    /// The look-ups of a configuration. An account whose endpoints would take more memory than one is given
    /// is [refused](Routes::refused), and an answer ends before the account with which it would.
    #[must_use]
    pub fn of(settings: LookupSettings<'_>) -> Self {
        let LookupSettings { endpoints, accounts, header_prefix, max_account_bytes, .. } = settings;
        let (prefix, max_bytes) = (header_prefix.to_owned(), max_account_bytes);
        Self { prefix, max_bytes, ..Self::new(endpoints, accounts) }
    }

    /// Those of these tables, under the default header prefix.
    #[must_use]
    pub fn new(endpoints: &settings::Endpoints, accounts: Option<&settings::Accounts>) -> Self {
        let column =
            |name: &str, key| Column { table: endpoints.table.clone(), name: name.to_owned(), key };
        Self {
            source: Source::new(endpoints),
            account: column(&endpoints.account, "endpoints.account"),
            id: column(&endpoints.id, "endpoints.id"),
            weights: accounts.map(WeightSource::new),
            columns: [
                &endpoints.url,
                &endpoints.event_types,
                &endpoints.secret,
                &endpoints.enabled,
            ]
            .into_iter()
            .chain(&endpoints.headers)
            .chain(&endpoints.max_in_flight)
            .chain(&endpoints.rate_per_second)
            .cloned()
            .collect(),
            prefix: settings::HEADER_PREFIX.to_owned(),
            max_bytes: usize::MAX,
            asks_for_few: false,
            lock_patience: LOCK_PATIENCE,
            memory: Mutex::default(),
        }
    }

    /// The same, for accounts with few rows: one that has more takes no longer than these, for it is only
    /// [named](Fetched::costly). Where no index begins with the account's column it is answered for like all others.
    #[must_use]
    pub fn of_few(self) -> Self {
        Self { asks_for_few: true, ..self }
    }

    /// The tables and views that are read, as the configuration names them.
    pub(super) fn tables(&self) -> impl Iterator<Item = &str> {
        let weights = self.weights.iter().map(|weights| &*weights.id.table);
        std::iter::once(&*self.account.table).chain(weights)
    }

    /// Reads the types of the columns that keys are compared with.
    ///
    /// # Errors
    /// [`LookupError`], among them that the values of one cannot be compared.
    pub async fn check_types(&self, client: &Client) -> Result<(), LookupError> {
        self.read_catalog(client).await.map(|_| ())
    }

    /// Looks `accounts` up. None at all still yields a snapshot.
    ///
    /// An account whose rows the database refuses, for what they hold, is answered for alone: its
    /// endpoints are [`invalid`](Endpoint::invalid), or its routes [`refused`](Routes::refused).
    ///
    /// # Errors
    /// [`LookupError`]; which see for what may be tried again. A lock that others hold is waited for.
    pub async fn fetch(
        &self,
        client: &Client,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        let patience = Patience::begin(self.lock_patience);
        loop {
            match self.fetch_now(client, accounts).await {
                Err(error) if patience.has_more(&error).await => {}
                fetched => return fetched,
            }
        }
    }

    async fn fetch_now(
        &self,
        client: &Client,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        if let Some(plan) = self.known_plan() {
            match self.fetch_by(client, &plan, accounts).await {
                Err(error @ LookupError::Retyped { .. }) => return Err(error),
                // A lock, or time: to try at once would only take as long again.
                Err(LookupError::Sql(error)) if is_overtime(&error) => return Err(error.into()),
                // It may come from a type that has changed: read the catalog again.
                Err(_) => {}
                Ok(fetched) => return Ok(fetched),
            }
        }
        let plan = self.read_catalog(client).await?;
        self.fetch_by(client, &plan, accounts).await
    }

    /// As [`Lookups::fetch`], answer after answer, until every account is answered for.
    ///
    /// # Errors
    /// As there.
    pub async fn fetch_all(
        &self,
        client: &Client,
        accounts: &[AccountId],
    ) -> Result<Vec<(AccountId, Routes)>, LookupError> {
        let mut routes = Vec::with_capacity(accounts.len());
        let mut left = accounts.to_vec();
        while !left.is_empty() {
            routes.extend(self.fetch(client, &left).await?.routes);
            let answered: HashSet<&AccountId> = routes.iter().map(|(account, _)| account).collect();
            left.retain(|account| !answered.contains(account));
        }
        Ok(routes)
    }

    async fn fetch_by(
        &self,
        client: &Client,
        plan: &Plan,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        let (suspects, others): (Vec<AccountId>, Vec<AccountId>) = {
            let memory = self.memory();
            accounts.iter().cloned().partition(|a| memory.suspects.contains(a))
        };
        let form = match others.len() {
            _ if self.asks_for_few && plan.few.is_some() => Accounts::Few,
            1 => Accounts::One,
            _ => Accounts::Batch,
        };
        let began = Instant::now();
        let mut fetched = if self.is_fenced() {
            self.isolate(client, plan, &others).await?
        } else {
            match self.once(client, plan, &others, form).await {
                Ok(Once { fetched, too_much: None }) => fetched,
                Ok(Once { too_much: Some(TooMuch), .. }) => {
                    self.isolate(client, plan, &others).await?
                }
                Err(LookupError::Sql(error)) if is_row_error(&error) => {
                    if form != Accounts::One {
                        self.fence(FENCED);
                    }
                    self.isolate(client, plan, &others).await?
                }
                Err(error) => return Err(error),
            }
        };
        let was_slow = began.elapsed() > USUALLY;
        if !suspects.is_empty() {
            fetched.add(self.isolate(client, plan, &suspects).await?);
        }
        self.ensure_not_retyped(client, plan, &fetched).await?;
        self.remember(&fetched.routes);
        if was_slow {
            self.memory().doubt_plan();
        }
        Ok(fetched)
    }

    /// An account that has no rows, where one can be named.
    fn nobody(&self) -> Option<AccountId> {
        self.known_plan()?.types.account.sample().map(AccountId::new)
    }

    fn known_plan(&self) -> Option<Arc<Plan>> {
        self.memory().plan.clone()
    }

    async fn read_catalog(&self, client: &Client) -> Result<Arc<Plan>, LookupError> {
        let weighed = match &self.weights {
            Some(weights) => Some(weights.id.read_key(client).await?),
            None => None,
        };
        let account = self.account.read_key(client).await?;
        let id = self.id.read_type(client).await?;
        if self.memory().column_types.is_none() {
            let types = self.column_types(client).await?;
            self.memory().column_types = Some(types);
        }
        let types = Types { account, id, weighed };
        let batch = |weights, accounts| {
            statement::batch(&self.source, &self.account, &self.id, weights, &types, accounts)
        };
        let weights = self.weights.as_ref();
        // By an index each account costs little. Left to itself the planner, where its statistics say nothing or
        // something old, reads all rows for each batch.
        let by_index = self.account.is_indexed(client).await?;
        let quick = if by_index { Accounts::Fenced } else { Accounts::Batch };
        let plan = Arc::new(Plan {
            batch: batch(weights, quick),
            fenced: batch(weights, Accounts::Fenced),
            few: by_index.then(|| batch(weights, Accounts::Few)),
            one: batch(weights, Accounts::One),
            unweighted: weights.map(|_| batch(None, Accounts::One)),
            ids: statement::ids(&self.source, &types),
            some: statement::some(&self.source, &types),
            types,
        });
        self.memory().learn_plan(Arc::clone(&plan));
        Ok(plan)
    }
}

/// Whether the endpoint is one that the database refused to read.
fn is_refused(endpoint: &Endpoint) -> bool {
    endpoint.invalid.as_deref().is_some_and(|why| why.starts_with(REFUSED))
}

/// How the reason of an endpoint begins that the database refused to read.
const REFUSED: &str = "the database refuses to read it";

/// Whether a lock or the statement took too long, or the session has ended.
fn is_overtime(error: &tokio_postgres::Error) -> bool {
    let late = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED];
    error.is_closed() || error.code().is_some_and(|code| late.contains(code))
}

fn shape(what: &str) -> LookupError {
    LookupError::Shape(what.to_owned())
}
