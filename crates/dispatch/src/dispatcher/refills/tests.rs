//! Against a naive model: a list of those that stand in line, and since when each account waits for its turn.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::dispatcher::rig::{Rig, settings};
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Join(usize),
    /// What is done with the first of the line.
    Look(Look),
    /// One of the accounts waits for nothing any more.
    GoOn(usize),
    Begin(usize),
    End,
}

#[derive(Debug, Clone, Copy)]
enum Look {
    Asked,
    NotNow,
    /// Its account waits for room.
    Aside,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0usize..6).prop_map(Action::Join),
        4 => prop_oneof![Just(Look::Asked), Just(Look::NotNow), Just(Look::Aside)]
            .prop_map(Action::Look),
        2 => (0usize..3).prop_map(Action::GoOn),
        1 => (1usize..5).prop_map(Action::Begin),
        1 => Just(Action::End),
    ]
}

#[derive(Default)]
struct Model {
    line: Vec<(Turn, QueueNo)>,
    /// Since when each account that stands in line waits for its turn.
    since: BTreeMap<Turn, usize>,
    aside: BTreeSet<Turn>,
}

impl Model {
    fn push(&mut self, turn: Turn, queue: QueueNo, moment: usize) {
        self.line.push((turn, queue));
        if !self.aside.contains(&turn) {
            self.since.entry(turn).or_insert(moment);
        }
    }

    fn pop(&mut self, moment: usize) -> Option<(Turn, QueueNo)> {
        let (turn, _) = self.since.iter().min_by_key(|(_, since)| **since)?;
        let turn = *turn;
        let at = self.line.iter().position(|(of, _)| *of == turn).unwrap();
        let first = self.line.remove(at);
        self.since.remove(&turn);
        self.go_on(turn, moment);
        Some(first)
    }

    fn go_on(&mut self, turn: Turn, moment: usize) {
        if self.line.iter().any(|(of, _)| *of == turn) {
            self.since.insert(turn, moment);
        }
    }

    fn len(&self) -> usize {
        self.line.iter().filter(|(turn, _)| !self.aside.contains(turn)).count()
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
        let turn_of: Vec<Turn> =
            numbers.iter().map(|no| (queues.at(*no).account(), Pool::Fast)).collect();
        let mut model = Model::default();
        let mut reserved = None;
        for (moment, action) in actions.into_iter().enumerate() {
            match action {
                Action::Join(queue) => {
                    refills.join(numbers[queue], &mut queues, Tick(0));
                    if !model.line.contains(&(turn_of[queue], numbers[queue])) {
                        model.push(turn_of[queue], numbers[queue], moment);
                        if model.aside.remove(&turn_of[queue]) {
                            model.go_on(turn_of[queue], moment);
                        }
                    }
                }
                Action::Look(look) => {
                    let first = refills.pop();
                    prop_assert_eq!(first, model.pop(moment));
                    let Some((turn, first)) = first else { continue };
                    match look {
                        Look::Asked => _ = queues.with_row(first).set_in_line(None),
                        Look::NotNow => {
                            refills.put_back(turn, first);
                            model.push(turn, first, moment);
                        }
                        Look::Aside => {
                            refills.put_aside(turn, first);
                            model.aside.insert(turn);
                            model.since.remove(&turn);
                            model.push(turn, first, moment);
                        }
                    }
                }
                Action::GoOn(account) => {
                    let turn = turn_of[account * 2];
                    refills.go_on(turn.0, turn.1);
                    if model.aside.remove(&turn) {
                        model.go_on(turn, moment);
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
            prop_assert_eq!(refills.looks(), model.len());
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
        refills.join(no, &mut queues, Tick(0));
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

#[test]
fn queue_whose_pool_is_another_by_now_stands_there_alone() {
    let (mut queues, mut refills) = (Queues::new(1), Refills::new(1 << 20));
    let no = queues.intern(&AccountId::new("a"), &EndpointId::new("e"));
    let account = queues.at(no).account();
    queues.deferred_or_new(no);
    refills.join(no, &mut queues, Tick(0));
    let (turn, first) = refills.pop().unwrap();
    refills.put_aside(turn, first);
    assert_eq!(refills.looks(), 0, "it waits for room, and is not looked at");
    queues.with_row(no).open_breaker(None, Tick(0), &mut rand::rngs::SmallRng::seed_from_u64(1));
    refills.join(no, &mut queues, Tick(0));
    assert_eq!(refills.pop(), Some(((account, Pool::Probe), no)));
    refills.go_on(account, Pool::Fast);
    assert_eq!(refills.pop(), None);
}

#[test]
fn queue_of_an_account_that_has_the_number_of_one_put_aside_has_its_turn() {
    let (mut queues, mut refills) = (Queues::new(1), Refills::new(1 << 20));
    let join = |queues: &mut Queues, refills: &mut Refills, account: &str| {
        let no = queues.intern(&AccountId::new(account), &EndpointId::new("e"));
        queues.deferred_or_new(no);
        refills.join(no, queues, Tick(0));
        (no, queues.at(no).account())
    };
    let (gone, number) = join(&mut queues, &mut refills, "a");
    let (turn, first) = refills.pop().unwrap();
    refills.put_aside(turn, first);
    queues.forget_deferred(gone);
    queues.sweep();
    let (other, same) = join(&mut queues, &mut refills, "b");
    assert_eq!(same, number);
    let next = [(); 3].map(|()| refills.pop().map(|(_, queue)| queue));
    assert_eq!(next, [Some(gone), Some(other), None]);
}

#[test]
fn rows_whose_accounts_wait_for_older_events_cost_no_look_until_these_are_routed() {
    let mut rig = Rig::new(settings());
    let accounts: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
    for account in &accounts {
        rig.recover_rows(account, "another");
        rig.commit_unrouted(account);
    }
    let rounds = accounts.len() / LOOKED_AT_ONCE + 1;
    (0..rounds).for_each(|_| assert_eq!(rig.dispatcher.poll_refill(rig.now), None));
    assert_eq!(rig.dispatcher.deferral.line.looks(), 0);
    let waits = |rig: &Rig| !rig.dispatcher.routing.waiting.is_empty();
    assert!(waits(&rig));
    while waits(&rig) {
        rig.look_up();
        rig.send();
    }
    assert_eq!(rig.dispatcher.deferral.line.looks(), LOOKED_AT_ONCE, "all may be read back now");
    assert!(rig.dispatcher.poll_refill(rig.now).is_some());
}
