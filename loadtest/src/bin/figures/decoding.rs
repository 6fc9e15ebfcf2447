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

/// Far above any row of ours.
const MESSAGE_MAX: usize = 1 << 20;

/// CPU of the reading process against that of the walsender, for the same rows each time.
pub(crate) async fn measure(rows: u64, pairs: usize) -> Result<Vec<Figure>> {
    let mut cpu = Figure::new("decode", "cpu", "CPU s, to a null sink", Better::Less);
    let world = World::start("").await?;
    let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
    world.sql.batch_execute(&make).await?;
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
        // The slot is taken until the server sees that the reader has gone.
        let free = "SELECT count(*) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
        let patience = std::time::Duration::from_secs(30);
        world
            .until("the slot is free", patience, async || Ok(world.number(free).await? == 0))
            .await?;
    }
    Ok(vec![cpu])
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
