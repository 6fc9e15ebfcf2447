//! Dead endpoints in virtual time: how soon one that is back gets its first delivery, what that costs the others,
//! and what a probe leaves behind. Time is exact here, so bounds are asserted as they are promised.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::rig::Table;
use super::super::{Dispatcher, Effect, Input, LookUp, OperatorInput, Settings};
use super::host;
use crate::fixture;
use crate::retry::RetryPolicy;
use crate::schedule::Pool;
use crate::settle::SettlePolicy;
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, QueueId, Refill};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// The times of a look-up, a page and a state transaction.
const DATABASE: Duration = Duration::from_millis(5);

/// What an endpoint that is well takes to answer.
const ANSWER: Duration = Duration::from_millis(20);

/// `delivery.timeout`.
const TIMEOUT: Duration = Duration::from_secs(15);

/// What the configuration says by default.
fn settings() -> Settings {
    Settings {
        memory_limit: 256 << 20,
        fast_slots: 256,
        slow_slots: 1_024,
        settle: SettlePolicy {
            quick_attempts: 2,
            retry: RetryPolicy::new(10 * SECOND, 8 * HOUR).unwrap(),
            retry_for: 72 * HOUR,
        },
        disable_after: 120 * HOUR,
        ..fixture::settings()
    }
}

/// How an endpoint is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dead {
    /// Nobody listens.
    Refusing,
    /// It takes the connection, and never answers.
    Hanging,
    /// It answers 503.
    Broken,
    /// It answers 503, and asks for six minutes.
    Busy,
}

struct Place {
    dead: Dead,
    url: String,
    /// From then on it is well again.
    back: Tick,
    /// It is well, but never takes the event with this key.
    poison: Option<u64>,
    /// When it took something first after it was back, and how much since.
    took: Option<Tick>,
    taken: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Happens {
    Commits(usize),
    Answered(DeliveryId, u64),
    LookedUp,
    Read,
    Stored,
}

/// What the dispatcher is told of, and what it asked for.
struct World {
    dispatcher: Dispatcher,
    now: Tick,
    agenda: BinaryHeap<Reverse<(Tick, u64, usize)>>,
    happens: Vec<Option<Happens>>,
    places: Vec<Place>,
    table: Table,
    in_flight: BTreeMap<DeliveryId, (Attempt, Outcome, u64)>,
    asked: Option<LookUp>,
    pages: Vec<Refill>,
    batch: Option<PersistBatch>,
    requests: u64,
    next_commit: u64,
    /// The requests for dead endpoints in flight, at most, and rows written anew.
    most: u32,
    retimed: usize,
    died: usize,
    /// The longest wait of a live endpoint's delivery, and the highest number of an attempt that was taken.
    waited: Duration,
    number: u32,
    /// Before when a busy endpoint does not want an event again, and how many came sooner, of those that were
    /// no probes.
    not_before: BTreeMap<EventId, Tick>,
    too_soon: u32,
}

impl World {
    fn new(settings: Settings, places: Vec<Place>) -> Self {
        Self {
            dispatcher: fixture::dispatcher(settings),
            now: Tick(0),
            agenda: BinaryHeap::new(),
            happens: Vec::new(),
            places,
            table: Table::default(),
            in_flight: BTreeMap::new(),
            asked: None,
            pages: Vec::new(),
            batch: None,
            requests: 0,
            next_commit: 2_000,
            most: 0,
            retimed: 0,
            died: 0,
            waited: Duration::ZERO,
            number: 0,
            not_before: BTreeMap::new(),
            too_soon: 0,
        }
    }

    fn after(&mut self, wait: Duration, what: Happens) {
        let at = self.happens.len();
        self.happens.push(Some(what));
        self.agenda.push(Reverse((self.now + wait, at as u64, at)));
    }

    /// The endpoint's account commits so many transactions with an event each, over a second.
    fn commits(&mut self, place: usize, events: u32, from: Duration) {
        (0..events).for_each(|n| self.after(from + SECOND * n / events, Happens::Commits(place)));
    }

