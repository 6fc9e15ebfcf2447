//! One transaction of a million rows for one account whose endpoint takes five seconds a request, while
//! a hundred other accounts commit once a second each: what these feel of it, where the time goes, and what it costs
//! PostgreSQL, with streaming and without.
//!
//! ```text
//! make bench-million BENCH="--rows 1000000 --before 60s --after 60s --json million.json"
//! ```

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep};
use walhook_loadtest::books::{Audit, Books};
use walhook_loadtest::cpu::{cpu_seconds, server_cpu_seconds};
use walhook_loadtest::receiver;
use walhook_loadtest::report::{mib, table, write_json};
use walhook_loadtest::sample::{Resident, Spread, load};
use walhook_loadtest::traffic;
use walhook_loadtest::world::{Layout, World};
use walhook_testkit::receiver::Behaviour;
use walhook_testkit::scratch::Scratch;

const WHALE: i64 = 1;

/// Between two looks at walhook.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// From one statement of a transaction that is written at a pace to the next.
const STATEMENT_EVERY: Duration = Duration::from_millis(100);

/// For anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// Not measured: connections are opened, caches filled.
const WARM_UP: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// Rows of the large transaction
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Other accounts; each commits once a second
    #[arg(long, default_value_t = 100)]
    accounts: i64,
    /// How long the whale's endpoint takes for a request
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// Measured before the transaction
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    before: Duration,
    /// Measured behind it
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    after: Duration,
    /// Rows that are written a second at most: as fast as it goes, where that is left out
    #[arg(long)]
    rows_per_second: Option<u32>,
    /// `source.streaming`
    #[arg(long, default_value = "on", value_parser = ["on", "off"])]
    streaming: String,
    /// Where to write all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// walhook at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
struct Sample {
    at: Duration,
    resident: Resident,
    changes: f64,
    deferred: f64,
    queued_bytes: f64,
    in_flight: f64,
}

#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    seconds: f64,
    latency_ms: Spread,
}

/// What the transaction costs, from its first row until all is stored: what was used until a moment, and in the report
/// between both.
#[derive(Debug, Clone, Copy, Serialize)]
struct Costs {
    /// Of PostgreSQL, its sessions included.
    server_cpu_seconds: f64,
    walhook_cpu_seconds: f64,
    /// Transactions of the slot that PostgreSQL wrote to files while it decoded them, how often, and how much of them.
    spill_txns: i64,
    spill_count: i64,
    spill_bytes: i64,
    /// Transactions of the slot that it sent while they were open, and how much of them.
    stream_txns: i64,
    stream_bytes: i64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    streaming: String,
    phases: Vec<Phase>,
    costs: Costs,
    insert_seconds: f64,
    received_seconds: f64,
    stored_seconds: f64,
    bare_decoding_seconds: f64,
    resident_before: Resident,
    resident_peak: u64,
    load: [f64; 2],
    small: Audit,
    whale: Audit,
    whale_in_tables: u64,
    samples: Vec<Sample>,
}

/// Measures, prints, audits.
pub(crate) async fn run(args: Args) -> Result<()> {
    let report = measure(&args).await?;
    print(&report);
    write_json(args.json.as_ref(), &report)?;
    report.small.ensure(0)?;
    report.whale.ensure(report.whale_in_tables)
}

