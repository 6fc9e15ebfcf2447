//! No more requests are under way than there are slots, to one endpoint no more than its row allows; to an
//! endpoint that is paused, nothing is sent.

use std::collections::HashMap;

use walhook_core::event::EndpointId;

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// Requests under way, by process.
    all: HashMap<usize, u32>,
    of_endpoint: HashMap<(usize, EndpointId, String), u32>,
}

impl Checker for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Sent { life, attempt } => {
                let settings = &scene.plan.settings;
                let slots = settings.fast_slots + settings.slow_slots;
                let all = self.all.entry(*life).or_default();
                *all += 1;
                if *all > slots {
                    return Err(format!("{all} requests are under way, of {slots}"));
                }
                let endpoint = &attempt.endpoint;
                let key = (*life, endpoint.id.clone(), attempt.first().event.account.to_string());
                let of_endpoint = self.of_endpoint.entry(key).or_default();
                *of_endpoint += 1;
                if endpoint.max_in_flight.is_some_and(|max| *of_endpoint > max) {
                    // One that was lowered meanwhile lets what is under way end.
                    let versions = scene.postgres.versions.get(&endpoint.id);
                    if versions.is_some_and(|versions| versions.len() == 1) {
                        return Err(format!(
                            "{of_endpoint} requests are under way to {endpoint:?}"
                        ));
                    }
                }
            }
            Seen::Ended { life, attempt, .. } => {
                if let Some(all) = self.all.get_mut(life) {
                    *all = all.saturating_sub(1);
                }
                let account = attempt.first().event.account.to_string();
                let key = (*life, attempt.endpoint.id.clone(), account);
                if let Some(of_endpoint) = self.of_endpoint.get_mut(&key) {
                    *of_endpoint = of_endpoint.saturating_sub(1);
                }
            }
            Seen::Died { life } => {
                self.all.remove(life);
                self.of_endpoint.retain(|(of, ..), _| of != life);
            }
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
