//! What must be true, whatever happens: one checker for each promise, each in its own file.
//!
//! A checker is told of all that is seen from outside ([`Seen`]), with the world as it is at that moment
//! ([`Scene`]). It knows nothing of what walhook has in memory.

mod alone;
mod backlog;
mod checkpoint;
mod deferred_return;
mod duplicates;
mod fairness;
mod fence;
mod gaps;
mod limits;
mod memory;
mod nothing_invented;
mod nothing_lost;
mod order;
mod patience;
mod replays;
mod settled;
mod stream;
mod waits;

use walhook_core::attempt::{Attempt, Outcome};
use walhook_core::event::{Event, Item};
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted};
use walhook_core::tick::Tick;
use walhook_core::waits::Waits;
use walhook_dispatch::dispatcher::Gauges;

use crate::facts::Facts;
use crate::plan::Plan;
use crate::postgres::Postgres;
use crate::receivers::Receivers;
use crate::state::{Fenced, State};

/// The world at a moment.
pub(crate) struct Scene<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) postgres: &'a Postgres,
    pub(crate) state: &'a State,
    pub(crate) receivers: &'a Receivers,
    pub(crate) facts: &'a Facts,
    pub(crate) now: Tick,
}

/// What was seen.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// An item was handed over.
    Item { life: usize, item: &'a Item },
    /// A request was sent.
    Sent { life: usize, attempt: &'a Attempt },
    /// It ended so; only now is its key free.
    Ended { life: usize, attempt: &'a Attempt, outcome: &'a Outcome },
    /// An endpoint took what a process had sent.
    Received { life: usize, attempt: &'a Attempt },
    /// A state transaction ended.
    Stored {
        life: usize,
        epoch: Epoch,
        batch: &'a PersistBatch,
        result: &'a Result<Persisted, Fenced>,
        again: bool,
    },
    /// A delivery was taken, and waited for this.
    Measured { event: &'a Event, waits: &'a Waits },
    /// The source was told to forget what is before.
    Flushed { lsn: Lsn },
    /// A process began.
    Began,
    /// A process is gone.
    Died { life: usize },
    /// Nothing more can be done by a process at this moment.
    Rested { life: usize, gauges: Gauges },
}

/// A promise.
pub(crate) trait Checker {
    /// Its name: that of its file.
    fn name(&self) -> &'static str;

    /// Something was seen.
    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String>;

    /// All has ended.
    fn end(&mut self, _scene: &Scene<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Box<dyn Checker>> {
    vec![
        Box::new(stream::Stream::default()),
        Box::new(nothing_lost::NothingLost),
        Box::new(nothing_invented::NothingInvented),
        Box::new(order::Order::default()),
        Box::new(alone::Alone::default()),
        Box::new(checkpoint::Checkpoint::default()),
        Box::new(settled::Settled::default()),
        Box::new(fence::Fence::default()),
        Box::new(duplicates::Duplicates),
        Box::new(fairness::Fairness::default()),
        Box::new(limits::Limits::default()),
        Box::new(memory::Memory::default()),
        Box::new(gaps::Gaps),
        Box::new(deferred_return::DeferredReturn),
        Box::new(backlog::Backlog),
        Box::new(patience::Patience::default()),
        Box::new(replays::Replays),
        Box::new(waits::Waits),
    ]
}
