//! How settled ranges are stored: compact, because a record is written every 100 ms.
//!
//! ```text
//! record   = version (1) ++ texts ++ ranges
//! texts    = count ++ (length ++ UTF-8)*           accounts, endpoints and event types, each once
//! ranges   = count ++ (account ++ endpoint ++ key ++ key)*      account, endpoint: a text's index
//! key      = tag ++ commit LSN ++ change LSN ++ relation ++ n ++ event type (a text's index)
//! ```
//!
//! Numbers are LEB128, 7 bits a byte, least first. LSNs are differences, zigzag-coded: a commit LSN
//! from that of the key before it, a change LSN from its commit LSN.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{AccountId, EndpointId};
use crate::lsn::Lsn;
use crate::persist::{EventKey, SettledRange};
use crate::position::{Position, WalPosition};

const VERSION: u8 = 1;
const TAG_WAL: u64 = 1;

/// The bytes are not a record of settled ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by another version of walhook.
    #[error("settled ranges have version {0}; this walhook reads version {VERSION}")]
    UnknownVersion(u8),
    /// The bytes end too early.
    #[error("settled ranges end too early")]
    Truncated,
    /// A number does not fit its field.
    #[error("settled ranges hold a number that is too large")]
    TooLarge,
    /// A text is not UTF-8.
    #[error("settled ranges hold a text that is not UTF-8")]
    NotUtf8,
    /// An index points behind the last text.
    #[error("settled ranges name text {0}, which they do not hold")]
    UnknownText(u64),
    /// A kind of position that this version does not know.
    #[error("settled ranges hold a position of unknown kind {0}")]
    UnknownPosition(u64),
    /// A range ends before it begins.
    #[error("a settled range ends before it begins")]
    Reversed,
    /// So many bytes follow the last range.
    #[error("{0} bytes follow the settled ranges")]
    Leftover(usize),
}

/// The commit LSN of the last transaction that any range reaches into: a stored record of them may go
/// once the frontier is above.
#[must_use]
pub fn last_commit_lsn(ranges: &[SettledRange]) -> Option<Lsn> {
    ranges.iter().map(|range| range.to.position.commit_lsn()).max()
}

/// Encodes ranges as one record.
#[must_use]
pub fn encode(ranges: &[SettledRange]) -> Vec<u8> {
    let mut texts = Texts::default();
    let mut body = Vec::new();
    let mut last_commit = 0;
    put_number(&mut body, ranges.len() as u64);
    for range in ranges {
        put_number(&mut body, texts.index(&range.account));
        put_number(&mut body, texts.index(&range.endpoint));
        for key in [&range.from, &range.to] {
            let Position::Wal(wal) = key.position;
            put_number(&mut body, TAG_WAL);
            put_number(&mut body, zigzag(wal.commit_lsn.0, last_commit));
            put_number(&mut body, zigzag(wal.change_lsn.0, wal.commit_lsn.0));
            put_number(&mut body, u64::from(wal.relation));
            put_number(&mut body, u64::from(wal.n));
            put_number(&mut body, texts.index(&key.event_type));
            last_commit = wal.commit_lsn.0;
        }
    }
    let mut out = vec![VERSION];
    put_number(&mut out, texts.in_order.len() as u64);
    for text in texts.in_order {
        put_number(&mut out, text.len() as u64);
        out.extend_from_slice(text.as_bytes());
    }
    out.extend_from_slice(&body);
    out
}

/// Decodes one record. Every byte is consumed.
///
/// # Errors
///
/// [`DecodeError`]; nothing is guessed.
pub fn decode(bytes: &[u8]) -> Result<Vec<SettledRange>, DecodeError> {
    let (version, rest) = bytes.split_first().ok_or(DecodeError::Truncated)?;
    if *version != VERSION {
        return Err(DecodeError::UnknownVersion(*version));
    }
    let mut reader = Reader { rest, texts: Vec::new(), last_commit: 0 };
    for _ in 0..reader.number()? {
        let length = usize::try_from(reader.number()?).map_err(|_| DecodeError::Truncated)?;
        let (text, rest) = reader.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        reader.rest = rest;
        reader.texts.push(std::str::from_utf8(text).map_err(|_| DecodeError::NotUtf8)?.into());
    }
    // No space is reserved by a count that may be a lie; each range takes bytes of its own.
    let mut ranges = Vec::new();
    for _ in 0..reader.number()? {
        let account = AccountId::new(reader.text()?);
        let endpoint = EndpointId::new(reader.text()?);
        let (from, to) = (reader.key()?, reader.key()?);
        if to < from {
            return Err(DecodeError::Reversed);
        }
        ranges.push(SettledRange { account, endpoint, from, to });
    }
    match reader.rest.len() {
        0 => Ok(ranges),
        left => Err(DecodeError::Leftover(left)),
    }
}

#[derive(Default)]
struct Texts<'a> {
    indexes: BTreeMap<&'a str, u64>,
    in_order: Vec<&'a str>,
}

impl<'a> Texts<'a> {
    fn index(&mut self, text: &'a str) -> u64 {
        let next = self.in_order.len() as u64;
        let index = *self.indexes.entry(text).or_insert(next);
        if index == next {
            self.in_order.push(text);
        }
        index
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    texts: Vec<Arc<str>>,
    last_commit: u64,
}

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7F);
            if (bits << shift) >> shift != bits {
                return Err(DecodeError::TooLarge);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::TooLarge)
    }

    fn small_number(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::TooLarge)
    }

    fn text(&mut self) -> Result<Arc<str>, DecodeError> {
        let index = self.number()?;
        let text = usize::try_from(index).ok().and_then(|at| self.texts.get(at));
        text.map(Arc::clone).ok_or(DecodeError::UnknownText(index))
    }

    fn key(&mut self) -> Result<EventKey, DecodeError> {
        let tag = self.number()?;
        if tag != TAG_WAL {
            return Err(DecodeError::UnknownPosition(tag));
        }
        let commit_lsn = unzigzag(self.number()?, self.last_commit);
        self.last_commit = commit_lsn;
        let position = Position::Wal(WalPosition {
            commit_lsn: Lsn(commit_lsn),
            change_lsn: Lsn(unzigzag(self.number()?, commit_lsn)),
            relation: self.small_number()?,
            n: self.small_number()?,
        });
        Ok(EventKey { position, event_type: self.text()? })
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// The wrapping difference as a number that is small when the difference is, whatever its sign.
fn zigzag(to: u64, from: u64) -> u64 {
    let difference = to.wrapping_sub(from).cast_signed();
    (difference << 1 ^ difference >> 63).cast_unsigned()
}

fn unzigzag(coded: u64, from: u64) -> u64 {
    let sign = (coded & 1).wrapping_neg();
    from.wrapping_add(coded >> 1 ^ sign)
}
