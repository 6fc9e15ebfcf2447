//! The rooms alone, and what they are for: who takes large events and never answers delays nobody.

use super::*;
use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{Dispatch, OperatorInput, Settings};
use std::time::Duration;
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::JobId;
use walhook_core::persist::{BacklogRow, Blocked, QueueId};

#[test]
fn event_within_its_slot_s_share_needs_no_room() {
    let mut rooms = Rooms::new(6_400, 8);
    assert_eq!((rooms.needs(100), rooms.needs(101)), (0, 101));
    rooms.set_slots(80);
    assert_eq!((rooms.needs(10), rooms.needs(11)), (0, 11));
}

#[test]
fn pools_have_rooms_of_their_own_and_an_event_larger_than_one_goes_alone() {
    let mut rooms = Rooms::new(6_400, 8);
    assert!(rooms.has(Pool::Fast, 9_000), "nothing else is there");
    rooms.take(Pool::Fast, 9_000);
    assert!(!rooms.has(Pool::Fast, 101) && rooms.has(Pool::Fast, 0));
    assert!(rooms.has(Pool::Slow, 1_600));
    rooms.take(Pool::Slow, 101);
    assert!(rooms.has(Pool::Slow, 1_499) && !rooms.has(Pool::Slow, 1_500));
    rooms.take(Pool::Probe, 101);
    assert!(rooms.has(Pool::Probe, 299) && !rooms.has(Pool::Probe, 300));
    rooms.give_back(Pool::Fast, 9_000, false);
    assert!(rooms.has(Pool::Fast, 1_600));
}

#[test]
fn who_waits_is_called_in_turn_and_passed_by_nobody() {
    let mut rooms = Rooms::new(6_400, 8);
    rooms.take(Pool::Fast, 1_500);
    let first = rooms.wait(Pool::Fast, LaneId(1), 900, None);
    let second = rooms.wait(Pool::Fast, LaneId(2), 120, None);
    assert_eq!(rooms.call(Pool::Fast), None, "no room for the first");
    assert!(!rooms.has(Pool::Fast, 101), "nobody goes before it");
    rooms.give_back(Pool::Fast, 1_500, false);
    assert_eq!(rooms.call(Pool::Fast), Some(LaneId(1)));
    assert!(rooms.has_for_called(Pool::Fast, 900));
    rooms.wait(Pool::Fast, LaneId(1), 900, Some(first));
    assert_eq!(rooms.call(Pool::Fast), Some(LaneId(1)), "where it stood before");
    rooms.set_needs(Pool::Fast, second, 0);
    assert_eq!(rooms.call(Pool::Fast), None);
    assert!(rooms.has(Pool::Fast, 101));
}

#[test]
fn no_more_is_given_up_than_is_wanted() {
    let mut rooms = Rooms::new(6_400, 8);
    (0..2).for_each(|_| rooms.take(Pool::Fast, 800));
    assert!(!rooms.is_wanted(Pool::Fast), "nobody waits");
    rooms.wait(Pool::Fast, LaneId(1), 700, None);
    assert!(rooms.is_wanted(Pool::Fast));
    rooms.note_leaving(Pool::Fast, 800);
    assert!(!rooms.is_wanted(Pool::Fast), "it will have room");
    rooms.give_back(Pool::Fast, 800, true);
    assert_eq!(rooms.call(Pool::Fast), Some(LaneId(1)));
}

const LARGE: usize = 900_000;

fn aborted(rig: &mut Rig) -> usize {
    let ids: Vec<DeliveryId> = std::iter::from_fn(|| rig.dispatcher.poll_abort()).collect();
    for id in &ids {
        let outcome = Outcome::new(Meaning::Aborted, Duration::from_secs(1));
        rig.dispatcher.handle_outcome(*id, &outcome, rig.now);
    }
    ids.len()
}

fn account(dispatch: &Dispatch) -> &str {
    dispatch.attempt.endpoint.account.as_str()
}

