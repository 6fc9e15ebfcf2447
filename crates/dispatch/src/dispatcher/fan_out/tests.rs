//! An account with a thousand endpoints, and a small one beside it.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::super::{Dispatch, Effect, Input, OperatorInput, Settings, Start};
use super::*;
use crate::fixture;
use walhook_core::endpoint::Endpoint;
use walhook_core::event::{Invalidation, Item, Scope};
use walhook_core::id::JobId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Joined, Persisted};

const ENDPOINTS: usize = 1_000;
const SLICE: usize = 10;
const LANE_MAX: usize = 50;
const NOW: Tick = Tick(60_000_000);

fn dispatcher() -> Dispatcher {
    let settings = Settings { slice: SLICE, lane_max: LANE_MAX, ..fixture::settings() };
    fixture::dispatcher(settings)
}

fn commit(dispatcher: &mut Dispatcher, account: &str, commit: u64, now: Tick) {
    let event = fixture::event(account, fixture::position(commit, commit - 10), &[1]);
    let items = fixture::transaction(commit, [Arc::new(event)]).into_iter();
    let progress = Item::Progress { wal_end: Lsn(commit + 50) };
    items.chain([progress]).for_each(|item| dispatcher.handle_item(item, now));
}

fn routes(account: &AccountId) -> Routes {
    let n = if account.as_str() == "large" { ENDPOINTS } else { 1 };
    let ids: Vec<String> = (0..n).map(|n| format!("{account}-{n}")).collect();
    fixture::routes(account, ids.iter().map(String::as_str))
}

fn look_up(dispatcher: &mut Dispatcher, routes: impl Fn(&AccountId) -> Routes, now: Tick) {
    while let Some(look_up) = dispatcher.poll_lookup(now) {
        dispatcher.handle_lookup(look_up.answered(fixture::snapshot(), &routes), now);
    }
}

fn take(dispatcher: &mut Dispatcher, dispatch: &Dispatch, now: Tick) {
    dispatcher.handle_outcome(dispatch.attempt.first().id, &fixture::answered(204), now);
}

fn store(dispatcher: &mut Dispatcher, now: Tick) {
    if dispatcher.poll_persist(now).is_some() {
        dispatcher.handle_persisted(&Persisted::default(), now);
    }
}

#[test]
fn event_of_a_large_account_goes_out_as_its_lane_has_use_for_it_and_others_go_between() {
    let mut dispatcher = dispatcher();
    let mut now = NOW;
    commit(&mut dispatcher, "large", 2_000, now);
    look_up(&mut dispatcher, routes, now);
    commit(&mut dispatcher, "small", 3_000, now);
    look_up(&mut dispatcher, routes, now);
    commit(&mut dispatcher, "large", 4_000, now);
    let (mut order, mut most) = (Vec::new(), 0);
    while order.len() < 2 * ENDPOINTS + 1 {
        now = now + Duration::from_millis(200);
        dispatcher.fan_out(now);
        most = most.max(dispatcher.gauges().queued_bytes);
        let sent: Vec<Dispatch> = std::iter::from_fn(|| dispatcher.poll_attempt(now)).collect();
        assert!(!sent.is_empty(), "stands still after {}", order.len());
        for dispatch in sent {
            take(&mut dispatcher, &dispatch, now);
            let event = &dispatch.attempt.first().event;
            order.push((
                event.account.clone(),
                event.position,
                dispatch.attempt.endpoint.id.clone(),
            ));
        }
        store(&mut dispatcher, now);
    }
    let small = order.iter().position(|(account, ..)| account.as_str() == "small").unwrap();
    assert!(small < 2 * LANE_MAX, "the small account waited for {small} deliveries");
    assert!(
        most < (LANE_MAX + 2 * SLICE + 10) * (DELIVERY_BYTES + 300),
        "{most} bytes were queued"
    );
    let of_large = order.iter().filter(|(account, ..)| account.as_str() == "large");
    let (first, second): (Vec<_>, Vec<_>) =
        of_large.partition(|(_, position, _)| position.commit_lsn() == Lsn(2_000));
    for mut ids in [first, second] {
        ids.sort_by(|a, b| a.2.cmp(&b.2));
        ids.dedup();
        assert_eq!(ids.len(), ENDPOINTS, "each endpoint gets each event");
    }
    now = now + Duration::from_millis(200);
    dispatcher.fan_out(now);
    store(&mut dispatcher, now);
    assert_eq!(dispatcher.gauges().queued_bytes, 0);
    assert_eq!(dispatcher.frontier(), Lsn(4_050));
}

