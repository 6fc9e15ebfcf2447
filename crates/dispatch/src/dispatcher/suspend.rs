//! The bound of the state tables: the queue that holds most rows is suspended, and its rows become one
//! record in `gaps`.
//!
//! While a queue is suspended nothing of it becomes a row any more: what leaves memory is counted in
//! the gap, in the state transaction that settles it. Its rows are removed some at a time, each time in
//! a state transaction that counts them in the gap. So each delivery is a row or counted, whenever a
//! crash comes; and a growing gap tells the next leader to go on with it.
//!
//! Rows are removed when memory knows of none of them (what is in flight has ended, what was being
//! stored is), so that the backlog's numbers stay exact. Before the next queue is suspended the removal
//! is over, and the server's statistics show it.
//!
//! Dead letters go first, and without a suspension: whoever holds most of both has its letters counted in
//! the record of those beyond the first thousand. With no letters left it is suspended.
//!
//! With room again a queue goes on by itself, with an empty backlog. What comes before the last that was
//! counted is stored is deferred: sent, it would overtake that one where a crash brings it back.

use super::Dispatcher;
use super::changes::EndpointChange;
use super::deferred_queue::DeferredQueue;
use super::outbox::{Leaves, Leaving};
use super::queues::QueueNo;
use super::suspensions::Suspension;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{GapChange, LETTERS_MAX, PersistBatch, Purge, Purged, QueueId};
use walhook_core::room::{Holder, Measured, Room, share};
use walhook_core::tick::Tick;

/// Of the bound: dead letters of several queues are given up at once until they are so much.
const LETTERS_PERCENT: u64 = 5;

impl Dispatcher {
    /// Goes on with the suspensions that an earlier leader left.
    pub(super) fn recover_suspensions(&mut self, gaps: Vec<GapChange>) {
        for GapChange { queue, skipped, .. } in gaps {
            let no = self.queues.intern(&queue.account, &queue.endpoint);
            self.queues.deferred_or_new(no).recover_suspension(skipped, Tick(0));
            self.deferral.suspensions.begin(queue);
            self.outbox.touch();
        }
    }

    /// Takes what the state tables were measured to take. Says, once a minute, that they are full and no
    /// queue has rows to give up.
    pub(super) fn handle_state_size(&mut self, measured: &Measured, now: Tick) -> bool {
        if self.door.is_stopping() {
            return false;
        }
        self.bound_unrouted(measured, now);
        match measured.size.room(self.settings.state_max) {
            Room::None => self.give_up_rows(measured, now),
            Room::Enough => {
                self.resume_suspended();
                false
            }
            Room::Little => {
                self.make_room_to_resume(measured, now);
                false
            }
        }
    }

    /// Whether deliveries to the queue's endpoint are counted in a gap.
    pub(super) fn is_suspended(&self, queue: QueueNo) -> bool {
        self.queues.deferred(queue).is_some_and(DeferredQueue::is_suspended)
    }

    /// Whether something is being given up, or a size may not show yet what was.
    fn gives_up(&self, now: Tick) -> bool {
        let suspensions = &self.deferral.suspensions;
        let rows_left =
            |queue| self.suspended(queue).suspension().is_some_and(Suspension::rows_left);
        suspensions.gives_up_letters()
            || suspensions.queues().any(rows_left)
            || !suspensions.trusts_sizes(now)
    }

    /// Dead letters stay for weeks: where only they keep suspended queues from going on, those of whoever
    /// holds most go as well.
    fn make_room_to_resume(&mut self, Measured { holders, .. }: &Measured, now: Tick) {
        let waits = |queue: &QueueId| self.suspended(queue).is_suspended();
        let waits = self.deferral.suspensions.queues().any(waits);
        if waits && !self.gives_up(now) {
            self.give_up_letters(holders.iter().filter(|holder| holder.letters > 0));
        }
    }

