//! A seed once more: the same, to see that it is; or with less in it, while it still fails.

use crate::faults::Fault;
use crate::plan::Options;
use crate::run::{Failure, Wishes, run};

/// Runs a seed twice, and compares all that was told and asked for. Returns how many lines that were.
///
/// # Errors
/// The first line that differs, as both runs have it; or what a run failed with.
pub fn doublecheck(seed: u64, options: &Options) -> Result<u64, String> {
    let traced = Wishes { trace: true, ..Wishes::default() };
    let once =
        || run(seed, options, &traced).map_err(|failure| format!("seed {seed}: {failure:?}"));
    let (first, second) = (once()?, once()?);
    if first.digest == second.digest && first.trace == second.trace {
        return Ok(first.lines);
    }
    let same = first.trace.iter().zip(&second.trace).take_while(|(a, b)| a == b).count();
    // A third and a fourth run may differ elsewhere; then they differ all the more.
    let wishes = Wishes { line: Some(same), ..Wishes::default() };
    let line = || run(seed, options, &wishes).ok().and_then(|report| report.line);
    Err(format!("seed {seed}: line {same} differs:\n  {:?}\n  {:?}", line(), line()))
}

/// Takes away from a failing seed what it fails without: transactions, accounts, faults. Returns what is
/// left, and how that fails.
///
/// Tells of each try on standard error. A smaller world is another one. So whatever fails the same checker counts, not the same moment.
#[must_use]
pub fn minimize(seed: u64, options: &Options, failure: &Failure) -> (Options, Failure) {
    let mut least = (options.clone(), failure.clone());
    let fails = |options: &Options| {
        let failure_of = run(seed, options, &Wishes::default()).err();
        failure_of.filter(|found| found.checker == failure.checker)
    };
    let keep_if_it_fails = |options: Options, least: &mut (Options, Failure)| {
        let found = fails(&options);
        let does = found.is_some();
        eprintln!(
            "{} transactions, {} accounts, without {} kinds of fault: {}",
            options.transactions,
            options.accounts,
            options.without.len(),
            if does { "still fails" } else { "holds" }
        );
        if let Some(found) = found {
            *least = (options, found);
        }
        does
    };
    for fault in Fault::ALL {
        let mut fewer = least.0.clone();
        if fewer.without.insert(*fault) {
            keep_if_it_fails(fewer, &mut least);
        }
    }
    for (number, less) in [(2, 1), (4, 3), (8, 7), (16, 15)] {
        loop {
            let transactions = least.0.transactions * less / number;
            let fewer = Options { transactions, ..least.0.clone() };
            if transactions < 2 || transactions == least.0.transactions {
                break;
            }
            if !keep_if_it_fails(fewer, &mut least) {
                break;
            }
        }
    }
    loop {
        let accounts = least.0.accounts / 2;
        let fewer = Options { accounts, ..least.0.clone() };
        if accounts < 2 || !keep_if_it_fails(fewer, &mut least) {
            return least;
        }
    }
}
