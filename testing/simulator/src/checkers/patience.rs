//! An endpoint that asks for a wait by Retry-After is given it, up to the bound, while its queue's breaker
//! does not probe; and a delivery that failed is tried again no sooner than the same moment.

use std::collections::HashMap;

use walhook_core::attempt::Meaning;
use walhook_core::event::EndpointId;
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Patience {
    not_before: HashMap<(usize, EventId, EndpointId), Tick>,
}

impl Checker for Patience {
    fn name(&self) -> &'static str {
        "patience"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Ended { life, attempt, outcome } if attempt.first().asked.is_none() => {
                let meaning = outcome.meaning;
                let asked = if let Meaning::Refused { retry_after, .. } = meaning {
                    retry_after
                } else {
                    None
                };
                let cap = scene.plan.settings.settle.retry.cap();
                let wait = asked.unwrap_or_default().min(cap);
                let key = (*life, attempt.first().event.id, attempt.endpoint.id.clone());
                self.not_before.insert(key, scene.now + wait);
            }
            Seen::Sent { life, attempt } if attempt.first().asked.is_none() => {
                let key = (*life, attempt.first().event.id, attempt.endpoint.id.clone());
                let Some(due) = self.not_before.get(&key) else { return Ok(()) };
                // An operator may have asked for it sooner; a breaker probes when it likes.
                let excused =
                    scene.facts.hurried.contains(&key.2)
                        || scene.state.backlog.iter().any(|(queue, row)| {
                            queue.endpoint == key.2 && row.open_until_us.is_some()
                        });
                if scene.now < *due && !excused {
                    return Err(format!("{} to {} came before {due:?}", key.1, key.2));
                }
            }
            Seen::Died { life } => self.not_before.retain(|(of, ..), _| of != life),
            Seen::Item { .. }
            | Seen::Sent { .. }
            | Seen::Ended { .. }
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
