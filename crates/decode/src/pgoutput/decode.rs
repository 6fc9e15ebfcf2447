//! Bytes → one message.
//!
//! The bytes come from a server that we trust no further than its length fields: every read is
//! checked against what is left, and no length sizes an allocation before it was.

use super::{
    Column, Datum, Message, OldTuple, PG_EPOCH_US, Protocol, Relation, TIMES_US, Tuple as Row,
};
use walhook_core::catalog::ReplicaIdentity;
use walhook_core::lsn::Lsn;

const BEGIN: u8 = b'B';
const COMMIT: u8 = b'C';
pub(crate) const ORIGIN: u8 = b'O';
pub(crate) const RELATION: u8 = b'R';
pub(crate) const TYPE: u8 = b'Y';
pub(super) const INSERT: u8 = b'I';
pub(super) const UPDATE: u8 = b'U';
pub(super) const DELETE: u8 = b'D';
const TRUNCATE: u8 = b'T';
pub(super) const LOGICAL: u8 = b'M';

const NEW_TUPLE: u8 = b'N';
const KEY_TUPLE: u8 = b'K';
const OLD_TUPLE: u8 = b'O';

const DATUM_NULL: u8 = b'n';
const DATUM_UNCHANGED: u8 = b'u';
const DATUM_TEXT: u8 = b't';

const IDENTITY_DEFAULT: u8 = b'd';
const IDENTITY_NOTHING: u8 = b'n';
const IDENTITY_FULL: u8 = b'f';
const IDENTITY_INDEX: u8 = b'i';

/// The flag of a column that is part of the replica identity.
const COLUMN_KEY: u8 = 1;
/// The flag of a transactional logical message.
const LOGICAL_TRANSACTIONAL: u8 = 1;

/// The bytes are not a message of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before its last field does.
    #[error("the pgoutput message ends before its {field} is complete")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// Bytes are left after its last field.
    #[error("the pgoutput message has {bytes} bytes too many")]
    Leftover {
        /// How many.
        bytes: usize,
    },
    /// Its first byte names no message of this protocol version.
    #[error("pgoutput message tag {:?} is not known", char::from(*.0))]
    UnknownTag(u8),
    /// A byte inside it has a value that the protocol does not give it.
    #[error("the pgoutput message has an unknown {field} {:?}", char::from(*.byte))]
    UnknownByte {
        /// What was being read.
        field: &'static str,
        /// What was read.
        byte: u8,
    },
    /// A text is not UTF-8 although the session asks for that encoding.
    #[error("the {field} in the pgoutput message is not UTF-8")]
    Utf8 {
        /// What was being read.
        field: &'static str,
        /// Where it stops being UTF-8.
        #[source]
        source: std::str::Utf8Error,
    },
}

/// Decodes one pgoutput message of a stream that was started with `protocol`, outside of blocks.
///
/// Shape: tag (1 byte) ++ body, big-endian, without the 25-byte header of XLogData.
/// Units: an LSN is a WAL byte position; times are µs since 2000-01-01 UTC there and since
/// 1970-01-01 UTC in the result.
/// Invariant: every byte of `payload` is consumed; nothing is copied but what RELATION says.
///
/// # Errors
/// [`DecodeError`], whatever the bytes; it never panics.
///
/// Source: PostgreSQL manual, "Logical Replication Message Formats".
pub fn decode(protocol: Protocol, payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    match protocol {
        Protocol::V1 | Protocol::V2 | Protocol::V4 => decode_whole(payload),
    }
}

fn decode_whole(payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut body = Reader { rest: payload };
    let message = match body.u8("tag")? {
        BEGIN => begin(&mut body)?,
        COMMIT => commit(&mut body)?,
        ORIGIN => {
            body.u64("origin LSN")?;
            body.text("origin name")?;
            Message::Ignored
        }
        RELATION => Message::Relation(relation(&mut body)?),
        TYPE => Message::Type {
            oid: body.u32("type OID")?,
            schema: body.schema("type schema")?,
            name: body.text("type name")?,
        },
        INSERT => Message::Insert { relation: body.u32("relation OID")?, new: new_row(&mut body)? },
        UPDATE => update(&mut body)?,
        DELETE => {
            let relation = body.u32("relation OID")?;
            let kind = body.u8("tuple kind")?;
            Message::Delete { relation, old: old_row(kind, &mut body)? }
        }
        TRUNCATE => truncate(&mut body)?,
        LOGICAL => logical(&mut body)?,
        tag => return Err(DecodeError::UnknownTag(tag)),
    };
    body.end(message)
}

fn begin<'a>(body: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    Ok(Message::Begin {
        commit_lsn: body.lsn("commit LSN")?,
        commit_time_us: body.time("commit time")?,
        xid: body.u32("transaction id")?,
    })
}

fn commit<'a>(body: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    body.u8("flags")?;
    let commit_lsn = body.lsn("commit LSN")?;
    let end_lsn = body.lsn("end LSN")?;
    body.time("commit time")?;
    Ok(Message::Commit { commit_lsn, end_lsn })
}

