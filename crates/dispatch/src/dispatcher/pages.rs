//! Pages of rows that are read back: how large they are.
//!
//! When they may be read although memory is short, the module `relief` says.

use super::super::lane::DELIVERY_BYTES;
use walhook_core::event::Event;

/// Rows of one page, at most.
const PAGE_ROWS: u32 = 128;

/// What a page may take, at least.
const PAGE_BYTES_MIN: usize = 16 << 10;

/// How large pages are.
///
/// Invariant: what their rows hold in memory is within their share of it, but for single rows that take more by
/// themselves than a page may.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageSize {
    /// Pages that are asked for at once, at most.
    pub(super) at_once: usize,
    /// What one takes in memory.
    pub(super) bytes: usize,
    /// Rows of one, at most.
    pub(super) rows: u32,
    /// Bytes of its events, at most.
    pub(super) text_bytes: usize,
}

impl PageSize {
    /// So many pages, or fewer where they would be too small, share so many bytes.
    pub(super) fn new(at_once: usize, share: usize) -> Self {
        let bytes = (share / at_once).max(PAGE_BYTES_MIN);
        let text_bytes = bytes / 2;
        let rows = text_bytes / (DELIVERY_BYTES + Event::FIXED_BYTES);
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).clamp(1, PAGE_ROWS);
        Self { at_once: (share / bytes).clamp(1, at_once), bytes, rows, text_bytes }
    }

    /// Pages that are as large as so many of these.
    pub(super) fn times(self, many: usize) -> Self {
        let Self { at_once, bytes, rows, text_bytes } = self;
        let rows = rows.saturating_mul(u32::try_from(many).unwrap_or(u32::MAX));
        Self { at_once: at_once / many, bytes: bytes * many, rows, text_bytes: text_bytes * many }
    }
}

#[cfg(test)]
mod tests;
