//! More than a week of the default retries: endpoints that are down for hours, for days, for ever, that
//! flap, that refuse some rows, that ask for absurd waits.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::{EndpointChange, EndpointChanged};
use super::world::{ACCOUNTS, Change, FIRST_LSN, Temper, Txn, World, account_for, event};
use super::{Happens, Life, Ordering, RetryPolicy, Settings, SettlePolicy};
use walhook_core::attempt::{Attempt, Meaning, Outcome};
use walhook_core::delivery_log::Keep;
use walhook_core::event::AccountId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DeadReason, QueueId};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

const MEMORY: usize = 1 << 20;

/// Attempts of one delivery in [`Settings::settle`]'s 72 hours while its breaker is closed. Each wait is
/// drawn from zero to its ceiling, so there is no sharp bound: 12 waits double up to the cap of 8 hours,
/// which takes 5.7 hours in the mean; the other 66 hours are 17 waits of 4 hours: 30 attempts in the
/// mean. Twice as many would need waits of half their mean, 30 times over.
const ATTEMPTS_MAX: u32 = 60;

/// A queue sends no more probes than this in an hour while its breaker is open: three quarters of a minute lie
/// between two after the first three hours.
const PROBES_AN_HOUR: u32 = 80;

/// And so many more in those: one in 3 s for 15 minutes, then one in a two-hundredth of the time.
const PROBES_AT_FIRST: u32 = 1_000;

/// What the configuration says by default, with fewer slots.
fn settings() -> Settings {
    Settings {
        memory_limit: MEMORY,
        slice: 256,
        lane_max: 2_048,
        fast_slots: 16,
        slow_slots: 16,
        ordering: Ordering::Row,
        settle: SettlePolicy {
            quick_attempts: 2,
            retry: RetryPolicy::new(Duration::from_secs(10), 8 * HOUR).unwrap(),
            retry_for: 72 * HOUR,
        },
        disable_after: 5 * DAY,
        max_hold: Duration::from_secs(30),
        max_retained: 256 << 20,
        notifies: true,
        state_max: u64::MAX,
        log: Keep::All,
        log_excerpts: true,
    }
}

/// A stream of seven days, to two endpoints of each account.
fn world(rng: &mut SmallRng, transactions: u64) -> World {
    let after = |hours: u32| Tick(0) + hours * HOUR;
    let tempers = [
        Temper::Fast,
        Temper::Refusing,
        Temper::Picky,
        Temper::Down(after(10), after(14)),
        Temper::Flapping,
        Temper::Asking,
        Temper::Down(after(20), after(68)),
        Temper::Hanging,
        Temper::Down(after(24), after(24 * 7)),
        Temper::Slow,
        Temper::Gone,
    ];
    let mut world = World { frontier: Lsn(FIRST_LSN), ..World::default() };
    let mean_us = u64::try_from(7 * DAY.as_micros()).unwrap() / transactions;
    world.pause_us = mean_us / 10..mean_us * 19 / 10;
    let mut changes = Vec::new();
    for n in 0..ACCOUNTS * 2 {
        let (id, account) = (n.to_string(), n % ACCOUNTS);
        changes.push(Change::Endpoint { id: id.clone(), row: Some((account, true)) });
        world.tempers.insert(id, tempers[n as usize % tempers.len()]);
    }
    for t in 0..transactions {
        let end = FIRST_LSN + 1_000 + t * 1_000;
        // Enough at once to open the breakers of what is down.
        let rows = if rng.random_bool(0.005) { 300 } else { rng.random_range(1..4) };
        changes.extend((0..rows).map(|n| Change::Row(event(rng, end - 10, n, 40))));
        world.txns.push(Txn {
            commit_lsn: Lsn(end - 10),
            end_lsn: Lsn(end),
            xid: u32::try_from(t).unwrap() + 3,
            changes: std::mem::take(&mut changes),
        });
    }
    world
}

/// What an onlooker sees of one delivery.
#[derive(Debug, Default)]
struct Tries {
    first_failed: Option<Tick>,
    /// While the breaker was closed.
    attempts: u32,
    not_before: Tick,
}

