//! One replay beside what an endpoint may be. What comes of many of them across crashes:
//! `simulation/replays.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dispatcher::OperatorInput;
use crate::dispatcher::rig::{Rig, settings};
use walhook_core::event::Event;
use walhook_core::id::{JobId, ReplayId};
use walhook_core::persist::{DeadReason, Deferred, EventKey, Refilled, RowKey};

const REPLAY: ReplayId = ReplayId(9);

/// So many events of the account were delivered, and a replay of them begins.
fn delivered(events: usize) -> (Rig, Vec<Arc<Event>>) {
    let mut rig = Rig::new(settings());
    let mut delivered = Vec::new();
    for _ in 0..events {
        delivered.push(rig.commit("7"));
        for dispatch in rig.send() {
            assert!(dispatch.attempt.first().asked.is_none());
            rig.answer(dispatch.attempt.first().id, 204);
        }
    }
    rig.store();
    let counts = ReplayCounts::default();
    rig.dispatcher.handle_replay(ReplayInput::Start(REPLAY, counts), rig.now);
    (rig, delivered)
}

fn counts(rig: &mut Rig) -> ReplayCounts {
    rig.store();
    let counts = rig.stored.iter().flat_map(|batch| &batch.replayed).last();
    counts.map(|(_, counts)| *counts).unwrap_or_default()
}

fn rows(rig: &Rig) -> Vec<(Option<ReplayId>, DeferReason, u32)> {
    let rows = rig.stored.iter().flat_map(|batch| &batch.deferred);
    rows.map(|row| (row.id.key.replay, row.reason, row.tried.attempts)).collect()
}

#[test]
fn replay_is_counted_as_it_is_taken_and_marked() {
    let (mut rig, events) = delivered(3);
    for event in &events {
        rig.replay(REPLAY, event);
        for dispatch in rig.send() {
            assert!(dispatch.attempt.first().asked.is_some());
            rig.answer(dispatch.attempt.first().id, 200);
        }
    }
    let counts = counts(&mut rig);
    assert_eq!((counts.done, counts.total()), (3, 3));
    assert!(rows(&rig).is_empty());
}

#[test]
fn replay_to_an_endpoint_that_fails_has_one_attempt_and_is_deferred_under_its_id() {
    let (mut rig, events) = delivered(1);
    rig.replay(REPLAY, &events[0]);
    let sent = rig.send();
    assert_eq!(sent.len(), 1);
    rig.answer(sent[0].attempt.first().id, 500);
    let counts = counts(&mut rig);
    assert_eq!((counts.deferred, counts.total()), (1, 1));
    assert_eq!(rows(&rig), [(Some(REPLAY), DeferReason::Failed, 1)]);
}

#[test]
fn replay_to_a_paused_endpoint_is_deferred_and_so_is_what_waited_for_it() {
    let (mut rig, events) = delivered(2);
    rig.replay(REPLAY, &events[0]);
    let pause =
        OperatorInput::Pause { job: JobId(1), endpoint: EndpointId::new("7"), reason: "".into() };
    rig.dispatcher.handle_operator(pause, rig.now);
    rig.replay(REPLAY, &events[1]);
    assert!(rig.send().is_empty());
    let counts = counts(&mut rig);
    assert_eq!((counts.deferred, counts.total()), (2, 2));
    assert_eq!(rows(&rig), [(Some(REPLAY), DeferReason::Paused, 0); 2]);
}

#[test]
fn replay_goes_on_when_the_breaker_opens_in_its_midst() {
    let (mut rig, events) = delivered(60);
    for event in &events {
        rig.replay(REPLAY, event);
        for dispatch in rig.send() {
            assert!(dispatch.attempt.first().asked.is_some());
            rig.answer(dispatch.attempt.first().id, 500);
        }
        rig.store();
        rig.wait(Duration::from_millis(200));
    }
    let counts = counts(&mut rig);
    assert_eq!((counts.deferred, counts.total()), (60, 60));
    let opened = rows(&rig).into_iter().filter(|row| row.1 == DeferReason::Breaker).count();
    assert!((20..60).contains(&opened), "{opened}");
}

