//! A delivery in memory: where it came from, its event, what came of it so far.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::clock::Reading;
use crate::tracker::TxnSeq;
use walhook_core::attempt::{Asked, DeliveryId};
use walhook_core::event::{Event, RowKeys};
use walhook_core::heap::block;
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::persist::{EventKey, RowKey, Tried};
use walhook_core::tick::Tick;
use walhook_core::waits::{Cause, Waits};

/// What a delivery takes in memory beside its event: its entry, its keys, its place in the maps. Measured by
/// `benches/brain.rs`, which prints it beside what is resident.
pub const DELIVERY_BYTES: usize = 352;

/// What it takes instead while its row is on the way into the table. Measured: with it resident memory stays
/// within a twentieth of the limit (`docs/benchmarks.md`).
pub const LEAVING_BYTES: usize = 576;

/// What it takes beside where more is known of its waits than its moments tell.
pub const WAITS_BYTES: usize = block(size_of::<Waits>());

/// The number of a row that was to be inserted: they are numbered from 1 on, in their order, while the process
/// lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Insertion(pub u64);

/// Where a pending delivery came from, and so what settling it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The stream.
    Stream {
        /// The transaction that waits for it.
        txn: TxnSeq,
        /// Which delivery to this endpoint it is, in stream order.
        ordinal: u64,
    },
    /// The table `deferred`, where it has a row that it resolves.
    Deferred {
        /// The replay that it belongs to; none: it was the stream's.
        replay: Option<ReplayId>,
        /// The insertion that makes the row durable; none: it stands in the table.
        insertion: Option<Insertion>,
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

impl Origin {
    /// The replay that the delivery belongs to.
    #[must_use]
    pub fn replay(self) -> Option<ReplayId> {
        match self {
            Self::Replay(replay) => Some(replay),
            Self::Deferred { replay, .. } => replay,
            Self::Stream { .. } | Self::Retry { .. } => None,
        }
    }

    /// Whether it has no row, and would need one to leave memory. Of a replay few are in memory.
    #[must_use]
    pub fn is_rowless(self) -> bool {
        matches!(self, Self::Stream { .. })
    }

    /// The operator's wish on which it is sent; none: it is the stream's.
    #[must_use]
    pub fn asked(self) -> Option<Asked> {
        match self {
            Self::Retry { dead_letter, job } => Some(Asked::Retry { dead_letter, job }),
            Self::Stream { .. } | Self::Deferred { .. } | Self::Replay(_) => {
                self.replay().map(Asked::Replay)
            }
        }
    }
}

/// An event while any of its deliveries is pending. Dropping the last one frees its memory.
#[derive(Debug)]
pub struct SharedEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Its deliveries that are queued. One task counts them; an atomic number lets that task move.
    queued: AtomicU32,
}

impl SharedEvent {
    /// An event of which nothing is queued.
    #[must_use]
    pub fn new(event: Arc<Event>) -> Self {
        Self { event, queued: AtomicU32::new(0) }
    }

    /// One of its deliveries is queued. Returns what the queues hold more for that, beside the delivery: the
    /// event, with the first.
    pub(crate) fn queue(&self) -> usize {
        let before = self.queued.fetch_add(1, Relaxed);
        if before == 0 { self.event.size_bytes() } else { 0 }
    }

    /// One of its deliveries is queued no more: as [`SharedEvent::queue`], what the queues hold less.
    pub(crate) fn unqueue(&self) -> usize {
        let before = self.queued.fetch_sub(1, Relaxed);
        if before == 1 { self.event.size_bytes() } else { 0 }
    }
}

