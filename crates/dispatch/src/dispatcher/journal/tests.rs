use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dispatcher::rig::{Rig, event, settings};
use crate::dispatcher::{Input, OperatorInput, ReplayInput, Settings};
use crate::fixture;
use crate::settle::SettlePolicy;
use walhook_core::attempt::FailureKind;
use walhook_core::event::{Item, Unroutable, UnroutableReason};
use walhook_core::id::{JobId, ReplayId};
use walhook_core::persist::{DeferReason, Persisted, ReplayCounts};

/// What the lines so far say: the attempt's number, and what happened.
fn told(rig: &mut Rig) -> Vec<(u32, What)> {
    rig.store();
    lines(rig).iter().map(|line| (line.attempt, line.what)).collect()
}

fn lines(rig: &Rig) -> Vec<Entry> {
    rig.stored.iter().flat_map(|batch| batch.log.clone()).collect()
}

fn answer_all(rig: &mut Rig, status: u16) -> usize {
    let sent = rig.send();
    for dispatch in &sent {
        rig.answer(dispatch.attempt.first().id, status);
    }
    sent.len()
}

#[test]
fn delivery_that_fails_is_told_attempt_by_attempt_to_its_end() {
    let mut rig = Rig::new(settings());
    let event = rig.commit("7");
    assert_eq!(answer_all(&mut rig, 500), 1);
    rig.wait(Duration::from_secs(5));
    assert_eq!(answer_all(&mut rig, 503), 1);
    let failed = DeferReason::Failed;
    let so_far = [(1, What::Failed), (2, What::Failed), (0, What::Deferred(failed))];
    assert_eq!(told(&mut rig), so_far);
    for _ in 0..10 {
        rig.wait(Duration::from_secs(30));
        rig.send();
        rig.read();
        if answer_all(&mut rig, 204) > 0 {
            break;
        }
    }
    assert_eq!(told(&mut rig)[3..], [(3, What::Delivered)]);
    for line in lines(&rig) {
        assert_eq!((line.event, &*line.account, &*line.endpoint), (event.id, "7", "7"));
        assert_eq!(line.commit_lsn, event.position.commit_lsn());
        let status = [Some(500), Some(503), None, Some(204)];
        assert!(status.contains(&line.status));
        assert_eq!(line.excerpt.is_empty(), line.what != What::Failed, "{line:?}");
        assert!(line.asked.is_none());
    }
    assert_eq!(rig.dispatcher.counters().logged, 4);
    assert_eq!(rig.dispatcher.journal.bytes(), 0);
}

#[test]
fn request_that_only_tries_a_dead_endpoint_is_told_as_no_attempt_unless_it_is_taken() {
    let mut rig = Rig::new(settings());
    for _ in 0..100 {
        rig.commit("7");
        answer_all(&mut rig, 503);
        rig.store();
    }
    assert_eq!(rig.dispatcher.gauges().breakers_open, 1);
    let before = lines(&rig).len();
    assert!(lines(&rig).iter().all(|line| line.what != What::Probed));
    for status in [503, 204] {
        let mut requests = 0;
        for _ in 0..60 {
            rig.wait(Duration::from_secs(1));
            rig.read();
            rig.look_up();
            requests = answer_all(&mut rig, status);
            rig.store();
            if requests > 0 {
                break;
            }
        }
        assert_eq!(requests, 1);
    }
    let lines = lines(&rig).split_off(before);
    let told: Vec<_> = lines
        .iter()
        .filter(|line| line.is_attempt())
        .map(|line| (line.what, line.status))
        .collect();
    assert_eq!(told, [(What::Probed, Some(503)), (What::Delivered, Some(204))]);
}

