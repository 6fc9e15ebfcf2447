//! Dead letters: list, show, retry, discard.
//!
//! Listing and discarding need the state tables only. A retry is the leader's to send, by a job.

#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde_json::value::RawValue;

use super::deferred::Discarded;
use super::gaps::GapView;
use super::jobs::{self, JobView};
use super::{Databases, Failure, Tell, ensure_live};
use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_core::id::JobId;
use walhook_core::persist::DeadReason;
use walhook_core::position::Position;
use walhook_state::{Ask, Gap, StateStore, StoredAttempt, StoredDeadLetter};

pub(crate) use walhook_state::DeadLetterFilter as Filter;

/// Why a delivery may be a dead letter.
pub(crate) const REASONS: [&str; 4] = [
    DeadReason::Exhausted.as_str(),
    DeadReason::EndpointDisabled.as_str(),
    DeadReason::EndpointInvalid.as_str(),
    DeadReason::Unroutable.as_str(),
];

/// Of retries that failed again, so many are shown with their errors.
const ERRORS_SHOWN: i64 = 20;

/// What is to be listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    /// Those that fit this.
    pub(crate) filter: Filter,
    /// Those with ids above this.
    pub(crate) after: i64,
    /// So many at most.
    pub(crate) limit: i64,
}

/// One page of the list.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetterPage {
    /// Records of dead letters that are counted only.
    pub(crate) beyond: Vec<GapView>,
    /// By their ids.
    pub(crate) dead_letters: Vec<DeadLetterView>,
    /// Where the next page begins; null where this is the last.
    pub(crate) next_after: Option<i64>,
}

/// A delivery that ended without success.
#[derive(Debug, Serialize)]
pub(crate) struct DeadLetterView {
    /// The account.
    pub(crate) account_id: String,
    /// How many attempts were made, retries included.
    pub(crate) attempts: u32,
    /// The last error.
    pub(crate) detail: String,
    /// When it was stored.
    pub(crate) died_at: String,
    /// The endpoint's id; null for a change that could not be routed.
    pub(crate) endpoint: Option<String>,
    /// The event's id.
    pub(crate) event_id: String,
    /// Its own.
    pub(crate) id: i64,
    /// The status of the last answer; null where there was none.
    pub(crate) last_status: Option<u16>,
    /// Why: one of [`REASONS`].
    pub(crate) reason: String,
    /// When it was last stored or retried.
    pub(crate) tried_at: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
}

impl From<&StoredDeadLetter> for DeadLetterView {
    fn from(letter: &StoredDeadLetter) -> Self {
        Self {
            account_id: letter.event.account.to_string(),
            attempts: letter.attempts,
            detail: letter.detail.clone(),
            died_at: rfc3339(letter.died_at_us),
            endpoint: letter.endpoint.as_deref().map(str::to_owned),
            event_id: letter.event.id.to_string(),
            id: letter.id,
            last_status: letter.last_status,
            reason: letter.reason.clone(),
            tried_at: rfc3339(letter.tried_at_us),
            event_type: letter.event.event_type.to_string(),
        }
    }
}

/// A dead letter with its last attempts, the position of its change and its request's body, each character of
/// it.
#[derive(Debug, Serialize)]
pub(crate) struct WholeDeadLetter {
    /// What a list says of it.
    #[serde(flatten)]
    pub(crate) letter: DeadLetterView,
    /// The last attempts, the oldest first.
    pub(crate) history: Vec<AttemptView>,
    /// Of the transaction that made the change.
    pub(crate) commit_lsn: String,
    /// Of the change.
    pub(crate) change_lsn: String,
    /// The request's body.
    pub(crate) body: Box<RawValue>,
    /// When the transaction committed.
    #[serde(skip)]
    pub(crate) committed_at: String,
}

impl WholeDeadLetter {
    fn new(letter: &StoredDeadLetter) -> anyhow::Result<Self> {
        let Position::Wal(position) = letter.event.position;
        let body = String::from_utf8(letter.event.body().into()).context("the body is no UTF-8")?;
        Ok(Self {
            letter: letter.into(),
            history: letter.history.iter().cloned().map(AttemptView::from).collect(),
            commit_lsn: position.commit_lsn.to_string(),
            change_lsn: position.change_lsn.to_string(),
            body: RawValue::from_string(body).context("the body is no JSON")?,
            committed_at: rfc3339(letter.event.commit_time_us),
        })
    }
}

/// One attempt of a delivery.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AttemptView {
    /// When it ended.
    pub(crate) at: String,
    /// The status of the answer; null where there was none.
    pub(crate) status: Option<u16>,
    /// From the call to the end of the answer.
    pub(crate) latency_ms: u64,
    /// What failed, with the answer's first KiB.
    pub(crate) error: String,
}

