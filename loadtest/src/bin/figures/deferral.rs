//! Deliveries that are deferred and later delivered: the WAL and the bytes on disk that one costs the primary,
//! how fast they are stored and read back, and what of the tables stays.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, interval};
use walhook_loadtest::world::World;

use crate::bare::Own;
use crate::decoding;
use crate::outage::Outage;
use walhook_loadtest::figure::{Better, Figure};

/// Rows of a round of [`growth`].
const ROUND: u64 = 2_000;

/// Rounds of [`growth`], at full size.
pub(crate) const ROUNDS: f64 = 100.0;

/// The anchor does not move, and what was tried has not long to wait.
const ROUNDS_ENV: [(&str, &str); 2] =
    [("WALHOOK_SOURCE__REPLAY_WINDOW", "1024GiB"), ("WALHOOK_DELIVERY__RETRY_BASE", "1s")];

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn each(bytes: u64, deliveries: u64) -> f64 {
    bytes as f64 / deliveries as f64
}

/// WAL and disk. Each repetition is a server of its own. The source's rows are committed before, so that their
/// WAL is not in it; what the leader writes when idle is.
pub(crate) async fn measure(deliveries: u64, repetitions: usize) -> Result<Vec<Figure>> {
    let group = "deferral";
    let mut wal =
        Figure::new(group, "wal", "WAL bytes a delivery, deferred and drained", Better::Less);
    let mut disk = Figure::new(group, "disk", "bytes on disk a delivery, deferred", Better::Less);
    for _ in 0..repetitions {
        let mut outage = Outage::start(1, &[]).await?;
        outage.lay_up(deliveries).await?;
        let (empty, before) = (outage.world.state_bytes().await?, outage.wal_bytes().await?);
        outage.fill().await?;
        let full = outage.world.state_bytes().await?;
        outage.drain(deliveries).await?;
        let written = outage.wal_bytes().await?.saturating_sub(before);
        wal.value(each(written, deliveries));
        disk.value(each(full.saturating_sub(empty), deliveries));
    }
    Ok(vec![wal, disk])
}

/// How fast what is deferred is stored, against a process that reads the stream and drops it; and how fast it is
/// delivered when the endpoint is back, against the rate without deferral. The endpoint is paused meanwhile and not
/// dead: no probe is waited for, and no attempt's time.
#[expect(clippy::cast_precision_loss, reason = "a rate is not exact")]
pub(crate) async fn flow(deliveries: u64, pairs: usize) -> Result<Vec<Figure>> {
    let group = "flow";
    let mut fill = Figure::new(group, "fill", "deliveries deferred a second", Better::More);
    let mut drain = Figure::new(group, "drain", "deliveries drained a second", Better::More);
    let mut outage = Outage::start(1, &[]).await?;
    decoding::make_slot(&outage.world).await?;
    for _ in 0..pairs {
        outage.pause().await?;
        outage.lay_up(deliveries).await?;
        let filled = deliveries as f64 / outage.fill().await?.as_secs_f64();
        let args = ["drop", &outage.world.cluster.url("postgres"), &deliveries.to_string()];
        let mut reader = Own::start(&args.map(str::to_owned), &[])?;
        reader.said("ready").await?;
        let began = Instant::now();
        reader.said("done").await?;
        fill.ratio(filled, deliveries as f64 / began.elapsed().as_secs_f64());
        drop(reader);
        decoding::advance_slot(&outage.world).await?;
        let drained = outage.resume(deliveries).await?;
        outage.lay_up(deliveries).await?;
        decoding::advance_slot(&outage.world).await?;
        drain.ratio(drained, outage.drain(deliveries).await?);
    }
    Ok(vec![fill, drain])
}

/// The WAL of a delivery by the pace at which they come, and of short queues.
pub(crate) async fn paces(time: Duration, repetitions: usize) -> Result<Vec<Figure>> {
    let what = "WAL bytes a delivery, deferred and drained";
    let mut figures = Vec::new();
    for (key, per_second, rows, time) in [
        ("ten", 10, 1, time),
        ("hundred", 100, 1, time),
        // A hundred transactions a second: how many rows one has makes little difference to a queue.
        ("ten_thousand", 100, 100, time / 5),
    ] {
        let mut figure = Figure::new("paces", key, what, Better::Less);
        for _ in 0..repetitions {
            figure.value(paced(time, per_second, rows).await?);
        }
        figures.push(figure);
    }
    let mut queues = Figure::new("paces", "queues", what, Better::Less);
    for _ in 0..repetitions {
        let deliveries = 10_000;
        let mut outage = Outage::start(deliveries / 10, &[]).await?;
        outage.lay_up(deliveries).await?;
        outage.pause().await?;
        let before = outage.wal_bytes().await?;
        outage.fill().await?;
        outage.resume(deliveries).await?;
        queues.value(each(outage.wal_bytes().await?.saturating_sub(before), deliveries));
    }
    figures.push(queues);
    Ok(figures)
}

