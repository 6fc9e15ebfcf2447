//! The rooms alone, and what they are for: who takes large events and never answers delays nobody.

use super::*;
use crate::dispatcher::memory_budget::MemoryBudget;
use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{Dispatch, OperatorInput, Settings};
use crate::fixture;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::time::Duration;
use walhook_core::attempt::{DeliveryId, Meaning, Outcome};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::JobId;
use walhook_core::persist::QueueId;
use walhook_core::waits::Cause;

fn need(room: Room, bytes: usize) -> Need {
    Need { room, bytes }
}

#[test]
fn event_within_its_slot_s_share_needs_no_room() {
    let mut rooms = Rooms::new(6_400, 8);
    let needs = |rooms: &Rooms, bytes| rooms.need(Room::Fast, bytes).map(|need| need.bytes);
    assert_eq!((needs(&rooms, 100), needs(&rooms, 101)), (None, Some(101)));
    rooms.set_slots(80);
    assert_eq!((needs(&rooms, 10), needs(&rooms, 11)), (None, Some(11)));
}

#[test]
fn all_in_flight_leaves_more_than_making_room_wants() {
    let memory_limit = 6_400;
    let rooms: usize = Room::ALL.iter().map(|room| memory_limit / PARTS * room.parts()).sum();
    let budget = MemoryBudget::new(memory_limit);
    assert!(budget.is_relieved(budget.used(0) + memory_limit / SHARED + rooms));
}

#[derive(Debug, Clone)]
enum Action {
    Ask { room: usize, bytes: usize },
    End(usize),
    GiveUp(usize),
    Renew(usize, Option<usize>),
    Call(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let bytes = || 101usize..1_500;
    prop_oneof![
        6 => (0..Room::ALL.len(), bytes()).prop_map(|(room, bytes)| Action::Ask { room, bytes }),
        4 => any::<usize>().prop_map(Action::End),
        1 => any::<usize>().prop_map(Action::GiveUp),
        1 => (any::<usize>(), proptest::option::of(bytes()))
            .prop_map(|(n, bytes)| Action::Renew(n, bytes)),
        4 => (0..Room::ALL.len()).prop_map(Action::Call),
    ]
}

/// A room as lists: what is taken of it, which of that is given up, and who waits.
#[derive(Debug, Default)]
struct Model {
    taken: Vec<(usize, bool)>,
    line: Vec<(LaneId, usize, u64)>,
}

impl Model {
    fn sum(&self, with_leaving: bool) -> usize {
        self.taken
            .iter()
            .filter(|(_, leaves)| with_leaving || !leaves)
            .map(|(bytes, _)| bytes)
            .sum()
    }

