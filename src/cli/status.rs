//! `walhook status`: the pipeline as the databases show it.
//!
//! Asks no running instance, so it works from anywhere and says something about a pipeline that
//! does not run.

mod failing;
mod invalid;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::{Config, DeliveryMode};
use crate::server::prepared;
use walhook_core::event::rfc3339;
use walhook_core::halt;
use walhook_core::lsn::Lsn;
use walhook_postgres::slot::{self, Slot, WalStatus};
use walhook_postgres::sql::Connection;
use walhook_state::Told;
use walhook_state::{JobState, Overview, Prepared, StateError, StateStore, StoppedSince};

use super::gaps::{self, Shown};
use super::table::one_line;
use super::{CommandResult, Common, Failure, print_json, print_line};
use invalid::Invalid;

/// Show leader, slot, checkpoint, dead letters, gaps and why the pipeline halted, if it did
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the pipeline's state.
///
/// # Errors
/// [`Failure::Halted`] when the pipeline has halted, after the state is printed.
pub async fn run(_args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let (gathered, instance) = tokio::join!(gather(&config), failing::instance(&config));
    let mut report = match gathered {
        Ok(report) => report,
        Err(failure) => {
            // The databases say nothing; an instance that runs here still does.
            let troubles = instance.map(|instance| instance.troubles).unwrap_or_default();
            if common.json {
                print_json(&Unanswered { pipeline: config.source.slot.clone(), troubles })?;
            } else {
                for told in &troubles {
                    print_line(&one_line(&format!("FAILING       {}", failing::to_line(told))))?;
                }
            }
            return Err(failure);
        }
    };
    report.troubles = failing::troubles(&report.overview, instance, report.leader.running);
    if common.json {
        print_json(&report)?;
    } else {
        print_line(&report.to_text())?;
    }
    match report.halted {
        Some(halt) => Err(Failure::Halted(halt.reason)),
        None => Ok(()),
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::Failed(error.into())
    }
}

/// Opens the state tables that the configuration names.
pub(super) async fn open_state(config: &Config) -> Result<StateStore, StateError> {
    let url = config.state.url.as_ref().unwrap_or(&config.source.url);
    StateStore::open(url, &config.state.schema, &config.source.slot).await
}

/// Reads the slot from the source.
pub(super) async fn read_slot(config: &Config) -> anyhow::Result<Option<Slot>> {
    let source = Connection::open(&config.source.url, "walhook status").await?;
    Ok(slot::read(&source, &config.source.slot).await?)
}

/// The checkpoint of a pipeline that is prepared for an upgrade.
pub(super) async fn checkpoint(
    config: &Config,
    state: &StateStore,
    slot: Option<&Slot>,
) -> anyhow::Result<Lsn> {
    let source = Connection::open(&config.source.url, "walhook status").await?;
    prepared::checkpoint(state, &source, &config.source.slot, slot).await
}

/// Everything that `status` shows. Times are RFC 3339 in UTC.
#[derive(Debug, Serialize)]
struct Report {
    pipeline: String,
    /// As this configuration says; the leader's may differ.
    mode: DeliveryMode,
    leader: Leader,
    /// Null when there is none, or when the source did not answer.
    slot: Option<SlotReport>,
    /// Why the slot could not be read.
    source_error: Option<String>,
    /// Why `run` would halt at the slot, and the mend.
    slot_problem: Option<String>,
    checkpoint: Checkpoint,
    settled_rows: i64,
    #[serde(flatten)]
    standing: Standing,
    dead_letters: BTreeMap<String, i64>,
    gaps: Vec<Shown>,
    /// An upgrade of PostgreSQL that is prepared and not finished.
    prepared: Option<Prepared>,
    /// Partitions and children of the rules' tables whose changes are missing, as the leader saw last.
    uncovered: Vec<String>,
    disabled_endpoints: Vec<StoppedSince>,
    paused_endpoints: Vec<Paused>,
    jobs: Vec<JobState>,
    halted: Option<Halt>,
    /// What fails now, since when, and the fix.
    troubles: Vec<Told>,
    /// As it was read.
    #[serde(skip)]
    overview: Overview,
}

/// What is left to say where the state database does not answer.
#[derive(Debug, Serialize)]
struct Unanswered {
    pipeline: String,
    troubles: Vec<Told>,
}

