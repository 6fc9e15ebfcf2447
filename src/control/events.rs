//! Events: what became of one, what happened lately, and sending one again.
//!
//! The delivery log and the rows of the state tables say it, so that it is said while nothing runs; beside them the
//! leader's memory, and the replay window.

mod body;
mod line;
pub(crate) mod log;
mod memory;
pub(crate) mod resend;
mod standing;

use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;

use super::{Databases, Failure};
use crate::config::Config;
use walhook_core::event::{Event, rfc3339};
use walhook_core::lsn::Lsn;
use walhook_core::position::EventId;
use walhook_state::{DeferredCursor, DeferredFilter, StateStore};

pub(crate) use line::LineView;
pub(crate) use standing::DeliveryView;
use standing::Known;

/// Deferred rows of one event that are shown: it may be for very many endpoints.
const DEFERRED_MAX: i64 = 10_000;

/// Lines of the log likewise.
const LINES_MAX: usize = 100_000;

/// All that is known of an event.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    /// Its id.
    pub(crate) event_id: String,
    /// Its type; null where nothing has the event.
    #[serde(rename = "type")]
    pub(crate) event_type: Option<String>,
    /// The account.
    pub(crate) account_id: Option<String>,
    /// When the transaction committed; where nothing has the event, to a millisecond, as its id says.
    pub(crate) committed_at: String,
    /// Where.
    pub(crate) commit_lsn: Option<String>,
    /// Whether the checkpoint has passed it: then each of its deliveries has come to its end, or stands in a table.
    /// Null where that cannot be told.
    pub(crate) settled: Option<bool>,
    /// Its deliveries, by endpoint: those that the log, a table or the leader's memory has.
    pub(crate) deliveries: Vec<DeliveryView>,
    /// Why it is unknown what of it is in the leader's memory; null: that is known.
    pub(crate) memory_error: Option<String>,
    /// The request's body; null where it was not found.
    pub(crate) body: Option<Box<RawValue>>,
    /// Where that was found: `state`, or `window` where it was made anew.
    pub(crate) body_from: Option<String>,
    /// Why there is none.
    pub(crate) no_body: Option<String>,
    /// What is to be known beside.
    pub(crate) note: Option<String>,
}

impl EventView {
    /// Why it seems that there is no such event, where nothing has it: the checkpoint is past it, or nobody can tell.
    pub(crate) fn unknown(&self) -> Option<String> {
        let is_known = !self.deliveries.is_empty() || self.event_type.is_some();
        if is_known || self.settled == Some(false) {
            return None;
        }
        let id = &self.event_id;
        Some(match &self.memory_error {
            None => format!("nothing is known of {id}: no line, no row and no delivery in memory"),
            Some(_) => {
                format!("nothing is known of {id}: no line, no row, and of memory nobody told")
            }
        })
    }
}

/// What is known of an event. `admin`: where the leader's admin server answers; none: on this machine. `wants_body`:
/// also from the replay window, which may take a while.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn show(
    config: &Config,
    id: EventId,
    admin: Option<Url>,
    wants_body: bool,
) -> Result<EventView, Failure> {
    let state = Databases::of(config).open_state().await?;
    let gathered = gather(config, &state, id, admin).await?;
    let settled = gathered.settled(&state, id).await?;
    let Gathered { known, event, memory_error } = gathered;
    let found = found(config, id, event, wants_body, settled).await;
    let event = found.event.as_deref();
    let line = known.story.first();
    let commit_lsn = event.map(|event| event.position.commit_lsn());
    let commit_lsn = commit_lsn.or_else(|| line.map(|line| line.commit_lsn));
    let committed_us = event.map(|event| event.commit_time_us);
    let committed_us = committed_us.or_else(|| line.map(|line| line.committed_us));
    let event_type = event.map(|event| &event.event_type);
    let account = event.map(|event| &event.account).or(line.map(|line| &line.account));
    let told = known.pending.first().map(|pending| pending.account_id.clone());
    let settled = commit_lsn.map(|commit| commit < known.frontier).or(settled);
    let deliveries = known.deliveries();
    let note = deliveries.is_empty().then(|| note(settled).to_owned());
    Ok(EventView {
        event_id: id.to_string(),
        event_type: event_type.or(line.map(|line| &line.event_type)).map(ToString::to_string),
        account_id: account.map(ToString::to_string).or(told),
        committed_at: rfc3339(committed_us.unwrap_or_else(|| commit_us(id))),
        commit_lsn: commit_lsn.map(|lsn| lsn.to_string()),
        settled,
        deliveries,
        memory_error,
        body: event.map(raw_body).transpose()?,
        body_from: found.from.map(str::to_owned),
        no_body: found.why_not,
        note,
    })
}

/// What of an event the leader's memory, rows and the log have.
struct Gathered {
    known: Known,
    /// The event itself, where a row has it.
    event: Option<Arc<Event>>,
    /// Why it is unknown what of it is in memory.
    memory_error: Option<String>,
}