/// 300 accounts have large events, and their endpoints never answer.
#[test]
fn stream_goes_on_beside_receivers_that_take_large_events_and_never_answer() {
    let mut rig = Rig::new(Settings { fast_slots: 256, slow_slots: 256, ..settings() });
    let (mut given_up, mut most) = (0, 0);
    for n in 0..1_000 {
        rig.commit_large(&format!("large-{}", n % 300), LARGE);
        assert!(rig.dispatcher.wants_input(), "the stream stands still at event {n}");
        if n % 10 == 0 {
            rig.commit("small");
            let sent: Vec<Dispatch> = rig.send();
            let small = sent.iter().find(|sent| account(sent) == "small");
            let id = small.expect("it is sent at once").attempt.first().id;
            rig.answer(id, 200);
        }
        rig.send();
        given_up += aborted(&mut rig);
        most = most.max(rig.dispatcher.sending.len());
        rig.store();
    }
    assert!(given_up > 0, "others wait for what hangs");
    let large = (most * LARGE) >> 20;
    assert!((20..40).contains(&large), "{large} MiB of 64 in flight");
}

#[test]
fn account_that_waits_for_room_sends_once_there_is_some_and_others_meanwhile() {
    let mut rig = Rig::new(settings());
    let room = settings().memory_limit / 4 / LARGE;
    for n in 0..room + 2 {
        rig.commit_large(&format!("large-{n}"), LARGE);
    }
    let mut sent = rig.send();
    assert_eq!(sent.len(), room);
    rig.commit("small");
    assert_eq!(rig.send().len(), 1, "it needs no room");
    for more in [1, 1, 0] {
        let first = sent.remove(0);
        rig.answer(first.attempt.first().id, 200);
        let next = rig.send();
        assert_eq!(next.len(), more);
        sent.extend(next);
    }
    let mut accounts: Vec<&str> = sent.iter().map(account).collect();
    accounts.dedup();
    assert_eq!(accounts.len(), room + 2 - 3, "each once");
}

/// Nobody waits for what they hold: it is theirs for as long as it takes.
#[test]
fn large_event_that_takes_long_is_given_up_for_others_alone() {
    let mut rig = Rig::new(settings());
    let room = settings().memory_limit / 4 / LARGE;
    for n in 0..2 * room {
        rig.commit_large(&format!("large-{n}"), LARGE);
    }
    assert_eq!(rig.send().len(), room);
    rig.wait(Duration::from_secs(1));
    // They move, and the others follow.
    assert_eq!(rig.send().len(), room);
    rig.wait(Duration::from_secs(5));
    rig.send();
    assert_eq!(aborted(&mut rig), 0, "nobody waits");
    rig.commit_large("late", LARGE);
    assert_eq!(rig.send().len(), 0);
    rig.send();
    assert_eq!(aborted(&mut rig), 1, "no more than it needs");
    let sent = rig.send();
    assert_eq!(sent.iter().map(account).collect::<Vec<_>>(), ["late"]);
}

/// As many accounts as have room in the fast pool have a large event in flight.
fn full_room() -> (Rig, Vec<DeliveryId>) {
    let mut rig = Rig::new(settings());
    for n in 0..settings().memory_limit / 4 / LARGE {
        rig.commit_large(&format!("large-{n}"), LARGE);
    }
    let ids = rig.send().iter().map(|sent| sent.attempt.first().id).collect();
    (rig, ids)
}

fn pause(rig: &mut Rig, endpoint: &str) {
    let (job, endpoint) = (JobId(1), EndpointId::new(endpoint));
    let pause = OperatorInput::Pause { job, endpoint, reason: String::new() };
    rig.dispatcher.handle_operator(pause, rig.now);
}

#[test]
fn account_whose_event_has_left_memory_waits_for_room_no_more() {
    let (mut rig, ids) = full_room();
    rig.commit_large("first", LARGE);
    rig.commit_large("second", LARGE);
    assert!(rig.send().is_empty() && rig.dispatcher.sending.is_room_waited_for());
    pause(&mut rig, "first");
    rig.answer(ids[0], 200);
    assert_eq!(rig.send().iter().map(account).collect::<Vec<_>>(), ["second"]);
    assert!(!rig.dispatcher.sending.is_room_waited_for());

    rig.commit_large("third", LARGE);
    assert!(rig.send().is_empty());
    pause(&mut rig, "third");
    rig.wait(Duration::from_secs(2));
    rig.send();
    assert_eq!(aborted(&mut rig), 0, "nobody wants what they hold");
}

