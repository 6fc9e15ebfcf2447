//! Attempts given to sessions, and handed back once.

use super::session::Flight;
use super::{Ending, First, Fleet, FleetEffect, Where};
use crate::frame::SessionId;
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};

impl Fleet {
    /// A session is to have an attempt, perhaps for a second opinion.
    pub(super) fn give(
        &mut self,
        to: SessionId,
        attempt: Attempt,
        bytes: u64,
        first: Option<Box<First>>,
    ) {
        let key = self.next_key;
        self.next_key += 1;
        let delivery = attempt.first().id;
        self.unreserve(delivery);
        let Some(session) = self.sessions.get_mut(&to) else {
            unreachable!("a session that was just picked is there");
        };
        let had_room = session.has_bytes();
        session.take(
            key,
            Flight {
                attempt,
                bytes,
                seq: None,
                placed: self.now,
                taken: None,
                old: false,
                first,
                earlier: false,
            },
        );
        self.slots_changed |=
            had_room != session.has_bytes() || session.holds_only(false, self.now);
        self.placed.insert(delivery, Where::Session(to, key));
        self.ready.insert(to);
    }

    /// Hands an attempt back. The one place that does.
    pub(super) fn end(
        &mut self,
        delivery: DeliveryId,
        ending: Ending,
        overhead: Option<std::time::Duration>,
    ) {
        self.placed.remove(&delivery);
        match ending {
            Ending::Unsent => self.counters.unsent += 1,
            Ending::Lost { .. } => self.counters.lost += 1,
            Ending::Outcome(_) => {}
        }
        self.left.push_back(FleetEffect::Ended { delivery, ending, overhead });
    }

    /// Hands back what nobody has had room for.
    pub(super) fn send_back(&mut self) {
        while let Some((until, delivery)) = self.nobody.front().copied()
            && self.now >= until
        {
            self.nobody.pop_front();
            if matches!(self.placed.get(&delivery), Some(Where::Nobody)) {
                self.end(delivery, Ending::Unsent, None);
            }
        }
    }

    /// Takes a flight out of its session.
    pub(super) fn take_back(&mut self, session: SessionId, key: u64) -> Option<Flight> {
        let found = self.sessions.get_mut(&session)?;
        let had_room = found.has_bytes();
        let flight = found.give_back(key)?;
        self.slots_changed |=
            had_room != found.has_bytes() || found.holds_only(false, self.now) || flight.earlier;
        Some(flight)
    }

    pub(super) fn abort(&mut self, delivery: DeliveryId) {
        self.unreserve(delivery);
        let (session, key) = match self.placed.get(&delivery) {
            Some(Where::Session(session, key)) => (*session, *key),
            Some(Where::Nobody | Where::Held) => return self.end(delivery, Ending::Unsent, None),
            Some(Where::Local(_) | Where::LocalInstead(_)) | None => return,
        };
        let Some(flight) = self.take_back(session, key) else {
            unreachable!("an attempt with a session is among its flights");
        };
        if flight.seq.is_some()
            && let Some(found) = self.sessions.get_mut(&session)
        {
            found.aborts.push_back(key);
            self.ready.insert(session);
        }
        let detail = "given up by walhook: a probe that took too long, too many endpoints hang at once, or others wait for its room";
        let outcome = Outcome::failed(FailureKind::Aborted, detail, self.now.since(flight.placed));
        self.end(delivery, Ending::Outcome(outcome), None);
    }

    /// The packer has left an attempt out of its frame.
    pub(super) fn refused(&mut self, session: SessionId, key: u64, outcome: Outcome) {
        // Where it has come back already, its delivery may be with another.
        match self.take_back(session, key) {
            Some(flight) => self.end(flight.attempt.first().id, Ending::Outcome(outcome), None),
            None => self.counters.late += 1,
        }
    }

    pub(super) fn ended_here(&mut self, delivery: DeliveryId, outcome: Outcome) {
        match self.placed.remove(&delivery) {
            Some(Where::LocalInstead(key)) => self.ended_instead(delivery, key, outcome),
            Some(Where::Local(first)) => {
                self.judge(&first, &outcome);
                self.end(delivery, Ending::Outcome(first.joined(outcome)), None);
            }
            Some(Where::Session(..) | Where::Nobody | Where::Held) | None => {
                unreachable!("what the leader carries for the fleet is with it until then")
            }
        }
    }
}
