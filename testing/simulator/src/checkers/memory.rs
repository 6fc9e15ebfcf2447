//! Memory is bounded by the configuration, whatever the backlog.

use super::{Checker, Scene, Seen};

/// What may come on top: a batch that was taken while there was room, and the deliveries of events that
/// waited for their endpoints, which are as many as their accounts have.
const BATCH_BYTES: usize = 2 << 20;

#[derive(Debug, Default)]
pub(crate) struct Memory;

impl Checker for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Rested { gauges } = seen else { return Ok(()) };
        let (held, limit) = (gauges.queued_bytes, scene.plan.settings.memory_limit);
        if held > limit + BATCH_BYTES {
            return Err(format!("{held} bytes are held, and {limit} allowed"));
        }
        Ok(())
    }
}
