//! Every committed change that a rule matches becomes its event, with the id that follows from the WAL alone,
//! in the order of commits; nothing uncommitted does. What cannot be told becomes unroutable, never silence.

use std::collections::BTreeMap;

use walhook_core::event::{Event, Item};
use walhook_core::lsn::Lsn;
use walhook_core::position::Position;

use super::{Checker, Scene, Seen};
use crate::postgres::Expect;

/// Of each life the transaction that it reads, and the next that has to come of it.
#[derive(Debug, Default)]
pub(crate) struct Stream(BTreeMap<usize, At>);

#[derive(Debug)]
struct At {
    txn: usize,
    next: usize,
    last_end: Lsn,
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
        match item {
            Item::Begin { commit_lsn } => {
                let txn = txns.partition_point(|txn| txn.commit_lsn < *commit_lsn);
                let found = txns.get(txn).filter(|txn| txn.commit_lsn == *commit_lsn);
                let Some(found) = found.filter(|_| txn < scene.postgres.committed) else {
                    return Err(format!("no transaction commits at {commit_lsn}"));
                };
                let last_end = self.0.get(life).map_or(Lsn(0), |at| at.last_end);
                if self.0.get(life).is_some_and(|at| at.txn + 1 != txn) {
                    return Err(format!("the transaction before {commit_lsn} was passed over"));
                }
                self.0.insert(*life, At { txn, next: found.expects.start, last_end });
            }
            Item::Event(event) => self.expect(*life, scene, event, false)?,
            Item::Unroutable(unroutable) => self.expect(*life, scene, &unroutable.event, true)?,
            Item::Commit { end_lsn } => {
                let Some(at) = self.0.get_mut(life) else { return Ok(()) };
                let Some(txn) = txns.get(at.txn) else { return Ok(()) };
                if scene.state.left_out.contains(&txn.commit_lsn) {
                    // An operator gave its rest up.
                    at.last_end = *end_lsn;
                    return Ok(());
                }
                if at.next != txn.expects.end || *end_lsn != txn.end_lsn {
                    let left = scene.postgres.expects.get(at.next);
                    return Err(format!("{left:?} did not come before the commit {end_lsn}"));
                }
                at.last_end = *end_lsn;
            }
            Item::Invalidate(_) | Item::Progress { .. } => {}
        }
        Ok(())
    }
}

impl Stream {
    fn expect(
        &mut self,
        life: usize,
        scene: &Scene<'_>,
        event: &Event,
        unroutable: bool,
    ) -> Result<(), String> {
        let Some(at) = self.0.get_mut(&life) else { return Err("an event before BEGIN".into()) };
        let of_txn = scene.postgres.txns.get(at.txn).map_or(0, |txn| txn.expects.end);
        let expect = scene.postgres.expects.get(at.next).filter(|_| at.next < of_txn);
        let Some(expect) = expect else { return Err(format!("{event:?} was not committed")) };
        at.next += 1;
        compare(expect, event, unroutable)
    }
}