async fn gather(
    config: &Config,
    state: &StateStore,
    id: EventId,
    admin: Option<Url>,
) -> Result<Gathered, Failure> {
    // The checkpoint first, then memory, then rows, then the log: what leaves one meanwhile is in the next.
    let frontier = state.frontier().await?;
    let (pending, memory_error) = match memory::read(config, id, admin).await? {
        Ok(pending) => (pending, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let gaps = state.gaps(true).await?;
    let filter = DeferredFilter { ids: Some(vec![id.to_string()]), ..DeferredFilter::default() };
    let deferred = state.deferred(&filter, &DeferredCursor::default(), DEFERRED_MAX).await?;
    let letters = state.letters_of_event(id).await?;
    let (event, unrouted_since_us) = body::of_tables(state, id).await?;
    let story = state.story(id, LINES_MAX).await?;
    let known = Known { story, pending, deferred, letters, unrouted_since_us, gaps, frontier };
    Ok(Gathered { known, event, memory_error })
}

impl Gathered {
    /// Where it was committed, as far as a row or a line says that.
    fn commit(&self) -> Option<Lsn> {
        let event = self.event.as_ref().map(|event| event.position.commit_lsn());
        event.or_else(|| self.known.story.first().map(|line| line.commit_lsn))
    }

    /// Whether the checkpoint has passed it; none: that cannot be told.
    async fn settled(&self, state: &StateStore, id: EventId) -> Result<Option<bool>, Failure> {
        let frontier = self.known.frontier;
        match self.commit() {
            Some(commit) => Ok(Some(commit < frontier)),
            None => settled(state, id, frontier).await,
        }
    }
}

/// The event, and where it was found; or why it was not.
struct Found {
    event: Option<Arc<Event>>,
    from: Option<&'static str>,
    why_not: Option<String>,
}

async fn found(
    config: &Config,
    id: EventId,
    event: Option<Arc<Event>>,
    looks_on: bool,
    settled: Option<bool>,
) -> Found {
    let why_not = match event {
        Some(event) => return Found { event: Some(event), from: Some("state"), why_not: None },
        None if !looks_on => "no row holds it; --body looks into the replay window".to_owned(),
        None => match body::of_window(config, id).await {
            Ok(Some(event)) => {
                return Found { event: Some(event), from: Some("window"), why_not: None };
            }
            Ok(None) if settled == Some(true) => {
                "the rules of now do not make it of what the replay window has".to_owned()
            }
            Ok(None) => "the rules of now do not make it of what the replay window has, or the checkpoint, where that \
                 ends, has not passed it yet"
                .to_owned(),
            Err(error) => error.to_string(),
        },
    };
    Found { event: None, from: None, why_not: Some(why_not) }
}

/// Whether the checkpoint has passed whatever was committed when the event was, where the history of positions says
/// that.
async fn settled(state: &StateStore, id: EventId, frontier: Lsn) -> Result<Option<bool>, Failure> {
    let at_us = commit_us(id);
    if state.position_after(at_us.saturating_add(1_000)).await?.is_some_and(|at| at <= frontier) {
        return Ok(Some(true));
    }
    let before = state.position_before(at_us).await?;
    Ok(before.filter(|at| *at >= frontier).map(|_| false))
}

/// What to make of an event of which no delivery is known.
fn note(settled: Option<bool>) -> &'static str {
    match settled {
        Some(true) => {
            "if there was such an event, all of its deliveries have come to their ends, or no endpoint wanted it; the \
             delivery log has no line of them: deliveries.keep, deliveries.retention and deliveries.max_size decide \
             what it keeps, and lines are left out while state transactions are slow \
             (walhook_delivery_log_entries_total{result=\"dropped\"}). Or its account's lines were erased, which the table \
             delivery_erasures records, or it is another pipeline's"
        }
        Some(false) => "it is not settled: it is to be read, or waits to be routed",
        None => {
            "neither the delivery log nor a table has it: no endpoint wanted it, the log keeps it no longer, its line was \
             left out while state transactions were slow (walhook_delivery_log_entries_total{result=\"dropped\"}), its \
             account's lines were erased (the table delivery_erasures), it has just been committed, or it is another \
             pipeline's"
        }
    }
}

/// When it was committed, in microseconds since 1970-01-01 UTC: to a millisecond, as its id says.
fn commit_us(id: EventId) -> i64 {
    i64::try_from(id.commit_ms()).unwrap_or(i64::MAX).saturating_mul(1_000)
}

fn raw_body(event: &Event) -> anyhow::Result<Box<RawValue>> {
    let body = String::from_utf8(event.body().into()).context("the body is no UTF-8")?;
    RawValue::from_string(body).context("the body is no JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_of_an_event_without_a_line_names_that_lines_are_left_out_unless_it_is_to_come() {
        let names_it = |settled| note(settled).contains("delivery_log_entries_total");
        assert!(names_it(Some(true)) && names_it(None));
        assert!(!names_it(Some(false)));
        let names_erasures = |settled| note(settled).contains("delivery_erasures");
        assert!(names_erasures(Some(true)) && names_erasures(None) && !names_erasures(Some(false)));
    }
}
