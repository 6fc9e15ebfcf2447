//! The delivery log: what happened lately, and erasing what it tells of an account.

use serde::Serialize;

use super::LineView;
use crate::control::{Databases, Failure};
use walhook_core::delivery_log::What;
use walhook_core::event::rfc3339;
use walhook_state::{DeliveryCursor, Erasure};

pub(crate) use walhook_state::DeliveryFilter as Filter;

/// What can have happened.
pub(crate) const OUTCOMES: [&str; 7] = What::WORDS;

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
