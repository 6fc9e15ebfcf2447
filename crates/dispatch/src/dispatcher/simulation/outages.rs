//! Look-ups that fail for a while: outages that begin, end and flap, with crashes between; and the table of
//! events that could not be routed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use smallvec::SmallVec;

use super::world::{World, account_for};
use super::*;
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::persist::{
    EventKey, Joined, PersistBatch, Routed, Unrouted, UnroutedAccount, UnroutedPage, UnroutedPurge,
    UnroutedPurged, UnroutedRefill,
};

/// An event, and the last endpoint that it was routed to.
type Row = (Arc<Event>, Option<EndpointId>);

/// What the state database holds of events without an endpoint, and what came of them.
#[derive(Default)]
pub(super) struct UnroutedTable {
    rows: BTreeMap<AccountId, BTreeMap<EventKey, Row>>,
    pub(super) accounts: BTreeMap<AccountId, UnroutedAccount>,
    joined: BTreeMap<EndpointId, Lsn>,
    /// Transactions that look-ups may not show yet, and how many were ever stored.
    pub(super) unseen: BTreeSet<u32>,
    remembered: usize,
    /// Those that became a gap.
    pub(super) given_up: BTreeSet<EventId>,
    /// From when to when look-ups fail.
    outages: Vec<(Tick, Tick)>,
    /// Rows that were stored and routed, events that were recognised when they were read again, and
    /// endpoints that were left out.
    pub(super) stored: u64,
    pub(super) routed: u64,
    pub(super) recognised: u64,
    pub(super) kept_out: u64,
    pub(super) crashes: u64,
}

impl UnroutedTable {
    /// When look-ups work again, where they fail.
    pub(super) fn outage(&self, now: Tick) -> Option<Tick> {
        self.outages
            .iter()
            .find(|(from, until)| (*from..*until).contains(&now))
            .map(|(_, end)| *end)
    }

    pub(super) fn joined(&self) -> Vec<Joined> {
        let joined =
            |(endpoint, at): (&EndpointId, &Lsn)| Joined { endpoint: endpoint.clone(), at: *at };
        self.joined.iter().map(joined).collect()
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows.values().map(|rows| rows.len() as u64).sum()
    }

    pub(super) fn read(&self, refills: &[UnroutedRefill]) -> Vec<UnroutedPage> {
        let read = |refill: &UnroutedRefill| {
            let rows = self.rows.get(&refill.account).into_iter().flatten();
            let mut behind =
                rows.filter(|(key, _)| refill.after.as_ref().is_none_or(|after| after < key));
            let row = |(_, (event, routed_to)): (&EventKey, &Row)| Unrouted {
                event: Arc::clone(event),
                routed_to: routed_to.clone(),
            };
            let rows = behind.by_ref().take(refill.rows.min(5) as usize).map(row).collect();
            UnroutedPage { account: refill.account.clone(), rows, end: behind.next().is_none() }
        };
        refills.iter().map(read).collect()
    }

    pub(super) fn store(&mut self, batch: &PersistBatch) -> Vec<UnroutedPurged> {
        for event in &batch.unrouted {
            let rows = self.rows.entry(event.account.clone()).or_default();
            let before = rows.insert(EventKey::of(event), (Arc::clone(event), None));
            assert!(before.is_none(), "an event became a row twice");
            self.stored += 1;
        }
        for Routed { row, to } in &batch.routed {
            let rows = self.rows.get_mut(&row.account).expect("the account has rows");
            let first = rows.keys().next().cloned();
            if to.is_none() {
                assert_eq!(first.as_ref(), Some(&row.event), "routed before an older one");
                rows.remove(&row.event);
                let of_account = format!("{}-", row.account);
                let joined = self.joined.iter().filter(|(endpoint, at)| {
                    endpoint.starts_with(&of_account) && row.event.position.commit_lsn() < **at
                });
                self.kept_out += joined.count() as u64;
                self.routed += 1;
            } else if let Some((_, routed_to)) = rows.get_mut(&row.event) {
                assert!(*routed_to <= *to, "routed backwards");
                routed_to.clone_from(to);
            }
        }
        for account in &batch.unrouted_accounts {
            let stored = self.rows.get(&account.account).map_or(0, BTreeMap::len);
            assert_eq!(account.rows, stored as u64, "an account miscounts its rows");
            if account.rows > 0 {
                self.accounts.insert(account.account.clone(), account.clone());
            } else {
                self.accounts.remove(&account.account);
            }
        }
        let purged = batch.unrouted_purges.iter().map(|purge| self.purge(purge)).collect();
        self.rows.retain(|_, rows| !rows.is_empty());
        assert!(self.rows.keys().all(|a| self.accounts.contains_key(a)), "nobody knows of rows");
        self.remembered += batch.unseen.len();
        self.unseen.extend(&batch.unseen);
        self.unseen.retain(|xid| !batch.seen.contains(xid));
        if batch.joined_passed {
            self.joined.clear();
        }
        self.joined.extend(batch.joined.iter().map(|joined| (joined.endpoint.clone(), joined.at)));
        purged
    }