    /// Goes on until then.
    fn run(&mut self, until: Tick) {
        while self.now < until {
            self.poll();
            let next = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let wake = self.dispatcher.deadline();
            let at = next.into_iter().chain(wake).min().unwrap_or(until).max(self.now);
            if at > until {
                self.now = until;
                return;
            }
            self.now = at;
            while let Some(Reverse((at, _, what))) = self.agenda.peek().copied()
                && at <= self.now
            {
                self.agenda.pop();
                if let Some(what) = self.happens[what].take() {
                    self.happens(what);
                }
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.dispatcher.handle(self.now, input);
    }

    fn happens(&mut self, what: Happens) {
        match what {
            Happens::Commits(place) => {
                let commit = self.next_commit;
                self.next_commit += 100;
                let position = fixture::position(commit, commit - 10);
                let event = Arc::new(fixture::event(&place.to_string(), position, &[commit]));
                let mut items = fixture::transaction(commit, [event]);
                items.push(Item::Progress { wal_end: Lsn(commit + 50) });
                self.handle(Input::Items(items));
            }
            Happens::Answered(id, request) => {
                if self.in_flight.get(&id).is_some_and(|(_, _, of)| *of == request) {
                    self.answered(id);
                }
            }
            Happens::LookedUp => {
                let routes = |account: &AccountId| {
                    let at: usize = account.parse().unwrap();
                    let url = self.places[at].url.clone();
                    let endpoint = Endpoint { url, ..fixture::endpoint(account, account) };
                    Routes::new(vec![Arc::new(endpoint)], 1.0)
                };
                let Some(look_up) = self.asked.take() else { return };
                let answer = look_up.answered(fixture::snapshot(), routes);
                self.handle(Input::Routes(Box::new(answer)));
            }
            Happens::Read => {
                let pages = std::mem::take(&mut self.pages);
                let pages = pages.into_iter().map(|page| self.table.page(page)).collect();
                self.handle(Input::DeferredPages(pages));
            }
            Happens::Stored => {
                let batch = self.batch.take().unwrap();
                self.store(&batch);
                self.handle(Input::Stored(Box::default()));
            }
        }
    }

    fn store(&mut self, batch: &PersistBatch) {
        self.table.store(batch);
        self.retimed += batch.retimed.len();
        self.died += batch.died.len() + batch.dead_letters.len();
    }

    fn answered(&mut self, id: DeliveryId) {
        let (attempt, outcome, _) = self.in_flight.remove(&id).unwrap();
        let at: usize = attempt.endpoint.id.parse().unwrap();
        let place = &mut self.places[at];
        if outcome.delivered() && self.now >= place.back {
            // It has it when its answer begins its way.
            place.took.get_or_insert(self.now - ANSWER / 2);
            place.taken += 1;
            self.number = self.number.max(attempt.first().number);
        }
        self.handle(Input::Outcome { delivery: id, outcome });
    }

    fn send(&mut self, attempt: Attempt, waited: Duration) {
        let at: usize = attempt.endpoint.id.parse().unwrap();
        let place = &self.places[at];
        let key = attempt.first().event.keys[0];
        let outcome = if self.now >= place.back {
            match place.poison == Some(key) {
                true => Outcome { elapsed: ANSWER, ..fixture::answered(400) },
                false => Outcome { elapsed: ANSWER, ..fixture::answered(204) },
            }
        } else {
            match place.dead {
                Dead::Refusing => {
                    Outcome::failed(FailureKind::Connect, "refused", Duration::from_millis(1))
                }
                Dead::Hanging => Outcome::failed(FailureKind::Timeout, "no answer", TIMEOUT),
                Dead::Broken => Outcome { elapsed: ANSWER, ..fixture::answered(503) },
                Dead::Busy => {
                    let event = attempt.first().event.id;
                    self.not_before.insert(event, self.now + ANSWER + 6 * MINUTE);
                    Outcome { elapsed: ANSWER, ..fixture::answer(503, Some(6 * MINUTE), "") }
                }
            }
        };
        // It has taken something: its breaker is closed, and this is no probe.
        let first = attempt.first().event.id;
        if place.took.is_some() && self.not_before.get(&first).is_some_and(|due| self.now < *due) {
            self.too_soon += 1;
        }
        if place.back == Tick(0) {
            self.waited = self.waited.max(waited);
        }
        let (id, request) = (attempt.first().id, self.requests);
        self.requests += 1;
        self.after(outcome.elapsed, Happens::Answered(id, request));
        self.in_flight.insert(id, (attempt, outcome, request));
        let probes = self.dispatcher.sending.in_pool(Pool::Probe);
        self.most = self.most.max(probes);
    }

    fn poll(&mut self) {
        while let Some(effect) = self.dispatcher.poll(self.now) {
            match effect {
                Effect::Send(dispatch) => self.send(dispatch.attempt, dispatch.waited),
                Effect::Abort(id) => {
                    if let Some((_, outcome, _)) = self.in_flight.get_mut(&id) {
                        *outcome = Outcome::failed(FailureKind::Aborted, "given up", SECOND);
                        self.answered(id);
                    }
                }
                Effect::LookUp(look_up) => {
                    self.asked = Some(look_up);
                    self.after(DATABASE, Happens::LookedUp);
                }
                Effect::ReadDeferred(pages) => {
                    self.pages = pages;
                    self.after(DATABASE, Happens::Read);
                }
                Effect::Store(batch) => {
                    self.batch = Some(*batch);
                    self.after(DATABASE, Happens::Stored);
                }
                Effect::ReadUnrouted(_)
                | Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. } => {}
            }
        }
    }

    /// How long after it was back each of these got its first delivery, the longest last.
    fn healed(&self, which: impl IntoIterator<Item = usize>) -> Vec<Duration> {
        let took = |at: usize| {
            let place = &self.places[at];
            place.took.unwrap_or_else(|| panic!("{at} got nothing")).since(place.back)
        };
        let mut took: Vec<Duration> = which.into_iter().map(took).collect();
        took.sort_unstable();
        took
    }
}

fn place(at: usize, dead: Dead, back: Tick) -> Place {
    let url = format!("http://{at}.example.com/hook");
    Place { dead, url, back, poison: None, took: None, taken: 0 }
}

/// `dead` endpoints die at once, and of them `samples` come back, each at some time between `from` and `until`;
/// twenty others go on. Returns how long the samples waited, in order.
fn heal(
    dead: (usize, Dead),
    samples: usize,
    (from, until): (Duration, Duration),
) -> (World, Vec<Duration>) {
    let (many, dead) = dead;
    let mut rng = SmallRng::seed_from_u64(7);
    let never = Tick(0) + 1_000 * HOUR;
    let mut places: Vec<Place> = (0..many).map(|at| place(at, dead, never)).collect();
    places.iter_mut().step_by(many / samples).for_each(|place| {
        place.back = Tick(0) + rng.random_range(from..until);
    });
    let live = many..many + 20;
    places.extend(live.clone().map(|at| place(at, dead, Tick(0))));
    let mut world = World::new(settings(), places);
    (0..many).for_each(|at| world.commits(at, 12, Duration::ZERO));
    // While all is dead, those that are not go on as if nothing was.
    for at in live {
        (0..30).for_each(|n| world.commits(at, 5, 3 * MINUTE + SECOND * n));
    }
    world.run(Tick(0) + 3 * MINUTE);
    world.waited = Duration::ZERO;
    world.run(Tick(0) + until + 2 * MINUTE);
    let healed = world.healed((0..many).step_by(many / samples));
    (world, healed)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn one_of_a_thousand_that_refuse_gets_its_first_delivery_within_five_seconds() {
    let (world, healed) = heal((1_000, Dead::Refusing), 200, (MINUTE, 6 * MINUTE));
    let (p50, p99) = (percentile(&healed, 50), percentile(&healed, 99));
    println!("p50 {p50:?}, p99 {p99:?}, {} requests, {} rows", world.requests, world.retimed);
    assert!(p50 <= 2 * SECOND && p99 <= 5 * SECOND, "{p50:?}, {p99:?}");
    assert!(world.most <= 128, "{}", world.most);
    // Deliveries whose quick attempts failed before the breaker opened, and no probe.
    assert!(world.retimed < 12_000 && world.died == 0, "{} {}", world.retimed, world.died);
    assert!(world.waited <= Duration::from_millis(100), "{:?}", world.waited);
}

#[test]
fn one_of_a_thousand_that_hang_is_back_within_the_time_that_all_their_probes_take() {
    let (world, healed) = heal((1_000, Dead::Hanging), 100, (5 * MINUTE, 15 * MINUTE));
    let (p50, p99) = (percentile(&healed, 50), percentile(&healed, 99));
    println!("p50 {p50:?}, p99 {p99:?}, {} requests", world.requests);
    // A probe takes 2 s.
    assert!(p99 <= 2 * SECOND * 1_000 / 128, "{p50:?}, {p99:?}");
    assert_eq!(world.most, 128);
    assert!(world.waited <= Duration::from_millis(100), "{:?}", world.waited);
}

#[test]
fn endpoint_that_was_dead_for_a_day_is_back_within_a_minute() {
    let (world, healed) = heal((50, Dead::Refusing), 50, (24 * HOUR, 25 * HOUR));
    let last = *healed.last().unwrap();
    println!("p50 {:?}, last {last:?}, {} requests", percentile(&healed, 50), world.requests);
    assert!(last <= MINUTE, "{last:?}");
    // 15 minutes of 4 s, then ever fewer, then one a minute.
    assert!(world.requests < 50 * 2_500, "{} requests", world.requests);
    assert!(world.retimed < 50 * 12, "{} rows were written for probes", world.retimed);
}

#[test]
fn endpoint_that_is_back_brings_the_dead_ones_of_its_host_forward() {
    let back = Tick(0) + 10 * HOUR;
    let mut places: Vec<Place> = (0..40).map(|at| place(at, Dead::Refusing, back)).collect();
    for place in places.iter_mut().take(20) {
        place.url = "http://hooks.example.com/x".to_owned();
    }
    let mut world = World::new(settings(), places);
    (0..40).for_each(|at| world.commits(at, 12, Duration::ZERO));
    world.run(back + 2 * MINUTE);
    let (shared, others) = (world.healed(0..20), world.healed(20..40));
    println!("of one host {:?} to {:?}, others to {:?}", shared[0], shared[19], others[19]);
    assert!(shared[19] - shared[0] <= 5 * SECOND, "{shared:?}");
    assert!(others[19] > shared[19] && others[19] <= MINUTE, "{others:?}");
}

#[test]
fn probe_of_an_endpoint_that_never_takes_its_head_is_another_key_s() {
    let back = Tick(0) + 10 * MINUTE;
    let mut broken = place(0, Dead::Broken, back);
    // The first event that is committed.
    broken.poison = Some(2_000);
    let mut world = World::new(settings(), vec![broken]);
    world.commits(0, 60, Duration::ZERO);
    world.run(back + 9 * SECOND);
    let healed = world.healed([0]);
    assert!(healed[0] <= 8 * SECOND, "{healed:?}");
    world.run(back + 2 * MINUTE);
    assert_eq!(world.places[0].taken, 59, "all but the one");
    // Probes are no attempts: one that was sent again and again is sent as the third time at most.
    assert!(world.number <= 3, "attempt {}", world.number);
}

#[test]
fn delivery_that_a_probe_was_asked_to_send_later_waits_although_another_closes_the_breaker() {
    let back = Tick(0) + 200 * SECOND;
    let mut world = World::new(settings(), vec![place(0, Dead::Busy, back)]);
    world.commits(0, 60, Duration::ZERO);
    // One that nobody has asked to wait.
    world.commits(0, 1, 201 * SECOND);
    // It says that it has too much, so it is tried slowly before its breaker opens.
    world.run(Tick(0) + 60 * SECOND);
    let before = world.requests;
    world.run(back);
    assert!((2..=3).contains(&(world.requests - before)), "probes, one a minute");
    world.run(back + 8 * MINUTE);
    assert!(!world.not_before.is_empty());
    assert_eq!((world.places[0].taken, world.too_soon), (61, 0));
}

#[test]
fn delivery_that_a_probe_was_asked_to_send_later_is_sent_at_once_where_an_operator_asks() {
    let back = Tick(0) + 200 * SECOND;
    let mut world = World::new(settings(), vec![place(0, Dead::Busy, back)]);
    world.commits(0, 60, Duration::ZERO);
    world.run(back + 70 * SECOND);
    let waiting = 60 - world.places[0].taken;
    let rows = world.table.hurry();
    assert!(waiting > 0);
    assert_eq!(rows.len(), waiting, "the table tells the time of each that waits");
    world.handle(Input::Command(Box::new(OperatorInput::RowsChanged(rows))));
    world.run(back + 75 * SECOND);
    assert_eq!(world.places[0].taken, 60);
}

#[test]
fn endpoint_is_tried_at_once_where_an_operator_hurries_rows_that_have_no_time() {
    let mut world = World::new(settings(), vec![place(0, Dead::Refusing, Tick(0) + 24 * HOUR)]);
    world.commits(0, 60, Duration::ZERO);
    // Dead for so long that it is tried once a minute.
    world.run(Tick(0) + 4 * HOUR);
    let before = world.requests;
    while world.requests == before {
        world.run(world.now + SECOND);
    }
    // Well again, right behind a probe: the next one would come in a minute.
    world.places[0].back = world.now;
    let queue = QueueId { account: AccountId::new("0"), endpoint: EndpointId::new("0") };
    world.handle(Input::Command(Box::new(OperatorInput::Hurry(vec![queue]))));
    world.run(world.now + 10 * SECOND);
    assert_eq!(world.places[0].taken, 60);
}

#[test]
fn probes_do_not_count_against_retry_for_nor_make_later_attempts_wait() {
    let short = SettlePolicy { retry_for: MINUTE, ..settings().settle };
    let back = Tick(0) + 24 * HOUR;
    for dead in [Dead::Refusing, Dead::Hanging, Dead::Broken] {
        let settings = Settings { settle: short, ..settings() };
        let mut world = World::new(settings, vec![place(0, dead, back)]);
        world.commits(0, 60, Duration::ZERO);
        world.run(back + 3 * MINUTE);
        assert_eq!((world.places[0].taken, world.died), (60, 0), "{dead:?}");
    }
}

#[test]
fn endpoint_that_fails_seldom_is_dead_too_when_nothing_answers() {
    let back = Tick(0) + 30 * MINUTE;
    let mut world = World::new(settings(), vec![place(0, Dead::Refusing, back)]);
    // One event a minute.
    (0..30).for_each(|n| world.commits(0, 1, MINUTE * n));
    world.run(back + MINUTE);
    let healed = world.healed([0]);
    assert!(healed[0] <= 10 * SECOND, "{healed:?}");
}

#[test]
fn host_of_a_url_is_its_authority_without_user_and_case() {
    for (url, expected) in [
        ("https://Hooks.Example.com/a/b?c", "hooks.example.com"),
        ("https://user:pass@example.com:8443/x", "example.com:8443"),
        ("http://[2001:db8::1]:80?x", "[2001:db8::1]:80"),
        ("http://example.com#x", "example.com"),
        ("nonsense", "nonsense"),
    ] {
        assert_eq!(host(url), expected);
    }
}
