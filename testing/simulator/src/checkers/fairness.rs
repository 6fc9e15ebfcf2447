//! A small account whose endpoint answers at once does not wait for the whale, for endpoints that are slow,
//! hang or refuse, or for anything else that others do: a request goes out within [`BOUND`] of the commit.
//!
//! Not counted are times in which look-ups or the state database do not answer, as nothing can be sent then,
//! and what an earlier process left behind; nor an endpoint whose account has more of them than one slice and
//! some that are not well: these take the room of the account's own lane; nor those of an
//! account one of whose requests a worker lost or never began: its slot was held all the same, for seconds, and the
//! account's share pays for it (seed 853: 3 s of 6 slots, and its other endpoints waited for 17 s).

use std::collections::HashMap;
use std::time::Duration;

use walhook_core::event::EndpointId;
use walhook_core::position::EventId;
use walhook_core::tick::Tick;

use super::{Checker, Scene, Seen};
use crate::postgres::EndpointRow;
use crate::receivers::Temper;

/// A small account's request waits no longer; twice as long where half of the slots may be gone.
const BOUND: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(crate) struct Fairness {
    /// When the events came.
    came: HashMap<EventId, (usize, Tick)>,
    sent: HashMap<(EventId, EndpointId), Tick>,
}

/// Whether nothing but others can delay what is for it.
fn is_plain(scene: &Scene<'_>, endpoint: &EndpointId) -> bool {
    let Some(versions) = scene.postgres.versions.get(endpoint) else { return false };
    let [(_, Some(row))] = &versions[..] else { return false };
    let EndpointRow { account, max_in_flight: None, rate_per_second: None, .. } = row else {
        return false;
    };
    let of_account = || scene.postgres.of_account.get(account).into_iter().flatten();
    let (all, well) = of_account().fold((0, 0), |(all, well), endpoint| {
        (all + 1, well + usize::from(scene.receivers.temper(endpoint) == Temper::Fast))
    });
    **account != *"a0"
        && (all == well || all <= scene.plan.settings.slice)
        && row.valid
        && scene.receivers.temper(endpoint) == Temper::Fast
        && !scene.facts.paused.contains(endpoint)
        && !of_account().any(|endpoint| scene.facts.not_carried.contains(endpoint))
}

impl Checker for Fairness {
    fn name(&self) -> &'static str {
        "fairness"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Item { life, item: walhook_core::event::Item::Event(event) } => {
                self.came.entry(event.id).or_insert((*life, scene.now));
            }
            Seen::Sent { life, attempt } if attempt.first().asked.is_none() => {
                let (id, endpoint) = (attempt.first().event.id, &attempt.endpoint.id);
                let first = self.sent.insert((id, endpoint.clone()), scene.now).is_none();
                let Some((came_to, came)) = self.came.get(&id) else { return Ok(()) };
                if !first || came_to != life || !is_plain(scene, endpoint) {
                    return Ok(());
                }
                let since = (*came).max(scene.facts.delayed_until);
                let waited = scene.now.since(since);
                let factor = if scene.plan.has_varying_slots() { 2 } else { 1 };
                if waited > BOUND * factor {
                    return Err(format!("{id} to {endpoint} waited for {waited:?}"));
                }
            }
            Seen::Item { .. }
            | Seen::Sent { .. }
            | Seen::Ended { .. }
            | Seen::Received { .. }
            | Seen::Stored { .. }
            | Seen::Flushed { .. }
            | Seen::Began
            | Seen::Died { .. }
            | Seen::Measured { .. }
            | Seen::Rested { .. } => {}
        }
        Ok(())
    }
}
