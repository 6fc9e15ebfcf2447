//! What is sent was committed, word for word, and is for the endpoint it goes to: its row was for such events
//! of the account when the event was routed, or since.

use super::{Checker, Scene, Seen};

#[derive(Debug, Default)]
pub(crate) struct NothingInvented;

impl Checker for NothingInvented {
    fn name(&self) -> &'static str {
        "nothing_invented"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Sent { attempt, .. } = seen else { return Ok(()) };
        let (event, endpoint) = (&attempt.first().event, &attempt.endpoint);
        let at = scene.postgres.by_id.get(&event.id);
        let Some(expect) = at.and_then(|at| scene.postgres.expects.get(*at)) else {
            return Err(format!("{} was never committed", event.id));
        };
        if expect.txn >= scene.postgres.committed {
            return Err(format!("{} is not committed yet", event.id));
        }
        let same = *expect.account == *event.account && expect.row.as_bytes() == &event.row[..];
        if !same || expect.unroutable {
            return Err(format!("{event:?} was sent where {expect:?} was committed"));
        }
        if endpoint.account != event.account || !endpoint.enabled {
            return Err(format!("{} was sent to {endpoint:?}", event.id));
        }
        // A replay goes to whoever wants it now.
        if attempt.first().asked.is_none() && !scene.postgres.is_allowed(expect, &endpoint.id) {
            return Err(format!("{expect:?} was not for {}", endpoint.id));
        }
        Ok(())
    }
}