    /// Those of the first, and of more until a good part of the bound is given up.
    fn give_up_letters<'a>(&mut self, holders: impl Iterator<Item = &'a Holder>) {
        let mut given_up = 0;
        for holder in holders {
            if given_up >= share(self.settings.state_max, LETTERS_PERCENT) {
                break;
            }
            given_up += holder.letter_bytes;
            self.deferral.suspensions.give_up_letters(holder.queue.clone());
            self.outbox.touch();
        }
    }

    fn give_up_rows(&mut self, Measured { size, holders }: &Measured, now: Tick) -> bool {
        if self.gives_up(now) {
            return false;
        }
        let can_go =
            |deferred: &DeferredQueue| deferred.suspension().is_none() && deferred.rows() > 0;
        let able = |holder: &&Holder| {
            let deferred = self.queues.find(&holder.queue).and_then(|no| self.queues.deferred(no));
            holder.letters > 0 || deferred.is_some_and(can_go)
        };
        let able: Vec<&Holder> = holders.iter().filter(able).collect();
        self.give_up_letters(able.iter().copied().take_while(|holder| holder.letters > 0));
        if self.deferral.suspensions.gives_up_letters() {
            return false;
        }
        let most = match able.first() {
            Some(holder) => self.queues.find(&holder.queue),
            None => self
                .queues
                .all_deferred()
                .filter(|(.., deferred)| can_go(deferred))
                .max_by(|(_, a, x), (_, b, y)| (x.rows(), b).cmp(&(y.rows(), a)))
                .map(|(queue, ..)| queue),
        };
        let Some(queue) = most else {
            return self.deferral.suspensions.may_say(now);
        };
        let rows = self.queues.rows_of(queue).rows();
        self.suspend(queue, now);
        let detail = format!(
            "the state tables take {} bytes (used: {}), and it has the most deferred deliveries, {rows}",
            size.total_bytes, size.used_bytes
        );
        self.tell_of_queue(queue, EndpointChange::Suspended, detail);
        false
    }

    fn suspend(&mut self, queue: QueueNo, now: Tick) {
        let reason =
            "suspended: state.max_size was reached, and it had the most deferred deliveries";
        self.queues.with_row(queue).suspend(reason, now);
        self.deferral.suspensions.begin(self.queues.id(queue).clone());
        self.skip_leaving(queue);
        self.clear(queue, now);
        self.outdate(queue);
        self.outbox.touch();
    }

    /// What was on its way into the table is counted instead, unless it is in flight as well, or was until it ended.
    fn skip_leaving(&mut self, queue: QueueNo) {
        let deferred = self.queues.with_row(queue);
        let is_its = |leaving: &&mut Leaving| leaving.kind == Leaves::Deferred(queue);
        for leaving in self.outbox.leaving_mut().filter(is_its) {
            if !deferred.backlog().needs_row(&leaving.row.id.key) {
                leaving.kind = Leaves::Skipped(queue);
                deferred.backlog_mut().skip(&leaving.row.id.key);
            }
        }
    }

    fn resume_suspended(&mut self) {
        let mut resumed = Vec::new();
        let last = self.outbox.insertions();
        for queue in self.deferral.suspensions.queues() {
            let Some(counted) = self.queues.with_row(self.queues.named(queue)).go_on(last) else {
                continue;
            };
            self.outbox.touch();
            resumed.push((queue.clone(), counted));
        }
        for (queue, counted) in resumed {
            let detail =
                format!("the state tables have room again; its gap counts {counted} deliveries");
            self.tell_of(&queue, EndpointChange::Unsuspended, detail);
        }
    }

    /// One that was on its way into the table is counted in its queue's gap instead.
    pub(super) fn count_skipped(&mut self, queue: QueueNo, commit_lsn: Lsn) {
        self.door.reports.went_into_gaps(1);
        let Some(suspension) = self.queues.with_row(queue).suspension_mut() else {
            panic!("a delivery was skipped, and no gap counts it");
        };
        suspension.skip(commit_lsn);
    }

    /// What gaps are to say, and at most `rows` rows to be removed.
    pub(super) fn hand_out_gaps(&mut self, batch: &mut PersistBatch, mut rows: usize) {
        for queue in self.deferral.suspensions.letters() {
            let at_once = u32::try_from(rows).unwrap_or(u32::MAX).min(LETTERS_MAX);
            if at_once > 0 {
                batch.letter_purges.push(Purge { queue: queue.clone(), rows: at_once });
                rows -= at_once as usize;
            }
        }
        let handed_out = self.outbox.handed_out();
        let mut ended = Vec::new();
        for queue in self.deferral.suspensions.queues() {
            let no = self.queues.named(queue);
            let deferred = self.queues.with_row(no);
            let purges = rows > 0 && deferred.wants_purge();
            let in_table = usize::try_from(deferred.backlog().in_table()).unwrap_or(usize::MAX);
            let Some(suspension) = deferred.suspension_mut() else {
                panic!("a queue that is not suspended stands among those that are")
            };
            let (change, ends) = suspension.hand_out(queue, handed_out);
            batch.gaps.extend(change);
            if purges {
                let at_once = u32::try_from(rows).unwrap_or(u32::MAX);
                batch.purges.push(Purge { queue: queue.clone(), rows: at_once });
                rows = rows.saturating_sub(in_table.max(1));
            }
            if ends {
                ended.push(no);
            }
        }
        for queue in ended {
            // It is looked after, and forgotten where nothing is left, when that is stored.
            self.outdate(queue);
        }
    }

    /// A batch is stored, and with it all that was counted of queues that go on: from now on they are sent
    /// to directly. Sooner, a crash would have brought what was counted behind newer events.
    pub(super) fn end_suspensions(&mut self, now: Tick) {
        let is_over = |queue: &&QueueId| {
            let suspension = self.suspended(queue).suspension();
            suspension.is_none_or(Suspension::is_ending)
        };
        let over: Vec<QueueId> =
            self.deferral.suspensions.queues().filter(is_over).cloned().collect();
        for queue in over {
            self.deferral.suspensions.end(&queue);
            let queue = self.queues.named(&queue);
            self.queues.with_row(queue).end_suspension();
            self.look_after(queue, now);
        }
    }

    /// What is known of the rows of a queue that is suspended.
    fn suspended(&self, queue: &QueueId) -> &DeferredQueue {
        self.queues.rows_of(self.queues.named(queue))
    }

    pub(super) fn handle_letters_purged(&mut self, purged: &[Purged], now: Tick) {
        for Purged { queue, rows, all } in purged {
            self.door.reports.went_into_gaps(*rows);
            if *all {
                self.deferral.suspensions.letters_gone(queue, now);
            }
            self.outbox.touch();
        }
    }

    pub(super) fn handle_purged(&mut self, purged: &[Purged], now: Tick) {
        for Purged { queue, rows, all } in purged {
            self.door.reports.went_into_gaps(*rows);
            let queue = self.queues.named(queue);
            self.queues.with_row(queue).purged(*rows, *all);
            if *all {
                self.deferral.suspensions.all_removed(now);
            }
            self.outdate(queue);
        }
    }
}

#[cfg(test)]
mod tests;