#[test]
fn replay_to_an_endpoint_that_hangs_is_held_up_for_a_second_only() {
    let (mut rig, events) = delivered(100);
    let mut fed = events.iter();
    let mut sent = Vec::new();
    while rig.dispatcher.wants_replay() {
        rig.replay(REPLAY, fed.next().unwrap());
        sent.extend(rig.send());
    }
    assert!(!sent.is_empty());
    let deadline = rig.dispatcher.deadline_at(rig.now).unwrap();
    assert!(deadline <= rig.now + Duration::from_secs(1), "nothing wakes it");
    rig.wait(Duration::from_secs(1));
    sent.extend(rig.send());
    assert!(rig.dispatcher.wants_replay(), "there is room again");
    for event in fed {
        assert!(rig.dispatcher.wants_replay());
        rig.replay(REPLAY, event);
        sent.extend(rig.send());
        rig.wait(Duration::from_millis(50));
    }
    let before = counts(&mut rig);
    assert!(before.total() > 100 - 16, "only what is in flight is not accounted for: {before:?}");
    assert_eq!(rows(&rig).len() as i64, before.deferred);
    let is_held = |row: &(_, DeferReason, _)| row.1 == DeferReason::Held;
    assert!(rows(&rig).iter().all(is_held), "memory has room: {:?}", rows(&rig));
    // The answers that come at last count, or find their rows.
    let mut next = 0;
    while let Some(dispatch) = sent.get(next) {
        rig.answer(dispatch.attempt.first().id, 200);
        sent.extend(rig.send());
        next += 1;
    }
    let after = counts(&mut rig);
    assert_eq!((after.total(), after.deferred), (100, before.deferred));
    let resolved = rig.stored.iter().flat_map(|batch| &batch.resolved);
    let resolved = resolved.filter(|row| row.key.replay == Some(REPLAY)).count() as i64;
    assert!(resolved > 0 && resolved + after.done == sent.len() as i64, "{resolved}, {after:?}");
}

#[test]
fn replay_to_an_endpoint_that_was_removed_is_dropped_and_to_one_that_wants_no_more_dead() {
    let (mut rig, events) = delivered(2);
    rig.replay(REPLAY, &events[0]);
    let sent = rig.send();
    rig.answer(sent[0].attempt.first().id, 410);
    rig.replay(REPLAY, &events[1]);
    assert!(rig.send().is_empty());
    let dead = counts(&mut rig);
    assert_eq!((dead.failed, dead.total()), (2, 2));
    let letters: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.dead_letters).collect();
    assert!(
        letters
            .iter()
            .all(|l| l.reason == DeadReason::EndpointDisabled && l.replay == Some(REPLAY))
    );
    assert_eq!(letters.len(), 2);

    let mut rig = Rig::new(settings());
    let event = crate::dispatcher::rig::event("8", 500);
    let start = ReplayCounts::default();
    rig.dispatcher.handle_replay(ReplayInput::Start(REPLAY, start), rig.now);
    rig.removed = true;
    rig.replay(REPLAY, &event);
    assert!(rig.send().is_empty());
    let dropped = counts(&mut rig);
    assert_eq!((dropped.dropped, dropped.total()), (1, 1));
}

#[test]
fn replay_that_was_cancelled_defers_nothing_any_more() {
    let (mut rig, events) = delivered(3);
    // One is in flight, one on its way into the table, one comes later.
    rig.replay(REPLAY, &events[0]);
    let sent = rig.send();
    let pause =
        OperatorInput::Pause { job: JobId(1), endpoint: EndpointId::new("7"), reason: "".into() };
    rig.dispatcher.handle_operator(pause, rig.now);
    rig.replay(REPLAY, &events[1]);
    rig.dispatcher.handle_replay(ReplayInput::End(REPLAY), rig.now);
    rig.answer(sent[0].attempt.first().id, 500);
    rig.replay(REPLAY, &events[2]);
    rig.store();
    assert!(rows(&rig).is_empty());
    assert_eq!(rig.dispatcher.gauges().queued_bytes, 0);
    assert_eq!(rig.dispatcher.gauges().deferred, 0);
    assert!(rig.dispatcher.wants_replay());
}

