//! What is stored as settled ahead of the checkpoint is settled, once: each delivery in a range was taken by
//! its endpoint or stands in a table, and one process stores no delivery in two ranges.

use std::collections::HashMap;
use std::sync::Arc;

use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{EventKey, NO_ENDPOINT, QueueId, SettledRange};
use walhook_core::position::Position;

use super::{Checker, Scene, Seen};

/// The end of the last range of each process, account and endpoint: they come in order.
#[derive(Debug, Default)]
pub(crate) struct Settled(HashMap<(usize, AccountId, EndpointId), Vec<(EventKey, EventKey)>>);

impl Checker for Settled {
    fn name(&self) -> &'static str {
        "settled"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        if let Seen::Stored { life, batch, result: Ok(_), again: false, .. } = seen {
            for range in &batch.settled {
                self.is_new(*life, range)?;
                if *range.endpoint != *NO_ENDPOINT {
                    is_settled(scene, range)?;
                }
            }
        }
        if let Seen::Died { life } = seen {
            self.0.retain(|(of, ..), _| of != life);
        }
        Ok(())
    }
}

impl Settled {
    fn is_new(&mut self, life: usize, range: &SettledRange) -> Result<(), String> {
        let key = (life, range.account.clone(), range.endpoint.clone());
        let stored = self.0.entry(key).or_default();
        // One that begins at the very beginning goes on where the last one ended.
        let overlaps = |(from, to): &&(EventKey, EventKey)| *from <= range.to && range.from <= *to;
        let is_first = range.from.position == Position::FIRST;
        if let Some(twice) = stored.iter().find(overlaps).filter(|_| !is_first) {
            return Err(format!("{range:?} was stored before, by {twice:?}"));
        }
        stored.push((range.from.clone(), range.to.clone()));
        Ok(())
    }
}

fn is_settled(scene: &Scene<'_>, range: &SettledRange) -> Result<(), String> {
    let from = scene
        .postgres
        .expects
        .partition_point(|expect| Position::Wal(expect.position) < range.from.position);
    let expects = scene.postgres.expects.get(from..).unwrap_or_default();
    for expect in expects {
        let position = Position::Wal(expect.position);
        let key = EventKey { position, event_type: expect.event_type.into() };
        if key > range.to {
            break;
        }
        if key < range.from {
            continue;
        }
        if expect.unroutable || *expect.account != *range.account {
            continue;
        }
        let account = AccountId::new(Arc::clone(&expect.account));
        let queue = QueueId { account, endpoint: range.endpoint.clone() };
        let settled = scene.facts.took(expect.id, &range.endpoint)
            || scene.state.holds(expect.id, &queue, &key)
            || scene.facts.discarded.contains(&(expect.id, range.endpoint.clone()));
        if !settled && scene.postgres.is_owed(expect, &range.endpoint) {
            return Err(format!("{range:?} covers {expect:?}, which is not settled"));
        }
    }
    Ok(())
}
