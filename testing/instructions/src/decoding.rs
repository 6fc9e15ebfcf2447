//! Rows of committed transactions, as the server sends them.

use anyhow::{Result, ensure};
use bytes::{BufMut, BytesMut};
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::{Protocol, decode};

/// Rows of a transaction.
const ROWS: u64 = 10;

const RELATION: u32 = 16_384;

/// Column, type OID.
const COLUMNS: [(&str, u32); 5] =
    [("id", 20), ("account_id", 20), ("email", 25), ("status", 25), ("version", 20)];

const VALUES: [&str; 5] = ["123456", "42", "subscriber-123456@shop.example", "active", "123457"];

pub(crate) struct Work {
    /// Each with its position.
    messages: Vec<(Lsn, BytesMut)>,
    rows: u64,
}

impl Work {
    /// So many rows.
    pub(crate) fn of(count: u64) -> Self {
        let mut messages = vec![(Lsn(0), relation())];
        let transactions = count.div_ceil(ROWS);
        for transaction in 0..transactions {
            let begin = 1_000 + transaction * 1_000;
            let commit = begin + 500;
            messages.push((Lsn(begin), begin_message(commit)));
            messages.extend((0..ROWS).map(|n| (Lsn(begin + n), insert())));
            messages.push((Lsn(commit), commit_message(commit)));
        }
        // The server describes a table within the transaction that first changes it.
        messages.swap(0, 1);
        Self { messages, rows: transactions * ROWS }
    }

    pub(crate) fn run(self) -> Result<()> {
        let mut changes = Changes::new(Lsn(0));
        let mut rows = 0;
        for (wal_start, payload) in &self.messages {
            let steps = changes.handle(*wal_start, decode(Protocol::V1, payload)?)?;
            rows += steps.iter().filter(|step| matches!(step, Step::Change(_))).count() as u64;
        }
        ensure!(rows == self.rows, "{rows} of {} rows were decoded", self.rows);
        Ok(())
    }
}

fn begin_message(commit: u64) -> BytesMut {
    let mut message = BytesMut::new();
    message.put_u8(b'B');
    message.put_u64(commit);
    message.put_i64(0);
    message.put_u32(7);
    message
}

fn commit_message(commit: u64) -> BytesMut {
    let mut message = BytesMut::new();
    message.put_slice(b"C\0");
    message.put_u64(commit);
    message.put_u64(commit + 100);
    message.put_i64(0);
    message
}

fn relation() -> BytesMut {
    let mut message = BytesMut::new();
    message.put_u8(b'R');
    message.put_u32(RELATION);
    message.put_slice(b"public\0subscribers\0d");
    message.put_u16(5);
    for (name, of_type) in COLUMNS {
        message.put_u8(u8::from(name == "id"));
        message.put_slice(name.as_bytes());
        message.put_u8(0);
        message.put_u32(of_type);
        message.put_i32(-1);
    }
    message
}

fn insert() -> BytesMut {
    let mut message = BytesMut::new();
    message.put_u8(b'I');
    message.put_u32(RELATION);
    message.put_slice(b"N\0\x05");
    for value in VALUES {
        message.put_u8(b't');
        message.put_u32(u32::try_from(value.len()).unwrap_or_default());
        message.put_slice(value.as_bytes());
    }
    message
}
