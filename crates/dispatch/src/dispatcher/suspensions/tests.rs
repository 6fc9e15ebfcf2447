//! One suspension against a naive model: a list of what was skipped and removed.

use proptest::prelude::*;

use super::*;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Skip(u64),
    Removed(u64, bool),
    GoOn(u64),
    HandOut(u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1u64..100).prop_map(Action::Skip),
        2 => (0u64..5, any::<bool>()).prop_map(|(rows, all)| Action::Removed(rows, all)),
        1 => (0u64..50).prop_map(Action::GoOn),
        3 => (0u64..60).prop_map(Action::HandOut),
    ]
}

proptest! {
    #[test]
    fn gap_says_what_a_list_of_all_that_was_counted_would_say(
        before in 0u64..3, fresh: bool, actions in prop::collection::vec(action(), 0..40),
    ) {
        let queue = QueueId { account: AccountId::new("7"), endpoint: EndpointId::new("8") };
        let mut suspension =
            if fresh { Suspension::new("full") } else { Suspension::recovered(before) };
        let before = if fresh { 0 } else { before };
        let (mut skipped, mut removed) = (Vec::new(), 0);
        let (mut ends_with, mut opened, mut told) = (None, !fresh, !fresh);
        for action in actions {
            match action {
                Action::Skip(commit) => {
                    suspension.skip(Lsn(commit));
                    skipped.push(Lsn(commit));
                    told = false;
                }
                Action::Removed(rows, all) => {
                    suspension.removed(rows, all);
                    removed += rows;
                    prop_assert_eq!(suspension.rows_left(), !all);
                }
                Action::GoOn(last) => {
                    let counted = suspension.go_on(Insertion(last));
                    prop_assert_eq!(counted, before + skipped.len() as u64 + removed);
                    ends_with = Some(last);
                }
                Action::HandOut(handed_out) => {
                    let (change, ends) = suspension.hand_out(&queue, Insertion(handed_out));
                    prop_assert_eq!(ends, ends_with.is_some_and(|last| last <= handed_out));
                    prop_assert_eq!(change.is_some(), !told || ends);
                    if let Some(change) = change {
                        prop_assert_eq!(change.opens.is_some(), !std::mem::replace(&mut opened, true));
                        prop_assert_eq!(change.skipped, before + skipped.len() as u64);
                        let span = skipped.iter().min().copied().zip(skipped.iter().max().copied());
                        prop_assert_eq!(change.span, span);
                        prop_assert_eq!(change.growing, !ends);
                    }
                    told = true;
                    if ends {
                        prop_assert!(suspension.is_ending());
                    }
                }
            }
            prop_assert_eq!(suspension.is_on(), ends_with.is_none());
        }
    }
}

#[test]
fn size_is_trusted_when_it_shows_what_was_removed() {
    let queue = QueueId { account: AccountId::new("7"), endpoint: EndpointId::new("8") };
    let mut suspensions = Suspensions::default();
    let now = Tick(0) + Duration::from_secs(100);
    assert!(suspensions.trusts_sizes(now) && !suspensions.gives_up_letters());
    suspensions.give_up_letters(queue.clone());
    assert!(suspensions.gives_up_letters());
    suspensions.letters_gone(&queue, now);
    assert!(!suspensions.gives_up_letters() && !suspensions.trusts_sizes(now));
    assert!(suspensions.trusts_sizes(now + STATISTICS_LAG));
    assert!(suspensions.may_say(now) && !suspensions.may_say(now));
    assert!(suspensions.may_say(now + SAID_EVERY));
}
