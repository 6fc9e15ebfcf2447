//! Which endpoints the stream has named lately, for accounts whose earlier routes are not known.

use std::collections::BTreeMap;

use walhook_core::event::{EndpointId, Scope};
use walhook_core::lsn::Lsn;

/// Endpoints that are remembered one by one; with more, all count as named.
const NAMED_MAX: usize = 16_384;

/// The endpoints whose rows have changed in transactions that the checkpoint has not passed.
///
/// Invariant: each of them is one, and no other, until there are more than `NAMED_MAX`; from then on all are
/// until the checkpoint has passed that moment.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Where the transaction that named it last commits.
    ids: BTreeMap<EndpointId, Lsn>,
    /// The same, where any endpoint may be meant.
    all: Option<Lsn>,
}

impl Named {
    /// A watched table changed, in a transaction that commits at `commit_lsn`.
    pub(super) fn name(&mut self, scope: &Scope, commit_lsn: Lsn) {
        match scope {
            Scope::All => self.all = Some(commit_lsn),
            Scope::Endpoint { endpoints, .. } => {
                self.ids.extend(endpoints.iter().map(|id| (id.clone(), commit_lsn)));
            }
        }
        if self.ids.len() > NAMED_MAX {
            self.ids.clear();
            self.all = Some(commit_lsn);
        }
    }

    /// Whether the endpoint may be one of them.
    pub(super) fn has(&self, endpoint: &EndpointId) -> bool {
        self.all.is_some() || self.ids.contains_key(endpoint)
    }

    /// Forgets the transactions that `frontier` has passed: those that commit before it.
    pub(super) fn forget(&mut self, frontier: Lsn) {
        self.ids.retain(|_, commit_lsn| *commit_lsn >= frontier);
        self.all.take_if(|commit_lsn| *commit_lsn < frontier);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    #[derive(Debug, Clone)]
    enum Action {
        /// A transaction names an endpoint, or everything.
        Name(Option<u8>),
        /// The checkpoint comes so close to what was named last.
        Checkpoint(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            4 => proptest::option::weighted(0.9, 0u8..6).prop_map(Action::Name),
            1 => (0u64..10).prop_map(Action::Checkpoint),
        ]
    }

    fn endpoint(n: impl std::fmt::Display) -> EndpointId {
        EndpointId::new(n.to_string())
    }

    fn scope(n: impl std::fmt::Display) -> Scope {
        Scope::Endpoint { endpoints: smallvec![endpoint(n)], accounts: smallvec![] }
    }

    proptest! {
        #[test]
        fn named_endpoints_are_those_that_the_checkpoint_has_not_passed(
            actions in proptest::collection::vec(action(), 1..60),
        ) {
            let mut named = Named::default();
            let mut model: Vec<(Lsn, Option<u8>)> = Vec::new();
            for (at, action) in (100..).zip(actions) {
                match action {
                    Action::Name(n) => {
                        named.name(&n.map_or(Scope::All, scope), Lsn(at));
                        model.push((Lsn(at), n));
                    }
                    Action::Checkpoint(close) => {
                        named.forget(Lsn(at - close));
                        model.retain(|(commit_lsn, _)| *commit_lsn >= Lsn(at - close));
                    }
                }
                for n in 0..7 {
                    let has = model.iter().any(|(_, of)| of.is_none_or(|of| of == n));
                    prop_assert_eq!(named.has(&endpoint(n)), has, "endpoint {}", n);
                }
            }
        }
    }

    #[test]
    fn named_endpoints_beyond_the_bound_are_all_until_the_checkpoint_passes() {
        let mut named = Named::default();
        for n in 0..=NAMED_MAX {
            assert!(!named.has(&endpoint("other")));
            named.name(&scope(n), Lsn(n as u64));
        }
        assert!(named.has(&endpoint("other")) && named.ids.is_empty());
        named.forget(Lsn(NAMED_MAX as u64));
        assert!(named.has(&endpoint("other")));
        named.forget(Lsn(NAMED_MAX as u64 + 1));
        assert!(!named.has(&endpoint("other")));
    }
}
