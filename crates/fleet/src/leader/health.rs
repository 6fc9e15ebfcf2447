//! Whether a worker is worth the work that it gets: what it could not send and others could, whether what becomes of
//! its requests is heard, and how long bus and worker take beside the requests themselves.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::Slots;
use walhook_core::event::AccountId;
use walhook_core::tick::{Tick, micros};

/// What became of a worker's requests counts for so long.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Of that, the last so many.
const REMEMBERED_MAX: usize = 256;

/// So many failures that were a worker's own put it into quarantine, where they are at least half of what became of its
/// requests.
const MARKS: usize = 5;

/// And where they are of so many accounts, or it reached nobody at all: what one customer's endpoints do to it does not
/// keep it from all others.
const ACCOUNTS: usize = 3;

/// So many endpoints that failed, of so many accounts as above, put a worker into quarantine where it has reached nobody
/// since the first of them, not longer ago than this, and nobody else could be asked.
const ALONE: usize = 5;
const ALONE_WITHIN: Duration = Duration::from_secs(60);

/// The first quarantine. Each that follows one within its own length takes twice as long, up to [`QUARANTINE_MAX`].
const QUARANTINE: Duration = Duration::from_secs(30);

/// The longest.
const QUARANTINE_MAX: Duration = Duration::from_secs(600);

/// A worker that takes longer beside its requests is a slow one: longer than the way there and back, which is the least
/// that was seen of late.
const SLOW: Duration = Duration::from_millis(100);

/// No way is longer.
const FAR: Duration = Duration::from_millis(500);

/// The least is that of so long, and of as long before.
const LEAST_OF: Duration = Duration::from_secs(30);

/// Of the average so much is the last one's.
const WEIGHT: u32 = 16;

/// The share of its slots that a worker is given, in thousandths: all of them.
const WHOLE: u64 = 1_000;

/// The least: it shows whether it has become faster.
const LEAST: u64 = 62;

/// What comes back each second.
const REGAINED_PER_SECOND: u64 = 100;

/// It is halved so often at most, so that a change can show.
const HALVED_EVERY: Duration = Duration::from_secs(1);

/// For how long a worker is given little, and how long it is the next time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quarantine {
    until: Tick,
    length: Duration,
    /// It is mute: nothing was heard of what became of its requests. When its time is over it is on trial until
    /// something is.
    mute: bool,
    /// It reached nobody, and has not since.
    cut_off: bool,
}

impl Quarantine {
    /// One that is mute is on trial from now on.
    pub(super) fn try_mute(&mut self, now: Tick) {
        if self.mute {
            self.until = self.until.min(now);
        }
    }

    /// Whether it makes a difference: it is not over, or the next one would be longer for it. One that ends with a
    /// trial is not remembered for ever, for there may be no such worker any more.
    pub(super) fn counts(&self, now: Tick) -> bool {
        now < self.until + if self.mute { QUARANTINE_MAX } else { self.length }
    }
}

/// What a request says of its worker.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It could not be sent there, and could elsewhere. It was of this account.
    Own(AccountId),
    /// It could be sent nowhere.
    Shared,
    /// It reached its endpoint.
    Reached,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When that became known of its last requests.
    judged: VecDeque<(Tick, Verdict)>,
    /// Accounts whose endpoints failed there and did not before, since it reached anybody: nobody else could be asked.
    alone: VecDeque<(Tick, AccountId)>,
    /// The last one. It may be over.
    quarantine: Option<Quarantine>,
    /// The average of what it takes beside requests.
    overhead: Option<Duration>,
    /// The least of that, since when, and the least before.
    least: Option<(Tick, Duration, Duration)>,
    /// The share of its slots when it was last halved, and when that was.
    halved: Option<(u64, Tick)>,
}

impl Health {
    /// Whether it failed by itself, or is mute, not long ago.
    pub(super) fn is_quarantined(&self, now: Tick) -> bool {
        self.is_mute() || self.quarantine.is_some_and(|quarantine| now < quarantine.until)
    }

    /// Whether it is given one attempt at a time at most: a quarantine keeps it from work while another serves, and one
    /// that is mute in any case.
    pub(super) fn is_kept(&self, all_serve: bool, now: Tick) -> bool {
        self.is_mute() || !all_serve && self.is_quarantined(now)
    }

    /// Whether that one is to show that it is heard again, so that it is given it although others could have it.
    pub(super) fn is_on_trial(&self, now: Tick) -> bool {
        self.quarantine.is_some_and(|quarantine| quarantine.mute && now >= quarantine.until)
    }

