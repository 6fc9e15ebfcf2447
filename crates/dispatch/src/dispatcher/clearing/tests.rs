//! However much is moved, others have their turn; and nothing is sent that is to be moved.

use std::time::Duration;

use super::*;
use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{Effect, Input, OperatorInput, Ordering, Settings};
use walhook_core::attempt::Delivery;
use walhook_core::event::{EndpointId, Event};
use walhook_core::id::JobId;
use walhook_core::persist::{DisableEndpoint, PersistBatch};

/// Moved in one round.
const AT_ONCE: usize = 256;

/// Far more than are moved in one round.
const MANY: usize = 4_000;

/// So many deliveries wait for the endpoint `7`, of which these are in flight.
fn waiting(settings: Settings, many: usize) -> (Rig, Vec<Delivery>) {
    let mut rig = Rig::new(settings);
    for _ in 0..many {
        rig.commit("7");
    }
    let sent = rig.send();
    assert!(!sent.is_empty());
    (rig, sent.into_iter().map(|dispatch| dispatch.attempt.first().clone()).collect())
}

/// One round of polls. State transactions are answered where they are to be.
struct Round {
    sent: Vec<Delivery>,
    stored: Vec<PersistBatch>,
}

fn round(rig: &mut Rig, stores: bool) -> Round {
    let mut round = Round { sent: Vec::new(), stored: Vec::new() };
    let now = rig.now;
    while let Some(effect) = rig.dispatcher.poll(now) {
        match effect {
            Effect::Send(dispatch) => round.sent.push(dispatch.attempt.first().clone()),
            Effect::Store(batch) => {
                round.stored.push(*batch);
                if stores {
                    rig.dispatcher.handle(now, Input::Stored(Box::default()));
                }
            }
            Effect::Abort(_)
            | Effect::LookUp(_)
            | Effect::ReadDeferred(_)
            | Effect::ReadUnrouted(_)
            | Effect::Flush(_)
            | Effect::Settled(_)
            | Effect::Report(_)
            | Effect::StateFull { .. } => {}
        }
    }
    round
}

/// Rounds until nothing is left in memory but what is in flight. Each moves a little, and another account's delivery
/// that comes meanwhile is sent in it.
fn clear(rig: &mut Rig) -> Vec<PersistBatch> {
    let mut stored = Vec::new();
    let mut rounds = 0;
    while rig.dispatcher.deferral.clearing.line.len() > 0 {
        let event = rig.commit("8");
        let Round { sent, stored: batches } = round(rig, true);
        let moved = rig.dispatcher.deferral.clearing.moved;
        assert!(moved <= AT_ONCE + AT_ONCE / PART_AT_LEAST, "{moved} at once");
        assert_eq!(sent.iter().map(|sent| sent.event.id).collect::<Vec<_>>(), [event.id]);
        sent.iter().for_each(|sent| rig.answer(sent.id, 204));
        stored.extend(batches);
        rig.wait(Duration::from_millis(100));
        rounds += 1;
        assert!(rounds < MANY, "it does not end");
    }
    assert!(rounds > 3, "all was moved at once");
    stored.extend(round(rig, true).stored);
    rig.wait(Duration::from_secs(10));
    stored.extend(round(rig, true).stored);
    stored
}

/// Deliveries that wait, and neither leave nor end.
fn idle(rig: &Rig) -> usize {
    let in_memory = rig.dispatcher.queues.iter().filter_map(|(_, queue)| queue.pending());
    in_memory.map(|pending| pending.idle().count()).sum()
}

fn pause(rig: &mut Rig) {
    let (job, endpoint) = (JobId(1), EndpointId::new("7"));
    let pause = OperatorInput::Pause { job, endpoint, reason: "why".into() };
    let queued = idle(rig);
    rig.dispatcher.handle(rig.now, Input::Command(Box::new(pause)));
    assert!(queued - idle(rig) <= AT_ONCE, "all was moved at once");
}

#[test]
fn endpoint_that_is_paused_keeps_nobody_waiting_however_much_waits_for_it() {
    let (mut rig, in_flight) = waiting(settings(), MANY);
    pause(&mut rig);
    let stored = clear(&mut rig);
    let rows = stored.iter().map(|batch| batch.deferred.len()).sum::<usize>();
    assert_eq!(rows, MANY - in_flight.len());
}

#[test]
fn breaker_that_opens_keeps_nobody_waiting_however_much_waits_behind_it() {
    let (mut rig, mut in_flight) = waiting(settings(), MANY);
    while rig.dispatcher.gauges().breakers_open == 0 {
        for delivery in std::mem::take(&mut in_flight) {
            rig.answer(delivery.id, 503);
        }
        if rig.dispatcher.gauges().breakers_open == 0 {
            let sent = rig.send();
            in_flight.extend(sent.iter().map(|dispatch| dispatch.attempt.first().clone()));
            rig.wait(Duration::from_millis(500));
        }
    }
    let stored = clear(&mut rig);
    let rows = stored.iter().map(|batch| batch.deferred.len()).sum::<usize>();
    assert_eq!(rows, MANY);
}

