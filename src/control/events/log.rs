//! The delivery log: what happened lately and how often, and erasing what it tells of an account.

use serde::Serialize;

use super::LineView;
use crate::control::{Databases, Failure};
use walhook_core::delivery_log::What;
use walhook_core::event::rfc3339;
use walhook_state::{DeliveryCursor, Erasure};

pub(crate) use walhook_state::DeliveryFilter as Filter;

/// What can have happened.
pub(crate) const OUTCOMES: [&str; 8] = What::WORDS;

/// What is to be listed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    /// Lines that fit this.
    pub(crate) filter: Filter,
    /// So many at most.
    pub(crate) limit: usize,
    /// Those before this place; none: from the newest on.
    pub(crate) before: Option<i64>,
}

/// One page of the list.
#[derive(Debug, Serialize)]
pub(crate) struct LinePage {
    /// The newest first.
    pub(crate) lines: Vec<LineView>,
    /// Where the next page begins; null where this is the last.
    pub(crate) next_before: Option<i64>,
}

/// How many lines fit.
#[derive(Debug, Serialize)]
pub(crate) struct LineCounts {
    /// In all.
    pub(crate) lines: u64,
    /// By what they tell of; the parts make up the whole.
    pub(crate) by: Vec<LineCount>,
}

/// How many lines tell of the same.
#[derive(Debug, Serialize)]
pub(crate) struct LineCount {
    /// What happened: `delivered`, `logged`, `failed`, `deferred`, `dead`, `unroutable`, `gap` or `dropped`.
    pub(crate) what: String,
    /// Why, of what has a reason.
    pub(crate) reason: Option<String>,
    /// The status of the answer; null where there was none.
    pub(crate) status: Option<u16>,
    /// What failed, where there was no answer.
    pub(crate) failure: Option<String>,
    /// How many.
    pub(crate) lines: u64,
    /// When the first of them happened.
    pub(crate) first_at: String,
    /// When the last did.
    pub(crate) last_at: String,
}

/// What was erased.
#[derive(Debug, Serialize)]
pub(crate) struct ErasedView {
    /// The number of its record, which stays.
    pub(crate) id: i64,
    /// Whose lines.
    pub(crate) account_id: String,
    /// Who asked.
    pub(crate) erased_by: String,
    /// When it began.
    pub(crate) begun_at: String,
    /// When the last was gone.
    pub(crate) finished_at: Option<String>,
    /// How many lines.
    pub(crate) lines: i64,
    /// Pages that could not be read, and were removed whole.
    pub(crate) unreadable_pages: i64,
}

impl From<Erasure> for ErasedView {
    fn from(erasure: Erasure) -> Self {
        let Erasure { id, account, by, begun_us, finished_us, lines, unreadable } = erasure;
        Self {
            id,
            account_id: account,
            erased_by: by,
            begun_at: rfc3339(begun_us),
            finished_at: finished_us.map(rfc3339),
            lines,
            unreadable_pages: unreadable,
        }
    }
}

/// Lists lines, the newest first.
///
/// # Errors
/// When the state database does not answer, or a page of the log cannot be read.
pub(crate) async fn list(databases: Databases<'_>, query: &Query) -> Result<LinePage, Failure> {
    let Query { filter, limit, before } = query;
    let state = databases.open_state().await?;
    let page = state.deliveries(filter, *limit, before.map(DeliveryCursor)).await?;
    Ok(LinePage {
        lines: page.entries.iter().map(LineView::from).collect(),
        next_before: page.next.map(|cursor| cursor.0),
    })
}

/// Counts lines, by what happened and what was answered. It may read all of the log.
///
/// # Errors
/// When the state database does not answer, or a page of the log cannot be read.
pub(crate) async fn count(
    databases: Databases<'_>,
    filter: &Filter,
) -> Result<LineCounts, Failure> {
    let counts = databases.open_state().await?.count_deliveries(filter).await?;
    let by = counts.iter().map(|(kind, count)| LineCount {
        what: kind.what.word(kind.status).to_owned(),
        reason: kind.what.reason().map(str::to_owned),
        status: kind.status,
        failure: kind.failure.map(|failure| failure.as_str().to_owned()),
        lines: count.lines,
        first_at: rfc3339(count.first_us),
        last_at: rfc3339(count.last_us),
    });
    Ok(LineCounts { lines: counts.values().map(|count| count.lines).sum(), by: by.collect() })
}

/// Erases what the log tells of an account; `by` is recorded as who asked.
///
/// # Errors
/// When the state database does not answer: what was erased until then stays so.
pub(crate) async fn erase(
    databases: Databases<'_>,
    account: &str,
    by: &str,
) -> Result<ErasedView, Failure> {
    Ok(databases.open_state().await?.erase_deliveries(account, by).await?.into())
}
