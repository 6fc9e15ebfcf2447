//! A batch that the database refuses for its data is split until the culprit is alone.
//!
//! Only what the data did is charged to it. Anything else that a statement fails of (time, a lock, the
//! connection, a right, a missing object) fails the whole look-up, which is made again; and so does a
//! table or view that cannot be read for an account that has nothing wrong either.

use std::pin::pin;

use futures_util::TryStreamExt;
use tokio::time::{Duration, Instant};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::memory::UNREADABLE;
use super::once::{Once, TooMuch, unique};
use super::statement::{self, Accounts};
use super::{Fetched, LookupError, Lookups, Plan, REFUSED, row};
use crate::sql::is_row_error;
use walhook_core::endpoint::{Endpoint, Routes, Share};
use walhook_core::event::AccountId;

/// What is not isolated by then is asked for by the next look-up, so that the rest need not wait.
const ISOLATING: Duration = Duration::from_secs(5);

/// Statements by which the endpoints of one account are told apart. What they leave together counts as
/// refused together: enough for some ten that are refused among thousands.
const STATEMENTS: usize = 64;

/// Why the statement for an account failed: the code of the server's error. Not its text, which may
/// quote the row.
struct Refusal(String);

impl Refusal {
    /// Of an error that the data is to blame for; any other is passed on.
    fn of(error: LookupError) -> Result<Self, LookupError> {
        match &error {
            LookupError::Sql(sql) if is_row_error(sql) => {
                let code = sql.code().map_or("unknown", |code| code.code());
                Ok(Self(format!("{REFUSED}: SQLSTATE {code}")))
            }
            LookupError::Sql(_)
            | LookupError::NoTable { .. }
            | LookupError::NoColumn { .. }
            | LookupError::Incomparable { .. }
            | LookupError::Retyped { .. }
            | LookupError::Hidden { .. }
            | LookupError::Connect(_)
            | LookupError::Shape(_)
            | LookupError::Many(_)
            | LookupError::TypeChanged => Err(error),
        }
    }
}

impl Lookups {
    /// Looks accounts up in ever smaller batches.
    pub(super) async fn isolate(
        &self,
        client: &Client,
        plan: &Plan,
        accounts: &[AccountId],
    ) -> Result<Fetched, LookupError> {
        let until = Instant::now() + ISOLATING;
        // First, and so the oldest: what it sees, all of them see.
        let snapshot = client.query_typed_one(statement::SNAPSHOT, &[]).await?.try_get(0)?;
        let mut fetched = Fetched { snapshot, ..Fetched::default() };
        let mut ranges = vec![accounts];
        while let Some(range) = ranges.pop() {
            if range.is_empty() {
                continue;
            }
            let is_full = fetched.bytes > self.max_bytes / 2 || Instant::now() > until;
            if is_full && !fetched.routes.is_empty() {
                break;
            }
            let form = if range.len() == 1 { Accounts::One } else { Accounts::Fenced };
            match self.once(client, plan, range, form).await {
                Ok(Once { fetched: found, too_much: None }) => fetched.add(found),
                Ok(Once { too_much: Some(TooMuch), .. }) => split(range, &mut ranges),
                Err(error) => {
                    let refusal = Refusal::of(error)?;
                    match range {
                        [account] => {
                            let found = self.alone(client, plan, account, refusal).await?;
                            fetched.add(found);
                        }
                        _ => split(range, &mut ranges),
                    }
                }
            }
        }
        Ok(fetched)
    }

    /// One account whose statement is refused.
    async fn alone(
        &self,
        client: &Client,
        plan: &Plan,
        account: &AccountId,
        refusal: Refusal,
    ) -> Result<Fetched, LookupError> {
        let only =
            |routes| Fetched { routes: vec![(account.clone(), routes)], ..Fetched::default() };
        if !self.can_be_a_key(client, plan, account).await? {
            return Ok(only(Routes::new(Vec::new(), Share::default())));
        }
        self.ensure_others_can_be_read(client, plan, account).await?;
        if let Some(unweighted) = plan.without_weights() {
            match self.once(client, &unweighted, std::slice::from_ref(account), Accounts::One).await
            {
                Ok(Once { fetched, .. }) => {
                    self.warn_of_share(account, UNREADABLE);
                    return Ok(fetched);
                }
                Err(error) => _ = Refusal::of(error)?,
            }
        }
        let Refusal(why) = refusal;
        let ids = match self.ids(client, plan, account).await {
            Ok(ids) => ids,
            Err(error) => {
                Refusal::of(error)?;
                return Ok(only(Routes::refused(why, Share::default())));
            }
        };
        Ok(only(match self.one_by_one(client, plan, account, &ids, &why).await? {
            Some(endpoints) => Routes::new(unique(endpoints), Share::default()).costly(),
            None => Routes::too_large(Share::default()),
        }))
    }

