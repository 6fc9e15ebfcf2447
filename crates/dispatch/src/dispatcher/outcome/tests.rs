//! What was not sent after all, what was lost with its worker, and slots that come and go.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{
    Dispatch, Dispatcher, EndpointChange, Input, OperatorInput, Settings, Start,
};
use crate::lane::DEFAULT_MAX_IN_FLIGHT;
use walhook_core::attempt::{DeliveryId, FailureKind, Outcome};
use walhook_core::event::EndpointId;
use walhook_core::id::JobId;
use walhook_core::persist::DeferReason;

fn id(dispatch: &Dispatch) -> DeliveryId {
    dispatch.attempt.first().id
}

fn lost(rig: &mut Rig, delivery: DeliveryId) {
    let outcome = Outcome::failed(FailureKind::Lost, "its worker was lost", Duration::ZERO);
    rig.dispatcher.handle(rig.now, Input::Outcome { delivery, outcome });
}

#[test]
fn delivery_that_was_not_sent_is_sent_again_at_once_in_its_order_and_was_no_attempt() {
    let mut rig = Rig::new(settings());
    let first = rig.commit_with("7", &[1]);
    rig.commit_with("7", &[1]);
    for _ in 0..100 {
        let sent = rig.send();
        assert_eq!(sent.len(), 1, "the second stands behind the first");
        let attempt = &sent[0].attempt.first();
        assert_eq!((attempt.event.id, attempt.number), (first.id, 1));
        rig.dispatcher.handle(rig.now, Input::Unsent(attempt.id));
        rig.dispatcher.handle(rig.now, Input::Unsent(attempt.id));
    }
    assert!(rig.changes().is_empty(), "it says nothing of the endpoint");
    let sent = rig.send();
    rig.answer(id(&sent[0]), 200);
    assert_eq!(rig.send().len(), 1);
    rig.store();
    assert!(rig.stored.iter().all(|batch| batch.deferred.is_empty()));
}

#[test]
fn delivery_that_was_not_sent_leaves_memory_where_its_endpoint_was_paused_meanwhile() {
    let mut rig = Rig::new(settings());
    rig.commit_with("7", &[1]);
    rig.commit_with("7", &[1]);
    let sent = rig.send();
    let (job, endpoint) = (JobId(1), EndpointId::new("7"));
    let pause = OperatorInput::Pause { job, endpoint, reason: "why".into() };
    assert!(rig.dispatcher.handle_operator(pause, rig.now));
    rig.dispatcher.handle(rig.now, Input::Unsent(id(&sent[0])));
    assert!(rig.send().is_empty());
    rig.wait(Duration::from_secs(10));
    rig.store();
    let rows: Vec<_> = rig.stored.iter().flat_map(|batch| &batch.deferred).collect();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!((row.reason, row.tried.attempts), (DeferReason::Paused, 0));
    }
}

#[test]
fn delivery_that_was_lost_with_its_worker_is_tried_again_and_is_no_mark_against_its_endpoint() {
    let mut rig = Rig::new(Settings { disable_after: Duration::ZERO, ..settings() });
    for _ in 0..100 {
        rig.commit("7");
        let sent = rig.send();
        assert_eq!(sent.len(), 1, "nothing keeps from it what comes");
        lost(&mut rig, id(&sent[0]));
        let again = rig.send();
        assert_eq!((again.len(), again[0].attempt.first().number), (1, 2), "at once");
        rig.answer(id(&again[0]), 200);
    }
    assert!(rig.changes().is_empty());
}

#[test]
fn delivery_whose_workers_are_lost_one_after_the_other_waits_before_it_is_tried_again() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    let sent = rig.send();
    lost(&mut rig, id(&sent[0]));
    let sent = rig.send();
    lost(&mut rig, id(&sent[0]));
    assert!(rig.send().is_empty());
}

#[test]
fn slots_that_are_gone_are_not_used_and_those_that_come_are() {
    let mut rig = Rig::new(settings());
    for account in 0..100 {
        rig.commit(&account.to_string());
    }
    let sent = rig.send();
    assert_eq!(sent.len(), 32);
    rig.dispatcher.handle(rig.now, Input::Slots { fast: 8, slow: 0 });
    for dispatch in &sent[..24] {
        rig.answer(id(dispatch), 200);
        assert!(rig.send().is_empty(), "more are under way than there are slots");
    }
    rig.answer(id(&sent[24]), 200);
    assert_eq!(rig.send().len(), 1);
    rig.dispatcher.handle(rig.now, Input::Slots { fast: 0, slow: 0 });
    rig.answer(id(&sent[25]), 200);
    assert!(rig.send().is_empty());
    rig.dispatcher.handle(rig.now, Input::Slots { fast: 1_000, slow: 1_000 });
    assert_eq!(rig.send().len(), 100 - 33);
}

#[test]
fn request_in_doubt_counts_for_the_upper_limit_alone_until_it_is_heard_of_again() {
    let mut rig = Rig::new(settings());
    for _ in 0..100 {
        rig.commit("7");
    }
    let doubt = |rig: &mut Rig, deliveries: &[DeliveryId], doubtful| {
        let deliveries = deliveries.to_vec();
        rig.dispatcher.handle(rig.now, Input::Doubt { deliveries, doubtful });
        rig.send().iter().map(id).collect::<Vec<_>>()
    };
    let first: Vec<DeliveryId> = rig.send().iter().map(id).collect();
    assert_eq!(first.len(), 4, "of an endpoint of which nothing is known");
    let second = doubt(&mut rig, &first, true);
    assert_eq!(second.len(), 4, "those that are in doubt hold up nobody");
    assert_eq!(doubt(&mut rig, &first, true).len(), 0, "said twice is said once");
    assert_eq!(doubt(&mut rig, &first, false).len(), 0, "now there are eight");
    rig.answer(second[0], 200);
    assert_eq!(rig.send().len(), 0, "seven, and five may be");
    assert_eq!(doubt(&mut rig, &first, true).len(), 2);
    // What ends while it is in doubt is so no more.
    for id in first {
        lost(&mut rig, id);
    }
    assert_eq!(rig.send().len(), 0, "five, and five may be");
}

