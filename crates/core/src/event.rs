//! The event, and the stream of items that crosses the boundary between *event* and *route*.
//!
//! ```text
//! wire → pgoutput → change → event ──Item──► route → lane → schedule → deliver → settle → checkpoint
//! ```
//!
//! Everything left of the boundary depends on the WAL and the rules alone; everything right of it
//! knows accounts and endpoints. What crosses is [`Item`], in stream order; what comes back is the
//! settled position. A later release puts a network there, so keep it narrow.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::lsn::Lsn;
use super::position::{EventId, Position};

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes PostgreSQL's text form of the column's value.
            #[must_use]
            pub fn new(text: impl Into<Arc<str>>) -> Self {
                Self(text.into())
            }

            /// The column's value as PostgreSQL prints it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        #[cfg(feature = "record")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "record")]
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from).map(Self::new)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

/// Bytes of an account's or endpoint's id at most: the state tables keep both in one index entry, which
/// PostgreSQL bounds to 2,704 bytes.
pub const ID_MAX_BYTES: usize = 512;

/// What is wrong with a text as an account's or endpoint's id, for a person. Does not repeat the text.
///
/// # Errors
/// It is longer than [`ID_MAX_BYTES`], or holds NUL, which no column's text does.
pub fn check_id(text: &str) -> Result<(), String> {
    if text.len() > ID_MAX_BYTES {
        return Err(format!("takes {} bytes, more than {ID_MAX_BYTES}", text.len()));
    }
    if text.contains('\0') {
        return Err("holds a NUL character, which no id in a table can".to_owned());
    }
    Ok(())
}

text_id! {
    /// An account: the customer's customer, owner of endpoints. Always text, whatever the column.
    AccountId
}
text_id! {
    /// An endpoint: one row of the customer's endpoint table. Always text, whatever the column.
    EndpointId
}

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Operation {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// The table was truncated.
    Truncate,
    /// A logical message was written.
    Message,
}

impl Operation {
    /// The word in the request's body, the configuration and the state tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Message => "message",
        }
    }
}

/// Hashes of the ordering keys that an event holds.
///
/// Shape: one hash of (root table, primary key); two when the update changed the key; none when the
/// table has no primary key (such events are ordered by account).
/// Two keys that collide are ordered although they need not be; nothing else follows from it.
pub type RowKeys = SmallVec<[u64; 2]>;

/// One event: what a rule made of one committed change. Shared by all deliveries of it.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Event {
    /// The id, the same for every endpoint and every attempt.
    pub id: EventId,
    /// Where the change stands.
    pub position: Position,
    /// The rule's `type`, such as `subscriber.updated`, or what the rule's type column holds.
    pub event_type: Arc<str>,
    /// The account that the change belongs to.
    pub account: AccountId,
    /// What happened to the row.
    pub operation: Operation,
    /// Microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
    /// What the event is ordered by.
    pub keys: RowKeys,
    /// The row's part of the body: `"data":{…}` and, where they are not empty, `,"previous":{…}` and
    /// `,"unchanged":[…]`, without the outer braces. Kept apart from the envelope.
    #[cfg_attr(feature = "record", serde(with = "crate::record::bytes"))]
    pub row: Bytes,
}

impl Event {
    /// What an event takes beside its row: the struct, its Arc, and the allocator's overhead.
    pub const FIXED_BYTES: usize = 256;

    /// An estimate of the memory that the event holds, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        Self::FIXED_BYTES + self.row.len()
    }

    /// The request's body.
    ///
    /// Shape: one JSON object without insignificant white space, as the documentation's section
    /// "The request" describes it.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let mut body = BytesMut::with_capacity(self.row.len() + 256);
        self.put_envelope(&mut body);
        body.put_slice(&self.row);
        body.put_slice(Self::BODY_END);
        body.freeze()
    }

    /// What stands behind the row in the body.
    pub const BODY_END: &[u8] = b"}";

    /// What stands before the row in the body.
    #[must_use]
    pub fn envelope(&self) -> Bytes {
        let mut envelope = BytesMut::with_capacity(256);
        self.put_envelope(&mut envelope);
        envelope.freeze()
    }

    fn put_envelope(&self, body: &mut BytesMut) {
        body.put_slice(b"{\"id\":\"");
        body.put_slice(self.id.to_string().as_bytes());
        body.put_slice(b"\",\"type\":");
        put_json_text(body, &self.event_type);
        body.put_slice(b",\"operation\":\"");
        body.put_slice(self.operation.as_str().as_bytes());
        body.put_slice(b"\",\"timestamp\":\"");
        body.put_slice(rfc3339(self.commit_time_us).as_bytes());
        body.put_slice(b"\",\"account_id\":");
        put_json_text(body, &self.account);
        body.put_u8(b',');
    }
}

