//! What a row's events are ordered by.

use std::hash::Hasher;

use super::bind::Binding;
use crate::row::{Cell, RowView};
use walhook_core::event::{Operation, RowKeys};

/// What the row is ordered by. Empty where the primary key is not wholly known: such an event is
/// ordered by its account, which is stricter.
///
/// An old key that the WAL does not carry (a changed primary key that is not the replica identity)
/// is left out.
pub(super) fn keys(binding: &Binding, view: &RowView<'_>) -> RowKeys {
    if binding.primary_key.is_empty() {
        return RowKeys::new();
    }
    let Some(current) = key_hash(binding, |column| view.current(column)) else {
        return RowKeys::new();
    };
    let old = match view.operation() {
        Operation::Update => key_hash(binding, |column| view.before(column)),
        Operation::Insert | Operation::Delete | Operation::Truncate | Operation::Message => None,
    };
    old.filter(|old| *old != current).into_iter().chain([current]).collect()
}

/// Shape: FNV-1a, 64 bits, over the root table's OID (4 bytes, big-endian), then for each column of
/// the primary key, in the key's order, the length of its text (8 bytes, big-endian) and the text.
/// Invariant: never changes, because it is stored with deferred events.
///
/// Source: Fowler, Noll, Vo: <http://www.isthe.com/chongo/tech/comp/fnv/>.
fn key_hash<'a>(binding: &Binding, cell: impl Fn(usize) -> Cell<'a>) -> Option<u64> {
    let mut hash = Fnv1a::default();
    hash.write(&binding.root.to_be_bytes());
    for column in &binding.primary_key {
        let text = cell(*column).text()?;
        hash.write(&u64::try_from(text.len()).ok()?.to_be_bytes());
        hash.write(text.as_bytes());
    }
    Some(hash.finish())
}

struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv1a {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
