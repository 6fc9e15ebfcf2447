//! The one way out of memory for a delivery that has not ended: into the table `deferred`.
//!
//! Deferred are: what its quick attempts did not bring through, what its queue or memory as a whole
//! has no room for, what holds the frontier back for too long, and all that must not overtake any of
//! these. The row, its body, the settled range and the frontier are stored in one state transaction;
//! only then does the tracker count the delivery as settled. So a crash in between changes nothing.
//!
//! Order: a delivery that shares a key with a deferred one joins the table. Those that stand behind
//! it in memory leave with it; those that come later are blocked (see [`Backlog`]). When no row of
//! the queue is left, deliveries are sent directly again.

use std::cmp::Reverse;
use std::sync::Arc;

use super::super::backlog::Backlog;
use super::super::breaker::Breaker;
use super::super::lane::{DELIVERY_BYTES, Held, Origin, Queue, Removed};
use super::super::schedule::LaneId;
use super::super::tracker::TxnSeq;
use super::Dispatcher;
use super::durable::{Leaves, Leaving, RowChange};
use super::suspend::Suspension;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{EndpointId, RowKeys};
use walhook_core::persist::{
    BacklogRow, Blocked, Defer, DeferReason, EventKey, QueueId, RowId, RowKey, Tried, UnroutedKey,
};
use walhook_core::tick::Tick;

/// Bytes that wait in memory for one endpoint; what comes beyond is deferred.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// What is kept of a queue whose deliveries go by way of the table.
#[derive(Debug)]
pub(super) struct Detour {
    pub(super) backlog: Backlog,
    /// It stands in the line of those that want a page.
    pub(super) in_line: bool,
    /// The first of the timers that were set for it.
    pub(super) timer: Option<Tick>,
    /// What the table `backlog` says of it is outdated.
    pub(super) is_stale: bool,
    pub(super) failing_since_us: Option<i64>,
    /// For how long it was stopped before it was last started.
    pub(super) stopped_before_us: i64,
    /// `None`: closed.
    pub(super) breaker: Option<Breaker>,
    /// Set while it is not known whether the endpoint is any better than when an earlier leader's
    /// breaker was open: what the table says of that one.
    pub(super) was_open_until_us: Option<i64>,
    pub(super) suspension: Option<Suspension>,
}

/// Why deliveries leave memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Exit {
    /// This one failed and is not tried before then. The others stand behind it.
    Failed(DeliveryId, Tick),
    /// None of them failed just now.
    Other(DeferReason),
}

impl Detour {
    pub(super) fn new(backlog: Backlog) -> Self {
        Self {
            backlog,
            in_line: false,
            timer: None,
            is_stale: false,
            failing_since_us: None,
            stopped_before_us: 0,
            breaker: None,
            was_open_until_us: None,
            suspension: None,
        }
    }

    /// Deliveries that are deferred and have not ended.
    pub(super) fn rows(&self) -> u64 {
        self.backlog.rows()
    }

    pub(super) fn as_row(&self, queue: &QueueId, now: Tick, unix_us_at_zero: i64) -> BacklogRow {
        let until = |breaker: &Breaker| breaker.open_until().unwrap_or(now);
        let until_us = |until: Tick| unix_us_at_zero.saturating_add_unsigned(until.0);
        let open_until_us = self.breaker.as_ref().map(until).map(until_us);
        BacklogRow {
            queue: queue.clone(),
            blocked: self.backlog.blocked().clone(),
            rows: self.backlog.in_table(),
            failing_since_us: self.failing_since_us,
            stopped_us: self.stopped_us(now),
            open_until_us: open_until_us.or(self.was_open_until_us),
        }
    }
}

