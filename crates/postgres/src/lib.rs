//! Everything that is asked of the source database: sessions and their TLS, the replication connection,
//! slots, the catalog, the publication, look-ups of endpoints, and what must be in place first.
//!
//! ```text
//! conninfo ─► pg (dial, TLS, password) ─┬─► wire: replication stream ─► bytes; feedback ◄─ flush LSN
//!                                       └─► sql: sessions ─► catalog, publication, slot, lookup
//! ```

pub mod anchor;
pub mod catalog;
pub mod coverage;
pub mod error;
pub mod feedback;
pub mod fix;
#[cfg(test)]
mod fixture;
pub mod ident;
pub mod lookup;
pub mod op;
mod partitions;
pub mod pg;
pub mod preflight;
pub mod publication_mark;
pub mod published;
pub mod refused_writes;
pub mod row_security;
pub mod slot;
pub mod source;
pub mod sql;
pub mod standbys;
pub mod timelines;
pub mod wire;
