//! What a stream has beside messages of committed transactions, where it streams open ones: the blocks in
//! which those are sent, and what became of them.
//!
//! ```text
//! S xid ── R I I U M … each with the xid of its own (sub)transaction ── E      any number of times
//! A xid subxid                a part of it was rolled back, or (the same xid twice) all of it
//! c xid commit_lsn end_lsn    it has committed
//! ```
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats"; `proto.c`, `pgoutput.c`.

use super::DecodeError;
use super::decode::Reader;
use walhook_core::lsn::Lsn;

const START: u8 = b'S';
const STOP: u8 = b'E';
const COMMIT: u8 = b'c';
const ABORT: u8 = b'A';

/// A message about a transaction that is sent while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `S`: what follows, until `Stop`, belongs to this transaction.
    Start {
        /// Its 32-bit transaction id.
        xid: u32,
        /// Whether it is its first block.
        first: bool,
    },
    /// `E`: the block ends.
    Stop,
    /// `c`: it has committed. Comes in the order of commit records, as BEGIN does.
    Commit {
        /// Its transaction id.
        xid: u32,
        /// The LSN of its commit record.
        commit_lsn: Lsn,
        /// The end of that record.
        end_lsn: Lsn,
        /// Microseconds since 1970-01-01 UTC.
        commit_time_us: i64,
    },
    /// `A`: one of its sub-transactions was rolled back, without those that it contains: each has a message
    /// of its own.
    Abort {
        /// Its transaction id.
        xid: u32,
        /// The sub-transaction's; the same as `xid` where the whole was rolled back.
        subxid: u32,
    },
}

/// Decodes a message about an open transaction; `None` where `payload` is another message.
///
/// Shape, units and invariant: as of [`decode`](super::decode).
///
/// # Errors
/// [`DecodeError`], whatever the bytes; it never panics.
pub fn decode_block(payload: &[u8]) -> Result<Option<Block>, DecodeError> {
    let mut body = Reader::new(payload);
    let block = match body.u8("tag")? {
        START => {
            Block::Start { xid: body.u32("transaction id")?, first: body.u8("first block")? != 0 }
        }
        STOP => Block::Stop,
        COMMIT => {
            let xid = body.u32("transaction id")?;
            body.u8("flags")?;
            let (commit_lsn, end_lsn) = (body.lsn("commit LSN")?, body.lsn("end LSN")?);
            Block::Commit { xid, commit_lsn, end_lsn, commit_time_us: body.time("commit time")? }
        }
        ABORT => Block::Abort {
            xid: body.u32("transaction id")?,
            subxid: body.u32("sub-transaction id")?,
        },
        _ => return Ok(None),
    };
    body.end(Some(block))
}

/// A message within a block: its tag, the (sub)transaction that it belongs to, and its body. Tag and body
/// together are the message as it is sent outside of blocks.
///
/// A logical message has the xid of the whole transaction, whichever sub-transaction wrote it: the server
/// does not say (`pgoutput_message`).
///
/// # Errors
/// [`DecodeError::Truncated`]
pub fn split_in_block(payload: &[u8]) -> Result<(u8, u32, &[u8]), DecodeError> {
    let mut body = Reader::new(payload);
    let tag = body.u8("tag")?;
    Ok((tag, body.u32("transaction id")?, body.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::PG_EPOCH_US;

    #[test]
    fn block_messages_are_told_from_others_and_consumed_whole() {
        let commit = [&b"c\0\0\0\x07\0"[..], &[0, 0, 0, 0, 0, 0, 0, 9], &[0, 0, 0, 0, 0, 0, 0, 10]];
        let commit = [&commit.concat()[..], &1i64.to_be_bytes()].concat();
        let cases: [(&[u8], Block); 5] = [
            (b"S\0\0\0\x07\x01", Block::Start { xid: 7, first: true }),
            (b"S\0\0\0\x07\0", Block::Start { xid: 7, first: false }),
            (b"E", Block::Stop),
            (
                &commit,
                Block::Commit {
                    xid: 7,
                    commit_lsn: Lsn(9),
                    end_lsn: Lsn(10),
                    commit_time_us: PG_EPOCH_US + 1,
                },
            ),
            (b"A\0\0\0\x07\0\0\0\x08", Block::Abort { xid: 7, subxid: 8 }),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode_block(bytes), Ok(Some(expected)));
            for end in 0..bytes.len() {
                let part = decode_block(&bytes[..end]);
                assert!(matches!(part, Err(DecodeError::Truncated { .. })), "{end}: {part:?}");
            }
            let longer = [bytes, &[0]].concat();
            assert_eq!(decode_block(&longer), Err(DecodeError::Leftover { bytes: 1 }));
        }
        assert_eq!(decode_block(b"Iabc"), Ok(None));
        assert_eq!(decode_block(b""), Err(DecodeError::Truncated { field: "tag" }));
    }

    #[test]
    fn messages_in_a_block_are_split_at_their_xid() {
        assert_eq!(split_in_block(b"I\0\0\x01\0abc"), Ok((b'I', 256, &b"abc"[..])));
        let truncated = Err(DecodeError::Truncated { field: "transaction id" });
        assert_eq!(split_in_block(b"I\0\0\x01"), truncated);
    }
}