async fn measure(args: &Args) -> Result<Report> {
    let books = Arc::new(Books::default());
    let slow = receiver::start(Arc::clone(&books)).await?;
    slow.set_default(Behaviour::delay(args.delay));
    let quick = receiver::start(Arc::clone(&books)).await?;
    // Memory alone would not hold what is open.
    let spool = Scratch::new()?;
    let env = vec![
        ("WALHOOK_SOURCE__STREAMING".to_owned(), args.streaming.clone()),
        ("WALHOOK_SOURCE__SPOOL".to_owned(), spool.path().display().to_string()),
    ];
    let mut world = World::arranged(Layout { env, ..Layout::default() }).await?;
    world.add_account(WHALE, &receiver::url(&slow, WHALE)).await?;
    let small = WHALE + 1..=WHALE + args.accounts;
    for account in small.clone() {
        world.add_account(account, &receiver::url(&quick, account)).await?;
    }
    // Reads the same WAL once more when all is over, and nothing else.
    world
        .sql
        .batch_execute("SELECT pg_create_logical_replication_slot('bare', 'pgoutput')")
        .await?;
    world.run().await?;
    let accounts: Vec<i64> = small.clone().collect();
    #[expect(clippy::cast_precision_loss, reason = "a number of accounts")]
    let traffic = traffic::start(&world, &books, &accounts, args.accounts as f64).await?;
    sleep(WARM_UP).await;
    let resident_before = Resident::of(world.walhook.pid())?;
    let load_before = load()?;

    let (stop, stopped) = watch::channel(false);
    let began = books.now();
    let ((marks, load_after), samples) = tokio::try_join!(
        async {
            let marks = act(args, &world, &books).await;
            stop.send_replace(true);
            anyhow::Ok((marks?, load()?))
        },
        watch_it(&world, &books, stopped)
    )?;
    let Marks { inserting, committed, commit_end, stored, end, costs } = marks;
    traffic.stop().await?;
    let all_small = small.clone();
    let what = "the small accounts have all they are to have";
    world.until(what, PATIENCE, async || Ok(books.audit(all_small.clone()).missing() == 0)).await?;
    let first = samples.iter().find(|s| s.at >= inserting).map_or(0.0, |s| s.changes);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let wanted = first + args.rows as f64;
    let received = samples.iter().find(|s| s.changes >= wanted).map_or(stored, |s| s.at);
    let bare = decode_bare(&world, &commit_end).await?;
    world.walhook.stop().await?;

    let phase = |name, from: Duration, to: Duration| Phase {
        name,
        seconds: to.saturating_sub(from).as_secs_f64(),
        latency_ms: Spread::of_micros(books.latencies(small.clone(), from, to)),
    };
    let received = received.clamp(committed, stored);
    Ok(Report {
        rows: args.rows,
        streaming: args.streaming.clone(),
        costs,
        phases: vec![
            phase("before", began, inserting),
            phase("during: the transaction is written", inserting, committed),
            phase("during: PostgreSQL sends it", committed, received),
            phase("during: what is left is stored", received, stored),
            phase("during, all together", inserting, stored),
            phase("after", stored, end),
        ],
        insert_seconds: (committed - inserting).as_secs_f64(),
        received_seconds: (received - committed).as_secs_f64(),
        stored_seconds: (stored - committed).as_secs_f64(),
        bare_decoding_seconds: bare.as_secs_f64(),
        resident_before,
        resident_peak: samples.iter().map(|s| s.resident.peak).max().unwrap_or_default(),
        load: [load_before, load_after],
        small: books.audit(small.clone()),
        whale: books.audit(WHALE..=WHALE),
        whale_in_tables: world.in_tables().await?,
        samples,
    })
}

/// When what began, since the books were opened.
struct Marks {
    inserting: Duration,
    committed: Duration,
    /// A position right behind the commit.
    commit_end: String,
    /// All of the transaction is delivered or deferred, and the checkpoint has passed it.
    stored: Duration,
    end: Duration,
    /// From `inserting` to `stored`.
    costs: Costs,
}

async fn act(args: &Args, world: &World, books: &Books) -> Result<Marks> {
    sleep(args.before).await;
    let before = Costs::until_now(world).await?;
    let inserting = books.now();
    write(args, world, books).await?;
    let committed = books.now();
    let commit_end = world.wal_end().await?;
    world.settled(PATIENCE).await?;
    let stored = books.now();
    let costs = Costs::until_now(world).await?.since(&before);
    sleep(args.after).await;
    Ok(Marks { inserting, committed, commit_end, stored, end: books.now(), costs })
}