impl From<StoredAttempt> for AttemptView {
    fn from(StoredAttempt { at, status, latency_ms, error }: StoredAttempt) -> Self {
        Self { at, status, latency_ms, error }
    }
}

/// A job of retries, with what those that failed again failed by.
#[derive(Debug, Serialize)]
pub(crate) struct RetryView {
    /// The job.
    #[serde(flatten)]
    pub(crate) job: JobView,
    /// The first twenty that failed again.
    pub(crate) errors: Vec<DeadLetterView>,
}

/// Lists dead letters by id.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn list(
    databases: Databases<'_>,
    query: &Query,
) -> Result<DeadLetterPage, Failure> {
    page(&databases.open_state().await?, query).await
}

async fn page(state: &StateStore, query: &Query) -> Result<DeadLetterPage, Failure> {
    let Query { filter, after, limit } = query;
    // One more than asked for tells whether there are more.
    let mut letters = state.dead_letters(filter, *after, limit + 1).await?;
    let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
    let more = letters.len() > limit;
    letters.truncate(limit);
    Ok(DeadLetterPage {
        beyond: beyond(state, filter).await?.into_iter().map(GapView::from).collect(),
        next_after: letters.last().map(|letter| letter.id).filter(|_| more),
        dead_letters: letters.iter().map(DeadLetterView::from).collect(),
    })
}

/// What is counted only, where the list is of everything, or of an endpoint or account.
async fn beyond(state: &StateStore, filter: &Filter) -> Result<Vec<Gap>, Failure> {
    let of_queue = Filter {
        endpoint: filter.endpoint.clone(),
        account: filter.account.clone(),
        ..Filter::default()
    };
    let mut beyond = if *filter == of_queue { state.gaps(false).await? } else { Vec::new() };
    beyond.retain(|gap| {
        let fits = |wanted: &Option<String>, of: &Option<String>| wanted.is_none() || wanted == of;
        gap.dead_letters
            && fits(&filter.endpoint, &gap.endpoint)
            && fits(&filter.account, &gap.account)
    });
    Ok(beyond)
}

/// Shows one.
///
/// # Errors
/// When there is none of this id, or the state database does not answer.
pub(crate) async fn show(databases: Databases<'_>, id: i64) -> Result<WholeDeadLetter, Failure> {
    let filter = Filter { ids: Some(vec![id]), ..Filter::default() };
    let letters = databases.open_state().await?.dead_letters(&filter, 0, 1).await?;
    let letter = letters.first().ok_or_else(|| anyhow!("there is no dead letter {id}"))?;
    Ok(WholeDeadLetter::new(letter)?)
}

/// Has the leader send them again, and waits for that, at most `wait`.
///
/// # Errors
/// When none with an endpoint fits: the message says so of those without; when nothing is sent from here; or the state
/// database does not answer.
pub(crate) async fn retry(
    config: &Config,
    filter: Filter,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<RetryView, Failure> {
    ensure_live(config)?;
    let databases = Databases::of(config);
    let asked = Ask::RetryDeadLetters(filter.clone());
    let Some(job) = jobs::ask(databases, &asked, wait, tell).await? else {
        let state = databases.open_state().await?;
        return Err(why_none(&state.dead_letters(&filter, 0, 1).await?).into());
    };
    let failed = match job.failed {
        0 => Vec::new(),
        _ => databases.open_state().await?.retried_in_vain(JobId(job.id), ERRORS_SHOWN).await?,
    };
    Ok(RetryView { job, errors: failed.iter().map(DeadLetterView::from).collect() })
}

/// Why nothing is to be retried; `fit`: the first that fits all the same.
fn why_none(fit: &[StoredDeadLetter]) -> anyhow::Error {
    let Some(letter) = fit.first() else { return anyhow!("no dead letter fits") };
    let StoredDeadLetter { id, event, .. } = letter;
    anyhow!(
        "no dead letter with an endpoint fits: {id} could not be routed, so there is nobody to send it to again; \
         correct what `walhook dead-letters show {id}` says, then `walhook events resend {}` makes it anew",
        event.id
    )
}

/// How many fit.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn count(databases: Databases<'_>, filter: &Filter) -> Result<i64, Failure> {
    Ok(databases.open_state().await?.count_dead_letters(filter).await?)
}

/// Removes them for good.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn discard(
    databases: Databases<'_>,
    filter: &Filter,
) -> Result<Discarded, Failure> {
    let discarded = databases.open_state().await?.discard_dead_letters(filter).await?;
    Ok(Discarded { discarded })
}
