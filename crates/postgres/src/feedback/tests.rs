use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Tick {
    Tick(seconds * 1_000_000)
}

fn feedback(wal_sender_timeout: Duration) -> Feedback {
    Feedback::new(Lsn(100), Lsn::ZERO, wal_sender_timeout, at(0))
}

fn update(write: u64, flush: u64, request_reply: bool) -> Option<StatusUpdate> {
    Some(StatusUpdate { write: Lsn(write), flush: Lsn(flush), request_reply })
}

#[test]
fn feedback_comes_three_times_within_the_servers_timeout() {
    for (timeout_s, interval_s) in [(3, 1), (15, 5), (30, 10), (60, 10), (3_600, 10), (0, 10)] {
        let mut feedback = feedback(Duration::from_secs(timeout_s));
        assert_eq!(feedback.deadline(), at(interval_s), "{timeout_s}");
        assert_eq!(feedback.poll(Tick(at(interval_s).0 - 1)), None);
        assert_eq!(feedback.poll(at(interval_s)), update(100, 0, true));
        assert_eq!(feedback.poll(at(interval_s)), None);
    }
}

#[test]
fn feedback_bounds_its_rate_when_the_timeout_is_tiny() {
    assert_eq!(feedback(Duration::from_millis(1)).deadline(), Tick(10_000));
}

#[test]
fn feedback_sends_a_changed_flush_position_at_once() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_received(Lsn(200), at(1));
    assert_eq!(feedback.poll(at(1)), None, "received alone waits for the timer");
    feedback.handle_flushed(Lsn(150));
    assert!(feedback.deadline() <= at(1));
    assert_eq!(feedback.poll(at(1)), update(200, 150, false));
    assert_eq!(feedback.poll(at(1)), None);
    feedback.handle_flushed(Lsn(150));
    assert_eq!(feedback.poll(at(1)), None, "the same again is no change");
}

#[test]
fn feedback_tells_a_stored_position_right_after_the_start() {
    let mut feedback = Feedback::new(Lsn(100), Lsn(70), MINUTE, at(0));
    assert_eq!(feedback.poll(at(0)), update(100, 70, false));
}

/// Fact 7: held back, the flush position blocks a shutdown; flush = 0 lets the server go.
#[test]
fn feedback_answers_a_request_with_flush_zero_while_deliveries_are_pending() {
    let mut feedback = Feedback::new(Lsn(100), Lsn(70), MINUTE, at(0));
    feedback.poll(at(0));
    feedback.handle_keepalive(Lsn(300), true, at(1));
    assert_eq!(feedback.deadline(), at(1));
    assert_eq!(feedback.poll(at(1)), update(300, 0, false));
    assert_eq!(feedback.poll(at(1)), None);
    assert_eq!(feedback.poll(at(11)), update(300, 70, true), "the timer's update tells it again");
}

#[test]
fn feedback_answers_a_request_with_the_true_position_when_nothing_is_pending() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_keepalive(Lsn(300), true, at(1));
    feedback.handle_flushed(Lsn(300));
    assert_eq!(feedback.poll(at(1)), update(300, 300, false));
    assert_eq!(feedback.poll(at(1)), update(300, 300, false));
    assert_eq!(feedback.poll(at(1)), None);
}

#[test]
fn feedback_tells_a_changed_flush_position_before_it_answers_a_request() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_keepalive(Lsn(300), true, at(1));
    feedback.handle_flushed(Lsn(200));
    assert_eq!(feedback.poll(at(1)), update(300, 200, false));
    assert_eq!(feedback.poll(at(1)), update(300, 0, false));
}

/// Fact 7: the server asks again as soon as it has its answer.
#[test]
fn feedback_does_not_follow_a_storm_of_requests() {
    let mut feedback = feedback(MINUTE);
    let mut sent = 0;
    for millisecond in 0..1_000 {
        let now = Tick(millisecond * 1_000);
        feedback.handle_keepalive(Lsn(300), true, now);
        sent += u32::from(feedback.poll(now).is_some());
    }
    assert_eq!(sent, 20);
}

#[test]
fn feedback_answers_a_request_as_usual_when_its_own_timer_is_late() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_received(Lsn(300), at(1));
    feedback.handle_flushed(Lsn(200));
    feedback.poll(at(1));
    feedback.handle_keepalive(Lsn(300), true, at(31));
    assert_eq!(feedback.poll(at(31)), update(300, 200, false));
    assert_eq!(feedback.poll(at(31)), None);
}

