//! The two parts of a queue: what is pending in memory, and what is deferred.

use super::super::super::clock::Reading;
use super::super::super::lane::{Insertion, Moment, New, Origin, Pending, Queue, Removed, Source};
use super::super::super::schedule::LaneId;
use super::super::deferred_queue::DeferredQueue;
use super::lanes::Lane;
use super::{Account, QueueNo, Queues, account_mut};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, RowKeys};
use walhook_core::id::ReplayId;
use walhook_core::persist::QueueId;

/// Idle queues that are looked at to find one that was not used lately.
const LOOKS: usize = 16;

/// What is pending.
impl Queues {
    /// The queue's deliveries in memory; also where the handle may be stale.
    pub(in super::super) fn pending(&self, no: QueueNo) -> Option<&Queue> {
        self.get(no)?.pending()
    }

    /// As [`Queues::pending`].
    pub(in super::super) fn pending_mut(&mut self, no: QueueNo) -> Option<&mut Queue> {
        self.get(no)?;
        self.at_mut(no).pending.as_deref_mut()
    }

    /// The queue's deliveries in memory, of which there are some.
    pub(in super::super) fn in_use(&mut self, no: QueueNo) -> &mut Queue {
        match self.at_mut(no).pending.as_deref_mut() {
            Some(pending) => pending,
            None => panic!("{no:?} has a delivery in memory, and no queue for it"),
        }
    }

    /// Adds a delivery behind those to the same endpoint that hold one of `keys`. The account has a lane.
    ///
    /// `keys` must not name a key twice. Ids must grow from call to call.
    pub(in super::super) fn push(&mut self, no: QueueNo, new: New, keys: RowKeys) {
        let bytes = new.counted() + new.held.queue();
        let now = new.now;
        self.enter(now);
        self.rowless += usize::from(matches!(new.source, Source::Stream(_)));
        let below = self.moment(no, now).below;
        self.materialise(no, new.id).push(new, keys, &below);
        self.lane_at(no).pending += 1;
        self.shared_mut().pending += 1;
        self.count_pending(no);
        self.account_of(no).bytes += bytes;
    }

    /// A delivery in flight is to have a row, under the replay that it belongs to, with this insertion.
    pub(in super::super) fn give_row(
        &mut self,
        no: QueueNo,
        id: DeliveryId,
        replay: Option<ReplayId>,
        insertion: Insertion,
    ) -> &mut Pending {
        let is_rowless = self.in_use(no).held_mut(id).origin.is_rowless();
        self.rowless -= usize::from(is_rowless);
        let pending = self.in_use(no).held_mut(id);
        pending.origin = Origin::Deferred { replay, insertion: Some(insertion) };
        pending
    }

    /// A delivery counts for so much in the memory budget from now on, beside its event. Returns what it counted
    /// for until now.
    pub(in super::super) fn recount(
        &mut self,
        no: QueueNo,
        id: DeliveryId,
        counted: usize,
    ) -> usize {
        let pending = self.in_use(no).held_mut(id);
        let before = std::mem::replace(&mut pending.counted, counted);
        let account = self.account_of(no);
        account.bytes = account.bytes + counted - before;
        before
    }

    fn account_of(&mut self, no: QueueNo) -> &mut Account {
        let account = self.at(no).account;
        account_mut(&mut self.accounts, account)
    }

    /// The next ordinal of the queue, for a delivery that is deferred without being queued. `id` is one that a
    /// delivery might have had. The account has a lane.
    pub(in super::super) fn take_ordinal(&mut self, no: QueueNo, id: DeliveryId) -> u64 {
        self.materialise(no, id).take_ordinal()
    }

    fn materialise(&mut self, no: QueueNo, id: DeliveryId) -> &mut Queue {
        if self.at(no).pending.is_none() {
            // A queue that was forgotten and made anew must not continue its ordinals: ids are above
            // all ordinals given out so far, and never next to one.
            let first_ordinal = id.0.saturating_add(1);
            self.at_mut(no).pending = Some(Box::new(Queue::new(first_ordinal)));
            self.in_memory += 1;
            self.lane_at(no).queues += 1;
        }
        self.in_use(no)
    }

    pub(super) fn lane_at(&mut self, no: QueueNo) -> &mut Lane {
        let account = self.at(no).account;
        match &mut account_mut(&mut self.accounts, account).lane {
            Some(lane) => lane,
            None => panic!("{no:?} is in memory, and its account has no lane"),
        }
    }

    /// Takes a delivery out, whatever its stage, and lets the next ones of its keys go.
    ///
    /// # Panics
    /// It is not there.
    pub(in super::super) fn remove(&mut self, no: QueueNo, id: DeliveryId) -> Removed {
        // Where nothing stands behind it, nobody reads what the clock shows.
        let at = match self.in_use(no).len() {
            1 => Moment { now: self.now, below: Reading::default() },
            _ => self.moment(no, self.now),
        };
        let Some(removed) = self.in_use(no).remove(id, &at) else {
            panic!("{id:?} is not in the queue that it was put into");
        };
        let bytes = removed.pending.counted + removed.pending.held.unqueue();
        self.lane_at(no).pending -= 1;
        self.shared_mut().pending -= 1;
        self.rowless -= usize::from(removed.pending.origin.is_rowless());
        let account = self.account_of(no);
        let Some(left) = account.bytes.checked_sub(bytes) else {
            panic!("{id:?} gives back more memory than its account took")
        };
        account.bytes = left;
        removed
    }

