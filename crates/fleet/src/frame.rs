//! What leader and worker say to each other, in bytes.
//!
//! ```text
//! frame = "WH" ++ version u8 ++ kind u8 ++ epoch u64 ++ session u128 ++ seq u64 ++ body
//! ```
//!
//! Big-endian; the body is a protobuf message, of which each kind has one: a reader passes over fields that it does
//! not know. Field [`PIPELINE_FIELD`] of every kind names the pipeline: others may use the same subjects. `Lead`, `Hello` and `Refused` are always of version [`OLDEST`], for they find out what both speak; all
//! others are of the session's.
//!
//! What is read is bounded before it is kept: a frame that says more than its kind may is an error, never a panic.

mod body;
mod numbers;
mod outcome;
mod scan;
mod wire;

use std::fmt;
use std::ops::RangeInclusive;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use walhook_core::id::Epoch;

pub use body::{
    Abort, Attempts, Body, Bye, ByeReason, Digest, Earlier, Grant, Hello, HelloState, Lead,
    Outcomes, Refusal, Refused, Request, WireOutcome,
};

/// Of every frame of any version.
const MAGIC: [u8; 2] = *b"WH";

/// Bytes before the body.
pub const HEADER_BYTES: usize = 2 + 1 + 1 + 8 + 16 + 8;

/// The field of every kind that names the pipeline.
pub const PIPELINE_FIELD: u32 = 100;

/// Bytes of one frame at most, as large as a server of the bus may be set to take them.
pub const FRAME_MAX: usize = 64 << 20;

/// The version that `Lead`, `Hello` and `Refused` have for ever.
pub const OLDEST: u8 = 1;

/// The versions that this build speaks: the newest and, once there are two, the one before it.
pub const SPOKEN: Versions = Versions { oldest: 1, newest: 1 };

/// Requests in one frame at most.
pub const ATTEMPTS_MAX: usize = 64;

/// Bytes of requests after which no further one is put into a frame.
pub const ATTEMPTS_BYTES: usize = 64 << 10;

/// Outcomes in one frame at most.
pub const OUTCOMES_MAX: usize = 256;

/// The keys from here on are workers' own, of requests that leaders before this one ordered; a leader's count from 0.
pub const EARLIER_KEYS: u64 = 1 << 63;

/// Sessions under earlier leaders that a worker names at most.
pub const FORMER_MAX: usize = 16;

/// Requests that one frame gives up at most.
pub const ABORTS_MAX: usize = 1_024;

/// Bytes of an outcome's text at most.
pub const TEXT_MAX: usize = 2 << 10;

/// Bytes of a worker's host and of its build at most.
pub const NAME_MAX: usize = 255;

/// Headers of one request at most: those of the endpoint's row, and ours.
pub const HEADERS_MAX: usize = walhook_core::endpoint::HEADERS_MAX + 32;

/// Bytes of one request's headers at most, with as much as ten signatures take.
pub const HEADERS_BYTES_MAX: usize = walhook_core::endpoint::HEADERS_BYTES_MAX + (16 << 10);

/// One worker under one leader. Random, so that no other has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId(pub u128);

impl SessionId {
    /// Reads what `Display` writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.len() == 32
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        plain.then(|| u128::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A worker's process, whatever its sessions. Random, so that no other has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(pub u128);

/// One pipeline: the same for all its leaders, and another one's is another. No secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PipelineId(pub [u8; 16]);

/// The versions of frames that somebody speaks: all from the oldest to the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The least.
    pub oldest: u8,
    /// The greatest.
    pub newest: u8,
}

impl Versions {
    /// The highest that both speak, where there is one.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u8> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    fn range(self) -> RangeInclusive<u8> {
        self.oldest.min(OLDEST)..=self.newest
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// How it is written.
    pub version: u8,
    /// The leader that it is from, or for.
    pub epoch: Epoch,
    /// Whose leader and worker speak; one of an earlier build does not say.
    pub pipeline: Option<PipelineId>,
    /// The session; 0 in a [`Lead`], which is for all.
    pub session: SessionId,
    /// Counts what one side sends on one subject, from 1; 0 where nothing goes by it.
    pub seq: u64,
    /// What it says.
    pub body: Body,
}

/// These bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is longer than [`FRAME_MAX`], or shorter than a header.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// It does not begin as a frame does.
    #[error("no frame of walhook")]
    Magic,
    /// It is of a version that this build does not speak.
    #[error("a frame of version {0}, which this build does not speak")]
    Version(u8),
    /// It is of a kind that this build does not know.
    #[error("a frame of kind {0}, which this build does not know")]
    Kind(u8),
    /// Its body is none of its kind.
    #[error("the body of kind {kind} cannot be read: {error}")]
    Body {
        /// The kind.
        kind: u8,
        /// Why.
        error: prost::DecodeError,
    },
    /// A field is missing, or holds what it cannot.
    #[error("{0} is missing, or is none")]
    Field(&'static str),
    /// A field holds more than it may.
    #[error("{what}: {found}, more than {max}")]
    TooMuch {
        /// Which.
        what: &'static str,
        /// So much.
        found: usize,
        /// So much may be.
        max: usize,
    },
}

/// What of a frame stands before its body: enough to name the session that a frame ends which cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How the frame is written.
    pub version: u8,
    /// The number of its kind.
    pub kind: u8,
    /// The leader that it is from, or for.
    pub epoch: Epoch,
    /// The session.
    pub session: SessionId,
    /// The frame's number.
    pub seq: u64,
}

impl Header {
    /// Reads what stands before the body; `None`: it is no frame, or one of a version with another header.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let ([version, kind], rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (seq, _) = rest.split_first_chunk()?;
        Some(Self {
            version: *version,
            kind: *kind,
            epoch: Epoch(i64::from_be_bytes(*epoch)),
            session: SessionId(u128::from_be_bytes(*session)),
            seq: u64::from_be_bytes(*seq),
        })
    }
}

impl Frame {
    /// In bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = wire::Kind::of(&self.body);
        let pipeline = wire::PipelineBody::from(self.pipeline);
        let length = HEADER_BYTES + body.encoded_len() + pipeline.encoded_len();
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put_slice(&MAGIC);
        bytes.put_u8(self.version);
        bytes.put_u8(body.number());
        bytes.put_i64(self.epoch.0);
        bytes.put_u128(self.session.0);
        bytes.put_u64(self.seq);
        body.encode(&mut bytes);
        // It grows as it needs: there is always room.
        let _ = pipeline.encode(&mut bytes);
        bytes.freeze()
    }

    /// Reads a frame of a version that is among `spoken`.
    ///
    /// Invariant: what [`Frame::encode`] wrote within the bounds of this module is read back as it was.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn decode(bytes: Bytes, spoken: Versions) -> Result<Self, FrameError> {
        if bytes.len() > FRAME_MAX || bytes.len() < HEADER_BYTES {
            return Err(FrameError::Length(bytes.len()));
        }
        let Header { version, kind, epoch, session, seq } =
            Header::read(&bytes).ok_or(FrameError::Magic)?;
        if !spoken.range().contains(&version) {
            return Err(FrameError::Version(version));
        }
        let body = bytes.slice(HEADER_BYTES..);
        let pipeline = wire::pipeline(&body)?;
        let body = wire::Kind::decode(kind, body)?;
        Ok(Self { version, epoch, pipeline, session, seq, body })
    }
}

/// Reads a body of one kind.
fn read<M: Message + Default>(kind: u8, body: Bytes) -> Result<M, FrameError> {
    M::decode(body).map_err(|error| FrameError::Body { kind, error })
}

#[cfg(test)]
mod tests;
