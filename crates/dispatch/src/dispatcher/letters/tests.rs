//! Against a naive model; and with the dispatcher, what they keep from being sent: nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dispatcher::UNPERSISTED_MAX;
use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{EndpointChange, Settings};
use crate::fixture;
use crate::lane::SharedEvent;
use crate::settle::SettlePolicy;
use walhook_core::persist::{DeadLetter, DeadReason, Persisted, UnroutedKey};

#[derive(Debug, Clone)]
enum Action {
    /// One of this account, perhaps with a row that has this insertion.
    Push { account: u8, attempted: bool, insertion: Option<u64> },
    /// A batch takes up to so many, where insertions up to this one were handed out.
    Take { at_most: usize, handed_out: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    let insertion = proptest::option::of(0u64..6);
    prop_oneof![
        3 => (0u8..4, any::<bool>(), insertion)
            .prop_map(|(account, attempted, insertion)| Action::Push { account, attempted, insertion }),
        2 => (0usize..4, 0u64..6).prop_map(|(at_most, handed_out)| Action::Take { at_most, handed_out }),
    ]
}

fn dying(account: u8, number: u64, insertion: Option<u64>) -> Dying {
    let position = fixture::position(1_000 + number, 1_000 + number);
    let event = Arc::new(fixture::event(&account.to_string(), position, &[]));
    let letter = DeadLetter {
        event: Arc::clone(&event),
        endpoint: None,
        reason: DeadReason::Unroutable,
        detail: String::new(),
        attempts: 0,
        last_status: None,
        history: Vec::new(),
        replay: None,
    };
    let row = UnroutedKey {
        account: event.account.clone(),
        event: walhook_core::persist::EventKey::of(&event),
    };
    let held = Arc::new(SharedEvent::new(event));
    let insertion = Insertion(insertion.unwrap_or_default());
    Dying { letter, body: Body::Unrouted { row, insertion, held } }
}

/// What is modelled of one.
#[derive(Debug, Clone, PartialEq)]
struct Waits {
    account: u8,
    attempted: bool,
    insertion: u64,
    number: u64,
}

proptest! {
    #[test]
    fn letters_go_in_the_order_of_their_account_and_those_just_attempted_first(
        actions in prop::collection::vec(action(), 0..80),
    ) {
        let (mut letters, mut model) = (Letters::default(), Vec::<Waits>::new());
        for (number, action) in (0u64..).zip(actions) {
            match action {
                Action::Push { account, attempted, insertion } => {
                    letters.push(dying(account, number, insertion), attempted);
                    let insertion = insertion.unwrap_or_default();
                    model.push(Waits { account, attempted, insertion, number });
                }
                Action::Take { at_most, handed_out } => {
                    let (size, mut taken) = (BatchSize::new(), Taken::default());
                    let mut of_accounts = BTreeMap::<u8, usize>::new();
                    for _ in 0..at_most {
                        let next = letters.next(Insertion(handed_out), &size, &mut taken);
                        // The first of each account may go, if its row was handed out.
                        let firsts = |attempted: bool| {
                            let mut firsts = BTreeMap::<u8, &Waits>::new();
                            for waits in model.iter().filter(|waits| waits.attempted == attempted) {
                                firsts.entry(waits.account).or_insert(waits);
                            }
                            firsts.into_values().filter(|waits| waits.insertion <= handed_out)
                                .cloned().collect::<Vec<_>>()
                        };
                        let may = match &firsts(true)[..] {
                            [] => firsts(false),
                            attempted => attempted.to_vec(),
                        };
                        let Some(next) = next else {
                            prop_assert_eq!(may, vec![]);
                            break;
                        };
                        let commit = next.letter.event.position.commit_lsn().0;
                        let at = may.iter().find(|waits| waits.number + 1_000 == commit);
                        let Some(at) = at.cloned() else {
                            prop_assert!(false, "{commit} has no turn: {may:?}");
                            break;
                        };
                        *of_accounts.entry(at.account).or_default() += 1;
                        model.retain(|waits| *waits != at);
                    }
                }
            }
            let attempted = model.iter().filter(|waits| waits.attempted).count();
            prop_assert_eq!((letters.len(), letters.attempted()), (model.len(), attempted));
        }
    }
}

#[test]
fn accounts_take_turns_however_many_letters_one_of_them_has() {
    let mut letters = Letters::default();
    for number in 0..5_000 {
        letters.push(dying(0, number, None), false);
    }
    letters.push(dying(1, 5_000, None), false);
    let (size, mut taken) = (BatchSize::new(), Taken::default());
    let next = || letters.next(Insertion(0), &size, &mut taken);
    let batch: Vec<Dying> = std::iter::from_fn(next).collect();
    assert!(batch.iter().take(2).any(|dying| dying.letter.event.account.as_str() == "1"));
    assert_eq!(batch.len(), size.letters());
}

/// Endpoint `7` does not want anything any more, and so many deliveries to it have died.
fn gone(letters: usize) -> Rig {
    let mut rig = Rig::new(settings());
    for _ in 0..letters {
        rig.commit("7");
    }
    let sent = rig.send();
    rig.answer(sent[0].attempt.first().id, 410);
    assert_eq!(rig.changes().last().unwrap().change, EndpointChange::Disabled);
    rig
}

/// Whether a delivery to another endpoint is sent.
fn is_another_sent(rig: &mut Rig) -> bool {
    let event = rig.commit("8");
    rig.send().iter().any(|dispatch| dispatch.attempt.first().event.id == event.id)
}

#[test]
fn deliveries_that_die_without_having_been_sent_keep_nobody_from_sending() {
    let mut rig = gone(2 * UNPERSISTED_MAX);
    assert!(is_another_sent(&mut rig));
    // Nor do they while some are being stored.
    rig.wait(Duration::from_millis(100));
    assert!(rig.dispatcher.poll_persist(rig.now).is_some());
    assert!(is_another_sent(&mut rig));
    rig.dispatcher.handle_persisted(&Persisted::default(), rig.now);
    assert!(is_another_sent(&mut rig));
}

#[test]
fn deliveries_that_die_of_their_last_attempt_count_as_outcomes_until_they_are_stored() {
    let none = SettlePolicy { retry_for: Duration::ZERO, quick_attempts: 1, ..settings().settle };
    let mut rig = Rig::new(Settings { settle: none, ..settings() });
    // More accounts than may have outcomes that are not stored, of which each has one.
    let accounts: Vec<String> = (0..UNPERSISTED_MAX + 100).map(|n| format!("a{n}")).collect();
    accounts.iter().for_each(|account| _ = rig.commit(account));
    let mut failed = 0;
    while fail_all(&mut rig, &mut failed) {}
    // What was in flight when the bound was reached has ended too.
    assert!((UNPERSISTED_MAX..UNPERSISTED_MAX + 64).contains(&failed), "{failed}");
    let mut died = 0;
    while let Some(batch) = {
        rig.wait(Duration::from_millis(100));
        rig.dispatcher.poll_persist(rig.now).filter(|batch| !batch.dead_letters.is_empty())
    } {
        died += batch.dead_letters.len();
        assert!(batch.dead_letters.len() <= 1_000);
        rig.dispatcher.handle_persisted(&Persisted::default(), rig.now);
        // What is stored makes room.
        while fail_all(&mut rig, &mut failed) {}
    }
    assert_eq!((died, failed), (accounts.len(), accounts.len()));
}

/// Sends what may be sent, and all of it fails. Whether there was any.
fn fail_all(rig: &mut Rig, failed: &mut usize) -> bool {
    let sent = rig.send();
    for dispatch in &sent {
        rig.answer(dispatch.attempt.first().id, 500);
    }
    *failed += sent.len();
    !sent.is_empty()
}
