use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Action {
    Pass(u64),
    /// On one of three levels.
    Hold(usize, Option<usize>),
    Begin,
    End(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0u64..3_000_000_000).prop_map(Action::Pass),
        6 => (0usize..3, prop::option::of(0..SHARED.len())).prop_map(|(l, c)| Action::Hold(l, c)),
        3 => Just(Action::Begin),
        3 => any::<usize>().prop_map(Action::End),
    ]
}

fn read(clocks: &[Clock; 3], now: Tick) -> Reading {
    clocks.iter().fold(Reading::at(now), |below, clock| clock.read(&below))
}

proptest! {
    /// The model: a list of what held when, looked through from the beginning.
    #[test]
    fn clocks_count_each_moment_for_the_first_cause_that_holds_on_any_level(
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut clocks = [Clock::default(); 3];
        let mut now = Tick(5);
        let mut held: Vec<(u64, [Option<usize>; 3])> = Vec::new();
        let mut holds = [None; 3];
        let mut waiting: Vec<(Tick, Reading)> = Vec::new();
        for action in actions {
            match action {
                Action::Pass(us) => {
                    held.push((us, holds));
                    now = Tick(now.0 + us);
                }
                Action::Hold(level, cause) => {
                    let below = clocks.iter().take(level);
                    let below = below.fold(Reading::at(now), |below, clock| clock.read(&below));
                    clocks[level].hold(cause.map(|at| SHARED[at]), &below);
                    holds[level] = cause;
                }
                Action::Begin => waiting.push((now, read(&clocks, now))),
                Action::End(n) if !waiting.is_empty() => {
                    let (began, mark) = waiting.remove(n % waiting.len());
                    let mut expected = [0u64; SHARED.len()];
                    let mut at = now.0;
                    for (us, holds) in held.iter().rev() {
                        let since = at - us;
                        let first = holds.iter().flatten().min().copied().unwrap_or(TURN);
                        expected[first] += at.saturating_sub(since.max(began.0));
                        at = since;
                    }
                    let mut waits = Waits::default();
                    let passed = read(&clocks, now).since(&mark);
                    passed.add_to(&mut waits, now.since(began));
                    prop_assert_eq!(waits.total_us(), now.0 - began.0, "each moment counts once");
                    if now.0 - began.0 < 1 << 32 {
                        for (cause, expected) in SHARED.into_iter().zip(expected) {
                            prop_assert_eq!(waits.us(cause), expected, "{:?}", cause);
                        }
                    }
                }
                Action::End(_) => {}
            }
        }
    }
}

#[test]
fn shared_causes_stand_in_the_order_of_all_causes() {
    let shared = Cause::ALL.into_iter().filter(|cause| SHARED.contains(cause));
    assert!(shared.eq(SHARED));
}

#[test]
fn cause_that_holds_for_hours_is_told_as_long_as_it_held() {
    let (mut clock, began) = (Clock::default(), Tick(7));
    clock.hold(Some(Cause::RateLimit), &Reading::at(began));
    let mark = clock.read(&Reading::at(began));
    let ended = began + Duration::from_secs(10 * 3_600);
    let mut waits = Waits::default();
    clock.read(&Reading::at(ended)).since(&mark).add_to(&mut waits, ended.since(began));
    assert!(waits.iter().eq([(Cause::RateLimit, 36_000_000_000)]));
}
