//! The bound of the state tables in the simulation: a table that holds so many rows, and gaps.

use std::collections::BTreeMap;

use super::world::{Change, World};
use super::*;
use crate::engine::event::Event;
use crate::engine::persist::{GapChange, Purge, Purged};
use crate::engine::room::StateSize;

/// What a row takes.
const ROW_BYTES: u64 = 1_000;

/// A record of the table `gaps`.
#[derive(Debug)]
pub(super) struct Gap {
    pub(super) queue: QueueId,
    from: Lsn,
    to: Lsn,
    counted: u64,
    skipped: u64,
    growing: bool,
}

impl World {
    /// What the table takes. Files stay as large as they were.
    pub(super) fn size(&mut self) -> StateSize {
        let rows: usize = self.deferred.values().map(BTreeMap::len).sum();
        let used_bytes = rows as u64 * ROW_BYTES;
        self.largest = self.largest.max(used_bytes);
        StateSize { total_bytes: self.largest, used_bytes }
    }

    pub(super) fn growing(&self) -> impl Iterator<Item = GapChange> {
        self.gaps.iter().filter(|gap| gap.growing).map(|gap| GapChange {
            queue: gap.queue.clone(),
            opens: None,
            skipped: gap.skipped,
            span: None,
            growing: true,
        })
    }

    fn growing_gap(&mut self, queue: &QueueId) -> Option<&mut Gap> {
        self.gaps.iter_mut().find(|gap| gap.growing && gap.queue == *queue)
    }

    pub(super) fn store_gaps(&mut self, changes: Vec<GapChange>) {
        for GapChange { queue, opens, skipped, span, growing } in changes {
            if opens.is_some() {
                assert!(self.growing_gap(&queue).is_none(), "suspended twice");
                let (from, to, counted) = (Lsn(u64::MAX), Lsn(0), 0);
                let queue = queue.clone();
                self.gaps.push(Gap { queue, from, to, counted, skipped: 0, growing: true });
            }
            let gap = self.growing_gap(&queue).expect("the gap is there");
            assert!(gap.skipped <= skipped, "what was counted is forgotten");
            gap.skipped = skipped;
            if let Some((first, last)) = span {
                (gap.from, gap.to) = (gap.from.min(first), gap.to.max(last));
            }
            gap.growing = growing;
        }
    }

    pub(super) fn purge(&mut self, Purge { queue, rows }: Purge) -> Purged {
        let mut table = self.deferred.remove(&queue).unwrap_or_default();
        let gap = self.growing_gap(&queue).expect("rows go to a gap");
        let mut removed = 0;
        while removed < u64::from(rows)
            && let Some((key, _)) = table.pop_first()
        {
            let commit = key.event.position.commit_lsn();
            (gap.from, gap.to) = (gap.from.min(commit), gap.to.max(commit));
            gap.counted += 1;
            removed += 1;
        }
        if !table.is_empty() {
            self.deferred.insert(queue.clone(), table);
        }
        Purged { queue, rows: removed, all: removed < u64::from(rows) }
    }

    pub(super) fn is_in_gap(&self, event: &Event, endpoint: &str) -> bool {
        let at = event.position.commit_lsn();
        self.gaps.iter().any(|gap| {
            gap.queue.account == event.account
                && *gap.queue.endpoint == *endpoint
                && (gap.from..=gap.to).contains(&at)
        })
    }
}

/// Of the endpoints that stayed as they were: what is missing is counted, and nothing is counted that
/// was not owed. Returns how many deliveries are missing, and how many gaps there are.
fn account_for_gaps(seed: u64, world: &World) -> (u64, usize) {
    let (changed, table) = (world.changed(), world.table(1));
    let mut missing_in_all = 0;
    for (endpoint, (account, _)) in table.iter().filter(|(id, _)| !changed.contains(*id)) {
        let of_account = world.txns.iter().flat_map(|txn| &txn.changes).filter_map(|c| match c {
            Change::Row(event) if *event.account == *account.to_string() => Some(event),
            Change::Row(_) | Change::Endpoint { .. } => None,
        });
        let in_gaps: Vec<_> = of_account.filter(|e| world.is_in_gap(e, endpoint)).collect();
        let is_missing = |event: &&&Arc<Event>| {
            let key = (event.id, endpoint.clone());
            !world.received.contains_key(&key) && !world.dead.contains_key(&key)
        };
        let missing = in_gaps.iter().filter(is_missing).count() as u64;
        let gaps = world.gaps.iter().filter(|gap| *gap.queue.endpoint == **endpoint);
        let counted: u64 = gaps.map(|gap| gap.counted + gap.skipped).sum();
        assert!(
            missing <= counted,
            "seed {seed}: {endpoint}: {missing} missing, {counted} counted"
        );
        let owed = in_gaps.len() as u64;
        assert!(counted <= owed, "seed {seed}: {endpoint}: {counted} counted, {owed} owed");
        missing_in_all += missing;
    }
    (missing_in_all, world.gaps.len())
}

fn account_for_bound(seeds: std::ops::Range<u64>, crashes: u32, pauses: u32) {
    let (mut missing, mut gaps) = (0, 0);
    for seed in seeds {
        let world = simulate_with(seed, 300, crashes, pauses, SLOTS, Some(60 * ROW_BYTES));
        account_for(seed, &world);
        assert!(world.gaps.iter().all(|gap| !gap.growing), "seed {seed}: one is still suspended");
        let (m, g) = account_for_gaps(seed, &world);
        (missing, gaps) = (missing + m, gaps + g);
    }
    println!("{gaps} gaps, {missing} deliveries of unchanged endpoints in them alone");
    assert!(gaps > 10 && missing > 100, "{gaps} gaps, {missing} missing: nothing was tried");
}

#[test]
fn dispatcher_accounts_for_all_in_gaps_at_the_bound_of_the_tables_by_seed() {
    account_for_bound(0..12, 0, 0);
}

#[test]
fn dispatcher_accounts_for_all_in_gaps_at_the_bound_across_crashes_by_seed() {
    account_for_bound(1_000..1_012, 6, 0);
}

#[test]
fn dispatcher_accounts_for_all_in_gaps_at_the_bound_across_crashes_and_pauses_by_seed() {
    account_for_bound(2_000..2_012, 6, 10);
}
