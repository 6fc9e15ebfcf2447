//! One endpoint's pending deliveries: which may be sent, and which stand behind another.

mod standing;

use std::collections::BTreeSet;

use rand::Rng;

use super::delivery::{Origin, Pending, Removed};
use super::health::Health;
use super::rest::{Lacking, Rest};
use super::{Moment, New, Source};
use crate::clock::{Clock, Reading};
use crate::few::{FewMap, FewSet};
use crate::schedule::Pool;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{EndpointId, RowKeys};
use walhook_core::heap::{block, map_entry};
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// What a queue takes beside its deliveries: itself, and its place among the lane's.
pub const QUEUE_BYTES: usize =
    block(size_of::<Queue>()) + map_entry(size_of::<EndpointId>() + size_of::<Box<Queue>>());

/// Where a queued delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Behind `n` older deliveries that hold one of its keys.
    Behind(usize),
    /// May be sent.
    Ready,
    /// Being sent.
    InFlight,
    /// Failed, and not due before then, for this cause. Holds its keys.
    BackingOff(Tick, Cause),
    /// A dead letter that is not stored yet. Holds its keys: what follows must not overtake it, for
    /// after a crash it would be sent again.
    Dying,
}

#[derive(Debug)]
struct Entry {
    pending: Pending,
    keys: RowKeys,
    stage: Stage,
}

/// One endpoint's pending deliveries.
#[derive(Debug)]
pub struct Queue {
    /// Boxed, for most queues hold one or none, and lists and nodes have room for more.
    entries: FewMap<DeliveryId, Box<Entry>>,
    /// For each ordering key its deliveries, oldest first; the first holds the key. Ordered and not hashed, since
    /// writers choose the rows, and so could choose keys that collide.
    keys: FewSet<(u64, DeliveryId)>,
    ready: FewSet<DeliveryId>,
    in_flight: u32,
    /// Requests of these of which nothing is heard.
    doubtful: u32,
    next_ordinal: u64,
    rest: Rest,
    /// This delivery and later ones are not sent, for now.
    held_from: Option<DeliveryId>,
    health: Health,
    /// What its deliveries wait for that may be sent.
    clock: Clock,
    /// The pools in whose rings of the lane it stands, a bit each: that of the pool to which it belongs, where it may be
    /// sent, and those to which it did, until it has its turn there.
    rings: u8,
}

impl Queue {
    /// An empty one, which counts its deliveries from there on.
    #[must_use]
    pub fn new(first_ordinal: u64) -> Self {
        Self {
            entries: FewMap::default(),
            keys: FewSet::default(),
            ready: FewSet::default(),
            in_flight: 0,
            doubtful: 0,
            next_ordinal: first_ordinal,
            rest: Rest::default(),
            held_from: None,
            health: Health::new(),
            clock: Clock::default(),
            rings: 0,
        }
    }

    /// What the endpoint's answers have taught.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// As [`Queue::health`], to be changed.
    pub fn health_mut(&mut self) -> &mut Health {
        &mut self.health
    }

    /// Whether it stands in a ring of the lane.
    #[must_use]
    pub fn has_turn(&self) -> bool {
        self.rings != 0
    }

    /// Whether it stands in this pool's ring of the lane.
    #[must_use]
    pub fn is_in_ring(&self, pool: Pool) -> bool {
        self.rings & (1 << pool as u8) != 0
    }

    /// It stands in this pool's ring of the lane from now on.
    pub fn join_ring(&mut self, pool: Pool) {
        self.rings |= 1 << pool as u8;
    }

    /// It stands in this pool's ring no longer.
    pub fn leave_ring(&mut self, pool: Pool) {
        self.rings &= !(1 << pool as u8);
    }

    /// The ordinal of the next delivery of the stream.
    pub fn take_ordinal(&mut self) -> u64 {
        self.next_ordinal += 1;
        self.next_ordinal - 1
    }