    fn purge(&mut self, UnroutedPurge { account, rows }: &UnroutedPurge) -> UnroutedPurged {
        let table = self.rows.entry(account.clone()).or_default();
        let mut removed = 0;
        while removed < u64::from(*rows)
            && let Some((_, (event, _))) = table.pop_first()
        {
            self.given_up.insert(event.id);
            removed += 1;
        }
        if table.is_empty() {
            self.accounts.remove(account);
        } else if let Some(account) = self.accounts.get_mut(account) {
            account.rows -= removed;
        }
        UnroutedPurged { account: account.clone(), rows: removed, all: removed < u64::from(*rows) }
    }
}

impl World {
    /// Whether the transaction's change makes the endpoint one that was not there.
    pub(super) fn joins(&self, txn: usize, id: &str) -> SmallVec<[EndpointId; 1]> {
        let before = self.table(txn).get(id).copied();
        let after = self.table(txn + 1).get(id).copied();
        let joined = match (before, after) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some((was, was_on)), Some((is, is_on))) => was != is || (!was_on && is_on),
        };
        joined.then(|| EndpointId::new(id)).into_iter().collect()
    }
}

impl Life {
    /// No endpoint gets what was committed before it joined, as far as the stream or the table has told.
    pub(super) fn check_routed(&mut self) {
        let insertions = self.dispatcher.outbox.insertions();
        let new = insertions.0 - std::mem::replace(&mut self.insertions, insertions).0;
        let leaving: Vec<_> = self.dispatcher.outbox.leaving_mut().collect();
        let new = usize::try_from(new).unwrap().min(leaving.len());
        for leaving in leaving[leaving.len() - new..].iter().filter(|l| l.routed.is_some()) {
            let endpoint = &leaving.row.id.queue.endpoint;
            let commit = leaving.row.event.position.commit_lsn();
            let joined = self.joined.get(endpoint);
            assert!(joined.is_none_or(|at| *at <= commit), "{endpoint} joined after {commit}");
        }
    }
}

fn simulate_outages(seed: u64, crashes: u32, bound: Option<u64>) -> World {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut world = World { bound, ..World::new(&mut rng, 300) };
    world.pause_us = 100..100_000;
    let mut at = Tick(0) + Duration::from_millis(rng.random_range(0..2_000));
    for _ in 0..rng.random_range(1..4) {
        // A long one, or many short ones with moments between.
        let (times, ms) = if rng.random_bool(0.5) { (1, 200..40_000) } else { (12, 10..2_500) };
        for _ in 0..times {
            let until = at + Duration::from_millis(rng.random_range(ms.clone()));
            world.unrouted.outages.push((at, until));
            at = until + Duration::from_millis(rng.random_range(5..300));
        }
        at = at + Duration::from_millis(rng.random_range(0..6_000));
    }
    run(seed, world, rng, crashes, SLOTS, bound)
}

/// How much of each kind there was.
#[derive(Debug, Default)]
struct Seen {
    outages: usize,
    stored: u64,
    routed: u64,
    recognised: u64,
    kept_out: u64,
    crashes: u64,
    given_up: usize,
    remembered: usize,
}

fn account_for_outages(
    seeds: impl IntoIterator<Item = u64>,
    crashes: u32,
    bound: Option<u64>,
) -> Seen {
    let mut seen = Seen::default();
    for seed in seeds {
        let world = simulate_outages(seed, crashes, bound);
        account_for(seed, &world);
        let table = &world.unrouted;
        assert_eq!(table.rows(), 0, "seed {seed}");
        seen.outages += table.outages.len();
        seen.stored += table.stored;
        seen.routed += table.routed;
        seen.recognised += table.recognised;
        seen.kept_out += table.kept_out;
        seen.crashes += table.crashes;
        seen.given_up += table.given_up.len();
        seen.remembered += table.remembered;
    }
    println!("{seen:?}");
    seen
}

#[test]
fn dispatcher_loses_and_invents_nothing_while_look_ups_fail_by_seed() {
    let seen = account_for_outages(4_000..4_012, 0, None);
    assert!(seen.outages > 12 && seen.stored > 1_000 && seen.routed == seen.stored, "{seen:?}");
}

#[test]
fn dispatcher_loses_and_invents_nothing_while_look_ups_fail_across_crashes_by_seed() {
    let seen = account_for_outages((5_250..5_270).chain([5_885]), 8, None);
    assert!(seen.stored > 1_000 && seen.routed == seen.stored, "{seen:?}");
    assert!(seen.recognised > 100 && seen.kept_out > 0 && seen.crashes > 10, "{seen:?}");
    assert!(seen.remembered > 10, "{seen:?}");
}

#[test]
fn dispatcher_gives_up_what_cannot_be_routed_at_its_bound_across_crashes_by_seed() {
    let seen = account_for_outages((6_018..6_030).chain([6_258, 60_725, 60_733]), 6, Some(60_000));
    assert!(seen.given_up > 100 && seen.routed > 100, "{seen:?}");
}
