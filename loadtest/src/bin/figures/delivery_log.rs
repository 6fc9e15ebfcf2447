//! What the delivery log costs, and how long a search of it takes.

use std::time::Duration;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, interval, sleep};
use walhook_core::delivery_log::{Entry, What};
use walhook_core::endpoint::Secret;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::PersistBatch;
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::waits::{Cause, Waits};
use walhook_loadtest::world::{Layout, World};
use walhook_state::{DeliveryCursor, StateStore};

use crate::throughput::{Case, Side};
use walhook_loadtest::figure::{Better, Figure};

/// What is compared: with the log as it is by default, and without one.
const WITH: &str = "";
const WITHOUT: &str = "[deliveries]\nkeep = \"none\"\n";

/// No checkpoint comes in between, whose images of whole pages would count or not by chance, and no autovacuum.
const SERVER: [(&str, &str); 3] =
    [("checkpoint_timeout", "1h"), ("max_wal_size", "32GB"), ("autovacuum", "off")];

/// For the checkpoint to pass what was delivered.
const PATIENCE: Duration = Duration::from_secs(60);

/// Small pages are merged every five seconds: behind so many the last of them are.
const MERGED: Duration = Duration::from_secs(11);

/// The paces: deliveries a second, of so many rows a transaction.
const PACES: [(&str, u32, u64); 2] = [("wal_1000", 100, 10), ("wal_10000", 100, 100)];

/// Lines that are stored one by one, as at 5 deliveries a second, where each has a state transaction of its own: as many
/// as are merged into two pages. At that pace they would take half an hour.
const ALONE: u64 = 8_192;

/// Lines of a page, where a thousand deliveries a second are stored ten times a second: such pages are not merged.
const LINES: u64 = 100;

/// Accounts of the lines that are searched, each with two endpoints.
const ACCOUNTS: u64 = 2_000;

/// An account of which the oldest page tells alone.
const RARE: &str = "rare";

/// Behind the checkpoint that setup makes.
const FRONTIER: Lsn = Lsn(0x1_0000_0000);

/// Between two deliveries, in microseconds.
const BETWEEN_US: i64 = 1_000;

const CASE: Case = Case { group: "log", accounts: 100, hosts: 1, tls: false };

async fn side(log: &str) -> Result<Side> {
    Side::start(CASE, Layout { extra: log, server: &SERVER, ..Layout::default() }).await
}

/// CPU of a backlog, with the log against without one.
pub(crate) async fn cost(deliveries: u64, pairs: usize) -> Result<Vec<Figure>> {
    let mut cpu = Figure::new("log", "cpu", "CPU s, with the log and without", Better::Less);
    let what = "PostgreSQL's CPU s, with the log and without";
    let mut server_cpu = Figure::new("log", "server_cpu", what, Better::Less);
    let (mut with, mut without) = (side(WITH).await?, side(WITHOUT).await?);
    for pair in 0..pairs {
        let (ours, theirs);
        if pair % 2 == 0 {
            ours = with.run(deliveries).await?;
            theirs = without.run(deliveries).await?;
        } else {
            theirs = without.run(deliveries).await?;
            ours = with.run(deliveries).await?;
        }
        cpu.ratio(ours.cpu_s, theirs.cpu_s);
        server_cpu.ratio(ours.server_cpu_s, theirs.server_cpu_s);
    }
    Ok(vec![cpu, server_cpu])
}

/// WAL by pace, and bytes on disk.
pub(crate) async fn size(time: Duration) -> Result<Vec<Figure>> {
    let wal = |key| Figure::new("log_size", key, "WAL bytes of a delivery's lines", Better::Less);
    let mut five = wal("wal_5");
    five.value(alone().await?);
    let mut figures = vec![five];
    let (mut with, mut without) = (side(WITH).await?, side(WITHOUT).await?);
    for (key, per_second, rows) in PACES {
        let mut wal = wal(key);
        let mut written = [0.0; 2];
        let transactions = (time * per_second).as_secs().max(2);
        for (written, side) in written.iter_mut().zip([&mut with, &mut without]) {
            // What a start, a stop and a merge cost, and pages that are written for the first time.
            paced(side, 1, per_second, rows).await?;
            let one = paced(side, 1, per_second, rows).await?;
            *written = paced(side, transactions, per_second, rows).await? - one;
        }
        let [with, without] = written;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        wal.value((with - without) / ((transactions - 1) * rows) as f64);
        figures.push(wal);
    }
    let sql = "SELECT pg_total_relation_size('walhook.delivery_log')";
    let lines = "SELECT sum(lines)::bigint FROM walhook.delivery_log";
    let mut disk = Figure::new("log_size", "disk", "bytes on disk a line", Better::Less);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    disk.value(with.world.number(sql).await? as f64 / with.world.number(lines).await? as f64);
    figures.push(disk);
    Ok(figures)
}

