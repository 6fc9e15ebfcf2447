//! What the table `backlog` says of a queue is what stands in `deferred`: as many rows, and none where the queue
//! has no entry. Where an operator has discarded some, it may say more until the leader knows, and never less.

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Backlog;

impl Checker for Backlog {
    fn name(&self) -> &'static str {
        "backlog"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Stored { batch, result: Ok(_), again: false, .. } = seen else { return Ok(()) };
        let rows = |queue| scene.state.deferred.get(queue).map_or(0, |rows| rows.len() as u64);
        for told in &batch.backlog {
            // Rows of one that is suspended go behind that.
            let is_purged = batch.purges.iter().any(|purge| purge.queue == told.queue);
            let is_exact = !scene.facts.discards.contains(&told.queue.endpoint);
            let there = rows(&told.queue);
            let is_right = told.rows == there || !is_exact && told.rows > there;
            if !is_right && !is_purged {
                return Err(format!("{told:?}, and there are {} rows", rows(&told.queue)));
            }
        }
        if let Some(queue) = batch.backlog_gone.iter().find(|queue| rows(queue) > 0) {
            return Err(format!("{queue:?} has {} rows that nobody knows of", rows(queue)));
        }
        Ok(())
    }
}
