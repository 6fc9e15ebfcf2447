//! What leaves memory with a state transaction: dead letters, rows, and changes of rows.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::lane::{Insertion, SharedEvent};
use super::super::tracker::TxnSeq;
use super::queues::QueueNo;
use walhook_core::attempt::DeliveryId;
use walhook_core::persist::{DeadLetter, Defer, DeferReason, RowId, Tried, UnroutedKey};

/// A dead letter that does not count as settled yet.
#[derive(Debug)]
pub(super) struct Dying {
    pub(super) letter: DeadLetter,
    pub(super) body: Body,
}

/// What remains in memory until then.
#[derive(Debug)]
pub(super) enum Body {
    /// An unroutable change stands in no lane.
    Unroutable { txn: TxnSeq, held: Arc<SharedEvent> },
    /// A delivery keeps its place in its queue.
    Delivery { txn: TxnSeq, ordinal: u64, queue: QueueNo, id: DeliveryId },
    /// So does one that has a row in the table.
    Row { row: RowId, insertion: Option<Insertion>, queue: QueueNo, id: DeliveryId },
    /// An event that has a row without an endpoint, and was routed in part by what was inserted so far.
    Unrouted { row: UnroutedKey, insertion: Insertion, held: Arc<SharedEvent> },
}

/// A delivery, or an event without an endpoint, on its way into its table. It does not count as settled yet.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) row: Defer,
    pub(super) held: Arc<SharedEvent>,
    /// The transaction that waits for it to be stored; none waits for a replay's, nor for what was a row
    /// before it was routed.
    pub(super) txn: Option<TxnSeq>,
    pub(super) ordinal: u64,
    pub(super) kind: Leaves,
    /// The row without an endpoint that it comes from: routed up to this endpoint.
    pub(super) routed: Option<UnroutedKey>,
    /// What it counts for in the memory budget, beside its event.
    pub(super) counted: usize,
    /// What it holds in memory, and adds to its state transaction: its event too, where the one before it
    /// is not of the same.
    pub(super) bytes: usize,
}

/// Those that leave, in their order: hundreds of thousands, sometimes, which are not copied when more come.
pub(super) type LeavingRows = VecDeque<Box<Leaving>>;

impl Leaving {
    /// Whether it may wait for others that are stored with it: its endpoint is sent nothing anyway, and nothing has
    /// happened to it that would be forgotten in a crash.
    pub(super) fn is_patient(&self) -> bool {
        matches!(self.kind, Leaves::Deferred(_))
            && matches!(self.row.reason, DeferReason::Breaker | DeferReason::Paused)
            && self.row.tried.attempts == 0
            && self.txn.is_some()
    }
}

/// What a delivery that leaves memory becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// A row of `deferred`.
    Deferred(QueueNo),
    /// No row: its queue's gap counts it.
    Skipped(QueueNo),
    /// A row without an endpoint.
    Unrouted,
}

/// What becomes of a row.
#[derive(Debug)]
pub(super) enum RowChange {
    /// It goes: delivered.
    Remove,
    /// It goes: nobody wants it any more.
    Drop,
    /// It is tried later.
    Retime(Tried),
}
