//! What a transaction tells of tables and types.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::Description;
use crate::pgoutput::{Message, Protocol, Relation, decode};

/// The tables and types that the server has described within a transaction, since it began or since a part of it
/// was rolled back. Memory: by the number of tables and types.
#[derive(Debug, Default)]
pub struct Described {
    tables: HashMap<u32, Description>,
    types: BTreeMap<u32, Bytes>,
    bytes: usize,
}

impl Described {
    /// A table, as its rows that come now are written.
    #[must_use]
    pub fn table(&self, oid: u32) -> Option<&Arc<Relation>> {
        self.tables.get(&oid).map(|description| &description.relation)
    }

    /// A type as a TYPE message that came within the transaction calls it: schema and name.
    #[must_use]
    pub fn r#type(&self, oid: u32) -> Option<(&str, &str)> {
        match decode(Protocol::V1, self.types.get(&oid)?) {
            Ok(Message::Type { schema, name, .. }) => Some((schema, name)),
            Ok(_) | Err(_) => None,
        }
    }

    /// Takes a RELATION or TYPE message. What cannot be decoded is left to who plays it.
    pub(super) fn handle(&mut self, message: Bytes, arrival: u64) {
        match decode(Protocol::V1, &message) {
            Ok(Message::Relation(relation)) => {
                self.bytes += 2 * message.len();
                let (oid, relation) = (relation.oid, Arc::new(relation));
                let old = self.tables.insert(oid, Description { arrival, relation, message });
                self.bytes -= old.map_or(0, |old| 2 * old.message.len());
            }
            Ok(Message::Type { oid, .. }) => {
                self.bytes += message.len();
                let old = self.types.insert(oid, message);
                self.bytes -= old.map_or(0, |old| old.len());
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// A part of the transaction was rolled back: the server describes all anew.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) const fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// The messages, types first, of the tables that were not described again elsewhere: later than these
    /// arrivals, which it brings up to date.
    pub(super) fn latest(self, arrivals: &mut HashMap<u32, u64>) -> Vec<Bytes> {
        let is_latest = |(oid, description): &(u32, Description)| {
            let last = arrivals.entry(*oid).or_default();
            let latest = *last < description.arrival;
            *last = description.arrival.max(*last);
            latest
        };
        let mut tables: Vec<_> =
            self.tables.into_iter().filter(is_latest).map(|(_, table)| table).collect();
        tables.sort_by_key(|table| table.arrival);
        if tables.is_empty() {
            return Vec::new();
        }
        self.types.into_values().chain(tables.into_iter().map(|table| table.message)).collect()
    }
}
