//! The bytes of requests that a worker may hold, and room that is kept for one that finds none.
//!
//! A large request fits only where much has ended and nothing else has come since, which is never while there are enough
//! small ones. So where it finds no room, and may go nowhere else, a session keeps some for it: others have the rest,
//! which is half of the budget at least, and what it needs is gathered as they end. It is kept for whoever has waited
//! longest, of any size: each comes again and again, and takes over what is kept for one that began to wait later.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Fleet;
use super::session::Session;
use walhook_core::attempt::DeliveryId;
use walhook_core::tick::Tick;

/// Requests that are remembered to wait for room.
const WAITING_MAX: usize = 1 << 16;

/// Since when requests wait for room, and when each came last.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    since: BTreeMap<DeliveryId, (Tick, Tick)>,
    forget_at: Tick,
}

impl Waiting {
    /// A request has found no room. Since when it waits; `None`: too many do.
    fn note(&mut self, delivery: DeliveryId, now: Tick, forget_after: Duration) -> Option<Tick> {
        if now >= self.forget_at {
            self.since.retain(|_, (_, last)| now < *last + forget_after);
            self.forget_at = now + forget_after;
        }
        if self.since.len() >= WAITING_MAX && !self.since.contains_key(&delivery) {
            return None;
        }
        let (since, last) = self.since.entry(delivery).or_insert((now, now));
        *last = now;
        Some(*since)
    }
}

/// What a session keeps for a request.
#[derive(Debug)]
pub(super) struct Reserved {
    delivery: DeliveryId,
    bytes: u64,
    /// When that began to wait.
    since: Tick,
    /// When all has ended that was in flight when it began: the room was there by then, and nobody came for it.
    until: Tick,
}

impl Session {
    /// What others may use of the budget.
    fn open_budget(&self) -> u64 {
        let kept = self.reserved.as_ref().map_or(0, |reserved| reserved.bytes);
        self.budget - kept.min(self.budget / 2)
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.bytes < self.open_budget()
    }

    /// Whether a request of so many bytes fits; one always does.
    pub(super) fn fits(&self, delivery: DeliveryId, bytes: u64) -> bool {
        match &self.reserved {
            // Where it takes more than half of the budget, the budget is exceeded by it.
            Some(reserved) if reserved.delivery == delivery => {
                self.flights.is_empty() || self.bytes <= self.open_budget()
            }
            None if self.flights.is_empty() => true,
            Some(_) | None => self.bytes.saturating_add(bytes) <= self.open_budget(),
        }
    }

    /// Keeps no room any more for what did not come for it in time.
    pub(super) fn open_room(&mut self, now: Tick) {
        self.reserved.take_if(|reserved| now >= reserved.until);
    }

    pub(super) fn room_due(&self, now: Tick) -> Option<Tick> {
        self.reserved.as_ref().map(|reserved| reserved.until).filter(|until| now < *until)
    }
}

impl Fleet {
    /// Has a session keep room for a request that nobody had any for.
    pub(super) fn reserve(&mut self, delivery: DeliveryId, bytes: u64) {
        let (now, all_serve) = (self.now, self.all_serve());
        let patience = self.settings.timeout + self.settings.lease;
        let Some(since) = self.waiting.note(delivery, now, patience) else { return };
        let holds = |session: &Session| {
            session.is_open() && session.reserved.as_ref().is_some_and(|it| it.delivery == delivery)
        };
        if self.sessions.values().any(holds) {
            return;
        }
        let may = |session: &&mut Session| {
            let serves = session.is_open() && session.has_slots();
            serves
                && !session.health.is_kept(all_serve, now)
                && session.reserved.as_ref().is_none_or(|it| since < it.since)
                && !session.fits(delivery, bytes)
        };
        let sessions = self.sessions.values_mut().filter(may);
        let Some(session) = sessions.min_by_key(|it| (it.reserved.is_some(), it.bytes)) else {
            return;
        };
        let until = now + patience;
        session.reserved = Some(Reserved { delivery, bytes, since, until });
        self.due = self.due.min(until);
        self.slots_changed = true;
    }

    /// No room is to be kept for a request any more: it has some, or needs none.
    pub(super) fn unreserve(&mut self, delivery: DeliveryId) {
        if self.waiting.since.remove(&delivery).is_none() {
            return;
        }
        for session in self.sessions.values_mut() {
            let reserved = &mut session.reserved;
            self.slots_changed |= reserved.take_if(|it| it.delivery == delivery).is_some();
        }
    }
}