    /// Whether the queue is being cleared: see [`super::super::clearing`].
    pub(in super::super) fn is_cleared(&self, no: QueueNo) -> bool {
        self.at(no).cleared
    }

    /// It is being cleared, or not any more. Whether that is new.
    pub(in super::super) fn set_cleared(&mut self, no: QueueNo, cleared: bool) -> bool {
        std::mem::replace(&mut self.at_mut(no).cleared, cleared) != cleared
    }

    /// A queue in which nothing is pending is kept for a while, for what it knows of its endpoint.
    pub(in super::super) fn rest_if_idle(&mut self, no: QueueNo) {
        if !self.pending(no).is_some_and(Queue::is_empty) {
            return;
        }
        self.rested += 1;
        let queue = self.at_mut(no);
        queue.used = true;
        if !std::mem::replace(&mut queue.among_idle, true) {
            self.idle.push(no);
        }
    }

    /// How often a queue came to be kept so since this was asked.
    pub(in super::super) fn take_rested(&mut self) -> usize {
        std::mem::take(&mut self.rested)
    }

    /// The queues that are kept so, at most.
    pub(in super::super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Forgets what a queue knows of its endpoint in which nothing is pending: one that has hardly been used lately.
    /// A lane goes with the last of its queues: then returns which, and whose.
    ///
    /// Looks at the next few, round after round, and spares those that were used since the last one. So nothing
    /// is to be moved when a queue is used.
    pub(in super::super) fn forget_idle(&mut self) -> Option<(LaneId, AccountId)> {
        for look in 1..=LOOKS {
            self.hand = if self.hand < self.idle.len() { self.hand } else { 0 };
            let no = *self.idle.get(self.hand)?;
            let queue = self.at_mut(no);
            let Some(pending) = queue.pending.as_deref() else {
                panic!("{no:?} is among the idle queues, and not in memory")
            };
            if !pending.is_empty() {
                queue.among_idle = false;
                self.idle.swap_remove(self.hand);
            } else if pending.has_turn() {
                // It still has a turn, and loses it then.
                self.hand += 1;
            } else if std::mem::take(&mut queue.used) && look < LOOKS {
                self.hand += 1;
            } else {
                queue.among_idle = false;
                self.idle.swap_remove(self.hand);
                return self.forget_pending(no);
            }
        }
        None
    }

    fn forget_pending(&mut self, no: QueueNo) -> Option<(LaneId, AccountId)> {
        self.at_mut(no).pending = None;
        self.in_memory -= 1;
        self.emptied.push(no);
        let account = self.at(no).account;
        let account = account_mut(&mut self.accounts, account);
        let lane = account.lane.as_deref_mut().filter(|lane| lane.queues > 0);
        let Some(lane) = lane else { panic!("{no:?} was in memory without a lane") };
        lane.queues -= 1;
        if lane.queues > 0 {
            return None;
        }
        assert!(!lane.waits_for_room(), "a lane is forgotten that waits for room");
        let id = lane.id;
        account.lane = None;
        let name = account.id.clone();
        self.forget_head(id);
        Some((id, name))
    }
}

/// What is deferred.
impl Queues {
    /// What is known of the queue's rows; also where the handle may be stale.
    pub(in super::super) fn deferred(&self, no: QueueNo) -> Option<&DeferredQueue> {
        self.get(no)?.deferred()
    }

    /// As [`Queues::deferred`].
    pub(in super::super) fn deferred_mut(&mut self, no: QueueNo) -> Option<&mut DeferredQueue> {
        self.get(no)?;
        self.at_mut(no).deferred.as_deref_mut()
    }

    /// What is known of the queue's rows, of which there are some.
    pub(in super::super) fn with_row(&mut self, no: QueueNo) -> &mut DeferredQueue {
        match self.at_mut(no).deferred.as_deref_mut() {
            Some(deferred) => deferred,
            None => panic!("{no:?} has a row, and nothing is known of its rows"),
        }
    }

    /// As [`Queues::with_row`], only to be looked at.
    pub(in super::super) fn rows_of(&self, no: QueueNo) -> &DeferredQueue {
        match self.at(no).deferred() {
            Some(deferred) => deferred,
            None => panic!("{no:?} has a row, and nothing is known of its rows"),
        }
    }

    /// What is known of the queue's rows, made where nothing is.
    pub(in super::super) fn deferred_or_new(&mut self, no: QueueNo) -> &mut DeferredQueue {
        if self.at(no).deferred.is_none() {
            self.set_deferred(no, Box::new(DeferredQueue::empty()));
        }
        self.with_row(no)
    }

    /// An earlier leader has left rows.
    pub(in super::super) fn set_deferred(&mut self, no: QueueNo, deferred: Box<DeferredQueue>) {
        if self.at_mut(no).deferred.replace(deferred).is_none() {
            self.deferred += 1;
        }
    }

    /// No row is left, nor anything to be remembered.
    pub(in super::super) fn forget_deferred(&mut self, no: QueueNo) {
        if self.at_mut(no).deferred.take().is_some() {
            self.deferred -= 1;
            self.emptied.push(no);
        }
    }

    /// All that have rows.
    pub(in super::super) fn all_deferred(
        &self,
    ) -> impl Iterator<Item = (QueueNo, &QueueId, &DeferredQueue)> {
        self.iter().filter_map(|(no, queue)| Some((no, &queue.id, queue.deferred()?)))
    }
}
