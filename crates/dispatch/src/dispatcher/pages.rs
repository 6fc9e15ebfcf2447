//! Pages of rows that are read back: how large they are, and whose turn it is when memory is short, theirs or
//! the stream's.
//!
//! Pages are asked for below three quarters of the limit; the stream is taken up to the limit. Where more of
//! the stream comes than is sent and stored, it alone would keep memory above the three quarters for good, and
//! what stands in tables would wait until the stream is caught up. So a page that has waited for room for
//! [`PATIENCE`] has its turn: nothing of the stream is taken until pages have been asked for. Where what is in
//! memory does not leave it within a [`TURN`], the stream has its own turn, as long, and so on.

use std::time::Duration;

use super::super::lane::DELIVERY_BYTES;
use walhook_core::event::Event;
use walhook_core::tick::{Tick, micros};

/// Rows of one page, at most.
const PAGE_ROWS: u32 = 128;

/// What a page may take, at least.
const PAGE_BYTES_MIN: usize = 16 << 10;

/// How long a page waits for room before the stream waits for it.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long the stream waits for pages at a time. What is between three quarters of the limit and the limit is
/// mostly stored within.
const TURN: Duration = Duration::from_secs(2);

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
}

/// Whose turn it is, as far as the pages of one table go.
///
/// Invariant: the stream never waits for longer than a [`TURN`] at a time; and pages have a turn within another.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waits_since: Option<Tick>,
}

impl Turns {
    /// A page may be read, and there is no room for it.
    pub(super) fn wait(&mut self, now: Tick) {
        self.waits_since.get_or_insert(now);
    }

    /// Pages are asked for, or none may be read.
    pub(super) fn end(&mut self) {
        self.waits_since = None;
    }

    /// Whether the stream has to wait.
    pub(super) fn stops_stream(&self, now: Tick) -> bool {
        self.begun(now).is_some()
    }

    /// When the stream may be taken again, whatever happens.
    pub(super) fn deadline(&self, now: Tick) -> Option<Tick> {
        Some(self.begun(now)? + TURN)
    }

    /// Since when it is the pages' turn.
    fn begun(&self, now: Tick) -> Option<Tick> {
        let first = self.waits_since? + PATIENCE;
        let since = now.0.checked_sub(first.0)?;
        let into = since % (2 * micros(TURN));
        (into < micros(TURN)).then_some(Tick(now.0 - into))
    }
}

#[cfg(test)]
mod tests;
