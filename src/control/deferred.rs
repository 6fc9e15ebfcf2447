//! Deferred deliveries: list, retry, discard.
//!
//! Listing needs the state tables only. The leader knows its rows, in memory too, so all else is for it to
//! do by a job.

#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::dead_letters::AttemptView;
use super::jobs::{self, JobView};
use super::{Databases, Failure, Tell};
use walhook_core::event::rfc3339;
use walhook_core::persist::DeferReason;
use walhook_state::{Ask, OfAccount, StateStore, StoredDeferred, WithoutEndpoint, replay_column};

pub(crate) use walhook_state::{DeferredCursor as Cursor, DeferredFilter as Filter};

/// Why a delivery may be deferred.
pub(crate) const REASONS: [&str; 7] = [
    DeferReason::Failed.as_str(),
    DeferReason::Overflow.as_str(),
    DeferReason::Breaker.as_str(),
    DeferReason::Paused.as_str(),
    DeferReason::Held.as_str(),
    DeferReason::Behind.as_str(),
    DeferReason::Unrouted.as_str(),
];

/// What is to be listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    /// Those that fit this.
    pub(crate) filter: Filter,
    /// Those behind this one.
    pub(crate) after: Cursor,
    /// So many at most.
    pub(crate) limit: i64,
}

/// One page of the list.
#[derive(Debug, Serialize)]
pub(crate) struct DeferredPage {
    /// Those of the oldest commits first.
    pub(crate) deferred: Vec<DeferredView>,
    /// Where the next page begins; null where this is the last.
    pub(crate) next_after: Option<String>,
    /// What fits but is no delivery yet; null where there is nothing of the kind.
    pub(crate) without_endpoint: Option<WithoutEndpointView>,
}

/// A delivery that waits for its next attempt.
#[derive(Debug, Serialize)]
pub(crate) struct DeferredView {
    /// The event's id.
    pub(crate) event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// The account.
    pub(crate) account_id: String,
    /// The endpoint's id.
    pub(crate) endpoint: String,
    /// The replay that it belongs to; null: none.
    pub(crate) replay_id: Option<i64>,
    /// Why: one of [`REASONS`].
    pub(crate) reason: String,
    /// How many attempts were made.
    pub(crate) attempts: i32,
    /// No attempt before then; null: when its turn comes.
    pub(crate) next_attempt_at: Option<String>,
    /// The status of the last answer; null where there was none.
    pub(crate) last_status: Option<i32>,
    /// The last error; empty when nothing failed.
    pub(crate) detail: String,
    /// When it was deferred.
    pub(crate) deferred_at: String,
    /// The last attempts, the oldest first.
    pub(crate) history: Vec<AttemptView>,
}

impl From<StoredDeferred> for DeferredView {
    fn from(row: StoredDeferred) -> Self {
        Self {
            event_id: row.event_id,
            event_type: row.event_type,
            account_id: row.account,
            endpoint: row.endpoint,
            replay_id: replay_column::read(row.replay_id).map(|replay| replay.0),
            reason: row.reason,
            attempts: row.attempts,
            next_attempt_at: row.next_attempt_at_us.map(rfc3339),
            last_status: row.last_status,
            detail: row.detail,
            deferred_at: rfc3339(row.deferred_at_us),
            history: row.history.into_iter().map(AttemptView::from).collect(),
        }
    }
}

/// Events that wait without an endpoint, since their accounts' cannot be looked up, and what to do.
#[derive(Debug, Serialize)]
pub(crate) struct WithoutEndpointView {
    /// How many.
    pub(crate) events: i64,
    /// Of how many accounts.
    pub(crate) accounts: i64,
    /// When the oldest was stored.
    pub(crate) since: String,
    /// The accounts that have most of them; at most 10.
    pub(crate) most: Vec<OfAccountView>,
    /// What to do about it.
    pub(crate) fix: &'static str,
}

/// How many of them are an account's.
#[derive(Debug, Serialize)]
pub(crate) struct OfAccountView {
    /// The account.
    pub(crate) account_id: String,
    /// How many.
    pub(crate) events: i64,
}

impl From<WithoutEndpoint> for WithoutEndpointView {
    fn from(WithoutEndpoint { events, accounts, since_us, most }: WithoutEndpoint) -> Self {
        let of = |OfAccount { account, events }| OfAccountView { account_id: account, events };
        Self {
            events,
            accounts,
            since: rfc3339(since_us),
            most: most.into_iter().map(of).collect(),
            fix: "`walhook check` says why; once that is corrected they become deliveries by themselves",
        }
    }
}

/// How many were discarded, where that needed no job.
#[derive(Debug, Serialize)]
pub(crate) struct Discarded {
    /// How many.
    pub(crate) discarded: i64,
}

/// Lists deferred deliveries, those of the oldest commits first.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn list(databases: Databases<'_>, query: &Query) -> Result<DeferredPage, Failure> {
    page(&databases.open_state().await?, query).await
}

async fn page(state: &StateStore, query: &Query) -> Result<DeferredPage, Failure> {
    let Query { filter, after, limit } = query;
    // One more than asked for tells whether there are more.
    let mut deferred = state.deferred(filter, after, limit + 1).await?;
    let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
    let more = deferred.len() > limit;
    deferred.truncate(limit);
    let next_after = deferred.last().map(place).filter(|_| more);
    let without_endpoint = state.without_endpoint(filter).await?.map(WithoutEndpointView::from);
    let deferred = deferred.into_iter().map(DeferredView::from).collect();
    Ok(DeferredPage { deferred, next_after, without_endpoint })
}

/// Where a list goes on behind this row: event, replay, endpoint.
fn place(row: &StoredDeferred) -> String {
    format!("{}/{}/{}", row.event_id, row.replay_id, row.endpoint)
}

/// Reads [`DeferredPage::next_after`].
pub(crate) fn cursor(text: &str) -> Result<Cursor, String> {
    let read = || {
        let mut parts = text.splitn(3, '/');
        let event = parts.next()?.to_owned();
        let replay = parts.next()?.parse().ok()?;
        Some(Cursor { event, replay, endpoint: parts.next()?.to_owned() })
    };
    read().ok_or_else(|| format!("{text:?} is no place in a list; take what the list printed"))
}

/// How many fit.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn count(databases: Databases<'_>, filter: &Filter) -> Result<i64, Failure> {
    Ok(databases.open_state().await?.count_deferred(filter).await?)
}

/// Has the leader try them as soon as their turn comes, and waits for that, at most `wait`.
///
/// # Errors
/// When none fits, or the state database does not answer.
pub(crate) async fn retry(
    databases: Databases<'_>,
    filter: Filter,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<JobView, Failure> {
    let job = jobs::ask(databases, &Ask::RetryDeferred(filter), wait, tell).await?;
    Ok(job.context("no deferred delivery fits")?)
}

/// Has the leader remove them for good, and waits for that, at most `wait`. `None`: nothing is left of
/// what was to go.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn discard(
    databases: Databases<'_>,
    filter: Filter,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<Option<JobView>, Failure> {
    jobs::ask(databases, &Ask::DiscardDeferred(filter), wait, tell).await
}
