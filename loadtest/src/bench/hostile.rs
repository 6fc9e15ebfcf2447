//! The matrix: each stage that accounts share, against each adversary, beside one victim. What the victim feels of
//! it, what memory it takes, and that nothing is lost.
//!
//! Each cell has a server and a walhook of its own: a quiet phase, then a hostile one, in one run, and the victim
//! commits throughout. It fails where the victim's p99 is more than twice that of the quiet phase plus 20 ms, where
//! resident memory passes `memory.limit` + 128 MiB, or where a committed delivery is neither delivered nor stands
//! anywhere. A cell in which the adversary cannot touch the stage says why instead (`untouched`).
//!
//! What is done is kept in a file, cell by cell:
//!
//! ```text
//! make hostile                                              all of it, some half an hour
//! make hostile BENCH="--resume"                             what is not done yet
//! make hostile BENCH="--stages turns,drain --adversaries whale,keys --json some.json"
//! make hostile BENCH="--reasons"                            which cells there are, and why others are not
//! ```

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::time::Instant;
use walhook_loadtest::report::{mib, table, write_json};

use adversaries::Adversary;
use cell::{Accounts, Report, measure};
use stages::Stage;
use untouched::why_untouched;

#[path = "hostile/adversaries.rs"]
mod adversaries;
#[path = "hostile/cell.rs"]
mod cell;
#[path = "hostile/servers.rs"]
mod servers;
#[path = "hostile/stages.rs"]
mod stages;
#[path = "hostile/untouched.rs"]
mod untouched;

#[derive(Debug, clap::Args)]
/// What can be chosen.
pub(crate) struct Args {
    /// These stages only, separated by commas
    #[arg(long, value_delimiter = ',')]
    stages: Vec<String>,
    /// These adversaries only, separated by commas
    #[arg(long, value_delimiter = ',')]
    adversaries: Vec<String>,
    /// The quiet phase
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// What comes before a hostile phase in which something is to come back
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    backlog: Duration,
    /// The hostile phase
    #[arg(long, default_value = "8s", value_parser = humantime::parse_duration)]
    hostile: Duration,
    /// No cell begins after so long
    #[arg(long, default_value = "60m", value_parser = humantime::parse_duration)]
    within: Duration,
    /// The file that keeps what is done, with all figures
    #[arg(long, default_value = "target/hostile.json")]
    json: PathBuf,
    /// Leave out what the file has already
    #[arg(long)]
    resume: bool,
    /// Say which cells there are, and why others are not, and run none
    #[arg(long)]
    reasons: bool,
}

/// Measures, prints, judges.
pub(crate) async fn run(args: Args) -> Result<()> {
    let cells = chosen(&args)?;
    if args.reasons {
        reasons(&cells);
        return Ok(());
    }
    let mut reports: Vec<Report> = if args.resume && args.json.exists() {
        let text = std::fs::read_to_string(&args.json)?;
        serde_json::from_str(&text).with_context(|| args.json.display().to_string())?
    } else {
        Vec::new()
    };
    let began = Instant::now();
    let mut left = 0;
    for (stage, adversary) in cells.iter().copied() {
        let is_it = |r: &Report| r.stage == stage.name() && r.adversary == adversary.name();
        if why_untouched(stage, adversary).is_some() || reports.iter().any(is_it) {
            continue;
        }
        if began.elapsed() > args.within {
            left += 1;
            continue;
        }
        let name = format!("{} × {}", stage.name(), adversary.name());
        let report = measure(&args, stage, adversary).await.with_context(|| name.clone())?;
        eprintln!("{name}: {}", cell(&report));
        eprintln!("  the slowest hundredth: {}", report.slowest_ms);
        report.wrong.iter().for_each(|wrong| eprintln!("  {wrong}"));
        reports.push(report);
        write_json(Some(&args.json), &reports)?;
    }
    print(&cells, &reports);
    if left > 0 {
        bail!("{left} cells are left; go on with --resume");
    }
    let wrong: usize = reports.iter().map(|report| report.wrong.len()).sum();
    ensure!(wrong == 0, "{wrong} bounds are passed");
    Ok(())
}

