//! What everybody may know of a run: what was received, how often, and what excuses what.

use std::collections::{BTreeSet, HashMap};

use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::ReplayId;
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// First deliveries and those after a crash, by event and endpoint.
    pub(crate) received: HashMap<(EventId, EndpointId), u32>,
    /// What an operator had sent again, and replays.
    pub(crate) resent: HashMap<(EventId, EndpointId), u32>,
    pub(crate) duplicates: u64,
    /// Duplicates that crashes, takeovers and requests that were given up excuse.
    pub(crate) excused: u64,
    /// Whether an instance lives on that has lost its lease.
    pub(crate) has_stale: bool,
    /// Deliveries that an operator has discarded.
    pub(crate) discarded: BTreeSet<(EventId, EndpointId)>,
    /// Deliveries of replays that an operator has discarded: whoever goes on with one passes them over.
    pub(crate) discarded_of_replays: BTreeSet<(ReplayId, EventId, EndpointId)>,
    /// Endpoints of which an operator has ever discarded rows, also those of a replay that was cancelled.
    pub(crate) discards: BTreeSet<EndpointId>,
    /// Replays: the job, what was fed of it at least, and at most.
    pub(crate) replays: Vec<Replayed>,
    /// Endpoints that an operator has ever paused.
    pub(crate) paused: BTreeSet<EndpointId>,
    /// Endpoints of which a worker lost a request, or never began one.
    pub(crate) not_carried: BTreeSet<EndpointId>,
    /// Endpoints of which an operator has ever made rows due.
    pub(crate) hurried: BTreeSet<EndpointId>,
    /// Accounts whose endpoints the database has ever refused to read: their events end without one.
    pub(crate) refused: BTreeSet<AccountId>,
    /// Until when no delay proves anything: look-ups, or the state database, do not answer.
    pub(crate) delayed_until: Tick,
}

/// A replay, when it has ended.
#[derive(Debug, Clone)]
pub(crate) struct Replayed {
    pub(crate) replay: ReplayId,
    pub(crate) pairs: Vec<(EventId, EndpointId)>,
    pub(crate) cancelled: bool,
    /// Deliveries that were fed, those that a crash had fed again included.
    pub(crate) fed: i64,
}

impl Facts {
    pub(crate) fn took(&self, event: EventId, endpoint: &EndpointId) -> bool {
        let key = (event, endpoint.clone());
        self.received.contains_key(&key) || self.resent.contains_key(&key)
    }
}
