//! How fast deferred rows come and go, and what they cost at a start. Prints its figures:
//! `ROWS=1000000 cargo nextest run -p walhook-state --run-ignored only --no-capture tests::load`

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::fixture::{Fixture, defer, event, queue, row_id};
use super::batch;
use walhook_core::event::Event;
use walhook_core::persist::{Defer, PersistBatch, Refill, RowId, RowKey, Tried};

/// As many rows as the leader inserts at once.
const BATCH: u64 = 5_000;

const QUEUES: u64 = 32;

/// An event of 600 bytes.
fn sized(n: u64) -> Arc<Event> {
    let small = Arc::into_inner(event(0x1000 + n * 8, "1")).unwrap();
    let row = Bytes::from(format!("\"data\":{{\"id\":{n},\"text\":\"{}\"}}", "x".repeat(560)));
    Arc::new(Event { row, ..small })
}

/// This process's resident memory, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How many bytes of WAL the server has written.
async fn wal_end(fixture: &Fixture) -> f64 {
    let sql = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    fixture.admin.query_one(sql, &[]).await.unwrap().get(0)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
#[tokio::test]
#[ignore = "takes minutes, and asserts little: it is there for its figures"]
async fn rows_are_filled_and_drained() {
    let rows: u64 = std::env::var("ROWS").map_or(200_000, |rows| rows.parse().unwrap());
    let fixture =
        Fixture::start_with(&[("max_wal_size", "8GB"), ("checkpoint_timeout", "1h")]).await;
    let mut store = fixture.open().await;
    let began = Instant::now();
    store.take_lease("one").await.unwrap();
    println!("lease taken with an empty table: {:?}, {} KiB", began.elapsed(), resident_kib());

    // As a quiet hour has it: full pages after a checkpoint are not what rows cost.
    fixture.admin.batch_execute("CHECKPOINT").await.unwrap();
    let start = wal_end(&fixture).await;
    let began = Instant::now();
    for from in (0..rows / BATCH).map(|batch| batch * BATCH) {
        let defer =
            |n| Defer { tried: Tried::default(), ..defer(&sized(n), &(n % QUEUES).to_string()) };
        let deferred = (from..from + BATCH).map(defer).collect();
        store.persist(&PersistBatch { deferred, ..batch(0x100) }).await.unwrap();
    }
    println!("filled in {:?}", began.elapsed());
    println!("{:?}", store.sizes().await.unwrap());
    let filled = wal_end(&fixture).await;
    println!("{} bytes of WAL a row to fill", (filled - start) / rows as f64);

    let before = resident_kib();
    let began = Instant::now();
    fixture.open().await.take_lease("two").await.unwrap();
    let (took, after) = (began.elapsed(), resident_kib());
    println!("opened, and lease taken with {rows} rows: {took:?}, {before} -> {after} KiB");

    store.take_lease("three").await.unwrap();
    let mut from: Vec<Option<RowKey>> = (0..QUEUES).map(|_| None).collect();
    let (mut read, mut reading) = (0, 0.0);
    let began = Instant::now();
    loop {
        let ask = |(n, from): (usize, &Option<RowKey>)| Refill {
            queue: queue(&n.to_string()),
            from: from.clone(),
            rows: 128,
            bytes: 4 << 20,
        };
        let refills: Vec<Refill> = from.iter().enumerate().map(ask).collect();
        let asked = Instant::now();
        let pages = store.refill(&refills).await.unwrap();
        reading += asked.elapsed().as_secs_f64();
        let mut resolved: Vec<RowId> = Vec::new();
        for (n, page) in pages.iter().enumerate() {
            resolved.extend(page.rows.iter().map(|row| row_id(&row.event, &n.to_string())));
            from[n] = page.rows.last().map(|row| row.key.successor()).or(from[n].take());
        }
        if resolved.is_empty() {
            break;
        }
        read += resolved.len() as u64;
        store.persist(&PersistBatch { resolved, ..batch(0x100) }).await.unwrap();
    }
    println!("drained in {:?}, {reading:.1} s of it reading", began.elapsed());
    let drained = wal_end(&fixture).await - filled;
    println!("{} bytes of WAL a row to drain", drained / rows as f64);
    assert_eq!((read, fixture.count("bodies").await), (rows / BATCH * BATCH, 0));
}
