//! A window of half a million changes is sent again, part by part, while live traffic runs: what that
//! costs the live events, and whether what comes again is the same to the byte.
//!
//! ```text
//! make bench-replay BENCH="--rows 500000 --parts 24 --json replay.json"
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::time::sleep;
use walhook_loadtest::books::{Audit, Books};
use walhook_loadtest::receiver;
use walhook_loadtest::report::{mib, table, write_json};
use walhook_loadtest::sample::{Resident, Spread, load};
use walhook_loadtest::traffic;
use walhook_loadtest::world::World;
use walhook_testkit::oracle::Sums;

/// Whose events are sent again.
const PAST: std::ops::RangeInclusive<i64> = 1..=50;

/// The first of the live accounts.
const LIVE: i64 = 51;

/// Rows of one transaction.
const TRANSACTION: usize = 500;

/// For anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// Without a replay, before the first part.
const FIRST_REST: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// Changes of the window
    #[arg(long, default_value_t = 500_000)]
    rows: usize,
    /// Parts in which it is sent again, with as long a rest before each
    #[arg(long, default_value_t = 24)]
    parts: usize,
    /// Live accounts; each commits once a second
    #[arg(long, default_value_t = 100)]
    accounts: i64,
    /// Where to write all figures
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A rest, and the part behind it.
#[derive(Debug, Serialize)]
struct Pair {
    rest_seconds: f64,
    replay_seconds: f64,
    without_ms: Spread,
    with_ms: Spread,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: usize,
    first_time_seconds: f64,
    replay_seconds: f64,
    pairs: Vec<Pair>,
    without_ms: Spread,
    with_ms: Spread,
    median_of_ratios: f64,
    resident: Resident,
    load: [f64; 2],
    past: Audit,
    live: Audit,
}

/// Measures, prints, audits.
pub(crate) async fn run(args: Args) -> Result<()> {
    let report = measure(&args).await?;
    print(&report);
    write_json(args.json.as_ref(), &report)?;
    report.past.ensure(0)?;
    report.live.ensure(0)?;
    let Sums { committed, replayed, .. } = report.past.sums;
    ensure!(committed == replayed, "{replayed} of {committed} came again");
    Ok(())
}

async fn measure(args: &Args) -> Result<Report> {
    let books = Arc::new(Books::default());
    let receiver = receiver::start(Arc::clone(&books)).await?;
    let mut world = World::start("").await?;
    let live = LIVE..=LIVE + args.accounts - 1;
    for account in PAST.chain(live.clone()) {
        world.add_account(account, &receiver::url(&receiver, account)).await?;
    }
    let load_before = load()?;
    world.run().await?;
    let began = books.now();
    let bounds = first_time(args, &world, &books).await?;
    let first_time_seconds = (books.now() - began).as_secs_f64();

    let accounts: Vec<i64> = live.clone().collect();
    #[expect(clippy::cast_precision_loss, reason = "a number of accounts")]
    let traffic = traffic::start(&world, &books, &accounts, args.accounts as f64).await?;
    let mut rest = FIRST_REST;
    let (mut pairs, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for part in bounds.windows(2) {
        // What the last part left has ended.
        sleep(Duration::from_secs(1)).await;
        let resting = books.now();
        sleep(rest).await;
        let rested = books.now();
        let [sending, sent] = send_again(&world, &books, part).await?;
        let idle = books.latencies(live.clone(), resting, rested);
        let busy = books.latencies(live.clone(), sending, sent);
        rest = sent - sending;
        pairs.push(Pair {
            rest_seconds: (rested - resting).as_secs_f64(),
            replay_seconds: rest.as_secs_f64(),
            without_ms: Spread::of_micros(idle.clone()),
            with_ms: Spread::of_micros(busy.clone()),
        });
        without.extend(idle);
        with.extend(busy);
    }
    traffic.stop().await?;
    let missing = async || Ok(books.audit(live.clone()).missing() == 0);
    world.until("the live events have all arrived", PATIENCE, missing).await?;
    let resident = Resident::of(world.walhook.pid())?;
    world.walhook.stop().await?;
    let ratios = pairs.iter().map(|pair| pair.with_ms.p99 / pair.without_ms.p99).collect();
    Ok(Report {
        rows: args.rows,
        first_time_seconds,
        replay_seconds: pairs.iter().map(|pair| pair.replay_seconds).sum(),
        pairs,
        without_ms: Spread::of_micros(without),
        with_ms: Spread::of_micros(with),
        median_of_ratios: Spread::of(ratios).p50,
        resident,
        load: [load_before, load()?],
        past: books.audit(PAST),
        live: books.audit(live),
    })
}

/// Commits the window and has it delivered. The positions between its parts.
async fn first_time(args: &Args, world: &World, books: &Books) -> Result<Vec<String>> {
    let mut bounds = vec![world.wal_end().await?];
    let mut accounts = PAST.cycle();
    for part in 0..args.parts {
        let mut left = args.rows * (part + 1) / args.parts - args.rows * part / args.parts;
        while left > 0 {
            let now = left.min(TRANSACTION);
            let account = accounts.next().unwrap_or(*PAST.start());
            world.insert(books, account, now).await?;
            left -= now;
        }
        bounds.push(world.wal_end().await?);
    }
    let all = async || Ok(books.delivered() == books.committed());
    world.until("the window is delivered for the first time", PATIENCE, all).await?;
    world.settled(PATIENCE).await?;
    Ok(bounds)
}

/// Sends one part again; when its deliveries began and ended.
async fn send_again(world: &World, books: &Books, part: &[String]) -> Result<[Duration; 2]> {
    let [from, to] = part else { return Ok([books.now(); 2]) };
    let command = ["replay", "start", "--from", from, "--to", to, "--wait", "20m"];
    let before = books.replayed();
    let began = async {
        let first = async || Ok(books.replayed() > before);
        world.until("the replay's first delivery", PATIENCE, first).await?;
        anyhow::Ok(books.now())
    };
    let (began, ()) = tokio::try_join!(began, world.walhook.beside(&command))?;
    Ok([began, books.last_replayed()])
}

fn print(report: &Report) {
    let head = ["live events", "events", "p50 ms", "p99 ms", "max ms"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, spread) in [("no replay", report.without_ms), ("replay", report.with_ms)] {
        let Spread { n, p50, p99, max, .. } = spread;
        let cells = [format!("{p50:.2}"), format!("{p99:.2}"), format!("{max:.1}")];
        rows.push([name.to_owned(), n.to_string()].into_iter().chain(cells).collect());
    }
    table(&rows);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = |seconds: f64| report.rows as f64 / seconds;
    println!(
        "\np99 with / without: {:.2}; median of {} pairs' ratios {:.2}",
        report.with_ms.p99 / report.without_ms.p99,
        report.pairs.len(),
        report.median_of_ratios
    );
    println!(
        "{} changes: the first time {:.0} a second, sent again {:.0} a second; resident memory at most {}",
        report.rows,
        rate(report.first_time_seconds),
        rate(report.replay_seconds),
        mib(report.resident.peak)
    );
    println!("load average {:.1} before, {:.1} after", report.load[0], report.load[1]);
    println!("past: {}\nlive: {}", report.past, report.live);
}
