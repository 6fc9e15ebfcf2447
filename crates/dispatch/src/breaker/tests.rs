//! When a breaker opens, and when its endpoint is probed.

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;

proptest! {
    #[test]
    fn breaker_opens_when_a_scan_of_all_requests_says_so(
        requests in proptest::collection::vec(
            (0u64..3_000_000, 0u8..4, proptest::bool::weighted(0.4)), 1..120,
        ),
    ) {
        let mut failures = FailureWindow::default();
        let mut all: Vec<(Tick, AttemptHealth, bool)> = Vec::new();
        let mut now = Tick(0);
        for (after, kind, resent) in requests {
            now = now + Duration::from_micros(after);
            let went = match kind {
                0 => AttemptHealth::Well,
                1 => AttemptHealth::Unanswered,
                _ => AttemptHealth::Badly,
            };
            all.push((now, went, resent));
            let second = |at: Tick| at.0 / 1_000_000;
            let recent = all.iter().filter(|(at, ..)| second(*at) + 10 > second(now));
            let recent: Vec<(AttemptHealth, bool)> = recent.map(|(_, went, sent)| (*went, *sent)).collect();
            let failed = recent.iter().filter(|(went, _)| *went != AttemptHealth::Well).count();
            let sent_again = recent.iter().filter(|(_, resent)| *resent).count();
            let in_a_row = all.iter().rev().take_while(|(_, went, _)| *went == AttemptHealth::Unanswered);
            let opens = (went != AttemptHealth::Well || resent)
                && (recent.len() >= 10
                    && (failed * 10 >= recent.len() * 7 || sent_again * 2 > recent.len())
                    || in_a_row.count() >= 5);
            prop_assert_eq!(failures.note(went, resent, now), opens);
        }
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn breaker_tries_a_dead_endpoint_often_at_first_and_at_least_once_a_minute() {
    let mut rng = SmallRng::seed_from_u64(1);
    for (dead, every) in [
        (Duration::ZERO, 4.0),
        (Duration::from_secs(14 * 60), 4.0),
        (Duration::from_secs(20 * 60), 6.0),
        (HOUR, 18.0),
        (3 * HOUR, 54.0),
        (4 * HOUR, 60.0),
        (24 * 30 * HOUR, 60.0),
    ] {
        let mut breaker = Breaker::open(Tick(0), None, None, &mut rng);
        let now = Tick(0) + dead;
        for id in 0..20 {
            breaker.begin_probe(DeliveryId(id), now);
            let (until, _) = breaker.fail(false, None, now, &mut rng);
            let wait = until.since(now).as_secs_f64();
            assert!((every * 0.75..=every).contains(&wait), "{wait} s after {dead:?}");
            assert!(!breaker.wants_probe(until - Duration::from_micros(1)));
            assert!(breaker.wants_probe(until));
        }
    }
}

/// Of all that an earlier leader left, as many are tried in each second as were under that leader.
#[test]
fn breaker_of_an_earlier_leader_is_tried_at_some_moment_of_the_time_between_two_probes() {
    let mut rng = SmallRng::seed_from_u64(1);
    for (dead, every) in [(Duration::ZERO, 4), (HOUR, 18), (24 * 30 * HOUR, 60)] {
        let every = Duration::from_secs(every);
        let (mut early, mut unhurried) = (0, 0);
        for _ in 0..1_000 {
            let mut breaker = Breaker::recovered(dead, Tick(7), &mut rng);
            let first = breaker.next_try();
            assert!(first.since(Tick(7)) <= every, "{first:?} after {dead:?}");
            early += u32::from(first < Tick(7) + every / 2);
            match breaker.sent(None, first, &mut rng) {
                None => unhurried += 1,
                Some(patience) => {
                    assert_eq!(patience, PATIENCE_MIN);
                    assert_eq!(breaker.sent(None, first + UNHURRIED_EVERY, &mut rng), None);
                }
            }
            // It goes on as if the earlier leader did.
            let (next, _) = breaker.fail(false, None, first, &mut rng);
            assert!(next.since(first) >= every / 4 * 3, "{next:?} after {dead:?}");
        }
        assert!((400..600).contains(&early), "{early} of 1,000");
        assert!(unhurried < 60, "{unhurried} of 1,000 hold their slots for the whole time-out");
    }
}

#[test]
fn probe_has_as_long_as_answers_used_to_take_and_now_and_then_all_the_time() {
    let mut rng = SmallRng::seed_from_u64(1);
    let second = Duration::from_secs(1);
    for (usual, patience) in [(second / 20, 2 * second), (4 * second, 6 * second)] {
        let mut breaker = Breaker::open(Tick(0), None, None, &mut rng);
        let (mut now, mut unhurried) = (Tick(0), Vec::new());
        while now < Tick(0) + 2 * HOUR {
            match breaker.sent(Some(usual), now, &mut rng) {
                Some(given) => assert_eq!(given, patience),
                None => unhurried.push(now),
            }
            now = now + 4 * second;
        }
        assert!(unhurried[0] >= Tick(0) + UNHURRIED_EVERY, "{unhurried:?}");
        assert!((3..=8).contains(&unhurried.len()), "{unhurried:?}");
    }
    // Nobody knows how long this one takes.
    let mut breaker = Breaker::open(Tick(0), None, None, &mut rng);
    assert_eq!(breaker.sent(None, Tick(0), &mut rng), None);
    assert_eq!(breaker.sent(None, Tick(0) + second, &mut rng), Some(PATIENCE_MIN));
}

#[test]
fn probe_is_the_same_delivery_while_nothing_answers_but_not_for_ever() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut breaker = Breaker::open(Tick(0), None, None, &mut rng);
    breaker.begin_probe(DeliveryId(7), Tick(0));
    let mut now = Tick(0);
    for n in 1..=KEPT_MAX {
        let (until, keeps) = breaker.fail(true, None, now, &mut rng);
        assert_eq!(keeps, n < KEPT_MAX);
        assert_eq!(breaker.probe(), keeps.then_some(DeliveryId(7)));
        now = until;
    }
    breaker.begin_probe(DeliveryId(8), now);
    assert!(!breaker.fail(false, None, now, &mut rng).1, "it answers, and refuses this one");
}

#[test]
fn breaker_is_brought_forward_but_no_nearer_to_its_last_probe_than_to_any() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut breaker = Breaker::open(Tick(0), None, None, &mut rng);
    let now = Tick(0) + 5 * HOUR;
    breaker.begin_probe(DeliveryId(1), now);
    breaker.sent(None, now, &mut rng);
    breaker.fail(true, None, now, &mut rng);
    let soon = now + Duration::from_secs(1);
    assert_eq!(breaker.bring_forward(soon), Some(now + EVERY_MIN));
    assert_eq!(breaker.bring_forward(soon), None, "it is");
    let (until, _) = breaker.fail(true, None, now + EVERY_MIN, &mut rng);
    let later = until - Duration::from_secs(10);
    assert_eq!(breaker.bring_forward(later), Some(later));
}

