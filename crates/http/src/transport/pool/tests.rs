use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::super::users::REST;
use super::*;

#[derive(Debug, Clone)]
struct Fake {
    id: u32,
    shared: bool,
    open: Arc<AtomicBool>,
    /// When it takes its last request.
    until: Option<Instant>,
    last: Option<AccountId>,
    /// Requests that it still takes, where it is shared.
    room: Arc<AtomicUsize>,
}

impl Fake {
    fn new(id: u32, shared: bool) -> Self {
        Self::with_room(id, shared, usize::MAX)
    }

    fn with_room(id: u32, shared: bool, room: usize) -> Self {
        let (open, room) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(room)));
        Self { id, shared, open, until: None, last: None, room }
    }

    /// As it is after a request of the account. One that requests share is nobody's.
    fn used_by(self, account: &AccountId) -> Self {
        let last = (!self.shared).then(|| account.clone());
        Self { last, ..self }
    }
}

impl Kept for Fake {
    fn is_shared(&self) -> bool {
        self.shared
    }

    fn share(&self, account: Option<&AccountId>, _now: Instant) -> Option<Self> {
        let room = self.room.load(Relaxed);
        if !self.shared || room == 0 {
            return None;
        }
        // Whoever only asks whether there is room takes none.
        self.room.store(room - usize::from(account.is_some()), Relaxed);
        Some(self.clone())
    }

    fn last(&self) -> Option<(AccountId, Duration)> {
        Some((self.last.clone()?, REST))
    }

    fn is_open(&self, now: Instant) -> bool {
        self.open.load(Relaxed) && self.until.is_none_or(|until| now < until)
    }
}

fn host(n: usize) -> Arc<Host> {
    let authority = format!("host{n}.example");
    Arc::new(Host { https: true, http1: false, authority, account: None })
}

fn account() -> AccountId {
    AccountId::new("a")
}

/// Whether a connection that was used last by this account is the other's at once.
fn is_free_for(last: Option<&AccountId>, account: &AccountId) -> bool {
    last.is_none_or(|last| last == account)
}

/// One of a few.
fn nth_account(n: usize) -> AccountId {
    AccountId::new(n.to_string())
}

fn pool(open: usize, idle: usize) -> Arc<Pool<Fake>> {
    Arc::new(Pool::new(Bounds { open, idle }, 1))
}

/// Hosts and idle connections.
fn remembered(pool: &Pool<Fake>) -> (usize, usize) {
    pool.on(0, |shelf| (shelf.hosts.len(), shelf.idle.len() as usize))
}

/// What the request in the line has got.
fn got(waiting: &mut Waiting<Fake>) -> Option<Fake> {
    match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(connection) => Some(connection),
        Poll::Pending => None,
    }
}

#[test]
fn pool_closes_the_connection_that_was_idle_longest_for_one_that_is_opened_at_the_bound() {
    let (pool, now) = (pool(3, 9), Instant::now());
    let (one, two) = (host(1), host(2));
    let open: Vec<_> = (0..3).map(|_| pool.open(Instant::now())).collect();
    for (n, host) in [(0, &two), (1, &one), (2, &one)] {
        pool.give(0, host, Fake::new(n, false), now);
    }
    let _fourth = pool.open(Instant::now());
    drop(open);
    assert_eq!(pool.take(0, &one, &account(), now).unwrap().id, 2);
    assert_eq!(pool.take(0, &one, &account(), now).unwrap().id, 1);
    assert!(pool.take(0, &two, &account(), now).is_err(), "it gave way");
    assert_eq!(pool.open.load(Relaxed), 1);
}

#[test]
fn pool_remembers_nothing_of_a_hundred_thousand_hosts_that_are_quiet() {
    let (pool, now) = (pool(50, 20), Instant::now());
    for n in 0..100_000 {
        let (host, open) = (host(n), pool.open(Instant::now()));
        assert!(pool.take(0, &host, &account(), now).is_err());
        pool.give(0, &host, Fake::new(0, n % 2 == 0), now);
        drop(open);
        let (hosts, idle) = remembered(&pool);
        assert!(hosts <= 20 && idle <= 20);
    }
    pool.close_expired(now + IDLE_FOR);
    assert_eq!(remembered(&pool), (0, 0));
}

