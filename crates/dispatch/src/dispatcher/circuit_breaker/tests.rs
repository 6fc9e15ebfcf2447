//! Each change of an endpoint's state is told once, however many requests show it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{EndpointChange, Input, OperatorInput, Settings};
use crate::fixture;
use walhook_core::attempt::Outcome;
use walhook_core::event::{EndpointId, Event, Invalidation, Item, Scope};
use walhook_core::id::JobId;
use walhook_core::lsn::Lsn;
use walhook_core::notice::NoticeKind;

fn kinds(rig: &mut Rig) -> Vec<EndpointChange> {
    // That it fails is not what it is.
    let failing = [EndpointChange::Failing, EndpointChange::Recovered];
    let changes = rig.changes().into_iter().map(|changed| changed.change);
    changes.filter(|change| !failing.contains(change)).collect()
}

/// Ten requests are in flight to the endpoint `7`.
fn ten_in_flight(settings: Settings) -> (Rig, Vec<walhook_core::attempt::DeliveryId>) {
    let mut rig = Rig::new(settings);
    let mut sent = Vec::new();
    // The limit grows with each success.
    for _ in 0..40 {
        rig.commit("7");
        for dispatch in rig.send() {
            rig.answer(dispatch.attempt.first().id, 204);
        }
    }
    for _ in 0..10 {
        rig.commit("7");
        sent.extend(rig.send().into_iter().map(|dispatch| dispatch.attempt.first().id));
    }
    rig.changes();
    (rig, sent)
}

#[test]
fn endpoint_that_answers_410_to_many_requests_in_flight_is_switched_off_once() {
    let (mut rig, sent) = ten_in_flight(settings());
    assert!(sent.len() >= 4, "{sent:?}");
    for delivery in &sent {
        rig.answer(*delivery, 410);
    }
    assert_eq!(kinds(&mut rig), [EndpointChange::Disabled]);
    rig.store();
    let disabled: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.disabled).collect();
    assert_eq!(disabled.len(), 1, "{disabled:?}");
    let notices: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.notices).collect();
    let told = notices.iter().filter(|notice| notice.kind == NoticeKind::EndpointDisabled);
    assert_eq!(told.map(|notice| notice.count).collect::<Vec<_>>(), [1]);
    // What comes later, of which nothing is sent, is no further change either.
    rig.commit("7");
    assert!(rig.send().is_empty());
    assert_eq!(kinds(&mut rig), []);
}

#[test]
fn requests_that_were_sent_again_open_the_breaker_unless_another_account_may_be_the_cause() {
    for (own_resends, opened) in [(0, vec![]), (1, vec![EndpointChange::BreakerOpened])] {
        let mut rig = Rig::new(settings());
        for _ in 0..40 {
            rig.commit("7");
        }
        for _ in 0..10 {
            for dispatch in rig.send() {
                let outcome = Outcome { resends: 1, own_resends, ..fixture::answered(204) };
                let delivery = dispatch.attempt.first().id;
                rig.dispatcher.handle(rig.now, Input::Outcome { delivery, outcome });
            }
        }
        assert_eq!(kinds(&mut rig), opened);
    }
}

#[test]
fn failures_of_requests_in_flight_do_not_open_the_breaker_of_an_endpoint_that_is_switched_off() {
    let (mut rig, sent) = ten_in_flight(settings());
    rig.answer(sent[0], 410);
    for delivery in &sent[1..] {
        rig.answer(*delivery, 500);
    }
    for _ in 0..20 {
        rig.commit("7");
        rig.send();
    }
    assert_eq!(kinds(&mut rig), [EndpointChange::Disabled]);
}

#[test]
fn answer_410_to_a_request_from_before_the_endpoint_was_switched_on_again_does_not_switch_it_off() {
    for by_row in [false, true] {
        let (mut rig, sent) = ten_in_flight(settings());
        rig.answer(sent[0], 410);
        let endpoint = EndpointId::new("7");
        if by_row {
            let scope = Scope::Endpoint {
                endpoints: smallvec::smallvec![endpoint],
                accounts: smallvec::smallvec![],
            };
            rig.dispatcher.handle_item(Item::Begin { commit_lsn: Lsn(90_000) }, rig.now);
            rig.dispatcher.handle_item(Item::Invalidate(Invalidation::new(5, scope)), rig.now);
            rig.dispatcher.handle_item(Item::Commit { end_lsn: Lsn(90_010) }, rig.now);
        } else {
            let resume = OperatorInput::Resume { job: JobId(1), endpoint };
            assert!(rig.dispatcher.handle_operator(resume, rig.now));
        }
        for delivery in &sent[1..] {
            rig.answer(*delivery, 410);
        }
        assert_eq!(kinds(&mut rig), [EndpointChange::Disabled, EndpointChange::Enabled]);
        rig.store();
        // They are not lost for it: they are tried again, and what the endpoint says then counts.
        let deferred = rig.stored.iter().map(|batch| batch.deferred.len()).sum::<usize>();
        assert_eq!(deferred, sent.len() - 1);
    }
}

