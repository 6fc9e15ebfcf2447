//! Makes the transactions.

mod endpoints;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::event::EndpointId;
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::tick::{Tick, micros};

use super::{EndpointRow, Expect, Key, Postgres, Sent, Slot, Txn, UNIX_US};
use crate::encode;
use crate::faults::Fault;
use crate::plan::Plan;
use crate::schema::SYSTEM;
use rows::Subscriber;

pub(super) const FIRST_LSN: u64 = 0x0100_0000;
pub(super) const FIRST_XID: u64 = 3_000;
/// Between the end of a commit and the WAL's end: a record of somebody else's.
pub(super) const AFTER_COMMIT: u64 = 24;

struct Maker<'a> {
    plan: &'a Plan,
    rng: SmallRng,
    lsn: u64,
    accounts: Vec<Arc<str>>,
    subscribers: BTreeMap<u64, Subscriber>,
    documents: BTreeSet<u64>,
    endpoints: BTreeMap<EndpointId, EndpointRow>,
    /// Those that are never changed: what they are owed can be told exactly.
    kept: BTreeSet<EndpointId>,
    removed: Vec<EndpointId>,
    next_endpoint: u32,
    expects: Vec<Expect>,
    txn: OpenTxn,
}

#[derive(Default)]
struct OpenTxn {
    number: usize,
    time_us: i64,
    /// Known when it commits: a placeholder until then.
    first_expect: usize,
    messages: Vec<Sent>,
    endpoints: Vec<(EndpointId, Option<EndpointRow>)>,
    weights: Vec<(Arc<str>, f64)>,
    unchanged: u32,
}

/// Makes the database of a seed.
pub(crate) fn postgres(plan: &Plan) -> Postgres {
    let accounts = (0..plan.options.accounts.max(2)).map(|n| format!("a{n}").into()).collect();
    let mut maker = Maker {
        plan,
        rng: plan.rng("transactions"),
        lsn: FIRST_LSN,
        accounts,
        subscribers: BTreeMap::new(),
        documents: BTreeSet::new(),
        endpoints: BTreeMap::new(),
        kept: BTreeSet::new(),
        removed: Vec::new(),
        next_endpoint: 0,
        expects: Vec::new(),
        txn: OpenTxn::default(),
    };
    let mut txns = Vec::new();
    let (mut at, mut shown_at) = (Tick(0), Tick(0));
    let lags = plan.has(Fault::LookUpLags) && plan.rng("lags").random_bool(0.3);
    for number in 0..plan.options.transactions {
        let burst = maker.rng.random_bool(0.3);
        let pause = if burst { 50 } else { maker.rng.random_range(1..=micros(plan.pause)) };
        at = at + Duration::from_micros(pause);
        let lag = if lags { maker.rng.random_range(0..400_000) } else { 0 };
        shown_at = shown_at.max(at + Duration::from_micros(lag));
        let time_us = UNIX_US + i64::try_from(at.0).unwrap_or(0);
        let first_expect = maker.expects.len();
        maker.txn = OpenTxn { number, time_us, first_expect, ..OpenTxn::default() };
        maker.fill(number);
        txns.push(maker.commit(at, shown_at));
    }
    // Transaction ids are given in another order than commits come in, now and then.
    for at in (1..txns.len()).step_by(7) {
        let (Some(a), Some(b)) = (txns.get(at - 1).map(|t| t.xid), txns.get(at).map(|t| t.xid))
        else {
            continue;
        };
        swap_xids(&mut txns, at, a, b);
    }
    let mut versions: BTreeMap<EndpointId, Vec<(usize, Option<EndpointRow>)>> = BTreeMap::new();
    let mut of_account: BTreeMap<Arc<str>, BTreeSet<EndpointId>> = BTreeMap::new();
    for (number, txn) in txns.iter().enumerate() {
        for (id, row) in &txn.endpoints {
            let all = versions.entry(id.clone()).or_default();
            all.push((number, row.clone()));
            if let Some(row) = row {
                of_account.entry(Arc::clone(&row.account)).or_default().insert(id.clone());
            }
        }
    }
    let expects = maker.expects;
    Postgres {
        by_id: expects.iter().enumerate().map(|(at, expect)| (expect.id, at)).collect(),
        txns,
        expects,
        versions,
        of_account,
        slot: Slot { confirmed: Lsn(FIRST_LSN) },
        unreadable: BTreeSet::new(),
        committed: 0,
        shown: 0,
        table: BTreeMap::new(),
        accounts: BTreeMap::new(),
        weights: BTreeMap::new(),
    }
}

