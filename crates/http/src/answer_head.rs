//! The head of an HTTP/1 answer, however odd it is: its status counts, and what frames its body.
//!
//! ```text
//! bytes ──► lines ──► status line ─► header lines ─► empty line ──► a head of seven lines at most
//!                          ▲  1xx: read and dropped      │
//!                          └─────────────────────────────┘
//! ```
//!
//! Nothing is held but the beginning of a line and the few headers that matter, so a head without end
//! costs no memory, and what a strict parser refuses (bytes that are no name, folded lines, hundreds of
//! headers, a length that is no number) refuses no delivery. What comes out is a head that any parser
//! takes. Where the body's frame cannot be told, the connection is used for nothing else.
//!
//! Source: RFC 9112, sections 2.2, 4, 5.2, 6.3 and 9.3.

use std::fmt::Write;

/// Bytes of the heads of one answer, the informational ones before it included.
pub const HEAD_MAX: usize = 128 << 10;

/// Informational (1xx) answers before one that is final.
pub const INFORMATIONAL_MAX: u32 = 16;

/// Of a line, what is kept: beyond the longest value that means anything here.
const LINE_MAX: usize = 512;

/// What a plain head takes, nearly always.
const PLAIN_BYTES: usize = 128;

/// Lines that matter, in one head. An honest one has three or four.
const FIELDS_MAX: usize = 16;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// There is no status line.
    #[error("what came is no HTTP answer: it has no status line")]
    NoStatus,
    /// The head has no end.
    #[error("the head of the answer is too large: more than {HEAD_MAX} bytes")]
    TooLarge,
    /// There is no final answer.
    #[error("more than {INFORMATIONAL_MAX} informational (1xx) answers before a final one")]
    Informational,
}

/// A head that was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The head in plain form, its empty line included.
    pub plain: Vec<u8>,
    /// How many of the bytes given last belong to the head; the others begin the body.
    pub used: usize,
    /// Whether what follows the head is no body, and is to be dropped.
    pub bodiless: bool,
    /// Whether the bytes given last go on behind the answer.
    pub surplus: bool,
}

/// Reads one answer's head, piece by piece.
#[derive(Debug, Default)]
pub struct HeadReader {
    /// Bytes so far.
    bytes: usize,
    informational: u32,
    /// The beginning of the line that is not at its end.
    line: Vec<u8>,
    status: Option<Status>,
    fields: Vec<(Field, Vec<u8>)>,
    /// Whether the last line was one of [`Self::fields`], so that a folded one goes on with it.
    folds: bool,
    /// There were more lines that matter than are kept.
    overflowed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    code: u16,
    /// HTTP/1.1, where a connection is kept unless it is said otherwise.
    keeps: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Length,
    Transfer,
    Connection,
    RetryAfter,
    /// By which a date in that one is meant.
    Date,
}

const FIELDS: [(&str, Field); 5] = [
    ("content-length", Field::Length),
    ("transfer-encoding", Field::Transfer),
    ("connection", Field::Connection),
    ("retry-after", Field::RetryAfter),
    ("date", Field::Date),
];

/// Where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
    /// Nobody can tell: it is what has already come.
    Unknown,
}

