//! Against a scan of all transactions.

use super::*;
use proptest::prelude::*;

/// All transactions ever seen, scanned at each question.
#[derive(Default)]
struct Naive {
    start: Lsn,
    txns: Vec<NaiveTxn>,
}

struct NaiveTxn {
    seq: TxnSeq,
    commit_lsn: Lsn,
    end_lsn: Option<Lsn>,
    progress: Lsn,
    opened: Tick,
    unsettled: u32,
}

impl Naive {
    fn settled_prefix(&self) -> usize {
        let settled = |txn: &NaiveTxn| txn.end_lsn.is_some() && txn.unsettled == 0;
        self.txns.iter().take_while(|txn| settled(txn)).count()
    }

    fn read_to(&self) -> Lsn {
        let ends = self.txns.iter().flat_map(|txn| [txn.end_lsn.unwrap_or_default(), txn.progress]);
        let ended = ends.fold(self.start, Lsn::max);
        let open = self.txns.iter().find(|txn| txn.end_lsn.is_none());
        open.map_or(ended, |open| ended.min(open.commit_lsn))
    }

    fn frontier(&self) -> Lsn {
        let last = self.settled_prefix().checked_sub(1).map(|last| &self.txns[last]);
        last.map_or(self.start, |txn| txn.end_lsn.unwrap().max(txn.progress))
    }
}

#[derive(Debug, Clone)]
enum Action {
    Open,
    Add { to: prop::sample::Index, deliveries: u32 },
    Complete(prop::sample::Index),
    Close(prop::sample::Index),
    Progress { ahead: u64 },
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => Just(Action::Open),
        3 => (any::<prop::sample::Index>(), 0u32..4)
            .prop_map(|(to, deliveries)| Action::Add { to, deliveries }),
        6 => any::<prop::sample::Index>().prop_map(Action::Complete),
        3 => any::<prop::sample::Index>().prop_map(Action::Close),
        1 => (0u64..20).prop_map(|ahead| Action::Progress { ahead }),
    ]
}

/// The index of one of the transactions that `which` admits.
fn choose(
    naive: &Naive,
    index: prop::sample::Index,
    which: impl Fn(&NaiveTxn) -> bool,
) -> Option<usize> {
    let all: Vec<usize> = (0..naive.txns.len()).filter(|at| which(&naive.txns[*at])).collect();
    (!all.is_empty()).then(|| all[index.index(all.len())])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn tracker_agrees_with_a_scan_of_all_transactions(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let start = Lsn(100);
        let mut tracker = Tracker::new(start);
        let mut naive = Naive { start, ..Naive::default() };
        let (mut wal, mut now) = (start.0, 0);
        for action in actions {
            now += 1;
            let before = tracker.frontier();
            match action {
                Action::Open => {
                    let commit_lsn = Lsn(wal + 1);
                    wal += 2;
                    let seq = tracker.open(commit_lsn, Tick(now));
                    naive.txns.push(NaiveTxn {
                        seq, commit_lsn, end_lsn: None, progress: Lsn(0),
                        opened: Tick(now), unsettled: 0,
                    });
                }
                Action::Close(of) => {
                    if let Some(at) = choose(&naive, of, |txn| txn.end_lsn.is_none()) {
                        let end_lsn = Lsn(naive.txns[at].commit_lsn.0 + 1);
                        naive.txns[at].end_lsn = Some(end_lsn);
                        tracker.close(naive.txns[at].seq, end_lsn);
                    }
                }
                Action::Progress { ahead } => {
                    // Sometimes a keepalive that is older than the last commit.
                    let wal_end = Lsn((wal + ahead).saturating_sub(5));
                    wal = wal.max(wal_end.0);
                    tracker.progress(wal_end);
                    match naive.txns.last_mut() {
                        Some(txn) => txn.progress = txn.progress.max(wal_end),
                        None => naive.start = naive.start.max(wal_end),
                    }
                }
                Action::Add { to, deliveries } => {
                    let live = |txn: &NaiveTxn| txn.end_lsn.is_none() || txn.unsettled > 0;
                    if let Some(at) = choose(&naive, to, live) {
                        naive.txns[at].unsettled += deliveries;
                        tracker.add(naive.txns[at].seq, deliveries);
                    }
                }
                Action::Complete(of) => {
                    if let Some(at) = choose(&naive, of, |txn| txn.unsettled > 0) {
                        naive.txns[at].unsettled -= 1;
                        tracker.complete(naive.txns[at].seq);
                    }
                }
            }
            let passed = naive.settled_prefix();
            prop_assert!(tracker.frontier() >= before);
            prop_assert_eq!(tracker.frontier(), naive.frontier());
            prop_assert_eq!(tracker.read_to(), naive.read_to());
            prop_assert_eq!(
                tracker.oldest_unsettled(), naive.txns.get(passed).map(|txn| txn.opened)
            );
            prop_assert!(tracker.open_transactions() <= naive.txns.len() - passed);
            for (at, txn) in naive.txns.iter().enumerate() {
                prop_assert_eq!(tracker.is_passed(txn.seq), at < passed);
                if txn.unsettled > 0 || txn.end_lsn.is_none() {
                    prop_assert_eq!(tracker.commit_lsn(txn.seq), Some(txn.commit_lsn));
                }
                if at < passed {
                    prop_assert_eq!(tracker.commit_lsn(txn.seq), None);
                }
            }
            prop_assert!(naive.txns.is_sorted_by_key(|txn| txn.seq));
        }
    }
}

