//! How values are written into a recording: what decides as it is, what is somebody's by its length alone.
//!
//! Rows, error texts, answers' excerpts, secrets, header values, and of URLs all behind the host are written as
//! `~length`, within [`keyed`] as `~length:hash`. The hash is keyed, so that a guess cannot be tried: the key is
//! drawn for each recording, and written nowhere. What is read back has the same length, and is the same where
//! what was written was the same: whatever is counted or compared comes out as before.
//!
//! Ids of accounts, endpoints and events, types, positions and hashes of keys stand as they are.

use std::cell::Cell;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// What the hashes of one recording are made with.
#[derive(Clone, Copy)]
pub struct Key([u8; 32]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Key {
    /// A key of these bytes, which are to be random.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

thread_local! {
    static KEY: Cell<Option<Key>> = const { Cell::new(None) };
}

/// What is serialised within has hashes by this key; all else has lengths alone.
pub fn keyed<T>(key: Key, serialize: impl FnOnce() -> T) -> T {
    struct Restore(Option<Key>);
    impl Drop for Restore {
        fn drop(&mut self) {
            KEY.set(self.0);
        }
    }
    let _restore = Restore(KEY.replace(Some(key)));
    serialize()
}

/// Characters of a hash.
const HASH_CHARS: usize = 16;

/// What stands for a text: also how many bytes its characters take, run by run, where not all take one. A text
/// that is cut between two of them is cut there again.
fn text_stand_in(text: &str) -> String {
    let mut out = stand_in(text.as_bytes());
    if text.is_ascii() || KEY.get().is_none() {
        return out;
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for width in text.chars().map(char::len_utf8) {
        match runs.last_mut() {
            Some((last, count)) if *last == width => *count += 1,
            _ => runs.push((width, 1)),
        }
    }
    for (width, count) in runs {
        out.push_str(&format!(":{width}x{count}"));
    }
    out
}

/// What stands for bytes.
fn stand_in(bytes: &[u8]) -> String {
    let length = bytes.len();
    let Some(Key(key)) = KEY.get() else { return format!("~{length}") };
    let digest = Sha256::new().chain_update(key).chain_update(bytes).finalize();
    let hash = digest.iter().take(HASH_CHARS / 2).fold(0, |all, byte| all << 8 | u64::from(*byte));
    format!("~{length}:{hash:016x}")
}

/// What no text of ours is longer than: what is read may be damaged.
const LENGTH_MAX: usize = 1 << 30;

/// A text of that length, which differs where the hash does.
fn filler(stand_in: &str) -> Option<String> {
    let mut parts = stand_in.strip_prefix('~')?.split(':');
    let length = parts.next()?.parse::<usize>().ok().filter(|length| *length <= LENGTH_MAX)?;
    let hash = parts.next().unwrap_or("0");
    let digits = hash.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    if digits.is_empty() {
        return None;
    }
    let mut digits = digits.into_iter().cycle();
    let mut out = String::with_capacity(length);
    for run in parts {
        let (width, count) = run.split_once('x')?;
        // Sixteen characters follow here that take so many bytes each.
        let first = match width {
            "1" => 0x61,
            "2" => 0x100,
            "3" => 0x4E00,
            "4" => 0x1F600,
            _ => return None,
        };
        for _ in 0..count.parse::<usize>().ok()? {
            out.push(char::from_u32(first + digits.next()?)?);
            if out.len() > length {
                return None;
            }
        }
    }
    let rest = length - out.len();
    out.extend(digits.take(rest).filter_map(|digit| char::from_digit(digit, 16)));
    Some(out)
}

fn read<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    filler(&text).ok_or_else(|| de::Error::custom("not a length with a hash"))
}

/// A text.
pub mod text {
    use super::*;

    /// Writes what stands for it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&text_stand_in(text))
    }

    /// Reads one of that length.
    ///
    /// # Errors
    /// It is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        read(from)
    }
}

/// A text that may be missing.
pub mod text_option {
    use super::*;