    /// Adds a delivery behind those that hold one of `keys`. `below`: what the clock of its lane shows.
    ///
    /// `keys` must not name a key twice. Ids must grow from call to call.
    pub fn push(&mut self, new: New, keys: RowKeys, below: &Reading) {
        let counted = new.counted();
        let New { id, held, source, waits, now } = new;
        let (origin, tried) = match source {
            Source::Stream(txn) => (Origin::Stream { txn, ordinal: self.take_ordinal() }, None),
            Source::Deferred { replay, tried } => {
                (Origin::Deferred { replay, insertion: None }, Some(tried))
            }
            Source::Retry { dead_letter, job } => (Origin::Retry { dead_letter, job }, None),
            Source::Replay(replay) => (Origin::Replay(replay), None),
        };
        let attempts = tried.as_ref().map_or(0, |tried| tried.attempts);
        let mut pending = Pending {
            id,
            held,
            origin,
            attempts,
            tried,
            since: now,
            stage_since: now,
            mark: Reading::default(),
            waits,
            counted,
        };

        let last = self.entries.last();
        assert!(last.is_none_or(|last| last < id), "{id:?} comes behind {last:?}");
        let mut behind = 0;
        for key in &keys {
            behind += usize::from(self.holder(*key).is_some());
            assert!(self.keys.insert((*key, id), ()).is_none(), "{id:?} names a key twice");
        }
        let stage = if behind == 0 { Stage::Ready } else { Stage::Behind(behind) };
        if stage == Stage::Ready {
            pending.mark = self.clock.read(below);
            self.ready.insert(id, ());
        }
        self.entries.insert(id, Box::new(Entry { pending, keys, stage }));
    }

    /// The oldest delivery that may be sent.
    #[must_use]
    pub fn first_ready(&self) -> Option<&Pending> {
        self.entries.get(self.next_ready()?).map(|entry| &entry.pending)
    }

    fn next_ready(&self) -> Option<DeliveryId> {
        self.ready.first().filter(|id| self.held_from.is_none_or(|from| *id < from))
    }

    /// Holds this delivery and later ones back; `None`: none.
    pub fn hold_from(&mut self, from: Option<DeliveryId>) {
        self.held_from = from;
    }

    /// Whether one of the stream's deliveries before this one is still pending, in whatever stage.
    #[must_use]
    pub fn owes_before(&self, id: DeliveryId) -> bool {
        let is_owed = |entry: &Entry| matches!(entry.pending.origin, Origin::Stream { .. });
        self.entries.range(..id).any(|(_, entry)| is_owed(entry))
    }

    /// Marks a ready delivery as being sent, and spaces the next one by the row's rate limit.
    pub fn start(&mut self, id: DeliveryId, at: &Moment, rate_per_second: Option<f64>) {
        let reading = self.clock.read(&at.below);
        let entry = self.entry_mut(id);
        assert_eq!(entry.stage, Stage::Ready, "{id:?} is sent, and is not ready");
        entry.stage = Stage::InFlight;
        entry.pending.mark = reading.since(&entry.pending.mark);
        entry.pending.attempts = entry.pending.attempts.saturating_add(1);
        self.ready.remove(id);
        self.in_flight += 1;
        self.rest.space(at.now, rate_per_second);
        self.pace(at.now);
    }

    /// The next request waits, where the endpoint said that it has too much.
    fn pace(&mut self, now: Tick) {
        if let Some(spacing) = self.health.spacing() {
            self.rest.pace(now, spacing);
        }
    }

    /// The endpoint says that a request which began then was too much. Returns until when none is sent, where that is
    /// later than before.
    pub fn slow_down(&mut self, started: Tick, now: Tick) -> Option<Tick> {
        if !self.health.slow_down(started, now) {
            return None;
        }
        self.pace(now);
        self.resting_until(now)
    }

    /// The endpoint took a request.
    pub fn speed_up(&mut self) {
        let waits = !self.ready.is_empty();
        self.health.speed_up(waits);
    }

