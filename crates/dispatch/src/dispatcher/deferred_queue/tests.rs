//! Against a naive model: the spans in which the queue was stopped, and where it stands.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::fixture;
use walhook_core::event::{AccountId, EndpointId, RowKeys};
use walhook_core::persist::{EventKey, RowKey, Tried};

#[derive(Debug, Clone)]
enum Action {
    /// So much time goes by.
    Pass(u64),
    Open,
    Close,
    Paused(u32),
    /// A row that fails is there, and is due then.
    Fail(u64),
    Stand(Option<Pool>),
    Outdate,
    HandOut,
    Wake,
    Timer,
    Suspend,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1u64..1_000_000).prop_map(Action::Pass),
        3 => Just(Action::Open),
        3 => Just(Action::Close),
        1 => any::<u32>().prop_map(Action::Paused),
        2 => (0u64..1_000_000).prop_map(Action::Fail),
        4 => prop_oneof![Just(None), Just(Some(Pool::Fast)), Just(Some(Pool::Probe))]
            .prop_map(Action::Stand),
        2 => Just(Action::Outdate),
        2 => Just(Action::HandOut),
        2 => Just(Action::Wake),
        3 => Just(Action::Timer),
        1 => Just(Action::Suspend),
    ]
}

/// A row that is stored.
fn row(queue: &mut DeferredQueue, commit: u64, due: Tick) {
    let event = fixture::event("7", fixture::position(commit, commit), &[commit]);
    let key = RowKey { event: EventKey::of(&event), replay: None };
    let backlog = queue.backlog_mut();
    backlog.defer(&key, &RowKeys::from_slice(&[commit]), &Tried::default(), Some(due), false);
    backlog.handed_out();
    backlog.stored(&key);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn queue_is_stopped_for_as_long_as_its_breaker_was_open_and_told_of_once(
        before in 0i64..1_000, actions in prop::collection::vec(action(), 0..80),
    ) {
        let id = QueueId { account: AccountId::new("7"), endpoint: EndpointId::new("8") };
        let stored = BacklogRow {
            queue: id.clone(),
            blocked: Blocked::Keys(vec![]),
            rows: 0,
            failing_since_us: None,
            stopped_us: before,
            open_until_us: None,
        };
        let (_, mut queue) = DeferredQueue::recovered(stored);
        let (mut now, mut rng, mut commit) = (Tick(1), SmallRng::seed_from_u64(1), 0);
        // Spans that the breaker was open, the one that lasts, and pauses.
        let (mut spans, mut open, mut paused) = (Vec::<(Tick, Tick)>::new(), None::<Tick>, before);
        // Of the timers the one that was set last: it is the first that comes.
        let (mut in_line, mut stale, mut timer) = (None::<Pool>, false, None::<Tick>);
        let mut suspended = false;
        for action in actions {
            match action {
                Action::Pass(us) => now = now + Duration::from_micros(us),
                Action::Open if open.is_none() && !suspended => {
                    let until = queue.open_breaker(None, now, &mut rng);
                    prop_assert!(until > now);
                    open = Some(now);
                }
                Action::Close => {
                    prop_assert_eq!(queue.close_breaker(now), open.is_some());
                    spans.extend(open.take().map(|since| (since, now)));
                }
                Action::Paused(us) => {
                    queue.end_pause(i64::from(us), now);
                    paused += i64::from(us);
                }
                Action::Fail(us) if !suspended => {
                    commit += 1;
                    row(&mut queue, commit, now + Duration::from_micros(us));
                }
                Action::Stand(pool) => {
                    prop_assert_eq!(queue.set_in_line(pool), std::mem::replace(&mut in_line, pool));
                }
                Action::Outdate => prop_assert_eq!(queue.outdate(), !std::mem::replace(&mut stale, true)),
                Action::HandOut => {
                    stale = false;
                    let told = queue.hand_out(&id, now, 100);
                    prop_assert_eq!(told.is_some(), commit > 0);
                    if let Some(told) = told {
                        prop_assert_eq!((told.rows, told.stopped_us), (commit, queue.stopped_us(now)));
                        prop_assert_eq!(told.open_until_us.is_some(), open.is_some());
                    }
                }
                Action::Wake => {
                    queue.wake(now);
                    timer = timer.filter(|timer| *timer > now);
                }
                Action::Timer => {
                    let next = match queue.breaker() {
                        Some(breaker) => breaker.open_until(),
                        None => queue.backlog().next_due(),
                    };
                    let set = next.filter(|due| *due > now && timer.is_none_or(|timer| *due < timer));
                    prop_assert_eq!(queue.take_timer(now), set);
                    timer = set.or(timer);
                }
                Action::Suspend if !suspended => {
                    queue.suspend("full", now);
                    spans.extend(open.take().map(|since| (since, now)));
                    suspended = true;
                }
                Action::Open | Action::Fail(_) | Action::Suspend => {}
            }
            let lasts = open.map(|since| (since, now));
            let stopped = spans.iter().chain(&lasts).map(|(from, to)| micros(to.since(*from))).sum::<u64>();
            prop_assert_eq!(queue.stopped_us(now), paused.saturating_add_unsigned(stopped));
            prop_assert_eq!((queue.is_open(), queue.is_suspended()), (open.is_some(), suspended));
            prop_assert!(open.is_none() || *queue.backlog().blocked() == Blocked::All);
            prop_assert!(!(queue.is_forgettable() && (stale || commit > 0)));
        }
    }
}

#[test]
fn endpoint_fails_since_its_first_failure_until_it_takes_something() {
    let mut queue = DeferredQueue::empty();
    assert!(!queue.end_failing());
    assert_eq!((queue.fail_since_us(10), queue.fail_since_us(20)), (None, Some(10)));
    queue.end_pause(5, Tick(5));
    assert_eq!(queue.fail_since_us(30), Some(15), "a pause is no failure");
    assert!(queue.end_failing());
    assert_eq!(queue.fail_since_us(40), None);
}
