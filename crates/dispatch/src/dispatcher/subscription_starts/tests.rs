//! Against a naive model: one list of all joins.

use proptest::prelude::*;

use super::*;
use crate::dispatcher::queues::Queues;
use crate::fixture;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Join(usize),
    /// An event of this commit is routed to the queue.
    Begin(usize, u64),
    /// The join that holds the queue is looked at; its range may be in the batch.
    Note(usize, bool),
    /// A batch is stored with the checkpoint there.
    Stored(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0usize..3).prop_map(Action::Join),
        4 => (0usize..3, 1u64..200).prop_map(|(queue, commit)| Action::Begin(queue, commit)),
        3 => (0usize..3, any::<bool>()).prop_map(|(queue, stored)| Action::Note(queue, stored)),
        2 => (1u64..120).prop_map(Action::Stored),
    ]
}

#[derive(Debug, Clone)]
struct Modelled {
    queue: usize,
    received: u64,
    first: Option<(DeliveryId, u64)>,
    last: Option<Insertion>,
    is_storing: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn starts_are_what_a_list_of_all_joins_says(
        actions in prop::collection::vec(action(), 0..80),
    ) {
        let mut queues = Queues::new(1);
        let names = ["1", "2", "3"];
        let numbers: Vec<QueueNo> = names
            .iter()
            .map(|name| queues.intern(&AccountId::new("7"), &EndpointId::new(*name)))
            .collect();
        let (mut starts, mut model) = (SubscriptionStarts::default(), Vec::<Modelled>::new());
        for (at, action) in (1u64..).zip(actions) {
            match action {
                Action::Join(queue) => {
                    starts.expect(numbers[queue], Lsn(at));
                    let last = model.iter_mut().rfind(|join| join.queue == queue);
                    match last.filter(|join| join.first.is_none()) {
                        Some(join) => join.received = at,
                        None => model.push(Modelled {
                            queue,
                            received: at,
                            first: None,
                            last: None,
                            is_storing: false,
                        }),
                    }
                }
                Action::Begin(queue, commit) => {
                    let id = DeliveryId(at);
                    let position = fixture::position(commit, commit);
                    let is_first = starts.begin(numbers[queue], id, position);
                    for (_, first) in model
                        .iter_mut()
                        .filter(|join| join.queue == queue)
                        .filter_map(|join| join.first.as_mut())
                    {
                        *first = commit.min(*first);
                    }
                    let last = model.iter_mut().rfind(|join| join.queue == queue);
                    let last = last.filter(|join| join.first.is_none());
                    prop_assert_eq!(is_first, last.is_some());
                    if let Some(join) = last {
                        join.first = Some((id, commit));
                    }
                }
                Action::Note(queue, is_storing) => {
                    let Some(join) = model.iter_mut().find(|join| join.queue == queue) else {
                        continue;
                    };
                    starts.note_last(numbers[queue], Insertion(at), is_storing);
                    join.is_storing |= is_storing;
                    if join.first.is_some() {
                        join.last = Some(Insertion(at));
                    }
                }
                Action::Stored(frontier) => {
                    let over = starts.end(Lsn(frontier));
                    let mut expected = Vec::new();
                    for (queue, no) in numbers.iter().enumerate() {
                        let is_over = |join: &Modelled| join.is_storing || join.received < frontier;
                        while let Some(at) = model.iter().position(|join| join.queue == queue)
                            && is_over(&model[at])
                        {
                            model.remove(at);
                            expected.push(*no);
                        }
                    }
                    expected.dedup();
                    prop_assert_eq!(over, expected);
                }
            }
            compare(&starts, &model, &numbers)?;
        }
    }
}

fn compare(
    starts: &SubscriptionStarts,
    model: &[Modelled],
    numbers: &[QueueNo],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(starts.is_empty(), model.is_empty());
    let mut firsts = Vec::new();
    for (queue, no) in numbers.iter().enumerate() {
        let first = model.iter().find(|join| join.queue == queue);
        prop_assert_eq!(starts.has(*no), first.is_some());
        let holds = first.and_then(|join| join.first);
        prop_assert_eq!(starts.held_from(*no), holds.map(|(id, _)| id));
        firsts.extend(holds.map(|(id, commit)| (*no, id, commit, first.and_then(|f| f.last))));
    }
    prop_assert_eq!(starts.len(), numbers.iter().filter(|no| starts.has(**no)).count());
    let told = starts
        .firsts()
        .map(|first| (first.queue, first.id, first.position.commit_lsn().0, first.last_insertion));
    prop_assert_eq!(told.collect::<Vec<_>>(), firsts);
    Ok(())
}
