//! Every committed change that a rule matches becomes its event, with the id that follows from the WAL alone,
//! in the order of commits; nothing uncommitted does. What cannot be told becomes unroutable, never silence.
//!
//! While a transaction is paused, others pass it, and events pass earlier ones of other accounts. Those of one account
//! are always in the order of commits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use walhook_core::event::{Event, Item};
use walhook_core::lsn::Lsn;
use walhook_core::position::Position;

use super::{Checker, Scene, Seen};
use crate::postgres::Expect;

/// Of each life the transactions that it reads.
#[derive(Debug, Default)]
pub(crate) struct Stream(BTreeMap<usize, At>);

#[derive(Debug, Default)]
struct At {
    /// The last one that began.
    last: Option<usize>,
    /// The one that is read.
    reading: Option<Reading>,
    /// Those that have more to come.
    paused: BTreeMap<Lsn, Reading>,
    /// Where the last event of each account stands.
    of_account: HashMap<Arc<str>, Position>,
}

/// A transaction, and what has come of it.
#[derive(Debug)]
struct Reading {
    txn: usize,
    /// The first that has to come.
    next: usize,
    /// What has come of those behind it.
    ahead: BTreeSet<usize>,
}

fn compare(expect: &Expect, event: &Event, unroutable: bool) -> Result<(), String> {
    let same = expect.id == event.id
        && Position::Wal(expect.position) == event.position
        && expect.unroutable == unroutable
        && (unroutable || *expect.account == *event.account)
        && *expect.event_type == *event.event_type
        && (unroutable || expect.row.as_bytes() == &event.row[..]);
    if same { Ok(()) } else { Err(format!("{event:?} came where {expect:?} was committed")) }
}

impl Checker for Stream {
    fn name(&self) -> &'static str {
        "stream"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Item { life, item } = seen else { return Ok(()) };
        let txns = &scene.postgres.txns;
        let at = self.0.entry(*life).or_default();
        match item {
            Item::Begin { commit_lsn } => {
                let txn = txns.partition_point(|txn| txn.commit_lsn < *commit_lsn);
                let found = txns.get(txn).filter(|txn| txn.commit_lsn == *commit_lsn);
                let Some(found) = found.filter(|_| txn < scene.postgres.committed) else {
                    return Err(format!("no transaction commits at {commit_lsn}"));
                };
                if at.last.is_some_and(|last| last + 1 != txn) {
                    return Err(format!("the transaction before {commit_lsn} was passed over"));
                }
                at.last = Some(txn);
                let (next, ahead) = (found.expects.start, BTreeSet::new());
                let before = at.reading.replace(Reading { txn, next, ahead });
                if before.is_some() {
                    return Err(format!("{commit_lsn} begins inside another transaction"));
                }
            }
            Item::Event(event) => at.expect(scene, event, false)?,
            Item::Unroutable(unroutable) => at.expect(scene, &unroutable.event, true)?,
            Item::Pause => {
                let Some(reading) = at.reading.take() else {
                    return Err("nothing to pause".into());
                };
                let commit_lsn = txns.get(reading.txn).map_or(Lsn(0), |txn| txn.commit_lsn);
                at.paused.insert(commit_lsn, reading);
            }
            Item::Resume { commit_lsn } => {
                let paused = at.paused.remove(commit_lsn);
                if paused.is_none() || at.reading.is_some() {
                    return Err(format!("{commit_lsn} goes on and is not paused"));
                }
                at.reading = paused;
            }
            Item::Commit { end_lsn } => {
                let reading = at.reading.take();
                let Some(reading) = reading else { return Err("a commit before BEGIN".into()) };
                let Some(txn) = txns.get(reading.txn) else { return Ok(()) };
                // Unless an operator gave its rest up.
                let is_whole = reading.next == txn.expects.end && *end_lsn == txn.end_lsn;
                if !is_whole && !scene.state.left_out.contains(&txn.commit_lsn) {
                    let left = scene.postgres.expects.get(reading.next);
                    return Err(format!("{left:?} did not come before the commit {end_lsn}"));
                }
            }
            Item::Progress { wal_end } => {
                if at.reading.is_some() {
                    return Err(format!("progress to {wal_end} inside a transaction"));
                }
            }
            Item::Invalidate(_) => {}
        }
        Ok(())
    }
}

impl At {
    fn expect(&mut self, scene: &Scene<'_>, event: &Event, unroutable: bool) -> Result<(), String> {
        let reading = self.reading.as_mut();
        let Some(reading) = reading else { return Err("an event before BEGIN".into()) };
        let of_txn = scene.postgres.txns.get(reading.txn).map_or(0..0, |txn| txn.expects.clone());
        let all = &scene.postgres.expects;
        // Nothing passes anything unless a transaction is paused.
        let found = if self.paused.is_empty() && reading.ahead.is_empty() {
            Some(reading.next)
        } else {
            scene.postgres.by_id.get(&event.id).copied()
        };
        let is_owed =
            |at: &usize| of_txn.contains(at) && *at >= reading.next && !reading.ahead.contains(at);
        let Some(found) = found.filter(is_owed) else {
            return Err(format!("{event:?} was not committed, or has come"));
        };
        let Some(expect) = all.get(found) else { return Err(format!("no {event:?}")) };
        compare(expect, event, unroutable)?;
        let is_passed = |at: &usize| {
            !reading.ahead.contains(at) && all.get(*at).is_some_and(|e| e.is_before(expect))
        };
        if let Some(passed) = (reading.next..found).find(is_passed) {
            return Err(format!("{event:?} passed {:?}", all.get(passed)));
        }
        reading.ahead.insert(found);
        while reading.ahead.remove(&reading.next) {
            reading.next += 1;
        }
        if unroutable {
            return Ok(());
        }
        match self.of_account.insert(Arc::clone(&expect.account), event.position) {
            Some(before) if before > event.position => {
                Err(format!("{event:?} came after what stands at {before:?}"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Expect {
    /// Whether it has to come before the other, of the same transaction and behind it, whatever is paused.
    fn is_before(&self, other: &Self) -> bool {
        !self.unroutable && !other.unroutable && self.account == other.account
    }
}