/// So many transactions a second, of so many rows each, while walhook leads and the endpoint is paused; then it
/// drains. What starting and stopping cost, and pages that are written for the first time, is what the same costs
/// with a single transaction.
async fn paced(time: Duration, per_second: u32, rows: u64) -> Result<f64> {
    let mut outage = Outage::start(1, &[]).await?;
    let transactions = (time * per_second).as_secs().max(2);
    paced_round(&mut outage, 1, per_second, rows).await?;
    let one = paced_round(&mut outage, 1, per_second, rows).await?;
    let all = paced_round(&mut outage, transactions, per_second, rows).await?;
    Ok(each(all.saturating_sub(one), (transactions - 1) * rows))
}

/// The WAL of one round, but what its rows cost by themselves: what as many cost that nobody reads.
async fn paced_round(
    outage: &mut Outage,
    transactions: u64,
    per_second: u32,
    rows: u64,
) -> Result<u64> {
    let before = outage.wal_bytes().await?;
    for _ in 0..transactions {
        outage.world.sql.batch_execute(&outage.notes("unread", rows)).await?;
    }
    let own = outage.wal_bytes().await? - before;
    outage.pause().await?;
    outage.world.run().await?;
    let (before, began) = (outage.wal_bytes().await?, Instant::now());
    let mut due = interval(Duration::from_secs(1) / per_second);
    for _ in 0..transactions {
        due.tick().await;
        outage.world.sql.batch_execute(&outage.notes("notes", rows)).await?;
        outage.rows += rows;
    }
    outage.stored(began).await?;
    outage.resume(transactions * rows).await?;
    Ok(outage.wal_bytes().await?.saturating_sub(before).saturating_sub(own))
}

/// What rounds of filling and draining leave behind in the indexes of the state tables and in the catalog, while
/// the anchor slot holds the oldest transaction that is known. The first tenth finds its size.
pub(crate) async fn growth(rounds: u64) -> Result<Vec<Figure>> {
    let group = "growth";
    let mut indexes = Figure::new(group, "indexes", "KiB that the indexes grew", Better::Less);
    let mut tables = Figure::new(group, "tables", "KiB that tables and TOAST grew", Better::Less);
    let mut catalog = Figure::new(group, "catalog", "KiB that the catalog grew", Better::Less);
    let mut outage = Outage::start(20, &ROUNDS_ENV).await?;
    let mut before = [0.0; 3];
    for round in 0..rounds {
        // Pages alone, and in turn what was tried too.
        if round % 2 == 0 {
            outage.pause().await?;
        }
        outage.lay_up(ROUND).await?;
        outage.fill().await?;
        outage.resume(ROUND).await?;
        if round == rounds / 10 {
            before = sizes(&outage.world).await?;
        }
    }
    let after = sizes(&outage.world).await?;
    for ((figure, before), after) in
        [&mut indexes, &mut tables, &mut catalog].into_iter().zip(before).zip(after)
    {
        figure.value(after - before);
    }
    Ok(vec![indexes, tables, catalog])
}

/// KiB of the state's indexes, those of TOAST among them, of its tables and their TOAST, and of the catalog.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn sizes(world: &World) -> Result<[f64; 3]> {
    let state = "oid IN (SELECT unnest(ARRAY[oid, reltoastrelid]) FROM pg_class
                         WHERE relnamespace = 'walhook'::regnamespace AND relkind = 'r')";
    let sum = |what: &str, of: &str| {
        format!("SELECT (coalesce(sum({what}(oid)), 0) / 1024)::bigint FROM pg_class WHERE {of}")
    };
    let catalog = "relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'";
    let mut found = [0.0; 3];
    for (found, query) in found.iter_mut().zip([
        sum("pg_indexes_size", state),
        sum("pg_table_size", &format!("{state} AND relkind = 'r'")),
        sum("pg_total_relation_size", catalog),
    ]) {
        *found = world.number(&query).await? as f64;
    }
    Ok(found)
}