#[test]
fn event_of_a_large_account_that_does_not_move_is_deferred_and_lets_the_frontier_go() {
    let mut dispatcher = dispatcher();
    let mut now = NOW;
    commit(&mut dispatcher, "large", 2_000, now);
    look_up(&mut dispatcher, routes, now);
    // Nothing of what is sent is ever answered.
    for _ in 0..600 {
        now = now + Duration::from_millis(200);
        dispatcher.fan_out(now);
        while dispatcher.poll_attempt(now).is_some() {}
        while dispatcher.poll_abort().is_some() {}
        look_up(&mut dispatcher, routes, now);
        store(&mut dispatcher, now);
    }
    let deferred: u64 = dispatcher.counters().deferred.iter().sum();
    assert_eq!(deferred, ENDPOINTS as u64);
    assert_eq!(dispatcher.frontier(), Lsn(2_050));
}

#[test]
fn event_of_an_account_with_too_many_endpoints_is_a_dead_letter_and_nothing_stays_of_it() {
    let mut dispatcher = dispatcher();
    commit(&mut dispatcher, "large", 2_000, NOW);
    let kept = dispatcher.gauges().kept_bytes;
    look_up(&mut dispatcher, |_| Routes::too_large(1.0), NOW);
    let now = NOW + Duration::from_millis(200);
    let batch = dispatcher.poll_persist(now).unwrap();
    assert_eq!(batch.dead_letters.len(), 1);
    assert!(
        batch.dead_letters[0].detail.contains("raise memory.limit"),
        "{:?}",
        batch.dead_letters
    );
    dispatcher.handle_persisted(&Persisted::default(), now);
    assert_eq!(dispatcher.gauges().queued_bytes, 0);
    assert!(dispatcher.gauges().kept_bytes < kept + 1_000);
    assert_eq!(dispatcher.frontier(), Lsn(2_050));
}

#[test]
fn routes_of_a_large_account_are_counted_while_it_is_active_and_given_back_when_it_is_idle() {
    let mut dispatcher = dispatcher();
    let mut now = NOW;
    let kept = dispatcher.gauges().kept_bytes;
    // Routes that nobody wants an event for are not kept at all.
    let none = |account: &AccountId| {
        let off = |e: Arc<Endpoint>| Arc::new(Endpoint { enabled: false, ..(*e).clone() });
        let large = (0..20).flat_map(|_| routes(account).endpoints).enumerate();
        let renamed = |(n, e): (usize, Arc<Endpoint>)| {
            Arc::new(Endpoint { id: EndpointId::new(format!("{n:06}")), ..(*off(e)).clone() })
        };
        Routes::new(large.map(renamed).collect(), 1.0)
    };
    commit(&mut dispatcher, "large", 2_000, now);
    look_up(&mut dispatcher, none, now);
    assert!(dispatcher.gauges().kept_bytes > kept + 20_000 * 200, "they are counted");
    while dispatcher.deadline_at(now).is_some_and(|due| due <= now)
        && dispatcher.routing.waiting.is_ready()
    {
        dispatcher.fan_out(now);
    }
    now = now + Duration::from_millis(200);
    store(&mut dispatcher, now);
    assert_eq!(dispatcher.frontier(), Lsn(2_050));
    assert!(dispatcher.gauges().kept_bytes < kept + 1_000, "they are given back");
}

#[test]
fn events_that_waited_for_a_look_up_become_rows_no_faster_than_memory_allows() {
    const EVENTS: u64 = 700;
    const LIMIT: usize = 1 << 20;
    let settings = Settings { memory_limit: LIMIT, ..fixture::settings() };
    let mut dispatcher = fixture::dispatcher(settings);
    let ids: Vec<String> = (0..15).map(|n| format!("e{n}")).collect();
    for (job, id) in (1..).map(JobId).zip(&ids) {
        let (endpoint, reason) = (EndpointId::new(id.as_str()), "why".to_owned());
        dispatcher.handle_operator(OperatorInput::Pause { job, endpoint, reason }, NOW);
    }
    for n in 0..EVENTS {
        commit(&mut dispatcher, "small", 2_000 + n * 100, NOW);
    }
    look_up(
        &mut dispatcher,
        |account| fixture::routes(account, ids.iter().map(String::as_str)),
        NOW,
    );
    let (mut now, mut rows, mut most) = (NOW, 0, 0);
    for _ in 0..1_000 {
        for _ in 0..100 {
            dispatcher.fan_out(now);
            most = most.max(dispatcher.gauges().queued_bytes);
        }
        now = now + Duration::from_millis(200);
        if let Some(batch) = dispatcher.poll_persist(now) {
            rows += batch.deferred.len();
            dispatcher.handle_persisted(&Persisted::default(), now);
        }
    }
    assert_eq!(rows, ids.len() * usize::try_from(EVENTS).unwrap());
    assert!(most < LIMIT + LIMIT / 4, "{most} bytes were held");
}

