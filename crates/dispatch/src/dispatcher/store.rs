//! State transactions: what is handed out with the next one, and what follows when it is stored.

use std::sync::Arc;

use super::Dispatcher;
use super::outbox::{Body, Dying, Leaves, Leaving, LeavingRows, Parts, RowChange};
use super::queues::QueueNo;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Defer, PersistBatch, Persisted, Routed, RowKey};
use walhook_core::tick::Tick;

impl Dispatcher {
    /// What is to be made durable now, in one transaction; answered by
    /// [`Dispatcher::handle_persisted`]. One at a time.
    pub(super) fn poll_persist(&mut self, now: Tick) -> Option<PersistBatch> {
        if self.endpoints.failing.is_due(now) {
            self.outbox.touch();
        }
        let frontier = self.progress.frontier();
        if self.persist_deadline().is_none_or(|due| due > now) {
            return None;
        }
        let number = self.outbox.begin_batch();
        let mut batch = PersistBatch { number, frontier, ..PersistBatch::default() };
        let stored = self.hand_out_rows(&mut batch, now);
        let dying = self.hand_out_dying(&mut batch, now);
        let mut removed = self.hand_out_changes(&mut batch);
        removed.extend(dying.iter().filter_map(|dying| match &dying.body {
            Body::Row { row, queue, .. } => Some((*queue, row.key.clone())),
            Body::Unroutable { .. } | Body::Delivery { .. } | Body::Unrouted { .. } => None,
        }));
        self.hand_out_unseen(&mut batch);
        let mut routed = self.hand_out_shelves(&mut batch);
        routed.extend(dying.iter().filter_map(|dying| match &dying.body {
            Body::Unrouted { row, .. } => Some(row.clone()),
            Body::Unroutable { .. } | Body::Delivery { .. } | Body::Row { .. } => None,
        }));
        self.hand_out_gaps(&mut batch, self.outbox.rows_max().saturating_sub(stored.len()));
        let over = self.hand_out_backlogs(&mut batch, now);
        batch.settled = self.progress.hand_out();
        batch.settled.extend(self.hand_out_starts());
        self.hand_out_failing(&mut batch, now);
        self.replays.hand_out(&mut batch);
        batch.log = self.journal.hand_out();
        let parts = Parts { dying, stored, removed, routed, over };
        self.outbox.hand_over(&mut batch, parts, now);
        Some(batch)
    }

    /// When a batch is due, while none is under way.
    pub(super) fn persist_deadline(&self) -> Option<Tick> {
        let may_wait = || self.memory.is_plenty(self.used_bytes()) && !self.holds_much_wal();
        self.outbox.deadline(self.progress.frontier(), may_wait, self.door.is_stopping())
    }

    /// The rows that are to be inserted, as many as fit.
    fn hand_out_rows(&mut self, batch: &mut PersistBatch, now: Tick) -> LeavingRows {
        let mut stored = LeavingRows::new();
        while let Some(leaving) = self.outbox.next_leaving() {
            let Some(leaving) = self.unless_cancelled(leaving, now) else { continue };
            let Defer { id, event, .. } = &leaving.row;
            let endpoint = &id.queue.endpoint;
            // With its row, not after it: else a crash in between would send it once more.
            if let Some(txn) = leaving.txn {
                self.progress.settle_with_batch(&id.queue, leaving.ordinal, event, txn);
            }
            let skipped = matches!(leaving.kind, Leaves::Skipped(_));
            if let Some(replay) = id.key.replay {
                self.replays.count_left(replay, skipped);
            }
            if let Some(row) = &leaving.routed {
                let routed = Routed { row: row.clone(), to: Some(endpoint.clone()) };
                match batch.routed.last_mut().filter(|last| last.row == *row) {
                    Some(last) => *last = routed,
                    None => batch.routed.push(routed),
                }
            }
            self.log_left(&leaving, now);
            match leaving.kind {
                Leaves::Unrouted => {
                    batch.unrouted.push(Arc::clone(event));
                    self.routing.shelves.handed_out(&leaving.row.id.queue.account);
                }
                Leaves::Skipped(queue) => self.count_skipped(queue, event.position.commit_lsn()),
                Leaves::Deferred(queue) => {
                    self.queues.with_row(queue).backlog_mut().handed_out();
                    batch.deferred.push(leaving.row.clone());
                    self.outdate(queue);
                }
            }
            stored.push_back(leaving);
        }
        stored
    }

