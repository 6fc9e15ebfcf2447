//! The bound of the state tables in the simulation: a table that holds so many rows, and gaps.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Change, World};
use super::*;
use walhook_core::event::Event;
use walhook_core::persist::{DeadLetter, GapChange, Purge, Purged, QueueId};
use walhook_core::room::{Holder, Measured, StateSize};

/// What a row takes.
const ROW_BYTES: u64 = 1_000;

/// Dead letters of a queue that are rows, where the tables have a bound.
const LETTERS: usize = 8;

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
    pub(super) fn size(&mut self) -> Measured {
        let rows: usize = self.deferred.values().map(BTreeMap::len).sum();
        let letters: usize = self.letters.values().map(Vec::len).sum();
        let unrouted_bytes = self.unrouted.rows() * ROW_BYTES;
        let used_bytes = (rows + letters) as u64 * ROW_BYTES + unrouted_bytes;
        self.largest = self.largest.max(used_bytes);
        let size = StateSize { total_bytes: self.largest, used_bytes, unrouted_bytes };
        let queues: BTreeSet<&QueueId> = self.deferred.keys().chain(self.letters.keys()).collect();
        let mut holders: Vec<(usize, Holder)> = queues
            .into_iter()
            .map(|queue| {
                let letters = self.letters.get(queue).map_or(0, Vec::len);
                let rows = self.deferred.get(queue).map_or(0, BTreeMap::len);
                let (queue, letters, all) = (queue.clone(), letters as u64, letters + rows);
                (all, Holder { queue, letters, letter_bytes: letters * ROW_BYTES })
            })
            .collect();
        holders.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.queue.cmp(&y.queue)));
        Measured { size, holders: holders.into_iter().map(|(_, holder)| holder).collect() }
    }

    /// As a row, or counted where the queue has enough of these.
    pub(super) fn store_letter(&mut self, queue: QueueId, letter: &DeadLetter) {
        let (id, at) = (letter.event.id, letter.event.position.commit_lsn());
        let letters = self.letters.entry(queue.clone()).or_default();
        if letters.iter().any(|(there, _)| *there == id) {
            return;
        }
        if self.bound.is_some() && letters.len() >= LETTERS {
            self.count_letter(queue, at);
            return;
        }
        letters.push((id, at));
        self.dead.insert((id, queue.endpoint.to_string()), letter.reason);
        self.died.push((id, queue, letter.reason));
    }

    fn count_letter(&mut self, queue: QueueId, at: Lsn) {
        let gap = match self.beyond.iter_mut().find(|gap| gap.queue == queue) {
            Some(gap) => gap,
            None => {
                let gap = Gap { queue, from: at, to: at, counted: 0, skipped: 0, growing: false };
                self.beyond.push(gap);
                self.beyond.last_mut().expect("it was pushed")
            }
        };
        (gap.from, gap.to) = (gap.from.min(at), gap.to.max(at));
        gap.counted += 1;
    }

    pub(super) fn purge_letters(&mut self, Purge { queue, rows }: Purge) -> Purged {
        let mut letters = self.letters.remove(&queue).unwrap_or_default();
        let removed: Vec<_> = letters.drain(..letters.len().min(rows as usize)).collect();
        for (id, at) in &removed {
            assert!(self.dead.remove(&(*id, queue.endpoint.to_string())).is_some());
            self.count_letter(queue.clone(), *at);
        }
        if !letters.is_empty() {
            self.letters.insert(queue.clone(), letters);
        }
        Purged { queue, rows: removed.len() as u64, all: removed.len() < rows as usize }
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
        let (mut removed, mut of_replays) = (0, Vec::new());
        while removed < u64::from(rows)
            && let Some((key, _)) = table.pop_first()
        {
            let commit = key.event.position.commit_lsn();
            (gap.from, gap.to) = (gap.from.min(commit), gap.to.max(commit));
            gap.counted += 1;
            removed += 1;
            of_replays.push(key.replay);
        }
        for replay in of_replays {
            self.count_late(replay, |counts| counts.in_gaps += 1);
        }
        if !table.is_empty() {
            self.deferred.insert(queue.clone(), table);
        }
        Purged { queue, rows: removed, all: removed < u64::from(rows) }
    }

    pub(super) fn is_in_gap(&self, event: &Event, endpoint: &str) -> bool {
        let at = event.position.commit_lsn();
        self.gaps.iter().chain(&self.beyond).any(|gap| {
            gap.queue.account == event.account
                && *gap.queue.endpoint == *endpoint
                && (gap.from..=gap.to).contains(&at)
        })
    }
}

/// Of the endpoints that stayed as they were: what is missing is counted, and nothing is counted that
/// was not owed. What was given up before anybody could route it is counted in a gap of its account
/// instead. Returns how many deliveries are missing, and how many gaps there are.
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
            let was_routed = !world.unrouted.given_up.contains(&event.id);
            was_routed && !world.received.contains_key(&key) && !world.dead.contains_key(&key)
        };
        let missing = in_gaps.iter().filter(is_missing).count() as u64;
        let gaps = world.gaps.iter().chain(&world.beyond);
        let gaps = gaps.filter(|gap| *gap.queue.endpoint == **endpoint);
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

/// What the records count beyond the letters that are rows.
fn letters_beyond(world: &World) -> u64 {
    world.beyond.iter().map(|gap| gap.counted).sum()
}

fn account_for_bound(seeds: std::ops::Range<u64>, crashes: u32, pauses: u32) {
    let (mut missing, mut gaps, mut letters) = (0, 0, 0);
    for seed in seeds {
        let world = simulate_with(seed, 300, crashes, pauses, SLOTS, Some(60 * ROW_BYTES));
        account_for(seed, &world);
        assert!(world.gaps.iter().all(|gap| !gap.growing), "seed {seed}: one is still suspended");
        let (m, g) = account_for_gaps(seed, &world);
        (missing, gaps, letters) = (missing + m, gaps + g, letters + letters_beyond(&world));
    }
    println!(
        "{gaps} gaps, {missing} deliveries of unchanged endpoints in them alone; {letters} letters"
    );
    assert!(gaps > 10 && missing > 100, "{gaps} gaps, {missing} missing: nothing was tried");
    assert!(letters > 100, "{letters} letters beyond the rows: nothing was tried");
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
