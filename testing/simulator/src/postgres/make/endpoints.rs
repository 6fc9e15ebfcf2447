//! Changes of the endpoint table, and of accounts' weights.

use std::sync::Arc;

use rand::RngExt;

use walhook_core::event::EndpointId;

use super::super::EndpointRow;
use super::Maker;
use crate::encode::{self, Row, Value};
use crate::faults::Fault;
use crate::schema::{ACCOUNTS, WEBHOOKS};

/// Types that endpoints ask for.
const TYPES: [&[&str]; 6] = [
    &["*"],
    &["subscriber.*"],
    &["subscriber.updated", "note.written"],
    &["order.placed", "plans.cleared", "subscriber.created"],
    &["document.*", "account.*", "subscriber.updated"],
    &["*"],
];

impl Maker<'_> {
    /// The first transaction: endpoints of most accounts.
    pub(super) fn register(&mut self) {
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

    pub(super) fn change_endpoints(&mut self) {
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
