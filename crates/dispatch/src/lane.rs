//! What is pending for one endpoint.
//!
//! A queue hands out its deliveries in stream order, but of those that share an ordering key only
//! the oldest: the others wait until it is settled. A delivery whose row changed its key holds both
//! keys. So the events of one row reach one endpoint in commit order, while other rows pass.

use std::sync::Arc;

use super::clock::Reading;
use super::tracker::TxnSeq;
use walhook_core::attempt::DeliveryId;
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::persist::Tried;
use walhook_core::tick::Tick;
use walhook_core::waits::Waits;

mod delivery;
mod health;
mod queue;
mod rest;
mod throttle;

pub use delivery::{
    DELIVERY_BYTES, Insertion, LEAVING_BYTES, Origin, Pending, Removed, SharedEvent, WAITS_BYTES,
};
pub use health::Health;
pub use queue::{QUEUE_BYTES, Queue};
pub use rest::Lacking;

/// Requests in flight to one endpoint at most, where its row does not say: a quarter of the fast
/// slots.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 64;

/// Where a new delivery comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The stream: this transaction waits for it.
    Stream(TxnSeq),
    /// The table `deferred`.
    Deferred {
        /// The replay that it belongs to; none: it was the stream's.
        replay: Option<ReplayId>,
        /// What was tried before.
        tried: Box<Tried>,
    },
    /// An operator's retry of a dead letter.
    Retry {
        /// The dead letter's id.
        dead_letter: DeadLetterId,
        /// The job that asked.
        job: JobId,
    },
    /// A replay.
    Replay(ReplayId),
}

/// A delivery to be queued.
#[derive(Debug)]
pub struct New {
    /// Its handle, above all earlier ones.
    pub id: DeliveryId,
    /// The event.
    pub held: Arc<SharedEvent>,
    /// Where it comes from.
    pub source: Source,
    /// What it waited for before; none: it comes straight from the stream.
    pub waits: Option<Box<Waits>>,
    /// This moment.
    pub now: Tick,
}

impl New {
    /// What it counts for in the memory budget, beside its event.
    #[must_use]
    pub fn counted(&self) -> usize {
        DELIVERY_BYTES + if self.waits.is_some() { WAITS_BYTES } else { 0 }
    }
}

/// A moment, as a queue needs it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now.
    pub now: Tick,
    /// What the clock of the queue's lane shows.
    pub below: Reading,
}