/// Appends `text` as a JSON string with its quotes.
pub fn put_json_text(out: &mut BytesMut, text: &str) {
    out.put_u8(b'"');
    let mut clean_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x00..0x20 => b"",
            _ => continue,
        };
        out.put_slice(text.as_bytes().get(clean_from..at).unwrap_or_default());
        if escape.is_empty() {
            out.put_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            out.put_slice(escape);
        }
        clean_from = at + 1;
    }
    out.put_slice(text.as_bytes().get(clean_from..).unwrap_or_default());
    out.put_u8(b'"');
}

/// RFC 3339 in UTC with microseconds, such as `2026-11-23T17:46:00.123456Z`. What it cannot write is before or after
/// what it can.
#[must_use]
pub fn rfc3339(unix_us: i64) -> String {
    jiff::Timestamp::from_microsecond(unix_us)
        .map_or_else(|_| beyond(unix_us), |time| format!("{time:.6}"))
}

/// As [`rfc3339`], of whole seconds after 1970 and without a fraction, such as `2026-11-23T17:46:00Z`.
#[must_use]
pub fn rfc3339_of_seconds(unix_s: u64) -> String {
    let seconds = i64::try_from(unix_s).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| beyond(seconds), |time| time.to_string())
}

fn beyond(unix_us: i64) -> String {
    match unix_us < 0 {
        true => format!("before {:.6}", jiff::Timestamp::MIN),
        false => format!("after {:.6}", jiff::Timestamp::MAX),
    }
}

/// A change that an event rule covers but could not be evaluated for: a dead letter, never silence.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Unroutable {
    /// The event as far as it is known; its account is empty when that could not be told, its type the
    /// rule's pattern, its data null when that is too large.
    pub event: Arc<Event>,
    /// Which kind of thing failed.
    pub reason: UnroutableReason,
    /// What could not be evaluated, and why, for a person.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub detail: String,
}

/// Why a change could not be turned into an event: the label of `walhook_unroutable_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum UnroutableReason {
    /// The account's column is null, unchanged TOAST, or absent from the old tuple.
    Account,
    /// The rule's condition failed, or read a column that the WAL does not carry.
    Condition,
    /// A value could not be encoded.
    Value,
    /// The column that holds the type is null, not known, or holds none that the rule allows.
    Type,
    /// The change was too large to be read, or the event is larger than the rule allows.
    TooLarge,
    /// Whether the table was a partition of the rule's could not be told, or which of its columns is the rule's.
    Table,
    /// The database refuses to read the account's endpoints.
    Endpoints,
}

impl UnroutableReason {
    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Condition => "condition",
            Self::Value => "value",
            Self::Type => "type",
            Self::TooLarge => "too_large",
            Self::Table => "table",
            Self::Endpoints => "endpoints",
        }
    }
}

/// A change of a watched table: cached routes are no longer valid.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Invalidation {
    /// The 32-bit id of the transaction that made the change.
    pub xid: u32,
    /// What it concerns.
    pub scope: Scope,
    /// Endpoints that, as the WAL shows, have come to be with this change, have come to another account, or
    /// were switched on.
    pub joined: SmallVec<[EndpointId; 1]>,
}

impl Invalidation {
    /// One with which no endpoint is seen to have joined.
    #[must_use]
    pub fn new(xid: u32, scope: Scope) -> Self {
        Self { xid, scope, joined: SmallVec::new() }
    }
}

