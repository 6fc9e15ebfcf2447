//! Memory is bounded by the configuration, whatever the backlog; and when all has ended nothing is counted, in
//! memory or in tables, that is not there.

use std::collections::BTreeMap;

use walhook_dispatch::dispatcher::Gauges;

use super::{Checker, Scene, Seen};

/// What may come on top: a batch that was taken while there was room, with what it is routed to at once. Here
/// that is up to 63 messages, each to some dozen endpoints, of less than 1 KiB.
const BATCH_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Of each process that lives, as it was told last.
    last: BTreeMap<usize, Gauges>,
}

impl Checker for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        if let Seen::Died { life } = seen {
            self.last.remove(life);
        }
        let Seen::Rested { life, gauges } = seen else { return Ok(()) };
        let (held, limit) = (gauges.queued_bytes, scene.plan.settings.memory_limit);
        self.last.insert(*life, *gauges);
        if held > limit + BATCH_BYTES {
            return Err(format!("{held} bytes are held, and {limit} allowed"));
        }
        Ok(())
    }

    fn end(&mut self, _scene: &Scene<'_>) -> Result<(), String> {
        for gauges in self.last.values() {
            let lanes = gauges.lanes_ready + gauges.lanes_waiting;
            let rows = gauges.deferred + gauges.unrouted;
            if gauges.queued_bytes > 0 || lanes > 0 || rows > 0 || gauges.unrouted_accounts > 0 {
                return Err(format!("nothing is left, and {gauges:?}"));
            }
        }
        Ok(())
    }
}