/// A delivery in memory.
#[derive(Debug)]
pub struct Pending {
    /// Its handle; grows along one queue. Of deliveries that share a key, the older has the lower.
    pub id: DeliveryId,
    /// The event, shared with its other deliveries.
    pub held: Arc<SharedEvent>,
    /// Where it came from.
    pub origin: Origin,
    /// Attempts made, those before it was deferred included.
    pub attempts: u32,
    /// What came of them, once one failed.
    pub tried: Option<Box<Tried>>,
    /// When it was queued.
    pub since: Tick,
    /// When the stage began that it is in; while it is in flight, the one before.
    pub(super) stage_since: Tick,
    /// While it may be sent: what the queue's clock showed when it came to that. In flight: what passed on it until it
    /// was sent.
    pub(super) mark: Reading,
    /// What it waited for until `stage_since`; none: it came from the stream and waited for nothing but the order.
    pub(super) waits: Option<Box<Waits>>,
    /// What it counts for in the memory budget, beside its event.
    pub counted: usize,
}

impl Pending {
    /// The transaction that waits for it; none: it is not the stream's, or not any more.
    #[must_use]
    pub fn stream_txn(&self) -> Option<TxnSeq> {
        match self.origin {
            Origin::Stream { txn, .. } => Some(txn),
            Origin::Deferred { .. } | Origin::Retry { .. } | Origin::Replay(_) => None,
        }
    }

    /// Since when it has waited for its next request: since it was queued, or became due again.
    #[must_use]
    pub fn waits_since(&self) -> Tick {
        if self.tried.is_some() { self.stage_since } else { self.since }
    }

    /// What it has waited for until now is this. Returns how much more it takes for that.
    pub fn keep_waits(&mut self, waits: Waits, now: Tick) -> usize {
        self.stage_since = now;
        if let Some(before) = &mut self.waits {
            **before = waits;
            return 0;
        }
        self.waits = Some(Box::new(waits));
        WAITS_BYTES
    }

    /// The stage that it was in held for this cause.
    pub(super) fn end_stage(&mut self, cause: Cause, now: Tick) {
        let held = now.since(self.stage_since);
        self.waits.get_or_insert_default().add(cause, held);
        self.stage_since = now;
    }

    /// What it stood behind is settled.
    pub(super) fn end_order(&mut self, now: Tick) {
        if self.waits.is_some() {
            self.end_stage(Cause::Order, now);
        } else {
            // Its moments tell how long that was.
            self.stage_since = now;
        }
    }

    /// Whether it stood in the table, and was read back.
    #[must_use]
    pub fn was_read_back(&self) -> bool {
        matches!(self.origin, Origin::Deferred { insertion: None, .. })
    }

    /// What it takes for what it waited for.
    #[must_use]
    pub fn waits_bytes(&self) -> usize {
        if self.waits.is_some() { WAITS_BYTES } else { 0 }
    }

    /// What it waited for until the stage began that it is in, or is past while it is in flight. `read_us`: how long
    /// the stream took to bring it.
    pub(super) fn waits_before(&self, read_us: u64) -> Waits {
        if let Some(waits) = &self.waits {
            return **waits;
        }
        let mut waits = Waits::default();
        waits.add_us(Cause::Read, read_us);
        waits.add(Cause::Order, self.stage_since.since(self.since));
        waits
    }

    /// What it waited for until now, where its request began then and took so long where it was sent from. `read_us`:
    /// how long the stream took to bring it.
    #[must_use]
    pub fn waits_sent(&self, read_us: u64, started: Tick, took: Duration, now: Tick) -> Waits {
        let mut waits = self.waits_before(read_us);
        self.mark.add_to(&mut waits, started.since(self.stage_since));
        let held = now.since(started);
        let attempt = took.min(held);
        waits.add(Cause::Attempt, attempt);
        waits.add(Cause::Bus, held - attempt);
        waits
    }

    /// Its place among the deferred rows of its queue.
    #[must_use]
    pub fn row_key(&self) -> RowKey {
        RowKey { event: EventKey::of(&self.held.event), replay: self.origin.replay() }
    }
}

/// A delivery taken out of its queue.
#[derive(Debug)]
pub struct Removed {
    /// The delivery.
    pub pending: Pending,
    /// The keys that it held.
    pub keys: RowKeys,
    /// Set while it backed off: until when.
    pub due: Option<Tick>,
}
