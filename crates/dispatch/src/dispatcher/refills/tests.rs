//! Against a naive model: a list of those that stand in line, and since when each account waits for its turn.

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
        4 => (0usize..6).prop_map(Action::Join),
        4 => any::<bool>().prop_map(Action::Look),
        1 => (1usize..5).prop_map(Action::Begin),
        1 => Just(Action::End),
    ]
}

#[derive(Default)]
struct Model {
    line: Vec<(AccountNo, QueueNo)>,
    /// Since when each account that stands in line waits for its turn.
    since: BTreeMap<AccountNo, usize>,
}

impl Model {
    fn push(&mut self, account: AccountNo, queue: QueueNo, moment: usize) {
        self.line.push((account, queue));
        self.since.entry(account).or_insert(moment);
    }

    fn pop(&mut self, moment: usize) -> Option<(AccountNo, QueueNo)> {
        let (account, _) = self.since.iter().min_by_key(|(_, since)| **since)?;
        let account = *account;
        let at = self.line.iter().position(|(of, _)| *of == account).unwrap();
        let first = self.line.remove(at);
        if self.line.iter().any(|(of, _)| *of == account) {
            self.since.insert(account, moment);
        } else {
            self.since.remove(&account);
        }
        Some(first)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn queues_stand_in_line_once_and_pages_are_asked_for_one_request_at_a_time(
        actions in prop::collection::vec(action(), 0..80), room in 0usize..(4 << 20),
    ) {
        let (mut queues, mut refills) = (Queues::new(1), Refills::new(1 << 20));
        // Of three accounts: the first has half of them.
        let numbers: Vec<QueueNo> = [0, 0, 0, 1, 1, 2].into_iter().zip(0..).map(|(account, n)| {
            let account = AccountId::new(format!("{account}"));
            let no = queues.intern(&account, &EndpointId::new(format!("{n}")));
            queues.deferred_or_new(no);
            no
        }).collect();
        let account_of: Vec<AccountNo> = numbers.iter().map(|no| queues.at(*no).account()).collect();
        let mut model = Model::default();
        let mut reserved = None;
        for (moment, action) in actions.into_iter().enumerate() {
            match action {
                Action::Join(queue) => {
                    refills.join(numbers[queue], &mut queues);
                    if !model.line.contains(&(account_of[queue], numbers[queue])) {
                        model.push(account_of[queue], numbers[queue], moment);
                    }
                }
                Action::Look(asked) => {
                    let first = refills.pop();
                    prop_assert_eq!(first, model.pop(moment));
                    let Some((account, first)) = first else { continue };
                    if asked {
                        queues.with_row(first).leave_line();
                    } else {
                        refills.put_back(account, first);
                        model.push(account, first, moment);
                    }
                }
                Action::Begin(pages) if refills.pages_at_most(room) >= pages => {
                    prop_assert!(reserved.is_none(), "one request at a time");
                    let size = refills.begin(pages, refills.pages_at_most(room));
                    let bytes = refills.reserved();
                    prop_assert_eq!(bytes, pages * size.bytes);
                    prop_assert!(bytes <= room, "{} bytes are asked for, of {}", bytes, room);
                    prop_assert!(bytes <= (1 << 20) / 8, "pages take an eighth of memory");
                    reserved = Some(bytes);
                }
                Action::End => prop_assert_eq!(refills.end().0, reserved.take().unwrap_or(0)),
                Action::Begin(_) => {}
            }
            prop_assert_eq!(refills.looks(), model.line.len());
            prop_assert_eq!(refills.reserved(), reserved.unwrap_or(0));
            prop_assert!(reserved.is_none() || refills.pages_at_most(usize::MAX) == 0);
        }
    }
}

#[test]
fn ten_thousand_queues_of_one_account_delay_anothers_by_one_page() {
    let (mut queues, mut refills) = (Queues::new(1), Refills::new(1 << 20));
    let mut join = |account: &str, endpoint: u32| {
        let endpoint = EndpointId::new(format!("{account}-{endpoint}"));
        let no = queues.intern(&AccountId::new(account), &endpoint);
        queues.deferred_or_new(no);
        refills.join(no, &mut queues);
        no
    };
    let large = join("large", 0);
    (1..10_000).for_each(|n| _ = join("large", n));
    let small = join("small", 0);
    let next = [(); 2].map(|()| refills.pop().unwrap().1);
    assert_eq!(next, [large, small]);
}

#[test]
fn heads_that_are_known_are_bounded_by_memory() {
    let refills = Refills::new(1 << 20);
    let max = (1 << 20) / 16 / HEAD_BYTES;
    assert_eq!((refills.heads(max - 1), refills.heads(max)), (HEADS_MAX, HEADS_MIN));
}
