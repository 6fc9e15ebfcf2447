//! What is known of a transaction's events before it has committed.

use walhook_core::event::{Invalidation, Scope};

use super::Accounts;

/// So many changes of watched tables are known one by one.
const ONE_BY_ONE: usize = 64;

/// What an open transaction may bring: whose events, and which changes of routes. It may be more than comes of it
/// at its commit, and is never less.
///
/// Memory: bounded, as [`Accounts`] are.
#[derive(Debug, Default)]
pub struct Foreseen {
    accounts: Accounts,
    invalidations: Vec<Invalidation>,
    /// Anything may come of it.
    anything: bool,
}

impl Foreseen {
    /// It brings nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// It may bring anything: nothing that commits later may pass it.
    #[must_use]
    pub fn anything() -> Self {
        Self { anything: true, ..Self::default() }
    }

    /// Whether it was said to bring anything.
    #[must_use]
    pub const fn is_anything(&self) -> bool {
        self.anything
    }

    /// It may bring events of this account.
    pub fn add_account(&mut self, account: &str) {
        if !self.anything {
            self.accounts.add(account);
        }
    }

    /// It may bring this change of routes.
    pub fn add_invalidation(&mut self, invalidation: Invalidation) {
        let is_known = |last: &Invalidation| {
            *last == invalidation || last.scope == Scope::All && invalidation.joined.is_empty()
        };
        if self.anything || self.invalidations.last().is_some_and(is_known) {
            return;
        }
        self.invalidations.push(invalidation);
        if self.invalidations.len() > ONE_BY_ONE {
            *self = Self::anything();
        }
    }

    /// Whether it may bring events of the account.
    #[must_use]
    pub fn may_have(&self, account: &str) -> bool {
        self.anything || self.accounts.may_have(account)
    }

    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.accounts.memory_bytes() + self.invalidations.len() * size_of::<Invalidation>()
    }

    /// The changes of routes that it may bring.
    pub(super) fn take_invalidations(&mut self) -> Vec<Invalidation> {
        std::mem::take(&mut self.invalidations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::event::EndpointId;

    #[test]
    fn foreseen_knows_a_few_changes_of_routes_and_waits_for_many() {
        let mut foreseen = Foreseen::nothing();
        let of = |n: usize| {
            let endpoints = std::iter::once(EndpointId::new(n.to_string())).collect();
            let accounts = smallvec::SmallVec::new();
            Invalidation::new(7, Scope::Endpoint { endpoints, accounts })
        };
        for n in 0..ONE_BY_ONE {
            foreseen.add_invalidation(of(n));
            foreseen.add_invalidation(of(n));
        }
        assert!(!foreseen.is_anything() && foreseen.invalidations.len() == ONE_BY_ONE);
        foreseen.add_invalidation(of(0));
        assert!(foreseen.is_anything() && foreseen.memory_bytes() == 0);
        foreseen.add_account("a");
        assert!(foreseen.may_have("b"));
    }

    #[test]
    fn foreseen_takes_changes_of_everything_for_one() {
        let mut foreseen = Foreseen::nothing();
        (0..1_000).for_each(|_| foreseen.add_invalidation(Invalidation::new(7, Scope::All)));
        assert_eq!(foreseen.take_invalidations(), [Invalidation::new(7, Scope::All)]);
        assert!(!foreseen.is_anything() && !foreseen.may_have("a"));
    }
}
