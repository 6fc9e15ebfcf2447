//! The router against a world in which SQL shows commits earlier or later than the stream does.

use std::collections::BTreeSet;

use proptest::prelude::*;
use smallvec::smallvec;

use super::known::{ROUTES_TTL, TTL_OF_ENDPOINT};
use super::*;
use crate::fixture;
use crate::map::Seeded;
use walhook_core::endpoint::Endpoint;

const ACCOUNTS: u8 = 3;
const ENDPOINTS: u8 = 4;

/// The account whose rows take long to read.
const COSTLY: u8 = 2;

const FIRST_XID: u64 = (7 << 32) + 0xFFFF_FFF0; // the 32-bit ids wrap around in mid-test

/// A transaction that gives an endpoint to an account, or deletes it.
#[derive(Debug, Clone)]
struct Txn {
    endpoint: u8,
    owner: Option<u8>,
    /// Whether the old row's account is in the WAL.
    old_account_logged: bool,
}

#[derive(Debug, Clone)]
enum Action {
    Commit(Txn),
    /// The next transaction arrives in the stream.
    Stream,
    /// The n-th invisible transaction becomes visible to SQL, with those of the same row before it.
    Reveal(usize),
    Want(u8),
    /// The statement of a line's look-up runs: its snapshot is taken.
    Ask(LookUpLine),
    /// Its answer arrives.
    Answer(LookUpLine),
    Pin(u8),
    Unpin(u8),
    Wait(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let txn = (0..ENDPOINTS, proptest::option::of(0..ACCOUNTS), any::<bool>()).prop_map(
        |(endpoint, owner, old_account_logged)| Txn { endpoint, owner, old_account_logged },
    );
    let line = proptest::sample::select(LookUpLine::ALL.to_vec());
    prop_oneof![
        4 => txn.prop_map(Action::Commit),
        4 => Just(Action::Stream),
        4 => (0usize..4).prop_map(Action::Reveal),
        3 => (0..ACCOUNTS).prop_map(Action::Want),
        6 => line.clone().prop_map(Action::Ask),
        6 => line.prop_map(Action::Answer),
        1 => (0..ACCOUNTS).prop_map(Action::Pin),
        1 => (0..ACCOUNTS).prop_map(Action::Unpin),
        2 => (0u64..20_000).prop_map(Action::Wait),
    ]
}

fn account(n: u8) -> AccountId {
    AccountId::new(n.to_string())
}

fn endpoint_id(n: u8) -> EndpointId {
    EndpointId::new(format!("e{n}"))
}

fn endpoint(n: u8, owner: u8) -> Arc<Endpoint> {
    Arc::new(fixture::endpoint(&format!("e{n}"), &owner.to_string()))
}

/// What a statement tells.
type Told = (Snapshot, Vec<(AccountId, Routes)>);

#[derive(Default)]
struct World {
    txns: Vec<Txn>,
    streamed: usize,
    visible: Vec<bool>,
}

impl World {
    fn owner_after(&self, endpoint: u8, seen: impl Fn(usize) -> bool) -> Option<u8> {
        let of_endpoint = |(n, t): &(usize, &Txn)| t.endpoint == endpoint && seen(*n);
        self.txns.iter().enumerate().filter(of_endpoint).last().and_then(|(_, t)| t.owner)
    }

    fn snapshot(&self) -> Snapshot {
        let xid = |n: usize| FIRST_XID + n as u64;
        let invisible = (0..self.txns.len()).filter(|n| !self.visible[*n]).map(xid);
        let in_progress: Vec<String> = invisible.map(|xid| xid.to_string()).collect();
        let xmax = xid(self.txns.len());
        let xmin = in_progress.first().cloned().unwrap_or_else(|| xmax.to_string());
        format!("{xmin}:{xmax}:{}", in_progress.join(",")).parse().unwrap()
    }

    fn routes(&self, owner: u8) -> Routes {
        let mine =
            (0..ENDPOINTS).filter(|e| self.owner_after(*e, |n| self.visible[n]) == Some(owner));
        let routes = Routes::new(mine.map(|e| endpoint(e, owner)).collect(), 1.0);
        if owner == COSTLY { routes.costly() } else { routes }
    }

