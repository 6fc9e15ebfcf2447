//! A replay counts each of its deliveries once, by how it went, and what it says still waits is what waits:
//! nothing, when all has ended.

use walhook_core::persist::ReplayCounts;

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Replays;

impl Checker for Replays {
    fn name(&self) -> &'static str {
        "replays"
    }

    fn see(&mut self, _scene: &Scene<'_>, _seen: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        for replay in &scene.facts.replays {
            let Some(job) = scene.state.jobs.get(&replay.replay.into()) else { continue };
            let late = ReplayCounts { deferred: 0, ..job.late }.total();
            if job.counts.deferred != late {
                return Err(format!("{job:?} still waits for what is not there"));
            }
            let total = job.counts.total();
            // One that was cancelled forgets what is still in flight.
            if total > replay.fed || (!replay.cancelled && total < replay.pairs.len() as i64) {
                let (fed, all) = (replay.fed, replay.pairs.len());
                return Err(format!("{job:?} counts {total}, of {all}, {fed} of which were fed"));
            }
        }
        Ok(())
    }
}