    /// Whether the text can be read as a value of the columns' types: if not, no row has it.
    async fn can_be_a_key(
        &self,
        client: &Client,
        plan: &Plan,
        account: &AccountId,
    ) -> Result<bool, LookupError> {
        let sql = format!("SELECT ({}) IS NULL", plan.types.account.reads("$1::pg_catalog.text"));
        match client.query_typed(&sql, &[(&account.as_str(), Type::TEXT)]).await {
            Ok(_) => Ok(true),
            Err(error) if is_row_error(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A table that cannot be read for anyone is nobody's fault: an outage.
    async fn ensure_others_can_be_read(
        &self,
        client: &Client,
        plan: &Plan,
        account: &AccountId,
    ) -> Result<(), LookupError> {
        let last = self.last_good().filter(|good| good != account);
        let sample = || plan.types.account.sample().map(AccountId::new);
        let Some(other) = last.or_else(sample) else { return Ok(()) };
        self.once(client, plan, &[other], Accounts::One).await.map(|_| ())
    }

    async fn ids(
        &self,
        client: &Client,
        plan: &Plan,
        account: &AccountId,
    ) -> Result<Vec<String>, LookupError> {
        let account = plan.types.account.value(account).unwrap_or_default();
        let rows = client.query_typed(&plan.ids, &[(&account, Type::TEXT)]).await?;
        rows.iter()
            .filter_map(|row| row.try_get::<_, Option<String>>(0).map_err(Into::into).transpose())
            .collect()
    }

    /// Reads the account's endpoints by their ids, in ever smaller lots; `None` where they are too large.
    async fn one_by_one(
        &self,
        client: &Client,
        plan: &Plan,
        account: &AccountId,
        ids: &[String],
        why: &str,
    ) -> Result<Option<Vec<Endpoint>>, LookupError> {
        let text = plan.types.account.value(account).unwrap_or_default();
        let mut endpoints = Vec::with_capacity(ids.len());
        let refuse = |ids: &[String], endpoints: &mut Vec<Endpoint>| {
            endpoints.extend(ids.iter().map(|id| row::unreadable(id, account, why)));
        };
        let (mut lots, mut asked, mut bytes) = (vec![ids], 0, 0);
        while let Some(lot) = lots.pop() {
            if asked == STATEMENTS {
                refuse(lot, &mut endpoints);
                continue;
            }
            asked += 1;
            let lot_ids: Vec<&str> = lot.iter().map(String::as_str).collect();
            let params: [(&(dyn ToSql + Sync), Type); 2] =
                [(&text, Type::TEXT), (&lot_ids, Type::TEXT_ARRAY)];
            let found = async {
                let mut found = Vec::new();
                let mut rows = pin!(client.query_typed_raw(&plan.some, params).await?);
                while let Some(row) = rows.try_next().await? {
                    let read = row::read(&row::RowText::of(&row, 0)?, account, &self.prefix);
                    bytes += read.size_bytes();
                    if bytes > self.max_bytes {
                        return Ok(None);
                    }
                    found.push(read);
                }
                Ok::<_, LookupError>(Some(found))
            };
            match found.await {
                Ok(Some(found)) => endpoints.extend(found),
                Ok(None) => return Ok(None),
                Err(error) => {
                    Refusal::of(error)?;
                    if lot.len() > 1 { split(lot, &mut lots) } else { refuse(lot, &mut endpoints) }
                }
            }
        }
        Ok(Some(endpoints))
    }
}

/// Puts both halves on the stack, the first on top.
fn split<'a, T>(range: &'a [T], ranges: &mut Vec<&'a [T]>) {
    let (first, second) = range.split_at(range.len() / 2);
    ranges.extend([second, first]);
}