/// Fact 18: caught up, the server speaks only when asked.
#[test]
fn feedback_asks_a_silent_server_and_then_gives_it_up() {
    let mut feedback = feedback(Duration::ZERO);
    feedback.handle_received(Lsn(200), at(5));
    assert_eq!(feedback.poll(at(10)), update(200, 0, false), "5 s are no silence");
    assert_eq!(feedback.poll(at(20)), update(200, 0, true));
    assert_eq!(feedback.poll(at(30)), update(200, 0, true));
    assert!(!feedback.silent(at(34)));
    assert_eq!(feedback.deadline(), at(35));
    assert!(feedback.silent(at(35)));
    feedback.handle_keepalive(Lsn(200), false, at(35));
    assert!(!feedback.silent(at(64)));
}

#[test]
fn feedback_is_as_patient_as_the_server_up_to_a_minute() {
    for (timeout_s, silence_s) in [(6, 6), (60, 60), (3_600, 60), (0, 30)] {
        let feedback = feedback(Duration::from_secs(timeout_s));
        assert!(!feedback.silent(Tick(at(silence_s).0 - 1)), "{timeout_s}");
        assert!(feedback.silent(at(silence_s)), "{timeout_s}");
    }
}

#[test]
fn feedback_counts_no_silence_while_nobody_reads() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_paused();
    assert_eq!(feedback.poll(at(10)), update(100, 0, false), "updates go on, without a request");
    feedback.poll(at(1_000));
    assert!(!feedback.silent(at(1_000)));
    assert_eq!(feedback.deadline(), at(1_010));
    feedback.handle_resumed(at(1_000));
    assert!(!feedback.silent(at(1_059)));
    assert!(feedback.silent(at(1_060)));
}

#[test]
fn feedback_takes_what_an_earlier_connection_received_as_flushed_during_a_later_one() {
    let mut feedback = Feedback::new(Lsn(100), Lsn(70), MINUTE, at(0));
    feedback.handle_keepalive(Lsn(700), true, at(1));
    feedback.handle_paused();
    feedback.handle_reconnected(Duration::from_secs(3), at(50));
    assert!(!feedback.silent(at(50)));
    assert_eq!(feedback.poll(at(50)), update(700, 70, false), "told anew");
    assert_eq!(feedback.poll(at(50)), None, "the request was the earlier connection's");
    assert_eq!(feedback.deadline(), at(51), "the timeout is the new session's");
    feedback.handle_flushed(Lsn(700));
    assert_eq!(feedback.poll(at(50)), update(700, 700, false));
}

/// Fact 4: a flush position that was not received moves the slot past changes for good.
#[test]
#[should_panic(expected = "beyond what was received")]
fn feedback_refuses_a_flush_position_that_was_not_received() {
    feedback(MINUTE).handle_flushed(Lsn(101));
}

#[test]
#[should_panic(expected = "is before the last")]
fn feedback_refuses_a_flush_position_that_goes_back() {
    let mut feedback = feedback(MINUTE);
    feedback.handle_flushed(Lsn(50));
    feedback.handle_flushed(Lsn(49));
}

proptest! {
    #[test]
    fn feedback_never_tells_too_much_goes_back_or_sleeps_too_long(
        events in prop::collection::vec((0u8..5, 0u64..4_000, 0u64..3_000_000), 1..200)
    ) {
        let mut feedback = feedback(MINUTE);
        let (mut now, mut received, mut flushed) = (Tick(0), 100, 0);
        let (mut told, mut last) = (0, Tick(0));
        for (kind, amount, micros) in events {
            now = Tick(now.0 + micros);
            match kind {
                0 => { received += amount; feedback.handle_received(Lsn(received), now); }
                1 => {
                    received += amount;
                    feedback.handle_keepalive(Lsn(received), amount % 2 == 0, now);
                }
                2 => {
                    flushed = received.min(flushed + amount);
                    feedback.handle_flushed(Lsn(flushed));
                }
                3 => feedback.handle_paused(),
                _ => feedback.handle_resumed(now),
            }
            while let Some(update) = feedback.poll(now) {
                prop_assert_eq!(update.write, Lsn(received));
                prop_assert!(update.flush == Lsn::ZERO || update.flush >= Lsn(told));
                prop_assert!(update.flush <= Lsn(flushed));
                told = told.max(update.flush.0);
                last = now;
            }
            prop_assert_eq!(told, flushed);
            prop_assert!(now < last + MAX_INTERVAL);
            prop_assert!(feedback.deadline() <= last + MAX_INTERVAL);
        }
    }
}
