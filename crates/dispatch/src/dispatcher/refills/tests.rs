//! Against a naive model: a list of those that stand in line.

use proptest::prelude::*;

use super::*;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Join(usize),
    /// The first of the line is asked for, or cannot be read now.
    Look(bool),
    Begin(usize),
    End,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0usize..4).prop_map(Action::Join),
        4 => any::<bool>().prop_map(Action::Look),
        1 => (1usize..5).prop_map(Action::Begin),
        1 => Just(Action::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn queues_stand_in_line_once_and_pages_are_asked_for_one_request_at_a_time(
        actions in prop::collection::vec(action(), 0..80), room in 0usize..(4 << 20),
    ) {
        let (mut queues, mut refills) = (Queues::new(1), Refills::new(1 << 20));
        let numbers: Vec<QueueNo> = (0..4)
            .map(|n| {
                let no = queues.intern(&AccountId::new("7"), &EndpointId::new(format!("{n}")));
                queues.deferred_or_new(no);
                no
            })
            .collect();
        let (mut line, mut reserved) = (VecDeque::new(), None);
        for action in actions {
            match action {
                Action::Join(queue) => {
                    refills.join(numbers[queue], &mut queues);
                    if !line.contains(&numbers[queue]) {
                        line.push_back(numbers[queue]);
                    }
                }
                Action::Look(asked) => {
                    let first = refills.pop();
                    prop_assert_eq!(first, line.pop_front());
                    let Some(first) = first else { continue };
                    if asked {
                        queues.with_row(first).leave_line();
                    } else {
                        refills.put_back(first);
                        line.push_back(first);
                    }
                }
                Action::Begin(pages) if refills.pages_at_most(room) >= pages => {
                    prop_assert!(reserved.is_none(), "one request at a time");
                    let bytes = refills.begin(pages);
                    prop_assert!(bytes <= room, "{} bytes are asked for, of {}", bytes, room);
                    reserved = Some(bytes);
                }
                Action::End => prop_assert_eq!(refills.end(), reserved.take().unwrap_or(0)),
                Action::Begin(_) => {}
            }
            prop_assert_eq!(refills.looks(), line.len());
            prop_assert_eq!(refills.reserved(), reserved.unwrap_or(0));
            prop_assert!(reserved.is_none() || refills.pages_at_most(usize::MAX) == 0);
        }
        let share = refills.pages_at_most(usize::MAX) * refills.page_bytes();
        prop_assert!(share <= (1 << 20) / 8, "pages take an eighth of memory");
    }
}

#[test]
fn heads_that_are_known_are_bounded_by_memory() {
    let refills = Refills::new(1 << 20);
    let max = (1 << 20) / 16 / HEAD_BYTES;
    assert_eq!((refills.heads(max - 1), refills.heads(max)), (HEADS_MAX, HEADS_MIN));
}