    fn fits(&self, bytes: usize, limit: usize) -> bool {
        self.taken.is_empty() || self.sum(true) + bytes <= limit
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever becomes of one room, the others and their lines are as if it were not there.
    #[test]
    fn each_room_has_its_own_bound_and_its_own_line_in_the_order_of_those_who_came(
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let memory_limit = 6_400;
        let mut rooms = Rooms::new(memory_limit, 8);
        let mut models = Room::ALL.map(|_| Model::default());
        let limits = Room::ALL.map(|room| memory_limit / PARTS * room.parts());
        let mut next = 0;
        for action in actions {
            match action {
                Action::Ask { room, bytes } => {
                    let (of, model, limit) = (Room::ALL[room], &mut models[room], limits[room]);
                    let has = model.line.is_empty() && model.fits(bytes, limit);
                    prop_assert_eq!(rooms.has(need(of, bytes)), has);
                    if has {
                        rooms.take(need(of, bytes));
                        model.taken.push((bytes, false));
                    } else {
                        next += 1;
                        let ticket = rooms.wait(need(of, bytes), LaneId(next), None);
                        model.line.push((LaneId(next), bytes, ticket.number));
                    }
                }
                Action::End(n) => {
                    let room = n % Room::ALL.len();
                    let model = &mut models[room];
                    if !model.taken.is_empty() {
                        let (bytes, leaves) = model.taken.remove(n % model.taken.len());
                        rooms.give_back(need(Room::ALL[room], bytes), leaves);
                    }
                }
                Action::GiveUp(n) => {
                    let room = n % Room::ALL.len();
                    if let Some((bytes, leaves)) = models[room].taken.iter_mut().find(|it| !it.1) {
                        *leaves = true;
                        rooms.note_leaving(need(Room::ALL[room], *bytes));
                    }
                }
                Action::Renew(n, bytes) => {
                    let room = n % Room::ALL.len();
                    let (of, line) = (Room::ALL[room], &mut models[room].line);
                    if line.is_empty() {
                        continue;
                    }
                    let at = n % line.len();
                    let ticket = Ticket { room: of, number: line[at].2 };
                    let left = rooms.renew(ticket, bytes.map(|bytes| need(of, bytes)));
                    prop_assert_eq!(left, bytes.is_none());
                    match bytes {
                        Some(bytes) => line[at].1 = bytes,
                        None => _ = line.remove(at),
                    }
                }
                Action::Call(room) => {
                    let (of, model, limit) = (Room::ALL[room], &mut models[room], limits[room]);
                    let first = model.line.first().copied();
                    let called = first.filter(|(_, bytes, _)| model.fits(*bytes, limit));
                    prop_assert_eq!(rooms.call(of), called.map(|(lane, ..)| lane));
                    if let Some((_, bytes, _)) = called {
                        model.line.remove(0);
                        prop_assert!(rooms.has_for_called(need(of, bytes)));
                        rooms.take(need(of, bytes));
                        model.taken.push((bytes, false));
                    }
                }
            }
            for ((of, model), limit) in Room::ALL.into_iter().zip(&models).zip(limits) {
                prop_assert!(model.taken.len() < 2 || model.sum(true) <= limit);
                let stays = model.sum(false);
                let first = model.line.first();
                let wanted = first.is_some_and(|(_, bytes, _)| stays > 0 && stays + bytes > limit);
                prop_assert_eq!(rooms.is_wanted(of), wanted);
            }
            let waits = models.iter().any(|model| !model.line.is_empty());
            prop_assert_eq!(rooms.is_waited_for(), waits);
        }
    }
}

#[test]
fn who_was_called_in_vain_waits_where_it_stood() {
    let mut rooms = Rooms::new(6_400, 8);
    rooms.take(need(Room::Fast, 1_200));
    let first = rooms.wait(need(Room::Fast, 900), LaneId(1), None);
    rooms.wait(need(Room::Fast, 120), LaneId(2), None);
    rooms.give_back(need(Room::Fast, 1_200), false);
    assert_eq!(rooms.call(Room::Fast), Some(LaneId(1)));
    rooms.wait(need(Room::Fast, 900), LaneId(1), Some(first));
    assert_eq!(rooms.call(Room::Fast), Some(LaneId(1)));
    // In another line it has no place yet.
    rooms.wait(need(Room::Silent, 900), LaneId(3), None);
    rooms.wait(need(Room::Silent, 900), LaneId(1), Some(first));
    assert_eq!(rooms.call(Room::Silent), Some(LaneId(3)));
}

const LARGE: usize = 900_000;

/// So many large events have room there.
fn holds(room: Room) -> usize {
    settings().memory_limit / PARTS * room.parts() / LARGE
}

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
    assert!((16..20).contains(&large), "{large} MiB of 64 in flight");
}

#[test]
fn account_that_waits_for_room_sends_once_there_is_some_and_others_meanwhile() {
    let mut rig = Rig::new(settings());
    let room = holds(Room::Fast);
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
    let (fast, silent) = (holds(Room::Fast), holds(Room::Silent));
    for n in 0..fast + silent {
        rig.commit_large(&format!("large-{n}"), LARGE);
    }
    assert_eq!(rig.send().len(), fast);
    rig.wait(Duration::from_secs(1));
    // Some move, and the others follow.
    assert_eq!(rig.send().len(), silent);
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
    for n in 0..holds(Room::Fast) {
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

    (0..holds(Room::Silent)).for_each(|n| rig.commit_large(&format!("more-{n}"), LARGE));
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.send().len(), holds(Room::Silent), "old ones have moved");
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

fn pages(rig: &mut Rig) -> Vec<QueueId> {
    let pages = rig.dispatcher.poll_refill(rig.now).unwrap_or_default();
    pages.into_iter().map(|page| page.queue).collect()
}

#[test]
fn rows_are_not_read_back_while_their_account_waits_for_room_and_cost_no_look() {
    let (mut rig, ids) = full_room();
    rig.commit_large("a", LARGE);
    assert!(rig.send().is_empty());
    let queues: Vec<QueueId> = (0..40).map(|n| rig.recover_rows("a", &format!("b{n}"))).collect();
    assert!(pages(&mut rig).is_empty());
    assert_eq!(rig.dispatcher.deferral.line.looks(), 0);
    let standing = rig.dispatcher.standing(100, rig.now);
    let mut of_it = standing.accounts.iter().filter(|of| of.account.as_str() == "a");
    assert_eq!(of_it.next().map(|of| of.cause), Some(Cause::Pool), "its rows wait for room");
    rig.answer(ids[0], 200);
    assert_eq!(rig.send().len(), 1);
    let read = pages(&mut rig);
    assert!(!read.is_empty() && read.iter().all(|queue| queues.contains(queue)));
}

#[test]
fn rows_of_another_pool_are_read_back_while_their_account_waits_for_room() {
    let mut rig = Rig::new(settings());
    let room = holds(Room::Silent);
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
    let queue = rig.recover_rows(waits, "quick");
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

/// A neighbour answers each large event after 1.2 s, beside 300 accounts whose endpoints never do.
#[test]
fn who_answers_late_waits_for_none_of_those_who_never_do() {
    let mut rig = Rig::new(Settings { fast_slots: 256, slow_slots: 512, ..settings() });
    let (bytes, late) = (100_000, Duration::from_millis(1_200));
    rig.commit_large("neighbour", bytes);
    let first = rig.send()[0].attempt.first().id;
    rig.wait(late);
    rig.answer(first, 200);
    let mut owed = VecDeque::new();
    let mut answers = Vec::new();
    let (mut sent, mut timed_out, mut longest) = (0, 0, Duration::ZERO);
    let begin = rig.now;
    for tick in 0..1_200 {
        let storm = if tick == 0 { 0..300 } else { tick % 300..tick % 300 + 1 };
        storm.for_each(|n| rig.commit_large(&format!("hangs-{n}"), bytes));
        if tick % 20 == 5 {
            rig.commit_large("neighbour", bytes);
            owed.push_back(rig.now);
        }
        for dispatch in rig.send() {
            let id = dispatch.attempt.first().id;
            if account(&dispatch) == "neighbour" {
                sent += 1;
                longest = longest.max(rig.now.since(owed.pop_front().unwrap()));
                answers.push((rig.now + late, id, fixture::answered(200)));
            } else {
                let hangs = Duration::from_secs(15);
                answers.push((rig.now + hangs, id, Outcome::new(Meaning::TimedOut, hangs)));
            }
        }
        aborted(&mut rig);
        let now = rig.now;
        for (_, id, outcome) in answers.extract_if(.., |(at, ..)| *at <= now) {
            let came = rig.dispatcher.handle_outcome(id, &outcome, now);
            timed_out += usize::from(came.is_some_and(|came| !came.delivered));
        }
        rig.store();
        rig.read();
        rig.wait(Duration::from_millis(50));
    }
    assert!(rig.now.since(begin) > Duration::from_secs(60) && sent > 50 && timed_out > 100);
    assert!(longest < Duration::from_secs(3), "the neighbour waited for {longest:?}");
}
