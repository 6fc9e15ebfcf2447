//! What is remembered from one look-up to the next.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::time::{Duration, Instant};

use super::{Lookups, Plan, is_refused, retyped, row};
use walhook_core::endpoint::{Routes, Share};
use walhook_core::event::AccountId;

/// What is said of a weight that cannot be used.
const NO_WEIGHT: &str =
    "the account's weight is no number above 0 that can be used, so it counts as 1";

/// What is said of reserved slots that cannot be used.
const NOT_RESERVED: &str = "the account's reserved slots are no whole number, so it has none";

/// What is said where the account's row cannot be read.
pub(super) const UNREADABLE: &str =
    "the account's weight and reserved slots cannot be read, so it weighs 1 and has none reserved";

/// How often the log says that a share cannot be used.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// How often the catalog is read again at most, while look-ups are slow.
const DOUBT_EVERY: Duration = Duration::from_secs(60);

/// Accounts that are known to be refused and so are asked for alone.
pub(super) const SUSPECTS_MAX: usize = 4_096;

/// What is remembered from one look-up to the next.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What the catalog said last.
    pub(super) plan: Option<Arc<Plan>>,
    /// When it said so.
    pub(super) planned_at: Option<Instant>,
    /// The columns' types, with which rows could be read.
    pub(super) column_types: Option<retyped::ColumnTypes>,
    /// The accounts whose statement was refused the last time, for their data.
    pub(super) suspects: HashSet<AccountId>,
    /// One whose statement was not.
    good: Option<AccountId>,
    /// Until then the statement for a batch is the fenced one: the other was refused.
    fenced_until: Option<Instant>,
    warned: Option<Instant>,
}

impl Memory {
    pub(super) fn learn_plan(&mut self, plan: Arc<Plan>) {
        (self.plan, self.planned_at) = (Some(plan), Some(Instant::now()));
    }

    /// Indexes may have come or gone: the catalog is read again, but not so often that slow look-ups become slower.
    pub(super) fn doubt_plan(&mut self) {
        if self.planned_at.is_none_or(|at| at.elapsed() >= DOUBT_EVERY) {
            self.plan = None;
        }
    }
}

impl Lookups {
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose statement is refused is asked for alone the next time.
    pub(super) fn remember(&self, routes: &[(AccountId, Routes)]) {
        let mut memory = self.memory();
        for (account, routes) in routes {
            let is_refused = routes.refused.is_some()
                || routes.endpoints.iter().any(|endpoint| is_refused(endpoint));
            if !is_refused {
                memory.suspects.remove(account);
            } else if memory.suspects.len() < SUSPECTS_MAX {
                memory.suspects.insert(account.clone());
            }
        }
        let good = routes.iter().find(|(_, routes)| {
            routes.refused.is_none() && routes.endpoints.iter().any(|e| e.invalid.is_none())
        });
        if let Some((account, _)) = good {
            memory.good = Some(account.clone());
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.memory().fenced_until.is_some_and(|until| Instant::now() < until)
    }

    /// From now on, and for so long, no batch computes rows of accounts that are not asked for.
    pub(super) fn fence(&self, time: Duration) {
        self.memory().fenced_until = Some(Instant::now() + time);
    }

    pub(super) fn last_good(&self) -> Option<AccountId> {
        self.memory().good.clone()
    }

    /// The account's share, as far as it can be used.
    pub(super) fn share(
        &self,
        account: &AccountId,
        weight: Option<&str>,
        reserved: Option<&str>,
    ) -> Share {
        let mut share = Share::default();
        match weight.map(row::positive) {
            None => {}
            Some(Some(weight)) => share.weight = weight,
            Some(None) => self.warn_of_share(account, NO_WEIGHT),
        }
        match reserved.map(row::reserved) {
            None => {}
            Some(Some(reserved)) => share.reserved = reserved,
            Some(None) => self.warn_of_share(account, NOT_RESERVED),
        }
        share
    }
    /// Says that what the account table holds of an account's share cannot be used, now and then.
    pub(super) fn warn_of_share(&self, account: &AccountId, why: &str) {
        let Some(weights) = &self.weights else { return };
        let now = Instant::now();
        let mut memory = self.memory();
        if memory.warned.is_some_and(|at| now.duration_since(at) < WARN_EVERY) {
            return;
        }
        memory.warned = Some(now);
        tracing::warn!(
            account = %account, table = %weights.id.table,
            "{why}; others may be as wrong"
        );
    }
}
