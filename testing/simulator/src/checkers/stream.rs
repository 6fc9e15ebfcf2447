//! Every committed change that a rule matches becomes its event, with the id that follows from the WAL alone,
//! in the order of commits; nothing uncommitted does. What cannot be told becomes unroutable, never silence.

use std::collections::BTreeMap;

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
}

/// A transaction, and the next that has to come of it.
#[derive(Debug, Clone, Copy)]
struct Reading {
    txn: usize,
    next: usize,
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
                let before = at.reading.replace(Reading { txn, next: found.expects.start });
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
        let of_txn = scene.postgres.txns.get(reading.txn).map_or(0, |txn| txn.expects.end);
        let expect = scene.postgres.expects.get(reading.next);
        let expect = expect.filter(|_| reading.next < of_txn);
        let Some(expect) = expect else { return Err(format!("{event:?} was not committed")) };
        reading.next += 1;
        compare(expect, event, unroutable)
    }
}