    /// Spaces the next request as the row says from now on, from the last one on.
    pub fn space_anew(&mut self, rate_per_second: Option<f64>) {
        self.rest.space_anew(rate_per_second);
    }

    /// A delivery in flight failed and will be tried again at `due`; it keeps its keys. What it waited for until now
    /// was told ([`Pending::keep_waits`]).
    pub fn back_off(&mut self, id: DeliveryId, due: Tick) {
        self.wait_until(id, due, Cause::Retry);
    }

    fn wait_until(&mut self, id: DeliveryId, due: Tick, cause: Cause) {
        let entry = self.entry_mut(id);
        assert_eq!(entry.stage, Stage::InFlight, "{id:?} failed, and was not sent");
        entry.stage = Stage::BackingOff(due, cause);
        self.ended();
    }

    /// A delivery in flight was not sent, for want of something of our own. That was no attempt, and
    /// nothing else is sent to the endpoint either before it is tried again.
    ///
    /// `active_us`: what the queue's own clock says. Returns when that is.
    pub fn put_off(
        &mut self,
        id: DeliveryId,
        now: Tick,
        active_us: i64,
        rng: &mut impl Rng,
    ) -> Tick {
        let due = self.rest.put_off(now, active_us, rng);
        let pending = &mut self.entry_mut(id).pending;
        pending.attempts = pending.attempts.saturating_sub(1);
        self.wait_until(id, due, Cause::Pool);
        due
    }

    /// Whether the last request was not sent for want of something of ours.
    #[must_use]
    pub fn is_put_off(&self) -> bool {
        self.rest.is_put_off()
    }

    /// A delivery in flight was not sent: it is where it was before. That was no attempt. What it waited for until now
    /// was told ([`Pending::keep_waits`]).
    pub fn take_back(&mut self, id: DeliveryId, at: &Moment) {
        let reading = self.clock.read(&at.below);
        let entry = self.entry_mut(id);
        assert_eq!(entry.stage, Stage::InFlight, "{id:?} was not sent, and was not to be");
        entry.stage = Stage::Ready;
        entry.pending.mark = reading;
        entry.pending.attempts = entry.pending.attempts.saturating_sub(1);
        self.ready.insert(id, ());
        self.ended();
    }

    /// A request that began then was sent: we have what it takes. Returns since when we had not, where that was so.
    pub fn was_sent(&mut self, started: Tick) -> Option<Lacking> {
        self.rest.was_sent(started)
    }

    /// A delivery ends as a dead letter. It keeps its keys until that is stored and it is removed. Whether it was in
    /// flight.
    pub fn die(&mut self, id: DeliveryId) -> bool {
        let before = std::mem::replace(&mut self.entry_mut(id).stage, Stage::Dying);
        match before {
            Stage::InFlight => self.ended(),
            Stage::Ready => _ = self.ready.remove(id),
            Stage::Behind(_) | Stage::BackingOff(..) => {}
            Stage::Dying => panic!("{id:?} dies twice"),
        }
        before == Stage::InFlight
    }

    /// The deliveries that are neither in flight nor dying, oldest first.
    pub fn idle(&self) -> impl DoubleEndedIterator<Item = &Pending> {
        let idle = |entry: &&Entry| !matches!(entry.stage, Stage::InFlight | Stage::Dying);
        self.entries.values().map(|entry| &**entry).filter(idle).map(|entry| &entry.pending)
    }

    /// The last delivery that may leave memory, of those before `before` where that is given: one that is idle, and
    /// no operator's retry, which is a dead letter meanwhile.
    #[must_use]
    pub fn last_to_leave(&self, before: Option<DeliveryId>) -> Option<DeliveryId> {
        let before = before.unwrap_or(DeliveryId(u64::MAX));
        let may_leave = |entry: &Entry| {
            !matches!(entry.stage, Stage::InFlight | Stage::Dying)
                && !matches!(entry.pending.origin, Origin::Retry { .. })
        };
        let mut earlier = self.entries.range(..before).rev();
        earlier.find(|(_, entry)| may_leave(entry)).map(|(id, _)| id)
    }

