//! Which endpoints the stream has named lately, for accounts whose earlier routes are not known.

use std::collections::HashMap;

use walhook_core::event::{EndpointId, Scope};
use walhook_core::lsn::Lsn;

/// Endpoints that are remembered one by one; with more, all count as named.
const NAMED_MAX: usize = 16_384;

/// The endpoints whose rows have changed in transactions that the checkpoint has not passed.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Where the transaction that named it last commits.
    ids: HashMap<EndpointId, Lsn>,
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