#[test]
fn pool_opens_a_bounded_number_of_connections_for_nobody() {
    let (pool, host) = (pool(100, 100), host(1));
    let spare: Vec<_> = std::iter::from_fn(|| pool.spare(0, &host)).collect();
    assert_eq!(spare.len(), SPARE_MAX as usize);
    drop(spare);
    assert_eq!(remembered(&pool), (0, 0));
    let _open: Vec<_> = (0..100).map(|_| pool.open(Instant::now())).collect();
    assert!(pool.spare(0, &host).is_none(), "all descriptors are in use");
}

#[test]
fn pool_gives_a_connection_that_came_for_a_request_that_has_gone_to_the_next() {
    let (pool, host, now) = (pool(9, 9), host(1), Instant::now());
    let first = pool.take(0, &host, &account(), now).unwrap_err();
    let mut second = pool.take(0, &host, &account(), now).unwrap_err();
    pool.give(0, &host, Fake::new(7, false), now);
    drop(first);
    assert_eq!(got(&mut second).unwrap().id, 7);
}

#[test]
fn pool_has_as_many_requests_wait_as_connections_are_in_use() {
    let (pool, host, now) = (pool(9, 9), host(1), Instant::now());
    let is_patient = |waiting: &Waiting<Fake>| waiting.is_patient();
    assert!(!is_patient(&pool.take(0, &host, &account(), now).unwrap_err()), "none is in use");
    let (one, two) = (pool.lend(0, &host, None), pool.lend(0, &host, None));
    let mut first = pool.take(0, &host, &account(), now).unwrap_err();
    let second = pool.take(0, &host, &account(), now).unwrap_err();
    let third = pool.take(0, &host, &account(), now).unwrap_err();
    assert_eq!([&first, &second, &third].map(is_patient), [true, true, false]);
    one.give_back(Fake::new(7, false));
    assert_eq!(got(&mut first).unwrap().id, 7);
    drop((two, first, second, third));
    assert_eq!(remembered(&pool), (0, 0));
}

