//! An account's lane: its queues in memory, as the scheduler knows them, and whose turn it is among them.

use std::collections::VecDeque;

use super::super::super::clock::{Clock, Reading};
use super::super::super::route::RoutesNo;
use super::super::super::schedule::{LaneId, POOLS, Pool};
use super::super::classes::Usage;
use super::super::rooms::{Room, Ticket};
use super::{AccountNo, QueueNo, Queues, account_at, account_mut, place};
use walhook_core::event::AccountId;
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// How a lane stands to the room for large events of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum ForRoom {
    #[default]
    Unasked,
    /// It stands in line: nothing of it is sent from the pool.
    Waits(Ticket),
    /// It stood in line there, and goes before those who still do.
    Called(Ticket),
}

/// One account's queues in memory, as the scheduler knows them.
#[derive(Debug)]
pub(in super::super) struct Lane {
    pub(super) id: LaneId,
    routes: RoutesNo,
    /// For each pool the queues to take in turn. May name some that have become unsendable.
    fast: VecDeque<QueueNo>,
    slow: VecDeque<QueueNo>,
    probe: VecDeque<QueueNo>,
    rooms: [ForRoom; POOLS],
    /// Its queues that are in memory.
    pub(super) queues: usize,
    pub(super) pending: usize,
    unrouted: bool,
    /// Counts for what its deliveries wait for that are held by nothing of their queue.
    clock: Clock,
    usage: Usage,
}

impl Lane {
    pub(super) fn new(id: LaneId, routes: RoutesNo) -> Self {
        let (fast, slow, probe, rooms) = Default::default();
        let (clock, usage) = (Clock::default(), Usage::default());
        let (queues, pending, unrouted) = Default::default();
        Self { id, routes, fast, slow, probe, rooms, queues, pending, unrouted, clock, usage }
    }

    /// Its account's routes, which are pinned for as long as there is the lane.
    pub(in super::super) fn routes(&self) -> RoutesNo {
        self.routes
    }

    /// The deliveries pending, in whatever stage.
    pub(in super::super) fn pending(&self) -> usize {
        self.pending
    }

    /// Whether it waits for its account's routes: nothing is sent meanwhile.
    pub(in super::super) fn is_unrouted(&self) -> bool {
        self.unrouted
    }

    /// Whether something of it waits for nothing but a slot of this pool.
    pub(in super::super) fn is_ready_in(&self, pool: Pool) -> bool {
        !self.unrouted && !self.ring(pool).is_empty() && self.ticket(pool).is_none()
    }

    /// Its place in line, where it waits for room in this pool.
    pub(in super::super) fn ticket(&self, pool: Pool) -> Option<Ticket> {
        match self.room(pool) {
            ForRoom::Waits(ticket) => Some(ticket),
            ForRoom::Unasked | ForRoom::Called(_) => None,
        }
    }

    /// Where it stood in line, if it was called from there and has had no turn in this pool since.
    pub(in super::super) fn called(&self, pool: Pool) -> Option<Ticket> {
        match self.room(pool) {
            ForRoom::Called(ticket) => Some(ticket),
            ForRoom::Unasked | ForRoom::Waits(_) => None,
        }
    }

    /// Whether it waits for room in one of the pools.
    pub(super) fn waits_for_room(&self) -> bool {
        Pool::ALL.into_iter().any(|pool| self.ticket(pool).is_some())
    }

    fn room(&self, pool: Pool) -> ForRoom {
        self.rooms.get(pool as usize).copied().unwrap_or_default()
    }

    fn set_room(&mut self, pool: Pool, room: ForRoom) {
        if let Some(of_pool) = self.rooms.get_mut(pool as usize) {
            *of_pool = room;
        }
    }

    /// Whether something of it waits for nothing but a slot.
    pub(in super::super) fn is_ready(&self) -> bool {
        Pool::ALL.into_iter().any(|pool| self.is_ready_in(pool))
    }

    /// How much of the slots' time it has had lately.
    pub(in super::super) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// As [`Lane::usage`], to be changed.
    pub(in super::super) fn usage_mut(&mut self) -> &mut Usage {
        &mut self.usage
    }

    /// What its clock shows where that of all lanes shows this.
    pub(super) fn reading(&self, gate: &Reading) -> Reading {
        self.clock.read(gate)
    }

    fn ring(&self, pool: Pool) -> &VecDeque<QueueNo> {
        match pool {
            Pool::Fast => &self.fast,
            Pool::Slow => &self.slow,
            Pool::Probe => &self.probe,
        }
    }

    pub(super) fn ring_mut(&mut self, pool: Pool) -> &mut VecDeque<QueueNo> {
        match pool {
            Pool::Fast => &mut self.fast,
            Pool::Slow => &mut self.slow,
            Pool::Probe => &mut self.probe,
        }
    }
}

