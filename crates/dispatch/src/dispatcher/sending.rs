//! What is being sent: slots, requests in flight, those that have become old, and what becomes possible at a
//! moment.
//!
//! # Invariants
//!
//! - Each request in flight holds one slot of one pool, and gives it back once, when its outcome comes.
//! - A request from the fast pool that is older than [`FAST_HOLD`] moves to the slow pool as soon as that has
//!   a slot, and room where its event is large (see [`super::rooms`]). Where it has none and fast slots are few, or
//!   somebody waits for the room, it is given up, once.
//! - Whoever waits for the pace of a flood has something in flight, or more pending than little.
//! - A probe is given up at its moment, once: what hangs holds its slot no longer.
//! - A timer may outlive what it was set for; whoever is woken looks.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::super::map::NumberMap;
use super::super::schedule::{Charge, LaneId, Pace, Pool, Scheduler, divided};
use super::hosts::{HostNo, Hosts};
use super::queues::{Lane, QueueNo};
use super::rooms::{Need, Room, Rooms, Ticket};
use walhook_core::attempt::DeliveryId;
use walhook_core::endpoint::Share;
use walhook_core::tick::Tick;

/// A request older than this leaves the fast pool for the slow one.
pub(super) const FAST_HOLD: Duration = Duration::from_secs(1);

/// What becomes possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wake {
    /// A delivery that backed off is due.
    Delivery(QueueNo, DeliveryId),
    /// The endpoint's own rate limit lets the next request go.
    RateLimit(QueueNo),
    /// A row in the table is due.
    Deferred(QueueNo),
}

/// A request under way.
#[derive(Debug)]
struct Request {
    queue: QueueNo,
    charge: Charge,
    /// What its event takes of a room.
    need: Option<Need>,
    /// The host that counts it on its fast slot.
    host: Option<HostNo>,
    started: Tick,
    /// It was given up for the room that it takes.
    leaves: bool,
    outdated: bool,
    /// Nothing is heard of who carries it.
    doubtful: bool,
    /// It was that when it was to be given up as too old.
    spared: bool,
}

/// A request that has ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) queue: QueueNo,
    pub(super) started: Tick,
    /// How long it held its slot.
    pub(super) held_for: Duration,
    /// The endpoint was switched on again meanwhile: that it wants no more is what it said before.
    pub(super) outdated: bool,
    /// Nothing was heard of who carried it.
    pub(super) doubtful: bool,
    /// Its event was large: it took room.
    pub(super) was_large: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sending {
    scheduler: Scheduler,
    /// Of the fast pool, for lanes that are not idle.
    pace: Pace,
    /// Until when the lane whose turn it is waits for the pace, as of the last look.
    paced: Option<Tick>,
    in_flight: NumberMap<DeliveryId, Request>,
    rooms: Rooms,
    hosts: Hosts,
    /// The queues of those that have become old on their fast slots, and have left or are to leave these.
    old: Vec<QueueNo>,
    /// Requests from the fast pool by their start; some have ended.
    ageing: VecDeque<(Tick, DeliveryId)>,
    /// Old ones of large events for which the slow pool had no room, by their start; some have ended.
    large: VecDeque<(Tick, DeliveryId)>,
    /// Probes by when they are given up, each with its start; some have ended.
    probes: BinaryHeap<Reverse<(Tick, DeliveryId, Tick)>>,
    /// Requests to be given up.
    aborting: VecDeque<DeliveryId>,
    timers: BinaryHeap<Reverse<(Tick, Wake)>>,
}

impl Sending {
    /// With so many slots; of those that are not fast an eighth is for probes, 128 at most. Events in flight take what
    /// [`Rooms`] allows of the memory.
    pub(super) fn new(fast_slots: u32, slow_slots: u32, memory_limit: usize) -> Self {
        let (slow, probes) = divided(slow_slots);
        Self {
            scheduler: Scheduler::new(fast_slots, slow, probes),
            pace: Pace::default(),
            paced: None,
            in_flight: NumberMap::default(),
            rooms: Rooms::new(memory_limit, fast_slots.saturating_add(slow_slots)),
            hosts: Hosts::default(),
            old: Vec::new(),
            ageing: VecDeque::new(),
            large: VecDeque::new(),
            probes: BinaryHeap::new(),
            aborting: VecDeque::new(),
            timers: BinaryHeap::new(),
        }
    }

