//! What the reader hands to the dispatcher at once.

use walhook_core::event::Item;

/// Items in a batch at most: enough to make the channel cheap.
const BATCH_ITEMS: usize = 256;

/// Event bytes in a batch, beyond which it takes no further change.
const BATCH_BYTES: usize = 64 << 10;

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
