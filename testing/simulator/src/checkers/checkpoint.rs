//! The checkpoint passes a transaction only when each of its deliveries is settled: taken by its endpoint, or
//! durably in a table. It never goes back. The source forgets nothing that the checkpoint has not passed.

use std::sync::Arc;

use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{EventKey, QueueId};
use walhook_core::position::Position;

use super::{Checker, Scene, Seen};
use crate::postgres::Expect;

#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    /// Transactions that it has passed.
    passed: usize,
    frontier: Lsn,
}

fn is_settled(scene: &Scene<'_>, expect: &Expect, endpoint: &EndpointId) -> bool {
    let account = AccountId::new(Arc::clone(&expect.account));
    let queue = QueueId { account, endpoint: endpoint.clone() };
    let position = Position::Wal(expect.position);
    let key = EventKey { position, event_type: expect.event_type.into() };
    scene.facts.took(expect.id, endpoint)
        || scene.state.holds(expect.id, &queue, &key)
        || scene.facts.discarded.contains(&(expect.id, endpoint.clone()))
}

impl Checker for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Flushed { lsn } if *lsn > scene.state.frontier => {
                let stored = scene.state.frontier;
                Err(format!("the source was told to forget up to {lsn}; stored is {stored}"))
            }
            Seen::Stored { batch, result: Ok(_), .. } => self.passes(scene, batch.frontier),
            Seen::Flushed { .. }
            | Seen::Stored { .. }
            | Seen::Item { .. }
            | Seen::Sent { .. }
            | Seen::Ended { .. }
            | Seen::Received { .. }
            | Seen::Began
            | Seen::Died { .. }
            | Seen::Measured { .. }
            | Seen::Rested { .. } => Ok(()),
        }
    }
}

impl Checkpoint {
    fn passes(&mut self, scene: &Scene<'_>, frontier: Lsn) -> Result<(), String> {
        if frontier < self.frontier {
            return Err(format!("the checkpoint went back from {} to {frontier}", self.frontier));
        }
        self.frontier = frontier;
        while let Some(txn) = scene.postgres.txns.get(self.passed) {
            if txn.commit_lsn >= frontier {
                return Ok(());
            }
            let expects = scene.postgres.expects.get(txn.expects.clone()).unwrap_or_default();
            for expect in expects {
                let of_account = scene.postgres.of_account.get(&expect.account);
                let nobody = EndpointId::new("");
                if expect.unroutable && !is_settled(scene, expect, &nobody) {
                    return Err(format!(
                        "{frontier} passed {expect:?}, of which nothing is stored"
                    ));
                }
                for endpoint in of_account.into_iter().flatten().filter(|_| !expect.unroutable) {
                    if !is_settled(scene, expect, endpoint)
                        && scene.postgres.is_owed(expect, endpoint)
                    {
                        return Err(format!(
                            "{frontier} passed {expect:?}, not settled to {endpoint}"
                        ));
                    }
                }
            }
            self.passed += 1;
        }
        Ok(())
    }
}