    /// A lane with this share of the slots.
    pub(super) fn add_lane(&mut self, share: impl Into<Share>) -> LaneId {
        self.scheduler.add_lane(share)
    }

    /// The lane's share, from now on.
    pub(super) fn set_share(&mut self, lane: LaneId, share: Share) {
        self.scheduler.set_share(lane, share);
    }

    /// Nothing of the lane is in flight, nor will be.
    pub(super) fn remove_lane(&mut self, lane: LaneId) {
        self.scheduler.remove_lane(lane);
    }

    /// How much of the lane is pending, and from which pools it could send.
    pub(super) fn set_ready(&mut self, id: LaneId, lane: &Lane) {
        self.scheduler.set_pending(id, lane.pending());
        for pool in Pool::ALL {
            self.scheduler.set_ready(id, pool, lane.is_ready_in(pool));
        }
    }

    /// What is said of lanes that wait for the pace is outdated: whoever may send is looked for anew.
    pub(super) fn look_anew(&mut self) {
        self.paced = None;
    }

    /// Whose turn it is, where a slot of the pool is free for it and it has not to wait for the pace.
    pub(super) fn next_lane(&mut self, pool: Pool, now: Tick) -> Option<LaneId> {
        let next = self.scheduler.peek(pool)?;
        let Some(until) = self.pace.until(now).filter(|_| pool == Pool::Fast) else {
            return Some(next);
        };
        let idle = self.scheduler.peek_idle(pool);
        self.paced = idle.is_none().then_some(until);
        idle
    }

    /// Whose turn it is of the idle ones alone, where a slot of the pool is free for it.
    pub(super) fn next_idle(&self, pool: Pool) -> Option<LaneId> {
        self.scheduler.peek_idle(pool)
    }

    /// Whose turn it is, whether a slot is free or not.
    pub(super) fn first_in_line(&self, pool: Pool) -> Option<LaneId> {
        self.scheduler.first_in_line(pool)
    }

    /// What a request with an event of so many bytes needs of that room beside its slot.
    pub(super) fn need(&self, room: Room, bytes: usize) -> Option<Need> {
        self.rooms.need(room, bytes)
    }

    /// Whether there is room for it. Where there is none, the lane, whose turn it is, stands in line from now on;
    /// `called`: where it stood before.
    ///
    /// # Errors
    /// Its place in line.
    pub(super) fn find_room(
        &mut self,
        lane: LaneId,
        need: Need,
        called: Option<Ticket>,
    ) -> Result<(), Ticket> {
        let has = match called {
            Some(ticket) if ticket.room == need.room => self.rooms.has_for_called(need),
            Some(_) | None => self.rooms.has(need),
        };
        if has { Ok(()) } else { Err(self.rooms.wait(need, lane, called)) }
    }

    /// The lane with this ticket needs so much room by now. Whether that is nothing for which it stood in line: it has
    /// left it.
    pub(super) fn renew_need(&mut self, ticket: Ticket, need: Option<Need>) -> bool {
        self.rooms.renew(ticket, need)
    }

    /// Whether a lane waits for room, in whichever pool.
    pub(super) fn is_room_waited_for(&self) -> bool {
        self.rooms.is_waited_for()
    }

    /// The lane that has waited longest in this line, where there is room for it.
    pub(super) fn call_for_room(&mut self, room: Room) -> Option<LaneId> {
        self.rooms.call(room)
    }

    /// A request of the lane is sent from this pool, and takes so much room, which is there. Of its hold time: what is
    /// expected, and what is known.
    pub(super) fn start(
        &mut self,
        (lane, pool): (LaneId, Pool),
        queue: QueueNo,
        (delivery, need): (DeliveryId, Option<Need>),
        (expected, known): (Duration, Option<Duration>),
        now: Tick,
    ) {
        if pool == Pool::Fast && self.scheduler.lane_in_flight(lane) > 0 {
            self.pace.sent(now, known.unwrap_or_default(), self.scheduler.total(pool));
        }
        let charge = self.scheduler.start(lane, pool, expected);
        if let Some(need) = need {
            self.rooms.take(need);
        }
        let (leaves, outdated, doubtful, spared) = Default::default();
        let (started, host) = (now, None);
        let request =
            Request { queue, charge, need, host, started, leaves, outdated, doubtful, spared };
        let before = self.in_flight.insert(delivery, request);
        assert!(before.is_none(), "{delivery:?} is sent while it is in flight");
        if pool == Pool::Fast {
            self.ageing.push_back((now, delivery));
        }
    }