    fn hand_out_dying(&mut self, batch: &mut PersistBatch, now: Tick) -> Vec<Dying> {
        let mut dying: Vec<Dying> = Vec::new();
        while let Some(next) = self.outbox.next_dying() {
            let letter = next.letter.clone();
            self.log_dead(&letter, None, now);
            self.outbox.notices.add_letter(&letter);
            match &next.body {
                Body::Unroutable { .. } => batch.dead_letters.push(letter),
                Body::Unrouted { row, .. } => {
                    batch.dead_letters.push(letter);
                    let row = row.clone();
                    self.unrouted_died(&row, batch);
                }
                Body::Delivery { txn, ordinal, queue, .. } => {
                    let queue = self.queues.id(*queue);
                    self.progress.settle_with_batch(queue, *ordinal, &letter.event, *txn);
                    batch.dead_letters.push(letter);
                }
                Body::Row { row, queue, .. } => {
                    self.take_out(*queue);
                    batch.died.push((row.clone(), letter));
                }
            }
            dying.push(next);
        }
        self.deferral.clearing.note_taken();
        dying
    }

    /// Changes of rows that are there, or in this batch. Returns those that go.
    fn hand_out_changes(&mut self, batch: &mut PersistBatch) -> Vec<(QueueNo, RowKey)> {
        let mut removed = Vec::new();
        for (row, change) in self.outbox.take_changes() {
            match change {
                RowChange::Retime(tried) => batch.retimed.push((row, tried)),
                RowChange::Remove | RowChange::Drop => {
                    let queue = self.queues.named(&row.queue);
                    self.take_out(queue);
                    let part = match change {
                        RowChange::Drop => &mut batch.dropped,
                        RowChange::Remove | RowChange::Retime(_) => &mut batch.resolved,
                    };
                    removed.push((queue, row.key.clone()));
                    part.push(row);
                }
            }
        }
        removed
    }

    fn take_out(&mut self, queue: QueueNo) {
        self.queues.with_row(queue).backlog_mut().taken_out();
        self.outdate(queue);
    }

    /// Returns the queues whose row in the table `backlog` goes.
    fn hand_out_backlogs(&mut self, batch: &mut PersistBatch, now: Tick) -> Vec<QueueNo> {
        let mut over = Vec::new();
        for queue in self.outbox.take_outdated() {
            let id = self.queues.id(queue).clone();
            let unix_us_at_zero = self.door.unix_us_at_zero();
            match self.queues.with_row(queue).hand_out(&id, now, unix_us_at_zero) {
                Some(mut row) => {
                    row.blocked = self.settings.ordering.marked(row.blocked);
                    batch.backlog.push(row);
                }
                None => {
                    batch.backlog_gone.push(id);
                    over.push(queue);
                }
            }
        }
        over
    }

    /// The batch handed out last is durable. Returns the flush LSN: what the source may forget.
    pub(super) fn handle_persisted(&mut self, persisted: &Persisted, now: Tick) -> Lsn {
        let purged = persisted.purged.iter().chain(&persisted.letters_purged);
        let unrouted = persisted.unrouted_purged.iter().map(|purged| purged.rows);
        let purged = purged.map(|purged| purged.rows).chain(unrouted).sum::<u64>();
        let (frontier, took, parts) = self.outbox.handle_stored(purged, now);
        self.journal.handle_stored(took, persisted.log_dropped);
        for leaving in parts.stored {
            self.handle_row_stored(*leaving, now);
        }
        let mut queues = parts.over;
        for (queue, key) in parts.removed {
            if let Some(deferred) = self.queues.deferred_mut(queue) {
                deferred.backlog_mut().removed(&key);
            }
            if queues.last() != Some(&queue) {
                queues.push(queue);
            }
        }
        self.handle_unseen_stored();
        self.handle_rows_routed(parts.routed, now);
        for dying in parts.dying {
            self.outbox.touch();
            self.handle_letter_stored(dying, now);
        }
        self.handle_purged(&persisted.purged, now);
        self.handle_unrouted_purged(&persisted.unrouted_purged, now);
        self.handle_letters_purged(&persisted.letters_purged, now);
        self.end_suspensions(now);
        for queue in queues {
            // With its last row handed out it may have been forgotten before that was stored.
            if self.queues.get(queue).is_some() {
                self.look_after(queue, now);
            }
        }
        self.progress.handle_stored(frontier);
        self.routing.router.handle_checkpoint(frontier);
        self.end_starts(frontier, now);
        frontier
    }

    fn handle_row_stored(&mut self, leaving: Leaving, now: Tick) {
        self.outbox.stored_row(leaving.bytes);
        let Leaving { row, held, txn, kind, counted, .. } = leaving;
        if let Some(txn) = txn {
            self.progress.complete(txn);
        }
        self.free(held, counted);
        match kind {
            Leaves::Unrouted => self.routing.shelves.stored(&row.id.queue.account),
            Leaves::Deferred(queue) => {
                self.queues.with_row(queue).backlog_mut().stored(&row.id.key);
                self.look_after(queue, now);
            }
            Leaves::Skipped(queue) => self.look_after(queue, now),
        }
    }
}

#[cfg(test)]
mod tests;