    /// Writes what stands for it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
        text.as_ref().map(|text| text_stand_in(text)).serialize(to)
    }

    /// Reads one of that length.
    ///
    /// # Errors
    /// It is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
        filler(&text).map(Some).ok_or_else(|| de::Error::custom("not a length with a hash"))
    }
}

/// A row's part of a body.
pub mod bytes {
    use super::*;
    use ::bytes::Bytes;

    /// Writes what stands for it.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&stand_in(bytes))
    }

    /// Reads one of that length.
    ///
    /// # Errors
    /// It is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        read(from).map(Bytes::from)
    }
}

/// Secrets. The type itself cannot be serialised.
pub mod secrets {
    use super::*;
    use crate::endpoint::Secret;

    /// Writes what stands for each.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(secrets: &[Secret], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(secrets.iter().map(|secret| stand_in(secret.expose().as_bytes())))
    }

    /// Reads as many, of these lengths.
    ///
    /// # Errors
    /// One is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Secret>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let all = texts.iter().map(|text| filler(text).map(Secret::new));
        all.collect::<Option<_>>().ok_or_else(|| de::Error::custom("not a length with a hash"))
    }
}

/// Headers: their names as they are.
pub mod headers {
    use super::*;

    /// Writes the names, and what stands for each value.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(
        headers: &[(String, String)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(headers.iter().map(|(name, value)| (name, stand_in(value.as_bytes()))))
    }

    /// Reads as many, with values of these lengths.
    ///
    /// # Errors
    /// A value is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(String, String)>, D::Error> {
        let all = Vec::<(String, String)>::deserialize(from)?;
        let all = all.into_iter().map(|(name, value)| Some((name, filler(&value)?)));
        all.collect::<Option<_>>().ok_or_else(|| de::Error::custom("not a length with a hash"))
    }
}

/// A URL: scheme, host and port as they are.
pub mod url {
    use super::*;

    /// Scheme, host and port; empty where it has none that could be read.
    fn origin(url: &str) -> String {
        let Ok(url) = ::url::Url::parse(url.trim()) else { return String::new() };
        let Some(host) = url.host_str() else { return String::new() };
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{host}{port}/", url.scheme())
    }

    /// Writes scheme, host and port, and what stands for the whole.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(url: &str, to: S) -> Result<S::Ok, S::Error> {
        (origin(url), stand_in(url.as_bytes())).serialize(to)
    }

    /// Reads one that leads there and has that length, where it is long enough.
    ///
    /// # Errors
    /// It is no stand-in.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        let (origin, text) = <(String, String)>::deserialize(from)?;
        let whole = filler(&text).ok_or_else(|| de::Error::custom("not a length with a hash"))?;
        let rest = whole.len().checked_sub(origin.len()).and_then(|rest| whole.get(..rest));
        Ok(rest.map_or_else(|| whole.clone(), |rest| origin + rest))
    }
}

/// A number by its bits: its decimal text does not read back as the same one everywhere.
pub mod float {
    use super::*;

    /// Writes its bits.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        number.to_bits().serialize(to)
    }

    /// Reads its bits.
    ///
    /// # Errors
    /// They are no number.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

/// A number that may be missing, by its bits.
pub mod float_option {
    use super::*;