#[test]
fn deferred_replay_does_not_keep_live_events_of_its_rows_waiting() {
    let (mut rig, events) = delivered(1);
    rig.replay(REPLAY, &events[0]);
    let sent = rig.send();
    rig.answer(sent[0].attempt.first().id, 500);
    rig.store();
    rig.commit("7");
    let sent = rig.send();
    assert_eq!(sent.len(), 1, "a replay holds no keys");
    assert!(sent[0].attempt.first().asked.is_none());
}

#[test]
fn replay_that_is_cancelled_before_its_row_is_stored_leaves_no_row_behind_it_waiting() {
    let (mut rig, events) = delivered(1);
    let endpoint = || EndpointId::new("7");
    let stop = |rig: &mut Rig, job| {
        let job = JobId(job);
        let (endpoint, reason) = (endpoint(), String::new());
        rig.dispatcher.handle_operator(OperatorInput::Pause { job, endpoint, reason }, rig.now);
    };
    let go_on = |rig: &mut Rig, job| {
        let job = JobId(job);
        let resume = OperatorInput::Resume { job, endpoint: endpoint() };
        rig.dispatcher.handle_operator(resume, rig.now);
    };
    stop(&mut rig, 1);
    let newer = rig.commit("7");
    rig.store();
    go_on(&mut rig, 2);
    let pages = rig.dispatcher.poll_refill(rig.now).expect("the newer event's row is read back");
    let key = RowKey { event: EventKey::of(&newer), replay: None };
    let row = Deferred { key, event: newer, attempts: 0, first_attempt_us: None, due_us: None };
    let page = Refilled { queue: pages[0].queue.clone(), rows: vec![row], end: true };
    rig.dispatcher.handle_refilled(vec![page], rig.now);
    // It leaves memory again, and behind it an older event's row is on its way.
    stop(&mut rig, 3);
    rig.replay(REPLAY, &events[0]);
    go_on(&mut rig, 4);
    assert_eq!(rig.dispatcher.poll_refill(rig.now), None);
    rig.dispatcher.handle_replay(ReplayInput::End(REPLAY), rig.now);
    rig.store();
    assert!(rig.dispatcher.poll_refill(rig.now).is_some(), "the newer event's row waits for ever");
}

#[test]
fn replay_that_is_cancelled_counts_what_was_taken_while_its_row_was_on_its_way() {
    let (mut rig, events) = delivered(20);
    let mut fed = events.iter();
    let mut sent = Vec::new();
    while rig.dispatcher.wants_replay() {
        rig.replay(REPLAY, fed.next().unwrap());
        sent.extend(rig.send());
    }
    // What is in flight for too long gets rows, which are not stored yet.
    rig.wait(Duration::from_secs(1));
    rig.dispatcher.release_replays(rig.now);
    let taken = sent.len();
    assert!(taken > 1);
    for dispatch in sent {
        rig.answer(dispatch.attempt.first().id, 200);
    }
    rig.dispatcher.handle_replay(ReplayInput::End(REPLAY), rig.now);
    let counts = counts(&mut rig);
    let resolved = rig.stored.iter().map(|batch| batch.resolved.len()).sum::<usize>();
    let rows = rig.stored.iter().map(|batch| batch.deferred.len()).sum::<usize>();
    assert_eq!((resolved, counts.deferred), (rows, rows as i64), "each has a row that goes");
    assert_eq!(counts.done + counts.deferred, taken as i64, "{counts:?}");
}
