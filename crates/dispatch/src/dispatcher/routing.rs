//! Routing: from an event to the endpoints that it is for, now or later.
//!
//! ```text
//!            ┌─ router: known routes, look-ups
//! event ─────┼─ waiting: events that wait for routes, or for their next slice
//!            ├─ shelves: events that became rows without an endpoint
//!            ├─ starts: endpoints whose subscription starts in mid-stream
//!            └─ unseen: changes of watched tables that no look-up has shown
//! ```
//!
//! Each is a component with private fields and an invariant of its own; here they stand together, for whatever
//! is known of routes concerns all of them.

use super::super::map::Seeded;
use super::super::route::{PerLine, Router};
use super::shelves::Shelves;
use super::subscription_starts::SubscriptionStarts;
use super::unseen::Unseen;
use super::waiting::Waiting;
use walhook_core::tick::Tick;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Routing {
    pub(super) router: Router,
    pub(super) waiting: Waiting,
    pub(super) shelves: Shelves,
    pub(super) starts: SubscriptionStarts,
    pub(super) unseen: Unseen,
    /// Since when a line's look-up has not been answered.
    pub(super) asked_at: PerLine<Option<Tick>>,
    /// Whether what waits may become rows is not looked at before then.
    pub(super) look_at: Tick,
}

impl Routing {
    /// Nothing is known; routes of accounts that have nothing pending take `cache_bytes` at most, pages of
    /// rows without an endpoint a quarter of `memory_limit`. `names`: the seed by which names are hashed.
    pub(super) fn new(cache_bytes: usize, memory_limit: usize, names: u64) -> Self {
        Self {
            router: Router::new(cache_bytes, Seeded::new(names)),
            waiting: Waiting::default(),
            shelves: Shelves::new(memory_limit),
            starts: SubscriptionStarts::default(),
            unseen: Unseen::default(),
            asked_at: PerLine::default(),
            look_at: Tick(0),
        }
    }
}
