//! What is sent twice is at most what was in flight, and outcomes that were not stored, when a process died,
//! lost its lease, or gave a request up.

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Duplicates;

impl Checker for Duplicates {
    fn name(&self) -> &'static str {
        "duplicates"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Received { attempt } = seen else { return Ok(()) };
        let (duplicates, excused) = (scene.facts.duplicates, scene.facts.excused);
        if duplicates > excused {
            let id = attempt.event.id;
            return Err(format!("{id}: {duplicates} duplicates, and {excused} excused"));
        }
        Ok(())
    }
}
