//! Against a naive model: a list of the transactions that wait, and the table of ids that are remembered.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::tracker::Tracker;
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

#[derive(Debug, Clone)]
enum Action {
    /// The next transaction changes a watched table, so many times.
    Change(usize),
    /// A look-up sees all before the transaction with this id, but for those with an odd number where that is said.
    See(u32, bool),
    Release(usize),
    HandOut,
    Stored,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1usize..3).prop_map(Action::Change),
        2 => (100u32..160, any::<bool>()).prop_map(|(xid, gaps)| Action::See(xid, gaps)),
        2 => any::<usize>().prop_map(Action::Release),
        2 => Just(Action::HandOut),
        2 => Just(Action::Stored),
    ]
}

/// One that waits.
#[derive(Debug, Clone)]
struct Modelled {
    xid: u32,
    /// None: an earlier leader's.
    txn: Option<TxnSeq>,
    is_overdue: bool,
    /// Its id is in a batch that was handed out.
    is_told: bool,
    is_free: bool,
}

/// An earlier leader remembered this one.
const EARLIER: u32 = 99;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn each_transaction_is_let_go_once_when_it_is_seen_or_remembered(
        actions in prop::collection::vec(action(), 0..80),
    ) {
        let mut tracker = Tracker::new(Lsn(0));
        let (mut unseen, mut xid) = (Unseen::default(), 100u32);
        unseen.remember(EARLIER);
        let earlier =
            Modelled { xid: EARLIER, txn: None, is_overdue: false, is_told: true, is_free: true };
        let (mut model, mut table) = (vec![earlier], BTreeSet::from([EARLIER]));
        let (mut under_way, mut all): (Option<PersistBatch>, _) = (None, Vec::new());
        for action in actions {
            let mut expected = Vec::new();
            let let_go = match action {
                Action::Change(times) => {
                    xid += 1;
                    let txn = tracker.open(Lsn(u64::from(xid)), Tick(0));
                    tracker.add(txn, 1);
                    tracker.close(txn, Lsn(u64::from(xid)));
                    for time in 0..times {
                        prop_assert_eq!(unseen.hold(xid, txn), time == 0, "it waits once");
                    }
                    all.push(txn);
                    let (is_overdue, is_told, is_free) = (false, false, false);
                    model.push(Modelled { xid, txn: Some(txn), is_overdue, is_told, is_free });
                    Vec::new()
                }
                Action::See(to, gaps) => {
                    let odd = |xid: &u32| gaps && *xid % 2 == 1;
                    let open: Vec<String> = (90..to).filter(odd).map(|x| x.to_string()).collect();
                    let snapshot = format!("90:{to}:{}", open.join(",")).parse().unwrap();
                    let (any, let_go) = unseen.see(&snapshot);
                    let is_seen = |one: &Modelled| one.xid < to && !odd(&one.xid);
                    prop_assert_eq!(any, model.iter().any(is_seen));
                    for one in model.iter().filter(|one| is_seen(one) && !one.is_free) {
                        expected.extend(one.txn);
                    }
                    model.retain(|one| !is_seen(one));
                    let_go
                }
                Action::Release(at) => {
                    let Some(last) = all.get(at % all.len().max(1)).copied() else { continue };
                    let mut any = false;
                    for one in &mut model {
                        let waits = !one.is_overdue && !one.is_told;
                        if waits && one.txn.is_some_and(|txn| txn <= last) {
                            (one.is_overdue, any) = (true, true);
                        }
                    }
                    prop_assert_eq!(unseen.release(last), any);
                    Vec::new()
                }
                Action::HandOut if under_way.is_none() => {
                    let mut batch = PersistBatch::default();
                    unseen.hand_out(&mut batch);
                    let overdue = model.iter_mut().filter(|one| one.is_overdue && !one.is_told);
                    let told: Vec<u32> = overdue.map(|one| (one.is_told = true, one.xid).1).collect();
                    prop_assert_eq!(&batch.unseen, &told);
                    under_way = Some(batch);
                    Vec::new()
                }
                Action::Stored => {
                    let Some(batch) = under_way.take() else { continue };
                    table.extend(&batch.unseen);
                    for xid in &batch.seen {
                        prop_assert!(table.remove(xid), "what is remembered is forgotten once");
                    }
                    for one in model.iter_mut().filter(|one| one.is_told && !one.is_free) {
                        expected.extend(one.txn);
                        one.is_free = true;
                    }
                    unseen.handle_stored()
                }
                Action::HandOut => continue,
            };
            prop_assert_eq!(let_go, expected);
            prop_assert_eq!(unseen.is_empty(), model.is_empty());
        }
        // Once all is seen, nothing is remembered.
        unseen.see(&"1000:1000:".parse().unwrap());
        if let Some(batch) = under_way.take() {
            table.extend(&batch.unseen);
            table.retain(|xid| !batch.seen.contains(xid));
            unseen.handle_stored();
        }
        let mut batch = PersistBatch::default();
        unseen.hand_out(&mut batch);
        table.retain(|xid| !batch.seen.contains(xid));
        prop_assert!(unseen.is_empty() && table.is_empty(), "{:?}", table);
    }
}
