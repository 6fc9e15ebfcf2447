//! What large events in flight may take of memory.
//!
//! What waits can give way as memory fills, and what is in flight cannot. So receivers that take no large event and
//! never answer would hold all of it, and the stream would stand still for everybody.
//!
//! Each slot has its share of an eighth of the memory. A request whose event is larger needs room beside its slot, which
//! each pool has of its own, and the slow pool two: half of its room is for endpoints that have answered the last large
//! event, half for the others, and for what moves there because it is not answered in time. So who waits beside
//! receivers that hang waits for those alone who answer.
//!
//! An account that finds no room waits in line, with all that it would send from that pool. The others are not concerned.
//! As slots are, the room of the fast pool is given back after a second: to the slow pool's, or, where that has none
//! and somebody waits, by giving the request up.
//!
//! All rooms together are 13 of 32 parts of the memory. With the slots' shares and the eighth that counts in any case
//! that is less than where making room ends ([`super::memory_budget`]): what is in flight has nobody give way.
//!
//! # Invariants
//!
//! - What requests in flight have taken stays within a room, but for one whose event is larger than all of it, which
//!   goes alone.
//! - Who comes later with a large event does not pass those in line.
//! - Whoever stands in line needs that room: who needs none any more has left it.

use std::collections::BTreeMap;

use super::super::schedule::{LaneId, Pool};

/// The part of the memory whose shares slots have: one in so many.
const SHARED: usize = 8;

/// The parts of the memory that rooms are counted in.
const PARTS: usize = 32;

/// One of the rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// The fast pool's.
    Fast,
    /// The slow pool's, for endpoints that have answered the last large event.
    Answering,
    /// The slow pool's, for the others.
    Silent,
    /// That of probes.
    Probe,
}

impl Room {
    const ALL: [Self; 4] = [Self::Fast, Self::Answering, Self::Silent, Self::Probe];

    /// That of a request from the pool to an endpoint that has answered the last large event, or has not.
    pub(super) fn of(pool: Pool, answered: bool) -> Self {
        match pool {
            Pool::Fast => Self::Fast,
            Pool::Slow if answered => Self::Answering,
            Pool::Slow => Self::Silent,
            Pool::Probe => Self::Probe,
        }
    }

    /// The rooms of the pool.
    pub(super) fn of_pool(pool: Pool) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |room| {
            pool == match room {
                Self::Fast => Pool::Fast,
                Self::Answering | Self::Silent => Pool::Slow,
                Self::Probe => Pool::Probe,
            }
        })
    }

    /// How many parts of the memory it has.
    fn parts(self) -> usize {
        match self {
            Self::Fast => 6,
            Self::Answering | Self::Silent => 3,
            Self::Probe => 1,
        }
    }
}

/// What a request takes beside its slot: so many bytes of a room, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) room: Room,
    pub(super) bytes: usize,
}

/// A place in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) room: Room,
    /// By when it was taken.
    number: u64,
}

#[derive(Debug)]
struct State {
    limit: usize,
    taken: usize,
    /// Of that, what is on its way to be given back: its requests are given up.
    leaving: usize,
    /// The accounts that wait, each with what it needs, by their tickets.
    line: BTreeMap<u64, (LaneId, usize)>,
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        self.taken == 0 || self.taken + bytes <= self.limit
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Rooms {
    memory_limit: usize,
    /// A slot's share.
    share: usize,
    rooms: [State; Room::ALL.len()],
    /// In all lines.
    waiting: usize,
    /// Who comes next to a line has this number.
    next: u64,
}

impl Rooms {
    /// Nothing is taken.
    pub(super) fn new(memory_limit: usize, slots: u32) -> Self {
        let rooms = Room::ALL.map(|room| {
            let limit = memory_limit / PARTS * room.parts();
            State { limit, taken: 0, leaving: 0, line: BTreeMap::new() }
        });
        let mut rooms = Self { memory_limit, share: 0, rooms, waiting: 0, next: 0 };
        rooms.set_slots(slots);
        rooms
    }

