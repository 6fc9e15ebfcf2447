//! A byte position in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A WAL byte position: the 64-bit "log sequence number" of PostgreSQL.
///
/// Shape: printed as PostgreSQL prints `pg_lsn`, two hexadecimal halves with a slash (`16/B374D848`).
/// Units: bytes since the beginning of the cluster's WAL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// PostgreSQL's `InvalidXLogRecPtr`: "no position".
    pub const ZERO: Self = Self(0);

    /// The bytes from `earlier` to this position, 0 when `earlier` is not earlier.
    #[must_use]
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not two hexadecimal halves with a slash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN; expected the form 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |half: &str| {
            let plain = !half.is_empty() && half.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u32::from_str_radix(half, 16).ok() } else { None }
        };
        text.split_once('/')
            .and_then(|(high, low)| Some((parse(high)?, parse(low)?)))
            .map(|(high, low)| Self(u64::from(high) << 32 | u64::from(low)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// As its text.
impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lsn_round_trips_through_its_text(raw: u64) {
            prop_assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }
    }

    #[test]
    fn lsn_refuses_what_is_not_two_hexadecimal_halves() {
        for text in ["", "/", "1", "1/", "/1", "+1/1", "1/123456789", "g/0", "0/0/0"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