impl Queues {
    /// Whether the account has a lane.
    pub(in super::super) fn has_lane(&self, account: &AccountId) -> bool {
        self.lane_of(account).is_some()
    }

    /// The account's lane.
    pub(in super::super) fn lane_of(&self, account: &AccountId) -> Option<&Lane> {
        self.lane_in(self.account(account)?)
    }

    /// The lane of the account with this number.
    pub(in super::super) fn lane_in(&self, account: AccountNo) -> Option<&Lane> {
        account_at(&self.accounts, account).lane.as_deref()
    }

    /// The queue's lane, where its account has one.
    pub(in super::super) fn lane_id(&self, no: QueueNo) -> Option<LaneId> {
        let account = account_at(&self.accounts, self.at(no).account);
        account.lane.as_deref().map(|lane| lane.id)
    }

    /// The lane's number, by its account.
    pub(in super::super) fn lane_id_of(&self, account: &AccountId) -> Option<LaneId> {
        self.lane_of(account).map(|lane| lane.id)
    }

    /// The queue's account gets this lane, and has pinned these routes.
    pub(in super::super) fn add_lane(&mut self, no: QueueNo, lane: LaneId, routes: RoutesNo) {
        let account = self.at(no).account;
        let at = place(lane.0);
        if self.by_lane.len() <= at {
            self.by_lane.resize(at + 1, account);
        }
        if let Some(of) = self.by_lane.get_mut(at) {
            *of = account;
        }
        let account = account_mut(&mut self.accounts, account);
        assert!(account.lane.is_none(), "an account has two lanes");
        account.lane = Some(Box::new(Lane::new(lane, routes)));
    }

    /// The lane with this number, and its account.
    ///
    /// # Panics
    /// There is none: the scheduler knows one that is gone.
    pub(in super::super) fn lane(&self, id: LaneId) -> (&AccountId, &Lane) {
        let account = account_at(&self.accounts, self.account_of_lane(id));
        match &account.lane {
            Some(lane) if lane.id == id => (&account.id, lane),
            Some(_) | None => panic!("{id:?} is gone, and the scheduler knows it"),
        }
    }

    fn account_of_lane(&self, id: LaneId) -> AccountNo {
        match self.by_lane.get(place(id.0)) {
            Some(account) => *account,
            None => panic!("{id:?} was never an account's, and the scheduler knows it"),
        }
    }

    fn lane_mut(&mut self, id: LaneId) -> &mut Lane {
        let account = self.account_of_lane(id);
        let account = account_mut(&mut self.accounts, account);
        match &mut account.lane {
            Some(lane) if lane.id == id => lane,
            Some(_) | None => panic!("{id:?} is gone, and the scheduler knows it"),
        }
    }