#[test]
fn account_whose_routes_are_looked_up_keeps_nobody_from_the_room() {
    let (mut rig, ids) = full_room();
    rig.commit_large("first", LARGE);
    rig.commit_large("second", LARGE);
    assert!(rig.send().is_empty());
    let first = rig.dispatcher.queues.lane_id_of(&AccountId::new("first")).unwrap();
    rig.dispatcher.queues.set_unrouted(first, true, rig.now);
    rig.answer(ids[0], 200);
    assert_eq!(rig.send().iter().map(account).collect::<Vec<_>>(), ["second"]);
}

/// An earlier leader has left rows of the account for this endpoint.
fn recover_rows(rig: &mut Rig, account: &str, endpoint: &str) -> QueueId {
    let (account, endpoint) = (AccountId::new(account), EndpointId::new(endpoint));
    let queue = QueueId { account, endpoint };
    rig.dispatcher.recover_deferred(vec![BacklogRow {
        queue: queue.clone(),
        blocked: Blocked::Keys(vec![]),
        rows: 3,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    }]);
    queue
}

fn pages(rig: &mut Rig) -> Vec<QueueId> {
    let pages = rig.dispatcher.poll_refill(rig.now).unwrap_or_default();
    pages.into_iter().map(|page| page.queue).collect()
}

#[test]
fn rows_are_not_read_back_while_their_account_waits_for_room_and_cost_no_look() {
    let (mut rig, ids) = full_room();
    rig.commit_large("a", LARGE);
    assert!(rig.send().is_empty());
    let queues: Vec<QueueId> =
        (0..40).map(|n| recover_rows(&mut rig, "a", &format!("b{n}"))).collect();
    assert!(pages(&mut rig).is_empty());
    assert_eq!(rig.dispatcher.deferral.line.looks(), 0);
    rig.answer(ids[0], 200);
    assert_eq!(rig.send().len(), 1);
    let read = pages(&mut rig);
    assert!(!read.is_empty() && read.iter().all(|queue| queues.contains(queue)));
}

#[test]
fn rows_of_another_pool_are_read_back_while_their_account_waits_for_room() {
    let mut rig = Rig::new(settings());
    let room = settings().memory_limit / 4 / LARGE;
    let accounts: Vec<String> = (0..=room).map(|n| format!("slow-{n}")).collect();
    accounts.iter().for_each(|account| _ = rig.commit(account));
    let sent = rig.send();
    rig.wait(Duration::from_millis(1_200));
    sent.iter().for_each(|sent| rig.answer(sent.attempt.first().id, 200));
    accounts.iter().for_each(|account| rig.commit_large(account, LARGE));
    assert_eq!(rig.send().len(), room);
    let waits = &accounts[room];
    let id = AccountId::new(waits.as_str());
    let no = rig.dispatcher.queues.account(&id).unwrap();
    assert!(rig.dispatcher.queues.waits_for_room(no, Pool::Slow));
    // Nothing is known of this endpoint: it counts as quick.
    let queue = recover_rows(&mut rig, waits, "quick");
    assert_eq!(pages(&mut rig), [queue]);
}

#[test]
fn large_event_that_was_given_up_is_sent_from_the_slow_pool_next() {
    let mut rig = Rig::new(settings());
    for _ in 0..20 {
        rig.commit("quick");
        let sent = rig.send();
        rig.wait(Duration::from_millis(80));
        rig.answer(sent[0].attempt.first().id, 200);
    }
    rig.commit_large("quick", LARGE);
    let id = rig.send()[0].attempt.first().id;
    rig.wait(Duration::from_secs(1));
    rig.dispatcher.handle_outcome(
        id,
        &Outcome::new(Meaning::Aborted, Duration::from_secs(1)),
        rig.now,
    );
    let id = AccountId::new("quick");
    let queue = rig.dispatcher.queues.queues_of(&id)[0];
    assert_eq!(rig.dispatcher.queues.at(queue).pool(rig.now), Pool::Slow);
}
