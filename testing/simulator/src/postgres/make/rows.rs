//! Changes of rows that make events, or cannot.

use std::fmt::Write as _;
use std::sync::Arc;

use rand::RngExt;

use walhook_core::lsn::Lsn;
use walhook_core::position::MESSAGE;

use super::super::{Key, Sent};
use super::Maker;
use crate::encode::{self, Row, Value};
use crate::faults::Fault;
use crate::schema::{DOCUMENTS, MAX_BYTES, NOTES, OPERATOR, OUTBOX, PLANS, SUBSCRIBERS};

/// Subscribers of an account.
const ROWS: u64 = 6;

/// Documents of an account, and where their ids begin.
const FILED: u64 = 3;
const DOCUMENT_IDS: u64 = 500_000_000;

/// Where the ids of the outbox begin.
const OUTBOX_IDS: u64 = 600_000_000;

/// A subscriber's row.
#[derive(Debug, Clone)]
pub(super) struct Subscriber {
    account: Arc<str>,
    status: String,
}

impl Maker<'_> {
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

    pub(super) fn insert(&mut self, account: &Arc<str>) {
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

    pub(super) fn update(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        let new = Subscriber { status: self.status(), ..old.clone() };
        self.write_update((id, &old), (id, new));
    }

    pub(super) fn rename_key(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        let base = self.base(account);
        let new_id = base + self.rng.random_range(0..ROWS);
        if self.subscribers.contains_key(&new_id) {
            return;
        }
        let new = Subscriber { status: self.status(), ..old.clone() };
        self.write_update((id, &old), (new_id, new));
    }

    pub(super) fn move_account(&mut self, account: &Arc<str>) {
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

    pub(super) fn delete(&mut self, account: &Arc<str>) {
        let Some((id, old)) = self.subscriber(account) else { return };
        self.subscribers.remove(&id);
        let lsn = self.record();
        self.send(lsn, SUBSCRIBERS, encode::delete(SUBSCRIBERS, &tuple(id, &old)));
        let data = format!("\"data\":{{\"id\":{id}}}");
        let at = (lsn, SUBSCRIBERS, 0);
        self.expect(at, "subscriber.deleted", &old.account, data, vec![Key::Row(id)]);
    }

    pub(super) fn note(&mut self, account: &Arc<str>) {
        let lsn = self.record();
        let text = self.rng.random_range(0..1_000).to_string();
        let row = vec![Value::text(account), Value::text(&text)];
        self.send(lsn, NOTES, encode::insert(NOTES, &row));
        let data = format!("\"data\":{{\"text\":\"{text}\"}}");
        self.expect((lsn, NOTES, 0), "note.written", account, data, vec![Key::Account]);
    }

    pub(super) fn truncate(&mut self) {
        let lsn = self.record();
        self.send(lsn, PLANS, encode::truncate(PLANS));
        let (account, data) = (OPERATOR.into(), "\"data\":{}".to_owned());
        self.expect((lsn, PLANS, 0), "plans.cleared", &account, data, vec![Key::Account]);
    }

    pub(super) fn message(&mut self, account: &Arc<str>) {
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
    pub(super) fn odd(&mut self, account: &Arc<str>) {
        if !self.plan.has(Fault::Unroutable) {
            return;
        }
        let lsn = self.record();
        let id = 900_000_000 + lsn.0;
        let nobody = "".into();
        match self.rng.random_range(0..6) {
            4 => {
                self.send_outbox(lsn, account, "invoice.sent", "{}");
                self.unroutable((lsn, OUTBOX, 0), "account.*", account);
            }
            5 => {
                self.send_outbox(lsn, account, "account.opened", "no JSON");
                self.unroutable((lsn, OUTBOX, 0), "account.opened", account);
            }
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

    /// A row of a table with its own replica identity, whose type stands in a column. An update leaves the
    /// text alone now and then, which then is not in the WAL.
    pub(super) fn document(&mut self, account: &Arc<str>) {
        let id = DOCUMENT_IDS + self.base(account) + self.rng.random_range(0..FILED);
        let kinds = ["document.filed", "document.signed"];
        let [filed, signed] = kinds;
        let kind = if self.rng.random_bool(0.5) { filed } else { signed };
        let title = format!("t{}", self.rng.random_range(0..1_000));
        let is_new = !self.documents.contains(&id);
        let keeps = !is_new && self.plan.has(Fault::UnchangedToast) && self.rng.random_bool(0.5);
        let body = format!("b{}", self.rng.random_range(0..1_000));
        let sent = if keeps { Value::Unchanged } else { Value::text(&body) };
        let texts = [Value::text(id), Value::text(account), Value::text(kind), Value::text(&title)];
        let row: Row = texts.into_iter().chain([sent]).collect();
        let lsn = self.record();
        let bytes = if is_new {
            encode::insert(DOCUMENTS, &row)
        } else {
            encode::update_in_place(DOCUMENTS, &row)
        };
        self.send(lsn, DOCUMENTS, bytes);
        self.documents.insert(id);
        let data = if keeps {
            self.txn.unchanged += 1;
            format!("\"data\":{{\"id\":{id},\"title\":\"{title}\"}},\"unchanged\":[\"body\"]")
        } else {
            format!("\"data\":{{\"id\":{id},\"title\":\"{title}\",\"body\":\"{body}\"}}")
        };
        self.expect((lsn, DOCUMENTS, 0), kind, account, data, vec![Key::Row(id)]);
    }

    /// A row of an outbox: type and data stand in columns.
    pub(super) fn outbox(&mut self, account: &Arc<str>) {
        let lsn = self.record();
        let kind = if self.rng.random_bool(0.5) { "account.opened" } else { "account.closed" };
        let content = format!("{{\"n\":{}}}", self.rng.random_range(0..99));
        let id = self.send_outbox(lsn, account, kind, &content);
        let data = format!("\"data\":{content}");
        self.expect((lsn, OUTBOX, 0), kind, account, data, vec![Key::Row(id)]);
    }

    fn send_outbox(&mut self, lsn: Lsn, account: &Arc<str>, kind: &str, content: &str) -> u64 {
        let id = OUTBOX_IDS + lsn.0;
        let row =
            vec![Value::text(id), Value::text(account), Value::text(kind), Value::text(content)];
        self.send(lsn, OUTBOX, encode::insert(OUTBOX, &row));
        id
    }
}

fn tuple(id: u64, row: &Subscriber) -> Row {
    vec![Value::text(id), Value::text(&row.account), Value::text(&row.status)]
}
