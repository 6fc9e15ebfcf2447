//! A million deferred rows: how fast they are written and read back, what they cost a start, and what the
//! tables take after rounds of filling and draining.
//!
//! ```text
//! make bench-deferred BENCH="--rows 1000000 --repetitions 7 --rounds 10 --json deferred.json"
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use axum::http::StatusCode;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use walhook_loadtest::books::{Audit, Books};
use walhook_loadtest::receiver;
use walhook_loadtest::report::{mib, table, write_json};
use walhook_loadtest::sample::{Resident, Spread, load};
use walhook_loadtest::world::World;
use walhook_testkit::receiver::{Behaviour, Receiver};

/// Their endpoints are down, and up again.
const SICK: std::ops::RangeInclusive<i64> = 1..=20;

/// Its endpoint works.
const LIVE: i64 = 21;

/// Rows of one transaction.
const TRANSACTION: usize = 1_000;

/// For anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// After the first delivery, before resident memory is read: the dead endpoints' rows were tried.
const PAUSE: Duration = Duration::from_secs(3);

const DEFERRED: &str = "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''";

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// Rows
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Starts with and without them, in turn
    #[arg(long, default_value_t = 7)]
    repetitions: usize,
    /// Rounds of filling and draining
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Rows of a round
    #[arg(long, default_value_t = 50_000)]
    round_rows: usize,
    /// Where to write all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One start of the program.
#[derive(Debug, Clone, Copy, Serialize)]
struct Start {
    /// From the start of the process to its leading.
    leading_ms: f64,
    /// To the first 2xx of an event that was committed while nothing ran.
    delivery_ms: f64,
    /// Some seconds later.
    resident: Resident,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    rows: usize,
    fill_seconds: f64,
    fill_resident_peak: u64,
    full_bytes: u64,
    with_rows: Vec<Start>,
    without: Vec<Start>,
    /// Until the last one is delivered: of those that failed before, some have a time to wait for.
    drain_seconds: f64,
    /// The middle nine tenths.
    drain_rows_per_second: f64,
    drain_resident_peak: u64,
    drained_bytes: u64,
    /// Bytes of the tables after filling and after draining, each round.
    rounds: Vec<[u64; 2]>,
    load: [f64; 2],
}

/// Measures, prints, audits.
pub(crate) async fn run(args: Args) -> Result<()> {
    let mut report = Report { rows: args.rows, ..Report::default() };
    report.load[0] = load()?;
    let mut full = Case::new().await?;
    full.fill(args.rows, &mut report).await?;
    let mut empty = Case::new().await?;
    for n in 0..args.repetitions {
        for is_full in [n % 2 == 0, n % 2 != 0] {
            if is_full {
                report.with_rows.push(full.start().await?);
            } else {
                report.without.push(empty.start().await?);
            }
        }
    }
    let before = full.books.audit(SICK);
    full.drain(&mut report).await?;
    print(&report);
    let audit = full.audit(0).await?;
    println!("the million, before it was drained: {before}\nand drained: {audit}\n");
    drop(full);
    for round in 1..=args.rounds {
        let bytes = empty.round(args.round_rows).await?;
        println!(
            "round {round:2} of {} rows: filled {}, drained {}",
            args.round_rows,
            mib(bytes[0]),
            mib(bytes[1])
        );
        report.rounds.push(bytes);
    }
    println!("the rounds: {}", empty.audit(0).await?);
    report.load[1] = load()?;
    println!(
        "load average {:.1} at the beginning, {:.1} at the end",
        report.load[0], report.load[1]
    );
    write_json(args.json.as_ref(), &report)
}

/// A server with its walhook, and its endpoints.
struct Case {
    books: Arc<Books>,
    sick: Receiver,
    _well: Receiver,
    world: World,
}