impl Costs {
    async fn until_now(world: &World) -> Result<Self> {
        let query = "SELECT spill_txns, spill_count, spill_bytes, stream_txns, stream_bytes
                     FROM pg_stat_replication_slots WHERE slot_name = 'walhook'";
        let slot = world.sql.query_one(query, &[]).await.context("the slot's statistics")?;
        let walhook = world.walhook.pid().context("walhook has ended")?;
        Ok(Self {
            server_cpu_seconds: server_cpu_seconds(&world.cluster.data())?,
            walhook_cpu_seconds: cpu_seconds(walhook)?,
            spill_txns: slot.get(0),
            spill_count: slot.get(1),
            spill_bytes: slot.get(2),
            stream_txns: slot.get(3),
            stream_bytes: slot.get(4),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            server_cpu_seconds: self.server_cpu_seconds - before.server_cpu_seconds,
            walhook_cpu_seconds: self.walhook_cpu_seconds - before.walhook_cpu_seconds,
            spill_txns: self.spill_txns - before.spill_txns,
            spill_count: self.spill_count - before.spill_count,
            spill_bytes: self.spill_bytes - before.spill_bytes,
            stream_txns: self.stream_txns - before.stream_txns,
            stream_bytes: self.stream_bytes - before.stream_bytes,
        }
    }

    fn print(&self, streaming: &str) {
        let mib = |bytes: i64| mib(u64::try_from(bytes).unwrap_or_default());
        println!(
            "streaming {streaming}, from the first row until all is stored: CPU of PostgreSQL {:.1} s, of walhook \
             {:.1} s; PostgreSQL spilled {} transactions to files, {} times, {}, and streamed {}, {}",
            self.server_cpu_seconds,
            self.walhook_cpu_seconds,
            self.spill_txns,
            self.spill_count,
            mib(self.spill_bytes),
            self.stream_txns,
            mib(self.stream_bytes),
        );
    }
}

/// Writes the transaction, in statements of a tenth of a second where it is not to be faster.
async fn write(args: &Args, world: &World, books: &Books) -> Result<()> {
    let Some(rate) = args.rows_per_second else {
        return world.insert(books, WHALE, args.rows).await;
    };
    let mut writer = world.writer(books).await?;
    let mut transaction = writer.begin().await?;
    let mut tick = interval(STATEMENT_EVERY);
    let (mut left, each) = (i64::try_from(args.rows)?, i64::from(rate / 10).max(1));
    while left > 0 {
        tick.tick().await;
        transaction.insert(WHALE, left.min(each), "someone@example.com").await?;
        left -= each;
    }
    transaction.commit().await?;
    Ok(())
}

async fn watch_it(
    world: &World,
    books: &Books,
    mut stopped: watch::Receiver<bool>,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    loop {
        let metrics = world.metrics().await?;
        let in_flight = ["fast", "slow"].map(|p| format!("walhook_in_flight{{pool=\"{p}\"}}"));
        samples.push(Sample {
            at: books.now(),
            resident: Resident::of(world.walhook.pid())?,
            changes: metrics.get("walhook_changes_total"),
            deferred: metrics.get("walhook_deferred"),
            queued_bytes: metrics.get("walhook_queued_bytes"),
            in_flight: in_flight.iter().map(|name| metrics.get(name)).sum(),
        });
        tokio::select! {
            _ = stopped.changed() => return Ok(samples),
            () = sleep(SAMPLE_EVERY) => {}
        }
    }
}

/// How long PostgreSQL takes to decode and send all of it to a reader that does nothing.
async fn decode_bare(world: &World, end: &str) -> Result<Duration> {
    let began = Instant::now();
    let port = world.cluster.port().to_string();
    let output = Command::new(world.cluster.bin().join("pg_recvlogical"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &port])
        .args(["-S", "bare", "--start", "--no-loop", "-f", "/dev/null", "--endpos", end])
        .args(["-o", "proto_version=1", "-o", "publication_names=walhook"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pg_recvlogical: {problem}");
    Ok(began.elapsed())
}

fn print(report: &Report) {
    let cells = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut rows =
        vec![cells(&["small accounts", "seconds", "events", "p50 ms", "p99 ms", "max ms"])];
    for Phase { name, seconds, latency_ms } in &report.phases {
        let Spread { n, p50, p99, max, .. } = latency_ms;
        rows.push(vec![
            (*name).to_owned(),
            format!("{seconds:.1}"),
            n.to_string(),
            format!("{p50:.2}"),
            format!("{p99:.1}"),
            format!("{max:.0}"),
        ]);
    }
    table(&rows);
    println!(
        "\n{} rows: written in {:.1} s; behind the commit all received after {:.1} s, all stored after \
         {:.1} s. A bare reader takes {:.1} s for the same WAL.",
        report.rows,
        report.insert_seconds,
        report.received_seconds,
        report.stored_seconds,
        report.bare_decoding_seconds
    );
    println!(
        "resident memory: {} before, {} at most; load average {:.1} before, {:.1} after",
        mib(report.resident_before.now),
        mib(report.resident_peak),
        report.load[0],
        report.load[1]
    );
    report.costs.print(&report.streaming);
    println!("small accounts: {}", report.small);
    println!("the whale: {}; in the tables {}", report.whale, report.whale_in_tables);
}