#[test]
fn event_whose_endpoints_cannot_be_read_any_more_amid_its_slices_is_counted_once() {
    let mut dispatcher = dispatcher();
    let mut now = NOW;
    commit(&mut dispatcher, "large", 2_000, now);
    look_up(&mut dispatcher, routes, now);
    let sent: Vec<Dispatch> = std::iter::from_fn(|| dispatcher.poll_attempt(now)).collect();
    assert!(!sent.is_empty());
    dispatcher.handle_item(Item::Invalidate(Invalidation::new(5, Scope::All)), now);
    look_up(&mut dispatcher, |_| Routes::refused("refused".to_owned(), 1.0), now);
    sent.iter().for_each(|dispatch| take(&mut dispatcher, dispatch, now));
    for _ in 0..50 {
        now = now + Duration::from_millis(200);
        dispatcher.clear_next(now);
        dispatcher.fan_out(now);
        look_up(&mut dispatcher, |_| Routes::refused("refused".to_owned(), 1.0), now);
        while let Some(dispatch) = dispatcher.poll_attempt(now) {
            take(&mut dispatcher, &dispatch, now);
        }
        store(&mut dispatcher, now);
    }
    assert_eq!(dispatcher.gauges().queued_bytes, 0);
    assert_eq!(dispatcher.frontier(), Lsn(2_050));
}

/// Carries out all that is asked for, where accounts have two endpoints; returns what is sent.
fn carry_out(dispatcher: &mut Dispatcher, now: Tick) -> Vec<Dispatch> {
    let mut sent = Vec::new();
    while let Some(effect) = dispatcher.poll(now) {
        match effect {
            Effect::Send(dispatch) => sent.push(dispatch),
            Effect::LookUp(ask) => {
                let routes = |account: &AccountId| fixture::routes(account, ["a", "b"]);
                let answer = ask.answered(fixture::snapshot(), routes);
                dispatcher.handle(now, Input::Routes(Box::new(answer)));
                sent.extend(carry_out(dispatcher, now));
            }
            Effect::Store(_) => dispatcher.handle(now, Input::Stored(Box::default())),
            Effect::Abort(_)
            | Effect::ReadDeferred(_)
            | Effect::ReadUnrouted(_)
            | Effect::Flush(_)
            | Effect::Settled(_)
            | Effect::Report(_)
            | Effect::StateFull { .. } => {}
        }
    }
    sent
}

#[test]
fn account_whose_first_event_one_endpoint_joined_too_late_for_keeps_its_order_at_the_other() {
    // An earlier leader has told of an endpoint that the first event is too old for, and that stands before the other.
    let joined = vec![Joined { endpoint: EndpointId::new("a"), at: Lsn(2_020) }];
    let start = Start { frontier: Lsn(1_000), joined, ..Start::default() };
    let mut dispatcher = Dispatcher::new(fixture::settings(), start, SmallRng::seed_from_u64(1));
    let mut now = NOW;
    commit(&mut dispatcher, "large", 2_000, now);
    let [first] = &carry_out(&mut dispatcher, now)[..] else { panic!("b gets it alone") };
    assert_eq!(first.attempt.endpoint.id.as_str(), "b");
    let accounts: Vec<_> = dispatcher.queues.accounts().map(|account| account.id).collect();
    assert_eq!(accounts, [&AccountId::new("large")], "one place for each account");
    // It takes so long that it gets a row, which the checkpoint passes: nothing of the one that joined is left.
    for _ in 0..100 {
        now = now + Duration::from_secs(1);
        dispatcher.handle(now, Input::Items(vec![Item::Progress { wal_end: Lsn(2_500) }]));
        assert!(carry_out(&mut dispatcher, now).is_empty());
    }
    assert_eq!(dispatcher.frontier(), Lsn(2_500));
    commit(&mut dispatcher, "large", 3_000, now);
    let sent = carry_out(&mut dispatcher, now);
    let to: Vec<&str> = sent.iter().map(|d| d.attempt.endpoint.id.as_str()).collect();
    assert_eq!(to, ["a"], "the other waits for the event of the same row that is in flight");
}
