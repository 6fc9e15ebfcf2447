//! The command line of the simulator.

use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use walhook_simulator::{ACCOUNTS, Counts, Fault, Options, Plant, TRANSACTIONS, Wishes, run};

/// Runs walhook's decisions in virtual time, by seed, and checks what they promise
#[derive(Debug, Parser)]
struct Arguments {
    /// This seed
    #[arg(long)]
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
    #[arg(long, value_delimiter = ',')]
    without: Vec<Fault>,
    /// Plants a fault of walhook's own
    #[arg(long)]
    plant: Option<Plant>,
    /// Prints all that is told and asked for
    #[arg(long)]
    trace: bool,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parse = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number"));
    let (from, to) = text.split_once("..").ok_or("write A..B")?;
    Ok(parse(from)?..parse(to)?)
}

#[expect(clippy::disallowed_methods, reason = "the run's own time is virtual; this one is shown")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        transactions: arguments.transactions,
        accounts: arguments.accounts,
        without: arguments.without.iter().copied().collect(),
        plant: arguments.plant,
    };
    let first = arguments.seed.unwrap_or_default();
    let seeds = arguments.seeds.unwrap_or(first..first + 1);
    let wishes = Wishes { print: arguments.trace, ..Wishes::default() };
    let began = Instant::now();
    let mut counts = Counts::required();
    let mut failed = 0;
    let all = seeds.end.saturating_sub(seeds.start);
    for seed in seeds {
        match run(seed, &options, &wishes) {
            Ok(report) => counts.merge(&report.counts),
            Err(failure) => {
                failed += 1;
                println!("seed {seed} failed after {:?}: {}", failure.at, failure.checker);
                println!("  {}", failure.problem);
                println!("  walhook-simulator --seed {seed}{}", options.arguments());
            }
        }
    }
    if failed == 0 {
        println!("{counts}");
    }
    let took = began.elapsed().as_secs_f64();
    println!("{all} seeds, {failed} failed, {:.2} seeds/s", all as f64 / took);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
