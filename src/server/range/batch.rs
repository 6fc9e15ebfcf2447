//! What the reader of a range hands on at once.

use walhook_core::event::Item;
use walhook_rules::turns::{BATCH_BYTES, BATCH_ITEMS};

/// Items in stream order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    bytes: usize,
}

impl Batch {
    pub(in crate::server) fn is_full(&self) -> bool {
        self.items.len() >= BATCH_ITEMS || self.bytes >= BATCH_BYTES
    }

    /// Counts the bytes of the items from this one on, which are new.
    pub(in crate::server) fn count_from(&mut self, first: usize) {
        let new = self.items.get(first..).unwrap_or_default();
        self.bytes += new.iter().map(Item::size_bytes).sum::<usize>();
    }
}
