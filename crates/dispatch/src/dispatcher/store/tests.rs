//! How long rows wait for others that are stored with them.

use std::time::Duration;

use crate::dispatcher::outbox::FULL;
use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{Dispatch, Input, OperatorInput};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::EndpointId;
use walhook_core::id::JobId;
use walhook_core::persist::Persisted;

/// Of `wal.max_hold`, which is 30 s here.
const PATIENCE: Duration = Duration::from_secs(5);

const STEP: Duration = Duration::from_millis(100);

/// An endpoint is paused, and that is stored.
fn paused() -> Rig {
    let mut rig = Rig::new(settings());
    let (job, endpoint) = (JobId(1), EndpointId::new("7"));
    let pause = OperatorInput::Pause { job, endpoint, reason: "why".into() };
    assert!(rig.dispatcher.handle_operator(pause, rig.now));
    rig.store();
    rig.stored.clear();
    rig
}

/// Rows of each batch that had some.
fn batches(rig: &Rig) -> Vec<usize> {
    let rows = rig.stored.iter().map(|batch| batch.deferred.len());
    rows.filter(|rows| *rows > 0).collect()
}

#[test]
fn rows_of_an_endpoint_that_is_sent_nothing_are_stored_together() {
    let mut rig = paused();
    let mut transactions = 0;
    for _ in 0..120 {
        rig.commit("7");
        rig.send();
        rig.wait(STEP);
        while let Some(batch) = rig.dispatcher.poll_persist(rig.now) {
            rig.dispatcher.handle_persisted(&Persisted::default(), rig.now);
            rig.stored.push(batch);
            transactions += 1;
        }
    }
    assert!(batches(&rig).len() <= 3, "{:?}", batches(&rig));
    assert!(transactions <= 6, "{transactions} for 120 rows");
    rig.wait(PATIENCE);
    rig.store();
    assert_eq!(batches(&rig).iter().sum::<usize>(), 120);
    assert_eq!(rig.dispatcher.frontier(), rig.stored.last().unwrap().frontier);
}

#[test]
fn row_that_waits_for_others_is_stored_when_its_time_is_over() {
    let mut rig = paused();
    rig.commit("7");
    let began = rig.now;
    while batches(&rig).is_empty() {
        rig.store();
        rig.wait(STEP);
        assert!(rig.now.since(began) <= PATIENCE + 5 * STEP, "stored too late");
    }
    assert!(rig.now.since(began) > PATIENCE / 2, "it did not wait");
}

#[test]
fn rows_do_not_wait_where_enough_of_them_have_come() {
    let mut rig = paused();
    for _ in 0..FULL {
        rig.commit("7");
    }
    rig.store();
    assert_eq!(batches(&rig), [FULL]);
}

#[test]
fn rows_are_stored_with_whatever_is_stored_anyway() {
    let mut rig = paused();
    rig.commit("7");
    rig.commit("8");
    for dispatch in rig.send() {
        rig.answer(dispatch.attempt.first().id, 204);
    }
    rig.store();
    assert_eq!(batches(&rig), [1]);
}

#[test]
fn rows_do_not_wait_when_everything_ends() {
    let mut rig = paused();
    rig.commit("7");
    rig.dispatcher.handle(rig.now, Input::Stop);
    assert!(!rig.dispatcher.is_drained());
    rig.store();
    assert_eq!(batches(&rig), [1]);
    assert!(rig.dispatcher.is_drained());
}

#[test]
fn what_takes_long_is_not_begun_when_the_end_is_near_and_all_else_goes_on() {
    let mut rig = Rig::new(settings());
    let sent = |rig: &mut Rig| -> Vec<(String, DeliveryId)> {
        let of = |it: &Dispatch| (it.attempt.endpoint.id.to_string(), it.attempt.first().id);
        rig.send().iter().map(of).collect()
    };
    for account in ["7", "8"] {
        rig.commit(account);
    }
    let hang = sent(&mut rig);
    assert_eq!(hang.len(), 2);
    rig.wait(Duration::from_secs(2));
    assert!(sent(&mut rig).is_empty());
    rig.answer(hang[0].1, 204);
    rig.dispatcher.handle(rig.now, Input::WindDown);
    assert!(!rig.dispatcher.is_wound_down(), "one hangs still");
    rig.commit("7");
    rig.commit("9");
    let quick = sent(&mut rig);
    assert_eq!(quick.len(), 1, "{quick:?}");
    assert_eq!(quick[0].0, "9");
    rig.answer(hang[1].1, 204);
    assert!(rig.dispatcher.is_wound_down(), "what is quick is not waited for");
    rig.dispatcher.handle(rig.now, Input::Stop);
    rig.answer(quick[0].1, 204);
    rig.store();
    assert!(rig.dispatcher.is_drained());
}
