//! `walhook status`: the pipeline as the databases show it.

mod work;

use std::collections::BTreeMap;

use url::Url;

use super::ago::with_ago;
use super::table::named;
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::config::DeliveryMode;
use crate::control::bytes;
use crate::control::gaps::ReplayableGap;
use crate::control::idle_pipelines::IdlePipeline;
use crate::control::status::{
    self, InvalidView, LeaderView, OpenTransactionView, SlotView, StatusView, TroubleView,
};
use crate::control::workers::WorkerView;
pub(super) use work::cause_text;

/// Show leader, slot, checkpoint, what waits and for what, dead letters, gaps and why the pipeline halted, if it did
///
/// Almost all of it comes from the databases, so it also says something where nothing runs. What is in memory only
/// the leader knows: its admin server is asked, on this machine at `admin.listen`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook status
  walhook status --admin http://10.0.0.7:9723   the leader runs on another machine
  walhook status --json | jq .work.accounts")]
pub struct Args {
    /// Where the leader's admin server answers, where that is not on this machine
    #[arg(long, value_name = "URL", value_parser = super::admin_url)]
    admin: Option<Url>,
}

/// Prints the pipeline's state.
///
/// # Errors
/// [`Failure::Halted`] when the pipeline has halted, after the state is printed.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let status = match status::read(&config, args.admin).await {
        Ok(status) => status,
        Err(unanswered) => {
            if common.json {
                print_json(&unanswered.view)?;
            } else {
                if let Some(slot) = &unanswered.view.slot {
                    print_line(&line("slot", &one_slot_text(slot)))?;
                }
                for (name, value) in failing(&unanswered.view.troubles) {
                    print_line(&line(name, &value))?;
                }
            }
            return Err(unanswered.failure);
        }
    };
    if common.json {
        print_json(&status)?;
    } else {
        let expects_workers =
            config.workers.is_some() && config.delivery.mode == DeliveryMode::Live;
        print_line(&text(&status, expects_workers))?;
    }
    match status.halted {
        Some(halt) => Err(Failure::Halted(halt.reason)),
        None => Ok(()),
    }
}

/// Endpoints that are named of those in one state.
const NAMED: usize = 10;

/// Columns of a thing's name.
const NAME_WIDTH: usize = 13;

/// The whole of it, a line for each thing.
fn text(status: &StatusView, expects_workers: bool) -> String {
    let mut lines = whereabouts(status);
    lines.extend(work::lines(status));
    lines.extend(amounts(status, expects_workers));
    lines.extend(records(status));
    let lines: Vec<String> = lines.iter().map(|(name, value)| line(name, value)).collect();
    lines.join("\n")
}

fn line(name: &str, value: &str) -> String {
    named(name, value, NAME_WIDTH)
}

