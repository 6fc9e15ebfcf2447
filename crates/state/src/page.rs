//! Pages: deferred deliveries in bulk, as the table `pages` holds them.
//!
//! What a list shows of a delivery stands in arrays of the row, so that SQL can read it. The rest of each
//! event is in `data`: encoded one behind the other, and compressed as one, since neighbours are alike.
//!
//! ```text
//! data     = version (1) ++ zlib(event*)
//! event    = operation (1) ++ commit time (8) ++ keys (1) ++ key (8)* ++ length (4) ++ row
//! ```
//!
//! Numbers are little-endian; times are microseconds since 1970-01-01 UTC.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use tokio_postgres::Row;

use super::place;
use super::{StateError, text, unreadable};
use walhook_core::event::{AccountId, Event, Operation, RowKeys};
use walhook_core::persist::{Deferred, EventKey, RowKey};
use walhook_core::position::EventId;
use walhook_postgres::op::EQ;

const VERSION: u8 = 1;

/// Pages are as small as those of the higher levels, for less.
const LEVEL: Compression = Compression::new(4);

/// So many bytes are decoded at most; far above what a page is made of.
const PLAIN_MAX: u64 = 4 << 20;

/// An operation's code.
fn code(operation: Operation) -> u8 {
    match operation {
        Operation::Insert => 0,
        Operation::Update => 1,
        Operation::Delete => 2,
        Operation::Truncate => 3,
        Operation::Message => 4,
    }
}

/// The operation that has this code.
fn operation(code: u8) -> Option<Operation> {
    Some(match code {
        0 => Operation::Insert,
        1 => Operation::Update,
        2 => Operation::Delete,
        3 => Operation::Truncate,
        4 => Operation::Message,
        _ => return None,
    })
}

/// A page, read back.
#[derive(Debug)]
pub(super) struct Page {
    /// Its deliveries in their order; `None`: it has left the page.
    pub(super) rows: Vec<Option<Deferred>>,
    /// The key of its last delivery.
    pub(super) last: RowKey,
}

/// What [`Page::read`] wants of `pages p`; `$1` is the pipeline.
pub(super) fn page_columns(s: &str) -> String {
    format!(
        "p.page, p.account AS page_account, p.reason AS page_reason, p.event_ids, {}, p.event_types, p.data,
         {} AS slots",
        place::arrays("p."),
        slots(s)
    )
}

/// The places in the page `p` of the pipeline `$1` whose deliveries have left it.
pub(super) fn slots(s: &str) -> String {
    format!(
        "coalesce((SELECT d.slots FROM {s}.page_done d
                   WHERE d.pipeline {EQ} $1 AND d.page {EQ} p.page), '{{}}')"
    )
}

/// A table `d` of the deliveries in pages of the pipeline `$1`, of those alone for which `which` holds, with the
/// columns of `deferred` that name and choose them.
pub(super) fn in_pages(s: &str, which: &str) -> String {
    in_pages_with(s, which, ["", "", ""])
}

/// The same with the time of each event's commit, `committed_at`.
pub(super) fn in_pages_with_commits(s: &str, which: &str) -> String {
    in_pages_with(s, which, [", u.committed_at", ", p.committed_ats", ", committed_at"])
}

fn in_pages_with(s: &str, which: &str, [of_each, arrays, columns]: [&str; 3]) -> String {
    format!(
        "(SELECT p.pipeline, p.endpoint, p.account, u.event_id, u.event_type, {}, p.reason, p.deferred_at,
                 0::bigint AS replay_id{of_each}
          FROM {s}.pages p
          CROSS JOIN LATERAL (SELECT {} AS slots OFFSET 0) done
          CROSS JOIN LATERAL unnest(p.event_ids, p.event_types, {}{arrays})
               WITH ORDINALITY AS u(event_id, event_type, {}{columns}, slot)
          WHERE p.pipeline {EQ} $1 AND {which} AND NOT (u.slot::smallint {EQ} ANY (done.slots))) d",
        place::columns("u."),
        slots(s),
        place::arrays("p."),
        place::columns("")
    )
}

impl Page {
    /// Reads the page back from a row that has [`page_columns`].
    pub(super) fn read(row: &Row) -> Result<Self, StateError> {
        let number: i64 = row.try_get("page")?;
        let what = format!("page {number}");
        let broken = || unreadable(&what)("its parts are not of one length");
        let account = AccountId::new(text::read(row.try_get("page_account")?));
        let ids: Vec<&str> = row.try_get("event_ids")?;
        let types: Vec<&str> = row.try_get("event_types")?;
        let positions = place::read_all(row, &what)?;
        let gone: Vec<i16> = row.try_get("slots")?;
        let rests = decode(row.try_get("data")?).map_err(unreadable(&what))?;
        if [types.len(), positions.len(), rests.len()] != [ids.len(); 3] {
            return Err(broken());
        }
        let mut rows = Vec::with_capacity(ids.len());
        let mut event_type: Arc<str> = "".into();
        let mut last = None;
        let parts = ids.into_iter().zip(types).zip(positions.into_iter().zip(rests));
        for (slot, ((id, of_type), (position, rest))) in (1i16..).zip(parts) {
            if *event_type != *of_type {
                event_type = of_type.into();
            }
            let id: EventId = id.parse().map_err(unreadable(&what))?;
            let event = rest.event(id, position, Arc::clone(&event_type), account.clone());
            let key = RowKey { event: EventKey::of(&event), replay: None };
            last = Some(key.clone());
            rows.push((!gone.contains(&slot)).then(|| Deferred {
                key,
                event: Arc::new(event),
                attempts: 0,
                first_attempt_us: None,
                due_us: None,
            }));
        }
        let last = last.ok_or_else(broken)?;
        Ok(Self { rows, last })
    }
}