#[test]
fn tracker_holds_one_entry_for_all_unmatched_transactions_behind_an_unsettled_one() {
    let mut tracker = Tracker::new(Lsn(0));
    let held = tracker.open(Lsn(1), Tick(0));
    tracker.add(held, 1);
    tracker.close(held, Lsn(2));
    for n in 1..10_000 {
        let txn = tracker.open(Lsn(10 * n), Tick(n));
        tracker.close(txn, Lsn(10 * n + 1));
        assert_eq!((tracker.frontier(), tracker.open_transactions()), (Lsn(0), 2));
    }
    tracker.complete(held);
    assert_eq!((tracker.frontier(), tracker.open_transactions()), (Lsn(99_991), 0));
}

#[test]
fn tracker_passes_what_is_settled_before_a_transaction_that_took_its_entry_over() {
    let mut tracker = Tracker::new(Lsn(0));
    let first = tracker.open(Lsn(1), Tick(1));
    tracker.add(first, 1);
    tracker.close(first, Lsn(2));
    let settled = tracker.open(Lsn(3), Tick(2));
    tracker.close(settled, Lsn(4));
    let last = tracker.open(Lsn(5), Tick(3));
    tracker.add(last, 1);
    tracker.complete(first);
    assert_eq!(tracker.frontier(), Lsn(4));
    assert!(tracker.is_passed(settled) && !tracker.is_passed(last));
    assert_eq!(tracker.oldest_unsettled(), Some(Tick(3)));
}

#[test]
fn tracker_names_the_transactions_that_are_too_old_or_hold_too_much() {
    let mut tracker = Tracker::new(Lsn(100));
    let seqs: Vec<TxnSeq> = (1..=3u64)
        .map(|n| {
            let txn = tracker.open(Lsn(100 * n + 90), Tick(n));
            tracker.add(txn, 1);
            tracker.close(txn, Lsn(100 * n + 100));
            txn
        })
        .collect();
    assert_eq!(tracker.overdue(Tick(0), Lsn(0)), None);
    assert_eq!(tracker.overdue(Tick(0), Lsn(100)), None, "the frontier is there");
    assert_eq!(tracker.overdue(Tick(2), Lsn(0)), Some(seqs[1]), "opened no later");
    // From 200 on the second holds the frontier below 201, and the first before it.
    assert_eq!(tracker.overdue(Tick(0), Lsn(101)), Some(seqs[0]));
    assert_eq!(tracker.overdue(Tick(0), Lsn(200)), Some(seqs[0]));
    assert_eq!(tracker.overdue(Tick(0), Lsn(201)), Some(seqs[1]));
    assert_eq!(tracker.overdue(Tick(1), Lsn(900)), Some(seqs[2]));
    // One that is still being read cannot be passed, however much there is of it.
    let reading = tracker.open(Lsn(900), Tick(9));
    tracker.add(reading, 1);
    assert_eq!(tracker.overdue(Tick(1), Lsn(2_000)), Some(seqs[2]));
    assert_eq!(tracker.overdue(Tick(9), Lsn(0)), Some(reading));
    assert_eq!((tracker.received(), tracker.read_to()), (Lsn(900), Lsn(400)));
}

#[test]
#[should_panic(expected = "would go back")]
fn tracker_refuses_a_commit_that_ends_before_the_frontier() {
    let mut tracker = Tracker::new(Lsn(10));
    let txn = tracker.open(Lsn(4), Tick(0));
    tracker.close(txn, Lsn(5));
}

#[test]
fn tracker_stays_before_a_transaction_that_is_open_while_later_ones_are_settled() {
    let mut tracker = Tracker::new(Lsn(0));
    let first = tracker.open(Lsn(1), Tick(1));
    tracker.close(first, Lsn(2));
    let open = tracker.open(Lsn(10), Tick(2));
    for n in 2..1_000 {
        let txn = tracker.open(Lsn(10 * n), Tick(n));
        tracker.close(txn, Lsn(10 * n + 1));
        tracker.progress(Lsn(10 * n + 5));
    }
    assert_eq!((tracker.frontier(), tracker.open_transactions()), (Lsn(2), 2));
    assert_eq!((tracker.received(), tracker.read_to()), (Lsn(9_995), Lsn(10)));
    let held = tracker.open(Lsn(10_000), Tick(1_000));
    tracker.add(held, 1);
    tracker.close(held, Lsn(10_001));
    assert_eq!(tracker.overdue(Tick(0), Lsn(20_000)), None, "no WAL is freed before it is read");
    assert_eq!(tracker.overdue(Tick(2), Lsn(0)), Some(open), "opened no later");
    tracker.close(open, Lsn(11));
    assert_eq!((tracker.frontier(), tracker.read_to()), (Lsn(9_995), Lsn(10_001)));
    assert_eq!(tracker.overdue(Tick(0), Lsn(20_000)), Some(held));
}

#[test]
fn tracker_passes_what_was_told_while_the_last_transaction_was_open() {
    let mut tracker = Tracker::new(Lsn(0));
    let open = tracker.open(Lsn(10), Tick(1));
    tracker.progress(Lsn(50));
    assert_eq!((tracker.frontier(), tracker.read_to()), (Lsn(0), Lsn(10)));
    tracker.close(open, Lsn(11));
    assert_eq!((tracker.frontier(), tracker.read_to()), (Lsn(50), Lsn(50)));
}