    /// There are so many slots, of all pools.
    pub(super) fn set_slots(&mut self, slots: u32) {
        let slots = usize::try_from(slots.max(1)).unwrap_or(usize::MAX);
        self.share = self.memory_limit / SHARED / slots;
    }

    /// What a request with an event of so many bytes needs beside its slot, there; `None`: nothing.
    pub(super) fn need(&self, room: Room, bytes: usize) -> Option<Need> {
        (bytes > self.share).then_some(Need { room, bytes })
    }

    /// Whether there is room for it, and nobody is before it in line.
    pub(super) fn has(&self, need: Need) -> bool {
        let room = self.room(need.room);
        room.line.is_empty() && room.fits(need.bytes)
    }

    /// Whether there is room for one that was called from the line.
    pub(super) fn has_for_called(&self, need: Need) -> bool {
        self.room(need.room).fits(need.bytes)
    }

    pub(super) fn take(&mut self, need: Need) {
        self.room_mut(need.room).taken += need.bytes;
    }

    /// A request that took so much has ended, or left the room; `was_leaving`: it was given up.
    ///
    /// # Panics
    /// It was not taken.
    pub(super) fn give_back(&mut self, need: Need, was_leaving: bool) {
        let room = self.room_mut(need.room);
        assert!(room.taken >= need.bytes, "room is given back that was not taken");
        room.taken -= need.bytes;
        room.leaving -= if was_leaving { need.bytes } else { 0 };
    }

    /// A request that took so much is given up.
    pub(super) fn note_leaving(&mut self, need: Need) {
        self.room_mut(need.room).leaving += need.bytes;
    }

    /// Whether somebody waits for more than is free, or will be.
    pub(super) fn is_wanted(&self, room: Room) -> bool {
        let room = self.room(room);
        let stays = room.taken - room.leaving;
        let first = room.line.first_key_value();
        first.is_some_and(|(_, (_, bytes))| stays > 0 && stays + bytes > room.limit)
    }

    /// The account waits, where it stood before, or at the end of the line.
    pub(super) fn wait(&mut self, need: Need, lane: LaneId, before: Option<Ticket>) -> Ticket {
        let ticket = before.filter(|ticket| ticket.room == need.room).unwrap_or_else(|| {
            self.next += 1;
            Ticket { room: need.room, number: self.next }
        });
        let before = self.room_mut(need.room).line.insert(ticket.number, (lane, need.bytes));
        assert!(before.is_none(), "{ticket:?} is in line twice");
        self.waiting += 1;
        ticket
    }

    /// The account with this ticket needs so much by now; where that is nothing of this room, it leaves the line.
    /// Whether it does.
    pub(super) fn renew(&mut self, ticket: Ticket, need: Option<Need>) -> bool {
        let line = &mut self.room_mut(ticket.room).line;
        let Some((_, bytes)) = line.get_mut(&ticket.number) else {
            panic!("{ticket:?} is in no line");
        };
        if let Some(need) = need.filter(|need| need.room == ticket.room) {
            *bytes = need.bytes;
            return false;
        }
        line.remove(&ticket.number);
        self.waiting -= 1;
        true
    }

    /// The account that has waited longest, where there is room for it. It stands in line no more.
    pub(super) fn call(&mut self, room: Room) -> Option<LaneId> {
        let room = self.room_mut(room);
        let (number, (lane, bytes)) = room.line.first_key_value()?;
        let (number, lane) = (*number, *lane);
        if !room.fits(*bytes) {
            return None;
        }
        room.line.remove(&number);
        self.waiting -= 1;
        Some(lane)
    }

    /// Whether anybody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting > 0
    }

    fn room(&self, room: Room) -> &State {
        let [fast, answering, silent, probe] = &self.rooms;
        match room {
            Room::Fast => fast,
            Room::Answering => answering,
            Room::Silent => silent,
            Room::Probe => probe,
        }
    }

    fn room_mut(&mut self, room: Room) -> &mut State {
        let [fast, answering, silent, probe] = &mut self.rooms;
        match room {
            Room::Fast => fast,
            Room::Answering => answering,
            Room::Silent => silent,
            Room::Probe => probe,
        }
    }
}

#[cfg(test)]
mod tests;
