//! Row changes → events, as the configuration's rules say.
//!
//! ```text
//! settings + catalog ──compile──► Rules ──bind (relation)──► for each change:
//!     when (CEL) ──► columns, rename, data (CEL) ──► JSON ──► Event
//! ```
//!
//! And whose turn it is, where a large transaction's events are made while the stream goes on: [`turns`].

pub mod condition;
pub mod name;
pub mod row;
pub mod rule;
pub mod settings;
pub mod turns;
pub mod value;
