//! Changes of watched tables that the stream has shown and SQL may not show yet.

use std::collections::VecDeque;

use super::snapshot::{Snapshot, later};
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, Invalidation, Scope};

/// So many of one transaction are remembered as one of everything.
const OF_ONE_TXN: usize = 256;

/// With so many the older half is remembered as one: see [`Snapshot::sees_all_to`].
const REMEMBER_AT_MOST: usize = 4_096;

/// The invalidations that no snapshot has been known to see.
///
/// Invariant: what one of them concerns is outdated under each snapshot that does not see it, until a
/// snapshot has been told of ([`Invalidations::take_seen`]) that does. More than that may be outdated,
/// where very many are remembered as one of everything; never less. At most `REMEMBER_AT_MOST` are
/// remembered one by one.
#[derive(Debug, Default)]
pub(super) struct Invalidations {
    /// Oldest first.
    each: VecDeque<Invalidation>,
    /// Older ones, which concern everything: the latest of their transactions.
    older: Option<u32>,
}

impl Invalidations {
    /// Whether all have been seen.
    pub(super) fn is_empty(&self) -> bool {
        self.each.is_empty() && self.older.is_none()
    }

    /// Remembers one. Those of one transaction come one after the other.
    pub(super) fn remember(&mut self, invalidation: Invalidation) {
        let of_same = self.each.iter().rev().take_while(|i| i.xid == invalidation.xid).count();
        let is_covered = self
            .each
            .back()
            .is_some_and(|last| last.xid == invalidation.xid && last.scope == Scope::All);
        if of_same >= OF_ONE_TXN || is_covered {
            self.each.truncate(self.each.len() - of_same);
            self.each.push_back(Invalidation::new(invalidation.xid, Scope::All));
        } else {
            self.each.push_back(invalidation);
        }
        if self.each.len() >= REMEMBER_AT_MOST {
            let older = self.each.drain(..REMEMBER_AT_MOST / 2).map(|i| i.xid);
            self.older = older.chain(self.older).reduce(later);
        }
    }

    /// Whether one of them concerns these routes, which were read under the snapshot, and is not seen by it.
    pub(super) fn outdate(
        &self,
        snapshot: &Snapshot,
        account: &AccountId,
        routes: &Routes,
    ) -> bool {
        let concerns = |scope: &Scope| match scope {
            Scope::All => true,
            Scope::Endpoint { endpoints, accounts } => {
                accounts.contains(account)
                    || endpoints.iter().any(|id| routes.endpoint(id).is_some())
            }
        };
        self.older.is_some_and(|older| !snapshot.sees_all_to(older))
            || self.each.iter().any(|i| concerns(&i.scope) && !snapshot.sees(i.xid))
    }

    /// Takes out those that the snapshot sees: look-ups that are made from now on see them too.
    pub(super) fn take_seen(&mut self, snapshot: &Snapshot) -> Self {
        let older = self.older.take_if(|older| snapshot.sees_all_to(*older));
        let (seen, unseen) = self.each.drain(..).partition(|each| snapshot.sees(each.xid));
        self.each = unseen;
        Self { each: seen, older }
    }

