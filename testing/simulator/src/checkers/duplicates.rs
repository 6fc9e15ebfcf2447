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
        match seen {
            // While an instance without the lease lives on, what it excuses is not known yet.
            Seen::Received { .. } if !scene.facts.has_stale => self.end(scene),
            Seen::Item { .. }
            | Seen::Sent { .. }
            | Seen::Ended { .. }
            | Seen::Received { .. }
            | Seen::Stored { .. }
            | Seen::Flushed { .. }
            | Seen::Began
            | Seen::Died { .. }
            | Seen::Measured { .. }
            | Seen::Rested { .. } => Ok(()),
        }
    }

    fn end(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let (duplicates, excused) = (scene.facts.duplicates, scene.facts.excused);
        if duplicates > excused {
            return Err(format!("{duplicates} duplicates, and {excused} are excused"));
        }
        Ok(())
    }
}
