//! Which deferred deliveries the command line means.

use clap::builder::PossibleValuesParser;

use crate::cli::{Failure, filter};
use walhook_core::persist::DeferReason;
use walhook_core::position::EventId;
use walhook_state::{DeferredCursor, DeferredFilter, StoredDeferred};

const REASONS: [&str; 7] = [
    DeferReason::Failed.as_str(),
    DeferReason::Overflow.as_str(),
    DeferReason::Breaker.as_str(),
    DeferReason::Paused.as_str(),
    DeferReason::Held.as_str(),
    DeferReason::Behind.as_str(),
    DeferReason::Unrouted.as_str(),
];

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    #[command(flatten)]
    pub(super) shared: filter::Shared,
    /// Deferred for this reason
    #[arg(long, value_parser = PossibleValuesParser::new(REASONS))]
    pub(super) reason: Option<String>,
}

/// Events, filters or, said openly, all of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selection {
    /// Of these events, to whichever endpoint
    #[arg(value_name = "EVENT")]
    pub(super) events: Vec<EventId>,
    #[command(flatten)]
    pub(super) filters: Filters,
    /// All of them
    #[arg(long)]
    pub(super) all: bool,
}

impl Filters {
    pub(super) fn to_filter(&self) -> DeferredFilter {
        self.shared.to_filter(self.reason.clone())
    }
}

impl Selection {
    pub(super) fn to_filter(&self) -> Result<DeferredFilter, Failure> {
        let events: Vec<String> = self.events.iter().map(ToString::to_string).collect();
        let events = (!events.is_empty()).then_some(events);
        let filter = DeferredFilter { ids: events, ..self.filters.to_filter() };
        filter::openly(filter, self.all, "events")
    }
}

/// Where a list goes on behind this row: event, replay, endpoint.
pub(super) fn place(row: &StoredDeferred) -> String {
    format!("{}/{}/{}", row.event_id, row.replay_id, row.endpoint)
}

/// Reads what [`place`] wrote.
pub(super) fn cursor(text: &str) -> Result<DeferredCursor, String> {
    let read = || {
        let mut parts = text.splitn(3, '/');
        let event = parts.next()?.to_owned();
        let replay = parts.next()?.parse().ok()?;
        Some(DeferredCursor { event, replay, endpoint: parts.next()?.to_owned() })
    };
    read().ok_or_else(|| format!("{text:?} is no place in a list; take what the list printed"))
}