    /// Remembers these, too.
    pub(super) fn add(&mut self, others: Self) {
        self.older = others.older.into_iter().chain(self.older).reduce(later);
        others.each.into_iter().for_each(|each| self.remember(each));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;
    use walhook_core::event::EndpointId;

    /// The ids wrap around in mid-test.
    const FIRST_XID: u64 = (3 << 32) + 0xFFFF_FF00;

    fn account(n: usize) -> AccountId {
        AccountId::new(n.to_string())
    }

    fn of_account(n: usize) -> Scope {
        Scope::Endpoint {
            endpoints: smallvec![EndpointId::new(n.to_string())],
            accounts: smallvec![account(n)],
        }
    }

    fn xid(n: usize) -> u32 {
        u32::try_from((FIRST_XID + n as u64) & 0xFFFF_FFFF).unwrap()
    }

    /// The snapshot under which these transactions are seen.
    fn snapshot(seen: &[bool]) -> Snapshot {
        let xid = |n: usize| FIRST_XID + n as u64;
        let hidden = (0..seen.len()).filter(|n| !seen[*n]).map(xid);
        let hidden: Vec<String> = hidden.map(|xid| xid.to_string()).collect();
        let xmax = xid(seen.len());
        let xmin = hidden.first().cloned().unwrap_or_else(|| xmax.to_string());
        format!("{xmin}:{xmax}:{}", hidden.join(",")).parse().unwrap()
    }

    #[derive(Debug, Clone)]
    enum Action {
        /// A transaction with so many changes, of one account each, or of everything.
        Txn(usize, Option<usize>),
        /// So many transactions with one change each.
        Txns(usize),
        /// A look-up comes back that sees all but the last so many, and of these each so-manieth.
        LookUp(usize, usize),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            6 => (1usize..4, proptest::option::of(0usize..5)).prop_map(|(n, of)| Action::Txn(n, of)),
            1 => (250usize..600, Just(Some(0))).prop_map(|(n, of)| Action::Txn(n, of)),
            1 => (1_000usize..3_000).prop_map(Action::Txns),
            4 => (0usize..8, 1usize..4).prop_map(|(hidden, nth)| Action::LookUp(hidden, nth)),
            2 => (0usize..6_000, 1usize..900).prop_map(|(hidden, nth)| Action::LookUp(hidden, nth)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The model remembers each, and forgets none.
        #[test]
        fn invalidations_outdate_all_that_is_not_seen_and_no_more_while_they_are_few(
            actions in proptest::collection::vec(action(), 1..30),
        ) {
            let mut remembered = Invalidations::default();
            // Whom each transaction concerns (nobody: everybody), oldest first.
            let mut model: Vec<Vec<Option<usize>>> = Vec::new();
            let mut seen: Vec<bool> = Vec::new();
            let mut are_few = true;
            for action in actions {
                let (txns, changes, of) = match action {
                    Action::Txn(changes, of) => (1, changes, of),
                    Action::Txns(txns) => (txns, 1, Some(1)),
                    Action::LookUp(hidden, nth) => {
                        let last = seen.len().saturating_sub(hidden);
                        seen.iter_mut().enumerate().for_each(|(n, seen)| *seen |= n < last || n % nth == 0);
                        let snapshot = snapshot(&seen);
                        for n in 0..8 {
                            let routes = Routes::new(vec![], 1.0);
                            let outdates = model.iter().enumerate().any(|(at, of)| {
                                let concerns = of.iter().any(|of| of.is_none_or(|of| of == n));
                                concerns && !snapshot.sees(xid(at))
                            });
                            let outdated = remembered.outdate(&snapshot, &account(n), &routes);
                            prop_assert!(outdated || !outdates, "account {}", n);
                            prop_assert!(!are_few || outdated == outdates, "account {}", n);
                        }
                        remembered.take_seen(&snapshot);
                        continue;
                    }
                };
                for _ in 0..txns {
                    for n in 0..changes {
                        let scope = of.map_or(Scope::All, |first| of_account((first + n) % 7));
                        remembered.remember(Invalidation::new(xid(model.len()), scope));
                    }
                    let concerned = (0..changes.min(7)).map(|n| of.map(|first| (first + n) % 7));
                    model.push(concerned.collect());
                    seen.push(false);
                }
                are_few &= changes <= OF_ONE_TXN && model.len() < REMEMBER_AT_MOST / 4;
                prop_assert!(remembered.each.len() < REMEMBER_AT_MOST);
            }
            remembered.take_seen(&snapshot(&vec![true; seen.len()]));
            prop_assert!(remembered.is_empty(), "what SQL shows need not be remembered");
        }
    }

    #[test]
    fn transaction_with_very_many_changes_is_remembered_as_one() {
        let mut remembered = Invalidations::default();
        for n in 0..100_000 {
            remembered.remember(Invalidation::new(3, of_account(n)));
        }
        assert!(remembered.each.len() <= OF_ONE_TXN);
        assert!(remembered.outdate(
            &"3:5:3".parse().unwrap(),
            &account(5),
            &Routes::new(vec![], 1.0)
        ));
    }
}