    /// The deliveries in flight, oldest first.
    pub fn sent(&self) -> impl Iterator<Item = &Pending> {
        let sent = |entry: &&Entry| entry.stage == Stage::InFlight;
        self.entries.values().map(|entry| &**entry).filter(sent).map(|entry| &entry.pending)
    }

    /// These deliveries and all that stand behind them: that share a key with one of them, or with one
    /// that does. Oldest first; without those that are dying.
    #[must_use]
    pub fn with_those_behind(&self, ids: &[DeliveryId]) -> Vec<DeliveryId> {
        let mut found = Vec::new();
        let (mut open, mut walked) =
            (ids.iter().copied().collect::<BTreeSet<_>>(), BTreeSet::new());
        // Ids are taken in ascending order, so whoever walks a key first finds all that is behind.
        while let Some(next) = open.pop_first() {
            let Some(entry) = self.entries.get(next) else { continue };
            if entry.stage != Stage::Dying {
                found.push(next);
            }
            for key in &entry.keys {
                if walked.insert(*key) {
                    let behind = self.keys.range((*key, next)..=(*key, DeliveryId(u64::MAX)));
                    open.extend(
                        behind.map(|((_, holder), ())| holder).filter(|holder| *holder > next),
                    );
                }
            }
        }
        found
    }

    /// A probe in flight failed. It was no attempt, and it is the next probe too, at `due`.
    pub fn keep_probe(&mut self, id: DeliveryId, due: Tick) {
        let pending = &mut self.entry_mut(id).pending;
        pending.attempts = pending.attempts.saturating_sub(1);
        self.wait_until(id, due, Cause::Breaker);
    }

    /// A probe in flight failed, and another delivery is the next one: this was no attempt of its.
    pub fn drop_probe(&mut self, id: DeliveryId) {
        let pending = &mut self.entry_mut(id).pending;
        pending.attempts = pending.attempts.saturating_sub(1);
    }

