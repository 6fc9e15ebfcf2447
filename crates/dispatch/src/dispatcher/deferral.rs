//! What is asked of the tables of deferred rows: pages to be read back, rows to be given up where the tables
//! are full, and room for what a queue in memory is cleared of.
//!
//! They are components with private fields and an invariant of their own. What is known of one queue's rows
//! stands with the queue (see [`super::queues`]).

use super::clearing::Clearing;
use super::deferred_keys::DeferredKeys;
use super::probes::DeadHosts;
use super::queues::QueueNo;
use super::refills::Refills;
use super::suspensions::Suspensions;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Deferral {
    /// The queues that want a page, and the request under way.
    pub(super) line: Refills,
    /// The queues whose deliveries are counted in gaps.
    pub(super) suspensions: Suspensions,
    /// The ordering keys that rows may hold.
    pub(super) keys: DeferredKeys,
    /// The queues whose endpoints are dead, by their hosts.
    pub(super) dead: DeadHosts,
    /// The queues of the rows that an operator's transaction removes, which may have committed.
    pub(super) removing: Vec<QueueNo>,
    /// The queues that are to be empty.
    pub(super) clearing: Clearing,
}

impl Deferral {
    /// Nothing is asked for. In one round so many deliveries are moved of the queues that are to be empty.
    pub(super) fn new(memory_limit: usize, cleared_at_once: usize) -> Self {
        let (suspensions, dead, removing) = Default::default();
        let clearing = Clearing::new(cleared_at_once);
        let (line, keys) = (Refills::new(memory_limit), DeferredKeys::new(memory_limit));
        Self { line, suspensions, keys, dead, removing, clearing }
    }
}