#[test]
fn pool_keeps_shelves_apart_within_bounds_that_they_share() {
    let pool = Arc::new(Pool::new(Bounds { open: 9, idle: 2 }, 3));
    let (host, start) = (host(1), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    pool.give(1, &host, Fake::new(0, false), at(0));
    pool.give(0, &host, Fake::new(1, false), at(1));
    assert!(pool.take(2, &host, &account(), at(1)).is_err());
    pool.give(2, &host, Fake::new(2, false), at(2));
    assert!(pool.take(1, &host, &account(), at(2)).is_err(), "it was idle longest");
    let open: Vec<_> = (0..10).map(|_| pool.open(Instant::now())).collect();
    assert!(pool.take(0, &host, &account(), at(2)).is_err(), "it was idle longest");
    assert_eq!(pool.take(2, &host, &account(), at(2)).unwrap().id, 2);
    assert_eq!(pool.idle.load(Relaxed), 0);
    drop(open);
    assert_eq!(pool.open.load(Relaxed), 0);
}

#[test]
fn pool_opens_another_shared_connection_where_none_has_room_and_keeps_no_more_than_that() {
    let (pool, host, now) = (pool(9, 9), host(1), Instant::now());
    let take = || pool.take(0, &host, &account(), now);
    let mut waiting: Vec<_> = (0..3).map(|_| take().unwrap_err()).collect();
    pool.give(0, &host, Fake::with_room(1, true, 2), now);
    let ids: Vec<_> = waiting.iter_mut().map(|one| got(one).map(|fake| fake.id)).collect();
    assert_eq!(ids, [Some(1), Some(1), None], "it is full");
    pool.give(0, &host, Fake::with_room(2, true, 2), now);
    assert_eq!(got(&mut waiting[2]).unwrap().id, 2);
    pool.give(0, &host, Fake::with_room(3, true, 2), now);
    assert_eq!(remembered(&pool).1, 2, "the second one has room");
    assert_eq!(take().unwrap().id, 2);
    let waits = take().unwrap_err();
    pool.give(0, &host, Fake::with_room(4, true, 0), now);
    drop((waits, waiting));
    pool.close_expired(now + IDLE_FOR);
    assert_eq!(remembered(&pool), (0, 0));
}

#[test]
fn pool_gives_no_request_a_connection_that_is_too_old_and_ends_none_of_those_on_it() {
    let (pool, host, now) = (pool(9, 9), host(1), Instant::now());
    for shared in [false, true] {
        let open = pool.open(now);
        let fake = Fake { until: Some(open.until()), ..Fake::new(1, shared) };
        let late = open.until() - Duration::from_millis(1);
        pool.give(0, &host, fake.clone(), late);
        let in_use = pool.take(0, &host, &account(), late).unwrap();
        assert!(in_use.open.load(Relaxed));
        pool.give(0, &host, fake, open.until());
        assert!(pool.take(0, &host, &account(), open.until()).is_err(), "shared: {shared}");
    }
    assert_eq!(remembered(&pool), (0, 0));
}

#[test]
fn pool_lets_a_connection_rest_before_another_account_has_it() {
    let (pool, host, now) = (pool(9, 9), host(1), Instant::now());
    let [a, b] = [1, 2].map(nth_account);
    let of = |id, account: &AccountId| Fake { last: Some(account.clone()), ..Fake::new(id, false) };
    let [mut other, mut own] = [&b, &a].map(|it| pool.take(0, &host, it, now).unwrap_err());
    pool.give(0, &host, of(1, &a), now);
    assert_eq!((got(&mut other).is_none(), got(&mut own).unwrap().id), (true, 1), "it comes later");
    drop((other, own));

    pool.give(0, &host, of(2, &a), now);
    pool.give(0, &host, of(3, &b), now);
    assert_eq!(pool.take(0, &host, &a, now).unwrap().id, 2);
    let almost = now + REST - Duration::from_millis(1);
    assert!(pool.take(0, &host, &a, almost).is_err());
    assert_eq!(pool.take(0, &host, &a, now + REST).unwrap().id, 3);

    // One that nobody has used needs no rest.
    pool.give(0, &host, Fake::new(4, false), now);
    assert_eq!(pool.take(0, &host, &a, now).unwrap().id, 4);
    assert_eq!(remembered(&pool), (0, 0));
}

#[derive(Debug, Clone)]
enum Action {
    Take { host: usize, account: usize },
    Give { held: usize },
    GiveShared { host: usize },
    Close { held: usize },
    GiveUp { waiting: usize },
    Wait { ms: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0usize..3, 0usize..3).prop_map(|(host, account)| Action::Take { host, account }),
        4 => any::<usize>().prop_map(|held| Action::Give { held }),
        1 => (0usize..3).prop_map(|host| Action::GiveShared { host }),
        1 => any::<usize>().prop_map(|held| Action::Close { held }),
        1 => any::<usize>().prop_map(|waiting| Action::GiveUp { waiting }),
        2 => (0u64..3_000).prop_map(|ms| Action::Wait { ms }),
        2 => (0u64..20).prop_map(|ms| Action::Wait { ms }),
    ]
}

/// All that is idle, in the order of its last use.
#[derive(Default)]
struct Naive(Vec<(usize, Fake, Instant)>);

impl Naive {
    fn take(&mut self, host: usize, account: &AccountId, now: Instant) -> Option<u32> {
        loop {
            let of_host = |(of, _, _): &(usize, Fake, Instant)| *of == host;
            let shared = self.0.iter().position(|idle| of_host(idle) && idle.1.shared);
            let places = || 0..self.0.len();
            let of_host_at = |at: &usize| of_host(&self.0[*at]);
            let used = places()
                .rev()
                .find(|at| of_host_at(at) && self.0[*at].1.last.as_ref() == Some(account));
            let rested_at = |at: &usize| {
                let (_, fake, since) = &self.0[*at];
                *since + fake.last.as_ref().map_or(Duration::ZERO, |_| REST)
            };
            let rested = places().filter(of_host_at).filter(|at| now >= rested_at(at));
            let place = shared.or(used).or_else(|| rested.max_by_key(rested_at))?;
            let (_, fake, since) = self.0.remove(place);
            if fake.is_open(now) && now < since + IDLE_FOR {
                let id = fake.id;
                if fake.shared {
                    self.0.push((host, fake, now));
                }
                return Some(id);
            }
        }
    }

