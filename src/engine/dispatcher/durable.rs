//! What is to be made durable: collected between state transactions, handed out one at a time.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::event::{EndpointId, Unroutable};
use super::super::lane::Origin;
use super::super::persist::{
    DeadLetter, DeadReason, DisableEndpoint, PersistBatch, Persisted, Retried,
};
use super::*;

/// How long outcomes wait for others before they are stored together.
const PERSIST_EVERY: Duration = Duration::from_millis(100);

/// How long progress alone waits: the server's keepalives, with nothing of ours in between. `/readyz`
/// of a leader whose checkpoint was not written for three times as long says no.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// Progress alone that waits no longer: half a segment of WAL. Another database of the cluster may
/// write hundreds of megabytes in ten seconds, and the slot would keep them all.
const PROGRESS_BYTES: u64 = 8 << 20;

/// Dead letters in one state transaction: bounds its size and its time.
const DEAD_LETTERS_MAX: usize = 1_000;

/// What waits for the next state transaction, and what is in the one under way.
#[derive(Debug)]
pub(super) struct Durable {
    stored_frontier: Lsn,
    last_stored: Tick,
    /// Something happened since the last batch was handed out.
    touched: bool,
    outcomes: usize,
    dying: VecDeque<Dying>,
    retried: Vec<Retried>,
    disabled: Vec<DisableEndpoint>,
    enabled: Vec<EndpointId>,
    under_way: Option<UnderWay>,
}

/// A dead letter that does not count as settled yet.
#[derive(Debug)]
struct Dying {
    letter: DeadLetter,
    /// The transaction that waits for it to be stored.
    txn: TxnSeq,
    body: Body,
}

/// What remains in memory until then.
#[derive(Debug)]
enum Body {
    /// An unroutable change stands in no lane.
    Unroutable(Arc<Held>),
    /// A delivery keeps its place in its queue.
    Delivery { lane: LaneId, endpoint: EndpointId, id: DeliveryId, ordinal: u64 },
}

/// How a delivery ends without success.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) reason: DeadReason,
    /// The last error, for a person.
    pub(super) detail: String,
    pub(super) last_status: Option<u16>,
}

#[derive(Debug)]
struct UnderWay {
    started: Tick,
    frontier: Lsn,
    outcomes: usize,
    dying: Vec<Dying>,
}

impl Durable {
    pub(super) fn new(frontier: Lsn) -> Self {
        Self {
            stored_frontier: frontier,
            last_stored: Tick(0),
            touched: false,
            outcomes: 0,
            dying: VecDeque::new(),
            retried: Vec::new(),
            disabled: Vec::new(),
            enabled: Vec::new(),
            under_way: None,
        }
    }

    /// Something of ours moved: the next batch is not progress alone.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    pub(super) fn enable(&mut self, endpoint: EndpointId) {
        self.disabled.retain(|disabled| disabled.endpoint != endpoint);
        self.enabled.push(endpoint);
        self.touched = true;
    }

    pub(super) fn disable(&mut self, disabled: DisableEndpoint) {
        self.enabled.retain(|endpoint| *endpoint != disabled.endpoint);
        self.disabled.push(disabled);
        self.touched = true;
    }

    pub(super) fn count_outcome(&mut self) {
        self.outcomes += 1;
        self.touched = true;
    }

    pub(super) fn retried(&mut self, retried: Retried) {
        self.retried.push(retried);
        self.touched = true;
    }

    /// Whether sending must wait for the state database.
    pub(super) fn is_behind(&self, now: Tick) -> bool {
        let under_way = self.under_way.as_ref();
        let unpersisted = self.outcomes + self.dying.len() + under_way.map_or(0, UnderWay::len);
        unpersisted >= UNPERSISTED_MAX
            || under_way.is_some_and(|under_way| now.since(under_way.started) > PERSIST_SLOW)
    }

    /// Whether everything that happened is stored.
    pub(super) fn is_clean(&self, frontier: Lsn) -> bool {
        self.under_way.is_none() && !self.has_work() && self.stored_frontier == frontier
    }

    /// When a batch is due, while none is under way.
    pub(super) fn deadline(&self, frontier: Lsn, stopping: bool) -> Option<Tick> {
        if self.under_way.is_some() {
            return None;
        }
        let full = self.outcomes >= UNPERSISTED_MAX || self.dying.len() >= DEAD_LETTERS_MAX;
        if self.has_work() {
            let at_once = full || stopping;
            Some(if at_once { self.last_stored } else { self.last_stored + PERSIST_EVERY })
        } else if stopping {
            (frontier > self.stored_frontier).then_some(self.last_stored)
        } else if frontier.bytes_since(self.stored_frontier) >= PROGRESS_BYTES {
            Some(self.last_stored + PERSIST_EVERY)
        } else {
            // Also with no progress at all: that the checkpoint can be written is worth knowing.
            Some(self.last_stored + PROGRESS_EVERY)
        }
    }

    fn has_work(&self) -> bool {
        self.touched
            || self.outcomes > 0
            || !self.dying.is_empty()
            || !self.retried.is_empty()
            || !self.disabled.is_empty()
            || !self.enabled.is_empty()
    }
}

impl UnderWay {
    fn len(&self) -> usize {
        self.outcomes + self.dying.len()
    }
}

