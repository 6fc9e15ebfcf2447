//! Against what is true: when each endpoint failed, and when it took something.

use proptest::prelude::*;

use super::*;
use walhook_core::event::{AccountId, EndpointId};

#[derive(Debug, Clone)]
enum Action {
    Pass(u64),
    Fail(u8),
    Take(u8),
    Forget(u8),
    Store,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1u64..40).prop_map(Action::Pass),
        5 => (0u8..3).prop_map(Action::Fail),
        3 => (0u8..3).prop_map(Action::Take),
        1 => (0u8..3).prop_map(Action::Forget),
        4 => Just(Action::Store),
    ]
}

fn queue(endpoint: u8) -> QueueId {
    let endpoint = EndpointId::new(endpoint.to_string());
    QueueId { account: AccountId::new("7"), endpoint }
}

/// What is true of an endpoint.
#[derive(Debug, Default, Clone)]
struct Truth {
    /// Since it took something last: when each request failed.
    failed: Vec<i64>,
    /// It is known, until its row is gone.
    known: bool,
}

/// The table, and when each row was written.
type Table = BTreeMap<QueueId, (EndpointError, Tick)>;

fn store(failures: &mut Failures, table: &mut Table, now: Tick) -> Result<(), TestCaseError> {
    let mut batch = PersistBatch::default();
    failures.hand_out(&mut batch, now);
    for error in batch.errors {
        let before = table.insert(error.queue.clone(), (error, now));
        prop_assert!(before.is_none_or(|(_, at)| now.since(at) >= LINGERS), "too often");
    }
    for queue in batch.errors_gone {
        prop_assert!(table.remove(&queue).is_some(), "a row is removed that is there");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn table_of_failures_comes_to_say_what_is_true(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut failures = Failures::new(1 << 20, vec![], Tick(0));
        let (mut truth, mut table) = (vec![Truth::default(); 3], Table::new());
        let mut now = Tick(0) + LINGERS;
        for action in actions {
            let now_us = i64::try_from(now.0).unwrap();
            match action {
                Action::Pass(seconds) => now = now + Duration::from_secs(seconds),
                Action::Fail(endpoint) => {
                    let of = &mut truth[usize::from(endpoint)];
                    let is_first = failures.begin(&queue(endpoint), now_us, "refused", false, now);
                    prop_assert_eq!(is_first, !std::mem::replace(&mut of.known, true));
                    of.failed.push(now_us);
                }
                Action::Take(endpoint) => {
                    let of = &mut truth[usize::from(endpoint)];
                    let before = failures.end(&queue(endpoint), now);
                    prop_assert_eq!(before.as_ref().map(|failed| failed.since_us), of.failed.first().copied());
                    let requests = before.map_or(0, |failed| failed.requests);
                    prop_assert_eq!(requests, of.failed.len() as u64);
                    of.failed.clear();
                }
                Action::Forget(endpoint) => {
                    let of = &mut truth[usize::from(endpoint)];
                    prop_assert_eq!(failures.forget(&queue(endpoint), now), of.known);
                    // Its row is seen to at once, whenever it was written.
                    table.entry(queue(endpoint)).and_modify(|(_, at)| *at = Tick(0));
                    of.failed.clear();
                }
                Action::Store => {
                    let is_due = failures.is_due(now);
                    let before = failures.due.iter().filter(|(due, _)| *due <= now).count();
                    prop_assert_eq!(is_due, before > 0);
                    store(&mut failures, &mut table, now)?;
                    prop_assert!(!failures.is_due(now));
                }
            }
            for (endpoint, of) in (0u8..).zip(&mut truth) {
                of.known = failures.queues.contains_key(&queue(endpoint));
            }
            // Each that is known has a row, or one is due for it; and so has each whose row is to go.
            for (queue, failing) in &failures.queues {
                let due: Vec<_> = failures.due.iter().filter(|(_, of)| of == queue).collect();
                prop_assert_eq!(due.len(), usize::from(failing.due.is_some()));
                prop_assert!(table.contains_key(queue) || failing.due.is_some());
                prop_assert!(!failing.well || failing.due.is_some());
            }
            prop_assert_eq!(failures.len(), truth.iter().filter(|of| of.known).count());
            let named: BTreeSet<_> = failures.queues.keys().map(by_endpoint).collect();
            prop_assert_eq!(&failures.accounts, &named);
            for endpoint in 0..3 {
                let known = failures.queues.contains_key(&queue(endpoint));
                let accounts = failures.accounts_of(&queue(endpoint).endpoint).count();
                prop_assert_eq!(accounts, usize::from(known));
            }
            prop_assert_eq!(failures.of_account(&AccountId::new("7")).count(), failures.len());
            prop_assert_eq!(failures.of_account(&AccountId::new("6")).count(), 0);
        }
        now = now + REWRITTEN;
        store(&mut failures, &mut table, now)?;
        for (endpoint, of) in (0u8..).zip(&truth) {
            let told = table.get(&queue(endpoint)).map(|(error, _)| error);
            let said = told.map(|error| (error.since_us, error.last_us, error.failed));
            let is = of.failed.first().zip(of.failed.last());
            let is = is.map(|(first, last)| (*first, *last, of.failed.len() as u64));
            prop_assert_eq!(said, is, "endpoint {}", endpoint);
        }
    }
}

#[test]
fn endpoints_beyond_the_bound_are_not_told_of_one_by_one() {
    let mut failures = Failures::new(0, vec![], Tick(0));
    let name = |n: usize| QueueId {
        account: AccountId::new("7"),
        endpoint: EndpointId::new(n.to_string()),
    };
    let told =
        (0..2 * KNOWN_MIN).filter(|n| failures.begin(&name(*n), 1, "refused", false, Tick(1)));
    assert_eq!(told.count(), KNOWN_MIN);
    assert_eq!(failures.len(), KNOWN_MIN);
}
