//! Whose the endpoints are that stand in known routes.

use std::collections::HashMap;

use smallvec::SmallVec;

use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::heap::map_entry;

/// The accounts of every endpoint in known routes. May name more than that, never less.
///
/// An endpoint has one account; but an account may come in several texts that its column's type takes for
/// one (`abc` and `ABC` of a case-insensitive collation), and the routes of each show the endpoint.
#[derive(Debug, Default)]
pub(super) struct Owners {
    of: HashMap<EndpointId, Owned>,
    invalid: usize,
}

#[derive(Debug, Default)]
struct Owned {
    accounts: SmallVec<[AccountId; 1]>,
    /// The endpoint is enabled and cannot be used.
    invalid: bool,
}

impl Owners {
    /// What this takes in memory; ids are shared with the endpoints.
    pub(super) fn bytes(&self) -> usize {
        self.of.len() * map_entry(size_of::<EndpointId>() + size_of::<Owned>())
    }

    /// The endpoint's accounts.
    pub(super) fn of(&self, endpoint: &EndpointId) -> &[AccountId] {
        self.of.get(endpoint).map_or(&[], |owned| &owned.accounts)
    }

    /// How many of the endpoints are enabled and cannot be used.
    pub(super) fn invalid(&self) -> usize {
        self.invalid
    }

    /// The account's routes show the endpoint. Returns the other accounts that it has, when this one is
    /// new to it.
    pub(super) fn add(
        &mut self,
        endpoint: &Endpoint,
        account: &AccountId,
    ) -> SmallVec<[AccountId; 1]> {
        let owned = self.of.entry(endpoint.id.clone()).or_default();
        let invalid = endpoint.enabled && endpoint.invalid.is_some();
        self.invalid += usize::from(invalid);
        self.invalid -= usize::from(std::mem::replace(&mut owned.invalid, invalid));
        if owned.accounts.contains(account) {
            return SmallVec::new();
        }
        let others = owned.accounts.clone();
        owned.accounts.push(account.clone());
        others
    }

    /// The account's routes show the endpoint no longer.
    pub(super) fn remove(&mut self, endpoint: &EndpointId, account: &AccountId) {
        let Some(owned) = self.of.get_mut(endpoint) else { return };
        owned.accounts.retain(|owner| owner != account);
        if owned.accounts.is_empty() {
            self.invalid -= usize::from(owned.invalid);
            self.of.remove(endpoint);
        }
    }
}