impl Case {
    async fn new() -> Result<Self> {
        let books = Arc::new(Books::default());
        let sick = receiver::start(Arc::clone(&books)).await?;
        sick.set_default(Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
        let well = receiver::start(Arc::clone(&books)).await?;
        let world = World::start("").await?;
        for account in SICK {
            world.add_account(account, &receiver::url(&sick, account)).await?;
        }
        world.add_account(LIVE, &receiver::url(&well, LIVE)).await?;
        Ok(Self { books, sick, _well: well, world })
    }

    /// Commits so many rows for the sick ones.
    async fn commit(&self, rows: usize) -> Result<()> {
        let mut left = rows;
        for account in SICK.cycle() {
            let now = left.min(TRANSACTION);
            self.world.insert(&self.books, account, now).await?;
            left -= now;
            if left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Lays up a backlog, then has it deferred: what is measured is walhook, not the writer.
    async fn fill(&mut self, rows: usize, report: &mut Report) -> Result<()> {
        self.commit(rows).await?;
        self.world.run().await?;
        report.fill_seconds = self.world.settled(PATIENCE).await?.as_secs_f64();
        report.fill_resident_peak = Resident::of(self.world.walhook.pid())?.peak;
        self.world.walhook.stop().await?;
        report.full_bytes = self.world.state_bytes().await?;
        Ok(())
    }

    async fn start(&mut self) -> Result<Start> {
        let delivered = self.books.delivered();
        self.world.insert(&self.books, LIVE, 1).await?;
        let began = Instant::now();
        let leading = self.world.run().await?;
        let arrived = async || Ok(self.books.delivered() > delivered);
        self.world.until("the live event arrives", PATIENCE, arrived).await?;
        let latest = self.books.last_received().unwrap_or(began);
        sleep(PAUSE).await;
        let resident = Resident::of(self.world.walhook.pid())?;
        self.world.walhook.stop().await?;
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        Ok(Start {
            leading_ms: ms(leading),
            delivery_ms: ms(latest.saturating_duration_since(began)),
            resident,
        })
    }

    async fn drain(&mut self, report: &mut Report) -> Result<()> {
        self.sick.set_default(Behaviour::ok());
        self.world.run().await?;
        let began = Instant::now();
        let (delivered, committed) =
            (self.books.delivered(), self.books.audit(SICK).sums.committed);
        let mut times = Vec::new();
        for share in [5, 95, 100] {
            let wanted = delivered + committed * share / 100;
            let come = async || Ok(self.books.delivered() >= wanted);
            self.world.until("what was deferred arrives", PATIENCE, come).await?;
            times.push(began.elapsed().as_secs_f64());
        }
        if let [from, to, end] = *times {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let most = (committed * 9 / 10) as f64;
            (report.drain_rows_per_second, report.drain_seconds) = (most / (to - from), end);
        }
        self.until_empty().await?;
        report.drain_resident_peak = Resident::of(self.world.walhook.pid())?.peak;
        self.world.walhook.stop().await?;
        report.drained_bytes = self.world.state_bytes().await?;
        Ok(())
    }

    async fn until_empty(&self) -> Result<()> {
        let gone = async || Ok(self.world.number(DEFERRED).await? == 0);
        self.world.until("the table is empty", PATIENCE, gone).await?;
        Ok(())
    }

    /// Fills and drains. The program is started anew in between: so no breaker is waited for.
    async fn round(&mut self, rows: usize) -> Result<[u64; 2]> {
        self.sick.set_default(Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
        self.world.run().await?;
        self.commit(rows).await?;
        self.world.settled(PATIENCE).await?;
        self.world.walhook.stop().await?;
        let filled = self.world.state_bytes().await?;
        self.sick.set_default(Behaviour::ok());
        self.world.run().await?;
        self.until_empty().await?;
        self.world.walhook.stop().await?;
        Ok([filled, self.world.state_bytes().await?])
    }

    async fn audit(&self, in_tables: u64) -> Result<Audit> {
        let audit = self.books.audit(*SICK.start()..=LIVE);
        audit.ensure(in_tables)?;
        Ok(audit)
    }
}

/// A figure of a start.
type Figure = fn(&Start) -> f64;

fn print(report: &Report) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let fill_rate = report.rows as f64 / report.fill_seconds;
    println!(
        "{} rows deferred in {:.1} s: {:.0} rows/s; resident memory at most {}; the tables take {}",
        report.rows,
        report.fill_seconds,
        fill_rate,
        mib(report.fill_resident_peak),
        mib(report.full_bytes)
    );
    println!(
        "drained: {:.0} rows/s in the middle nine tenths, the last after {:.1} s; resident memory at most \
         {}; the tables take {}\n",
        report.drain_rows_per_second,
        report.drain_seconds,
        mib(report.drain_resident_peak),
        mib(report.drained_bytes)
    );
    let of = |starts: &[Start], value: Figure| Spread::of(starts.iter().map(value).collect());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let figures: [(&str, Figure); 4] = [
        ("start to leading, ms", |start| start.leading_ms),
        ("start to first delivery, ms", |start| start.delivery_ms),
        ("resident memory, MiB", |start| start.resident.now as f64 / f64::from(1 << 20)),
        ("resident memory at most, MiB", |start| start.resident.peak as f64 / f64::from(1 << 20)),
    ];
    let head = ["median (from – to) of", "with the rows", "with none", "ratio of medians"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, value) in figures {
        let (with, without) = (of(&report.with_rows, value), of(&report.without, value));
        let cell = |s: Spread| format!("{:.1} ({:.1} – {:.1})", s.p50, s.min, s.max);
        let ratio = format!("{:.2}", with.p50 / without.p50);
        rows.push(vec![name.to_owned(), cell(with), cell(without), ratio]);
    }
    table(&rows);
}
