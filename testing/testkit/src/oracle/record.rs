//! What the oracle knows of one change, and of its deliveries.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::Stored;
use crate::change::{Change, Kind};

/// A version, and whether the row was deleted at it: a delete carries the row's last one.
pub(super) type Key = (i64, bool);

pub(super) fn key(change: Change) -> Key {
    (change.version, change.kind == Kind::Deleted)
}

/// The kind of a change, and its row.
pub(super) type What = (Kind, i64);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Commit {
    #[default]
    Unknown,
    Acknowledged,
    /// COMMIT was sent and its answer never read: it counts neither way.
    Doubtful,
}

/// What is known of one change.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) commit: Commit,
    pub(super) account: Option<i64>,
    /// Kind and row, as an acknowledged COMMIT said; without, as the first request did.
    pub(super) what: Option<What>,
    /// What transactions whose COMMIT is in doubt said of it, and of which account. A crash of the server
    /// gives the numbers of a transaction that it lost out again, so they may differ.
    pub(super) claims: Vec<(What, i64)>,
    /// When its COMMIT was sent.
    pub(super) at: Duration,
    pub(super) event_id: Option<u64>,
    pub(super) body: Option<u64>,
    /// By endpoint, in order: one account may have ten thousand.
    pub(super) deliveries: Vec<Delivery>,
}

#[derive(Debug, Default)]
pub(super) struct Delivery {
    pub(super) endpoint: i64,
    pub(super) owed: bool,
    /// When it was taken first, and how often; replays aside.
    pub(super) received: Option<Duration>,
    pub(super) taken: u32,
    pub(super) replayed: u32,
    pub(super) stored: Option<Stored>,
}

impl Record {
    pub(super) fn delivery(&mut self, endpoint: i64) -> &mut Delivery {
        let at = self.deliveries.binary_search_by_key(&endpoint, |delivery| delivery.endpoint);
        let at = at.unwrap_or_else(|at| {
            self.deliveries.insert(at, Delivery { endpoint, ..Delivery::default() });
            at
        });
        #[expect(clippy::indexing_slicing, reason = "found or inserted just above")]
        &mut self.deliveries[at]
    }

    /// Whether the writers, as far as they know, changed this for that account.
    pub(super) fn is_of(&self, account: i64) -> bool {
        match self.commit {
            Commit::Unknown => false,
            Commit::Acknowledged => self.account == Some(account),
            Commit::Doubtful => {
                self.claims.iter().any(|(what, of)| Some(*what) == self.what && *of == account)
            }
        }
    }

    pub(super) fn change(&self, (version, deleted): Key) -> Change {
        let claimed = self.claims.first().map(|(what, _)| *what);
        let (kind, id) = self.what.or(claimed).unwrap_or((Kind::Created, 0));
        Change { kind: if deleted { Kind::Deleted } else { kind }, id, version }
    }
}

pub(super) fn hash(bytes: impl AsRef<[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.as_ref().hash(&mut hasher);
    hasher.finish()
}
