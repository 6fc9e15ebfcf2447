//! One change of one subscriber, which is what all traffic of tests, demo and load tests is made of.
//!
//! The customer's table has a column `version` that is drawn from a sequence with each insert and update,
//! and that a rollback does not give back: so a version of a committed transaction names a state of a row
//! for ever. Only a crash of the server gives out again what it lost with the transaction. A row is locked
//! before its version is drawn, so that the versions of one row rise in commit order.

use anyhow::{Context, Result};
use serde::Deserialize;

/// What happened to a subscriber: the three event types. In the order in which they can follow one
/// another at one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `subscriber.created`
    Created,
    /// `subscriber.updated`
    Updated,
    /// `subscriber.deleted`
    Deleted,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Created, Self::Updated, Self::Deleted];

    /// The event type.
    #[must_use]
    pub const fn event_type(self) -> &'static str {
        match self {
            Self::Created => "subscriber.created",
            Self::Updated => "subscriber.updated",
            Self::Deleted => "subscriber.deleted",
        }
    }

    /// Reads an event type.
    ///
    /// # Errors
    /// When it is none of the three.
    pub fn of(event_type: &str) -> Result<Self> {
        let kind = Self::ALL.into_iter().find(|kind| kind.event_type() == event_type);
        kind.with_context(|| format!("{event_type} is no type of the traffic's"))
    }

    /// The rule's `on`.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Created => "insert",
            Self::Updated => "update",
            Self::Deleted => "delete",
        }
    }
}

/// One change of one subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// What happened.
    pub kind: Kind,
    /// The subscriber's id.
    pub id: i64,
    /// The row's `version` after an insert or update, before a delete.
    pub version: i64,
}

/// What of an event's body identifies the change.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(rename = "type", borrow)]
    event_type: std::borrow::Cow<'a, str>,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    id: i64,
    version: i64,
}

impl Change {
    /// Reads the change that a request's body tells of.
    ///
    /// # Errors
    /// When the body is not one of the traffic's events.
    pub fn in_body(body: &[u8]) -> Result<Self> {
        let Body { event_type, data } = serde_json::from_slice(body).context("a request's body")?;
        Ok(Self { kind: Kind::of(&event_type)?, id: data.id, version: data.version })
    }

    /// Reads the change that a row of the state tables tells of, which holds the body without its envelope.
    ///
    /// # Errors
    /// When the row is not one of the traffic's.
    pub fn in_row(event_type: &str, row: &[u8]) -> Result<Self> {
        let row = String::from_utf8_lossy(row);
        let body = format!("{{\"type\":{},{row}}}", serde_json::Value::from(event_type));
        Self::in_body(body.as_bytes())
    }
}

#[test]
fn change_is_read_from_a_body_and_from_a_stored_row() {
    let row = r#""data":{"id":7,"email":"a@b","version":12},"previous":{"version":3}"#;
    let body = format!(r#"{{"id":"evt_1","type":"subscriber.updated",{row}}}"#);
    let expected = Change { kind: Kind::Updated, id: 7, version: 12 };
    assert_eq!(Change::in_body(body.as_bytes()).unwrap(), expected);
    assert_eq!(Change::in_row("subscriber.updated", row.as_bytes()).unwrap(), expected);
    assert!(Change::in_row("invoice.paid", row.as_bytes()).is_err());
}