#[test]
fn end_without_an_attempt_is_a_line_of_its_own() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let (job, endpoint) = (JobId(1), EndpointId::new("7"));
    let pause = OperatorInput::Pause { job, endpoint, reason: "why".into() };
    rig.dispatcher.handle_operator(pause, rig.now);
    rig.wait(Duration::from_secs(10));
    assert_eq!(told(&mut rig), [(0, What::Deferred(DeferReason::Paused))]);

    let mut rig = Rig::new(settings());
    rig.commit("7");
    rig.send();
    rig.removed = true;
    rig.commit("8");
    answer_all(&mut rig, 200);
    assert_eq!(told(&mut rig), [], "no endpoint, no delivery");

    let mut rig = Rig::new(settings());
    rig.commit("7");
    assert_eq!(answer_all(&mut rig, 410), 1);
    rig.commit("7");
    rig.send();
    let dead = What::Dead(DeadReason::EndpointDisabled);
    assert_eq!(told(&mut rig), [(1, What::Failed), (0, dead), (0, dead)]);
    assert!(lines(&rig).iter().all(|line| !line.excerpt.is_empty()));
}

#[test]
fn change_that_cannot_become_an_event_is_told_without_an_endpoint() {
    let mut rig = Rig::new(settings());
    let unroutable = Unroutable {
        event: event("7", 3_000),
        reason: UnroutableReason::Condition,
        detail: "no such column".into(),
    };
    let items = fixture::transaction(3_000, []).into_iter();
    let mut items: Vec<Item> = items.collect();
    items.insert(1, Item::Unroutable(unroutable));
    items.into_iter().for_each(|item| rig.dispatcher.handle_item(item, rig.now));
    assert_eq!(told(&mut rig), [(0, What::Dead(DeadReason::Unroutable))]);
    let line = &lines(&rig)[0];
    assert_eq!((line.endpoint(), &*line.excerpt), (None, "no such column"));
}

#[test]
fn replayed_delivery_is_told_with_the_replay_that_asked() {
    let mut rig = Rig::new(settings());
    let event = rig.commit("7");
    answer_all(&mut rig, 200);
    let replay = ReplayId(9);
    rig.dispatcher.handle_replay(ReplayInput::Start(replay, ReplayCounts::default()), rig.now);
    rig.replay(replay, &event);
    answer_all(&mut rig, 500);
    let failed = What::Deferred(DeferReason::Failed);
    assert_eq!(told(&mut rig), [(1, What::Delivered), (1, What::Failed), (0, failed)]);
    let asked: Vec<_> = lines(&rig).into_iter().map(|line| line.asked).collect();
    assert_eq!(asked, [None, Some(Asked::Replay(replay)), Some(Asked::Replay(replay))]);
}

#[test]
fn what_is_kept_is_what_the_settings_say() {
    for (keep, told_of) in [(Keep::All, 5), (Keep::Failures, 4), (Keep::None, 0)] {
        for excerpts in [true, false] {
            let settle = SettlePolicy { quick_attempts: 3, ..settings().settle };
            let mut rig =
                Rig::new(Settings { log: keep, log_excerpts: excerpts, settle, ..settings() });
            rig.commit("1");
            answer_all(&mut rig, 200);
            rig.commit("7");
            for status in [500, 500, 200] {
                assert_eq!(answer_all(&mut rig, status), 1);
                rig.wait(Duration::from_secs(5));
            }
            rig.commit("8");
            let sent = rig.send();
            let delivery = sent[0].attempt.first().id;
            let outcome = Outcome::failed(FailureKind::Dns, "no such name", Duration::ZERO);
            rig.dispatcher.handle(rig.now, Input::Outcome { delivery, outcome });
            assert_eq!(told(&mut rig).len(), told_of);
            for line in lines(&rig).iter().filter(|line| line.what == What::Failed) {
                assert_eq!(line.excerpt.is_empty(), !excerpts && line.failure.is_none());
            }
            assert_eq!(rig.dispatcher.counters().log_dropped, 0);
        }
    }
}