/// The WAL of a line that is stored alone and merged later, beyond what its state transaction takes without it.
async fn alone() -> Result<f64> {
    let world = World::arranged(Layout { server: &SERVER, ..Layout::default() }).await?;
    let url = Secret::new(world.cluster.url("postgres"));
    let mut store = StateStore::open(&url, "walhook", "walhook").await?;
    store.take_lease("figures").await?;
    let mut written = [0.0; 2];
    for (has_lines, written) in [false, true].into_iter().zip(&mut written) {
        let before = wal_bytes(&world).await?;
        for n in 0..ALONE {
            let log = if has_lines { vec![line(n, 0)] } else { Vec::new() };
            let (number, frontier) = (n + 1 + if has_lines { ALONE } else { 0 }, FRONTIER);
            store
                .persist(&PersistBatch { number, frontier, log, ..PersistBatch::default() })
                .await?;
        }
        let mut from = DeliveryCursor::default();
        while let Some(next) = store.merge_deliveries(from).await?.next {
            from = next;
        }
        *written = wal_bytes(&world).await? - before;
    }
    let pages = world.number("SELECT count(*) FROM walhook.delivery_log").await?;
    ensure!(pages == 2, "{pages} pages: not all were merged");
    let [without, with] = written;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok((with - without) / ALONE as f64)
}

/// The WAL of so many transactions of so many rows, each delivered as it comes, until their lines are merged.
async fn paced(side: &mut Side, transactions: u64, per_second: u32, rows: u64) -> Result<f64> {
    side.world.run().await?;
    side.world.settled(PATIENCE).await?;
    side.sink.reset();
    let before = wal_bytes(&side.world).await?;
    let mut due = interval(Duration::from_secs(1) / per_second);
    for _ in 0..transactions {
        due.tick().await;
        side.lay_up(rows).await?;
    }
    side.sink.until(transactions * rows).await?;
    side.world.settled(PATIENCE).await?;
    sleep(MERGED).await;
    let written = wal_bytes(&side.world).await? - before;
    side.world.walhook.stop().await?;
    Ok(written)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn wal_bytes(world: &World) -> Result<f64> {
    let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    Ok(world.number(sql).await? as f64)
}

/// How long `events show`, `events list --account` and `events count` take, from their start to their end, in a log of so many lines.
pub(crate) async fn search(lines: u64, repetitions: usize) -> Result<Vec<Figure>> {
    let world = World::arranged(Layout { server: &SERVER, ..Layout::default() }).await?;
    let url = Secret::new(world.cluster.url("postgres"));
    let mut store = StateStore::open(&url, "walhook", "walhook").await?;
    store.take_lease("figures").await?;
    let now_us = world.number("SELECT (extract(epoch FROM now()) * 1000000)::bigint").await?;
    let from_us = i64::try_from(now_us)? - i64::try_from(lines)? * BETWEEN_US;
    for (number, from) in (1..).zip((0..lines).step_by(usize::try_from(LINES)?)) {
        let page = from..lines.min(from + LINES);
        let log = page.map(|n| line(n, from_us)).collect();
        let batch = PersistBatch { number, frontier: FRONTIER, log, ..PersistBatch::default() };
        store.persist(&batch).await?;
    }
    world.sql.batch_execute("VACUUM ANALYZE walhook.delivery_log").await?;
    let mut show = Figure::new("log_search", "show", "s of events show", Better::Less);
    let mut list = Figure::new("log_search", "list", "s of events list --account", Better::Less);
    let mut rare = Figure::new("log_search", "rare", "s of one that all lie behind", Better::Less);
    let mut count = Figure::new("log_search", "count", "s of events count --account", Better::Less);
    let mut all = Figure::new("log_search", "count_all", "s of events count", Better::Less);
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..repetitions {
        let entry = line(rng.random_range(LINES..lines), from_us);
        show.value(took(&world, &["events", "show", &entry.event.to_string()]).await?);
        list.value(took(&world, &["events", "list", "--account", &entry.account]).await?);
        rare.value(took(&world, &["events", "list", "--account", RARE]).await?);
        count.value(took(&world, &["events", "count", "--account", &entry.account]).await?);
        all.value(took(&world, &["events", "count"]).await?);
    }
    Ok(vec![show, list, rare, count, all])
}

async fn took(world: &World, command: &[&str]) -> Result<f64> {
    let began = Instant::now();
    let output = world.walhook.walhook(command).await?;
    let took = began.elapsed().as_secs_f64();
    ensure!(output.status.success() && !output.stdout.is_empty(), "{command:?}: {output:?}");
    Ok(took)
}

/// The `n`th delivery of a busy pipeline.
fn line(n: u64, from_us: i64) -> Entry {
    let mut rng = StdRng::seed_from_u64(n);
    let account = rng.random_range(0..ACCOUNTS);
    let committed_us = from_us + i64::try_from(n).unwrap_or(i64::MAX) * BETWEEN_US;
    let elapsed_us = rng.random_range(3_000..60_000);
    let mut waits = Waits::default();
    waits.add_us(Cause::Read, rng.random_range(200..5_000));
    waits.add_us(Cause::Turn, rng.random_range(5..200));
    waits.add_us(Cause::Attempt, elapsed_us);
    let commit_lsn = Lsn(FRONTIER.0 + n * 320);
    let change_lsn = Lsn(commit_lsn.0 - 120);
    let position = WalPosition { commit_lsn, change_lsn, relation: 16_384, n: 0 };
    let event_type = "subscriber.created";
    Entry {
        event: EventId::derive(7, &Position::Wal(position), event_type, committed_us),
        event_type: event_type.into(),
        account: AccountId::new(if n < LINES { RARE.to_owned() } else { account.to_string() }),
        endpoint: EndpointId::new((account * 2 + rng.random_range(0..2)).to_string()),
        commit_lsn,
        committed_us,
        at_us: committed_us + 20_000,
        attempt: 1,
        what: What::Delivered,
        status: Some(204),
        failure: None,
        elapsed_us,
        waits,
        excerpt: String::new(),
        asked: None,
    }
}