/// The cells that were asked for, stage by stage.
fn chosen(args: &Args) -> Result<Vec<(Stage, Adversary)>> {
    let is_known = |name: &String, all: &[&str]| {
        ensure!(all.contains(&name.as_str()), "{name:?} is none of {}", all.join(", "));
        Ok(())
    };
    args.stages.iter().try_for_each(|name| is_known(name, &Stage::ALL.map(Stage::name)))?;
    let adversaries = Adversary::ALL.map(Adversary::name);
    args.adversaries.iter().try_for_each(|name| is_known(name, &adversaries))?;
    let is_wanted = |name: &str, all: &[String]| all.is_empty() || all.iter().any(|n| n == name);
    let stages = Stage::ALL.into_iter().filter(|s| is_wanted(s.name(), &args.stages));
    let with = |stage| {
        let all = Adversary::ALL.into_iter();
        all.filter(|a| is_wanted(a.name(), &args.adversaries)).map(move |a| (stage, a))
    };
    Ok(stages.flat_map(with).collect())
}

/// What the victim felt, in short.
fn cell(report: &Report) -> String {
    if report.left_out.is_some() {
        return "not here".to_owned();
    }
    let (quiet, hostile) = (report.quiet_ms.p99, report.hostile_ms.p99);
    let holds = if report.wrong.is_empty() { "" } else { " **no**" };
    format!("{quiet:.0} → {hostile:.0}{holds}")
}

/// The matrix, then each cell's figures.
fn print(cells: &[(Stage, Adversary)], reports: &[Report]) {
    let of = |stage: Stage, adversary: Adversary| {
        reports.iter().find(|r| r.stage == stage.name() && r.adversary == adversary.name())
    };
    let columns = Adversary::ALL.into_iter().filter(|a| cells.iter().any(|(_, other)| a == other));
    let columns: Vec<Adversary> = columns.collect();
    let head = std::iter::once("p99 in ms").chain(columns.iter().map(|a| a.name()));
    let mut rows = vec![head.map(str::to_owned).collect::<Vec<_>>()];
    for stage in Stage::ALL.into_iter().filter(|s| cells.iter().any(|(other, _)| s == other)) {
        let of_stage = columns.iter().map(|adversary| match why_untouched(stage, *adversary) {
            Some(_) => "–".to_owned(),
            None => of(stage, *adversary).map_or_else(|| "?".to_owned(), cell),
        });
        rows.push(std::iter::once(stage.name().to_owned()).chain(of_stage).collect());
    }
    table(&rows);
    println!();
    let head = [
        "Stage",
        "Adversary",
        "p50, p99, max without",
        "and with (ms)",
        "what the slowest hundredth waited for (ms)",
        "memory",
        "delivered, deferred, dead, dropped, in gaps",
        "lost",
        "holds",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for report in reports {
        let Accounts { delivered, deferred, dead, dropped, in_gaps, .. } = report.books;
        let spread = |l: &cell::Latency| format!("{:.1}, {:.1}, {:.0}", l.p50, l.p99, l.max);
        rows.push(vec![
            report.stage.clone(),
            report.adversary.clone(),
            spread(&report.quiet_ms),
            spread(&report.hostile_ms),
            report.slowest_ms.to_string(),
            mib(report.resident),
            format!("{delivered}, {deferred}, {dead}, {dropped}, {in_gaps}"),
            report.books.lost().to_string(),
            match (&report.left_out, report.wrong.is_empty()) {
                (Some(why), _) => format!("not run here: {why}"),
                (None, true) => "yes".to_owned(),
                (None, false) => "**no**".to_owned(),
            },
        ]);
    }
    table(&rows);
    for report in reports {
        for wrong in &report.wrong {
            println!("{} × {}: {wrong}", report.stage, report.adversary);
        }
    }
}

fn reasons(cells: &[(Stage, Adversary)]) {
    for stage in Stage::ALL.into_iter().filter(|s| cells.iter().any(|(other, _)| s == other)) {
        println!("{}: {}", stage.name(), stage.what());
    }
    for adversary in Adversary::ALL {
        println!("{}: {}", adversary.name(), adversary.what());
    }
    for (stage, adversary) in cells {
        let why = why_untouched(*stage, *adversary).unwrap_or("is run");
        println!("{} × {}: {why}", stage.name(), adversary.name());
    }
}