#[test]
fn what_was_not_sent_for_want_of_something_of_ours_is_told_once_and_as_no_attempt() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let not_sent = |rig: &mut Rig, delivery: DeliveryId| {
        let outcome = Outcome::failed(FailureKind::Local, "none left", Duration::ZERO);
        rig.dispatcher.handle(rig.now, Input::Outcome { delivery, outcome });
    };
    for _ in 0..3 {
        let sent = rig.send();
        not_sent(&mut rig, sent[0].attempt.first().id);
        rig.wait(Duration::from_secs(5));
    }
    assert_eq!(told(&mut rig), [(0, What::Failed)]);
    let line = lines(&rig).remove(0);
    assert_eq!((line.failure, &*line.excerpt), (Some(FailureKind::Local), "local: none left"));
    // Once one was sent, the next time is another.
    assert_eq!(answer_all(&mut rig, 200), 1);
    rig.commit("7");
    let sent = rig.send();
    not_sent(&mut rig, sent[0].attempt.first().id);
    let told = told(&mut rig);
    assert_eq!(told, [(0, What::Failed), (1, What::Delivered), (0, What::Failed)]);
}

fn line(number: u64, excerpt: usize) -> Entry {
    let of = event("7", number);
    Entry {
        event: of.id,
        event_type: Arc::clone(&of.event_type),
        account: of.account.clone(),
        endpoint: EndpointId::new("7"),
        commit_lsn: of.position.commit_lsn(),
        committed_us: 0,
        at_us: i64::try_from(number).unwrap(),
        attempt: 1,
        what: What::Delivered,
        status: None,
        failure: None,
        elapsed_us: 0,
        waits: Waits::default(),
        excerpt: "x".repeat(excerpt),
        asked: None,
    }
}

#[test]
fn lines_beyond_the_bounds_are_left_out_and_counted() {
    let mut journal = Journal::new(Keep::All, true, 256 << 20);
    (0..LINES_MAX as u64 + 10).for_each(|number| journal.write(line(100 + number, 0)));
    assert_eq!(journal.dropped(), 10);
    let out = journal.hand_out();
    assert!(out.len() == LINES_MAX && out.is_sorted_by_key(|line| line.at_us));
    assert!(journal.bytes() > 0, "those under way are in memory");
    journal.handle_stored(Duration::ZERO, 3);
    assert_eq!((journal.stored(), journal.dropped()), (LINES_MAX as u64 - 3, 13));
    assert_eq!(journal.bytes(), 0);

    let mut journal = Journal::new(Keep::All, true, 1 << 20);
    (0..1_000).for_each(|number| journal.write(line(100 + number, 1_000)));
    assert!(journal.bytes() <= (1 << 20) / MEMORY_PARTS);
    assert!(journal.dropped() > 900);
}

#[test]
fn fewer_and_fewer_lines_go_while_state_transactions_are_slow_and_at_last_none() {
    let mut journal = Journal::new(Keep::All, true, 256 << 20);
    let mut handed_out = Vec::new();
    for _ in 0..8 {
        (0..LINES_MAX as u64).for_each(|number| journal.write(line(100 + number, 0)));
        handed_out.push(journal.hand_out().len());
        journal.handle_stored(2 * SLOW, 0);
    }
    assert_eq!(handed_out, [8_192, 4_096, 2_048, 1_024, 512, 256, 0, 0]);
    assert_eq!(journal.dropped() + journal.stored(), 8 * LINES_MAX as u64);
    journal.handle_stored(SLOW, 0);
    for wanted in [LINES_MIN, 2 * LINES_MIN] {
        (0..LINES_MAX as u64).for_each(|number| journal.write(line(100 + number, 0)));
        assert_eq!(journal.hand_out().len(), wanted);
        journal.handle_stored(Duration::ZERO, 0);
    }
}

#[test]
fn slow_state_transactions_hold_up_no_delivery_for_the_sake_of_lines() {
    let mut rig = Rig::new(settings());
    for _ in 0..20 {
        rig.commit("7");
        assert_eq!(answer_all(&mut rig, 200), 1);
        rig.wait(Duration::from_millis(100));
        let batch = rig.dispatcher.poll_persist(rig.now).unwrap();
        rig.wait(Duration::from_millis(900));
        let persisted = Persisted { log_dropped: batch.log.len() as u64, ..Persisted::default() };
        rig.dispatcher.handle_persisted(&persisted, rig.now);
    }
    let counters = rig.dispatcher.counters();
    assert_eq!((counters.delivered, counters.logged, counters.log_dropped), (20, 0, 20));
}