    fn give(&mut self, host: usize, fake: Fake, now: Instant, max: usize) {
        let shared = |(of, idle, _): &(usize, Fake, Instant)| *of == host && idle.shared;
        if fake.is_open(now) && !(fake.shared && self.0.iter().any(shared)) {
            self.0.push((host, fake, now));
            if self.0.len() > max {
                self.0.remove(0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn pool_agrees_with_a_list_of_all_that_is_idle(
        actions in prop::collection::vec(action(), 0..80),
        max in 1usize..6,
    ) {
        let (pool, hosts) = (pool(1_000, max), [host(0), host(1), host(2)]);
        let mut naive = Naive::default();
        let (mut held, mut line) = (Vec::<(usize, Fake)>::new(), Vec::new());
        let (mut now, mut next) = (Instant::now(), 0);
        for action in actions {
            match action {
                Action::Take { host, account } => {
                    let account = nth_account(account);
                    let taken = pool.take(0, &hosts[host], &account, now);
                    match (taken, naive.take(host, &account, now)) {
                        (Ok(fake), id) => {
                            prop_assert_eq!(Some(fake.id), id);
                            held.push((host, fake.used_by(&account)));
                        }
                        (Err(mut waiting), None) => {
                            prop_assert!(got(&mut waiting).is_none());
                            // What it opens for itself comes first, or what is given back.
                            held.push((host, Fake::new(next, false).used_by(&account)));
                            next += 1;
                            line.push((host, account, waiting));
                        }
                        (Err(_), Some(id)) => prop_assert!(false, "{id} is idle"),
                    }
                }
                Action::Give { held: at } if !held.is_empty() => {
                    let (host, fake) = held.swap_remove(at % held.len());
                    give(&pool, &hosts, &mut naive, &mut line, &mut held, (host, fake), now, max);
                }
                Action::GiveShared { host } => {
                    let fake = Fake::new(next, true);
                    next += 1;
                    give(&pool, &hosts, &mut naive, &mut line, &mut held, (host, fake), now, max);
                }
                Action::Close { held: at } if !held.is_empty() => {
                    held[at % held.len()].1.open.store(false, Relaxed);
                }
                Action::GiveUp { waiting } if !line.is_empty() => {
                    line.remove(waiting % line.len());
                }
                Action::Wait { ms } => {
                    now += Duration::from_millis(ms);
                    pool.close_expired(now);
                    naive.0.retain(|(_, _, since)| now < *since + IDLE_FOR);
                }
                Action::Give { .. } | Action::Close { .. } | Action::GiveUp { .. } => {}
            }
            prop_assert_eq!(remembered(&pool).1, naive.0.len());
            prop_assert_eq!(pool.idle.load(Relaxed), naive.0.len());
            let tidy = pool.on(0, |shelf| shelf.hosts.values().all(|places| !places.is_empty()));
            prop_assert!(tidy);
        }
    }
}

/// Gives a connection back on both sides: those that wait and may have it come first, the longest first.
#[expect(clippy::too_many_arguments, reason = "the state of the test above")]
fn give(
    pool: &Arc<Pool<Fake>>,
    hosts: &[Arc<Host>; 3],
    naive: &mut Naive,
    line: &mut Vec<(usize, AccountId, Waiting<Fake>)>,
    held: &mut Vec<(usize, Fake)>,
    (host, fake): (usize, Fake),
    now: Instant,
    max: usize,
) {
    pool.give(0, &hosts[host], fake.clone(), now);
    let mut left = fake.is_open(now).then_some(fake);
    let last = left.as_ref().and_then(|fake| fake.last.clone());
    let serves = |(of, account, _): &(usize, AccountId, _)| {
        *of == host && is_free_for(last.as_ref(), account)
    };
    while let Some(at) = line.iter().position(serves) {
        let Some(fake) = left.take() else { return };
        let (_, account, mut waiting) = line.remove(at);
        assert_eq!(got(&mut waiting).map(|got| got.id), Some(fake.id));
        held.push((host, fake.clone().used_by(&account)));
        left = fake.shared.then_some(fake);
    }
    if let Some(fake) = left {
        naive.give(host, fake, now, max);
    }
}
