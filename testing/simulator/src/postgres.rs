//! A virtual PostgreSQL: transactions with their WAL positions, and the bytes that pgoutput makes of them;
//! a slot that is read from where it was flushed; what SQL shows at a moment.
//!
//! All transactions are made before the run; they commit one after the other as time goes on. Beside the
//! bytes stands what has to come of them ([`Expect`]), which is worked out here by other code than
//! walhook's: only the id's hash is taken from there.

mod connection;
mod make;

pub(crate) use connection::{Connection, Frame};
pub(crate) use make::postgres as make;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use walhook_core::endpoint::{Endpoint, Routes, Secret, Share, wants};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, WalPosition};
use walhook_core::tick::Tick;
use walhook_dispatch::route::Snapshot;

/// What the wall clock says at tick 0.
pub(crate) const UNIX_US: i64 = 1_763_900_000_000_000;

/// An account with so many endpoints takes long to read.
const COSTLY: usize = 2;

/// A message of the stream.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) wal_start: Lsn,
    pub(crate) bytes: Vec<u8>,
    /// The table that must be described before it.
    relation: Option<u32>,
    /// Too large to be read: of a row, so many bytes.
    pub(crate) oversize: Option<u64>,
}

/// What two events of one endpoint must share to be in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// A row with a primary key; no two tables share one.
    Row(u64),
    /// The account: of a table without a primary key.
    Account,
}

/// What has to come of a change.
#[derive(Debug, Clone)]
pub(crate) struct Expect {
    pub(crate) id: EventId,
    pub(crate) position: WalPosition,
    pub(crate) event_type: &'static str,
    /// Empty where it cannot be told.
    pub(crate) account: Arc<str>,
    /// A dead letter without endpoint instead of an event.
    pub(crate) unroutable: bool,
    /// `data` and `previous`, as JSON.
    pub(crate) row: String,
    pub(crate) keys: Vec<Key>,
    /// The transaction.
    pub(crate) txn: usize,
}

/// A row of the endpoint table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndpointRow {
    pub(crate) account: Arc<str>,
    pub(crate) url: u32,
    pub(crate) types: Vec<&'static str>,
    pub(crate) enabled: bool,
    /// False: the secret is null, so that the row cannot be used.
    pub(crate) valid: bool,
    pub(crate) max_in_flight: Option<u32>,
    pub(crate) rate_per_second: Option<f64>,
}

impl EndpointRow {
    /// Whether it is for the account's events of this type.
    pub(crate) fn fits(&self, account: &str, event_type: &str) -> bool {
        let types: Vec<String> = self.types.iter().map(|t| (*t).to_owned()).collect();
        *self.account == *account && self.enabled && wants(&types, event_type)
    }

    fn endpoint(&self, id: &EndpointId) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            id: id.clone(),
            account: AccountId::new(Arc::clone(&self.account)),
            url: format!("https://{id}.example/{}", self.url),
            event_types: self.types.iter().map(|t| (*t).to_owned()).collect(),
            secrets: if self.valid { vec![Secret::new("s")] } else { Vec::new() },
            enabled: self.enabled,
            headers: Vec::new(),
            max_in_flight: self.max_in_flight,
            rate_per_second: self.rate_per_second,
            invalid: (!self.valid).then(|| "its secret is null".to_owned()),
        })
    }
}

/// A committed transaction.
#[derive(Debug, Clone)]
pub(crate) struct Txn {
    pub(crate) xid: u32,
    pub(crate) commit_lsn: Lsn,
    pub(crate) end_lsn: Lsn,
    pub(crate) time_us: i64,
    /// When it commits, and when SQL shows it.
    pub(crate) at: Tick,
    pub(crate) shown_at: Tick,
    pub(crate) messages: Vec<Sent>,
    pub(crate) expects: Range<usize>,
    /// Rows of the endpoint table that it changes.
    pub(crate) endpoints: Vec<(EndpointId, Option<EndpointRow>)>,
    /// Weights that it changes.
    weights: Vec<(Arc<str>, f64)>,
    /// Values that it leaves alone, and that are not in its WAL.
    pub(crate) unchanged: u32,
}

impl Txn {
    pub(crate) fn changes_weights(&self) -> bool {
        !self.weights.is_empty()
    }
}

/// The replication slot.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) confirmed: Lsn,
}

/// The database.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) txns: Vec<Txn>,
    pub(crate) expects: Vec<Expect>,
    pub(crate) by_id: BTreeMap<EventId, usize>,
    /// Each endpoint's rows: from which transaction on.
    pub(crate) versions: BTreeMap<EndpointId, Vec<(usize, Option<EndpointRow>)>>,
    /// Which endpoints were ever an account's.
    pub(crate) of_account: BTreeMap<Arc<str>, BTreeSet<EndpointId>>,
    pub(crate) slot: Slot,
    /// Messages, by transaction and place in it, that the server cannot send: nobody has fixed them.
    pub(crate) unreadable: BTreeSet<(usize, usize)>,
    /// So many have committed.
    pub(crate) committed: usize,
    /// So many are shown by SQL, and what that shows.
    shown: usize,
    table: BTreeMap<EndpointId, EndpointRow>,
    accounts: BTreeMap<Arc<str>, BTreeSet<EndpointId>>,
    weights: BTreeMap<Arc<str>, f64>,
}

impl Postgres {
    /// Everything before this has been written.
    pub(crate) fn wal_end(&self) -> Lsn {
        let last = self.committed.checked_sub(1).and_then(|at| self.txns.get(at));
        last.map_or(Lsn(make::FIRST_LSN), |txn| Lsn(txn.end_lsn.0 + make::AFTER_COMMIT))
    }

