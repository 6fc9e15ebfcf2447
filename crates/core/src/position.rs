//! Where a change stands, and the event id that follows from it alone.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::lsn::Lsn;

/// Where a row change stands in the source.
///
/// Invariant: the order of positions is the order in which their changes arrive: commit order
/// between transactions, and the order of the change's own LSN inside one. A position depends on
/// the WAL alone, not on what is published or configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Position {
    /// A change that was read from the WAL.
    Wal(WalPosition),
}

impl Position {
    /// No position is before this one.
    pub const FIRST: Self =
        Self::Wal(WalPosition { commit_lsn: Lsn(0), change_lsn: Lsn(0), relation: 0, n: 0 });
}

/// The relation of a logical message: no table has this OID.
pub const MESSAGE: u32 = 0;

/// A change's place in the WAL, or a logical message's.
///
/// The rows of one COPY share an LSN, the tables of one TRUNCATE share another: `n` tells the
/// former apart, `relation` the latter. The change's LSN is the start position in the header of its
/// XLogData message: where its record begins, but of a message where its record ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct WalPosition {
    /// The LSN of the transaction's commit record (`final_lsn` of BEGIN).
    pub commit_lsn: Lsn,
    /// The LSN of the change itself.
    pub change_lsn: Lsn,
    /// The relation's OID; [`MESSAGE`] for a logical message.
    pub relation: u32,
    /// Counts, from 0, the changes of `relation` that share `change_lsn`.
    pub n: u32,
}

/// Records begin at multiples of this (`MAXALIGN`), so the bytes between are nobody's position.
const RECORD_ALIGNMENT: u64 = 8;

impl WalPosition {
    /// The position of a message that the stream sends after the changes of the record that begins
    /// where its own ends, at `lsn`.
    ///
    /// It lies one byte further, so that the order of positions stays the order of arrival. The
    /// event's id does not see that byte: whether there is a change to come late for depends on what
    /// is published, and an id must not.
    #[must_use]
    pub const fn late_message(commit_lsn: Lsn, lsn: Lsn) -> Self {
        Self { commit_lsn, change_lsn: Lsn(lsn.0 + 1), relation: MESSAGE, n: 0 }
    }

    /// Whether it is that of a logical message.
    #[must_use]
    pub const fn is_message(&self) -> bool {
        self.relation == MESSAGE
    }

    /// The LSN that the id is made of.
    const fn identifying_lsn(&self) -> Lsn {
        let lsn = self.change_lsn.0;
        if self.is_message() { Lsn(lsn - lsn % RECORD_ALIGNMENT) } else { Lsn(lsn) }
    }
}

impl Position {
    /// The commit LSN of the transaction that holds this change.
    #[must_use]
    pub const fn commit_lsn(&self) -> Lsn {
        let Self::Wal(position) = self;
        position.commit_lsn
    }
}

/// An event's id: `evt_` and a ULID.
///
/// Shape: 48 bits of commit time (milliseconds since 1970, so that ids sort by time), then 80 bits
/// of SHA-256 over system identifier, position and event type.
/// Invariant: a function of the WAL (and the rule's type) alone: the same after a crash, a takeover
/// or a replay, and different across clusters.
///
/// Source: the ULID specification (Crockford base 32, 26 characters).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(u128);

const PREFIX: &str = "evt_";
const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ULID_CHARS: usize = 26;

impl EventId {
    /// Derives the id of the event of type `event_type` that the change at `position` makes.
    ///
    /// Units: `commit_time_us` is microseconds since 1970-01-01 UTC; before 1970 counts as 1970.
    #[must_use]
    pub fn derive(
        system_identifier: u64,
        position: &Position,
        event_type: &str,
        commit_time_us: i64,
    ) -> Self {
        let Position::Wal(wal) = position;
        let mut hash = Sha256::new();
        hash.update(system_identifier.to_be_bytes());
        hash.update(wal.commit_lsn.0.to_be_bytes());
        hash.update(wal.identifying_lsn().0.to_be_bytes());
        hash.update(wal.relation.to_be_bytes());
        hash.update(wal.n.to_be_bytes());
        hash.update(event_type.as_bytes());
        let random =
            hash.finalize().iter().take(10).fold(0u128, |acc, b| acc << 8 | u128::from(*b));
        let millis = u128::try_from(commit_time_us / 1_000).unwrap_or(0) & 0xFFFF_FFFF_FFFF;
        Self(millis << 80 | random)
    }