    /// Writes its bits.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(number: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        number.map(f64::to_bits).serialize(to)
    }

    /// Reads its bits.
    ///
    /// # Errors
    /// They are no number.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(f64::from_bits))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::bytes::Bytes;

    use super::*;
    use crate::endpoint::{Endpoint, Secret};
    use crate::event::{AccountId, EndpointId, Event, Operation, RowKeys};
    use crate::lsn::Lsn;
    use crate::position::{EventId, Position, WalPosition};

    const KEY_A: Key = Key([1; 32]);

    fn endpoint() -> Endpoint {
        Endpoint {
            id: EndpointId::new("7"),
            account: AccountId::new("42"),
            url: "https://user:hush@a.example:8443/hush?hush=1#hush".to_owned(),
            event_types: vec!["subscriber.*".to_owned()],
            secrets: vec![Secret::new("whsec_hush"), Secret::new("")],
            enabled: true,
            headers: vec![("x-kept".to_owned(), "hush".to_owned())],
            max_in_flight: Some(3),
            rate_per_second: Some(0.1),
            invalid: Some("hush".to_owned()),
        }
    }

    #[test]
    fn endpoint_reads_back_with_its_size_and_nothing_of_what_is_secret() {
        let written = keyed(KEY_A, || serde_json::to_string(&endpoint()).unwrap());
        assert!(!written.contains("hush") && !written.contains("user"), "{written}");
        for kept in ["https://a.example:8443/", "x-kept", "subscriber.*", "\"42\""] {
            assert!(written.contains(kept), "{kept}: {written}");
        }
        let read: Endpoint = serde_json::from_str(&written).unwrap();
        assert_eq!(read.size_bytes(), endpoint().size_bytes());
        assert_eq!(read.rate_per_second, Some(0.1));
        assert!(read.url.starts_with("https://a.example:8443/"), "{}", read.url);
        // Lengths alone are the same, whatever the texts.
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            serde_json::to_string(&endpoint()).unwrap()
        );
        let other = Endpoint { secrets: vec![Secret::new("whsec_husk")], ..endpoint() };
        let other: Endpoint =
            serde_json::from_str(&keyed(KEY_A, || serde_json::to_string(&other).unwrap())).unwrap();
        assert_ne!(other.secrets, read.secrets, "what differs still does");
    }

    #[test]
    fn row_has_no_hash_without_a_key_and_another_one_with_another() {
        let position = Position::Wal(WalPosition {
            commit_lsn: Lsn(9),
            change_lsn: Lsn(8),
            relation: 1,
            n: 0,
        });
        let event = Arc::new(Event {
            id: EventId::derive(1, &position, "a.b", 5),
            position,
            event_type: "a.b".into(),
            account: AccountId::new("42"),
            operation: Operation::Insert,
            commit_time_us: 5,
            keys: RowKeys::from_slice(&[u64::MAX]),
            row: Bytes::from_static(b"\"data\":{\"hush\":1}"),
        });
        let write = || serde_json::to_string(&event).unwrap();
        let (a, b, none) = (keyed(KEY_A, write), keyed(Key([2; 32]), write), write());
        assert!(none.contains("\"~17\""), "{none}");
        assert!(a != b && a.contains("\"~17:") && b.contains("\"~17:"), "{a}\n{b}");
        let read: Arc<Event> = serde_json::from_str(&a).unwrap();
        assert_eq!(read.row.len(), event.row.len());
        assert_eq!((read.id, &read.keys, read.position), (event.id, &event.keys, event.position));
    }

    #[test]
    fn text_is_cut_between_the_same_characters() {
        for text in ["", "plain", "über\u{fffd}\u{fffd} 😀x", "ü"] {
            let read = filler(&keyed(KEY_A, || text_stand_in(text))).unwrap();
            let cuts = |text: &str| {
                (0..=text.len()).map(|at| text.is_char_boundary(at)).collect::<Vec<_>>()
            };
            assert_eq!(cuts(&read), cuts(text), "{text}: {read}");
            assert_eq!(text_stand_in(text), format!("~{}", text.len()), "without a key");
        }
    }

    #[test]
    fn damaged_stand_ins_are_refused() {
        for damaged in ["", "~", "~x", "7:00", "~99999999999:00", "~-1:00", "~3:", "~3:xy"] {
            assert_eq!(filler(damaged), None, "{damaged}");
        }
        for damaged in ["~3:0:1", "~3:0:5x1", "~3:0:1x99999999999", "~3:0:3x2"] {
            assert_eq!(filler(damaged), None, "{damaged}");
        }
        assert_eq!(filler("~5:01").as_deref(), Some("01010"));
    }
}
