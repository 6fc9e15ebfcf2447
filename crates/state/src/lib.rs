//! The state database: what must outlive a process, behind one fence.
//!
//! ```text
//! lease ──epoch──► Start ──► dispatcher ──PersistBatch──► persist ──one transaction──► the tables
//!                               ▲  ▲                         └──Persisted──► dispatcher
//!                     refill ───┘  └─── jobs, replays                 inspect, filter ──► commands
//! ```
//!
//! A leader takes the lease by adding 1 to the epoch of its `lease` row. Each of its transactions
//! first reads that row with its own epoch, `FOR SHARE`. That is what makes the fence hold: the bump
//! waits for transactions that hold the row, so all they wrote is there when the new leader reads;
//! and whoever asks for the row after the bump finds no row with its epoch and writes nothing. A
//! leader that freezes in the middle of a transaction cannot hold the bump up for long, because its
//! session carries an `idle_in_transaction_session_timeout`.
//!
//! A connection may be lost after COMMIT was sent and before its answer came. The caller then
//! reconnects and stores the same batch again: the module `persist` says why that changes nothing.

mod coverage;
mod dead_letters;
mod deferred;
mod deliveries;
mod discard_log;
mod discard_pages;
mod endpoints;
mod error;
mod event;
mod event_rows;
mod filter;
mod gaps;
mod history;
mod holders;
mod inspect;
mod jobs;
mod key;
mod lease;
mod maintenance;
mod notices;
mod open_transactions;
mod page;
mod persist;
mod place;
mod reached;
mod recover;
mod refill;
mod relations;
pub mod replay_column;
mod replay_discards;
mod replays;
mod row_place;
mod schema;
mod session;
pub mod slots;
mod store;
mod text;
mod troubles;
mod uncommitted;
mod unfinished;
mod unrouted;
mod upgrade;
mod version;
mod workers;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use coverage::MAX_ALARMS;
pub use dead_letters::StoredDeadLetter;
pub use deferred::{Changed, DeferredCursor, StoredDeferred};
pub use deliveries::{
    DeliveryCount, DeliveryCursor, DeliveryFilter, DeliveryKind, DeliveryPage, Erasure, LogSize,
    Merged,
};
pub use discard_log::Logged;
pub use discard_pages::{DiscardedPages, PageCursor};
pub use endpoints::Standing;
pub use error::{Class, StateError};
pub use filter::{DeadLetterFilter, DeferredFilter, Filter};
pub use gaps::Gap;
pub use inspect::{Overview, StoppedSince};
pub use jobs::{Ask, Asked, EndpointStop, Job, JobState, RETRIES_AT_ONCE};
pub use lease::Recovery;
pub use open_transactions::OpenTransaction;
pub use persist::StoredAttempt;
pub use relations::Relations;
pub use replays::{REPLAY_JOB, StoredReplay};
pub use schema::{SCHEMA_VERSION, schema_sql, tables, views};
pub use store::{SessionSettings, StateStore};
pub use troubles::Told;
pub use uncommitted::Uncommitted;
pub use unrouted::{OfAccount, WithoutEndpoint};
pub use upgrade::Prepared;
pub use workers::{SeenWorker, WorkerRow};

use error::unreadable;
use lease::{fence, fence_alone, hold_off_leader};
use session::Transaction;
use store::{Param, Scope, lsn};
