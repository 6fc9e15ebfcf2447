//! Makes the transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::event::EndpointId;
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, MESSAGE, Position, WalPosition};
use walhook_core::tick::{Tick, micros};

use super::{EndpointRow, Expect, Key, Postgres, Sent, Slot, Txn, UNIX_US};
use crate::encode::{self, Row, Value};
use crate::faults::Fault;
use crate::plan::Plan;
use crate::schema::{ACCOUNTS, MAX_BYTES, NOTES, OPERATOR, PLANS, SUBSCRIBERS, SYSTEM, WEBHOOKS};

pub(super) const FIRST_LSN: u64 = 0x0100_0000;
pub(super) const FIRST_XID: u64 = 3_000;
/// Between the end of a commit and the WAL's end: a record of somebody else's.
pub(super) const AFTER_COMMIT: u64 = 24;

/// Subscribers of an account.
const ROWS: u64 = 6;

/// Types that endpoints ask for.
const TYPES: [&[&str]; 5] = [
    &["*"],
    &["subscriber.*"],
    &["subscriber.updated", "note.written"],
    &["order.placed", "plans.cleared", "subscriber.created"],
    &["*"],
];

/// A subscriber's row.
#[derive(Debug, Clone)]
struct Subscriber {
    account: Arc<str>,
    status: String,
}

