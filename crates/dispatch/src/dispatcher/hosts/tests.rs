//! A host that hangs, in virtual time: what others wait for their slots meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::queues::Queues;
use super::*;
use crate::dispatcher::{Effect, Input, Settings};
use crate::fixture;
use walhook_core::attempt::{DeliveryId, FailureKind, Outcome};
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::Persisted;

const ANSWER: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Hangs,
    /// Quick, at a host of its own.
    Elsewhere,
    /// Quick, at the host whose others hang.
    Beside,
}

/// So many accounts of one host hang, with some events each; beside them twenty of each other kind commit an event a
/// second, for 30 s. Returns how long each of those waited to be sent, in order.
#[expect(clippy::too_many_lines, reason = "one world, from its beginning to its end")]
fn waited(hang: usize) -> BTreeMap<Kind, Vec<Duration>> {
    let settings = Settings { fast_slots: 64, slow_slots: 256, ..fixture::settings() };
    let mut dispatcher = fixture::dispatcher(settings);
    let kind = |at: usize| match at {
        at if at < hang => Kind::Hangs,
        at if at < hang + 20 => Kind::Elsewhere,
        _ => Kind::Beside,
    };
    let (start, mut next_commit) = (Tick(1), 2_000);
    let mut now = start;
    let mut in_flight: BTreeMap<(Tick, DeliveryId), Outcome> = BTreeMap::new();
    let mut waits: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
    while now.since(start) < Duration::from_secs(30) {
        let (second, step) = (now.since(start).as_secs(), now.since(start).subsec_millis() / 50);
        let commits = |at: &usize| match kind(*at) {
            Kind::Hangs => second == 0 && step < 4,
            Kind::Elsewhere | Kind::Beside => at % 20 == step as usize,
        };
        for at in (0..hang + 40).filter(commits) {
            let position = fixture::position(next_commit, next_commit - 10);
            let event = Arc::new(fixture::event(&at.to_string(), position, &[next_commit]));
            let mut items = fixture::transaction(next_commit, [event]);
            items.push(Item::Progress { wal_end: Lsn(next_commit + 50) });
            next_commit += 100;
            dispatcher.handle(now, Input::Items(items));
        }
        while let Some(((at, id), _)) = in_flight.first_key_value()
            && *at <= now
        {
            let id = *id;
            let (_, outcome) = in_flight.pop_first().unwrap();
            dispatcher.handle(now, Input::Outcome { delivery: id, outcome });
        }
        while let Some(effect) = dispatcher.poll(now) {
            match effect {
                Effect::Send(dispatch) => {
                    let at: usize = dispatch.attempt.endpoint.id.parse().unwrap();
                    let (after, outcome) = match kind(at) {
                        Kind::Hangs => {
                            let timed_out = Outcome::failed(FailureKind::Timeout, "", TIMEOUT);
                            (TIMEOUT, timed_out)
                        }
                        Kind::Elsewhere | Kind::Beside => (ANSWER, fixture::answered(204)),
                    };
                    waits.entry(kind(at)).or_default().push(dispatch.waited);
                    in_flight.insert((now + after, dispatch.attempt.first().id), outcome);
                }
                Effect::Abort(id) => {
                    if let Some(key) = in_flight.keys().find(|(_, of)| *of == id).copied() {
                        in_flight.remove(&key);
                        let outcome = Outcome::failed(FailureKind::Aborted, "given up", STEP);
                        dispatcher.handle(now, Input::Outcome { delivery: id, outcome });
                    }
                }
                Effect::LookUp(look_up) => {
                    let routes = |account: &AccountId| {
                        let url = match kind(account.parse().unwrap()) {
                            Kind::Elsewhere => format!("http://{account}.example.com/"),
                            Kind::Hangs | Kind::Beside => {
                                format!("http://hooks.example.com/{account}")
                            }
                        };
                        let endpoint = Endpoint { url, ..fixture::endpoint(account, account) };
                        Routes::new(vec![Arc::new(endpoint)], 1.0)
                    };
                    let answer = look_up.answered(fixture::snapshot(), routes);
                    dispatcher.handle(now, Input::Routes(Box::new(answer)));
                }
                Effect::Store(_) => {
                    dispatcher.handle(now, Input::Stored(Box::<Persisted>::default()));
                }
                Effect::ReadDeferred(_)
                | Effect::ReadUnrouted(_)
                | Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. } => {}
            }
        }
        now = now + STEP;
    }
    waits.values_mut().for_each(|waits| waits.sort_unstable());
    waits
}

