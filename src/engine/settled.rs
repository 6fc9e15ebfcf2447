//! The encoding of settled ranges in the state tables.

use std::sync::Arc;

use super::event::{AccountId, EndpointId};
use super::lsn::Lsn;
use super::persist::{EventKey, SettledRange};
use super::position::{Position, WalPosition};

/// The bytes are not what [`encode`] makes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the settled ranges cannot be read")]
pub struct DecodeError;

/// Encodes ranges for the table `settled`.
#[must_use]
pub fn encode(ranges: &[SettledRange]) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, s: &str| {
        out.extend_from_slice(&u32::try_from(s.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(s.as_bytes());
    };
    for range in ranges {
        text(&mut out, &range.account);
        text(&mut out, &range.endpoint);
        for key in [&range.from, &range.to] {
            let Position::Wal(p) = key.position;
            out.extend_from_slice(&p.commit_lsn.0.to_be_bytes());
            out.extend_from_slice(&p.change_lsn.0.to_be_bytes());
            out.extend_from_slice(&p.relation.to_be_bytes());
            out.extend_from_slice(&p.n.to_be_bytes());
            text(&mut out, &key.event_type);
        }
    }
    out
}

/// Reads what [`encode`] made.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Vec<SettledRange>, DecodeError> {
    let mut rest = bytes;
    let mut ranges = Vec::new();
    while !rest.is_empty() {
        ranges.push(range(&mut rest).ok_or(DecodeError)?);
    }
    Ok(ranges)
}

fn range(rest: &mut &[u8]) -> Option<SettledRange> {
    Some(SettledRange {
        account: AccountId::new(text(rest)?),
        endpoint: EndpointId::new(text(rest)?),
        from: key(rest)?,
        to: key(rest)?,
    })
}

fn key(rest: &mut &[u8]) -> Option<EventKey> {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(u64::from_be_bytes(take(rest)?)),
        change_lsn: Lsn(u64::from_be_bytes(take(rest)?)),
        relation: u32::from_be_bytes(take(rest)?),
        n: u32::from_be_bytes(take(rest)?),
    });
    Some(EventKey { position, event_type: text(rest)? })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn text(rest: &mut &[u8]) -> Option<Arc<str>> {
    let length = usize::try_from(u32::from_be_bytes(take(rest)?)).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    std::str::from_utf8(head).ok().map(Arc::from)
}

/// The highest commit LSN that the ranges reach; `None` when there are none.
#[must_use]
pub fn last_commit_lsn(ranges: &[SettledRange]) -> Option<Lsn> {
    ranges.iter().map(|range| range.to.position.commit_lsn()).max()
}
