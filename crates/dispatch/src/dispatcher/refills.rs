//! The line of queues that want a page, and the request under way.
//!
//! # Invariants
//!
//! - A queue stands in the line once at most, which its `in_line` says; the line may name some that were forgotten.
//! - One request is under way at most. While it is, what it may bring is reserved (see [`super::pages`]).

use std::collections::VecDeque;

use super::pages::PageSize;
use super::queues::{QueueNo, Queues};

/// Queues that are asked for at once, where memory is large enough: their pages take an eighth of it.
const QUEUES_AT_ONCE: usize = 32;

/// Queues of the line that are looked at for that.
const LOOKED_AT_ONCE: usize = 1_024;

/// Heads known of a queue, where few are known of those that are read back together.
const HEADS_MAX: usize = 1_024;

/// Heads known of a queue in any case. A queue whose heads are all known walks no further until one
/// of them has ended.
const HEADS_MIN: usize = 64;

/// What a head takes, roughly.
const HEAD_BYTES: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Refills {
    line: VecDeque<QueueNo>,
    /// What the request under way may bring; none: there is none.
    reserved: Option<usize>,
    page_size: PageSize,
    /// Heads known of the queues of one request together, beyond which each has [`HEADS_MIN`].
    heads_max: usize,
}

impl Refills {
    /// An empty line, for pages that fit into so much memory.
    pub(super) fn new(memory_limit: usize) -> Self {
        let page_size = PageSize::new(QUEUES_AT_ONCE, memory_limit / 8);
        let heads_max = memory_limit / 16 / HEAD_BYTES;
        Self { line: VecDeque::new(), reserved: None, page_size, heads_max }
    }

    /// The queue wants a page.
    pub(super) fn join(&mut self, queue: QueueNo, queues: &mut Queues) {
        if queues.with_row(queue).join_line() {
            self.line.push_back(queue);
        }
    }

    /// Queues of the line to be looked at now.
    pub(super) fn looks(&self) -> usize {
        self.line.len().min(LOOKED_AT_ONCE)
    }

    /// The first of the line. Whoever takes it says in its `in_line` that it has left, or puts it back.
    pub(super) fn pop(&mut self) -> Option<QueueNo> {
        self.line.pop_front()
    }

    /// It cannot be read now.
    pub(super) fn put_back(&mut self, queue: QueueNo) {
        self.line.push_back(queue);
    }

    /// Pages that may be asked for now, where so many bytes of memory are left.
    pub(super) fn pages_at_most(&self, room: usize) -> usize {
        let PageSize { at_once, bytes, .. } = self.page_size;
        if self.reserved.is_some() { 0 } else { at_once.min(room / bytes) }
    }

    /// Rows of one page at most, and the bytes of their events.
    pub(super) fn page(&self) -> (u32, u64) {
        (self.page_size.rows, self.page_size.text_bytes as u64)
    }

    /// What one page takes in memory at most, but one event.
    pub(super) fn page_bytes(&self) -> usize {
        self.page_size.bytes
    }

    /// So many pages are asked for. Returns what they may bring.
    pub(super) fn begin(&mut self, pages: usize) -> usize {
        let reserved = pages * self.page_size.bytes;
        assert!(self.reserved.replace(reserved).is_none(), "two requests for pages at once");
        reserved
    }

    /// The pages have come. Returns what was reserved for them.
    pub(super) fn end(&mut self) -> usize {
        self.reserved.take().unwrap_or_default()
    }

    /// What the request under way may bring.
    pub(super) fn reserved(&self) -> usize {
        self.reserved.unwrap_or_default()
    }

    /// How many heads each queue of a request may know, where all of them know so many.
    pub(super) fn heads(&self, known: usize) -> usize {
        if known < self.heads_max { HEADS_MAX } else { HEADS_MIN }
    }
}

#[cfg(test)]
mod tests;
