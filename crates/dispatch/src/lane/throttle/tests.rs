use proptest::prelude::*;

use super::*;

/// What came of a request, which began and ended after so many milliseconds.
fn outcome() -> impl Strategy<Value = (bool, bool, u64, u64)> {
    (any::<bool>(), any::<bool>(), 0u64..2_000, 0u64..2_000)
}

proptest! {
    #[test]
    fn throttle_keeps_its_bounds_and_is_lowered_once_for_what_was_sent_together(
        outcomes in prop::collection::vec(outcome(), 0..300), lately in 0u32..2_000,
    ) {
        let (mut throttle, mut now) = (Throttle::new(), Tick(0));
        let mut lowered_at = Tick(0);
        for (taken, waits, began_ms, ms) in outcomes {
            now = now + Duration::from_millis(ms);
            let started = Tick(now.0.saturating_sub(began_ms * 1_000));
            let before = throttle.spacing();
            if taken {
                throttle.took(waits);
                prop_assert!(throttle.spacing() <= before || before.is_none());
            } else if throttle.refused(started, lately, now) {
                prop_assert!(started >= lowered_at);
                prop_assert!(throttle.spacing() >= before);
                lowered_at = now;
            } else {
                prop_assert_eq!(throttle.spacing(), before);
            }
            if let Some(spacing) = throttle.spacing() {
                prop_assert!(spacing <= RESTS_MAX && spacing >= Duration::from_micros(500));
            }
        }
    }
}

#[test]
fn endpoint_that_says_nothing_any_more_is_forgotten_once_it_is_as_fast_as_before() {
    let (mut throttle, now) = (Throttle::new(), Tick(1));
    (0..4).for_each(|_| _ = throttle.refused(now, 100, now));
    assert!(throttle.spacing().is_some());
    assert!(throttle.took(false), "it is remembered while little is sent");
    let waits = std::iter::repeat_with(|| throttle.took(true));
    let taken = waits.take_while(|remembered| *remembered).count();
    assert!((10..80).contains(&taken), "{taken}");
    assert_eq!(throttle.spacing(), None);
}

#[test]
fn tries_that_are_far_apart_do_not_say_that_it_takes_nothing() {
    for (apart_s, takes_nothing) in [(4, true), (10, false)] {
        let (mut throttle, mut now) = (Throttle::new(), Tick(1));
        for _ in 0..NOTHING_TAKEN {
            assert!(!throttle.takes_nothing(now));
            now = now + Duration::from_secs(apart_s);
            throttle.refused(now, 0, now);
        }
        assert_eq!(throttle.takes_nothing(now), takes_nothing);
    }
}
