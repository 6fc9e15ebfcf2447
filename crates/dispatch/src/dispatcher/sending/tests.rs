//! What is being sent against a list of requests and a list of timers.

use std::collections::BTreeSet;

use super::super::Settings;
use super::super::queues::Queues;
use super::super::rig::{Rig, settings};
use super::*;
use proptest::prelude::*;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    /// From the fast pool or the slow one, with an event of so many bytes.
    Send(bool, usize),
    End(usize),
    Doubt(usize, bool),
    Pass(u64),
    Wake(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (any::<bool>(), prop_oneof![Just(10usize), 20_000usize..200_000])
            .prop_map(|(is_fast, bytes)| Action::Send(is_fast, bytes)),
        3 => any::<usize>().prop_map(Action::End),
        2 => any::<(usize, bool)>().prop_map(|(n, doubtful)| Action::Doubt(n, doubtful)),
        3 => (0u64..900_000).prop_map(Action::Pass),
        1 => (0u64..2_000_000).prop_map(Action::Wake),
    ]
}

proptest! {
    /// The model: a list of requests with their starts, and a list of timers.
    #[test]
    fn sending_gives_each_slot_back_once_and_gives_up_only_what_is_old(
        actions in proptest::collection::vec(action(), 1..200),
    ) {
        let (fast, slow) = (4, 2);
        let mut sending = Sending::new(fast, slow + 1, 1 << 20);
        let lane = sending.add_lane(1.0);
        let mut queues = Queues::new(1);
        let queue = queues.intern(&AccountId::new("a"), &EndpointId::new("e"));
        let mut requests: Vec<(DeliveryId, Tick, Pool, bool)> = Vec::new();
        let mut waits: Vec<Ticket> = Vec::new();
        let mut timers: Vec<Tick> = Vec::new();
        let mut given_up: Vec<DeliveryId> = Vec::new();
        let mut doubts: BTreeSet<DeliveryId> = BTreeSet::new();
        let (mut now, mut next) = (Tick(0), 0);
        for action in actions {
            match action {
                Action::Send(is_fast, bytes) => {
                    let pool = if is_fast { Pool::Fast } else { Pool::Slow };
                    let total = if is_fast { fast } else { slow };
                    let need = sending.need(Room::of(pool, true), bytes);
                    if sending.in_pool(pool) < total {
                        if let Some(need) = need
                            && let Err(ticket) = sending.find_room(lane, need, None)
                        {
                            waits.push(ticket);
                            continue;
                        }
                        next += 1;
                        let id = DeliveryId(next);
                        sending.start((lane, pool), queue, (id, need), (Duration::ZERO, None), now);
                        requests.push((id, now, pool, need.is_some()));
                    }
                }
                Action::End(n) if !requests.is_empty() => {
                    let (id, started, _, was_large) = requests.remove(n % requests.len());
                    let ended = sending.end(id, now);
                    let held_for = now.since(started);
                    let (outdated, doubtful) = (false, doubts.remove(&id));
                    let expected =
                        Ended { queue, started, held_for, outdated, doubtful, was_large };
                    prop_assert_eq!(ended, Some(expected));
                    prop_assert_eq!(sending.end(id, now), None, "it ends once");
                    // Whoever waits has found something else.
                    waits.drain(..).for_each(|ticket| _ = sending.renew_need(ticket, None));
                    prop_assert!(!sending.is_room_waited_for());
                }
                Action::Wake(after) => {
                    let due = now + Duration::from_micros(after);
                    timers.push(due);
                    sending.wake_at(due, Wake::RateLimit(queue));
                }
                Action::Doubt(n, doubtful) if !requests.is_empty() => {
                    let (id, ..) = requests[n % requests.len()];
                    let changes = if doubtful { doubts.insert(id) } else { doubts.remove(&id) };
                    prop_assert_eq!(sending.doubt(id, doubtful), changes.then_some(queue));
                }
                Action::Pass(us) => now = now + Duration::from_micros(us),
                Action::End(_) | Action::Doubt(..) => {}
            }
            sending.move_old(now);
            while let Some(id) = sending.take_abort() {
                let (_, started, pool, _) = requests.iter().find(|(other, ..)| *other == id).unwrap();
                prop_assert!(now.since(*started) >= FAST_HOLD && *pool == Pool::Fast);
                prop_assert!(!given_up.contains(&id), "given up twice");
                prop_assert!(!doubts.contains(&id), "given up, and nothing is heard of it");
                given_up.push(id);
            }
            let due = timers.iter().filter(|due| **due <= now).count();
            let woken = std::iter::from_fn(|| sending.take_due(now)).count();
            prop_assert_eq!(woken, due);
            timers.retain(|due| *due > now);
            prop_assert_eq!(sending.len(), requests.len());
            let slots = sending.in_pool(Pool::Fast) + sending.in_pool(Pool::Slow);
            prop_assert_eq!(slots as usize, requests.len(), "a slot for each request");
            prop_assert!(sending.in_pool(Pool::Fast) <= fast && sending.in_pool(Pool::Slow) <= slow);
            if let (Some(first), Some(deadline)) = (timers.iter().min(), sending.deadline()) {
                prop_assert!(deadline <= *first);
            }
        }
    }
}

/// Two accounts whose endpoints hang hold both slow slots. One of a third, which is quick, takes two seconds once.
#[test]
fn endpoint_that_was_slow_for_a_moment_waits_for_no_slow_slot_once_it_is_quick_again() {
    let mut rig = Rig::new(Settings { fast_slots: 8, slow_slots: 3, ..settings() });
    let all = |rig: &mut Rig| -> Vec<DeliveryId> {
        rig.send().iter().map(|dispatch| dispatch.attempt.first().id).collect()
    };
    for _ in 0..20 {
        rig.commit("quick");
        all(&mut rig).into_iter().for_each(|id| rig.answer(id, 204));
    }
    rig.commit("hangs");
    rig.commit("hangs too");
    assert_eq!(all(&mut rig).len(), 2);
    rig.wait(FAST_HOLD);
    rig.commit("quick");
    let once = all(&mut rig);
    let gauges = rig.dispatcher.gauges();
    assert_eq!((gauges.in_flight_fast, gauges.in_flight_slow), (1, 2));
    rig.wait(Duration::from_millis(1_500));
    rig.commit("quick");
    assert_eq!(all(&mut rig), [], "it is slow, as far as is known");
    rig.wait(Duration::from_millis(500));
    rig.answer(once[0], 204);
    assert_eq!(all(&mut rig).len(), 1, "it waits for the endpoints that hang");
}