fn relation(body: &mut Reader<'_>) -> Result<Relation, DecodeError> {
    let oid = body.u32("relation OID")?;
    let schema = body.schema("schema name")?;
    let name = body.text("relation name")?;
    let identity = match body.u8("replica identity")? {
        IDENTITY_DEFAULT => ReplicaIdentity::Default,
        IDENTITY_NOTHING => ReplicaIdentity::Nothing,
        IDENTITY_FULL => ReplicaIdentity::Full,
        IDENTITY_INDEX => ReplicaIdentity::Index,
        byte => return Err(DecodeError::UnknownByte { field: "replica identity", byte }),
    };
    let count = usize::from(body.u16("column count")?);
    let mut columns = Vec::with_capacity(count.min(body.rest.len()));
    for _ in 0..count {
        columns.push(Column {
            key: body.u8("column flags")? & COLUMN_KEY != 0,
            name: body.text("column name")?.to_owned(),
            type_oid: body.u32("column type")?,
            type_modifier: body.i32("type modifier")?,
        });
    }
    Ok(Relation { oid, schema: schema.to_owned(), name: name.to_owned(), identity, columns })
}

fn update<'a>(body: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let relation = body.u32("relation OID")?;
    let kind = body.u8("tuple kind")?;
    if kind == NEW_TUPLE {
        return Ok(Message::Update { relation, old: None, new: row(body)? });
    }
    let old = Some(old_row(kind, body)?);
    Ok(Message::Update { relation, old, new: new_row(body)? })
}

fn truncate<'a>(body: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let count = body.u32("relation count")?;
    // CASCADE and RESTART IDENTITY: what they did to other tables is listed, sequences are not
    // ours.
    body.u8("truncate options")?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut relations = Vec::with_capacity(count.min(body.rest.len() / 4));
    for _ in 0..count {
        relations.push(body.u32("relation OID")?);
    }
    Ok(Message::Truncate { relations })
}

fn logical<'a>(body: &mut Reader<'a>) -> Result<Message<'a>, DecodeError> {
    let transactional = body.u8("message flags")? & LOGICAL_TRANSACTIONAL != 0;
    let lsn = body.lsn("message LSN")?;
    let prefix = body.text("message prefix")?;
    let content = body.counted("message content")?;
    Ok(Message::Logical { transactional, lsn, prefix, content })
}

/// LSN and prefix of a transaction's logical message, from its beginning behind the tag; `None` where
/// it belongs to no transaction, or the prefix does not end in `head`.
pub(crate) fn logical_head(head: &[u8]) -> Result<Option<(Lsn, &str)>, DecodeError> {
    let mut body = Reader { rest: head };
    let transactional = body.u8("message flags")? & LOGICAL_TRANSACTIONAL != 0;
    let lsn = body.lsn("message LSN")?;
    let ends = body.rest.contains(&0);
    if transactional && ends { Ok(Some((lsn, body.text("message prefix")?))) } else { Ok(None) }
}

fn new_row<'a>(body: &mut Reader<'a>) -> Result<Row<'a>, DecodeError> {
    match body.u8("tuple kind")? {
        NEW_TUPLE => row(body),
        byte => Err(DecodeError::UnknownByte { field: "tuple kind", byte }),
    }
}

fn old_row<'a>(kind: u8, body: &mut Reader<'a>) -> Result<OldTuple<'a>, DecodeError> {
    match kind {
        KEY_TUPLE => Ok(OldTuple::Key(row(body)?)),
        OLD_TUPLE => Ok(OldTuple::Full(row(body)?)),
        byte => Err(DecodeError::UnknownByte { field: "tuple kind", byte }),
    }
}

fn row<'a>(body: &mut Reader<'a>) -> Result<Row<'a>, DecodeError> {
    let count = usize::from(body.u16("column count")?);
    let mut datums = Vec::with_capacity(count.min(body.rest.len()));
    for _ in 0..count {
        datums.push(match body.u8("column kind")? {
            DATUM_NULL => Datum::Null,
            DATUM_UNCHANGED => Datum::Unchanged,
            DATUM_TEXT => Datum::Text(utf8("column value", body.counted("column value")?)?),
            byte => return Err(DecodeError::UnknownByte { field: "column kind", byte }),
        });
    }
    Ok(Row(datums))
}

fn utf8<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|source| DecodeError::Utf8 { field, source })
}

/// What is left of a message.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// What was read, unless bytes are left.
    pub(super) fn end<T>(self, read: T) -> Result<T, DecodeError> {
        match self.rest.len() {
            0 => Ok(read),
            bytes => Err(DecodeError::Leftover { bytes }),
        }
    }

    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(u8::from_be_bytes)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn i32(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.array(field).map(i32::from_be_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_be_bytes)
    }

    pub(super) fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.u64(field).map(Lsn)
    }

    /// Units: µs since 2000 in the bytes, since 1970 in the result. Within [`TIMES_US`]: a session that applies the
    /// transactions of another server may say anything of their times, infinity too.
    pub(super) fn time(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let since_2000 = self.array(field).map(i64::from_be_bytes)?;
        Ok(since_2000.saturating_add(PG_EPOCH_US).clamp(*TIMES_US.start(), *TIMES_US.end()))
    }

    /// A string that ends at a zero byte.
    fn text(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let end = self.rest.iter().position(|b| *b == 0).ok_or(DecodeError::Truncated { field })?;
        let bytes = self.take(end, field)?;
        self.take(1, field)?;
        utf8(field, bytes)
    }

    /// A schema's name. The protocol abbreviates that of `pg_catalog` to nothing.
    fn schema(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        let name = self.text(field)?;
        Ok(if name.is_empty() { "pg_catalog" } else { name })
    }

    /// Bytes behind their 32-bit count.
    fn counted(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let count = self.u32(field)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX), field)
    }
}