/// An endpoint that an operator has paused.
#[derive(Debug, Serialize)]
struct Paused {
    endpoint: String,
    reason: String,
    since: String,
}

impl Paused {
    fn new(stopped: StoppedSince) -> Self {
        let StoppedSince { endpoint, reason, since_us } = stopped;
        Self { endpoint, reason, since: rfc3339(since_us) }
    }
}

#[derive(Debug, Serialize)]
struct Leader {
    /// Whether the slot is being read; null when the source did not answer.
    running: Option<bool>,
    /// Who took the lease last.
    holder: Option<String>,
    epoch: i64,
    since: Option<String>,
}

#[derive(Debug, Serialize)]
struct SlotReport {
    active: bool,
    wal_status: WalStatus,
    retained_bytes: u64,
    /// Null where nothing limits it.
    safe_bytes: Option<u64>,
}

/// What waits, and where it is in trouble.
#[derive(Debug, Serialize)]
struct Standing {
    /// Deferred deliveries.
    deferred: i64,
    /// Events that are stored without an endpoint, since their account's could not be looked up.
    unrouted: i64,
    /// How many endpoints are in each state but `ok`.
    endpoints: BTreeMap<String, i64>,
    /// What the state tables take on disk.
    state_bytes: u64,
    /// Of the endpoint table, now.
    invalid_endpoints: Invalid,
}