type Lines = Vec<(&'static str, String)>;

/// Who leads, what fails, and where the pipeline goes on.
fn whereabouts(status: &StatusView) -> Lines {
    let mut lines = vec![
        ("pipeline", status.pipeline.clone()),
        ("leader", leader_text(&status.leader, status.halted.is_some())),
    ];
    if let Some(halt) = &status.halted {
        let since = halt.since.as_deref().unwrap_or("an unknown time");
        lines.push(("HALTED", format!("since {since}: {}", halt.reason)));
    }
    if status.mode == DeliveryMode::Log {
        let text = "log: nothing is sent (delivery.mode of this configuration)";
        lines.push(("MODE", text.to_owned()));
    }
    lines.extend(failing(&status.troubles));
    lines.push(("slot", slot_text(status)));
    lines.extend(status.slot_problem.iter().map(|problem| ("SLOT PROBLEM", problem.clone())));
    lines.extend(status.idle_pipelines.iter().map(|idle| ("NOT RUN", idle_text(idle))));
    if let Some(prepared) = &status.prepared {
        let since = &prepared.prepared_at;
        let text = format!(
            "for a major upgrade since {since}: go on with pg_upgrade, or with `walhook run` as before"
        );
        lines.push(("prepared", text));
    }
    let checkpoint = &status.checkpoint;
    let lag = checkpoint.lag_bytes.map(|b| format!(", {} behind the WAL", bytes(b)));
    let lag = lag.unwrap_or_default();
    lines.push((
        "checkpoint",
        format!("{}, written {}{lag}", checkpoint.frontier, with_ago(&checkpoint.written_at)),
    ));
    lines
}

/// How much there is of what.
fn amounts(status: &StatusView, expects_workers: bool) -> Lines {
    let mut lines = vec![
        ("settled", format!("{} rows ahead of the checkpoint", status.settled_rows)),
        ("deferred", status.deferred.to_string()),
    ];
    if status.unrouted > 0 {
        let text =
            format!("{} events whose account's endpoints could not be looked up", status.unrouted);
        lines.push(("unrouted", text));
    }
    let counts = |counts: &BTreeMap<String, i64>| {
        let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
        if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
    };
    lines.push(("dead letters", counts(&status.dead_letters)));
    lines.push(("in trouble", counts(&status.endpoints)));
    lines.extend(workers_text(status, expects_workers).map(|text| ("workers", text)));
    let open = status.open_transactions.iter().flatten();
    lines.extend(open.map(|one| ("transaction", transaction_text(one))));
    let invalid = invalid_text(&status.invalid_endpoints);
    lines.extend(invalid.into_iter().map(|line| ("invalid", line)));
    lines.push(("state", format!("{} in tables", bytes(status.state_bytes))));
    lines
}

/// The first of many endpoints, and where all are listed.
fn first_of(endpoints: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = endpoints.len().saturating_sub(NAMED);
    let mut lines: Vec<String> = endpoints.take(NAMED).collect();
    if more > 0 {
        lines.push(format!("and {more} more: walhook endpoints list --trouble"));
    }
    lines
}

/// What is recorded until somebody deals with it.
fn records(status: &StatusView) -> Lines {
    let each = |name, items: Vec<String>| {
        let items = if items.is_empty() { vec!["none".to_owned()] } else { items };
        items.into_iter().map(move |item| (name, item))
    };
    let gaps = status.gaps.iter().map(|ReplayableGap { gap, replay, .. }| {
        let again = match replay {
            Some(replay) => format!("send it again: {replay}"),
            None => "walhook gaps list says what helps".to_owned(),
        };
        let recorded = with_ago(&gap.recorded_at);
        format!("{} to {}: {} (recorded {recorded}); {again}", gap.from_lsn, gap.to_lsn, gap.reason)
    });
    let mut lines: Lines = each("gaps", gaps.collect()).collect();
    lines.extend(status.uncovered.iter().map(|alarm| ("NOT COVERED", alarm.clone())));
    let disabled = status
        .disabled_endpoints
        .iter()
        .map(|d| format!("{}: {} (since {})", d.endpoint, d.reason, d.disabled_at));
    lines.extend(each("switched off", first_of(disabled)));
    let paused = status
        .paused_endpoints
        .iter()
        .map(|p| format!("{}: {} (since {})", p.endpoint, p.reason, p.since));
    lines.extend(each("paused", first_of(paused)));
    let jobs = status.jobs.iter().map(|j| {
        format!("{} {}: {} done, {} failed of {}", j.id, j.kind, j.done, j.failed, j.known_total())
    });
    lines.extend(each("jobs", jobs.collect()));
    lines
}

/// What fails. One cause may stop many parts: it is told once, with what matters most.
fn failing(troubles: &[TroubleView]) -> Lines {
    let mut lines = Lines::new();
    for (at, trouble) in troubles.iter().enumerate() {
        let has_its_cause =
            |other: &&TroubleView| (&other.error, &other.fix) == (&trouble.error, &trouble.fix);
        let (before, after) = (troubles.iter().take(at), troubles.iter().skip(at + 1));
        if before.clone().any(|other| has_its_cause(&other)) {
            continue;
        }
        let TroubleView { part, says, since, error, fix } = trouble;
        let since = with_ago(since);
        lines.push(("FAILING", format!("{part}, since {since}: {says}: {error}; fix: {fix}")));
        let others: Vec<String> = after
            .filter(has_its_cause)
            .map(|TroubleView { part, says, .. }| format!("{part} ({says})"))
            .collect();
        if !others.is_empty() {
            lines.push(("", format!("for the same reason: {}", others.join(", "))));
        }
    }
    lines
}

fn slot_text(status: &StatusView) -> String {
    if let Some(error) = &status.source_error {
        return format!("unknown, it could not be read: {error}");
    }
    status.slot.as_ref().map_or_else(|| "does not exist".to_owned(), one_slot_text)
}

fn one_slot_text(slot: &SlotView) -> String {
    let safe = slot.safe_bytes.map_or_else(
        || "no limit (max_slot_wal_keep_size)".to_owned(),
        |b| format!("{} until it is lost", bytes(b)),
    );
    let active = if slot.active { "active" } else { "not active" };
    let retains = bytes(slot.retained_bytes);
    format!("{active}, {}, retains {retains}, {safe}", slot.wal_status)
}

fn idle_text(IdlePipeline { pipeline, retained_bytes }: &IdlePipeline) -> String {
    format!(
        "the pipeline {pipeline}, whose slot retains {}: start its instance, or remove it with `walhook teardown`",
        bytes(*retained_bytes)
    )
}

/// `halted`: it is not to be started before that is resolved.
fn leader_text(leader: &LeaderView, halted: bool) -> String {
    let last = leader.holder.as_deref().map_or_else(
        || "never taken".to_owned(),
        |holder| {
            let since = leader.since.as_deref().map(with_ago);
            let since = since.unwrap_or_else(|| "an unknown time".to_owned());
            let ended = leader.running == Some(false) && !leader.answers;
            let led = if ended { "leading from" } else { "since" };
            format!("{holder}, epoch {}, {led} {since}", leader.epoch)
        },
    );
    match leader.running {
        Some(true) => last,
        Some(false) if leader.answers => format!("{last}; it has no connection to the slot"),
        Some(false) if halted => format!("none runs (last: {last})"),
        Some(false) => format!("none runs (last: {last}): start `walhook run`"),
        None => format!("unknown (last: {last})"),
    }
}

/// The part that tells why leader and workers do not come together.
const BUS: &str = crate::server::trouble::Part::Bus.as_str();

/// How many there are in each state, with their slots; where there are none although the configuration has
/// `[workers]`, why, if that is known.
fn workers_text(status: &StatusView, expected: bool) -> Option<String> {
    let workers = status.workers.as_ref()?;
    if workers.is_empty() {
        let bus = status.troubles.iter().find(|it| it.part == BUS);
        let why =
            |bus: &TroubleView| format!("none; since {}: {}", with_ago(&bus.since), bus.error);
        return bus.map(why).or_else(|| expected.then(|| "none".to_owned()));
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    for worker in workers {
        *counts.entry(&worker.state).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    if status.leader.running == Some(false) {
        return Some(format!("nobody leads; for the last leader {}", counts.join(", ")));
    }
    let of = |count: fn(&WorkerView) -> u64| workers.iter().map(count).fold(0, u64::saturating_add);
    let (in_flight, slots) = (of(|worker| worker.in_flight), of(|worker| worker.slots));
    Some(format!("{}; {in_flight} of {slots} slots in use", counts.join(", ")))
}

fn transaction_text(transaction: &OpenTransactionView) -> String {
    let OpenTransactionView { xid, state, since, rows, bytes: size, kept_in } = transaction;
    format!("{xid} {state} since {since}: {rows} changes, {} in {kept_in}", bytes(*size))
}

/// One line for each thing to say.
fn invalid_text(invalid: &InvalidView) -> Vec<String> {
    let error = invalid.error.as_deref().unwrap_or("it was not read");
    let Some(count) = invalid.count else { return vec![format!("unknown: {error}")] };
    let among = if invalid.more { "the first " } else { "" };
    let mut lines = match (count, invalid.more) {
        (0, false) => vec!["none".to_owned()],
        _ => vec![format!("{count} of {among}{} endpoints", invalid.looked_at)],
    };
    lines.extend(invalid.first.iter().map(|it| format!("{}: {}", it.endpoint, it.reason)));
    if count > invalid.first.len() {
        lines.push("`walhook endpoints list` shows all".to_owned());
    }
    lines.extend(invalid.error.iter().map(|error| format!("the others are unknown: {error}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn status_says_in_a_line_each_what_stands_in_its_json() {
        let text = text(&sample::status(), true);
        for part in [
            "leader        host pid 1, epoch 3, since 2026-11-28T",
            "FAILING       look-ups, since 2026-11-28T",
            "slot          active, reserved, retains 16.0 MiB, 1.0 GiB until it is lost",
            "SLOT PROBLEM  ",
            "prepared      for a major upgrade since 2026-11-28T",
            "checkpoint    0/200, written 2026-11-28T",
            "behind the WAL",
            "unrouted      2 events",
            "dead letters  exhausted 1",
            "in trouble    disabled 1",
            "workers       quarantined 1, serving 1; 24 of 2560 slots in use",
            "transaction   7341 open since 2026-11-28T12:00:00.000000Z: 400000 changes, 50.0 MiB in spool",
            "invalid       1 of 3 endpoints\ninvalid       9: ",
            "state         64.0 KiB in tables",
            "send it again: walhook replay start",
            "NOT COVERED   ",
            "switched off  7: answered 410 (since 2026-11-28T",
            "paused        8: ",
            "jobs          4 deferred.retry: 1 done, 1 failed of 3",
            "HALTED        since 2026-11-28T",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn cause_that_stops_many_parts_is_told_once_and_parts_with_others_by_themselves() {
        let trouble = |part: &str, error: &str| TroubleView {
            part: part.to_owned(),
            says: format!("no {part}"),
            since: "2026-11-28T12:00:00.000000Z".to_owned(),
            error: error.to_owned(),
            fix: "start it".to_owned(),
        };
        let troubles =
            [("state", "away"), ("lookups", "locked"), ("jobs", "away"), ("sizes", "away")];
        let lines = failing(&troubles.map(|(part, error)| trouble(part, error)));
        let told: Vec<(&str, &str)> = lines
            .iter()
            .map(|(name, text)| (*name, text.split_once("): ").map_or(&**text, |(_, text)| text)))
            .collect();
        let expected = [
            ("FAILING", "no state: away; fix: start it"),
            ("", "for the same reason: jobs (no jobs), sizes (no sizes)"),
            ("FAILING", "no lookups: locked; fix: start it"),
        ];
        assert_eq!(told, expected, "{lines:?}");
    }

    #[test]
    fn status_of_a_source_that_does_not_answer_says_so_and_nothing_of_the_slot() {
        let text = text(&sample::status_of_little(), true);
        for part in [
            "MODE          log: nothing is sent",
            "leader        unknown (last: never taken)",
            "slot          unknown, it could not be read: ",
            "invalid       unknown: ",
            "gaps          none",
            "dead letters  none",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("HALTED") && !text.contains("SLOT PROBLEM"), "{text}");
    }

    #[test]
    fn workers_that_should_be_there_and_are_not_have_a_line() {
        let none = StatusView { workers: Some(Vec::new()), ..sample::status_of_little() };
        assert_eq!(workers_text(&none, true).as_deref(), Some("none"));
        assert_eq!(workers_text(&none, false), None);
        let unknown = StatusView { workers: None, ..none };
        assert_eq!(workers_text(&unknown, true), None);
    }
}