#[test]
fn endpoint_is_not_tried_before_the_time_that_it_asked_for_or_a_minute() {
    let mut rng = SmallRng::seed_from_u64(1);
    let second = Duration::from_secs(1);
    let least = [(0, 3), (1, 3), (20, 20), (60, 60), (3_600, 60)];
    for (asked, least) in least.map(|(asked, least)| (Some(asked * second), least * second)) {
        let mut breaker = Breaker::open(Tick(0), asked, None, &mut rng);
        let mut now = breaker.next_try();
        assert!((least..=least.max(EVERY_MIN)).contains(&now.since(Tick(0))), "{asked:?}: {now:?}");
        for id in 0..10 {
            breaker.begin_probe(DeliveryId(id), now);
            let (until, _) = breaker.fail(false, asked, now, &mut rng);
            assert!((least..=least.max(EVERY_MIN)).contains(&until.since(now)), "{asked:?}");
            assert!(!breaker.is_asked_to_wait(until));
            now = until;
        }
        let (until, _) = breaker.fail(false, None, now, &mut rng);
        assert!(until.since(now) <= EVERY_MIN, "it asked for nothing");
    }
}

#[test]
fn breaker_that_opens_again_at_once_goes_on_where_it_was() {
    let mut rng = SmallRng::seed_from_u64(1);
    let breaker = Breaker::open(Tick(0), None, None, &mut rng);
    let back = Tick(0) + 5 * HOUR;
    let closed = breaker.close(back);
    let again = |after: Duration, rng: &mut SmallRng| {
        let now = back + after;
        Breaker::open(now, None, Some(closed), rng).next_try().since(now)
    };
    assert!(again(Duration::from_secs(10), &mut rng) > Duration::from_secs(40));
    assert!(again(Duration::from_secs(90), &mut rng) <= EVERY_MIN);
}