    /// What a statement answers for these accounts now.
    fn answer(&self, accounts: Vec<AccountId>) -> Told {
        let n = |a: &AccountId| a.parse::<u8>().unwrap();
        let routes = accounts.into_iter().map(|a| (a.clone(), self.routes(n(&a))));
        (self.snapshot(), routes.collect())
    }

    /// What the stream has shown must hold; what it has not shown yet may.
    fn check(&self, owner: u8, routes: &Routes) -> Result<(), TestCaseError> {
        for e in 0..ENDPOINTS {
            let has = routes.endpoint(&endpoint_id(e)).is_some();
            let allowed = (self.streamed..=self.txns.len())
                .any(|end| (self.owner_after(e, |n| n < end) == Some(owner)) == has);
            prop_assert!(allowed, "account {owner}, endpoint {e}: cached {has}, outdated");
        }
        Ok(())
    }

    fn invalidation(&self, n: usize) -> Invalidation {
        let txn = &self.txns[n];
        let before = self.owner_after(txn.endpoint, |m| m < n);
        let logged = before.filter(|_| txn.old_account_logged);
        let accounts = logged.into_iter().chain(txn.owner).map(account).collect();
        let scope = Scope::Endpoint { endpoints: smallvec![endpoint_id(txn.endpoint)], accounts };
        let xid = u32::try_from((FIRST_XID + n as u64) & 0xFFFF_FFFF).unwrap();
        Invalidation::new(xid, scope)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn router_never_answers_with_what_the_stream_has_outdated(
        actions in proptest::collection::vec(action(), 1..80),
        cache_bytes in prop_oneof![Just(0usize), Just(1_000), Just(1 << 20)],
    ) {
        let mut world = World::default();
        let mut router = Router::new(cache_bytes, Seeded::new(1));
        let mut now = Tick(0);
        let mut asked: PerLine<Option<Vec<AccountId>>> = PerLine::default();
        let mut answered: PerLine<Option<Told>> = PerLine::default();
        for action in actions {
            let changes_what_is_known = matches!(action, Action::Answer(_) | Action::Unpin(_));
            match action {
                Action::Commit(txn) => {
                    world.txns.push(txn);
                    world.visible.push(false);
                }
                Action::Stream if world.streamed < world.txns.len() => {
                    router.handle_invalidation(world.invalidation(world.streamed), Lsn(1));
                    world.streamed += 1;
                }
                Action::Reveal(nth) => {
                    let hidden = (0..world.txns.len()).filter(|n| !world.visible[*n]).nth(nth);
                    if let Some(n) = hidden {
                        let row = world.txns[n].endpoint;
                        for m in 0..=n {
                            world.visible[m] |= m == n || world.txns[m].endpoint == row;
                        }
                    }
                }
                Action::Want(n) => router.want(&account(n)),
                Action::Ask(line) => {
                    while let Some((line, accounts)) = router.poll_lookup(now) {
                        prop_assert!(asked.of(line).is_none() && answered.of(line).is_none());
                        *asked.of_mut(line) = Some(accounts);
                    }
                    if let Some(accounts) = asked.of_mut(line).take() {
                        *answered.of_mut(line) = Some(world.answer(accounts));
                    }
                }
                Action::Answer(line) => {
                    if let Some((snapshot, routes)) = answered.of_mut(line).take() {
                        for known in router.handle_lookup(line, &snapshot, routes, now) {
                            world.check(known.account.parse().unwrap(), &known.routes)?;
                        }
                    }
                }
                Action::Pin(n) => _ = router.pin(&account(n)),
                Action::Unpin(n) => router.unpin(&account(n)),
                Action::Wait(us) => now = now + Duration::from_micros(us),
                Action::Stream => {}
            }
            for owner in 0..ACCOUNTS {
                if let Some(routes) = router.get(&account(owner), now) {
                    world.check(owner, &routes)?;
                }
            }
            if changes_what_is_known {
                let shown = router.known.iter().flat_map(|(account, known)| {
                    let endpoints = known.routes().endpoints.iter();
                    endpoints.map(|endpoint| (endpoint.id.clone(), account.clone()))
                });
                prop_assert_eq!(router.owners.pairs(), shown.collect());
            }
        }
        // Once SQL shows everything, every account that was asked for gets its answer.
        world.visible.iter_mut().for_each(|visible| *visible = true);
        for line in LookUpLine::ALL {
            let late = asked.of_mut(line).take().map(|accounts| world.answer(accounts));
            if let Some((snapshot, routes)) = answered.of_mut(line).take().or(late) {
                router.handle_lookup(line, &snapshot, routes, now);
            }
        }
        router.want(&account(0));
        for _ in 0..10 {
            now = now + UNSEEN_RETRY;
            while let Some((line, accounts)) = router.poll_lookup(now) {
                let (snapshot, routes) = world.answer(accounts);
                router.handle_lookup(line, &snapshot, routes, now);
            }
        }
        prop_assert!(router.poll_lookup(now + UNSEEN_RETRY).is_none(), "everybody is answered");
        prop_assert!(router.unseen.is_empty(), "what SQL shows need not be remembered");
        prop_assert!(router.seen_beside.each().all(Invalidations::is_empty));
    }
}

/// The next batch of the line of those that are not costly.
fn poll(router: &mut Router, now: Tick) -> Option<Vec<AccountId>> {
    let (line, accounts) = router.poll_lookup(now)?;
    assert_eq!(line, LookUpLine::Usual);
    Some(accounts)
}

/// Answers it.
fn answer(
    router: &mut Router,
    snapshot: &Snapshot,
    answers: Vec<(AccountId, Routes)>,
    now: Tick,
) -> Vec<LookedUp> {
    router.handle_lookup(LookUpLine::Usual, snapshot, answers, now)
}

#[test]
fn costly_account_is_looked_up_beside_others_and_not_believed_where_theirs_has_seen_more() {
    let routes = Routes::new(vec![endpoint(COSTLY, COSTLY)], 1.0).costly();
    let found = vec![(account(COSTLY), routes)];
    let mut router = Router::new(1 << 20, Seeded::new(1));
    router.want(&account(COSTLY));
    assert_eq!(poll(&mut router, Tick(0)), Some(vec![account(COSTLY)]));
    let first: Snapshot = "5:5:".parse().unwrap();
    answer(&mut router, &first, found.clone(), Tick(0));
    router.want(&account(COSTLY));
    router.want(&account(1));
    assert_eq!(poll(&mut router, Tick(1)), Some(vec![account(1)]));
    let theirs = Some((LookUpLine::Costly, vec![account(COSTLY)]));
    assert_eq!(router.poll_lookup(Tick(1)), theirs);
    // The costly one's snapshot is taken before this commits, that of the other behind it.
    let accounts = smallvec![account(COSTLY)];
    let scope = Scope::Endpoint { endpoints: smallvec![], accounts };
    router.handle_invalidation(Invalidation::new(5, scope), Lsn(9));
    let one = vec![(account(1), Routes::new(vec![], 1.0))];
    assert_eq!(answer(&mut router, &"6:6:".parse().unwrap(), one, Tick(2)).len(), 1);
    assert!(router.unseen.is_empty() && router.poll_lookup(Tick(2)).is_none());
    assert!(router.handle_lookup(LookUpLine::Costly, &first, found.clone(), Tick(3)).is_empty());
    let again = Tick(3) + UNSEEN_RETRY;
    assert_eq!((router.poll_lookup(Tick(3)), router.deadline()), (None, Some(again)));
    assert_eq!(router.poll_lookup(again), theirs);
    let later: Snapshot = "7:7:".parse().unwrap();
    assert_eq!(router.handle_lookup(LookUpLine::Costly, &later, found, again).len(), 1);
}

#[test]
fn invalidation_of_everything_outdates_every_account() {
    let mut router = Router::new(1 << 20, Seeded::new(1));
    let snapshot: Snapshot = "5:5:".parse().unwrap();
    router.want(&account(1));
    let asked = poll(&mut router, Tick(0)).unwrap();
    let answers = asked.into_iter().map(|a| (a, Routes::new(vec![], 1.0))).collect();
    assert_eq!(answer(&mut router, &snapshot, answers, Tick(0)).len(), 1);
    assert!(router.get(&account(1), Tick(0)).is_some());
    router.handle_invalidation(Invalidation::new(9, Scope::All), Lsn(9));
    assert!(router.get(&account(1), Tick(0)).is_none());
}

/// A router that knows accounts `0..known`, each with an endpoint of its number.
fn router_that_knows(known: u8, cache_bytes: usize) -> Router {
    let mut router = Router::new(cache_bytes, Seeded::new(1));
    (0..known).for_each(|n| router.want(&account(n)));
    let asked = poll(&mut router, Tick(0)).unwrap();
    let n = |a: &AccountId| a.parse::<u8>().unwrap();
    let routes = asked.iter().map(|a| (a.clone(), Routes::new(vec![endpoint(n(a), n(a))], 1.0)));
    answer(&mut router, &"5:5:".parse().unwrap(), routes.collect(), Tick(0));
    router
}

#[test]
fn routes_that_are_old_are_asked_for_again_and_used_until_the_answer_comes() {
    let mut router = router_that_knows(1, 1 << 20);
    let before = Tick(0) + ROUTES_TTL - Duration::from_micros(1);
    assert!(router.get(&account(0), before).is_some() && poll(&mut router, before).is_none());
    let old = Tick(0) + ROUTES_TTL + TTL_OF_ENDPOINT;
    assert_eq!(router.get(&account(0), old).unwrap().endpoints.len(), 1);
    assert_eq!(poll(&mut router, old), Some(vec![account(0)]));
    assert_eq!(router.get(&account(0), old).unwrap().endpoints.len(), 1);
    let none = vec![(account(0), Routes::new(vec![], 1.0))];
    answer(&mut router, &"5:5:".parse().unwrap(), none, old);
    assert_eq!(router.get(&account(0), old).unwrap().endpoints.len(), 0);
    assert!(poll(&mut router, old).is_none());
}

#[test]
fn account_that_is_put_off_is_asked_for_again_when_its_time_has_come_and_keeps_nobody_waiting() {
    let snapshot: Snapshot = "5:5:".parse().unwrap();
    let mut router = Router::new(1 << 20, Seeded::new(1));
    (0..3).for_each(|n| router.want(&account(n)));
    assert_eq!(poll(&mut router, Tick(0)).unwrap().len(), 3);
    let later = Tick(0) + Duration::from_secs(5);
    let put_off = vec![(account(1), Duration::from_secs(5)), (account(0), Duration::ZERO)];
    router.put_off(LookUpLine::Usual, put_off, Tick(0));
    answer(&mut router, &snapshot, vec![(account(2), Routes::new(vec![], 1.0))], Tick(0));
    assert!(router.holds(&account(2)) && !router.holds(&account(1)));
    router.want(&account(1));
    router.want(&account(4));
    assert_eq!(poll(&mut router, Tick(0)), Some(vec![account(4), account(0)]));
    let answers = [4, 0].map(|n| (account(n), Routes::new(vec![], 1.0)));
    answer(&mut router, &snapshot, answers.to_vec(), Tick(0));
    assert_eq!((poll(&mut router, Tick(1)), router.deadline()), (None, Some(later)));
    assert_eq!(poll(&mut router, later), Some(vec![account(1)]));
}

#[test]
fn large_routes_that_nobody_needs_are_kept_while_a_look_up_is_not_answered() {
    // Nothing fits into the cache, so that what is known is pinned.
    let mut router = router_that_knows(2, 0);
    router.want(&account(9));
    assert!(poll(&mut router, Tick(1)).is_some());
    router.unpin(&account(0));
    assert!(router.get(&account(0), Tick(2)).is_some());
    answer(&mut router, &"5:5:".parse().unwrap(), vec![], Tick(3));
    assert_eq!(router.take_kept(), BTreeSet::from([account(0)]));
    router.unpin(&account(0));
    assert!(router.get(&account(0), Tick(3)).is_none());
    assert!(router.get(&account(1), Tick(3)).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Look-ups fail for ten minutes: no answer comes.
    #[test]
    fn account_that_is_known_keeps_its_routes_through_ten_minutes_without_look_ups(
        uses in proptest::collection::vec((0u64..600_000, 0u8..6, 0u8..4), 1..200),
    ) {
        let mut uses = uses;
        uses.sort_unstable();
        let mut router = router_that_knows(4, 1 << 20);
        let mut outdated = BTreeSet::new();
        let mut is_asked = false;
        for (ms, n, what) in uses {
            let now = Tick(0) + Duration::from_millis(ms);
            match what {
                0 => _ = router.pin(&account(n)),
                1 => router.unpin(&account(n)),
                2 if ms % 7 == 0 => {
                    outdated.insert(n);
                    let accounts = smallvec![account(n)];
                    let scope = Scope::Endpoint { endpoints: smallvec![], accounts };
                    router.handle_invalidation(Invalidation { xid: 9, scope, joined: smallvec![] }, Lsn(7));
                }
                _ => {}
            }
            let holds = n < 4 && !outdated.contains(&n);
            prop_assert_eq!(router.get(&account(n), now).is_some(), holds, "{} at {} ms", n, ms);
            if !holds {
                router.want(&account(n));
            }
            prop_assert!(poll(&mut router, now).is_none() || !std::mem::replace(&mut is_asked, true));
        }
    }
}

/// Looks account 1 up, and returns who has joined.
fn joined(router: &mut Router, endpoints: Vec<Arc<Endpoint>>, now: Tick) -> Vec<EndpointId> {
    router.want(&account(1));
    poll(router, now).unwrap();
    let snapshot: Snapshot = "1000:1000:".parse().unwrap();
    let answers = vec![(account(1), Routes::new(endpoints, 1.0))];
    answer(router, &snapshot, answers, now).remove(0).joined
}

fn named(n: u8) -> Invalidation {
    let (endpoints, accounts) = (smallvec![endpoint_id(n)], smallvec![account(1)]);
    Invalidation::new(3, Scope::Endpoint { endpoints, accounts })
}

#[test]
fn endpoint_has_joined_when_the_routes_before_did_not_take_as_much() {
    let mut router = Router::new(1 << 20, Seeded::new(1));
    let with = |types: &[&str], enabled| {
        let event_types = types.iter().map(|t| (*t).to_owned()).collect();
        Arc::new(Endpoint { event_types, enabled, ..(*endpoint(2, 1)).clone() })
    };
    let first = joined(&mut router, vec![endpoint(1, 1)], Tick(0));
    assert_eq!(first, [], "of an account that nothing was known of, nobody was named");
    let mut look_up = |endpoints| {
        router.handle_invalidation(named(2), Lsn(7));
        joined(&mut router, endpoints, Tick(1))
    };
    let two = [endpoint_id(2)];
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["a"], false)]), [], "it is not enabled");
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["a"], true)]), two, "switched on");
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["a"], true)]), [], "as it was");
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["b", "a"], true)]), two, "wants more");
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["b"], true)]), [], "wants less");
    assert_eq!(look_up(vec![endpoint(1, 1)]), [], "gone");
    assert_eq!(look_up(vec![endpoint(1, 1), with(&["b"], true)]), two, "and back");
}

#[test]
fn endpoint_of_an_unknown_account_has_joined_when_it_was_named_since_the_checkpoint() {
    for (checkpoint, expected) in [(Lsn(7), vec![endpoint_id(2)]), (Lsn(8), vec![])] {
        let mut router = Router::new(1 << 20, Seeded::new(1));
        router.handle_invalidation(named(2), Lsn(7));
        router.handle_checkpoint(checkpoint);
        let found = joined(&mut router, vec![endpoint(1, 1), endpoint(2, 1)], Tick(0));
        assert_eq!(found, expected, "{checkpoint}");
    }
}
