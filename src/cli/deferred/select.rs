//! Which deferred deliveries the command line means.

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;

use crate::cli::Failure;
use crate::cli::time::time_us;
use crate::engine::persist::DeferReason;
use crate::engine::position::EventId;
use crate::io::state::{DeferredCursor, DeferredFilter, StoredDeferred};

const REASONS: [&str; 6] = [
    DeferReason::Failed.as_str(),
    DeferReason::Overflow.as_str(),
    DeferReason::Breaker.as_str(),
    DeferReason::Paused.as_str(),
    DeferReason::Held.as_str(),
    DeferReason::Behind.as_str(),
];

/// Filters; those given must all fit.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filters {
    /// To this endpoint
    #[arg(long, value_name = "ID")]
    pub(super) endpoint: Option<String>,
    /// Of this account
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// Of this event type
    #[arg(long = "type", value_name = "TYPE")]
    pub(super) event_type: Option<String>,
    /// Deferred for this reason
    #[arg(long, value_parser = PossibleValuesParser::new(REASONS))]
    pub(super) reason: Option<String>,
    /// Deferred at this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) since: Option<i64>,
    /// Deferred before this time: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    pub(super) until: Option<i64>,
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
        DeferredFilter {
            ids: None,
            endpoint: self.endpoint.clone(),
            account: self.account.clone(),
            event_type: self.event_type.clone(),
            reason: self.reason.clone(),
            since_us: self.since,
            until_us: self.until,
        }
    }
}

impl Selection {
    pub(super) fn to_filter(&self) -> Result<DeferredFilter, Failure> {
        let events: Vec<String> = self.events.iter().map(ToString::to_string).collect();
        let events = (!events.is_empty()).then_some(events);
        let filter = DeferredFilter { ids: events, ..self.filters.to_filter() };
        if filter.is_empty() != self.all {
            return Err(Failure::Usage(anyhow!(
                "say which: give events, filters such as --endpoint, or --all (and not both)"
            )));
        }
        Ok(filter)
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
