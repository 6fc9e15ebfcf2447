//! What walhook costs, in figures that any machine can compare: each is a ratio to the least that any
//! program could do, of runs that take turns, so that a machine that is slow or busy slows both.
//!
//! ```text
//! make bench FIGURES="one,idle" BENCH="--pairs 7 --scale 0.2"
//! make bench-workers
//! cargo build --release -p walhook -p walhook-loadtest && target/release/figures --help
//! ```
//!
//! It prints one table, and fails where a figure is worse than in `benchmarks/baseline.toml` by more than
//! the margin that stands there.

mod bare;
mod catch_up;
mod decoding;
mod deferral;
mod delivery_log;
mod idle;
mod latency;
mod memory;
mod outage;
mod sink;
mod standstill;
mod starts;
mod throughput;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use tokio::task::JoinSet;
use walhook_loadtest::report::table;
use walhook_loadtest::sample::load;
use walhook_loadtest::until_interrupted;

use throughput::Case;
use walhook_loadtest::baseline::{Baseline, Verdict, raised, rounded};
use walhook_loadtest::figure::Figure;

/// As walhook's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Deliveries of a run, at full size.
const DELIVERIES: f64 = 100_000.0;

/// Rows that are decoded in a run: more, for a reader takes little.
const DECODED: f64 = 500_000.0;

/// A latency's phase, and a look at an idle leader, at full size.
const PHASE: Duration = Duration::from_secs(15);

/// For how long deliveries come at a steady pace while their endpoint is dead, at full size.
const PACE: Duration = Duration::from_secs(30);

/// Lines of the delivery log that is searched, at full size.
const LOGGED: f64 = 10_000_000.0;

/// Deliveries that are deferred when walhook starts, at full size.
const AT_START: f64 = 1_000_000.0;

/// Bursts for each pair.
const BURSTS: usize = 2;

/// Repetitions of what is a count, and a server of its own each time: it hardly differs.
const COUNTS_MAX: usize = 3;

#[derive(Debug, Parser)]
#[command(about = "Measures what walhook costs, and compares it with the baseline")]
struct Cli {
    #[command(subcommand)]
    own: Option<Own>,

    /// Which; left out, all but the log's, growth, start and catch-up, which take long, and those of workers
    #[arg(long, value_delimiter = ',')]
    figures: Vec<Group>,

    /// Pairs of runs of each, each side first in turn
    #[arg(long, default_value_t = 5)]
    pairs: usize,

    /// The share of the full size: of 100,000 deliveries a run, and of its times
    #[arg(long, default_value_t = 1.0)]
    scale: f64,

    /// Another build of walhook to compare with instead of the bare loop, where that is what is compared
    /// with; the baseline does not count then
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,

    /// What was reached
    #[arg(long, default_value = "benchmarks/baseline.toml")]
    baseline: PathBuf,

    /// Write the medians of this run into that file; the commit says why
    #[arg(long)]
    raise: bool,
}

/// What our own processes are called with.
#[derive(Debug, Subcommand)]
enum Own {
    #[command(hide = true)]
    Bare(bare::Args),
    #[command(hide = true)]
    Pipe(latency::Args),
    #[command(hide = true)]
    Decode(decoding::Args),
    #[command(hide = true)]
    Drop(decoding::Args),
    #[command(hide = true)]
    Busy,
}

/// Figures that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Group {
    /// One account's burst in one transaction
    Burst,
    /// A backlog for one endpoint
    One,
    /// For 100 accounts whose endpoints share a host
    Accounts,
    /// For 100 accounts on as many hosts
    Hosts,
    /// The same by TLS
    Tls,
    /// For as many accounts as there are deliveries, on one host
    Many,
    /// From commit to arrival at 200 commits a second
    Latency,
    /// Reading the stream
    Decode,
    /// How long others stand still during bursts, beside two busy processes
    Standstill,
    /// Deliveries that are deferred and drained
    Deferral,
    /// How fast that is
    Flow,
    /// The same by the pace at which deliveries come, and for short queues
    Paces,
    /// What a hundred rounds of it leave behind
    Growth,
    /// What the delivery log costs
    Log,
    /// What it takes in WAL and on disk
    LogSize,
    /// How long a search of ten million lines of it takes
    LogSearch,
    /// A start with a million of them
    Start,
    /// An endpoint that comes back after a quarter of an hour
    CatchUp,
    /// What is kept in memory
    Memory,
    /// A leader with nothing to do
    Idle,
    /// What several workers send, beside one
    WorkersScale,
    /// What a hundred small ones send
    WorkersMany,
    /// What a delivery costs a leader whose workers send
    WorkersCpu,
    /// From commit to arrival by workers
    WorkersLatency,
    /// Small accounts beside a large one, by workers
    WorkersWhale,
    /// What a leader asks of PostgreSQL, with a hundred workers
    WorkersDatabase,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    // On the threads of the runtime: the main thread would be woken from there for each thing that comes.
    let mut tasks = JoinSet::new();
    match cli.own {
        Some(Own::Bare(args)) => tasks.spawn(bare::post(args)),
        Some(Own::Pipe(args)) => tasks.spawn(latency::pipe(args)),
        Some(Own::Decode(args)) => tasks.spawn(decoding::read(args)),
        Some(Own::Drop(args)) => tasks.spawn(decoding::drop_all(args)),
        Some(Own::Busy) => tasks.spawn(standstill::busy()),
        None => return until_interrupted(compare(&cli)).await,
    };
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(ExitCode::SUCCESS)
}

