//! Whether an endpoint is worth a request: a breaker for each queue.
//!
//! ```text
//!                 fails too often                     its time has come
//!        closed ─────────────────► open ─────────────────────────────► probing
//!           ▲                        ▲          the probe failed          │
//!           │                        └────────────────────────────────────┤
//!           └──────────────── a probe brought something through ◄─────────┘
//! ```
//!
//! While it is not closed nothing is sent but probes, one at a time, and what was queued is deferred. A probe is
//! a delivery that waits anyway: the head, or one of another key where the endpoint answers and refuses that one,
//! which it may never take.
//!
//! Probes of all dead endpoints share slots of their own ([`Pool::Probe`]). An endpoint is tried every 4 s at
//! first, for most come back soon, then after a part of the time since it died: who comes back after an hour has
//! lost a two-hundredth of that again, and at most a minute. One that answers, and asks for a wait, is not tried before
//! that, or a minute, is over.
//!
//! [`Pool::Probe`]: crate::schedule::Pool::Probe

use std::time::Duration;

use rand::{Rng, RngExt};

use walhook_core::attempt::DeliveryId;
use walhook_core::tick::Tick;

/// So many requests within [`WINDOW`] say enough about an endpoint.
const REQUESTS_MIN: u32 = 10;

/// Of these, so many in a hundred failed: it opens.
const FAILED_PERCENT: u32 = 70;

/// Of these, so many in a hundred had to be sent again on another connection: it opens although they
/// arrived, for each costs both sides twice.
const RESENT_PERCENT: u32 = 50;

/// So many requests in a row without any answer open it too, however seldom they are.
const UNANSWERED_MAX: u32 = 5;

/// What is remembered, second by second.
const WINDOW: Duration = Duration::from_secs(10);
const SECONDS: usize = 10;

/// A dead endpoint is tried so often for [`SOON`] after it died, and never more often.
const EVERY_MIN: Duration = Duration::from_secs(4);
const SOON: Duration = Duration::from_secs(15 * 60);

/// Then after this part of the time since it died, and at least so often.
const PART_OF_DEAD: u32 = 200;
const EVERY_MAX: Duration = Duration::from_secs(60);

/// A probe has as long as the endpoint's answers used to take and half as much again, and at least this.
const PATIENCE_MIN: Duration = Duration::from_secs(2);

/// Now and then one has all the time that any request has: an endpoint may have become slower. Not in the first
/// quarter of an hour, in which many may be dead at once.
const UNHURRIED_EVERY: Duration = Duration::from_secs(15 * 60);

/// So often in a row is one delivery the probe of an endpoint that does not answer: it may be what it chokes on.
const KEPT_MAX: u32 = 10;

/// What the table says of a breaker is this old at most.
const STORED_EVERY: Duration = Duration::from_secs(60);

/// One that closed so short a time ago had not come back.
const RELAPSE: Duration = Duration::from_secs(60);

/// How a request went, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptHealth {
    /// The endpoint answered as it should.
    Well,
    /// It did not.
    Badly,
    /// It said that it has too much: see [`crate::lane::Health`].
    TooMuch,
    /// It did not answer at all.
    Unanswered,
}

/// How the requests to an endpoint went lately.
#[derive(Debug, Clone, Default)]
pub struct FailureWindow {
    /// The last second in which one ended. A second's place is its remainder.
    last: u64,
    requests: [u32; SECONDS],
    /// What was amiss with them. Most endpoints are well for weeks.
    amiss: Option<Box<[Amiss; SECONDS]>>,
    unanswered: u32,
}

/// Of the requests that ended within one second.
#[derive(Debug, Clone, Copy, Default)]
struct Amiss {
    failed: u32,
    resent: u32,
}

impl FailureWindow {
    /// Takes how a request went, and whether it had to be sent again on another connection. True: the
    /// breaker is to open.
    pub fn note(&mut self, went: AttemptHealth, resent: bool, now: Tick) -> bool {
        if went == AttemptHealth::TooMuch {
            self.unanswered = 0;
            return false;
        }
        let place = self.advance(now.0 / 1_000_000);
        let is_amiss = went != AttemptHealth::Well || resent;
        if let Some(requests) = self.requests.get_mut(place) {
            *requests = requests.saturating_add(1);
        }
        self.unanswered =
            if went == AttemptHealth::Unanswered { self.unanswered.saturating_add(1) } else { 0 };
        if !is_amiss {
            return false;
        }
        let amiss = self.amiss.get_or_insert_default();
        if let Some(amiss) = amiss.get_mut(place) {
            amiss.failed = amiss.failed.saturating_add(u32::from(went != AttemptHealth::Well));
            amiss.resent = amiss.resent.saturating_add(u32::from(resent));
        }
        let requests: u32 = self.requests.iter().sum();
        let failed: u32 = amiss.iter().map(|amiss| amiss.failed).sum();
        let resent: u32 = amiss.iter().map(|amiss| amiss.resent).sum();
        let often = requests >= REQUESTS_MIN
            && (failed * 100 >= requests * FAILED_PERCENT
                || resent * 100 > requests * RESENT_PERCENT);
        often || self.unanswered >= UNANSWERED_MAX
    }