impl Dispatcher {
    /// Goes on with the deferred rows that an earlier leader left.
    pub(super) fn recover_detours(&mut self, rows: Vec<BacklogRow>) {
        for row in rows {
            let BacklogRow { queue, blocked, rows, failing_since_us, stopped_us, open_until_us } =
                row;
            let backlog = Backlog::recovered(blocked, rows);
            let stopped_before_us = stopped_us;
            let detour = Detour {
                failing_since_us,
                stopped_before_us,
                was_open_until_us: open_until_us,
                ..Detour::new(backlog)
            };
            self.detours.insert(queue.clone(), Box::new(detour));
            if rows == 0 {
                // Its first rows were never stored.
                self.outdate(&queue);
            } else {
                self.refills.join(&queue, &mut self.detours);
            }
        }
    }

    /// Why a delivery that arrives now must join the queue's deferred rows, if it must.
    pub(super) fn why_defer(&self, queue: &QueueId, keys: &RowKeys) -> Option<DeferReason> {
        if self.is_suspended(queue) {
            return Some(DeferReason::Overflow);
        }
        if self.is_paused(&queue.endpoint) {
            return Some(DeferReason::Paused);
        }
        if self.detours.get(queue).is_some_and(|detour| detour.suspension.is_some()) {
            // What was counted in its gap is not stored yet.
            return Some(DeferReason::Behind);
        }
        if let Some(detour) = self.detours.get(queue)
            && detour.rows() > 0
            && detour.backlog.blocks(keys)
        {
            return Some(detour.backlog.why());
        }
        let lane = self.lanes.get(self.lane_of.get(&queue.account)?)?;
        let in_memory = lane.queue(&queue.endpoint)?;
        let full =
            in_memory.len() >= self.settings.queue_max || in_memory.bytes() >= QUEUE_BYTES_MAX;
        full.then_some(DeferReason::Overflow)
    }

    /// Defers a delivery that has just been routed, without queueing it.
    pub(super) fn defer_arrival(
        &mut self,
        queue: &QueueId,
        held: Arc<Held>,
        txn: TxnSeq,
        keys: &RowKeys,
        reason: DeferReason,
        weight: f64,
    ) {
        let id = self.next_delivery();
        let lane_id = self.lane(&queue.account, weight);
        let Some(lane) = self.lanes.get_mut(&lane_id) else { return };
        self.queues += usize::from(lane.queue(&queue.endpoint).is_none());
        let ordinal = lane.take_ordinal(&queue.endpoint, id);
        self.bytes += DELIVERY_BYTES;
        let key = RowKey { event: EventKey::of(&held.event), replay: 0 };
        let detour = self.detour(queue);
        if reason == DeferReason::Overflow {
            detour.backlog.block_all(reason);
        }
        let (tried, counted) = (Tried::default(), DELIVERY_BYTES);
        let kept = Kept { held, txn: Some(txn), ordinal, counted, routed: None };
        self.defer_or_skip(
            queue,
            key,
            keys,
            kept,
            Leave { reason, tried, due: None, behind: false },
        );
        self.rest_if_idle(lane_id, &queue.endpoint, id);
    }

    /// Defers what a row without an endpoint becomes for one.
    pub(super) fn defer_routed(
        &mut self,
        queue: &QueueId,
        held: Arc<Held>,
        keys: &RowKeys,
        row: UnroutedKey,
    ) {
        self.bytes += DELIVERY_BYTES;
        let key = RowKey { event: EventKey::of(&held.event), replay: 0 };
        let kept = Kept { held, txn: None, ordinal: 0, counted: DELIVERY_BYTES, routed: Some(row) };
        let (reason, tried) = (DeferReason::Unrouted, Tried::default());
        self.defer_or_skip(
            queue,
            key,
            keys,
            kept,
            Leave { reason, tried, due: None, behind: false },
        );
    }