    /// The hosts that hang.
    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// As [`Sending::hosts`], to be changed.
    pub(super) fn hosts_mut(&mut self) -> &mut Hosts {
        &mut self.hosts
    }

    /// The request that has just started counts for this host, while it holds a fast slot.
    pub(super) fn count_for(&mut self, delivery: DeliveryId, host: HostNo) {
        if let Some(request) = self.in_flight.get_mut(&delivery) {
            self.hosts.start(host);
            request.host = Some(host);
        }
    }

    /// One of the queues of which a request has become old on a fast slot, and has left it or is to leave it.
    pub(super) fn take_old(&mut self) -> Option<QueueNo> {
        self.old.pop()
    }

    /// The request is a probe, and is given up at that moment, if it has not ended.
    pub(super) fn give_up_at(&mut self, delivery: DeliveryId, at: Tick) {
        if let Some(request) = self.in_flight.get(&delivery) {
            self.probes.push(Reverse((at, delivery, request.started)));
        }
    }

    /// Gives up the probes whose moment has come.
    pub(super) fn give_up_probes(&mut self, now: Tick) {
        while let Some(Reverse((at, id, started))) = self.probes.peek().copied()
            && at <= now
        {
            self.probes.pop();
            if self.in_flight.get(&id).is_some_and(|request| request.started == started) {
                self.aborting.push_back(id);
            }
        }
    }

    /// The request's outcome has come: its slot is free. `None`: it is not in flight.
    pub(super) fn end(&mut self, delivery: DeliveryId, now: Tick) -> Option<Ended> {
        self.finish(delivery, |started| now.since(started))
    }

    /// The request was not sent after all: its slot is free, and its time costs its lane nothing. `None`: it is not
    /// in flight.
    pub(super) fn withdraw(&mut self, delivery: DeliveryId) -> Option<Ended> {
        self.finish(delivery, |_| Duration::ZERO)
    }

    /// `held_for`: how long it held its slot, by its start.
    fn finish(
        &mut self,
        delivery: DeliveryId,
        held_for: impl FnOnce(Tick) -> Duration,
    ) -> Option<Ended> {
        let Request { queue, charge, need, host, started, leaves, outdated, doubtful, .. } =
            self.in_flight.remove(&delivery)?;
        if let Some(host) = host {
            self.hosts.end(host);
        }
        let held_for = held_for(started);
        if let Some(need) = need {
            self.rooms.give_back(need, leaves);
        }
        self.scheduler.finish(charge, held_for);
        Some(Ended { queue, started, held_for, outdated, doubtful, was_large: need.is_some() })
    }

    /// Nothing is heard of who carries the request, or something again. Whose it is, where that is news.
    pub(super) fn doubt(&mut self, delivery: DeliveryId, doubtful: bool) -> Option<QueueNo> {
        let request = self.in_flight.get_mut(&delivery)?;
        let before = std::mem::replace(&mut request.doubtful, doubtful);
        if !doubtful && std::mem::take(&mut request.spared) {
            self.ageing.push_front((request.started, delivery));
        }
        (before != doubtful).then_some(request.queue)
    }

    /// There are so many slots from now on. Where more are taken, nothing is sent before enough are free.
    pub(super) fn set_slots(&mut self, fast: u32, slow: u32) {
        self.rooms.set_slots(fast.saturating_add(slow));
        let (slow, probes) = if slow == 0 { (0, 0) } else { divided(slow) };
        self.scheduler.set_slots(fast, slow, probes);
    }

    /// How many slots there are in a pool.
    pub(super) fn slots(&self, pool: Pool) -> u32 {
        self.scheduler.total(pool)
    }

    /// How many of these accounts with a backlog may use.
    pub(super) fn usable_slots(&self, pool: Pool) -> u32 {
        self.scheduler.usable(pool)
    }

    /// What requests of these queues that are in flight will say is outdated.
    pub(super) fn outdate(&mut self, queues: &[QueueNo]) {
        for request in self.in_flight.values_mut().filter(|r| queues.contains(&r.queue)) {
            request.outdated = true;
        }
    }