    /// What went well within the second before, or this one, where that is more.
    #[must_use]
    pub fn well_lately(&self, now: Tick) -> u32 {
        let this = now.0 / 1_000_000;
        let well = |second: u64| {
            let place = usize::try_from(second).unwrap_or(0) % SECONDS;
            let failed = self.amiss.as_ref().and_then(|amiss| amiss.get(place));
            let requests = self.requests.get(place).copied().unwrap_or(0);
            requests.saturating_sub(failed.map_or(0, |amiss| amiss.failed))
        };
        let is_known = |second: &u64| *second <= self.last && self.last < second + WINDOW.as_secs();
        [this, this.saturating_sub(1)].into_iter().filter(is_known).map(well).max().unwrap_or(0)
    }

    /// Forgets what is too long ago in this second, and returns its place.
    fn advance(&mut self, second: u64) -> usize {
        let place = |second: u64| usize::try_from(second).unwrap_or(0) % SECONDS;
        let from = self.last.max(second.saturating_sub(WINDOW.as_secs()));
        for passed in from..second {
            let place = place(passed + 1);
            if let Some(requests) = self.requests.get_mut(place) {
                *requests = 0;
            }
            if let Some(amiss) = self.amiss.as_mut().and_then(|amiss| amiss.get_mut(place)) {
                *amiss = Amiss::default();
            }
        }
        self.last = second.max(self.last);
        self.amiss
            .take_if(|amiss| amiss.iter().all(|amiss| amiss.failed == 0 && amiss.resent == 0));
        place(second)
    }
}

/// A breaker that is not closed.
#[derive(Debug, Clone)]
pub struct Breaker {
    /// Since when nothing but probes was sent.
    since: Tick,
    /// Since when the endpoint is dead: earlier, where it only seemed to be back.
    dead_since: Tick,
    /// For how long it was dead by then, where an earlier leader knew that.
    dead_before: Duration,
    stage: Stage,
    probed_at: Option<Tick>,
    /// Before then the endpoint wants no request, as far as that is heeded.
    asked_until: Tick,
    /// From when on the next probe may have all the time it wants; `None`: the first one has.
    unhurried_at: Option<Tick>,
    /// How often in a row the same delivery was the probe.
    kept: u32,
    stored_at: Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing is in memory for it.
    Open(Tick),
    /// This delivery is, and is sent when that moment and its turn have come.
    Probing(DeliveryId, Tick),
}

/// A breaker that closed: the endpoint may have a relapse.
#[derive(Debug, Clone, Copy)]
pub struct Closed {
    at: Tick,
    dead_since: Tick,
    dead_before: Duration,
}

impl Breaker {
    /// It opens; `asked` is the wait that the endpoint asked for, `last` how it closed the last time.
    pub fn open(
        now: Tick,
        asked: Option<Duration>,
        last: Option<Closed>,
        rng: &mut impl Rng,
    ) -> Self {
        let relapse = last.filter(|last| now.since(last.at) < RELAPSE);
        let mut breaker = Self {
            since: now,
            dead_since: relapse.map_or(now, |last| last.dead_since),
            dead_before: relapse.map_or(Duration::ZERO, |last| last.dead_before),
            stage: Stage::Open(now),
            probed_at: None,
            asked_until: now,
            unhurried_at: None,
            kept: 0,
            stored_at: now,
        };
        breaker.stage = Stage::Open(breaker.next(now, asked, rng));
        breaker
    }

    /// It was open under an earlier leader, and the endpoint has been dead for so long.
    ///
    /// Many are, and what that leader tried them with in the last minute is not known: so each is tried at some moment
    /// of the time between two probes, and has all the time that a request has at some moment of a quarter of an hour.
    pub fn recovered(dead_before: Duration, now: Tick, rng: &mut impl Rng) -> Self {
        let unhurried_at = Some(now + spread(UNHURRIED_EVERY, rng));
        let mut breaker = Self { dead_before, unhurried_at, ..Self::open(now, None, None, rng) };
        breaker.stage = Stage::Open(now + spread(breaker.every(now), rng));
        breaker
    }

    /// Since when nothing but probes was sent.
    #[must_use]
    pub fn since(&self) -> Tick {
        self.since
    }