struct Maker<'a> {
    plan: &'a Plan,
    rng: SmallRng,
    lsn: u64,
    accounts: Vec<Arc<str>>,
    subscribers: BTreeMap<u64, Subscriber>,
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

    /// The first transaction: endpoints of most accounts.
    fn register(&mut self) {
        let accounts = self.accounts.clone();
        for account in &accounts {
            let many = self.rng.random_bool(0.05);
            for _ in 0..if many { 8 } else { self.rng.random_range(0..3) } {
                let row = self.endpoint_row(Arc::clone(account));
                let id = self.endpoint_id();
                if self.rng.random_bool(0.7) {
                    self.kept.insert(id.clone());
                }
                self.write_endpoint(id, Some(row));
            }
        }
    }

    fn endpoint_id(&mut self) -> EndpointId {
        self.next_endpoint += 1;
        EndpointId::new(format!("e{}", self.next_endpoint))
    }

    fn endpoint_row(&mut self, account: Arc<str>) -> EndpointRow {
        let types = TYPES.get(self.rng.random_range(0..TYPES.len())).copied().unwrap_or(&["*"]);
        EndpointRow {
            account,
            url: 0,
            types: types.to_vec(),
            enabled: true,
            valid: !self.plan.has(Fault::EndpointInvalid) || !self.rng.random_bool(0.02),
            max_in_flight: self.rng.random_bool(0.1).then(|| self.rng.random_range(1..3)),
            rate_per_second: self.rng.random_bool(0.05).then_some(20.0),
        }
    }

    fn change(&mut self, whale: bool) {
        let account = if whale { self.accounts.first().cloned() } else { None };
        let account = account.unwrap_or_else(|| self.account());
        match self.rng.random_range(0..100) {
            0..20 => self.insert(&account),
            20..70 => self.update(&account),
            70..76 => self.delete(&account),
            76..80 => self.rename_key(&account),
            80..83 => self.move_account(&account),
            83..90 => self.note(&account),
            90..91 => self.truncate(),
            91..96 => self.message(&account),
            _ => self.odd(&account),
        }
    }

    fn change_endpoints(&mut self) {
        if self.plan.has(Fault::EndpointChanged) && self.rng.random_bool(0.02) {
            let of_change: Vec<EndpointId> =
                self.endpoints.keys().filter(|id| !self.kept.contains(*id)).cloned().collect();
            if !of_change.is_empty() {
                let id = of_change.get(self.rng.random_range(0..of_change.len())).cloned();
                let row = id.as_ref().and_then(|id| self.endpoints.get(id)).cloned();
                if let (Some(id), Some(row)) = (id, row) {
                    let row = self.changed(row);
                    self.write_endpoint(id, row);
                }
            }
        }
        if self.plan.has(Fault::EndpointChanged) && self.rng.random_bool(0.005) {
            let account = self.account();
            let row = self.endpoint_row(account);
            let id = self.endpoint_id();
            self.write_endpoint(id, Some(row));
        }
        if self.rng.random_bool(0.02)
            && let Some(id) = self.removed.pop()
        {
            let account = self.account();
            let row = self.endpoint_row(account);
            self.write_endpoint(id, Some(row));
        }
        if self.plan.has(Fault::WeightChanged) && self.rng.random_bool(0.01) {
            let account = self.account();
            let weight = f64::from(self.rng.random_range(1..9u8)) / 2.0;
            self.write_weight(account, weight);
        }
    }

    fn changed(&mut self, mut row: EndpointRow) -> Option<EndpointRow> {
        match self.rng.random_range(0..9) {
            0 => row.account = self.account(),
            1 => row.types = TYPES.get(self.rng.random_range(0..TYPES.len()))?.to_vec(),
            2 | 3 => row.enabled = !row.enabled,
            4 if self.plan.has(Fault::EndpointInvalid) => row.valid = !row.valid,
            5 => row.max_in_flight = self.rng.random_bool(0.5).then_some(1),
            6 => row.rate_per_second = self.rng.random_bool(0.5).then_some(10.0),
            7 if self.plan.has(Fault::EndpointRemoved) => return None,
            _ => row.url += 1,
        }
        Some(row)
    }

    fn subscriber(&mut self, account: &str) -> Option<(u64, Subscriber)> {
        let base = self.base(account);
        let at = base + self.rng.random_range(0..ROWS);
        let mut of_account = self.subscribers.range(at..base + ROWS);
        of_account.next().map(|(id, row)| (*id, row.clone()))
    }

    fn base(&self, account: &str) -> u64 {
        account.get(1..).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1_000 + 1
    }

    fn status(&mut self) -> String {
        format!("s{}", self.rng.random_range(0..5))
    }

    fn insert(&mut self, account: &Arc<str>) {
        let id = self.base(account) + self.rng.random_range(0..ROWS);
        if self.subscribers.contains_key(&id) {
            return self.update(account);
        }
        let lsn = self.record();
        self.insert_at(lsn, 0, id, account);
        // The rows of a COPY share their LSN.
        for n in 1..if self.rng.random_bool(0.1) { 4 } else { 1 } {
            let id = id + 100 + u64::from(n);
            if self.subscribers.contains_key(&id) {
                break;
            }
            self.insert_at(lsn, n, id, account);
        }
    }

    fn insert_at(&mut self, lsn: Lsn, n: u32, id: u64, account: &Arc<str>) {
        let row = Subscriber { account: Arc::clone(account), status: self.status() };
        let data = format!("\"data\":{{\"id\":{id},\"state\":\"{}\"}}", row.status);
        self.send(lsn, SUBSCRIBERS, encode::insert(SUBSCRIBERS, &tuple(id, &row)));
        let at = (lsn, SUBSCRIBERS, n);
        self.expect(at, "subscriber.created", account, data, vec![Key::Row(id)]);
        self.subscribers.insert(id, row);
    }

    fn update(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        let new = Subscriber { status: self.status(), ..old.clone() };
        self.write_update((id, &old), (id, new));
    }

    fn rename_key(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        let base = self.base(account);
        let new_id = base + self.rng.random_range(0..ROWS);
        if self.subscribers.contains_key(&new_id) {
            return;
        }
        let new = Subscriber { status: self.status(), ..old.clone() };
        self.write_update((id, &old), (new_id, new));
    }

    fn move_account(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        let new = Subscriber { account: self.account(), status: self.status() };
        self.write_update((id, &old), (id, new));
    }

    fn write_update(&mut self, (old_id, old): (u64, &Subscriber), (id, new): (u64, Subscriber)) {
        let lsn = self.record();
        let bytes = encode::update(SUBSCRIBERS, &tuple(old_id, old), &tuple(id, &new));
        self.send(lsn, SUBSCRIBERS, bytes);
        if old.status != new.status {
            let mut data = format!("\"data\":{{\"id\":{id},\"status\":\"{}\"}}", new.status);
            if old.account == new.account {
                data += ",\"previous\":{";
                if old_id != id {
                    let _ = write!(data, "\"id\":{old_id},");
                }
                let _ = write!(data, "\"status\":\"{}\"}}", old.status);
            }
            let mut keys = vec![Key::Row(old_id), Key::Row(id)];
            keys.dedup();
            let account = Arc::clone(&new.account);
            self.expect((lsn, SUBSCRIBERS, 0), "subscriber.updated", &account, data, keys);
        }
        self.subscribers.remove(&old_id);
        self.subscribers.insert(id, new);
    }

    fn delete(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        self.subscribers.remove(&id);
        let lsn = self.record();
        self.send(lsn, SUBSCRIBERS, encode::delete(SUBSCRIBERS, &tuple(id, &old)));
        let data = format!("\"data\":{{\"id\":{id}}}");
        let at = (lsn, SUBSCRIBERS, 0);
        self.expect(at, "subscriber.deleted", &old.account, data, vec![Key::Row(id)]);
    }

    fn note(&mut self, account: &Arc<str>) {
        let lsn = self.record();
        let text = self.rng.random_range(0..1_000).to_string();
        let row = vec![Value::text(account), Value::text(&text)];
        self.send(lsn, NOTES, encode::insert(NOTES, &row));
        let data = format!("\"data\":{{\"text\":\"{text}\"}}");
        self.expect((lsn, NOTES, 0), "note.written", account, data, vec![Key::Account]);
    }

    fn truncate(&mut self) {
        let lsn = self.record();
        self.send(lsn, PLANS, encode::truncate(PLANS));
        let (account, data) = (OPERATOR.into(), "\"data\":{}".to_owned());
        self.expect((lsn, PLANS, 0), "plans.cleared", &account, data, vec![Key::Account]);
    }

    fn message(&mut self, account: &Arc<str>) {
        let lsn = self.record();
        let content =
            format!("{{\"account\":\"{account}\",\"n\":{}}}", self.rng.random_range(0..99));
        let bytes = encode::message(true, lsn, "outbox", content.as_bytes());
        self.txn.messages.push(Sent { wal_start: lsn, bytes, relation: None, oversize: None });
        let data = format!("\"data\":{content}");
        self.expect((lsn, MESSAGE, 0), "order.placed", account, data, vec![Key::Account]);
        // One outside of transactions, which says nothing.
        let bytes = encode::message(false, lsn, "outbox", content.as_bytes());
        self.txn.messages.push(Sent { wal_start: lsn, bytes, relation: None, oversize: None });
    }

    /// What cannot become an event.
    fn odd(&mut self, account: &Arc<str>) {
        if !self.plan.has(Fault::Unroutable) {
            return;
        }
        let lsn = self.record();
        let id = 900_000_000 + lsn.0;
        let nobody = "".into();
        match self.rng.random_range(0..4) {
            0 => {
                let row = vec![Value::text(id), Value::Null, Value::text("s")];
                self.send(lsn, SUBSCRIBERS, encode::insert(SUBSCRIBERS, &row));
                self.unroutable((lsn, SUBSCRIBERS, 0), "subscriber.created", &nobody);
            }
            1 => {
                let text = "x".repeat(2 * MAX_BYTES);
                let row = vec![Value::text(id), Value::text(account), Value::text(text)];
                self.send(lsn, SUBSCRIBERS, encode::insert(SUBSCRIBERS, &row));
                self.unroutable((lsn, SUBSCRIBERS, 0), "subscriber.created", account);
            }
            2 => {
                let row = vec![Value::text(account), Value::text("many")];
                self.send(lsn, NOTES, encode::insert(NOTES, &row));
                self.unroutable((lsn, NOTES, 0), "note.written", account);
            }
            _ => {
                let row = vec![Value::text(id), Value::text(account), Value::text("s")];
                let mut bytes = encode::insert(SUBSCRIBERS, &row);
                bytes.truncate(16);
                let (relation, oversize) = (Some(SUBSCRIBERS), Some(1 << 30));
                self.txn.messages.push(Sent { wal_start: lsn, bytes, relation, oversize });
                self.unroutable((lsn, SUBSCRIBERS, 0), "subscriber.created", &nobody);
            }
        }
    }

    fn write_endpoint(&mut self, id: EndpointId, row: Option<EndpointRow>) {
        let lsn = self.record();
        let old = self.endpoints.get(&id).map(|old| endpoint_tuple(&id, old));
        let bytes = match (&old, &row) {
            (None, None) => return,
            (None, Some(new)) => encode::insert(WEBHOOKS, &endpoint_tuple(&id, new)),
            (Some(old), Some(new)) => encode::update(WEBHOOKS, old, &endpoint_tuple(&id, new)),
            (Some(old), None) => encode::delete(WEBHOOKS, old),
        };
        self.send(lsn, WEBHOOKS, bytes);
        match &row {
            Some(row) => _ = self.endpoints.insert(id.clone(), row.clone()),
            None => {
                self.endpoints.remove(&id);
                self.removed.push(id.clone());
            }
        }
        self.txn.endpoints.push((id, row));
    }

    fn write_weight(&mut self, account: Arc<str>, weight: f64) {
        let lsn = self.record();
        let row = vec![Value::text(&account), Value::text(weight)];
        self.send(lsn, ACCOUNTS, encode::insert(ACCOUNTS, &row));
        self.txn.weights.push((account, weight));
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
        }
    }
}

fn tuple(id: u64, row: &Subscriber) -> Row {
    vec![Value::text(id), Value::text(&row.account), Value::text(&row.status)]
}

fn endpoint_tuple(id: &EndpointId, row: &EndpointRow) -> Row {
    let optional = |text: Option<String>| text.map_or(Value::Null, Value::Text);
    vec![
        Value::text(id),
        Value::text(&row.account),
        Value::text(format!("https://{id}.example/{}", row.url)),
        Value::text(format!("{{{}}}", row.types.join(","))),
        optional(row.valid.then(|| "s".to_owned())),
        Value::text(if row.enabled { "t" } else { "f" }),
        optional(row.max_in_flight.map(|n| n.to_string())),
        optional(row.rate_per_second.map(|n| n.to_string())),
    ]
}