    /// Frees the fast slots of requests that have become old, and their room, as far as the slow pool has such. Where
    /// it has none, many endpoints hang at once; then, when fast slots become few or somebody waits for the room, the
    /// old ones are given up. Not those of which nothing is heard: their endpoints are not to blame, and whoever
    /// carries them is heard of again, or they are lost and sent anew at once.
    pub(super) fn move_old(&mut self, now: Tick) {
        while let Some((started, id)) = self.large.front().copied() {
            if !self.leaves_fast(started, id) {
                break;
            }
            self.large.pop_front();
        }
        while let Some((started, id)) = self.ageing.front().copied() {
            if now.since(started) < FAST_HOLD {
                return;
            }
            if !self.leaves_fast(started, id) {
                if !self.scheduler.has_slow() {
                    // It stays, and those behind it.
                    return;
                }
                self.large.push_back((started, id));
            }
            self.ageing.pop_front();
        }
    }

    /// Moves the old request to the slow pool, or gives it up where it is to go; whether that is all for it.
    fn leaves_fast(&mut self, started: Tick, id: DeliveryId) -> bool {
        let request = self.in_flight.get_mut(&id).filter(|request| request.started == started);
        let Some(request) = request.filter(|request| request.charge.pool() == Pool::Fast) else {
            return true;
        };
        let moved = request.need.map(|need| Need { room: Room::Silent, ..need });
        if moved.is_none_or(|need| self.rooms.has(need))
            && self.scheduler.move_to_slow(&mut request.charge)
        {
            self.old.push(request.queue);
            if let Some(host) = request.host.take() {
                self.hosts.end(host);
            }
            if let Some((need, moved)) = request.need.zip(moved) {
                self.rooms.give_back(need, false);
                self.rooms.take(moved);
                request.need = Some(moved);
            }
            return true;
        }
        if request.doubtful {
            request.spared = true;
            return true;
        }
        let is_wanted = request.need.is_some() && self.rooms.is_wanted(Room::Fast);
        if !is_wanted && !self.scheduler.is_pressed() {
            return false;
        }
        request.leaves = true;
        self.old.push(request.queue);
        if let Some(need) = request.need {
            self.rooms.note_leaving(need);
        }
        self.aborting.push_back(id);
        true
    }

    /// The next request to be given up.
    pub(super) fn take_abort(&mut self) -> Option<DeliveryId> {
        self.aborting.pop_front()
    }

    /// Somebody is to be woken at that moment.
    pub(super) fn wake_at(&mut self, due: Tick, wake: Wake) {
        self.timers.push(Reverse((due, wake)));
    }

    /// The queues whose endpoints rest, and some that did.
    pub(super) fn resting(&self) -> impl Iterator<Item = QueueNo> {
        self.timers.iter().filter_map(|Reverse((_, wake))| match wake {
            Wake::RateLimit(queue) => Some(*queue),
            Wake::Delivery(..) | Wake::Deferred(_) => None,
        })
    }

    /// The next one whose moment has come.
    pub(super) fn take_due(&mut self, now: Tick) -> Option<Wake> {
        let Reverse((due, _)) = self.timers.peek()?;
        if *due > now {
            return None;
        }
        self.timers.pop().map(|Reverse((_, wake))| wake)
    }

    /// Requests in flight.
    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether each request in flight began at that moment or later, and holds a fast slot.
    pub(super) fn has_only_quick_since(&self, since: Tick) -> bool {
        let is_quick = |it: &Request| it.started >= since && it.charge.pool() == Pool::Fast;
        self.in_flight.values().all(is_quick)
    }

    /// Requests that hold a slot of the pool.
    pub(super) fn in_pool(&self, pool: Pool) -> u32 {
        self.scheduler.in_flight(pool)
    }

    /// Of these, those on slots that are reserved for their accounts.
    pub(super) fn covered_in(&self, pool: Pool) -> u32 {
        self.scheduler.covered(pool)
    }

    /// When something becomes possible although nothing comes.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let timer = self.timers.peek().map(|Reverse((due, _))| *due);
        // Where the slow pool is full, only an outcome lets an old request move; or it is given up.
        let room = self.scheduler.has_slow() || self.scheduler.is_pressed();
        let old = self.ageing.front().filter(|_| room).map(|(start, _)| *start + FAST_HOLD);
        let is_wanted = !self.large.is_empty() && self.rooms.is_wanted(Room::Fast);
        let large = is_wanted.then_some(Tick(0));
        let probe = self.probes.peek().map(|Reverse((at, ..))| *at);
        timer.into_iter().chain(old).chain(large).chain(probe).chain(self.paced).min()
    }
}

#[cfg(test)]
mod tests;
