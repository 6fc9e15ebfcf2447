//! First deliveries of one row's events reach one endpoint in commit order; with `ordering = "account"` those
//! of the account. Replays and operators' retries are excepted.
//!
//! Not checked is an event of a type that the endpoint did not ask for when it was committed: one that asks for
//! more types later, before a crash, may get what is read again of these behind newer events.

use std::collections::{HashMap, HashSet};

use walhook_core::event::EndpointId;
use walhook_core::position::{EventId, Position};
use walhook_dispatch::dispatcher::Ordering;

use super::{Checker, Scene, Seen};
use crate::postgres::Key;
use crate::state::GapKind;

#[derive(Debug, Default)]
pub(crate) struct Order {
    /// By row the last position, and the process that had sent it.
    last: HashMap<(EndpointId, String, Key), (Position, usize)>,
    seen: HashSet<(EndpointId, EventId)>,
}

impl Checker for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Received { life, attempt } = seen else { return Ok(()) };
        let (event, endpoint) = (&attempt.first().event, &attempt.endpoint.id);
        if attempt.first().asked.is_some() || !self.seen.insert((endpoint.clone(), event.id)) {
            return Ok(());
        }
        let at = scene.postgres.by_id.get(&event.id);
        let Some(expect) = at.and_then(|at| scene.postgres.expects.get(*at)) else { return Ok(()) };
        // What an operator gave up may still be on its way.
        let at = expect.position.commit_lsn;
        let is_given_up = scene
            .state
            .gaps
            .iter()
            .any(|gap| gap.kind == GapKind::Stream && (gap.from..=gap.to).contains(&at));
        let is_discarded = scene.facts.discarded.contains(&(event.id, endpoint.clone()));
        if is_given_up || !scene.postgres.was_wanted(expect, endpoint) {
            return Ok(());
        }
        let keys = match scene.plan.settings.ordering {
            Ordering::Row => expect.keys.clone(),
            Ordering::Account => vec![Key::Account],
            Ordering::None => return Ok(()),
        };
        for key in keys {
            let row = (endpoint.clone(), event.account.to_string(), key);
            match self.last.get(&row) {
                // With its row gone nothing keeps the next leader from going on, while the last one's request is
                // still on its way.
                Some((before, by)) if is_discarded && *before > event.position && life < by => {}
                Some((before, _)) if *before >= event.position => {
                    let (id, position) = (event.id, event.position);
                    return Err(format!("{id} at {position:?} came to {row:?} after {before:?}"));
                }
                Some(_) | None => _ = self.last.insert(row, (event.position, *life)),
            }
        }
        Ok(())
    }
}