/// What an onlooker notes.
#[derive(Debug, Default)]
struct Diary {
    tries: BTreeMap<(EventId, QueueId), Tries>,
    /// When each breaker was open; the last time maybe still.
    open: BTreeMap<QueueId, Vec<(Tick, Option<Tick>)>>,
    probes: BTreeMap<QueueId, u32>,
    /// What the crashes may make a clock lose: a breaker is stored at each probe.
    lost: Duration,
    exhausted: u32,
    /// Of these, whose clock had stood still for a day or more.
    stood_still: u32,
    most_attempts: u32,
    attempts: u32,
}

impl Diary {
    fn changed(&mut self, changed: EndpointChanged, now: Tick) {
        let account = changed.account.unwrap_or_else(|| AccountId::new(""));
        let queue = QueueId { account, endpoint: changed.endpoint };
        match changed.change {
            EndpointChange::BreakerOpened => self.open.entry(queue).or_default().push((now, None)),
            EndpointChange::BreakerClosed | EndpointChange::Disabled => self.close(&queue, now),
            EndpointChange::Enabled
            | EndpointChange::Paused
            | EndpointChange::Resumed
            | EndpointChange::Suspended
            | EndpointChange::Unsuspended
            | EndpointChange::Failing
            | EndpointChange::Recovered
            | EndpointChange::Removed => {}
        }
    }

    fn close(&mut self, queue: &QueueId, now: Tick) {
        if let Some((_, until)) = self.open.get_mut(queue).and_then(|spans| spans.last_mut()) {
            until.get_or_insert(now);
        }
    }

    fn is_open(&self, queue: &QueueId) -> bool {
        self.open.get(queue).and_then(|spans| spans.last()).is_some_and(|(_, end)| end.is_none())
    }

    fn answered(&mut self, attempt: &Attempt, outcome: &Outcome, cap: Duration, now: Tick) {
        let (account, endpoint) =
            (attempt.first().event.account.clone(), attempt.endpoint.id.clone());
        let queue = QueueId { account, endpoint };
        let is_open = self.is_open(&queue);
        let tries = self.tries.entry((attempt.first().event.id, queue.clone())).or_default();
        if is_open {
            *self.probes.entry(queue).or_default() += 1;
        } else {
            tries.attempts += 1;
            let started = now - outcome.elapsed;
            assert!(started >= tries.not_before, "{attempt:?} came earlier than it was asked to");
        }
        if !outcome.delivered() {
            tries.first_failed.get_or_insert(now);
            let meaning = outcome.meaning;
            let asked =
                if let Meaning::Refused { retry_after, .. } = meaning { retry_after } else { None };
            tries.not_before = now + asked.unwrap_or_default().min(cap);
        }
    }

    /// Some of the breakers' time is not stored yet, nor some of the waits.
    fn crashed(&mut self, now: Tick) {
        self.lost += Duration::from_secs(800);
        let queues: Vec<QueueId> = self.open.keys().cloned().collect();
        queues.iter().for_each(|queue| self.close(queue, now));
        self.tries.values_mut().for_each(|tries| tries.not_before = Tick(0));
    }

    /// A delivery that is given up was tried for as long as it should, by its queue's own clock.
    fn died(&mut self, event: EventId, queue: QueueId, settle: &SettlePolicy, now: Tick) {
        let tries = &self.tries[&(event, queue.clone())];
        let since = tries.first_failed.expect("an attempt failed");
        let mut running = now.since(since);
        for (from, until) in self.open.get(&queue).into_iter().flatten() {
            let from = (*from).max(since);
            running = running.saturating_sub(until.unwrap_or(now).since(from));
        }
        let (least, most) = (settle.retry_for, settle.retry_for + settle.retry.cap());
        assert!(running + self.lost >= least, "{event} to {queue:?} died after {running:?}");
        assert!(running <= most + HOUR, "{event} to {queue:?} died as late as {running:?}");
        assert!(tries.attempts <= ATTEMPTS_MAX, "{event} to {queue:?}: {tries:?}");
        self.exhausted += 1;
        self.stood_still += u32::from(now.since(since).saturating_sub(running) > DAY);
        self.attempts += tries.attempts;
        self.most_attempts = self.most_attempts.max(tries.attempts);
    }

