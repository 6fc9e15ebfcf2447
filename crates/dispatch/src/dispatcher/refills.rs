//! The line of queues that want a page, and the request under way.
//!
//! # Invariants
//!
//! - A queue stands in the line once at most, which its `in_line` says; the line may name some that were forgotten.
//! - Accounts take turns in it, in each pool, with their own queues in the order in which they came: ten thousand queues
//!   of one account delay another's by one page of each pool.
//! - Who waits for room in a pool (see [`super::rooms`]), or for an older event of its account to be routed, has no turn
//!   for that pool, and costs no look, until that is over or another queue of it joins the line.
//! - One request is under way at most. While it is, what it may bring is reserved (see [`super::pages`]).
//! - A request brings no more than [`QUEUES_AT_ONCE`] pages, however many queues share them.

use super::super::schedule::Pool;
use super::pages::PageSize;
use super::queues::{AccountNo, QueueNo, Queues};
use super::turns::Turns;
use walhook_core::tick::Tick;

/// Queues that are asked for at once, where memory is large enough: their pages take an eighth of it.
const QUEUES_AT_ONCE: usize = 32;

/// One queue may have this part of them, where few others want one: to read as many rows at once costs little more
/// than to read one page, and whoever drains fast would wait for every page. The rest is left to whoever else comes.
const PART_OF_ONE: usize = 4;

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
    line: Turns<Turn, QueueNo>,
    /// The request; none: there is none.
    under_way: Option<UnderWay>,
    page_size: PageSize,
    /// Heads known of the queues of one request together, beyond which each has [`HEADS_MIN`].
    heads_max: usize,
}

/// A request for pages.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    pages: usize,
    size: PageSize,
}

impl UnderWay {
    /// What it may bring.
    fn reserved(self) -> usize {
        self.pages * self.size.bytes
    }
}

/// Whose turn it is: an account's, for its queues that are sent from this pool.
pub(super) type Turn = (AccountNo, Pool);

impl Refills {
    /// An empty line, for pages that fit into so much memory.
    pub(super) fn new(memory_limit: usize) -> Self {
        let page_size = PageSize::new(QUEUES_AT_ONCE, memory_limit / 8);
        let heads_max = memory_limit / 16 / HEAD_BYTES;
        Self { line: Turns::default(), under_way: None, page_size, heads_max }
    }

    /// The queue wants a page.
    pub(super) fn join(&mut self, queue: QueueNo, queues: &mut Queues, now: Tick) {
        let (account, pool) = (queues.at(queue).account(), queues.at(queue).pool(now));
        let before = queues.with_row(queue).set_in_line(Some(pool));
        if before == Some(pool) {
            return;
        }
        if let Some(before) = before {
            self.line.remove(&(account, before), &queue);
        }
        self.line.push((account, pool), queue);
        // The account's number may have been another's that was put aside and is gone.
        self.line.go_on(&(account, pool));
    }

    /// Queues of the line to be looked at now.
    pub(super) fn looks(&self) -> usize {
        self.line.len().min(LOOKED_AT_ONCE)
    }

    /// Whose turn it is. Whoever takes it says in its `in_line` that it has left, or puts it back.
    pub(super) fn pop(&mut self) -> Option<(Turn, QueueNo)> {
        self.line.pop()
    }

    /// It cannot be read now.
    pub(super) fn put_back(&mut self, turn: Turn, queue: QueueNo) {
        self.line.push(turn, queue);
    }

    /// It, which was taken out just now, cannot be read before [`Refills::go_on`], nor the account's others of this
    /// pool.
    pub(super) fn put_aside(&mut self, turn: Turn, queue: QueueNo) {
        self.line.put_aside(turn);
        self.line.push(turn, queue);
    }

    /// What was put aside of the account in this pool has its turns again.
    pub(super) fn go_on(&mut self, account: AccountNo, pool: Pool) {
        self.line.go_on(&(account, pool));
    }

    /// Pages that may be asked for now, where so many bytes of memory are left.
    pub(super) fn pages_at_most(&self, room: usize) -> usize {
        let PageSize { at_once, bytes, .. } = self.page_size;
        if self.under_way.is_some() { 0 } else { at_once.min(room / bytes) }
    }

    /// A queue with fewer rows in memory wants a page, however many new deliveries are there with them: half of what
    /// it would get now.
    pub(super) fn wanted_below(&self) -> usize {
        let rows = self.size_of_each(self.line.len().max(1), self.page_size.at_once).rows;
        usize::try_from(rows / 2).unwrap_or(usize::MAX)
    }

    /// So many queues are asked for a page each, where there may be `at_most` pages. Returns how large each is: what
    /// others leave is theirs.
    pub(super) fn begin(&mut self, queues: usize, at_most: usize) -> PageSize {
        let size = self.size_of_each(queues, at_most);
        let request = UnderWay { pages: queues, size };
        assert!(self.under_way.replace(request).is_none(), "two requests for pages at once");
        size
    }

    /// Where memory is short the room is left to whoever else comes.
    fn size_of_each(&self, queues: usize, at_most: usize) -> PageSize {
        let is_short = at_most < self.page_size.at_once;
        let share = if is_short { 1 } else { at_most / queues };
        self.page_size.times(share.min(self.page_size.at_once / PART_OF_ONE).max(1))
    }

    /// The pages have come. Returns what was reserved for them, and what one of them takes in memory at most, but one
    /// event.
    pub(super) fn end(&mut self) -> (usize, usize) {
        let size = self.under_way.map_or(self.page_size, |request| request.size);
        (self.under_way.take().map_or(0, UnderWay::reserved), size.bytes)
    }

    /// What the request under way may bring.
    pub(super) fn reserved(&self) -> usize {
        self.under_way.map_or(0, UnderWay::reserved)
    }

    /// How many heads each queue of a request may know, where all of them know so many.
    pub(super) fn heads(&self, known: usize) -> usize {
        if known < self.heads_max { HEADS_MAX } else { HEADS_MIN }
    }
}

#[cfg(test)]
mod tests;
