//! What large events in flight may take of memory.
//!
//! What waits can give way as memory fills, and what is in flight cannot. So receivers that take no large event and
//! never answer would hold all of it, and the stream would stand still for everybody.
//!
//! Each slot has its share of an eighth of the memory. A request whose event is larger needs room beside its slot,
//! within what its pool has: a quarter of the memory in the fast pool and in the slow one, a sixteenth for probes.
//! An account that finds none waits in line, with all that it would send from that pool. The others are not concerned.
//! As slots are, the room of the fast pool is given back after a second: to the slow pool's, or, where that has none
//! and somebody waits, by giving the request up.
//!
//! # Invariants
//!
//! - What requests in flight have taken stays within a pool's room, but for one whose event is larger than all of it,
//!   which goes alone.
//! - Who comes later with a large event does not pass those in line.
//! - Whoever stands in line needs room: who needs none any more has left it.

use std::collections::BTreeMap;

use super::super::schedule::{LaneId, POOLS, Pool};

/// The part of the memory whose shares slots have: one in so many.
const SHARED: usize = 8;

/// A place in a line, by when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Debug, Default)]
struct Room {
    limit: usize,
    taken: usize,
    /// Of that, what is on its way to be given back: its requests are given up.
    leaving: usize,
    /// The accounts that wait, each with what it needs.
    line: BTreeMap<Ticket, (LaneId, usize)>,
}

impl Room {
    fn fits(&self, needs: usize) -> bool {
        self.taken == 0 || self.taken + needs <= self.limit
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rooms {
    memory_limit: usize,
    /// A slot's share.
    share: usize,
    rooms: [Room; POOLS],
    /// Who comes next to a line has this one.
    next: Ticket,
}

impl Rooms {
    /// Nothing is taken.
    pub(super) fn new(memory_limit: usize, slots: u32) -> Self {
        let room = |part| Room { limit: memory_limit / part, ..Room::default() };
        let rooms = Pool::ALL.map(|pool| match pool {
            Pool::Fast | Pool::Slow => room(4),
            Pool::Probe => room(16),
        });
        let mut rooms = Self { memory_limit, share: 0, rooms, next: Ticket(0) };
        rooms.set_slots(slots);
        rooms
    }

    /// There are so many slots, of all pools.
    pub(super) fn set_slots(&mut self, slots: u32) {
        let slots = usize::try_from(slots.max(1)).unwrap_or(usize::MAX);
        self.share = self.memory_limit / SHARED / slots;
    }

    /// What a request with an event of so many bytes needs beside its slot.
    pub(super) fn needs(&self, bytes: usize) -> usize {
        if bytes <= self.share { 0 } else { bytes }
    }

    /// Whether the pool has room for a request that needs so much, and nobody is before it in line.
    pub(super) fn has(&self, pool: Pool, needs: usize) -> bool {
        needs == 0 || self.room(pool).line.is_empty() && self.room(pool).fits(needs)
    }

    /// As [`Rooms::has`], for one that was called from the line.
    pub(super) fn has_for_called(&self, pool: Pool, needs: usize) -> bool {
        needs == 0 || self.room(pool).fits(needs)
    }

    pub(super) fn take(&mut self, pool: Pool, needs: usize) {
        self.room_mut(pool).taken += needs;
    }

    /// A request that took so much has ended, or left the pool; `was_leaving`: it was given up.
    ///
    /// # Panics
    /// It was not taken.
    pub(super) fn give_back(&mut self, pool: Pool, needs: usize, was_leaving: bool) {
        let room = self.room_mut(pool);
        assert!(room.taken >= needs, "room is given back that was not taken");
        room.taken -= needs;
        room.leaving -= if was_leaving { needs } else { 0 };
    }

    /// A request of the pool that took so much is given up.
    pub(super) fn note_leaving(&mut self, pool: Pool, needs: usize) {
        self.room_mut(pool).leaving += needs;
    }

    /// Whether somebody waits in the pool for more than is free, or will be.
    pub(super) fn is_wanted(&self, pool: Pool) -> bool {
        let room = self.room(pool);
        let stays = room.taken - room.leaving;
        let first = room.line.first_key_value();
        first.is_some_and(|(_, (_, needs))| stays > 0 && stays + needs > room.limit)
    }

    /// The account waits, where it stood before, or at the end of the line.
    pub(super) fn wait(
        &mut self,
        pool: Pool,
        lane: LaneId,
        needs: usize,
        before: Option<Ticket>,
    ) -> Ticket {
        let ticket = before.unwrap_or(self.next);
        self.next = Ticket(self.next.0.max(ticket.0 + 1));
        self.room_mut(pool).line.insert(ticket, (lane, needs));
        ticket
    }

    /// The account with this ticket needs so much by now; nothing: it leaves the line.
    pub(super) fn set_needs(&mut self, pool: Pool, ticket: Ticket, needs: usize) {
        let line = &mut self.room_mut(pool).line;
        match line.get_mut(&ticket) {
            None => panic!("{ticket:?} is not in the line of {pool:?}"),
            Some(_) if needs == 0 => _ = line.remove(&ticket),
            Some((_, needed)) => *needed = needs,
        }
    }

    /// The account that has waited longest, where there is room for it. It stands in line no more.
    pub(super) fn call(&mut self, pool: Pool) -> Option<LaneId> {
        let room = self.room_mut(pool);
        let (ticket, (lane, needs)) = room.line.first_key_value()?;
        let (ticket, lane) = (*ticket, *lane);
        if !room.fits(*needs) {
            return None;
        }
        room.line.remove(&ticket);
        Some(lane)
    }

    /// Whether anybody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.rooms.iter().any(|room| !room.line.is_empty())
    }

    fn room(&self, pool: Pool) -> &Room {
        let [fast, slow, probe] = &self.rooms;
        match pool {
            Pool::Fast => fast,
            Pool::Slow => slow,
            Pool::Probe => probe,
        }
    }

    fn room_mut(&mut self, pool: Pool) -> &mut Room {
        let [fast, slow, probe] = &mut self.rooms;
        match pool {
            Pool::Fast => fast,
            Pool::Slow => slow,
            Pool::Probe => probe,
        }
    }
}

#[cfg(test)]
mod tests;