#[test]
fn accounts_elsewhere_wait_for_a_second_at_most_when_a_host_of_a_thousand_hangs() {
    let waits = waited(1_000);
    let of = |kind| {
        let waits: &Vec<Duration> = &waits[&kind];
        (waits.len(), waits[waits.len() / 2], waits[waits.len() * 99 / 100], *waits.last().unwrap())
    };
    let (elsewhere, beside) = (of(Kind::Elsewhere), of(Kind::Beside));
    println!("elsewhere {elsewhere:?}, beside {beside:?}");
    assert_eq!(elsewhere.0, 600, "all are sent at once but those of the first second");
    assert!(elsewhere.3 <= Duration::from_millis(1_200), "{elsewhere:?}");
    // They have a quarter more to wait for, and their turns among those that hang.
    assert_eq!(beside.0, 600);
    assert!(beside.2 <= Duration::from_secs(25), "{beside:?}");
}

#[test]
fn host_that_answers_has_all_fast_slots_while_another_hangs() {
    const SLOTS: u32 = 64;
    let settings = Settings { fast_slots: SLOTS, slow_slots: 256, ..fixture::settings() };
    let mut dispatcher = fixture::dispatcher(settings);
    // Fifty accounts whose endpoints hang, and thousands of events for those of a host that answers.
    let hangs = |account: &str| account.starts_with('h');
    let (start, mut now, mut next_commit) = (Tick(1), Tick(1), 2_000);
    let mut in_flight: BTreeMap<(Tick, DeliveryId), (bool, Outcome)> = BTreeMap::new();
    let mut most_while_hanging = 0;
    while now.since(start) < Duration::from_secs(8) {
        let is_first = now == start;
        let hanging = (0..50).filter(|_| is_first).map(|at| format!("h{at}"));
        let answering = (0..100).map(|at| format!("a{at}"));
        for account in hanging.chain(answering) {
            let position = fixture::position(next_commit, next_commit - 10);
            let event = Arc::new(fixture::event(&account, position, &[next_commit]));
            let mut items = fixture::transaction(next_commit, [event]);
            items.push(Item::Progress { wal_end: Lsn(next_commit + 50) });
            next_commit += 100;
            dispatcher.handle(now, Input::Items(items));
        }
        while let Some(entry) = in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, delivery), (_, outcome)) = entry.remove_entry();
            dispatcher.handle(now, Input::Outcome { delivery, outcome });
        }
        while let Some(effect) = dispatcher.poll(now) {
            if let Effect::Send(dispatch) = effect {
                let id = dispatch.attempt.first().id;
                let (after, sent) = if hangs(&dispatch.attempt.endpoint.id) {
                    (TIMEOUT, (true, Outcome::failed(FailureKind::Timeout, "", TIMEOUT)))
                } else {
                    (ANSWER, (false, fixture::answered(204)))
                };
                in_flight.insert((now + after, id), sent);
            } else if let Effect::LookUp(look_up) = effect {
                let routes = |account: &AccountId| {
                    let host = if hangs(account) { "hangs" } else { "answers" };
                    let url = format!("http://{host}.example.com/{account}");
                    let endpoint = Endpoint { url, ..fixture::endpoint(account, account) };
                    Routes::new(vec![Arc::new(endpoint)], 1.0)
                };
                let answer = look_up.answered(fixture::snapshot(), routes);
                dispatcher.handle(now, Input::Routes(Box::new(answer)));
            } else if let Effect::Store(_) = effect {
                dispatcher.handle(now, Input::Stored(Box::<Persisted>::default()));
            }
        }
        assert_eq!(dispatcher.sending.hosts().waiting, 0, "nobody waits for a host");
        if now < dispatcher.sending.hosts().hang_until {
            let answering = in_flight.values().filter(|(hangs, _)| !hangs).count();
            most_while_hanging = most_while_hanging.max(answering);
        }
        now = now + STEP;
    }
    assert!(most_while_hanging > most(SLOTS) as usize, "{most_while_hanging} of {SLOTS}");
}