    /// All lanes.
    pub(in super::super) fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.accounts.iter().flatten().filter_map(|account| account.lane.as_deref())
    }

    /// Whether the lane waits for its account's routes: nothing is sent meanwhile.
    pub(in super::super) fn set_unrouted(&mut self, id: LaneId, unrouted: bool, now: Tick) {
        self.lane_mut(id).unrouted = unrouted;
        self.count_lane(id, now);
    }

    /// It is this lane's turn in the pool: what comes next is its, as soon as a slot is free.
    pub(in super::super) fn set_head(&mut self, pool: Pool, head: Option<LaneId>, now: Tick) {
        let Some(place) = self.heads.get_mut(pool as usize) else { return };
        let before = std::mem::replace(place, head);
        if before == head {
            return;
        }
        for lane in before.into_iter().chain(head) {
            self.count_lane(lane, now);
        }
    }

    /// The queue, whose turn it was, needs room in the pool that is not there: the lane waits for it in line, and the
    /// queue has the first turn then.
    pub(in super::super) fn wait_for_room(
        &mut self,
        (id, no): (LaneId, QueueNo),
        (pool, ticket): (Pool, Ticket),
        now: Tick,
    ) {
        self.in_use(no).join_ring(pool);
        let lane = self.lane_mut(id);
        lane.ring_mut(pool).push_front(no);
        lane.set_room(pool, ForRoom::Waits(ticket));
        self.count_lane(id, now);
    }

    /// The size of the event that the lane would send first from this pool, and the room that it would need there;
    /// `None`: what was to be sent has left memory, say, or belongs to another pool by now.
    pub(in super::super) fn first_in_ring(
        &self,
        id: LaneId,
        pool: Pool,
        now: Tick,
    ) -> Option<(Room, usize)> {
        let (_, lane) = self.lane(id);
        let queue = self.at(*lane.ring(pool).front()?);
        let pending = queue.pending().filter(|pending| pending.is_sendable(now))?;
        let first = pending.first_ready().filter(|_| queue.pool(now) == pool)?;
        Some((Room::of(pool, pending.health().has_answered()), first.held.event.size_bytes()))
    }

    /// Whether the account waits for room in this pool: what is in memory of it is not sent from there, and more would
    /// not be.
    pub(in super::super) fn waits_for_room(&self, account: AccountNo, pool: Pool) -> bool {
        self.lane_in(account).is_some_and(|lane| lane.ticket(pool).is_some())
    }

    /// The lane stands in line no more; `called`: there is room for what it waited for. Whose it is.
    pub(in super::super) fn end_wait(
        &mut self,
        id: LaneId,
        pool: Pool,
        called: bool,
        now: Tick,
    ) -> AccountNo {
        let lane = self.lane_mut(id);
        let Some(ticket) = lane.ticket(pool) else { panic!("{id:?} does not wait in {pool:?}") };
        lane.set_room(pool, if called { ForRoom::Called(ticket) } else { ForRoom::Unasked });
        self.count_lane(id, now);
        self.account_of_lane(id)
    }

    /// The lane, which was called, has its turn in the pool.
    pub(in super::super) fn end_call(&mut self, id: LaneId, pool: Pool) {
        self.lane_mut(id).set_room(pool, ForRoom::Unasked);
    }

    /// The lane is gone, and its number another's soon.
    pub(super) fn forget_head(&mut self, id: LaneId) {
        for head in &mut self.heads {
            *head = head.filter(|head| *head != id);
        }
    }

    /// The lane's clock counts for what holds for it.
    fn count_lane(&mut self, id: LaneId, now: Tick) {
        let is_head = self.heads.contains(&Some(id));
        let gate = self.gate_reading(now);
        let lane = self.lane_mut(id);
        let cause = match lane.unrouted {
            true => Some(Cause::Lookup),
            false => (is_head || lane.waits_for_room()).then_some(Cause::Pool),
        };
        lane.clock.hold(cause, &gate);
    }

    /// Puts the queue into the ring of its pool if something may be sent from it. It may stand in another's too, for it
    /// belonged there: that pool may have no slot for long, and so no turn.
    pub(in super::super) fn refresh(&mut self, no: QueueNo, now: Tick) {
        self.enter(now);
        let queue = self.at(no);
        let (account, pool) = (queue.account, queue.pool(now));
        let Some(pending) = queue.pending() else { return };
        let held = pending.why_held(now);
        if held != pending.counts_for() {
            let below = self.moment(no, now).below;
            self.in_use(no).count_for(held, &below);
        }
        let pending = self.in_use(no);
        if !pending.is_in_ring(pool) && pending.is_sendable(now) {
            pending.join_ring(pool);
            let lane = account_mut(&mut self.accounts, account).lane.as_deref_mut();
            let Some(lane) = lane else { panic!("a queue in memory has no lane") };
            lane.ring_mut(pool).push_back(no);
        }
    }

    /// The queue, which had its turn in the fast pool and waited for a slot of its host, stands in the ring again.
    pub(in super::super) fn end_wait_for_host(&mut self, no: QueueNo) {
        self.lane_at(no).ring_mut(Pool::Fast).push_back(no);
    }

    /// The lane's queues whose endpoints rest.
    pub(in super::super) fn resting_of(&self, id: LaneId, now: Tick) -> Vec<QueueNo> {
        let queues = &account_at(&self.accounts, self.account_of_lane(id)).queues;
        queues.iter().copied().filter(|no| self.is_resting(*no, now)).collect()
    }

    /// Whether nothing is sent of what the queue has in memory, for its endpoint rests.
    pub(in super::super) fn is_resting(&self, no: QueueNo, now: Tick) -> bool {
        self.pending(no).is_some_and(|pending| pending.resting_until(now).is_some())
    }

    /// Looks at all queues of the lane anew.
    pub(in super::super) fn refresh_all(&mut self, id: LaneId, now: Tick) {
        let account = self.account_of_lane(id);
        for at in 0..account_at(&self.accounts, account).queues.len() {
            let queues = &account_at(&self.accounts, account).queues;
            if let Some(no) = queues.get(at).copied() {
                self.refresh(no, now);
            }
        }
    }

    /// The queue whose turn it is in this pool; it leaves the ring, until [`Queues::refresh`].
    ///
    /// `None` leaves the ring empty: every queue in it had become unsendable or changed pools.
    pub(in super::super) fn take_turn(
        &mut self,
        id: LaneId,
        pool: Pool,
        now: Tick,
    ) -> Option<QueueNo> {
        while let Some(no) = self.lane_mut(id).ring_mut(pool).pop_front() {
            let queue = self.at_mut(no);
            let belongs = queue.pool(now);
            let Some(pending) = queue.pending.as_deref_mut() else {
                panic!("{no:?} has a turn and nothing in memory");
            };
            pending.leave_ring(pool);
            if pending.is_sendable(now) && belongs == pool {
                return Some(no);
            }
            self.refresh(no, now);
        }
        None
    }
}
