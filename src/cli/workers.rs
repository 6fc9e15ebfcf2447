//! `walhook workers`: the processes that send for the leader.

use super::table::table;
use super::{CommandResult, Common, print_json, print_line};
use crate::control::workers::{self, WorkerList, WorkerView};

/// List the workers that send for the leader, as it saw them last
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List them: state, requests in flight of slots, lost attempts, when the leader heard from each
    #[command(after_help = "\
The leader writes this down when it changes; a worker that has gone is left out after a while. A
worker whose [egress] differs, or that speaks no version in common, is refused and not listed: the
logs of both say so. LOST are attempts of this worker's process that were lost with its earlier
sessions.

Examples:
  walhook workers list
  walhook workers list --json | jq '[.workers[] | select(.state == \"serving\") | .slots] | add'")]
    List,
}

/// Runs the subcommand.
///
/// # Errors
/// When the state database does not answer.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List => {
            let found = workers::list(&config).await?;
            if common.json { print_json(&found) } else { print_line(&text(&found)) }
        }
    }
}

fn text(WorkerList { leader_running, workers, .. }: &WorkerList) -> String {
    let Some(workers) = workers else {
        return "not known: this server is a standby, which has no table of workers; ask the primary"
            .to_owned();
    };
    if workers.is_empty() {
        return "no workers".to_owned();
    }
    let head = ["STATE", "SINCE", "IN FLIGHT", "LOST", "SEEN", "BUILD", "HOST", "SESSION"];
    let rows: Vec<_> =
        std::iter::once(head.map(str::to_owned)).chain(workers.iter().map(row)).collect();
    let nobody_leads = match leader_running {
        Some(false) => "nobody leads now; this is how they were for the last leader\n",
        Some(true) | None => "",
    };
    format!("{nobody_leads}{}", table(&rows))
}

fn row(worker: &WorkerView) -> [String; 8] {
    let WorkerView { session, host, build, state, since, slots, in_flight, lost, .. } = worker;
    [
        state.clone(),
        since.clone(),
        format!("{in_flight} of {slots}"),
        lost.to_string(),
        format!("{:.0} s ago", worker.seen_seconds),
        build.clone(),
        host.clone(),
        session.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn list_has_a_line_for_each_worker_and_says_where_nothing_is_known() {
        let shown = text(&sample::workers());
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[1].starts_with("serving      2026-") && lines[1].contains("12 of 1280"));
        assert!(lines[2].starts_with("quarantined") && lines[2].contains("32 s ago"));
        let last = text(&WorkerList { leader_running: Some(false), ..sample::workers() });
        assert!(last.starts_with("nobody leads now"), "{last}");
        assert!(text(&sample::unknown_workers()).starts_with("not known"));
        assert_eq!(text(&WorkerList { workers: Some(vec![]), ..sample::workers() }), "no workers");
    }
}
