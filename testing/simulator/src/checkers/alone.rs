//! Of one key at most one request is under way to one endpoint, until it has really ended.

use std::collections::HashMap;

use walhook_core::attempt::Attempt;
use walhook_core::event::EndpointId;
use walhook_core::position::EventId;
use walhook_dispatch::dispatcher::Ordering;

use super::{Checker, Scene, Seen};
use crate::postgres::Key;

#[derive(Debug, Default)]
pub(crate) struct Alone(HashMap<(usize, EndpointId, String, Key), EventId>);

fn keys(
    scene: &Scene<'_>,
    life: usize,
    attempt: &Attempt,
) -> Vec<(usize, EndpointId, String, Key)> {
    let event = &attempt.first().event;
    let at = scene.postgres.by_id.get(&event.id);
    let Some(expect) = at.and_then(|at| scene.postgres.expects.get(*at)) else { return Vec::new() };
    let keys = match scene.plan.settings.ordering {
        _ if attempt.first().asked.is_some() => return Vec::new(),
        Ordering::Row => expect.keys.clone(),
        Ordering::Account => vec![Key::Account],
        Ordering::None => return Vec::new(),
    };
    let whose = |key| (life, attempt.endpoint.id.clone(), event.account.to_string(), key);
    keys.into_iter().map(whose).collect()
}

impl Checker for Alone {
    fn name(&self) -> &'static str {
        "alone"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Sent { life, attempt } => {
                for key in keys(scene, *life, attempt) {
                    if let Some(other) = self.0.insert(key.clone(), attempt.first().event.id) {
                        let id = attempt.first().event.id;
                        return Err(format!("{id} was sent while {other} was under way: {key:?}"));
                    }
                }
            }
            Seen::Ended { life, attempt, .. } => {
                for key in keys(scene, *life, attempt) {
                    self.0.remove(&key);
                }
            }
            Seen::Died { life } => self.0.retain(|(of, ..), _| of != life),
            Seen::Item { .. }
            | Seen::Received { .. }
            | Seen::Stored { .. }
            | Seen::Flushed { .. }
            | Seen::Began
            | Seen::Measured { .. }
            | Seen::Rested { .. } => {}
        }
        Ok(())
    }
}