    /// Takes deliveries out of a queue in memory into the table, oldest first. What is in the table
    /// already is just forgotten here, and operators' retries stay: they are dead letters meanwhile.
    pub(super) fn leave(
        &mut self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        ids: &[DeliveryId],
        exit: Exit,
        now: Tick,
    ) {
        let Some(queue) = self.queue_id(lane_id, endpoint) else { return };
        for id in ids {
            let Some(lane) = self.lanes.get_mut(&lane_id) else { return };
            let pending = lane.queue(endpoint).and_then(|in_memory| in_memory.get(*id));
            let is_letter = |origin| matches!(origin, Origin::Retry { dead_letter: Some(_), .. });
            if pending.is_none_or(|pending| is_letter(pending.origin)) {
                continue;
            }
            if let Some(removed) = lane.remove(endpoint, *id) {
                self.take_over(&queue, *id, removed, exit);
            }
        }
        if let Some(lane) = self.lanes.get_mut(&lane_id) {
            lane.refresh(endpoint, now);
        }
        self.sync(lane_id);
        if let Some(last) = ids.last() {
            self.rest_if_idle(lane_id, endpoint, *last);
        }
        self.look_after(&queue, now);
    }

    fn take_over(&mut self, queue: &QueueId, id: DeliveryId, removed: Removed, exit: Exit) {
        let Removed { pending, keys, due } = removed;
        let counted = pending.counted;
        let (due, behind, reason) = match exit {
            Exit::Failed(failed, due) if failed == id => (Some(due), false, DeferReason::Failed),
            Exit::Failed(..) => (due, true, DeferReason::Behind),
            Exit::Other(reason) => (due, false, reason),
        };
        let key = pending.row_key();
        let mut tried = pending.tried.map(|tried| *tried).unwrap_or_default();
        tried.attempts = pending.attempts;
        tried.due_us = due.map(|due| self.unix_us(due));
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                let (held, txn, routed) = (pending.held, Some(txn), None);
                let kept = Kept { held, txn, ordinal, counted, routed };
                self.defer_or_skip(queue, key, &keys, kept, Leave { reason, tried, due, behind });
            }
            Origin::Retry { dead_letter: None, job } => {
                self.replays.leave_memory();
                if self.replays.is_known(job) {
                    let (held, txn, routed) = (pending.held, None, None);
                    let kept = Kept { held, txn, ordinal: 0, counted, routed };
                    let leave = Leave { reason, tried, due, behind };
                    self.defer_or_skip(queue, key, &keys, kept, leave);
                } else {
                    // Cancelled meanwhile.
                    self.replays.count_dropped(job);
                    self.free(pending.held, counted);
                }
            }
            Origin::Deferred { insertion, .. } => {
                let detour = self.detour(queue);
                if detour.is_suspended() {
                    detour.backlog.unload(&key, &keys, false);
                } else if let Some(due) = due {
                    detour.backlog.fail(&key, &keys, &tried, due);
                    let row = RowId { queue: queue.clone(), key, event: pending.held.event.id };
                    self.durable.change(row, insertion, RowChange::Retime(tried));
                    self.outdate(queue);
                } else {
                    detour.backlog.unload(&key, &keys, behind);
                }
                self.free(pending.held, counted);
            }
            Origin::Retry { dead_letter: Some(_), .. } => {
                debug_assert!(false, "an operator's retry is not deferred");
            }
        }
    }

    /// Gives a delivery in flight a row in the table, so that the frontier can pass it. The request
    /// goes on; its outcome will resolve the row or set its next time.
    pub(super) fn keep_in_flight(
        &mut self,
        lane_id: LaneId,
        endpoint: &EndpointId,
        id: DeliveryId,
    ) {
        let Some(queue) = self.queue_id(lane_id, endpoint) else { return };
        if self.is_suspended(&queue) {
            // Nothing new is sent to it, so it holds the frontier no longer than one request takes.
            return;
        }
        let insertion = self.durable.next_insertion();
        let Some(in_memory) = self.lanes.get_mut(&lane_id).and_then(|l| l.queue_mut(endpoint))
        else {
            return;
        };
        let keys = in_memory.keys(id).cloned().unwrap_or_default();
        let Some(pending) = in_memory.get_mut(id) else { return };
        let (txn, ordinal) = match pending.origin {
            Origin::Stream { txn, ordinal } => (Some(txn), ordinal),
            Origin::Retry { dead_letter: None, job } if self.replays.is_known(job) => (None, 0),
            Origin::Retry { .. } | Origin::Deferred { .. } => return,
        };
        let key = pending.row_key();
        pending.origin = Origin::Deferred { replay: key.replay, insertion };
        let held = Arc::clone(&pending.held);
        let mut tried = pending.tried.as_deref().cloned().unwrap_or_default();
        tried.attempts = pending.attempts;
        // The row tells of them now.
        pending.tried = Some(Box::new(Tried { history: Vec::new(), ..tried.clone() }));
        if txn.is_none() {
            self.replays.leave_memory();
        }
        let counted = DELIVERY_BYTES + tried.size_bytes();
        self.bytes += counted;
        self.detour(&queue).backlog.keep(&key, &keys);
        let kept = Kept { held, txn, ordinal, counted, routed: None };
        self.store_row(&queue, key, kept, DeferReason::Held, tried, false);
    }

    /// A delivery of a replay is deferred under the replay's id, without being queued. Its event counts in
    /// the memory budget already.
    pub(super) fn defer_replayed(
        &mut self,
        queue: &QueueId,
        held: Arc<Held>,
        job: i64,
        reason: DeferReason,
    ) {
        self.bytes += DELIVERY_BYTES;
        let key = RowKey { event: EventKey::of(&held.event), replay: job };
        let counted = DELIVERY_BYTES;
        let kept = Kept { held, txn: None, ordinal: 0, counted, routed: None };
        let leave = Leave { reason, tried: Tried::default(), due: None, behind: false };
        self.defer_or_skip(queue, key, &RowKeys::new(), kept, leave);
    }

    /// A delivery of the stream, or of a replay, leaves memory: into the table, or, while its queue is suspended, into
    /// the gap.
    fn defer_or_skip(
        &mut self,
        queue: &QueueId,
        key: RowKey,
        keys: &RowKeys,
        kept: Kept,
        leave: Leave,
    ) {
        let Leave { reason, tried, due, behind } = leave;
        let detour = self.detour(queue);
        let skip = detour.is_suspended();
        if !skip {
            detour.backlog.defer(&key, keys, &tried, due, behind);
        }
        self.store_row(queue, key, kept, reason, tried, skip);
    }

    /// Makes room when what is queued in memory takes too much: the longest queues lose their tails.
    pub(super) fn relieve(&mut self, now: Tick) {
        let limit = self.settings.memory_limit;
        if self.bytes_to_stay() < limit / 4 * 3 {
            return;
        }
        self.relieve_of_unrouted(now);
        if self.bytes_to_stay() < (limit / 4 * 3).max(self.relieve_above) {
            return;
        }
        let mut queues: Vec<(usize, LaneId, EndpointId)> = Vec::new();
        for (id, lane) in &self.lanes {
            let sized =
                |(endpoint, queue): (&EndpointId, &Queue)| (queue.bytes(), *id, endpoint.clone());
            queues.extend(lane.queues().filter(|(_, queue)| !queue.is_empty()).map(sized));
        }
        queues
            .sort_unstable_by_key(|(bytes, id, endpoint)| (Reverse(*bytes), *id, endpoint.clone()));
        // Halves first, so that the longest do not lose all while others keep all.
        for keep_one_in in [2, 16, usize::MAX] {
            for (_, lane, endpoint) in &queues {
                self.cut(*lane, endpoint, keep_one_in, now);
                if self.bytes_to_stay() < limit / 8 * 5 {
                    self.relieve_above = 0;
                    return;
                }
            }
        }
        // Nothing more can leave: it is in flight, say. Looking again costs a look at all queues.
        self.relieve_above = self.bytes_to_stay() + limit / 64;
    }

    fn cut(&mut self, lane_id: LaneId, endpoint: &EndpointId, keep_one_in: usize, now: Tick) {
        let in_memory = self.lanes.get(&lane_id).and_then(|lane| lane.queue(endpoint));
        let Some(in_memory) = in_memory else { return };
        let keep = in_memory.len() / keep_one_in;
        let ids: Vec<DeliveryId> = in_memory.idle().map(|pending| pending.id).skip(keep).collect();
        if ids.is_empty() {
            return;
        }
        if let Some(queue) = self.queue_id(lane_id, endpoint) {
            self.detour(&queue).backlog.block_all(DeferReason::Overflow);
        }
        self.leave(lane_id, endpoint, &ids, Exit::Other(DeferReason::Overflow), now);
    }

    /// What is not on its way out of memory.
    pub(super) fn bytes_to_stay(&self) -> usize {
        self.used_bytes().saturating_sub(self.durable.leaving_bytes())
    }

    fn store_row(
        &mut self,
        queue: &QueueId,
        key: RowKey,
        kept: Kept,
        reason: DeferReason,
        tried: Tried,
        skip: bool,
    ) {
        let Kept { held, txn, ordinal, counted, routed } = kept;
        let event = Arc::clone(&held.event);
        let id = RowId { queue: queue.clone(), key, event: event.id };
        if !skip && let Some(count) = self.counters.deferred.get_mut(reason.index()) {
            *count += 1;
        }
        let row = Defer { id, event, reason, tried };
        let bytes = DELIVERY_BYTES + held.event.size_bytes();
        let kind = if skip { Leaves::Skipped } else { Leaves::Deferred };
        self.durable.leave(Leaving { row, held, txn, ordinal, kind, routed, counted, bytes });
        self.outdate(queue);
    }

    /// The queue's detour, made when there is none.
    pub(super) fn detour(&mut self, queue: &QueueId) -> &mut Detour {
        self.detours.entry(queue.clone()).or_insert_with(|| {
            let blocked = Blocked::Keys(Vec::new());
            Box::new(Detour::new(Backlog::new(blocked, DeferReason::Behind)))
        })
    }

    /// What the table `backlog` says of the queue is to be stored anew.
    pub(super) fn outdate(&mut self, queue: &QueueId) {
        if let Some(detour) = self.detours.get_mut(queue)
            && !std::mem::replace(&mut detour.is_stale, true)
        {
            self.durable.outdated(queue.clone());
        }
    }

    pub(super) fn queue_id(&self, lane: LaneId, endpoint: &EndpointId) -> Option<QueueId> {
        let account = self.lanes.get(&lane)?.account.clone();
        Some(QueueId { account, endpoint: endpoint.clone() })
    }

    /// Now on the queue's own clock, which stands still while the queue is stopped.
    pub(super) fn active_us(&self, queue: &QueueId, now: Tick) -> i64 {
        let stopped_us = self.detours.get(queue).map_or(0, |detour| detour.stopped_us(now));
        let paused_us = self.paused_us(&queue.endpoint, now);
        self.unix_us(now).saturating_sub(stopped_us).saturating_sub(paused_us)
    }
}

/// What remains in memory of a delivery until its row is stored.
struct Kept {
    held: Arc<Held>,
    /// The transaction that waits for it; none waits for a replay's, nor for what was a row
    /// before it was routed.
    txn: Option<TxnSeq>,
    ordinal: u64,
    counted: usize,
    /// The row that it was.
    routed: Option<UnroutedKey>,
}

/// How a delivery leaves memory.
struct Leave {
    reason: DeferReason,
    tried: Tried,
    /// It failed, and is not tried before then.
    due: Option<Tick>,
    /// It only leaves because one that failed does.
    behind: bool,
}
