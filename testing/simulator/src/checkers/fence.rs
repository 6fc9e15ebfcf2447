//! An instance that lost the lease changes nothing in the tables any more.

use walhook_core::id::Epoch;

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Fence {
    last: Epoch,
}

impl Checker for Fence {
    fn name(&self) -> &'static str {
        "fence"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Stored { epoch, result: Ok(_), batch, .. } = seen else { return Ok(()) };
        let (last, now) = (self.last, scene.state.epoch);
        if *epoch < last || *epoch < now {
            let number = batch.number;
            return Err(format!(
                "batch {number} of epoch {epoch} was written in {}",
                last.max(now)
            ));
        }
        self.last = *epoch;
        Ok(())
    }
}