/// What an invalidation concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Scope {
    /// One endpoint, under both its old and its new id, and the accounts that the change names.
    Endpoint {
        /// The ids that the row had and has.
        endpoints: SmallVec<[EndpointId; 2]>,
        /// The accounts that the row had (where the WAL says so) and has.
        accounts: SmallVec<[AccountId; 2]>,
    },
    /// Anything: TRUNCATE, another watched table, or a row whose id is unknown.
    All,
}

/// What crosses the boundary between event and route, in stream order.
///
/// Invariant: `Begin`, then any number of `Event`, `Unroutable` and `Invalidate`, then `Commit`;
/// `Begin`s come in the order of their commit LSNs. One transaction is read at a time: where another has
/// its turn, or `Progress` comes, the one that is read is `Commit`ted or `Pause`d before, and goes on with
/// `Resume`. Of one account, events come in the order of their positions, over all transactions.
///
/// A transaction is paused where it was large enough to be streamed while it was open: its events are made at
/// its commit, and take turns with those of later ones.
#[derive(Debug)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Item {
    /// A committed transaction begins. Its commit LSN is above every earlier one's.
    Begin {
        /// The LSN of its commit record.
        commit_lsn: Lsn,
    },
    /// An event.
    Event(Arc<Event>),
    /// A change that could not be turned into an event.
    Unroutable(Unroutable),
    /// Routes are to be looked up again.
    Invalidate(Invalidation),
    /// The transaction is complete.
    Commit {
        /// The end of its commit record: where a reader that has settled it starts again.
        end_lsn: Lsn,
    },
    /// The transaction that is read has more to come, and others have their turn before.
    Pause,
    /// A paused transaction goes on.
    Resume {
        /// The LSN of its commit record, as it began with.
        commit_lsn: Lsn,
    },
    /// Nothing for us up to here, but what is left of the transactions that are paused.
    Progress {
        /// The WAL position of the server's keepalive.
        wal_end: Lsn,
    },
}

impl Item {
    /// The type of the event that it is or would have been.
    #[must_use]
    pub fn event_type(&self) -> Option<&str> {
        match self {
            Self::Event(event) | Self::Unroutable(Unroutable { event, .. }) => {
                Some(&event.event_type)
            }
            Self::Begin { .. }
            | Self::Invalidate(_)
            | Self::Commit { .. }
            | Self::Pause
            | Self::Resume { .. }
            | Self::Progress { .. } => None,
        }
    }

    /// An estimate of the memory that its event holds, in bytes; 0 where it has none.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Event(event) | Self::Unroutable(Unroutable { event, .. }) => event.size_bytes(),
            Self::Begin { .. }
            | Self::Invalidate(_)
            | Self::Commit { .. }
            | Self::Pause
            | Self::Resume { .. }
            | Self::Progress { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::WalPosition;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn json_text_reads_back_as_the_same_text(text: String) {
            let mut out = BytesMut::new();
            put_json_text(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn time_that_cannot_be_written_is_beyond_those_that_can() {
        assert_eq!(rfc3339(1_700_000_000_123_456), "2023-11-14T22:13:20.123456Z");
        assert_eq!(rfc3339(i64::MAX), "after 9999-12-30T22:00:00.999999Z");
        assert!(rfc3339(i64::MIN).starts_with("before -"));
    }

    #[test]
    fn body_is_the_documented_object() {
        let position = Position::Wal(WalPosition {
            commit_lsn: Lsn(2),
            change_lsn: Lsn(1),
            relation: 3,
            n: 0,
        });
        let time = 1_763_919_960_123_456;
        let event = Event {
            id: EventId::derive(1, &position, "subscriber.updated", time),
            position,
            event_type: "subscriber.updated".into(),
            account: AccountId::new("4\"2"),
            operation: Operation::Update,
            commit_time_us: time,
            keys: RowKeys::new(),
            row: Bytes::from_static(b"\"data\":{\"id\":1},\"previous\":{\"id\":2}"),
        };
        let body: serde_json::Value = serde_json::from_slice(&event.body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "id": event.id.to_string(), "type": "subscriber.updated", "operation": "update",
                "timestamp": "2025-11-23T17:46:00.123456Z", "account_id": "4\"2",
                "data": {"id": 1}, "previous": {"id": 2}
            })
        );
    }
}
