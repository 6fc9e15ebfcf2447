//! Row changes → events, as the configuration's rules say.
//!
//! ```text
//! settings + catalog ──compile──► Rules ──bind (relation)──► for each change:
//!     when (CEL) ──► columns, rename, data (CEL) ──► JSON ──► Event
//! ```

pub mod condition;
pub mod row;
pub mod rule;
pub mod settings;
pub mod value;
