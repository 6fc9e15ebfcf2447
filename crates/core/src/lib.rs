//! The words that the parts of walhook speak with each other: positions, events, endpoints, attempts and
//! their outcomes, why a delivery waits, what is stored, and what stops a pipeline.
//!
//! ```text
//! rules ──Item, Event──► dispatch ──Attempt──► http ──Outcome──► dispatch ──PersistBatch──► state
//! postgres ──Endpoint──►    ▲                                        ▲                        │
//!                           └──── Start (what a leader begins with) ─┴──────── Persisted ◄────┘
//! ```
//!
//! Plain data and its text forms. Nothing here decides, waits or opens anything.

pub mod attempt;
pub mod catalog;
pub mod delivery_key;
pub mod delivery_log;
pub mod endpoint;
pub mod escape;
pub mod event;
pub mod halt;
pub mod heap;
pub mod id;
pub mod lsn;
pub mod notice;
pub mod partition;
pub mod persist;
pub mod position;
#[cfg(feature = "record")]
pub mod record;
pub mod redact;
pub mod replay;
pub mod room;
pub mod settings;
pub mod settled;
pub mod size;
pub mod tick;
pub mod types;
pub mod waits;
