//! What is deferred comes back: when all has ended no row is left, none that the backlog counts, and no event
//! without an endpoint.

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct DeferredReturn;

impl Checker for DeferredReturn {
    fn name(&self) -> &'static str {
        "deferred_return"
    }

    fn see(&mut self, _scene: &Scene<'_>, _seen: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let state = scene.state;
        if let Some((queue, rows)) = state.deferred.iter().next() {
            return Err(format!("{queue:?} still has {} rows", rows.len()));
        }
        if let Some(row) = state.backlog.values().next() {
            return Err(format!("the backlog still has {row:?}"));
        }
        if let Some((account, rows)) = state.unrouted.iter().next() {
            return Err(format!("{account} still has {} events without an endpoint", rows.len()));
        }
        Ok(())
    }
}
