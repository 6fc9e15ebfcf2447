//! Whose the endpoints are that stand in known routes.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use walhook_core::endpoint::Endpoint;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::heap::tree_entry;

/// What an endpoint takes; its id is shared with the endpoint.
const OWNED_BYTES: usize = tree_entry(size_of::<EndpointId>() + size_of::<Owned>());

/// The accounts of every endpoint in known routes.
///
/// Invariant: an endpoint has exactly the accounts that it was added to and not removed from. `invalid`
/// counts the endpoints that have one and were enabled and unusable when they were added last.
///
/// An endpoint has one account; but an account may come in several texts that its column's type takes for
/// one (`abc` and `ABC` of a case-insensitive collation), and the routes of each show the endpoint.
#[derive(Debug, Default)]
pub(super) struct Owners {
    of: BTreeMap<EndpointId, Owned>,
    invalid: usize,
}

#[derive(Debug, Default)]
struct Owned {
    accounts: SmallVec<[AccountId; 1]>,
    /// The endpoint is enabled and cannot be used.
    invalid: bool,
}

impl Owners {
    /// What this takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.of.len() * OWNED_BYTES
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

    /// The account's routes, which showed the endpoint, show it no longer.
    pub(super) fn remove(&mut self, endpoint: &EndpointId, account: &AccountId) {
        let Some(owned) = self.of.get_mut(endpoint) else {
            panic!("an endpoint that stands in known routes has its account")
        };
        owned.accounts.retain(|owner| owner != account);
        if owned.accounts.is_empty() {
            self.invalid -= usize::from(owned.invalid);
            self.of.remove(endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    impl Owners {
        /// Each endpoint with each of its accounts.
        pub(in crate::route) fn pairs(&self) -> BTreeSet<(EndpointId, AccountId)> {
            let pairs = |(endpoint, owned): (&EndpointId, &Owned)| {
                let of = |account: &AccountId| (endpoint.clone(), account.clone());
                owned.accounts.iter().map(of).collect::<Vec<_>>()
            };
            self.of.iter().flat_map(pairs).collect()
        }
    }

    fn endpoint(n: u8, enabled: bool, invalid: bool) -> Endpoint {
        let invalid = invalid.then(|| "null".to_owned());
        Endpoint { enabled, invalid, ..crate::fixture::endpoint(&n.to_string(), "1") }
    }

    proptest! {
        #[test]
        fn owners_are_the_accounts_that_show_the_endpoint(
            actions in proptest::collection::vec(
                (any::<bool>(), 0u8..4, 0u8..3, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut owners = Owners::default();
            let mut model: BTreeSet<(u8, u8)> = BTreeSet::new();
            let mut unusable = [false; 4];
            for (add, n, of, enabled, invalid) in actions {
                let account = AccountId::new(of.to_string());
                let endpoint = endpoint(n, enabled, invalid);
                if add {
                    let is_new = !model.contains(&(n, of));
                    let others = model.iter().filter(|(m, _)| *m == n && is_new);
                    let others: BTreeSet<_> = others.map(|(_, of)| of.to_string()).collect();
                    let told = owners.add(&endpoint, &account);
                    prop_assert_eq!(told.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), others);
                    model.insert((n, of));
                    unusable[usize::from(n)] = enabled && invalid;
                } else if model.remove(&(n, of)) {
                    owners.remove(&endpoint.id, &account);
                }
                let pairs = model.iter().map(|(n, of)| {
                    (EndpointId::new(n.to_string()), AccountId::new(of.to_string()))
                });
                prop_assert_eq!(owners.pairs(), pairs.collect());
                let invalid = (0..4).filter(|n| {
                    unusable[usize::from(*n)] && model.iter().any(|(m, _)| m == n)
                });
                prop_assert_eq!(owners.invalid(), invalid.count());
            }
        }
    }
}