impl HeadReader {
    /// Takes the next bytes. `None`: the head is not at its end.
    ///
    /// # Errors
    /// [`HeadError`]
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Head>, HeadError> {
        let mut used = 0;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            used += piece.len();
            self.bytes = self.bytes.saturating_add(piece.len());
            if self.bytes > HEAD_MAX {
                return Err(HeadError::TooLarge);
            }
            let ended = piece.last() == Some(&b'\n');
            let is_last = if ended && self.line.is_empty() {
                // A whole line, as nearly all are, is read where it lies.
                self.end_line(piece.get(..LINE_MAX).unwrap_or(piece))?
            } else {
                let room = LINE_MAX.saturating_sub(self.line.len());
                self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
                if !ended {
                    if self.status.is_none() {
                        may_be_status(&self.line)?;
                    }
                    continue;
                }
                let mut line = std::mem::take(&mut self.line);
                let is_last = self.end_line(&line)?;
                line.clear();
                self.line = line;
                is_last
            };
            if is_last {
                return Ok(Some(self.finish(bytes.len() - used, used)));
            }
        }
        Ok(None)
    }

    /// Takes a whole line. True: it ends a final head.
    fn end_line(&mut self, line: &[u8]) -> Result<bool, HeadError> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let Some(status) = self.status else {
            // Empty lines before an answer are a leftover of the one before it.
            if !text.is_empty() {
                self.status = Some(status_line(text).ok_or(HeadError::NoStatus)?);
            }
            return Ok(false);
        };
        if !text.is_empty() {
            self.header_line(text);
            return Ok(false);
        }
        // 101 is final: nothing was asked to be upgraded.
        if !(100..200).contains(&status.code) || status.code == 101 {
            return Ok(true);
        }
        self.informational += 1;
        if self.informational > INFORMATIONAL_MAX {
            return Err(HeadError::Informational);
        }
        *self = Self { bytes: self.bytes, informational: self.informational, ..Self::default() };
        Ok(false)
    }

    fn header_line(&mut self, line: &[u8]) {
        if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            if self.folds
                && let Some((_, value)) = self.fields.last_mut()
            {
                let room = LINE_MAX.saturating_sub(value.len());
                value.extend(line.iter().take(room));
            }
            return;
        }
        self.folds = false;
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let Some(value) = parts.next() else { return };
        let known = FIELDS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()));
        let Some((_, field)) = known else { return };
        if self.fields.len() >= FIELDS_MAX {
            self.overflowed = true;
            return;
        }
        self.fields.push((*field, value.to_vec()));
        self.folds = true;
    }

    fn finish(&mut self, left: usize, used: usize) -> Head {
        let Self { status, fields, overflowed, .. } = std::mem::take(self);
        let status = status.unwrap_or(Status { code: 502, keeps: false });
        let values = |wanted: Field| {
            let of_it = fields.iter().filter(move |(field, _)| *field == wanted);
            of_it.flat_map(|(_, value)| value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
        };
        let bodiless = matches!(status.code, 101 | 204 | 304);
        let (frame, certain) = if overflowed {
            (Frame::Unknown, false)
        } else {
            frame(values(Field::Transfer), values(Field::Length))
        };
        let left = u64::try_from(left).unwrap_or(u64::MAX);
        let says = |word: &str| {
            values(Field::Connection).any(|value| value.eq_ignore_ascii_case(word.as_bytes()))
        };
        let surplus = match frame {
            Frame::Length(length) => left > length,
            Frame::Close => bodiless && left > 0,
            Frame::Chunked | Frame::Unknown => false,
        };
        let kept = certain
            && !overflowed
            && !says("close")
            && (status.keeps || says("keep-alive"))
            // What comes after the end would be taken for the next answer.
            && !surplus
            && match frame {
                Frame::Length(length) => !bodiless || length == 0,
                Frame::Chunked => !bodiless,
                Frame::Close => bodiless,
                Frame::Unknown => false,
            };
        let mut plain = String::with_capacity(PLAIN_BYTES);
        // To write to a text never fails.
        let _ = write!(plain, "HTTP/1.1 {} \r\n", status.code);
        let _ = match frame {
            _ if bodiless => Ok(()),
            Frame::Length(length) => write!(plain, "content-length: {length}\r\n"),
            Frame::Unknown => write!(plain, "content-length: {left}\r\n"),
            Frame::Chunked => plain.write_str("transfer-encoding: chunked\r\n"),
            Frame::Close => Ok(()),
        };
        let mut plain = plain.into_bytes();
        let mut line = |text: &[u8]| {
            plain.extend_from_slice(text);
            plain.extend_from_slice(b"\r\n");
        };
        let printable = |wanted: Field| {
            let (_, value) = fields.iter().find(|(field, _)| *field == wanted)?;
            let is_printable = value.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
            is_printable.then(|| value.trim_ascii())
        };
        if let Some(value) = printable(Field::RetryAfter) {
            line(&[b"retry-after: ", value].concat());
            if let Some(date) = printable(Field::Date) {
                line(&[b"date: ", date].concat());
            }
        }
        if !kept {
            line(b"connection: close");
        }
        line(b"");
        Head { plain, used, bodiless, surplus }
    }
}

/// The frame that the values of `transfer-encoding` and `content-length` name, and whether an honest
/// server names it so.
fn frame<'a>(
    transfer: impl Iterator<Item = &'a [u8]>,
    lengths: impl Iterator<Item = &'a [u8]>,
) -> (Frame, bool) {
    let named = |coding: &&[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    let (mut codings, mut last) = (0, None);
    for coding in transfer.filter(named) {
        (codings, last) = (codings + 1, Some(coding));
    }
    let mut lengths = lengths.map(length);
    let first = lengths.next();
    match (last, first) {
        (Some(last), _) if last.eq_ignore_ascii_case(b"chunked") => {
            (Frame::Chunked, codings == 1 && first.is_none())
        }
        (Some(_), _) => (Frame::Close, false),
        (None, None) => (Frame::Close, true),
        (None, Some(Some(length))) if lengths.all(|other| other == Some(length)) => {
            (Frame::Length(length), true)
        }
        (None, Some(_)) => (Frame::Unknown, false),
    }
}

/// A length in decimal digits. No answer is as long as the greatest number that is taken.
fn length(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (length < 1 << 60).then_some(length)
}

const PROTOCOL: &[u8] = b"HTTP/";

/// Whether this beginning of a line may become a status line.
fn may_be_status(line: &[u8]) -> Result<(), HeadError> {
    let line = line.strip_prefix(b"\r").unwrap_or(line);
    let (begun, _) = line.split_at(line.len().min(PROTOCOL.len()));
    let fits = PROTOCOL.get(..begun.len()).is_some_and(|p| p.eq_ignore_ascii_case(begun));
    if fits { Ok(()) } else { Err(HeadError::NoStatus) }
}

/// `HTTP/` version, blanks, three digits, and then the line's end or a blank.
fn status_line(line: &[u8]) -> Option<Status> {
    let (protocol, rest) = line.split_at_checked(PROTOCOL.len())?;
    if !protocol.eq_ignore_ascii_case(PROTOCOL) {
        return None;
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let (version, rest) = rest.split_at(rest.iter().position(blank)?);
    let (digits, rest) = rest.trim_ascii_start().split_at_checked(3)?;
    let ended = rest.first().is_none_or(blank);
    if !digits.iter().all(u8::is_ascii_digit) || !ended {
        return None;
    }
    let code: u16 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (code >= 100).then_some(Status { code, keeps: version == b"1.1" })
}

#[cfg(test)]
mod tests;
