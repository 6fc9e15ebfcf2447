//! Every delivery that was owed has ended when all has: an endpoint took it, it is a dead letter, a gap tells
//! of it, or an operator discarded it. While its endpoint stays as it was, it may not be dropped.

use walhook_core::event::EndpointId;

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct NothingLost;

impl Checker for NothingLost {
    fn name(&self) -> &'static str {
        "nothing_lost"
    }

    fn see(&mut self, _scene: &Scene<'_>, _seen: &Seen<'_>) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        for expect in &scene.postgres.expects {
            let at = expect.position.commit_lsn;
            let told = |endpoint: &EndpointId| {
                scene.state.has_letter(expect.id, endpoint)
                    || scene.state.is_in_gap(at, &expect.account, endpoint)
            };
            if expect.unroutable {
                if !told(&EndpointId::new("")) {
                    return Err(format!("{expect:?} is not told of by a dead letter"));
                }
                continue;
            }
            for endpoint in scene.postgres.of_account.get(&expect.account).into_iter().flatten() {
                let ended = told(endpoint)
                    || scene.facts.took(expect.id, endpoint)
                    || scene.facts.discarded.contains(&(expect.id, endpoint.clone()));
                if !ended && scene.postgres.is_owed(expect, endpoint) {
                    return Err(format!("{expect:?} never came to {endpoint}"));
                }
            }
        }
        Ok(())
    }
}