#[derive(Debug, Serialize)]
struct Checkpoint {
    frontier: String,
    written_at: String,
    lag_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Halt {
    reason: String,
    since: Option<String>,
}

async fn gather(config: &Config) -> Result<Report, Failure> {
    let state = open_state(config).await?;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let (slot, source_error) = match read_slot(config).await {
        Ok(slot) => (slot, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let mut overview = state.overview().await?;
    let prepared = state.prepared().await?.filter(|prepared| prepared.holds);
    if prepared.is_some() && source_error.is_none() {
        overview.frontier = checkpoint(config, &state, slot.as_ref()).await?;
    }
    let gaps = gaps::shown(config, std::mem::take(&mut overview.gaps)).await;
    let jobs = state.unfinished_jobs().await?;
    let standing = Standing {
        deferred: overview.deferred,
        unrouted: overview.unrouted,
        endpoints: state.troubled().await?.into_iter().collect(),
        state_bytes: state.sizes().await?.total_bytes,
        invalid_endpoints: match &source_error {
            None => Invalid::gather(config).await,
            Some(_) => Invalid::unknown(),
        },
    };
    let report = report(config, overview, standing, jobs, slot, source_error);
    Ok(Report { gaps, prepared, ..report })
}

fn report(
    config: &Config,
    overview: Overview,
    standing: Standing,
    jobs: Vec<JobState>,
    slot: Option<Slot>,
    source_error: Option<String>,
) -> Report {
    let active = slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
    let halted_at = overview.halted_at_us.map(rfc3339);
    let state = slot.as_ref().map(Slot::state);
    let checked = halt::check_slot(&config.source.slot, state.as_ref(), overview.frontier);
    let slot_problem = checked.err().filter(|_| source_error.is_none());
    let read = overview.clone();
    Report {
        troubles: Vec::new(),
        overview: read,
        pipeline: config.source.slot.clone(),
        mode: config.delivery.mode,
        leader: Leader {
            running: source_error.is_none().then_some(active),
            holder: overview.holder,
            epoch: overview.epoch,
            since: overview.taken_at_us.map(rfc3339),
        },
        checkpoint: Checkpoint {
            frontier: overview.frontier.to_string(),
            written_at: rfc3339(overview.frontier_at_us),
            lag_bytes: slot.as_ref().map(|slot| slot.wal_end.bytes_since(overview.frontier)),
        },
        slot: slot.map(|slot| SlotReport {
            active: slot.active_pid.is_some(),
            wal_status: slot.wal_status,
            retained_bytes: slot.retained_bytes(),
            safe_bytes: slot.safe_bytes,
        }),
        source_error,
        slot_problem: slot_problem.map(|halt| halt.to_string()),
        settled_rows: overview.settled_rows,
        standing,
        dead_letters: overview.dead_letters.into_iter().collect(),
        gaps: Vec::new(),
        prepared: None,
        uncovered: overview.uncovered,
        disabled_endpoints: overview.disabled,
        paused_endpoints: overview.paused.into_iter().map(Paused::new).collect(),
        jobs,
        halted: overview.halt_reason.map(|reason| Halt { reason, since: halted_at }),
    }
}

impl Report {
    fn to_text(&self) -> String {
        let mut lines =
            vec![("pipeline", self.pipeline.clone()), ("leader", self.leader.to_text())];
        if self.mode == DeliveryMode::Log {
            let text = "log: nothing is sent (delivery.mode of this configuration)";
            lines.push(("MODE", text.to_owned()));
        }
        lines.extend(self.troubles.iter().map(|told| ("FAILING", failing::to_line(told))));
        lines.push(("slot", self.slot_text()));
        lines.extend(self.slot_problem.iter().map(|problem| ("SLOT PROBLEM", problem.clone())));
        if let Some(prepared) = &self.prepared {
            let since = rfc3339(prepared.prepared_at_us);
            let text = format!(
                "for a major upgrade since {since}: go on with pg_upgrade, or with `walhook run` as before"
            );
            lines.push(("prepared", text));
        }
        let lag = self.checkpoint.lag_bytes.map(|b| format!(", {} behind the WAL", bytes(b)));
        lines.push((
            "checkpoint",
            format!(
                "{}, written {}{}",
                self.checkpoint.frontier,
                self.checkpoint.written_at,
                lag.unwrap_or_default()
            ),
        ));
        lines.push(("settled", format!("{} rows ahead of the checkpoint", self.settled_rows)));
        lines.push(("deferred", self.standing.deferred.to_string()));
        if self.standing.unrouted > 0 {
            let text = format!(
                "{} events whose account's endpoints could not be looked up",
                self.standing.unrouted
            );
            lines.push(("unrouted", text));
        }
        let dead: Vec<String> =
            self.dead_letters.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        lines.push(("dead letters", or_none(&dead)));
        let troubled: Vec<String> =
            self.standing.endpoints.iter().map(|(state, n)| format!("{state} {n}")).collect();
        lines.push(("in trouble", or_none(&troubled)));
        let invalid = self.standing.invalid_endpoints.to_text();
        lines.extend(invalid.into_iter().map(|line| ("invalid", line)));
        lines.push(("state", format!("{} in tables", bytes(self.standing.state_bytes))));
        let each = |name, items: Vec<String>| {
            let items = if items.is_empty() { vec!["none".to_owned()] } else { items };
            items.into_iter().map(move |item| (name, item))
        };
        let gaps = self.gaps.iter().map(|Shown { gap: g, replay, .. }| {
            let again = replay.as_ref().map(|replay| format!("; send it again: {replay}"));
            format!(
                "{} to {}: {} (recorded {}){}",
                g.from_lsn,
                g.to_lsn,
                g.reason,
                rfc3339(g.recorded_at_us),
                again.unwrap_or_default()
            )
        });
        lines.extend(each("gaps", gaps.collect()));
        lines.extend(self.uncovered.iter().map(|alarm| ("NOT COVERED", alarm.clone())));
        let disabled = self
            .disabled_endpoints
            .iter()
            .map(|d| format!("{}: {} (since {})", d.endpoint, d.reason, rfc3339(d.since_us)));
        lines.extend(each("switched off", disabled.collect()));
        let paused = self
            .paused_endpoints
            .iter()
            .map(|p| format!("{}: {} (since {})", p.endpoint, p.reason, p.since));
        lines.extend(each("paused", paused.collect()));
        let jobs = self.jobs.iter().map(|j| {
            format!("{} {}: {} done, {} failed of {}", j.id, j.kind, j.done, j.failed, j.total)
        });
        lines.extend(each("jobs", jobs.collect()));
        if let Some(halt) = &self.halted {
            let since = halt.since.as_deref().unwrap_or("an unknown time");
            lines.push(("HALTED", format!("since {since}: {}", halt.reason)));
        }
        let lines: Vec<String> =
            lines.iter().map(|(name, value)| format!("{name:<13} {}", one_line(value))).collect();
        lines.join("\n")
    }

    fn slot_text(&self) -> String {
        if let Some(error) = &self.source_error {
            return format!("unknown, the source did not answer: {error}");
        }
        let Some(slot) = &self.slot else { return "does not exist".to_owned() };
        let status = match slot.wal_status {
            WalStatus::Reserved => "reserved",
            WalStatus::Extended => "extended",
            WalStatus::Unreserved => "unreserved",
            WalStatus::Lost => "lost",
            WalStatus::Unknown => "unknown",
        };
        let safe = slot.safe_bytes.map_or_else(
            || "no limit (max_slot_wal_keep_size)".to_owned(),
            |b| format!("{} until it is lost", bytes(b)),
        );
        let active = if slot.active { "active" } else { "not active" };
        format!("{active}, {status}, retains {}, {safe}", bytes(slot.retained_bytes))
    }
}

impl Leader {
    fn to_text(&self) -> String {
        let last = self.holder.as_deref().map_or_else(
            || "never taken".to_owned(),
            |holder| {
                let since = self.since.as_deref().unwrap_or("an unknown time");
                format!("{holder}, epoch {}, since {since}", self.epoch)
            },
        );
        match self.running {
            Some(true) => last,
            Some(false) => format!("none runs (last: {last})"),
            None => format!("unknown (last: {last})"),
        }
    }
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// A size for a person: `12.3 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    UNITS.iter().find(|(size, _)| n >= *size).map_or_else(
        || format!("{n} B"),
        |(size, unit)| {
            let tenths = n % size * 10 / size;
            format!("{}.{tenths} {unit}", n / size)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::state_fixture::{Fixture, dead, event};
    use walhook_core::persist::{DisableEndpoint, PersistBatch};

    #[test]
    fn bytes_are_printed_with_their_unit() {
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "17179869183.9 GiB");
    }

    #[tokio::test]
    async fn status_shows_the_pipeline_and_exits_with_3_when_it_has_halted() {
        let fixture = Fixture::start().await;
        let config = fixture.config();
        let report = gather(&config).await.unwrap();
        let text = report.to_text();
        assert!(text.contains("slot          does not exist\n"), "{text}");
        assert!(text.contains("`walhook recover --accept-gap`"), "{text}");

        let slot = "SELECT pg_create_logical_replication_slot('p', 'pgoutput')";
        fixture.admin.query_one(slot, &[]).await.unwrap();
        let mut store = fixture.open().await;
        store.take_lease("host:1").await.unwrap();
        let batch = PersistBatch {
            frontier: Lsn(0x200),
            dead_letters: vec![dead(&event(0x300, "1"), "7")],
            disabled: vec![DisableEndpoint {
                endpoint: walhook_core::event::EndpointId::new("7"),
                reason: "answered 410".into(),
            }],
            ..PersistBatch::default()
        };
        store.persist(&batch).await.unwrap();
        let text = gather(&config).await.unwrap().to_text();
        for part in [
            "none runs (last: host:1, epoch 1",
            "not active, reserved, retains",
            "no limit",
            "SLOT PROBLEM  replication slot \"p\" begins at ",
            "0/200, written 2",
            "behind the WAL",
            "exhausted 1",
            "7: answered 410",
            "in trouble    disabled 1",
            "deferred      0",
            "invalid       unknown: ",
            "KiB in tables",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("HALTED"));

        store.store_halt("the slot is lost").await.unwrap();
        let report = gather(&config).await.unwrap();
        assert!(report.to_text().contains("HALTED"), "{}", report.to_text());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["halted"]["reason"], "the slot is lost");
        assert_eq!(json["dead_letters"]["exhausted"], 1);
        assert_eq!(json["slot"]["wal_status"], "reserved");
        let since = json["disabled_endpoints"][0]["disabled_at"].as_str().unwrap();
        assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
        let (_file, common) = fixture.common(false);
        let end = run(Args {}, &common).await;
        assert!(matches!(end, Err(Failure::Halted(reason)) if reason == "the slot is lost"));
    }

    #[tokio::test]
    async fn status_says_what_the_state_holds_when_the_source_is_down() {
        let fixture = Fixture::start().await;
        let mut config = fixture.config();
        config.state.url = Some(fixture.url.clone().into());
        config.source.url =
            walhook_core::endpoint::Secret::new("postgres://x:hush@127.0.0.1:1/x").into();
        let report = gather(&config).await.unwrap();
        let text = report.to_text();
        assert!(text.contains("did not answer") && text.contains("0/100"), "{text}");
        assert!(!text.contains("SLOT PROBLEM"), "{text}");
        assert!(!text.contains("hush"), "{text}");
        config.state.url = None;
        assert!(matches!(gather(&config).await, Err(Failure::Failed(_))));
    }
}
