//! Against a naive model: a list of all deliveries of replays, each with what became of it.

use proptest::prelude::*;

use super::*;
use crate::dispatcher::queues::Queues;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Start(i64),
    Enter(i64),
    /// One in memory ends: taken, dead, or it leaves for the table.
    Leave(usize, u8),
    /// One that left is a row, or counted in a gap, with the batch that is handed out.
    Row(usize, bool),
    End(i64),
    HandOut,
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        1 => (0i64..3).prop_map(Action::Start),
        6 => (0i64..3).prop_map(Action::Enter),
        4 => (any::<usize>(), 0u8..3).prop_map(|(at, how)| Action::Leave(at, how)),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(at, gap)| Action::Row(at, gap)),
        1 => (0i64..3).prop_map(Action::End),
        2 => Just(Action::HandOut),
        2 => (1u64..3_000).prop_map(Action::Pass),
    ]
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Modelled {
    fed: bool,
    /// It was fed once: its counts are kept.
    known: bool,
    /// What is to be told.
    changed: Option<ReplayCounts>,
    counts: ReplayCounts,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn each_delivery_of_a_replay_is_counted_by_how_it_left_memory(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut queues = Queues::new(1);
        let queue = queues.intern(&AccountId::new("7"), &EndpointId::new("8"));
        let (mut replays, mut model) = (Replays::default(), [Modelled::default(); 3]);
        let (mut now, mut next) = (Tick(0), 0);
        // In memory with when they came; and on their way into the table.
        let (mut memory, mut leaving) = (Vec::<(usize, Tick, DeliveryId)>::new(), Vec::new());
        let mut queued = VecDeque::<(Tick, DeliveryId)>::new();
        for action in actions {
            match action {
                Action::Start(id) => {
                    let counts = ReplayCounts { done: 5, ..ReplayCounts::default() };
                    replays.start(ReplayId(id), counts);
                    let of = &mut model[usize::try_from(id).unwrap()];
                    if !of.fed {
                        of.counts = counts;
                    }
                    (of.fed, of.known) = (true, true);
                }
                Action::Enter(id) => {
                    let at = usize::try_from(id).unwrap();
                    if !replays.have_room() || !model[at].fed {
                        continue;
                    }
                    next += 1;
                    replays.enter_memory();
                    replays.queued(queue, DeliveryId(next), now);
                    memory.push((at, now, DeliveryId(next)));
                    queued.push_back((now, DeliveryId(next)));
                }
                Action::Leave(which, how) if !memory.is_empty() => {
                    let (of, ..) = memory.remove(which % memory.len());
                    replays.leave_memory();
                    if memory.is_empty() {
                        queued.clear();
                    }
                    if how == 2 {
                        leaving.push(of);
                        continue;
                    }
                    let id = ReplayId(i64::try_from(of).unwrap());
                    replays.count(id, |counts| match how {
                        0 => counts.done += 1,
                        _ => counts.failed += 1,
                    });
                    if model[of].known {
                        let counts = &mut model[of].counts;
                        *(if how == 0 { &mut counts.done } else { &mut counts.failed }) += 1;
                        model[of].changed = Some(model[of].counts);
                    }
                }
                Action::Row(which, in_gap) if !leaving.is_empty() => {
                    let of = leaving.remove(which % leaving.len());
                    let id = ReplayId(i64::try_from(of).unwrap());
                    let counts = &mut model[of].counts;
                    if replays.is_known(id) {
                        replays.count_left(id, in_gap);
                        *(if in_gap { &mut counts.in_gaps } else { &mut counts.deferred }) += 1;
                    } else {
                        replays.count_dropped(id);
                        counts.dropped += 1;
                    }
                    model[of].changed = Some(model[of].counts);
                }
                Action::End(id) => {
                    replays.end(ReplayId(id));
                    model[usize::try_from(id).unwrap()].fed = false;
                }
                Action::HandOut => {
                    let mut batch = PersistBatch::default();
                    replays.hand_out(&mut batch);
                    let changed = (0i64..).zip(&mut model);
                    let expected: Vec<_> = changed
                        .filter_map(|(id, of)| Some((ReplayId(id), of.changed.take()?)))
                        .collect();
                    prop_assert_eq!(batch.replayed, expected);
                }
                Action::Pass(ms) => now = now + Duration::from_millis(ms),
                Action::Leave(..) | Action::Row(..) => {}
            }
            for (id, of) in (0i64..).zip(&model) {
                prop_assert_eq!(replays.is_known(ReplayId(id)), of.fed);
            }
            prop_assert_eq!(replays.have_room(), memory.len() < REPLAYS_MAX);
            // With no room left those that wait for too long are to leave, the oldest first.
            let full = memory.len() >= REPLAYS_MAX;
            let due = queued.front().filter(|_| full).map(|(since, _)| *since + HOLD);
            prop_assert_eq!(replays.deadline(), due);
            if let Some((of, id)) = replays.take_overdue(now) {
                prop_assert!(due.is_some_and(|due| due <= now) && of == queue);
                prop_assert_eq!(queued.pop_front().map(|(_, id)| id), Some(id));
            } else {
                prop_assert!(due.is_none_or(|due| due > now));
            }
        }
    }
}
