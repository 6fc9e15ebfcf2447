//! A page's filter: which events, accounts, endpoints and types it surely does not hold.
//!
//! A Bloom filter: each of them sets [`HASHES`] bits of it, and SQL looks at those of what is asked for. Of what is not
//! there one in a hundred seems to be. How the bits are chosen is contract with stored pages.

use std::collections::HashSet;

use walhook_core::delivery_log::Entry;
use walhook_core::position::EventId;

/// Bits that each sets.
pub(super) const HASHES: usize = 6;

/// Bits of the filter for each.
const BITS: usize = 10;

/// Something that lines are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    Event(EventId),
    Account(&'a str),
    Endpoint(&'a str),
    EventType(&'a str),
}

impl Key<'_> {
    /// Where its bits are: each number, of 0 and above, modulo the filter's bits.
    pub(super) fn hashes(&self) -> [i64; HASHES] {
        let (kind, id);
        let bytes = match self {
            Self::Event(event) => {
                (kind, id) = (1, event.bits().to_be_bytes());
                &id[..]
            }
            Self::Account(text) => {
                kind = 2;
                text.as_bytes()
            }
            Self::Endpoint(text) => {
                kind = 3;
                text.as_bytes()
            }
            Self::EventType(text) => {
                kind = 4;
                text.as_bytes()
            }
        };
        let first = fnv(kind, bytes);
        let step = mixed(first) | 1;
        let mut at = mixed(step);
        let mut hashes = [0; HASHES];
        for hash in &mut hashes {
            at = at.wrapping_add(step);
            *hash = (mixed(at) >> 1).cast_signed();
        }
        hashes
    }
}

/// FNV-1a, of 64 bits.
fn fnv(kind: u8, bytes: &[u8]) -> u64 {
    let begin = 0xcbf2_9ce4_8422_2325_u64;
    std::iter::once(&kind)
        .chain(bytes)
        .fold(begin, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of SplitMix64: each bit of the number changes half of the result's.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// The filter of these lines.
pub(super) fn filter(entries: &[Entry]) -> Vec<u8> {
    // Of a few thousand lines nearly each has an event of its own, and few have another account, endpoint or type.
    let mut events: Vec<EventId> = entries.iter().map(|entry| entry.event).collect();
    events.sort_unstable();
    events.dedup();
    let mut names = HashSet::new();
    for entry in entries {
        names.insert(Key::Account(&entry.account));
        names.insert(Key::Endpoint(&entry.endpoint));
        names.insert(Key::EventType(&entry.event_type));
    }
    let keys = events.len() + names.len();
    let mut filter = vec![0u8; (keys * BITS).div_ceil(8).max(8)];
    let bits = i64::try_from(filter.len() * 8).unwrap_or(i64::MAX);
    for hash in events.into_iter().map(Key::Event).chain(names).flat_map(|key| key.hashes()) {
        let bit = hash % bits;
        if let Some(byte) = usize::try_from(bit / 8).ok().and_then(|byte| filter.get_mut(byte)) {
            // As `get_bit` counts.
            *byte |= 1 << (bit % 8);
        }
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the filter may hold it, as the SQL says.
    fn may_hold(filter: &[u8], key: Key<'_>) -> bool {
        let bits = i64::try_from(filter.len() * 8).unwrap();
        key.hashes().into_iter().all(|hash| {
            let bit = hash % bits;
            filter[usize::try_from(bit / 8).unwrap()] & (1 << (bit % 8)) != 0
        })
    }

    #[test]
    fn filter_finds_all_that_is_there_and_little_else() {
        let names: Vec<String> = (0..3_000).map(|n| n.to_string()).collect();
        let entries: Vec<Entry> =
            names.iter().map(|name| super::super::tests::entry(name, "9")).collect();
        let filter = filter(&entries);
        assert!(entries.iter().all(|entry| may_hold(&filter, Key::Event(entry.event))));
        assert!(entries.iter().all(|entry| may_hold(&filter, Key::Account(&entry.account))));
        assert!(may_hold(&filter, Key::Endpoint("9")));
        let others = (0..10_000).map(|n| format!("x{n}"));
        let wrong = others.filter(|other| may_hold(&filter, Key::Account(other))).count();
        assert!(wrong < 200, "{wrong} of 10,000 that are not there seem to be");
    }

    #[test]
    fn bits_of_a_key_are_the_same_in_every_version() {
        let hashes = Key::Account("42").hashes();
        assert!(hashes.iter().all(|hash| *hash >= 0));
        assert_ne!(hashes, Key::Endpoint("42").hashes());
        assert_eq!(hashes.map(|hash| hash % 1_000), PINNED);
    }

    const PINNED: [i64; HASHES] = [585, 214, 275, 545, 248, 787];
}