    /// It closes.
    #[must_use]
    pub fn close(&self, now: Tick) -> Closed {
        Closed { at: now, dead_since: self.dead_since, dead_before: self.dead_before }
    }

    /// When the endpoint is tried next, if a slot is free then.
    #[must_use]
    pub fn next_try(&self) -> Tick {
        match self.stage {
            Stage::Open(until) | Stage::Probing(_, until) => until,
        }
    }

    /// When a probe is wanted, while none is in memory.
    #[must_use]
    pub fn open_until(&self) -> Option<Tick> {
        match self.stage {
            Stage::Open(until) => Some(until),
            Stage::Probing(..) => None,
        }
    }

    /// Whether a delivery is wanted as the probe now.
    #[must_use]
    pub fn wants_probe(&self, now: Tick) -> bool {
        self.open_until().is_some_and(|until| until <= now)
    }

    /// The delivery that is the probe.
    #[must_use]
    pub fn probe(&self) -> Option<DeliveryId> {
        match self.stage {
            Stage::Probing(id, _) => Some(id),
            Stage::Open(_) => None,
        }
    }

    /// This delivery is the probe, from now on.
    pub fn begin_probe(&mut self, id: DeliveryId, now: Tick) {
        (self.stage, self.kept) = (Stage::Probing(id, now), 0);
    }

    /// The probe is sent. How long it may take, if not as long as any request: `usual` is how long the
    /// endpoint's answers used to take.
    pub fn sent(
        &mut self,
        usual: Option<Duration>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> Option<Duration> {
        self.probed_at = Some(now);
        let later = |rng: &mut _, from: Tick| from + UNHURRIED_EVERY + spread(UNHURRIED_EVERY, rng);
        // Of one that never answered nobody knows how long that takes.
        let first = usual.map_or(now, |_| later(rng, self.since));
        if now >= *self.unhurried_at.get_or_insert(first) {
            self.unhurried_at = Some(later(rng, now));
            return None;
        }
        Some(usual.map_or(PATIENCE_MIN, |usual| (usual + usual / 2).max(PATIENCE_MIN)))
    }

    /// The probe left memory without an outcome.
    pub fn lose_probe(&mut self) {
        self.stage = Stage::Open(self.next_try());
    }

    /// The probe failed, and the endpoint `asked` for a wait. Says when the next one is sent, and whether it is the same
    /// delivery, which it may be where `may_keep`.
    pub fn fail(
        &mut self,
        may_keep: bool,
        asked: Option<Duration>,
        now: Tick,
        rng: &mut impl Rng,
    ) -> (Tick, bool) {
        let until = self.next(now, asked, rng);
        self.kept += 1;
        let keeps = may_keep && self.kept < KEPT_MAX;
        self.stage = match self.stage {
            Stage::Probing(id, _) if keeps => Stage::Probing(id, until),
            Stage::Probing(..) | Stage::Open(_) => Stage::Open(until),
        };
        (until, keeps)
    }

    /// Whether the wait that the endpoint asked for is not over.
    #[must_use]
    pub fn is_asked_to_wait(&self, now: Tick) -> bool {
        now < self.asked_until
    }

    /// Somebody believes that the endpoint is well again. Says when it is tried, where that is earlier than it
    /// was to be.
    pub fn bring_forward(&mut self, now: Tick) -> Option<Tick> {
        let soonest = self.probed_at.map_or(now, |at| now.max(at + EVERY_MIN));
        let until = match &mut self.stage {
            Stage::Open(until) | Stage::Probing(_, until) => until,
        };
        if *until <= soonest {
            return None;
        }
        *until = soonest;
        Some(soonest)
    }

    /// Whether what the table says of it is to be written anew, which it is then.
    pub fn is_stale(&mut self, now: Tick) -> bool {
        let stale = now.since(self.stored_at) >= STORED_EVERY;
        if stale {
            self.stored_at = now;
        }
        stale
    }

    /// How often it is tried now.
    fn every(&self, now: Tick) -> Duration {
        let dead = self.dead_before + now.since(self.dead_since);
        if dead < SOON { EVERY_MIN } else { (dead / PART_OF_DEAD).clamp(EVERY_MIN, EVERY_MAX) }
    }

    fn next(&mut self, now: Tick, asked: Option<Duration>, rng: &mut impl Rng) -> Tick {
        let every = self.every(now);
        // A little less, so that many endpoints on one server are not all tried at once.
        let every = every - spread(every / 4, rng);
        self.asked_until = now + asked.unwrap_or_default().min(EVERY_MAX);
        self.asked_until.max(now + every)
    }
}

/// Some part of it.
fn spread(whole: Duration, rng: &mut impl Rng) -> Duration {
    rng.random_range(Duration::ZERO..=whole)
}

#[cfg(test)]
mod tests;
