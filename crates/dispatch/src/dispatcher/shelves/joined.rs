//! Which endpoints joined while events could not be routed.
//!
//! An endpoint that an event's account did not have when the event was committed gets nothing of it. Nobody
//! knows what the account had then; but the stream shows each change of the endpoint table, in commit order.
//! Of an endpoint whose row was inserted, or is seen to have come from another account, to have been switched
//! on, or to want more, it is known where it joined. What the WAL does not tell is no reason to keep an event
//! from an endpoint: one whose row was updated was there before. So may one have been whose row the same transaction
//! has removed before, by its id or with all others: a table that is emptied and filled again has no new endpoints.
//!
//! While there are rows without an endpoint, this is stored with them. So many endpoints are remembered; those
//! beyond get the events from before as well.

use std::collections::{BTreeMap, BTreeSet};

use walhook_core::event::{EndpointId, Invalidation, Scope};
use walhook_core::heap::map_entry;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Joined, PersistBatch};

/// Endpoints that are remembered.
const JOINED_MAX: usize = 16_384;

/// Transactions of which it is remembered what they changed: few are read by turns.
const CHANGED_MAX: usize = 8;

/// What an endpoint takes that has joined, and one that a transaction has changed.
const JOINED_BYTES: usize = map_entry(size_of::<(EndpointId, Lsn)>()) + 64;
const CHANGED_BYTES: usize = map_entry(size_of::<EndpointId>()) + 64;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Joiners {
    at: BTreeMap<EndpointId, Lsn>,
    /// The transactions that changed endpoints last, by their commit LSNs.
    changed: Vec<(Lsn, Changed)>,
    /// Those that the table does not tell of, or not rightly.
    unstored: Vec<EndpointId>,
    /// The table tells of some.
    is_stored: bool,
}

/// Which endpoints a transaction has changed so far, whose rows were so there before.
#[derive(Debug, Default)]
struct Changed {
    /// Perhaps any.
    any: bool,
    endpoints: BTreeSet<EndpointId>,
}

impl Changed {
    fn may_have(&self, endpoint: &EndpointId) -> bool {
        self.any || self.endpoints.contains(endpoint)
    }

    fn add(&mut self, endpoint: &EndpointId) {
        self.any |= self.endpoints.len() >= JOINED_MAX;
        if self.any {
            self.endpoints.clear();
        } else {
            self.endpoints.insert(endpoint.clone());
        }
    }
}

impl Joiners {
    /// A transaction that commits there changes endpoints. Those that have joined with it are remembered where events
    /// wait that might be kept from them.
    pub(super) fn see(&mut self, invalidation: &Invalidation, at: Lsn, waits: bool) {
        let Invalidation { scope, joined, .. } = invalidation;
        if !self.changed.iter().any(|(of, _)| *of == at) {
            if self.changed.len() == CHANGED_MAX {
                self.changed.remove(0);
            }
            self.changed.push((at, Changed::default()));
        }
        let Some((_, changed)) = self.changed.iter_mut().find(|(of, _)| *of == at) else { return };
        let new: Vec<&EndpointId> =
            joined.iter().filter(|endpoint| !changed.may_have(endpoint)).collect();
        match scope {
            Scope::All => changed.any = true,
            Scope::Endpoint { endpoints, .. } => {
                let before = endpoints.iter().filter(|endpoint| !joined.contains(endpoint));
                before.for_each(|endpoint| changed.add(endpoint));
            }
        }
        for endpoint in new.into_iter().filter(|_| waits) {
            self.note(endpoint, at);
        }
    }

    pub(super) fn recover(&mut self, joined: Vec<Joined>) {
        self.is_stored = !joined.is_empty();
        self.at = joined.into_iter().map(|joined| (joined.endpoint, joined.at)).collect();
    }

    /// The endpoint joined with the transaction that commits there.
    fn note(&mut self, endpoint: &EndpointId, at: Lsn) {
        if self.at.len() < JOINED_MAX || self.at.contains_key(endpoint) {
            let before = self.at.insert(endpoint.clone(), at);
            if before != Some(at) {
                self.unstored.push(endpoint.clone());
            }
        }
    }

    /// Whether an event that commits there was committed before the endpoint joined.
    pub(super) fn keeps_out(&self, endpoint: &EndpointId, commit_lsn: Lsn) -> bool {
        self.at.get(endpoint).is_some_and(|at| commit_lsn < *at)
    }

    /// `is_needed`: there are rows without an endpoint. `may_forget`: nor does anything wait in memory.
    pub(super) fn hand_out(&mut self, batch: &mut PersistBatch, is_needed: bool, may_forget: bool) {
        if is_needed {
            let unstored = std::mem::take(&mut self.unstored);
            let joined = |endpoint: EndpointId| {
                let at = *self.at.get(&endpoint)?;
                Some(Joined { endpoint, at })
            };
            batch.joined = unstored.into_iter().filter_map(joined).collect();
            self.is_stored |= !batch.joined.is_empty();
        } else if may_forget {
            self.at.clear();
            self.unstored.clear();
            batch.joined_passed = std::mem::take(&mut self.is_stored);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let changed = self.changed.iter().map(|(_, changed)| changed.endpoints.len());
        self.at.len() * JOINED_BYTES + changed.sum::<usize>() * CHANGED_BYTES
    }
}

#[cfg(test)]
mod tests;
