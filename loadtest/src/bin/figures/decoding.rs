//! What reading the stream costs beside what sending it costs the server: rows are decoded, put together
//! as changes of committed transactions, and dropped.

use anyhow::{Context, Result, bail};
use walhook_core::endpoint::Secret;
use walhook_core::lsn::Lsn;
use walhook_decode::change::{Changes, Step};
use walhook_decode::pgoutput::decode;
use walhook_loadtest::world::World;
use walhook_postgres::feedback::StatusUpdate;
use walhook_postgres::wire::{self, Frame};

use crate::bare::{Own, say};
use crate::latency::SLOT;
use walhook_loadtest::cpu::cpu_seconds;
use walhook_loadtest::figure::{Better, Figure};

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;

/// The tag of a row that was inserted.
const INSERT: u8 = b'I';

/// Far above any row of ours.
const MESSAGE_MAX: usize = 1 << 20;

/// CPU of the reading process against that of the walsender, for the same rows each time.
pub(crate) async fn measure(rows: u64, pairs: usize) -> Result<Vec<Figure>> {
    let mut cpu = Figure::new("decode", "cpu", "CPU s, to a null sink", Better::Less);
    let world = World::start("").await?;
    make_slot(&world).await?;
    world.sql.batch_execute("INSERT INTO accounts VALUES (1, 'Account 1')").await?;
    let transactions = rows.div_ceil(TRANSACTION);
    for _ in 0..transactions {
        let sql = format!(
            "INSERT INTO subscribers (account_id, email)
             SELECT 1, 'someone@example.com' FROM generate_series(1, {TRANSACTION})"
        );
        world.sql.batch_execute(&sql).await?;
    }
    let rows = (transactions * TRANSACTION).to_string();
    let args = ["decode", &world.cluster.url("postgres"), &rows].map(str::to_owned);
    for _ in 0..pairs {
        let mut reader = Own::start(&args, &[])?;
        reader.said("done").await?;
        let sql = format!(
            "SELECT active_pid::bigint FROM pg_replication_slots WHERE slot_name = '{SLOT}'"
        );
        let walsender = u32::try_from(world.number(&sql).await?)?;
        cpu.ratio(reader.cpu_seconds()?, cpu_seconds(walsender)?);
        drop(reader);
        until_free(&world).await?;
    }
    Ok(vec![cpu])
}

/// Makes the reader's slot.
pub(crate) async fn make_slot(world: &World) -> Result<()> {
    let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    Ok(world.sql.batch_execute(&make).await?)
}

/// Moves the reader's slot to the end of the WAL, once the reader has gone.
pub(crate) async fn advance_slot(world: &World) -> Result<()> {
    until_free(world).await?;
    let advance =
        format!("SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_insert_lsn())");
    Ok(world.sql.batch_execute(&advance).await?)
}

/// The slot is taken until the server sees that the reader has gone.
async fn until_free(world: &World) -> Result<()> {
    let free =
        format!("SELECT count(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    let patience = std::time::Duration::from_secs(30);
    let is_free = async || Ok(world.number(&free).await? == 0);
    world.until("the slot is free", patience, is_free).await?;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The database
    database: String,
    /// Rows to wait for
    rows: u64,
}

/// The process that reads. It says nothing of its progress to the server, so that the next one gets the same.
pub(crate) async fn read(Args { database, rows }: Args) -> Result<()> {
    let replication = wire::connect(&Secret::new(database), "figures").await?;
    let mut stream = replication.start(SLOT, "walhook", Lsn(0), MESSAGE_MAX).await?;
    let mut changes = Changes::new(Lsn(0));
    let mut left = rows;
    while left > 0 {
        match stream.next().await? {
            Frame::XLogData { wal_start, payload, .. } => {
                let message = decode(stream.protocol(), &payload)?;
                let steps = changes.handle(wal_start, message).context("the stream")?;
                let came = steps.iter().filter(|step| matches!(step, Step::Change(_))).count();
                left = left.saturating_sub(u64::try_from(came)?);
            }
            Frame::Keepalive { .. } => {
                let nowhere = StatusUpdate { write: Lsn(0), flush: Lsn(0), request_reply: false };
                stream.send_status(nowhere).await?;
            }
            Frame::Oversize { bytes, .. } => bail!("a message of {bytes} bytes"),
        }
    }
    say("done").await
}

/// The process that reads as pg_recvlogical does: what comes is counted and dropped.
pub(crate) async fn drop_all(Args { database, rows }: Args) -> Result<()> {
    let replication = wire::connect(&Secret::new(database), "figures").await?;
    let mut stream = replication.start(SLOT, "walhook", Lsn(0), MESSAGE_MAX).await?;
    println!("ready");
    let mut left = rows;
    while left > 0 {
        if let Frame::XLogData { payload, .. } = stream.next().await?
            && payload.first() == Some(&INSERT)
        {
            left -= 1;
        }
    }
    say("done").await
}