    /// A delivery that backs off is due earlier, or when it was. Says whether it backs off.
    pub fn bring_forward(&mut self, id: DeliveryId, due: Tick) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let Stage::BackingOff(until, _) = &mut entry.stage else { return false };
        *until = due.min(*until);
        true
    }

    /// A delivery that backed off is due.
    pub fn due(&mut self, id: DeliveryId, at: &Moment) {
        let reading = self.clock.read(&at.below);
        if let Some(entry) = self.entries.get_mut(id)
            && let Stage::BackingOff(due, cause) = entry.stage
            && due <= at.now
        {
            entry.stage = Stage::Ready;
            entry.pending.end_stage(cause, at.now);
            entry.pending.mark = reading;
            self.ready.insert(id, ());
        }
    }

    /// Looks at a delivery.
    #[must_use]
    pub fn get(&self, id: DeliveryId) -> Option<&Pending> {
        self.entries.get(id).map(|entry| &entry.pending)
    }

    /// Changes a delivery; its id and its event must stay.
    pub fn get_mut(&mut self, id: DeliveryId) -> Option<&mut Pending> {
        self.entries.get_mut(id).map(|entry| &mut entry.pending)
    }

    /// Changes a delivery that is there; its id and its event must stay.
    ///
    /// # Panics
    /// It is not.
    pub fn held_mut(&mut self, id: DeliveryId) -> &mut Pending {
        &mut self.entry_mut(id).pending
    }

    fn entry_mut(&mut self, id: DeliveryId) -> &mut Entry {
        match self.entries.get_mut(id) {
            Some(entry) => entry,
            None => panic!("{id:?} is not in the queue that it was put into"),
        }
    }

    /// A request of the queue is in flight no longer.
    fn ended(&mut self) {
        assert!(self.in_flight > 0, "a request ends, and its queue has none in flight");
        self.in_flight -= 1;
    }

    /// The keys that a delivery holds or waits for.
    #[must_use]
    pub fn keys(&self, id: DeliveryId) -> Option<&RowKeys> {
        self.entries.get(id).map(|entry| &entry.keys)
    }

    /// Takes a delivery out, whatever its stage, and lets the next ones of its keys go.
    pub fn remove(&mut self, id: DeliveryId, at: &Moment) -> Option<Removed> {
        let Entry { pending, keys, stage } = *self.entries.remove(id)?;
        let mut due = None;
        match stage {
            Stage::InFlight => self.ended(),
            Stage::Ready => _ = self.ready.remove(id),
            Stage::BackingOff(until, _) => due = Some(until),
            Stage::Behind(_) | Stage::Dying => {}
        }
        for key in &keys {
            self.release(*key, id, at);
        }
        Some(Removed { pending, keys, due })
    }

    /// Deliveries pending, in whatever stage.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is pending.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Nothing is heard of one of its requests in flight, or something again.
    pub fn doubt(&mut self, doubtful: bool) {
        if doubtful {
            self.doubtful += 1;
            assert!(self.doubtful <= self.in_flight, "more is doubtful than in flight");
        } else {
            assert!(self.doubtful > 0, "a request is doubtful no more that was not");
            self.doubtful -= 1;
        }
    }

    /// Whether something may be sent at this moment.
    #[must_use]
    pub fn is_sendable(&self, now: Tick) -> bool {
        self.next_ready().is_some() && self.why_held(now).is_none()
    }

    /// Why none of its deliveries is sent that may be, as far as the queue itself knows.
    #[must_use]
    pub fn why_held(&self, now: Tick) -> Option<Cause> {
        let is_full = self.in_flight >= self.health.upper_limit()
            || self.in_flight - self.doubtful >= self.health.limit();
        if is_full {
            return Some(Cause::EndpointLimit);
        }
        let is_held = || !self.ready.is_empty() && self.next_ready().is_none();
        self.rest.why(now).or_else(|| is_held().then_some(Cause::State))
    }

    /// The cause that its clock counts for; `None`: what holds for its lane.
    #[must_use]
    pub fn counts_for(&self) -> Option<Cause> {
        self.clock.holds()
    }

    /// Its clock counts for this cause from now on. `below`: what the clock of its lane shows.
    pub fn count_for(&mut self, cause: Option<Cause>, below: &Reading) {
        self.clock.hold(cause, below);
    }

    /// When the next request may go, where that is not now.
    #[must_use]
    pub fn resting_until(&self, now: Tick) -> Option<Tick> {
        self.rest.until(now)
    }

    /// The delivery that holds the key.
    fn holder(&self, key: u64) -> Option<DeliveryId> {
        let first = self.keys.first_from((key, DeliveryId(0)));
        first.filter(|(of, _)| *of == key).map(|(_, id)| id)
    }

    fn release(&mut self, key: u64, id: DeliveryId, at: &Moment) {
        let was_first = self.holder(key) == Some(id);
        assert!(
            self.keys.remove((key, id)).is_some(),
            "{id:?} neither holds its key nor waits for it"
        );
        let Some(next) = self.holder(key).filter(|_| was_first) else { return };
        let clock = self.clock;
        let entry = self.entry_mut(next);
        match entry.stage {
            Stage::Behind(1) => {
                entry.stage = Stage::Ready;
                entry.pending.end_order(at.now);
                entry.pending.mark = clock.read(&at.below);
                self.ready.insert(next, ());
            }
            Stage::Behind(n) => entry.stage = Stage::Behind(n - 1),
            // It died while it was behind.
            Stage::Dying => {}
            Stage::Ready | Stage::InFlight | Stage::BackingOff(..) => {
                panic!("{next:?} went ahead of {id:?}, which held its key")
            }
        }
    }
}