    /// The id of these 128 bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// Its 128 bits.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// When its transaction committed: milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub const fn commit_ms(self) -> u64 {
        // 48 bits are left.
        (self.0 >> 80) as u64
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every request has it twice: it is written in one piece.
        let mut ulid = [b'0'; ULID_CHARS];
        for (place, symbol) in ulid.iter_mut().rev().enumerate() {
            let digit = usize::try_from((self.0 >> (5 * place)) & 31).unwrap_or_default();
            *symbol = CROCKFORD.get(digit).copied().unwrap_or(b'0');
        }
        f.write_str(PREFIX)?;
        f.write_str(std::str::from_utf8(&ulid).unwrap_or_default())
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As its text.
#[cfg(feature = "record")]
impl serde::Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(feature = "record")]
impl<'de> serde::Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The text is not `evt_` and a ULID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an event id; expected evt_ and 26 characters")]
pub struct ParseEventIdError(String);

impl FromStr for EventId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseEventIdError(text.to_owned());
        let ulid = text.strip_prefix(PREFIX).ok_or_else(error)?;
        // 26 characters carry 130 bits: the first may not exceed 7.
        if ulid.len() != ULID_CHARS || ulid.as_bytes().first() > Some(&b'7') {
            return Err(error());
        }
        let digit = |b: u8| CROCKFORD.iter().position(|c| *c == b);
        ulid.bytes()
            .try_fold(0u128, |acc, b| Some(acc << 5 | u128::try_from(digit(b)?).ok()?))
            .map(Self)
            .ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(commit: u64, n: u32) -> Position {
        Position::Wal(WalPosition { commit_lsn: Lsn(commit), change_lsn: Lsn(7), relation: 3, n })
    }

    proptest! {
        #[test]
        fn event_id_round_trips_through_its_text(commit: u64, n: u32, time in 0i64..4_000_000_000_000_000) {
            let id = EventId::derive(1, &position(commit, n), "a.b", time);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(id.to_string().len(), 30);
        }

        #[test]
        fn event_ids_sort_by_commit_time(a in 0i64..4_000_000_000, b in 0i64..4_000_000_000) {
            let id = |ms: i64| EventId::derive(1, &position(1, 0), "t", ms * 1_000).to_string();
            prop_assume!(a != b);
            prop_assert_eq!(id(a) < id(b), a < b);
        }
    }

    #[test]
    fn event_id_differs_by_cluster_position_and_type() {
        let id = |sys, n, ty| EventId::derive(sys, &position(9, n), ty, 0);
        assert_eq!(id(1, 0, "t"), id(1, 0, "t"));
        assert_ne!(id(1, 0, "t"), id(2, 0, "t"));
        assert_ne!(id(1, 0, "t"), id(1, 1, "t"));
        assert_ne!(id(1, 0, "t"), id(1, 0, "u"));
    }

    #[test]
    fn late_message_is_ordered_behind_the_change_at_its_lsn_and_keeps_its_id() {
        let at = |relation, lsn| WalPosition {
            commit_lsn: Lsn(64),
            change_lsn: Lsn(lsn),
            relation,
            n: 0,
        };
        let (message, row, next) = (at(MESSAGE, 16), at(3, 16), at(3, 24));
        let late = WalPosition::late_message(Lsn(64), Lsn(16));
        assert!(message < row && row < late && late < next);
        let id = |position| EventId::derive(1, &Position::Wal(position), "t", 0);
        assert_eq!(id(late), id(message));
        assert_ne!(id(late), id(at(MESSAGE, 24)));
    }

    #[test]
    fn event_id_refuses_other_texts() {
        for text in [
            "",
            "evt_",
            "evt_0",
            "evt_8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "evt_0000000000000000000000000I",
        ] {
            assert!(text.parse::<EventId>().is_err(), "{text}");
        }
    }
}
