//! Which ordering keys the queues' rows in the table may hold, so that what has none of them need not stand
//! behind these rows.
//!
//! Two Bloom filters for all queues together (B. H. Bloom, "Space/time trade-offs in hash coding with allowable
//! errors", 1970): keys are added to the newer one, and when that is full the older one is emptied and takes its
//! place. So the room is bounded, however many rows there are.
//!
//! # Invariants
//!
//! - A key that was added is found, for as long as [`DeferredKeys::knows`] its filter. What is found need not
//!   have been added: of a full filter, one key in a hundred.
//! - Nothing is ever taken out. So a queue's keys are those of all rows that it had since it had none.

use super::queues::QueueNo;
use crate::map::spread;
use walhook_core::event::RowKeys;

/// Bits for each key of a full filter: with four of them set for a key, one in a hundred is found wrongly.
const BITS_A_KEY: u64 = 10;

/// Bits set for a key.
const PROBES: u64 = 4;

/// What a filter takes at most: 3.3 million keys.
const BYTES_MAX: usize = 4 << 20;

/// A filter, by how many there were before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FilterNo(u64);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct DeferredKeys {
    newer: Filter,
    older: Filter,
    /// The newer one's.
    number: FilterNo,
}

impl DeferredKeys {
    /// None, in a sixty-fourth of the memory, and in 8 MiB at most. It is not counted: it is the system's until keys
    /// are written there.
    pub(super) fn new(memory_limit: usize) -> Self {
        let words = ((memory_limit / 128).min(BYTES_MAX) / size_of::<u64>()).max(1);
        Self { newer: Filter::new(words), older: Filter::new(words), number: FilterNo(0) }
    }

    /// The queue has a row with these keys. Returns the filter that knows them now.
    pub(super) fn add(&mut self, queue: QueueNo, keys: &RowKeys) -> FilterNo {
        if self.newer.is_full() {
            std::mem::swap(&mut self.newer, &mut self.older);
            self.newer.clear();
            self.number.0 += 1;
        }
        for key in keys {
            self.newer.add(mixed(queue, *key));
        }
        self.number
    }

    /// Whether all keys that were added since then can be found.
    pub(super) fn knows(&self, since: FilterNo) -> bool {
        since.0 + 1 >= self.number.0
    }

    /// Whether a row of the queue may have one of the keys.
    pub(super) fn may_hold(&self, queue: QueueNo, keys: &RowKeys) -> bool {
        keys.iter().any(|key| {
            let mixed = mixed(queue, *key);
            self.newer.may_hold(mixed) || self.older.may_hold(mixed)
        })
    }
}

fn mixed(queue: QueueNo, key: u64) -> u64 {
    spread(key ^ spread(queue.as_number()))
}

#[derive(Debug)]
struct Filter {
    words: Vec<u64>,
    keys: u64,
}

impl Filter {
    fn new(words: usize) -> Self {
        // Zeroed by the system, page by page, as they are written to.
        Self { words: vec![0; words], keys: 0 }
    }

    fn bits(&self) -> u64 {
        self.words.len() as u64 * u64::from(u64::BITS)
    }

    fn is_full(&self) -> bool {
        self.keys >= self.bits() / BITS_A_KEY
    }

    fn clear(&mut self) {
        *self = Self::new(self.words.len());
    }

    /// Where the bits of a key are: two halves of a hash are as good as many hashes (Kirsch and Mitzenmacher,
    /// "Less hashing, same performance", 2006).
    fn places(&self, mixed: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (first, step) = (mixed >> 32, mixed & u64::from(u32::MAX) | 1);
        let bits = self.bits();
        (0..PROBES).map(move |n| {
            let bit = first.wrapping_add(n.wrapping_mul(step)) % bits;
            let word = usize::try_from(bit / u64::from(u64::BITS)).unwrap_or(usize::MAX);
            (word, 1 << (bit % u64::from(u64::BITS)))
        })
    }

    fn add(&mut self, mixed: u64) {
        for (word, bit) in self.places(mixed) {
            if let Some(word) = self.words.get_mut(word) {
                *word |= bit;
            }
        }
        self.keys += 1;
    }

    fn may_hold(&self, mixed: u64) -> bool {
        self.keys > 0
            && self
                .places(mixed)
                .all(|(word, bit)| self.words.get(word).is_some_and(|word| word & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::queues::Queues;
    use super::*;
    use proptest::prelude::*;
    use walhook_core::event::{AccountId, EndpointId};

    const LIMIT: usize = 64 << 10;

    fn queues(n: usize) -> Vec<QueueNo> {
        let mut queues = Queues::new(1);
        let name = |n: usize| (AccountId::new(n.to_string()), EndpointId::new("e"));
        let numbers = (0..n).map(name);
        numbers.map(|(account, endpoint)| queues.intern(&account, &endpoint)).collect()
    }

    proptest! {
        /// The model: all keys, each with the filter that it was added to.
        #[test]
        fn keys_that_were_added_are_found_as_long_as_their_filter_is_known(
            added in proptest::collection::vec((0..5_usize, any::<u64>()), 1..3_000),
        ) {
            let queues = queues(5);
            let mut keys = DeferredKeys::new(LIMIT);
            let mut model = Vec::new();
            for (queue, key) in added {
                let row = RowKeys::from_slice(&[key]);
                model.push((keys.add(queues[queue], &row), queue, row));
            }
            for (since, queue, row) in &model {
                prop_assert!(!keys.knows(*since) || keys.may_hold(queues[*queue], row));
            }
            prop_assert!(keys.knows(keys.number));
        }
    }

    #[test]
    fn few_keys_that_were_not_added_are_found_however_many_were() {
        let queues = queues(2);
        let mut keys = DeferredKeys::new(LIMIT);
        for key in 0..100_000 {
            keys.add(queues[0], &RowKeys::from_slice(&[key]));
        }
        let found = |queue: usize, from: u64| {
            let tried = (from..from + 10_000).map(|key| RowKeys::from_slice(&[key]));
            tried.filter(|row| keys.may_hold(queues[queue], row)).count()
        };
        // Of two full filters, one in fifty.
        let (others, unknown) = (found(1, 90_000), found(0, 1_000_000));
        assert!(others < 400 && unknown < 400, "{others} and {unknown} of 10,000");
        assert!(!keys.knows(FilterNo(0)), "those are forgotten");
        assert!(
            !keys.may_hold(queues[0], &RowKeys::new()),
            "what has no key stands behind nothing"
        );
    }
}
