//! A host's idle connections that requests do not share, by who may have them.
//!
//! ```text
//! given back ─► the account that used it last has it at once
//!           └─► rested ─► anyone has it
//! ```

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;
use walhook_core::event::AccountId;

/// When a connection has rested, and its number among those that were given back, for those that have at one moment.
type Rested = (Instant, u64);

/// Whose an idle connection is.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    /// Whose request was the last on it; none: it had none.
    last: Option<AccountId>,
    rested: Rested,
}

/// See the module's documentation. A slot says where a connection is kept.
///
/// Invariant: each slot stands in `slots` once, and once in `of` if its connection had a request.
#[derive(Debug, Default)]
pub(super) struct Own {
    slots: BTreeMap<Rested, u32>,
    /// In the order in which they were given back.
    of: HashMap<AccountId, Vec<u32>>,
    /// How many were given back so far.
    given: u64,
}

impl Own {
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// One that is given back, and rests until then before another account has it.
    pub(super) fn give(&mut self, last: Option<AccountId>, until: Instant) -> Owned {
        self.given += 1;
        Owned { last, rested: (until, self.given) }
    }

    /// It is kept in this slot.
    pub(super) fn insert(&mut self, owned: Owned, slot: u32) {
        self.slots.insert(owned.rested, slot);
        if let Some(last) = owned.last {
            self.of.entry(last).or_default().push(slot);
        }
    }

    /// The one that the account used last, or else that which has rested last.
    pub(super) fn find(&self, account: &AccountId, now: Instant) -> Option<u32> {
        let used = self.of.get(account).and_then(|slots| slots.last());
        let rested = || self.slots.range(..=(now, u64::MAX)).next_back().map(|(_, slot)| slot);
        used.or_else(rested).copied()
    }

    /// It is no longer kept in this slot.
    pub(super) fn remove(&mut self, owned: &Owned, slot: u32) {
        self.slots.remove(&owned.rested);
        let Some(last) = &owned.last else { return };
        let Some(slots) = self.of.get_mut(last) else { return };
        // Mostly the last one.
        if let Some(at) = slots.iter().rposition(|other| *other == slot) {
            slots.remove(at);
        }
        if slots.is_empty() {
            self.of.remove(last);
        }
    }
}
