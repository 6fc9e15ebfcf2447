//! Every endpoint dies for ten minutes while 500 transactions a second are committed, and comes back: what
//! memory, WAL and tables take meanwhile, and how long it takes until all is delivered.
//!
//! ```text
//! make bench-outage BENCH="--minutes 10 --rate 500 --plot docs/outage.svg --json outage.json"
//! ```
//!
//! Of ten accounts four are refused their connections, four get 500 for an answer, two get none at all.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use axum::http::StatusCode;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use walhook_loadtest::books::{Audit, Books};
use walhook_loadtest::plot::{Panel, svg};
use walhook_loadtest::receiver;
use walhook_loadtest::report::{mib, table, write_json};
use walhook_loadtest::sample::{Resident, load};
use walhook_loadtest::traffic;
use walhook_loadtest::world::World;
use walhook_testkit::receiver::Behaviour;

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// A breaker waits up to ten minutes for its next probe.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// The defaults of the configuration, in bytes.
const MEMORY_LIMIT: u64 = 256 << 20;
const MAX_RETAINED: u64 = 256 << 20;
const REPLAY_WINDOW: u64 = 1 << 30;

/// What an account's endpoint does while it is dead, by the account's last digit; `None`: it refuses
/// connections.
fn dead() -> [Option<Behaviour>; 10] {
    let fails = Some(Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
    let hangs = Some(Behaviour::hang());
    [None, None, None, None, fails, fails, fails, fails, hangs, hangs]
}

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// How long the endpoints are dead
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Transactions a second
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Accounts with one endpoint each
    #[arg(long, default_value_t = 100)]
    accounts: i64,
    /// How long is written before the endpoints die, and after they are back
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    around: Duration,
    /// Where to write the plot
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Where to write all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How things stand at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
struct Sample {
    seconds: f64,
    resident: Resident,
    slot_bytes: u64,
    anchor_bytes: u64,
    checkpoint_lag: f64,
    state_bytes: u64,
    deferred: f64,
    committed: u64,
    delivered: u64,
    load: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    died: f64,
    back: f64,
    stopped: f64,
    drained: f64,
    deferred_at_most: f64,
    audit: Audit,
    in_tables: u64,
    samples: Vec<Sample>,
}

/// Measures, prints, audits.
pub(crate) async fn run(args: Args) -> Result<()> {
    let report = measure(&args).await?;
    print(&report);
    write_json(args.json.as_ref(), &report)?;
    if let Some(file) = &args.plot {
        std::fs::write(file, plot(&report)?)?;
    }
    report.audit.ensure(report.in_tables)?;
    ensure!(report.in_tables == 0, "{} stand in the tables", report.in_tables);
    Ok(())
}

async fn measure(args: &Args) -> Result<Report> {
    let books = Arc::new(Books::default());
    let mut receivers = Vec::new();
    for _ in dead() {
        receivers.push(receiver::start(Arc::clone(&books)).await?);
    }
    let mut world = World::start("").await?;
    let accounts: Vec<i64> = (1..=args.accounts).collect();
    for (account, receiver) in accounts.iter().zip(receivers.iter().cycle()) {
        world.add_account(*account, &receiver::url(receiver, *account)).await?;
    }
    world.run().await?;
    let traffic = traffic::start(&world, &books, &accounts, args.rate).await?;
    let mut log = Log { world: &world, books: &books, samples: Vec::new(), next: Instant::now() };

    log.keep_for(args.around).await?;
    let died = books.now();
    for (receiver, dead) in receivers.iter_mut().zip(dead()) {
        match dead {
            Some(behaviour) => receiver.set_default(behaviour),
            None => receiver.refuse(),
        }
    }
    log.keep_for(Duration::from_secs_f64(args.minutes * 60.0)).await?;
    let back = books.now();
    for receiver in &mut receivers {
        receiver.listen()?;
        receiver.set_default(Behaviour::ok());
    }
    log.keep_for(args.around).await?;
    traffic.stop().await?;
    let stopped = books.now();
    let give_up = stopped + PATIENCE;
    while books.delivered() < books.committed() {
        ensure!(books.now() < give_up, "not drained\n{}", world.walhook.log_tail());
        log.keep().await?;
    }
    let drained = books.last_received().map_or(books.now(), |at| books.now() - at.elapsed());
    let empty = async || Ok(world.in_tables().await? == 0);
    world.until("the table of deferred deliveries is empty", PATIENCE, empty).await?;
    for _ in 0..5 {
        log.keep().await?;
    }
    let samples = log.samples;
    world.walhook.stop().await?;
    Ok(Report {
        died: died.as_secs_f64(),
        back: back.as_secs_f64(),
        stopped: stopped.as_secs_f64(),
        drained: drained.as_secs_f64(),
        deferred_at_most: samples.iter().map(|s| s.deferred).fold(0.0, f64::max),
        audit: books.audit(1..=args.accounts),
        in_tables: world.in_tables().await?,
        samples,
    })
}

/// Keeps samples.
struct Log<'a> {
    world: &'a World,
    books: &'a Books,
    samples: Vec<Sample>,
    next: Instant,
}