    /// A new slot, which begins there. It is made once all that was committed before is shown.
    pub(crate) fn make_slot(&mut self, at: Lsn, now: Tick) {
        self.slot.confirmed = self.slot.confirmed.max(at);
        for txn in self.txns.get_mut(..self.committed).unwrap_or_default() {
            txn.shown_at = txn.shown_at.min(now);
        }
    }

    /// What SQL shows by then.
    fn show(&mut self, now: Tick) {
        while let Some(txn) = self.txns.get(self.shown).filter(|txn| txn.shown_at <= now) {
            for (id, row) in &txn.endpoints {
                if let Some(old) = self.table.remove(id) {
                    self.accounts.entry(old.account).or_default().remove(id);
                }
                if let Some(row) = row {
                    let of = self.accounts.entry(Arc::clone(&row.account)).or_default();
                    of.insert(id.clone());
                    self.table.insert(id.clone(), row.clone());
                }
            }
            self.weights.extend(txn.weights.iter().cloned());
            self.shown += 1;
        }
    }

    /// What a statement sees that runs now.
    #[expect(clippy::expect_used, reason = "the text is made here")]
    pub(crate) fn snapshot(&mut self, now: Tick) -> Snapshot {
        self.show(now);
        // Ids come in another order than commits, but not far from it.
        let around = self.txns.iter().skip(self.shown).take(8).map(|txn| u64::from(txn.xid));
        let seen = self.txns.get(..self.shown).unwrap_or_default();
        let last = seen.iter().rev().take(8).map(|txn| u64::from(txn.xid)).max();
        let hidden: Vec<u64> = around.collect();
        let xmax = last.map_or(make::FIRST_XID, |last| last + 1);
        let mut open: Vec<u64> = hidden.iter().copied().filter(|xid| *xid < xmax).collect();
        open.sort_unstable();
        let xmin = open.first().copied().unwrap_or(xmax);
        let open: Vec<String> = open.iter().map(ToString::to_string).collect();
        format!("{xmin}:{xmax}:{}", open.join(",")).parse().expect("it is a snapshot")
    }

    /// An account's endpoints, as a statement sees them that runs now.
    pub(crate) fn routes(&mut self, account: &AccountId, now: Tick) -> Routes {
        self.show(now);
        let ids = self.accounts.get(account.as_str()).into_iter().flatten();
        let endpoints = ids.filter_map(|id| Some(self.table.get(id)?.endpoint(id)));
        let weight = self.weights.get(account.as_str()).copied().unwrap_or(1.0);
        // The heavy ones have reserved slots too, more than fit into half of all together.
        let reserved = if weight > 2.0 { 4 } else { 0 };
        let routes = Routes::new(endpoints.collect(), Share { weight, reserved });
        if routes.endpoints.len() < COSTLY { routes } else { routes.costly() }
    }

    /// Somebody else's endpoint.
    pub(crate) fn elsewhere(&self, endpoint: &Arc<Endpoint>) -> Arc<Endpoint> {
        let others = self
            .table
            .iter()
            .find(|(id, row)| **id != endpoint.id && *row.account != *endpoint.account);
        others.map_or_else(|| Arc::clone(endpoint), |(id, row)| row.endpoint(id))
    }

    /// The endpoints that a new replay would find.
    pub(crate) fn routes_shown(&mut self, account: &str, now: Tick) -> Vec<Arc<Endpoint>> {
        self.routes(&AccountId::new(account), now).endpoints
    }

    /// Whether the endpoint's row was for such events from the transaction on, whenever looked up.
    pub(crate) fn is_owed(&self, expect: &Expect, endpoint: &EndpointId) -> bool {
        let Some(versions) = self.versions.get(endpoint) else { return false };
        let from = versions.partition_point(|(txn, _)| *txn <= expect.txn);
        let Some(mut first) = from.checked_sub(1) else { return false };
        while versions.get(first).is_some_and(|(txn, _)| *txn == expect.txn) {
            // The event may stand on either side of the change in their transaction.
            let Some(before) = first.checked_sub(1) else { return false };
            first = before;
        }
        let all = versions.get(first..).unwrap_or_default();
        all.iter().all(|(_, row)| {
            row.as_ref().is_some_and(|row| row.fits(&expect.account, expect.event_type))
        })
    }

    /// Whether the endpoint was for such events when this one was committed.
    pub(crate) fn was_wanted(&self, expect: &Expect, endpoint: &EndpointId) -> bool {
        let versions = self.versions.get(endpoint).map(Vec::as_slice).unwrap_or_default();
        let at = versions.partition_point(|(txn, _)| *txn <= expect.txn);
        let row = at.checked_sub(1).and_then(|at| versions.get(at)).map(|(_, row)| row.as_ref());
        row.flatten().is_some_and(|row| row.fits(&expect.account, expect.event_type))
    }

    /// Whether a look-up that counts could have found it.
    pub(crate) fn is_allowed(&self, expect: &Expect, endpoint: &EndpointId) -> bool {
        let Some(versions) = self.versions.get(endpoint) else { return false };
        let from = versions.partition_point(|(txn, _)| *txn <= expect.txn);
        let mut first = from.saturating_sub(1);
        while first > 0 && versions.get(first).is_some_and(|(txn, _)| *txn == expect.txn) {
            first -= 1;
        }
        let all = versions.get(first..).unwrap_or_default();
        all.iter().any(|(_, row)| {
            row.as_ref().is_some_and(|row| row.fits(&expect.account, expect.event_type))
        })
    }
}