async fn compare(cli: &Cli) -> Result<ExitCode> {
    ensure!(cli.pairs > 0 && cli.scale > 0.0, "--pairs and --scale are above 0");
    let baseline = match cli.against {
        Some(_) => Baseline::default(),
        None => Baseline::read(&cli.baseline)?,
    };
    let groups: Vec<Group> = match &cli.figures[..] {
        [] => Group::value_variants().iter().copied().filter(|group| !group.is_apart()).collect(),
        chosen => chosen.to_vec(),
    };
    let before = load()?;
    let mut figures = Vec::new();
    for group in groups {
        let name = group.to_possible_value().map(|value| value.get_name().to_owned());
        eprintln!("measuring {} ...", name.unwrap_or_default());
        figures.extend(group.measure(cli).await?);
    }
    print(&figures, &baseline, cli);
    println!(
        "\n{} pairs each, at {} of the full size; load average {before:.1} before, {:.1} after",
        cli.pairs,
        cli.scale,
        load()?
    );
    if cli.raise {
        let text = std::fs::read_to_string(&cli.baseline)?;
        std::fs::write(&cli.baseline, raised(&text, &figures))?;
        return Ok(ExitCode::SUCCESS);
    }
    let worse: Vec<String> = figures
        .iter()
        .filter(|figure| baseline.verdict(figure) == Verdict::Worse)
        .map(|figure| format!("{}.{}", figure.group, figure.key))
        .collect();
    if worse.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("worse than the baseline beyond its margin: {}", worse.join(", "));
    Ok(ExitCode::FAILURE)
}

impl Group {
    /// Whether it is measured when it is named alone: it takes more than some minutes at full size, or needs NATS.
    fn is_apart(self) -> bool {
        matches!(
            self,
            Self::Growth
                | Self::Log
                | Self::LogSize
                | Self::LogSearch
                | Self::Start
                | Self::CatchUp
                | Self::WorkersScale
                | Self::WorkersMany
                | Self::WorkersCpu
                | Self::WorkersLatency
                | Self::WorkersWhale
                | Self::WorkersDatabase
        )
    }

    async fn measure(self, cli: &Cli) -> Result<Vec<Figure>> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number of some thousands"
        )]
        let scaled = |full: f64| (full * cli.scale).ceil() as u64;
        let (deliveries, time) = (scaled(DELIVERIES), PHASE.mul_f64(cli.scale));
        let counts = cli.pairs.min(COUNTS_MAX);
        let backlog = |group, accounts, hosts, tls| {
            let case = Case { group, accounts, hosts, tls };
            throughput::backlog(case, deliveries, cli.pairs, cli.against.as_ref())
        };
        match self {
            Self::Burst => throughput::burst(deliveries, cli.pairs).await,
            Self::One => backlog("one", 1, 1, false).await,
            Self::Accounts => backlog("accounts", 100, 1, false).await,
            Self::Hosts => backlog("hosts", 100, 100, false).await,
            Self::Tls => backlog("tls", 100, 100, true).await,
            Self::Many => backlog("many", deliveries, 1, false).await,
            Self::Latency => latency::measure(time, cli.pairs).await,
            Self::Decode => decoding::measure(scaled(DECODED), cli.pairs).await,
            Self::Standstill => standstill::measure(deliveries, cli.pairs * BURSTS).await,
            Self::Deferral => deferral::measure(deliveries, cli.pairs).await,
            Self::Flow => deferral::flow(deliveries, cli.pairs).await,
            Self::Paces => deferral::paces(PACE.mul_f64(cli.scale), counts).await,
            Self::Growth => deferral::growth(scaled(deferral::ROUNDS)).await,
            Self::Log => delivery_log::cost(deliveries, cli.pairs).await,
            Self::LogSize => delivery_log::size(PACE.mul_f64(cli.scale)).await,
            Self::LogSearch => delivery_log::search(scaled(LOGGED), cli.pairs).await,
            Self::Start => starts::measure(scaled(AT_START), cli.pairs).await,
            Self::CatchUp => catch_up::measure(catch_up::DEAD.mul_f64(cli.scale), 1).await,
            Self::Memory => memory::measure(deliveries, counts).await,
            Self::Idle => idle::measure(time, cli.pairs).await,
            Self::WorkersScale => workers::scale(time, cli.pairs).await,
            Self::WorkersMany => workers::many(time, cli.pairs).await,
            Self::WorkersCpu => workers::cpu(deliveries, cli.pairs).await,
            Self::WorkersLatency => workers::latency(time, cli.pairs).await,
            Self::WorkersWhale => workers::whale(time, cli.pairs).await,
            Self::WorkersDatabase => workers::database(time, cli.pairs).await,
        }
    }
}

fn print(figures: &[Figure], baseline: &Baseline, cli: &Cli) {
    let theirs = if cli.against.is_some() { "other" } else { "beside" };
    let head =
        ["figure", "what", "walhook", theirs, "ratio or value (from – to)", "baseline", "goal", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for figure in figures {
        let (ours, theirs) = figure.sides();
        let spread = figure.spread();
        let entry = baseline.entry(figure);
        let number = |value: Option<f64>| value.map_or(String::new(), rounded);
        let verdict = if cli.against.is_some() { "" } else { baseline.verdict(figure).as_str() };
        rows.push(vec![
            format!("{}.{}", figure.group, figure.key),
            figure.what.to_owned(),
            rounded(ours),
            number(theirs),
            format!(
                "{} ({} – {})",
                rounded(spread.median),
                rounded(spread.least),
                rounded(spread.most)
            ),
            number(entry.and_then(|entry| entry.value)),
            number(entry.and_then(|entry| entry.goal)),
            verdict.to_owned(),
        ]);
    }
    table(&rows);
}