#[test]
fn endpoint_that_fails_for_too_long_is_switched_off_once() {
    let short = Settings { disable_after: Duration::from_millis(1), ..settings() };
    let (mut rig, sent) = ten_in_flight(short);
    // The first two failures defer something, and so begin the time.
    for delivery in &sent[..2] {
        rig.answer(*delivery, 500);
    }
    rig.wait(Duration::from_secs(20));
    let again: Vec<_> = rig.send().into_iter().map(|d| d.attempt.first().id).collect();
    again.iter().for_each(|delivery| rig.answer(*delivery, 500));
    rig.wait(Duration::from_secs(1));
    for delivery in &sent[2..] {
        rig.answer(*delivery, 500);
    }
    let told = kinds(&mut rig);
    assert_eq!(told.iter().filter(|c| **c == EndpointChange::Disabled).count(), 1, "{told:?}");
}

#[test]
fn endpoint_is_paused_and_resumed_once_however_often_that_is_asked() {
    let (mut rig, sent) = ten_in_flight(settings());
    let endpoint = || EndpointId::new("7");
    for job in (0..3).map(JobId) {
        let pause = OperatorInput::Pause { job, endpoint: endpoint(), reason: "why".into() };
        assert_eq!(rig.dispatcher.handle_operator(pause, rig.now), job == JobId(0));
    }
    // What was in flight and answers now changes nothing.
    sent.iter().for_each(|delivery| rig.answer(*delivery, 410));
    for job in (3..6).map(JobId) {
        let resume = OperatorInput::Resume { job, endpoint: endpoint() };
        assert_eq!(rig.dispatcher.handle_operator(resume, rig.now), job == JobId(3));
    }
    assert_eq!(kinds(&mut rig), [EndpointChange::Paused, EndpointChange::Resumed]);
    rig.store();
    let done: i64 = rig.stored.iter().flat_map(|b| &b.jobs_done).map(|job| job.done).sum();
    assert_eq!(done, 2);
}

/// The endpoint `7` was dead for some 100 events, which are rows now, and is back: it took one of them.
fn back_with_a_backlog() -> (Rig, Vec<Arc<Event>>) {
    let mut rig = Rig::new(settings());
    let mut events = Vec::new();
    for _ in 0..100 {
        events.push(rig.commit("7"));
        for dispatch in rig.send() {
            rig.answer(dispatch.attempt.first().id, 503);
        }
        rig.store();
    }
    assert_eq!(rig.dispatcher.gauges().breakers_open, 1);
    rig.wait(Duration::from_secs(60));
    rig.read();
    let [probe] = &rig.send()[..] else { panic!("no probe") };
    let probe = probe.attempt.first();
    rig.answer(probe.id, 204);
    assert_eq!(rig.dispatcher.gauges().breakers_open, 0);
    events.retain(|event| event.id != probe.event.id);
    (rig, events)
}

#[test]
fn new_events_of_an_endpoint_that_is_back_wait_only_for_rows_of_their_own_keys() {
    let (mut rig, events) = back_with_a_backlog();
    let rows = rig.dispatcher.gauges().deferred;
    assert!(rows > 64, "{rows} rows");
    let fresh = rig.commit("7");
    let behind = rig.commit_with("7", &events[50].keys);
    let sent: Vec<_> =
        rig.send().iter().map(|dispatch| dispatch.attempt.first().event.id).collect();
    assert_eq!(sent, [fresh.id], "{behind:?} stands behind {:?}", events[50]);
    assert_eq!(rig.dispatcher.gauges().deferred, rows + 1);
}

#[test]
fn rows_of_an_endpoint_that_is_back_are_read_however_many_new_events_there_are() {
    let (mut rig, _) = back_with_a_backlog();
    for _ in 0..200 {
        rig.commit("7");
    }
    assert!(rig.dispatcher.queued() >= 190);
    assert!(rig.read() > 0, "no row was read back");
}

/// So many endpoints are dead, with some rows each.
fn dead(many: usize) -> Rig {
    let mut rig = Rig::new(Settings { fast_slots: 16, slow_slots: 1_024, ..settings() });
    for dead in 0..many {
        for _ in 0..15 {
            rig.commit(&format!("dead {dead}"));
            for dispatch in rig.send() {
                rig.answer(dispatch.attempt.first().id, 503);
            }
        }
    }
    rig.store();
    rig
}

#[test]
fn new_leader_sends_what_was_dead_its_probes_alone() {
    const MANY: usize = 50;
    let mut rig = dead(MANY);
    assert_eq!(rig.dispatcher.gauges().breakers_open, MANY);
    rig.take_over();
    assert_eq!(rig.dispatcher.gauges().breakers_open, MANY);
    let mut probed = BTreeMap::new();
    // A moment more than the 4 s between two probes.
    for _ in 0..=42 {
        let fresh = rig.commit("fresh");
        rig.commit("dead 0");
        rig.read();
        let mut is_sent = false;
        for dispatch in rig.send() {
            let sent = dispatch.attempt.first();
            if sent.event.id == fresh.id {
                is_sent = true;
                rig.answer(sent.id, 204);
            } else {
                let before = probed.insert(sent.event.account.clone(), sent.id);
                assert_eq!(before, None, "{} is sent more than a probe", sent.event.account);
            }
        }
        assert!(is_sent, "who is well waits for who is not");
        assert_eq!(rig.dispatcher.gauges().in_flight_fast, 0);
        rig.wait(Duration::from_millis(100));
    }
    assert_eq!(probed.len(), MANY, "all are tried");
    // One that is back is known as that, and gets what waits for it.
    rig.answer(probed.pop_first().unwrap().1, 204);
    assert_eq!(kinds(&mut rig), [EndpointChange::BreakerClosed]);
    assert!(rig.read() > 10 && !rig.send().is_empty());
}