    pub(super) fn is_mute(&self) -> bool {
        self.quarantine.is_some_and(|quarantine| quarantine.mute)
    }

    pub(super) fn quarantined_for(&self, now: Tick) -> Option<Duration> {
        self.quarantine
            .filter(|quarantine| now < quarantine.until)
            .map(|quarantine| quarantine.length)
    }

    /// The last quarantine, where it makes a difference.
    pub(super) fn quarantine(&self, now: Tick) -> Option<Quarantine> {
        self.quarantine.filter(|quarantine| quarantine.counts(now))
    }

    /// It is the same worker as one that was in quarantine.
    pub(super) fn inherit(&mut self, quarantine: Quarantine) {
        self.quarantine = Some(quarantine);
    }

    /// It was not the same worker. Yes: it still had this one.
    pub(super) fn release(&mut self, quarantine: Quarantine) -> bool {
        self.quarantine.take_if(|it| *it == quarantine).is_some()
    }

    /// Takes what one of its requests says of it. Yes: the worker is put into quarantine with this.
    pub(super) fn judge(&mut self, verdict: Verdict, now: Tick) -> bool {
        // It has one attempt at a time, and is let out when its time is over: what comes then counts.
        if self.is_quarantined(now) {
            return false;
        }
        let is_mark = matches!(verdict, Verdict::Own(_));
        self.judged.push_back((now, verdict));
        while self.judged.len() > REMEMBERED_MAX
            || self.judged.front().is_some_and(|(at, _)| now >= *at + REMEMBERED)
        {
            self.judged.pop_front();
        }
        if !is_mark || !self.fails_by_itself() {
            return false;
        }
        self.put_into_quarantine(now);
        self.judged.clear();
        true
    }

    /// It has reached an endpoint. Yes: it was cut off until now.
    pub(super) fn note_reached(&mut self, now: Tick) -> bool {
        self.judge(Verdict::Reached, now);
        self.alone.clear();
        let quarantine = self.quarantine.as_mut();
        quarantine.is_some_and(|quarantine| std::mem::take(&mut quarantine.cut_off))
    }

    /// It could not send to an endpoint, and nobody else could be asked: of this account, where the endpoint did not fail
    /// before. Yes: the worker is put into quarantine with this, or stays there.
    pub(super) fn note_alone(&mut self, account: Option<AccountId>, now: Tick) -> bool {
        if let Some(quarantine) = self.quarantine.as_mut().filter(|quarantine| quarantine.cut_off) {
            if now >= quarantine.until {
                self.put_into_quarantine(now).cut_off = true;
                return true;
            }
            let ends_soon = now + QUARANTINE / 2 >= quarantine.until;
            if ends_soon {
                quarantine.until = now + QUARANTINE;
            }
            return ends_soon;
        }
        let Some(account) = account.filter(|_| !self.is_quarantined(now)) else { return false };
        self.alone.push_back((now, account));
        while self.alone.len() > REMEMBERED_MAX
            || self.alone.front().is_some_and(|(at, _)| now >= *at + ALONE_WITHIN)
        {
            self.alone.pop_front();
        }
        let accounts: BTreeSet<_> = self.alone.iter().map(|(_, account)| account).collect();
        if self.alone.len() < ALONE || accounts.len() < ACCOUNTS {
            return false;
        }
        self.put_into_quarantine(now).cut_off = true;
        self.alone.clear();
        true
    }

    fn fails_by_itself(&self) -> bool {
        let (mut marks, mut reached, mut accounts) = (0, false, BTreeSet::new());
        for (_, verdict) in &self.judged {
            match verdict {
                Verdict::Own(account) => {
                    marks += 1;
                    accounts.insert(account);
                }
                Verdict::Shared => {}
                Verdict::Reached => reached = true,
            }
        }
        let enough = marks >= MARKS && marks * 2 >= self.judged.len();
        enough && (accounts.len() >= ACCOUNTS || !reached)
    }

    /// What becomes of its requests is not heard.
    pub(super) fn note_mute(&mut self, now: Tick) {
        self.put_into_quarantine(now).mute = true;
    }

    /// What becomes of its requests may be heard again.
    pub(super) fn try_mute(&mut self, now: Tick) {
        self.quarantine.iter_mut().for_each(|quarantine| quarantine.try_mute(now));
    }

