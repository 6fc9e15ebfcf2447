//! The command line of the simulator.

use std::fs::File;
use std::io::{BufReader, IsTerminal};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use walhook_simulator::{
    ACCOUNTS, Counts, Fault, Options, Plant, Replayed, TRANSACTIONS, Wishes, doublecheck, minimize,
    replay, run,
};

/// Runs walhook's decisions in virtual time, by seed, and checks what they promise
#[derive(Debug, Parser)]
struct Arguments {
    /// This seed
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A to B, B not included
    #[arg(long, value_name = "A..B", value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Transactions of each seed
    #[arg(long, default_value_t = TRANSACTIONS)]
    transactions: usize,
    /// Accounts of each seed
    #[arg(long, default_value_t = ACCOUNTS)]
    accounts: u32,
    /// Leaves faults out
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    without: Vec<Fault>,
    /// Plants a fault of walhook's own: the seeds are to fail
    #[arg(long, value_name = "NAME")]
    plant: Option<Plant>,
    /// Plants one fault after the other, each in as many of the seeds (500) as it takes until it is found
    #[arg(long, conflicts_with_all = ["seed", "plant", "doublecheck", "minimize"])]
    plants: bool,
    /// Runs each seed twice, and compares all that was told and asked for
    #[arg(long)]
    doublecheck: bool,
    /// Takes away from a seed that fails what it fails without, and prints what is left
    #[arg(long)]
    minimize: bool,
    /// Prints all that is told and asked for
    #[arg(long)]
    trace: bool,
    /// Replays a recording of `walhook run --record` instead, and compares what it comes to
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "plant", "trace"])]
    replay: Option<PathBuf>,
}

/// In so many seeds at their default size each kind of thing has to happen.
const FULL_RANGE: u64 = 2_000;

/// Within so many seeds each planted fault has to be found.
const PLANTED_SEEDS: u64 = 500;

/// Plants each fault, and says in which seed it is found, and by which checker.
fn plant_all(seeds: Range<u64>, options: &Options) -> ExitCode {
    let mut missed = 0;
    for plant in Plant::ALL {
        let planted = Options { plant: Some(*plant), ..options.clone() };
        let found = seeds.clone().find_map(|seed| {
            let failure = run(seed, &planted, &Wishes::default()).err()?;
            Some(format!("in seed {seed}, by {}", failure.checker))
        });
        missed += u32::from(found.is_none());
        let found = found.unwrap_or_else(|| format!("not in seeds {seeds:?}"));
        println!("{}: found {found}", plant.as_str());
    }
    println!("{} planted, {missed} not found", Plant::ALL.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says what differs first, if anything does.
fn replay_file(path: &Path) -> ExitCode {
    // What a dispatcher says of a damaged recording is told with its line.
    std::panic::set_hook(Box::new(|_| {}));
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"));
    match file.and_then(|file| replay(BufReader::new(file))) {
        Ok(Replayed { dispatchers, inputs, rounds, effects, ended }) => {
            println!(
                "the same: {dispatchers} dispatchers, {inputs} inputs, {rounds} rounds, {effects} effects"
            );
            println!(
                "{}",
                ended.as_deref().unwrap_or("the recording has no end: was the process killed?")
            );
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("{}: {problem}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    Ok(parse(from)?..parse(to)?)
}

#[expect(clippy::disallowed_methods, reason = "the run's own time is virtual; this one is shown")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.replay {
        return replay_file(path);
    }
    let options = Options {
        transactions: arguments.transactions,
        accounts: arguments.accounts,
        without: arguments.without.iter().copied().collect(),
        plant: arguments.plant,
    };
    if arguments.plants {
        return plant_all(arguments.seeds.clone().unwrap_or(0..PLANTED_SEEDS), &options);
    }
    let first = arguments.seed.unwrap_or_default();
    let seeds = arguments.seeds.clone().unwrap_or(first..first.saturating_add(1));
    let all = seeds.end.saturating_sub(seeds.start);
    let began = Instant::now();
    let mut counts = Counts::required();
    let mut failed: u64 = 0;
    for (done, seed) in (0u64..).zip(seeds) {
        if let Err(report) = one(seed, &options, &arguments, &mut counts) {
            failed += 1;
            println!("{report}");
        }
        if std::io::stderr().is_terminal() {
            eprint!("\r{done} of {all} seeds, {failed} failed ");
        }
    }
    println!("{counts}");
    let took = began.elapsed();
    println!("{all} seeds in {took:.1?}, {failed} failed, {:.2} a second", per_second(all, took));
    let is_full = all >= FULL_RANGE && options.is_default() && !arguments.doublecheck;
    let problems = if is_full { counts.problems() } else { Vec::new() };
    for problem in &problems {
        println!("{problem}");
    }
    if is_full {
        for (kind, why) in Counts::impossible() {
            println!("{kind} cannot happen here: {why}");
        }
    }
    if failed == 0 && problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per_second(seeds: u64, took: std::time::Duration) -> f64 {
    seeds as f64 / took.as_secs_f64()
}

/// Runs a seed; says what failed, and how to see it again.
fn one(
    seed: u64,
    options: &Options,
    arguments: &Arguments,
    counts: &mut Counts,
) -> Result<(), String> {
    if arguments.doublecheck {
        return doublecheck(seed, options)
            .map(|lines| println!("seed {seed}: {lines} lines, twice"));
    }
    let wishes = Wishes { print: arguments.trace, ..Wishes::default() };
    let failure = match run(seed, options, &wishes) {
        Ok(report) => {
            counts.merge(&report.counts);
            return Ok(());
        }
        Err(failure) => failure,
    };
    let again =
        |options: &Options| format!("walhook-simulator --seed {seed}{}", options.arguments());
    let (checker, problem, at) = (&failure.checker, &failure.problem, failure.at);
    let mut report = format!("seed {seed}, at {at:?}: {checker}: {problem}\n  {}", again(options));
    if arguments.minimize {
        let (least, failure) = minimize(seed, options, &failure);
        report += &format!("\n  shortened: {}\n  {}", failure.problem, again(&least));
    }
    Err(report)
}