#[derive(Debug, Clone)]
enum Action {
    Old(u8),
    Start(u8),
    End(prop::sample::Index),
    Wait(u8),
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0u8..3).prop_map(Action::Old),
        4 => (0u8..3).prop_map(Action::Start),
        2 => any::<prop::sample::Index>().prop_map(Action::End),
        2 => (0u8..3).prop_map(Action::Wait),
        2 => prop_oneof![0u64..300_000, Just(6_000_000)].prop_map(Action::Pass),
    ]
}

proptest! {
    /// The model: the moments at which a request became old, and a list of those in flight.
    #[test]
    fn only_a_host_that_hangs_is_held_and_nobody_waits_for_one_that_has_room(
        actions in prop::collection::vec(action(), 1..150),
    ) {
        const SLOTS: u32 = 16;
        let (mut hosts, mut queues) = (Hosts::default(), Queues::new(1));
        let (mut now, mut waiting) = (Tick(0), 0);
        let (mut old, mut in_flight) = (Vec::<(u8, Tick)>::new(), Vec::<(u8, HostNo)>::new());
        let url = |host: u8| format!("http://{host}.example.com/hook");
        for action in actions {
            match action {
                Action::Old(host) => {
                    old.push((host, now));
                    hosts.note_old(&url(host), SLOTS, now);
                }
                Action::Start(host) => {
                    if let Some(no) = hosts.find(&url(host), now)
                        && !hosts.is_full(no, SLOTS, now)
                    {
                        hosts.start(no);
                        in_flight.push((host, no));
                    }
                }
                Action::End(n) if !in_flight.is_empty() => {
                    let (_, no) = in_flight.swap_remove(n.index(in_flight.len()));
                    hosts.end(no);
                }
                Action::Wait(host) => {
                    if let Some(no) = hosts.find(&url(host), now)
                        && hosts.is_full(no, SLOTS, now)
                    {
                        let account = AccountId::new(waiting.to_string());
                        let queue = queues.intern(&account, &EndpointId::new("e"));
                        hosts.wait(no, queues.at(queue).account(), queue);
                        waiting += 1;
                    }
                }
                Action::End(_) => {}
                Action::Pass(us) => now = now + Duration::from_micros(us),
            }
            let left = hosts.leave(SLOTS, now).len();
            waiting -= left;
            prop_assert_eq!(hosts.waiting, waiting);
            let mut may_leave = 0;
            for host in 0..3 {
                let Some(no) = hosts.find(&url(host), now) else { continue };
                let held = in_flight.iter().filter(|(of, _)| *of == host).count();
                prop_assert!(held <= 12, "{held} of 16");
                let of: Vec<Tick> =
                    old.iter().filter(|(of, _)| *of == host).map(|(_, at)| *at).collect();
                let hung = |four: &[Tick]| {
                    four[3].since(four[0]) < WINDOW && now.since(four[3]) < HANGS_FOR
                };
                let hangs = of.windows(4).any(hung);
                let is_full = hosts.is_full(no, SLOTS, now);
                prop_assert!(!is_full || (held == 12 && hangs), "{host} is held");
                may_leave += usize::from(!is_full && hosts.of[&no].line.len() > 12);
            }
            prop_assert!(may_leave == 0 || left > 0, "nobody leaves");
        }
    }
}