/// The two transactions before and at `at` exchange their ids.
fn swap_xids(txns: &mut [Txn], at: usize, a: u32, b: u32) {
    for (place, xid) in [(at - 1, b), (at, a)] {
        let Some(txn) = txns.get_mut(place) else { continue };
        txn.xid = xid;
        if let Some(first) = txn.messages.first_mut() {
            first.bytes = encode::begin(txn.commit_lsn, txn.time_us, xid);
        }
    }
}

impl Maker<'_> {
    fn account(&mut self) -> Arc<str> {
        // A third of all is the first account's: the whale.
        let whale = self.rng.random_bool(0.33);
        let at = if whale { 0 } else { self.rng.random_range(0..self.accounts.len()) };
        self.accounts.get(at).map_or_else(|| "a0".into(), Arc::clone)
    }

    /// The next record.
    fn record(&mut self) -> Lsn {
        self.lsn += 8 * self.rng.random_range(4..20);
        Lsn(self.lsn)
    }

    fn fill(&mut self, number: usize) {
        if number == 0 {
            self.register();
            return;
        }
        let rows = match self.rng.random_range(0..1_000) {
            0..4 => 250,
            4..120 => 0,
            _ => self.rng.random_range(1..5),
        };
        let whale = rows > 100;
        for _ in 0..rows {
            self.change(whale);
        }
        self.change_endpoints();
    }

    fn change(&mut self, whale: bool) {
        let account = if whale { self.accounts.first().cloned() } else { None };
        let account = account.unwrap_or_else(|| self.account());
        match self.rng.random_range(0..100) {
            0..20 => self.insert(&account),
            20..58 => self.update(&account),
            58..65 => self.document(&account),
            65..70 => self.outbox(&account),
            70..76 => self.delete(&account),
            76..80 => self.rename_key(&account),
            80..83 => self.move_account(&account),
            83..90 => self.note(&account),
            90..91 => self.truncate(),
            91..96 => self.message(&account),
            _ => self.odd(&account),
        }
    }

    fn send(&mut self, wal_start: Lsn, relation: u32, bytes: Vec<u8>) {
        let relation = Some(relation);
        self.txn.messages.push(Sent { wal_start, bytes, relation, oversize: None });
    }

    fn expect(
        &mut self,
        at: (Lsn, u32, u32),
        event_type: &'static str,
        account: &Arc<str>,
        row: String,
        keys: Vec<Key>,
    ) {
        self.put(at, event_type, account, false, row, keys);
    }

    fn unroutable(&mut self, at: (Lsn, u32, u32), event_type: &'static str, account: &Arc<str>) {
        self.put(at, event_type, account, true, String::new(), Vec::new());
    }

    fn put(
        &mut self,
        (change_lsn, relation, n): (Lsn, u32, u32),
        event_type: &'static str,
        account: &Arc<str>,
        unroutable: bool,
        row: String,
        keys: Vec<Key>,
    ) {
        // Its commit's place is not known yet, nor its id.
        let position = WalPosition { commit_lsn: Lsn(0), change_lsn, relation, n };
        let id = EventId::derive(SYSTEM, &Position::Wal(position), "", 0);
        let (account, txn) = (Arc::clone(account), self.txn.number);
        self.expects.push(Expect { id, position, event_type, account, unroutable, row, keys, txn });
    }

    fn commit(&mut self, at: Tick, shown_at: Tick) -> Txn {
        let commit_lsn = self.record();
        self.lsn += 48;
        let end_lsn = Lsn(self.lsn);
        let open = std::mem::take(&mut self.txn);
        let xid = u32::try_from(FIRST_XID).unwrap_or(0) + u32::try_from(open.number).unwrap_or(0);
        let time_us = open.time_us;
        let last = self.expects.len();
        for expect in self.expects.get_mut(open.first_expect..).unwrap_or_default() {
            expect.position.commit_lsn = commit_lsn;
            let position = Position::Wal(expect.position);
            expect.id = EventId::derive(SYSTEM, &position, expect.event_type, time_us);
        }
        let plain = |bytes, wal_start| Sent { wal_start, bytes, relation: None, oversize: None };
        let mut messages = vec![plain(encode::begin(commit_lsn, time_us, xid), commit_lsn)];
        messages.extend(open.messages);
        messages.push(plain(encode::commit(commit_lsn, end_lsn, time_us), commit_lsn));
        Txn {
            xid,
            commit_lsn,
            end_lsn,
            time_us,
            at,
            shown_at,
            messages,
            expects: open.first_expect..last,
            endpoints: open.endpoints,
            weights: open.weights,
            unchanged: open.unchanged,
        }
    }
}
