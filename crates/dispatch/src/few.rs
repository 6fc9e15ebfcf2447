//! Ordered maps and sets that hold little most of the time: most queues have one delivery, or none.
//!
//! Up to eight entries stand in a sorted list, the first in the map itself; more are in a B-tree, until none is
//! left. So an empty one holds no memory beside itself, and one that goes between none and one allocates nothing.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Bound, RangeBounds};
use std::slice;

use smallvec::SmallVec;

/// Entries that a list is looked through for.
const FEW: usize = 8;

/// A map, ordered by its keys.
#[derive(Debug)]
pub struct FewMap<K: Ord + Copy, V>(Entries<K, V>);

/// A set, ordered.
pub type FewSet<K> = FewMap<K, ()>;

#[derive(Debug)]
enum Entries<K, V> {
    /// Sorted.
    Few(SmallVec<[(K, V); 1]>),
    Many(BTreeMap<K, V>),
}

impl<K: Ord + Copy, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self(Entries::Few(SmallVec::new()))
    }
}

impl<K: Ord + Copy, V> FewMap<K, V> {
    /// Adds an entry, and returns what the key had before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let list = match &mut self.0 {
            Entries::Many(tree) => return tree.insert(key, value),
            Entries::Few(list) => list,
        };
        match position(list, key) {
            Ok(at) => list.get_mut(at).map(|(_, before)| std::mem::replace(before, value)),
            Err(at) if list.len() < FEW => {
                list.insert(at, (key, value));
                None
            }
            Err(_) => {
                let mut tree: BTreeMap<K, V> = list.drain(..).collect();
                tree.insert(key, value);
                self.0 = Entries::Many(tree);
                None
            }
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let (value, is_left) = match &mut self.0 {
            Entries::Few(list) => {
                let at = position(list, key).ok()?;
                let (_, value) = list.remove(at);
                (value, !list.is_empty() || !list.spilled())
            }
            Entries::Many(tree) => (tree.remove(&key)?, !tree.is_empty()),
        };
        if !is_left {
            *self = Self::default();
        }
        Some(value)
    }

    /// What the key has.
    #[must_use]
    pub fn get(&self, key: K) -> Option<&V> {
        match &self.0 {
            Entries::Few(list) => list.get(position(list, key).ok()?).map(|(_, value)| value),
            Entries::Many(tree) => tree.get(&key),
        }
    }

    /// As [`FewMap::get`], to be changed.
    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        match &mut self.0 {
            Entries::Few(list) => {
                let at = position(list, key).ok()?;
                list.get_mut(at).map(|(_, value)| value)
            }
            Entries::Many(tree) => tree.get_mut(&key),
        }
    }

    /// The least key.
    #[must_use]
    pub fn first(&self) -> Option<K> {
        match &self.0 {
            Entries::Few(list) => list.first().map(|(key, _)| *key),
            Entries::Many(tree) => tree.first_key_value().map(|(key, _)| *key),
        }
    }

    /// The greatest key.
    #[must_use]
    pub fn last(&self) -> Option<K> {
        match &self.0 {
            Entries::Few(list) => list.last().map(|(key, _)| *key),
            Entries::Many(tree) => tree.last_key_value().map(|(key, _)| *key),
        }
    }

    /// The least key that is not below this one.
    #[must_use]
    pub fn first_from(&self, key: K) -> Option<K> {
        match &self.0 {
            Entries::Few(list) => list.iter().map(|(other, _)| *other).find(|other| *other >= key),
            Entries::Many(tree) => tree.range(key..).next().map(|(other, _)| *other),
        }
    }

    /// The entries whose keys are in the range, in their order.
    pub fn range(&self, range: impl RangeBounds<K>) -> Range<'_, K, V> {
        let list = match &self.0 {
            Entries::Many(tree) => return Range::Many(tree.range(range)),
            Entries::Few(list) => list,
        };
        let from = match range.start_bound() {
            Bound::Unbounded => 0,
            Bound::Included(start) => list.partition_point(|(key, _)| key < start),
            Bound::Excluded(start) => list.partition_point(|(key, _)| key <= start),
        };
        let to = match range.end_bound() {
            Bound::Unbounded => list.len(),
            Bound::Included(end) => list.partition_point(|(key, _)| key <= end),
            Bound::Excluded(end) => list.partition_point(|(key, _)| key < end),
        };
        Range::Few(list.get(from..to).unwrap_or_default().iter())
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.range(..).map(|(_, value)| value)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Entries::Few(list) => list.len(),
            Entries::Many(tree) => tree.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn position<K: Ord + Copy, V>(list: &[(K, V)], key: K) -> Result<usize, usize> {
    list.binary_search_by(|(other, _)| other.cmp(&key))
}

/// See [`FewMap::range`].
#[derive(Debug)]
pub enum Range<'a, K, V> {
    /// Of a list.
    Few(slice::Iter<'a, (K, V)>),
    /// Of a tree.
    Many(btree_map::Range<'a, K, V>),
}

impl<'a, K: Copy, V> Iterator for Range<'a, K, V> {
    type Item = (K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(list) => list.next().map(|(key, value)| (*key, value)),
            Self::Many(tree) => tree.next().map(|(key, value)| (*key, value)),
        }
    }
}

impl<K: Copy, V> DoubleEndedIterator for Range<'_, K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Few(list) => list.next_back().map(|(key, value)| (*key, value)),
            Self::Many(tree) => tree.next_back().map(|(key, value)| (*key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model: the standard library's map.
        #[test]
        fn few_map_is_an_ordered_map_whatever_it_holds(
            actions in proptest::collection::vec((0u8..20, any::<bool>(), 0u8..20, 0u8..20), 1..200),
        ) {
            let (mut few, mut model) = (FewMap::default(), BTreeMap::new());
            for (n, (key, insert, from, to)) in actions.into_iter().enumerate() {
                if insert {
                    prop_assert_eq!(few.insert(key, n), model.insert(key, n));
                } else {
                    prop_assert_eq!(few.remove(key), model.remove(&key));
                }
                if let Some(value) = few.get_mut(from) {
                    *value += 1;
                }
                model.entry(from).and_modify(|value| *value += 1);
                prop_assert_eq!(few.get(to), model.get(&to));
                prop_assert_eq!(few.first(), model.keys().next().copied());
                prop_assert_eq!(few.last(), model.keys().last().copied());
                let not_below = model.range(from..).next().map(|(key, _)| *key);
                prop_assert_eq!(few.first_from(from), not_below);
                prop_assert_eq!((few.len(), few.is_empty()), (model.len(), model.is_empty()));
                prop_assert!(few.values().eq(model.values()));
                let to = to.max(from);
                let pairs = |key: &u8, value: &usize| (*key, *value);
                let forward = few.range(from..=to).map(|(key, value)| (key, *value));
                prop_assert!(forward.eq(model.range(from..=to).map(|(k, v)| pairs(k, v))));
                let back = few.range(..to).rev().map(|(key, value)| (key, *value));
                prop_assert!(back.eq(model.range(..to).rev().map(|(k, v)| pairs(k, v))));
                prop_assert_eq!(few.range((Bound::Excluded(from), Bound::Unbounded)).count(),
                    model.range((Bound::Excluded(from), Bound::Unbounded)).count());
            }
        }
    }
}