impl Dispatcher {
    /// What is to be made durable now, in one transaction; answered by
    /// [`Dispatcher::handle_persisted`]. One at a time.
    pub fn poll_persist(&mut self, now: Tick) -> Option<PersistBatch> {
        let frontier = self.tracker.frontier();
        if self.durable.deadline(frontier, self.stopping).is_none_or(|due| due > now) {
            return None;
        }
        let durable = &mut self.durable;
        let count = durable.dying.len().min(DEAD_LETTERS_MAX);
        let dying: Vec<Dying> = durable.dying.drain(..count).collect();
        for Dying { letter, txn, body } in &dying {
            // With its dead letter, not after it: else a crash in between would send it once more.
            if let Body::Delivery { endpoint, ordinal, .. } = body {
                let event = &letter.event;
                self.ahead.push(&event.account, endpoint, *ordinal, event, *txn);
            }
        }
        let batch = PersistBatch {
            frontier,
            settled: self.ahead.take(|txn| self.tracker.is_passed(txn)),
            dead_letters: dying.iter().map(|dying| dying.letter.clone()).collect(),
            retried: std::mem::take(&mut durable.retried),
            disabled: std::mem::take(&mut durable.disabled),
            enabled: std::mem::take(&mut durable.enabled),
            ..PersistBatch::default()
        };
        durable.touched = false;
        durable.under_way = Some(UnderWay {
            started: now,
            frontier,
            outcomes: std::mem::take(&mut durable.outcomes),
            dying,
        });
        Some(batch)
    }

    /// The batch handed out last is durable. Returns the flush LSN: what the source may forget.
    pub fn handle_persisted(&mut self, _persisted: &Persisted, now: Tick) -> Lsn {
        let Some(under_way) = self.durable.under_way.take() else {
            debug_assert!(false, "nothing was to be persisted");
            return self.durable.stored_frontier;
        };
        assert!(under_way.frontier >= self.durable.stored_frontier, "the checkpoint went back");
        self.durable.stored_frontier = under_way.frontier;
        self.durable.last_stored = now;
        for Dying { letter, txn, body } in under_way.dying {
            drop(letter);
            self.tracker.complete(txn);
            self.durable.touch();
            match body {
                Body::Unroutable(held) => self.free(held),
                Body::Delivery { lane, endpoint, id, .. } => self.bury(lane, &endpoint, id, now),
            }
        }
        self.recovered.prune(self.durable.stored_frontier);
        self.durable.stored_frontier
    }

    /// A change without endpoint becomes a dead letter.
    pub(super) fn die_unroutable(&mut self, unroutable: Unroutable, txn: TxnSeq) {
        let Unroutable { event, reason: _, detail } = unroutable;
        self.bytes += DELIVERY_BYTES;
        self.counters.dead += 1;
        let letter = DeadLetter {
            event: Arc::clone(&event),
            endpoint: None,
            reason: DeadReason::Unroutable,
            detail,
            attempts: 0,
            last_status: None,
            history: Vec::new(),
        };
        let body = Body::Unroutable(Arc::new(Held { event }));
        self.durable.dying.push_back(Dying { letter, txn, body });
        self.durable.touch();
    }

    /// The delivery's dead letter is stored: those that waited for its keys go on.
    fn bury(&mut self, id: LaneId, endpoint: &EndpointId, delivery: DeliveryId, now: Tick) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let pending = lane.remove(endpoint, delivery);
        lane.refresh(endpoint, now);
        if let Some(pending) = pending {
            self.free(pending.held);
        }
        self.sync(id);
        self.rest_if_idle(id, delivery);
    }

    /// Gives a delivery's memory back.
    fn free(&mut self, held: Arc<Held>) {
        self.bytes = self.bytes.saturating_sub(DELIVERY_BYTES);
        self.let_go(held);
    }

    /// A delivery ends without success.
    pub(super) fn die(
        &mut self,
        id: LaneId,
        endpoint: &EndpointId,
        delivery: DeliveryId,
        end: End,
    ) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(pending) = lane.queue(endpoint).and_then(|queue| queue.get(delivery)) else {
            return;
        };
        let End { reason, detail, last_status } = end;
        let letter = DeadLetter {
            event: Arc::clone(&pending.held.event),
            endpoint: Some(endpoint.clone()),
            reason,
            detail,
            attempts: pending.attempts,
            last_status,
            history: Vec::new(),
        };
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                self.counters.dead += 1;
                if let Some(queue) = lane.queue_mut(endpoint) {
                    queue.die(delivery);
                }
                let endpoint = endpoint.clone();
                let body = Body::Delivery { lane: id, endpoint, id: delivery, ordinal };
                self.durable.dying.push_back(Dying { letter, txn, body });
                self.durable.touch();
            }
            Origin::Retry { dead_letter, job } => {
                self.durable.retried(Retried { dead_letter, job, error: Some(letter) });
                if let Some(pending) = lane.remove(endpoint, delivery) {
                    self.free(pending.held);
                }
            }
        }
    }

    /// A delivery ends with a 2xx, or because its endpoint was removed.
    pub(super) fn settle(&mut self, id: LaneId, endpoint: &EndpointId, delivery: DeliveryId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(pending) = lane.remove(endpoint, delivery) else { return };
        let event = &pending.held.event;
        match pending.origin {
            Origin::Stream { txn, ordinal } => {
                self.ahead.push(&event.account, endpoint, ordinal, event, txn);
                self.tracker.complete(txn);
                self.durable.touch();
            }
            Origin::Retry { dead_letter, job } => {
                self.durable.retried(Retried { dead_letter, job, error: None });
            }
        }
        self.free(pending.held);
    }
}