#[test]
fn endpoint_that_is_switched_off_keeps_nobody_waiting_and_few_wait_to_become_dead_letters() {
    let (mut rig, in_flight) = waiting(settings(), MANY);
    rig.answer(in_flight[0].id, 410);
    // A state transaction that takes its time.
    let mut rounds = 0;
    while rig.dispatcher.deferral.clearing.is_ready() || rounds < 3 {
        round(&mut rig, false);
        rig.wait(Duration::from_millis(20));
        rounds += 1;
        assert!(rounds < MANY);
    }
    let dying = MANY - idle(&rig) - in_flight.len();
    assert!(dying < 2_500, "{dying} wait to become dead letters");
    rig.dispatcher.handle(rig.now, Input::Stored(Box::default()));
    let stored = clear(&mut rig);
    assert!(stored.iter().all(|batch| batch.dead_letters.len() <= 1_000));
    assert_eq!(idle(&rig), 0);
    assert_eq!(rig.dispatcher.counters().dead, (MANY - in_flight.len() + 1) as u64);
}

#[test]
fn delivery_that_fails_keeps_nobody_waiting_however_much_stands_behind_it() {
    let (mut rig, in_flight) =
        waiting(Settings { ordering: Ordering::Account, ..settings() }, MANY);
    let [first] = &in_flight[..] else { panic!("more than one is in flight") };
    rig.answer(first.id, 500);
    rig.wait(Duration::from_secs(2));
    let again = rig.send();
    rig.answer(again[0].attempt.first().id, 500);
    assert!(idle(&rig) > MANY / 2, "all was moved at once");
    let stored = clear(&mut rig);
    let rows = stored.iter().map(|batch| batch.deferred.len()).sum::<usize>();
    assert_eq!(rows, MANY);
}

#[test]
fn what_is_left_when_a_pause_ends_is_older_than_every_row_and_is_sent_first() {
    let (mut rig, in_flight) = waiting(settings(), MANY);
    let newest_sent = in_flight.iter().map(|sent| sent.event.position.commit_lsn()).max();
    pause(&mut rig);
    let stored = round(&mut rig, true).stored;
    assert!(!rig.send().iter().any(|d| d.attempt.first().event.account.as_str() == "7"));
    let resume = OperatorInput::Resume { job: JobId(2), endpoint: EndpointId::new("7") };
    rig.dispatcher.handle(rig.now, Input::Command(Box::new(resume)));
    let rows = stored.iter().flat_map(|batch| &batch.deferred);
    let oldest_row = rows.map(|row| row.event.position.commit_lsn()).min();
    let mut left: Vec<Delivery> = in_flight;
    let mut last = newest_sent;
    while idle(&rig) > 0 {
        left.iter().for_each(|sent| rig.answer(sent.id, 204));
        left = round(&mut rig, false).sent;
        let of_7 = |event: &Event| event.account.as_str() == "7";
        for sent in left.iter().filter(|sent| of_7(&sent.event)) {
            let commit = Some(sent.event.position.commit_lsn());
            assert!(commit > last, "sent out of order");
            assert!(oldest_row.is_none() || commit < oldest_row, "newer than a row");
            last = commit;
        }
        assert!(!left.is_empty(), "what is left is not sent");
    }
}

/// The endpoint `7` is slower than its events come, and these hold the frontier back. While they leave memory, rows of
/// which some have yet to leave change again.
#[test]
fn what_comes_while_older_events_of_its_row_leave_memory_joins_them_and_is_not_sent_before() {
    let settings = settings();
    let max_hold = settings.max_hold;
    let (mut rig, in_flight) = waiting(settings, MANY);
    in_flight.iter().for_each(|sent| rig.answer(sent.id, 204));
    rig.wait(max_hold);
    let held = idle(&rig);
    round(&mut rig, true);
    let left = idle(&rig);
    assert!(left > 0 && held - left <= AT_ONCE, "{left} of {held}");
    let pending = rig.dispatcher.queues.iter().find_map(|(_, queue)| queue.pending()).unwrap();
    let keys: Vec<u64> =
        pending.idle().map(|pending| pending.held.event.keys[0]).step_by(left / 20).collect();
    let newer: Vec<_> = keys.iter().map(|key| rig.commit_with("7", &[*key]).id).collect();
    let mut stored = Vec::new();
    while rig.dispatcher.deferral.clearing.line.len() > 0 {
        let Round { sent, stored: batches } = round(&mut rig, true);
        assert!(!sent.iter().any(|sent| newer.contains(&sent.event.id)), "sent before the older");
        stored.extend(batches);
        rig.wait(Duration::from_millis(100));
    }
    rig.wait(Duration::from_secs(1));
    let Round { sent, stored: batches } = round(&mut rig, true);
    assert!(!sent.iter().any(|sent| newer.contains(&sent.event.id)), "sent before the older");
    stored.extend(batches);
    let rows = stored.iter().flat_map(|batch| &batch.deferred).map(|row| row.event.id);
    let rows: std::collections::BTreeSet<_> = rows.collect();
    assert!(newer.iter().all(|id| rows.contains(id)), "it did not join the older");
}

#[test]
fn disabled_endpoint_of_many_accounts_moves_no_more_in_one_poll_than_one_does() {
    let mut rig = Rig::new(settings());
    for account in 0..200 {
        for _ in 0..20 {
            rig.commit(&format!("a{account}"));
        }
        let disable = DisableEndpoint {
            endpoint: EndpointId::new(format!("a{account}")),
            reason: "why".to_owned(),
        };
        assert!(rig.dispatcher.endpoints.disable(&disable));
    }
    let before = idle(&rig);
    assert!(rig.send().is_empty());
    let moved = before - idle(&rig);
    assert!(moved <= AT_ONCE, "{moved} at once");
    clear(&mut rig);
    assert_eq!(rig.dispatcher.counters().dead, 4_000);
}
