//! The delivery log in the state database: lines ([`Entry`]) in pages, see ADR 37.
//!
//! A page is a row of `delivery_log`: the lines of one state transaction, or of many that were merged, as columns and
//! compressed ([`columns`]). Beside them stands what a search goes by: times, outcomes, and of large pages a filter
//! ([`filter`]). Small ones have none: there are never many.
//!
//! # Invariants
//!
//! - Lines have numbers that grow in the order in which they were stored; a page's row has that of its last. Pages do not
//!   overlap.
//! - A page is stored with what it tells of, or is left out and counted: it never keeps that from being stored.
//! - Everything here is bounded: pages that are read at once, lines of a page, pages removed by one statement.
//!
//! [`Entry`]: walhook_core::delivery_log::Entry

mod codes;
mod columns;
mod count;
mod erase;
mod filter;
mod keep;
mod merge;
mod numbers;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod write;

pub use count::{DeliveryCount, DeliveryKind};
pub use erase::Erasure;
pub use keep::LogSize;
pub use merge::Merged;
pub use read::{DeliveryCursor, DeliveryFilter, DeliveryPage};
pub(super) use write::{Page, Refusal, append};

/// Pages that are in memory at once while the log is read.
const READ_AT_ONCE: usize = 8;

/// Lines from which on a page has a filter, and is not merged any more.
const FILTERED: usize = 64;
