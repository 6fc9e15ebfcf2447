//! All that dispatchers asked for, as one digest.

use std::fmt::Debug;
use std::hash::{DefaultHasher, Hasher};

use crate::dispatcher::Effect;
use walhook_core::persist::PersistBatch;
use walhook_core::tick::Tick;

/// All that dispatchers asked for, as a digest: where that is wanted, for it takes more time than what is simulated.
pub(in crate::dispatcher::simulation) struct Trace {
    hasher: Option<DefaultHasher>,
    pub(in crate::dispatcher::simulation) effects: u64,
}

impl Default for Trace {
    fn default() -> Self {
        let is_wanted = std::env::var_os("WALHOOK_TRACE").is_some();
        Self { hasher: is_wanted.then(DefaultHasher::new), effects: 0 }
    }
}

impl Trace {
    pub(in crate::dispatcher::simulation) fn wanted() -> Self {
        Self { hasher: Some(DefaultHasher::new()), effects: 0 }
    }

    fn write(&mut self, now: Tick, effect: &dyn Debug) {
        let Some(hasher) = &mut self.hasher else { return };
        self.effects += 1;
        let text = format!("{now:?} {effect:?}");
        if std::env::var_os("WALHOOK_TRACE").is_some_and(|v| v == "all") {
            println!("{text}");
        }
        hasher.write(text.as_bytes());
    }

    pub(in crate::dispatcher::simulation) fn note(&mut self, now: Tick, effect: &Effect) {
        if self.hasher.is_none() {
            return;
        }
        match effect {
            Effect::Send(d) => self.write(now, &("send", &d.attempt, d.waited)),
            Effect::Abort(id) => self.write(now, &("abort", id)),
            Effect::LookUp(look_up) => self.write(now, &("look up", &look_up.accounts)),
            Effect::ReadDeferred(pages) => self.write(now, &("read deferred", pages)),
            Effect::ReadUnrouted(pages) => self.write(now, &("read unrouted", pages)),
            Effect::Store(batch) => self.note_batch(now, batch),
            Effect::Flush(_)
            | Effect::Settled(_)
            | Effect::Report(_)
            | Effect::StateFull { .. } => {}
        }
    }

    fn note_batch(&mut self, now: Tick, batch: &PersistBatch) {
        let mut batch = batch.clone();
        batch.settled.sort_by(|a, b| {
            (&a.account, &a.endpoint, &a.from).cmp(&(&b.account, &b.endpoint, &b.from))
        });
        batch.unrouted_accounts.sort_by(|a, b| a.account.cmp(&b.account));
        for account in &mut batch.unrouted_accounts {
            account.settled.sort_by(|a, b| (&a.endpoint, &a.from).cmp(&(&b.endpoint, &b.from)));
        }
        self.write(now, &batch);
    }

    /// None where it was not wanted.
    pub(in crate::dispatcher::simulation) fn digest(&self) -> Option<u64> {
        self.hasher.as_ref().map(Hasher::finish)
    }
}