#[test]
fn requests_in_doubt_never_exceed_the_upper_limit_of_an_endpoint() {
    let mut rig = Rig::new(Settings { fast_slots: 256, ..settings() });
    for _ in 0..100 {
        rig.commit("7");
    }
    let mut all = 0;
    loop {
        let deliveries: Vec<DeliveryId> = rig.send().iter().map(id).collect();
        if deliveries.is_empty() {
            break;
        }
        all += deliveries.len();
        rig.dispatcher.handle(rig.now, Input::Doubt { deliveries, doubtful: true });
    }
    assert_eq!(u32::try_from(all).unwrap(), DEFAULT_MAX_IN_FLIGHT);
}

/// The endpoint fails, and its delivery is deferred. Then for hours nothing can be sent to it for want of something of
/// our own (`lacks`), or nothing is tried at all. Then it fails once more. What became of its delivery then.
fn fails_again_after_hours(lacks: bool) -> (u64, Vec<EndpointChange>) {
    let mut rig = Rig::new(settings());
    let next = |rig: &mut Rig, seconds| {
        rig.wait(Duration::from_secs(seconds));
        rig.store();
        let mut sent = rig.send();
        rig.read();
        sent.extend(rig.send());
        let [dispatch] = &sent[..] else { panic!("{} are sent", sent.len()) };
        id(dispatch)
    };
    rig.commit("7");
    let first = rig.send();
    rig.answer(id(&first[0]), 500);
    let second = next(&mut rig, 2);
    rig.answer(second, 500);
    if lacks {
        for _ in 0..150 {
            let delivery = next(&mut rig, 61);
            let outcome = Outcome::failed(FailureKind::Proxy, "407", Duration::ZERO);
            assert!(outcome.is_local());
            rig.dispatcher.handle(rig.now, Input::Outcome { delivery, outcome });
        }
    } else {
        rig.wait(Duration::from_secs(150 * 61));
    }
    let last = next(&mut rig, 61);
    rig.changes();
    rig.answer(last, 500);
    (rig.dispatcher.counters().dead, rig.changes().into_iter().map(|it| it.change).collect())
}

#[test]
fn time_for_which_nothing_can_be_sent_for_want_of_our_own_ends_no_delivery_and_switches_nothing_off()
 {
    assert_eq!(fails_again_after_hours(true), (0, vec![]));
    let (dead, changes) = fails_again_after_hours(false);
    assert_eq!((dead, changes), (1, vec![EndpointChange::Disabled]), "the test shows nothing");
}

/// The endpoint fails, and its delivery is deferred. Then the leader ends, and the next one begins days later, with a
/// checkpoint that was `written` by the former. Then it fails once more. What became of its delivery then.
fn fails_again_after_a_stop(written: bool) -> (u64, Vec<EndpointChange>) {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    for _ in 0..2 {
        let sent = rig.send();
        rig.answer(id(&sent[0]), 500);
        rig.wait(Duration::from_secs(2));
        rig.store();
    }
    let last = rig.stored.last().unwrap();
    let stopped_us = i64::try_from(rig.now.0).unwrap();
    let start = Start {
        frontier: last.frontier,
        backlog: rig
            .stored
            .iter()
            .rev()
            .find_map(|batch| batch.backlog.first().cloned())
            .into_iter()
            .collect(),
        unix_us_at_zero: stopped_us + 5 * 86_400_000_000,
        written_us: written.then_some(stopped_us),
        ..Start::default()
    };
    assert!(start.backlog[0].failing_since_us.is_some());
    rig.dispatcher = Dispatcher::new(settings(), start, SmallRng::seed_from_u64(1));
    rig.commit("8");
    rig.wait(Duration::from_secs(61));
    rig.stored.clear();
    rig.store();
    let backlog = rig.stored.iter().flat_map(|batch| &batch.backlog);
    let told = backlog.map(|row| row.stopped_us).collect::<Vec<_>>();
    assert_eq!(told, if written { vec![5 * 86_400_000_000] } else { vec![] }, "for the next one");
    assert_eq!(rig.read(), 1);
    let mut sent = rig.send();
    rig.look_up();
    sent.extend(rig.send());
    let is_its = |dispatch: &&Dispatch| dispatch.attempt.endpoint.id.as_str() == "7";
    let Some(dispatch) = sent.iter().find(is_its) else { panic!("it is not sent") };
    rig.answer(id(dispatch), 500);
    let changes = rig.changes().into_iter().map(|it| it.change);
    let changes = changes.filter(|change| *change != EndpointChange::Failing).collect();
    (rig.dispatcher.counters().dead, changes)
}

#[test]
fn time_in_which_nobody_leads_ends_no_delivery_and_switches_nothing_off() {
    assert_eq!(fails_again_after_a_stop(true), (0, vec![]));
    let (dead, changes) = fails_again_after_a_stop(false);
    assert_eq!((dead, changes), (1, vec![EndpointChange::Disabled]), "the test shows nothing");
}
