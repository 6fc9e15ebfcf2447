//! The events that the parts are given.

use std::sync::Arc;

use bytes::Bytes;
use walhook_core::event::{AccountId, Event, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};

/// The account of this number.
pub(crate) fn account(n: u64) -> AccountId {
    AccountId::new(n.to_string().as_str())
}

/// The event of this number, which commits at `commit`. Its body has about 360 bytes.
pub(crate) fn event(n: u64, of: u64, commit: Lsn) -> Arc<Event> {
    let position = Position::Wal(WalPosition {
        commit_lsn: commit,
        change_lsn: Lsn(commit.0 - 8),
        relation: 16_384,
        n: 0,
    });
    let commit_time_us = 1_763_919_960_123_456;
    Arc::new(Event {
        id: EventId::derive(1, &position, "subscriber.created", commit_time_us),
        position,
        event_type: "subscriber.created".into(),
        account: account(of),
        operation: Operation::Insert,
        commit_time_us,
        keys: RowKeys::from_slice(&[n]),
        row: Bytes::from(format!(
            "\"data\":{{\"id\":{n},\"email\":\"subscriber-{n}@shop.example\",\"status\":\"active\",\
             \"note\":\"Joined a segment by the form on the page and confirmed a moment later; nothing else \
             is known of them yet.\"}}"
        )),
    })
}