    /// Endpoints that are down cost few requests, however long they are.
    fn check_probes(&self, now: Tick) {
        for (queue, probes) in &self.probes {
            let spans = &self.open[queue];
            let open = |(from, until): &(Tick, Option<Tick>)| until.unwrap_or(now).since(*from);
            let hours = spans.iter().map(open).sum::<Duration>().as_secs() / 3_600;
            // When it opens, requests are in flight, and the first probes come sooner.
            let most = u32::try_from(hours).unwrap() * PROBES_AN_HOUR
                + u32::try_from(spans.len()).unwrap() * PROBES_AT_FIRST;
            assert!(*probes <= most, "{queue:?}: {probes} probes in {hours} h, {spans:?}");
        }
    }
}

/// Runs until nothing is left; says when that was.
fn simulate(seed: u64, transactions: u64, crashes: u32) -> (Diary, Duration) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = world(&mut rng, transactions);
    let (settings, mut diary) = (settings(), Diary::default());
    let mut now = Tick(0);
    let mut crash_at: Vec<Tick> =
        (0..crashes).map(|_| now + HOUR * rng.random_range(1..24 * 9)).collect();
    crash_at.sort_by(|a, b| b.cmp(a));
    let mut life = Life::new(&world, &settings, &mut rng, now);
    loop {
        if crash_at.pop_if(|at| *at <= now).is_some() {
            diary.crashed(now);
            life.crash(&mut world, &mut rng);
            life = Life::new(&world, &settings, &mut rng, now);
        }
        life.poll(&mut world, &mut rng, now);
        if life.is_done(&world) {
            break;
        }
        let Some((at, what)) = life.next(&world, now) else {
            panic!("seed {seed}: nothing left to happen, and not done");
        };
        now = at;
        assert!(now < Tick(0) + 30 * DAY, "seed {seed}: not done within 30 days");
        if let Happens::Answered(id) = &what {
            let (attempt, outcome) = &life.in_flight[id];
            diary.answered(attempt, outcome, settings.settle.retry.cap(), now);
        }
        life.handle(what, &mut world, &mut rng, now);
        let mut reports = std::mem::take(&mut life.reports);
        reports.extend(std::iter::from_fn(|| life.dispatcher.poll_endpoint_change()));
        for changed in reports {
            diary.changed(changed, now);
        }
        for (event, queue, reason) in std::mem::take(&mut world.died) {
            if reason == DeadReason::Exhausted {
                diary.died(event, queue, &settings.settle, now);
            }
        }
        let held = life.dispatcher.memory.pending();
        assert!(held <= MEMORY, "seed {seed}: {held} bytes are held");
    }
    diary.check_probes(now);
    account_for(seed, &world);
    assert!(world.disabled.len() >= 6, "gone, or down for days: {:?}", world.disabled);
    (diary, now.since(Tick(0)))
}

#[test]
fn week_of_retries_ends_each_delivery_in_its_time_and_costs_few_requests() {
    // Where there is time for long tests, three times as many.
    let is_long = std::env::var_os("WALHOOK_TEST_LONG").is_some();
    let (diary, took) = simulate(1, if is_long { 2_000 } else { 700 }, 0);
    assert!(took > 7 * DAY);
    assert!(diary.exhausted > 80, "{} exhausted", diary.exhausted);
    let mean = f64::from(diary.attempts) / f64::from(diary.exhausted);
    println!(
        "{:.1} days; {} deliveries exhausted after {mean:.1} attempts in the mean, {} at most",
        took.as_secs_f64() / DAY.as_secs_f64(),
        diary.exhausted,
        diary.most_attempts
    );
    assert!((24.0..36.0).contains(&mean), "{mean}");
    println!("{} of them although their clock stood still for a day", diary.stood_still);
    assert!(diary.stood_still > 0);
    assert!(diary.probes.values().any(|probes| *probes > 500), "a breaker is open for days");
}

#[test]
fn week_of_retries_loses_nothing_and_keeps_its_clocks_across_crashes() {
    simulate(2, 300, 12);
}