impl Log<'_> {
    async fn keep_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.keep().await?;
        }
        sleep(end.saturating_duration_since(Instant::now())).await;
        Ok(())
    }

    async fn keep(&mut self) -> Result<()> {
        sleep_until(self.next).await;
        self.next = Instant::now().max(self.next + SAMPLE_EVERY);
        let retained = |slot: &str| {
            format!(
                "SELECT coalesce((SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)
                 FROM pg_replication_slots WHERE slot_name = '{slot}'), 0)::bigint"
            )
        };
        let metrics = self.world.metrics().await?;
        self.samples.push(Sample {
            seconds: self.books.now().as_secs_f64(),
            resident: Resident::of(self.world.walhook.pid())?,
            slot_bytes: self.world.number(&retained("walhook")).await?,
            anchor_bytes: self.world.number(&retained("walhook_anchor")).await?,
            checkpoint_lag: metrics.get("walhook_checkpoint_lag_bytes"),
            state_bytes: self.world.state_bytes().await?,
            deferred: metrics.get("walhook_deferred"),
            committed: self.books.committed(),
            delivered: self.books.delivered(),
            load: load()?,
        });
        Ok(())
    }
}

fn print(report: &Report) {
    let until = [
        ("before", 0.0, report.died),
        ("dead", report.died, report.back),
        ("back, still written", report.back, report.stopped),
        ("draining", report.stopped, report.drained),
        ("drained", report.drained, f64::INFINITY),
    ];
    let head = [
        "at most",
        "seconds",
        "resident",
        "slot's WAL",
        "anchor's WAL",
        "tables",
        "deferred",
        "load",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, from, to) in until {
        let within: Vec<&Sample> =
            report.samples.iter().filter(|s| (from..to).contains(&s.seconds)).collect();
        let most = |value: fn(&Sample) -> u64| within.iter().map(|s| value(s)).max().unwrap_or(0);
        let float = |value: fn(&Sample) -> f64| within.iter().map(|s| value(s)).fold(0.0, f64::max);
        let end = if to.is_finite() { to } else { from };
        rows.push(vec![
            name.to_owned(),
            format!("{:.0}", end - from),
            mib(most(|s| s.resident.now)),
            mib(most(|s| s.slot_bytes)),
            mib(most(|s| s.anchor_bytes)),
            mib(most(|s| s.state_bytes)),
            format!("{:.0}", float(|s| s.deferred)),
            format!("{:.1}", float(|s| s.load)),
        ]);
    }
    table(&rows);
    println!(
        "\n{:.0} deferred at most; the last was delivered {:.0} s after the endpoints were back",
        report.deferred_at_most,
        report.drained - report.back
    );
    println!("{}; in the tables {}", report.audit, report.in_tables);
}

#[expect(clippy::cast_precision_loss, reason = "a plot is not exact")]
fn plot(report: &Report) -> Result<String> {
    let all = |value: fn(&Sample) -> f64| report.samples.iter().map(value).collect::<Vec<f64>>();
    let in_mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mib = |value: fn(&Sample) -> u64| {
        report.samples.iter().map(|s| in_mib(value(s))).collect::<Vec<f64>>()
    };
    let panels = [
        Panel {
            title: "Resident memory of walhook, MiB",
            lines: vec![("resident", mib(|s| s.resident.now))],
            limit: Some(("memory.limit", in_mib(MEMORY_LIMIT))),
            ..Panel::default()
        },
        Panel {
            title: "WAL retained by the slot, MiB",
            lines: vec![("slot", mib(|s| s.slot_bytes))],
            limit: Some(("wal.max_retained", in_mib(MAX_RETAINED))),
            ..Panel::default()
        },
        Panel {
            title: "WAL retained by the anchor slot, MiB",
            lines: vec![("anchor", mib(|s| s.anchor_bytes))],
            limit: Some((
                "source.replay_window + wal.max_retained",
                in_mib(REPLAY_WINDOW + MAX_RETAINED),
            )),
            ..Panel::default()
        },
        Panel {
            title: "State tables on disk, MiB (state.max_size: 10,240)",
            lines: vec![("tables", mib(|s| s.state_bytes))],
            limit: None,
            ..Panel::default()
        },
        Panel {
            title: "Deliveries",
            lines: vec![
                ("committed", all(|s| s.committed as f64)),
                ("delivered", all(|s| s.delivered as f64)),
                ("deferred", all(|s| s.deferred)),
            ],
            limit: None,
            ..Panel::default()
        },
    ];
    let seconds = all(|s| s.seconds);
    svg(&seconds, &[("dead", report.died), ("back", report.back)], &panels)
}
