//! How much one state transaction takes: less where they take long, for all outcomes wait for it, whoever they are of.
//!
//! Rows and dead letters are counted, and so are their bytes: ten letters of a megabyte take longer than a thousand
//! small ones.

use std::time::Duration;

use walhook_core::position::EventId;

/// Rows inserted in one state transaction at most, and at least where it has been slow: sending stops
/// while one takes longer than [`PERSIST_SLOW`](super::PERSIST_SLOW).
const ROWS_MAX: usize = 5_000;
const ROWS_MIN: usize = 100;

/// Dead letters in one state transaction: bounds its size and its time.
const LETTERS_MAX: usize = 1_000;

/// Bytes of events in one state transaction, but one event at least.
pub(super) const ROWS_BYTES: usize = 8 << 20;

/// The same where it has been slow.
const BYTES_MIN: usize = 256 << 10;

/// A state transaction that takes longer makes the next one smaller.
const SLOW: Duration = Duration::from_millis(300);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BatchSize {
    rows: usize,
    bytes: usize,
}

/// What a batch has taken so far.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Taken {
    rows: usize,
    letters: usize,
    bytes: usize,
    /// The event of the last letter, whose body is stored once.
    last: Option<EventId>,
}

impl BatchSize {
    /// As if all had been fast.
    pub(super) fn new() -> Self {
        Self { rows: ROWS_MAX, bytes: ROWS_BYTES }
    }

    /// Rows at most.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of events at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Dead letters at most.
    pub(super) fn letters(&self) -> usize {
        self.rows.min(LETTERS_MAX)
    }

    /// Takes a row of so many bytes into the batch, where it has room. `beside`: half of the bytes are for letters,
    /// which wait as well.
    pub(super) fn take_row(&self, taken: &mut Taken, bytes: usize, beside: bool) -> bool {
        let most = if beside { self.bytes / 2 } else { self.bytes };
        let fits = taken.rows == 0 || taken.bytes + bytes <= most;
        if taken.rows >= self.rows || !fits {
            return false;
        }
        taken.rows += 1;
        taken.bytes += bytes;
        true
    }

    /// The same of a dead letter of this event; its body of so many bytes counts once where the letter before was of it.
    pub(super) fn take_letter(&self, taken: &mut Taken, event: EventId, body: usize) -> bool {
        let bytes = if taken.last == Some(event) { 0 } else { body };
        let fits = taken.letters == 0 || taken.bytes + bytes <= self.bytes;
        if taken.letters >= self.letters() || !fits {
            return false;
        }
        taken.letters += 1;
        taken.bytes += bytes;
        taken.last = Some(event);
        true
    }

    /// A batch that took this much is stored, and removed `purged` rows beside. Batches become smaller when they take
    /// long, and grow again.
    pub(super) fn adapt(&mut self, took: Duration, taken: Taken, purged: usize) {
        let rows = taken.rows.saturating_add(taken.letters).saturating_add(purged);
        if rows == 0 {
            return;
        }
        if took > SLOW {
            self.rows = (rows / 2).clamp(ROWS_MIN, ROWS_MAX);
            self.bytes = (taken.bytes / 2).clamp(BYTES_MIN, ROWS_BYTES);
            return;
        }
        if rows >= self.rows {
            self.rows = (self.rows * 2).min(ROWS_MAX);
        }
        // Where not half of it is taken, the next event is larger than the rest, and comes first in the next batch.
        if taken.bytes >= self.bytes / 2 {
            self.bytes = (self.bytes * 2).min(ROWS_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::position::Position;

    const MIB: usize = 1 << 20;

    fn event(n: i64) -> EventId {
        EventId::derive(1, &Position::FIRST, "t", n * 1_000)
    }

    /// So many letters of so many bytes each fit into one batch.
    fn letters(size: &BatchSize, body: usize) -> (usize, Taken) {
        let mut taken = Taken::default();
        let fit = (0..).take_while(|n| size.take_letter(&mut taken, event(*n), body)).count();
        (fit, taken)
    }

    #[test]
    fn batch_takes_as_many_letters_as_their_number_and_their_bytes_allow() {
        let size = BatchSize::new();
        assert_eq!(letters(&size, 100).0, 1_000);
        assert_eq!(letters(&size, MIB).0, 8);
        assert_eq!(letters(&size, 100 * MIB).0, 1, "one in any case");
        let mut taken = Taken::default();
        let of_one = (0..).take_while(|_| size.take_letter(&mut taken, event(0), MIB)).count();
        assert_eq!(of_one, 1_000, "the body of an event is stored once for all its letters");
    }

    #[test]
    fn rows_leave_half_of_the_bytes_to_letters_that_wait() {
        let size = BatchSize::new();
        for (beside, rows) in [(false, 8), (true, 4)] {
            let mut taken = Taken::default();
            let fit = (0..).take_while(|_| size.take_row(&mut taken, MIB, beside)).count();
            assert_eq!(fit, rows);
            let fit = (0..).take_while(|n| size.take_letter(&mut taken, event(*n), MIB)).count();
            assert_eq!(fit, (8 - rows).max(1), "one letter in any case");
        }
    }

    #[test]
    fn batch_that_took_long_makes_the_next_one_smaller_in_letters_and_in_bytes_until_one_is_fast() {
        let mut size = BatchSize::new();
        let mut sizes = Vec::new();
        for _ in 0..6 {
            let (fit, taken) = letters(&size, MIB);
            sizes.push(fit);
            size.adapt(SLOW * 2, taken, 0);
        }
        assert_eq!(sizes, [8, 4, 2, 1, 1, 1]);
        assert_eq!((size.bytes(), size.letters()), (MIB / 2, ROWS_MIN));
        for _ in 0..6 {
            let (_, taken) = letters(&size, MIB);
            size.adapt(SLOW / 2, taken, 0);
        }
        assert_eq!(
            size.bytes(),
            ROWS_BYTES,
            "grown again, though each batch had room for more bytes"
        );
        for _ in 0..6 {
            let (_, taken) = letters(&size, 0);
            size.adapt(SLOW / 2, taken, 0);
        }
        assert_eq!(size.letters(), LETTERS_MAX);
    }

    #[test]
    fn batch_without_rows_says_nothing_of_how_many_are_too_many() {
        let mut size = BatchSize::new();
        size.adapt(SLOW * 2, Taken::default(), 0);
        assert_eq!((size.rows(), size.bytes()), (ROWS_MAX, ROWS_BYTES));
        size.adapt(SLOW * 2, Taken::default(), 400);
        assert_eq!(size.rows(), 200);
    }
}