/// What of an event is in `data`.
#[derive(Debug, PartialEq, Eq)]
struct Rest {
    operation: Operation,
    commit_time_us: i64,
    keys: RowKeys,
    row: Bytes,
}

impl Rest {
    fn event(
        self,
        id: EventId,
        position: walhook_core::position::Position,
        event_type: Arc<str>,
        account: AccountId,
    ) -> Event {
        let Self { operation, commit_time_us, keys, row } = self;
        Event { id, position, event_type, account, operation, commit_time_us, keys, row }
    }
}

/// Whether an event can stand in a page: one with more keys than a byte counts is a row.
pub(super) fn fits(event: &Event) -> bool {
    event.keys.len() <= usize::from(u8::MAX) && u32::try_from(event.row.len()).is_ok()
}

/// Encodes what a page holds of its events beside the arrays. Each must [fit](fits).
pub(super) fn encode<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(vec![VERSION], LEVEL);
    let mut plain = Vec::new();
    for event in events {
        plain.push(code(event.operation));
        plain.extend(event.commit_time_us.to_le_bytes());
        plain.push(u8::try_from(event.keys.len()).unwrap_or(u8::MAX));
        plain.extend(event.keys.iter().flat_map(|key| key.to_le_bytes()));
        plain.extend(u32::try_from(event.row.len()).unwrap_or(u32::MAX).to_le_bytes());
        plain.extend_from_slice(&event.row);
    }
    match encoder.write_all(&plain).and_then(|()| encoder.finish()) {
        Ok(data) => data,
        Err(error) => panic!("a page cannot be compressed in memory: {error}"),
    }
}

fn decode(data: &[u8]) -> Result<Vec<Rest>, String> {
    let (version, packed) = data.split_first().ok_or("it is empty")?;
    if *version != VERSION {
        return Err(format!("it has version {version}; this walhook reads version {VERSION}"));
    }
    let mut plain = Vec::new();
    ZlibDecoder::new(packed)
        .take(PLAIN_MAX)
        .read_to_end(&mut plain)
        .map_err(|error| error.to_string())?;
    let plain = Bytes::from(plain);
    let (mut rests, mut at) = (Vec::new(), 0);
    let mut take = |length: usize| {
        let end = at + length;
        let part = (end <= plain.len()).then(|| plain.slice(at..end));
        at = end;
        part.ok_or("it ends too early")
    };
    while let Ok(code) = take(1) {
        let [code] = number(&code)?;
        let operation = operation(code).ok_or("it holds an unknown operation")?;
        let commit_time_us = i64::from_le_bytes(number(&take(8)?)?);
        let [count] = number(&take(1)?)?;
        let keys = take(8 * usize::from(count))?;
        let keys = keys.chunks(8).map(|key| number(key).map(u64::from_le_bytes));
        let keys = keys.collect::<Result<RowKeys, &str>>()?;
        let length = u32::from_le_bytes(number(&take(4)?)?);
        // A copy of its own: a slice would keep the whole page in memory with the last of its events.
        let row = Bytes::copy_from_slice(&take(usize::try_from(length).unwrap_or(usize::MAX))?);
        rests.push(Rest { operation, commit_time_us, keys, row });
    }
    Ok(rests)
}

fn number<const N: usize>(bytes: &[u8]) -> Result<[u8; N], &'static str> {
    bytes.try_into().map_err(|_| "it ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::event;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn page_is_read_back_as_it_was_written(
            parts in prop::collection::vec(
                (0u8..5, any::<i64>(), prop::collection::vec(any::<u64>(), 0..4),
                 prop::collection::vec(any::<u8>(), 0..200)), 1..40)
        ) {
            let like = event(0x100, "1");
            let events: Vec<Event> = parts.into_iter().map(|(code, time, keys, row)| Event {
                operation: operation(code).unwrap(),
                commit_time_us: time,
                keys: keys.into_iter().collect(),
                row: row.into(),
                id: like.id,
                position: like.position,
                event_type: Arc::clone(&like.event_type),
                account: like.account.clone(),
            }).collect();
            let rests = decode(&encode(events.iter())).unwrap();
            let back: Vec<Event> = rests.into_iter().map(|rest| {
                rest.event(like.id, like.position, Arc::clone(&like.event_type), like.account.clone())
            }).collect();
            prop_assert_eq!(back, events);
        }

        #[test]
        fn page_that_was_cut_or_changed_is_refused_or_read_but_never_panics(
            cut in 0usize..200, at in 0usize..200, byte in any::<u8>()
        ) {
            let mut data = encode(std::iter::once(&*event(0x100, "1")));
            let length = data.len();
            data[at % length] = byte;
            data.truncate(cut.min(length));
            let _ = decode(&data);
        }
    }
}