    /// What became of a request was heard. Yes: it was mute until now.
    pub(super) fn note_heard(&mut self, now: Tick) -> bool {
        let Some(quarantine) = self.quarantine.as_mut().filter(|quarantine| quarantine.mute) else {
            return false;
        };
        quarantine.mute = false;
        quarantine.until = quarantine.until.min(now);
        true
    }

    fn put_into_quarantine(&mut self, now: Tick) -> &mut Quarantine {
        let length = match self.quarantine {
            Some(last) if last.counts(now) => (last.length * 2).min(QUARANTINE_MAX),
            _ => QUARANTINE,
        };
        let until = now + length;
        self.quarantine.insert(Quarantine { until, length, mute: false, cut_off: false })
    }

    /// Takes what an attempt took beside its request. Yes: its share of slots is halved with this.
    pub(super) fn note_overhead(&mut self, overhead: Duration, now: Tick) -> bool {
        let average = self
            .overhead
            .map_or(overhead, |average| (average * (WEIGHT - 1)).saturating_add(overhead) / WEIGHT);
        self.overhead = Some(average);
        let way = self.note_least(overhead, now).min(FAR);
        if average <= SLOW + way || self.halved.is_some_and(|(_, at)| now < at + HALVED_EVERY) {
            return false;
        }
        self.halved = Some(((self.share(now) / 2).max(LEAST), now));
        true
    }

    /// The least of late, this one included.
    fn note_least(&mut self, overhead: Duration, now: Tick) -> Duration {
        let (since, least, before) = match self.least {
            None => (now, overhead, overhead),
            Some((since, least, _)) if now >= since + LEAST_OF => (now, overhead, least),
            Some((since, least, before)) => (since, least.min(overhead), before),
        };
        self.least = Some((since, least, before));
        least.min(before)
    }

    /// The share of its slots, in thousandths.
    fn share(&self, now: Tick) -> u64 {
        let Some((share, at)) = self.halved else { return WHOLE };
        let seconds = micros(now.since(at)) / 1_000_000;
        share.saturating_add(seconds.saturating_mul(REGAINED_PER_SECOND)).min(WHOLE)
    }

    /// What of its slots it is given.
    pub(super) fn share_of(&self, slots: Slots, now: Tick) -> Slots {
        let share = self.share(now);
        let part = |slots: u32| match share {
            WHOLE => slots,
            _ => u32::try_from((u64::from(slots) * share / WHOLE).max(1)).unwrap_or(slots),
        };
        Slots { fast: part(slots.fast), slow: part(slots.slow) }
    }

    /// When something of it changes by time alone.
    pub(super) fn due(&self, now: Tick) -> Option<Tick> {
        let out = self.quarantine.map(|quarantine| quarantine.until).filter(|until| now < *until);
        let regained = (self.share(now) < WHOLE).then(|| now + Duration::from_secs(1));
        [out, regained].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// One that has a request each 10 ms, and takes so many milliseconds beside each.
    struct Worker {
        health: Health,
        now: Tick,
    }

    impl Worker {
        fn new() -> Self {
            Self { health: Health::default(), now: Tick(0) }
        }

        /// Whether its share is less than the whole after so many requests.
        fn is_slow_after(&mut self, requests: u32, takes_ms: impl Fn(u32) -> u32) -> bool {
            for n in 0..requests {
                self.now = self.now + 10 * MS;
                self.health.note_overhead(takes_ms(n) * MS, self.now);
            }
            self.health.share(self.now) < WHOLE
        }
    }

    #[test]
    fn worker_that_is_far_away_is_not_slow_until_it_takes_longer_than_the_way() {
        let mut far = Worker::new();
        for _ in 0..10 {
            assert!(!far.is_slow_after(100, |n| 150 + n % 30));
        }
        assert!(far.is_slow_after(32, |_| 400));
        far.is_slow_after(200, |_| 160);
        assert!(!far.is_slow_after(1_000, |_| 160), "it has all again");
    }

    #[test]
    fn worker_is_slow_by_how_much_longer_it_takes_than_of_late() {
        for (takes, is_slow) in [(110, false), (200, true)] {
            let mut near = Worker::new();
            assert!(!near.is_slow_after(6_000, |_| 20));
            assert_eq!(near.is_slow_after(100, |_| takes), is_slow, "{takes}");
        }
        assert!(Worker::new().is_slow_after(100, |_| 2_000), "nothing is so far away");
    }
}
