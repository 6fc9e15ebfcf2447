//! The pipeline as the databases show it, and what an instance on this machine says of itself.
//!
//! Asks a running instance for no more than what it alone knows: what fails there, and what it has to do. So it
//! works from anywhere and says something about a pipeline that does not run.

mod failing;
pub(crate) mod invalid;
#[cfg(test)]
mod tests;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use url::Url;

use super::gaps::{self, ReplayableGap};
use super::idle_pipelines::{self, IdlePipeline};
use super::instance::Instance;
use super::jobs::JobView;
use super::workers::WorkerView;
use super::{Databases, Failure};
use crate::config::{Config, DeliveryMode};
use walhook_core::event::rfc3339;
use walhook_core::halt::{self, Halt};
use walhook_postgres::slot::{Slot, WalStatus};
use walhook_state::{
    OpenTransaction, Overview, Prepared, SeenWorker, StateStore, StoppedSince, Told,
};

pub(crate) use invalid::InvalidView;
pub(crate) use work::WorkView;

/// Everything that `status` shows.
#[derive(Debug, Serialize)]
pub(crate) struct StatusView {
    /// The slot's name.
    pub(crate) pipeline: String,
    /// As this configuration says; the leader's may differ.
    pub(crate) mode: DeliveryMode,
    /// Who leads.
    pub(crate) leader: LeaderView,
    /// Null when there is none, or when the source did not answer.
    pub(crate) slot: Option<SlotView>,
    /// Why the slot could not be read.
    pub(crate) source_error: Option<String>,
    /// Why `run` would halt at the slot, and the fix.
    pub(crate) slot_problem: Option<String>,
    /// Other pipelines of the schema and the source that no instance runs.
    pub(crate) idle_pipelines: Vec<IdlePipeline>,
    /// Where the pipeline goes on.
    pub(crate) checkpoint: CheckpointView,
    /// Rows of ranges that are settled ahead of the checkpoint.
    pub(crate) settled_rows: i64,
    /// Deferred deliveries.
    pub(crate) deferred: i64,
    /// Events that are stored without an endpoint, since their account's could not be looked up.
    pub(crate) unrouted: i64,
    /// How many endpoints are in each state but `ok`.
    pub(crate) endpoints: BTreeMap<String, i64>,
    /// What the state tables take on disk.
    pub(crate) state_bytes: u64,
    /// Of the endpoint table, now.
    pub(crate) invalid_endpoints: InvalidView,
    /// How many dead letters there are for each reason.
    pub(crate) dead_letters: BTreeMap<String, i64>,
    /// The open gaps.
    pub(crate) gaps: Vec<ReplayableGap>,
    /// An upgrade of PostgreSQL that is prepared and not finished.
    pub(crate) prepared: Option<PreparedView>,
    /// Partitions and children of the rules' tables whose changes are missing, as the leader saw last.
    pub(crate) uncovered: Vec<String>,
    /// The endpoints that walhook has switched off.
    pub(crate) disabled_endpoints: Vec<DisabledView>,
    /// The endpoints that an operator has paused.
    pub(crate) paused_endpoints: Vec<PausedView>,
    /// The jobs that are not finished.
    pub(crate) jobs: Vec<JobView>,
    /// Why the pipeline has halted, where it has.
    pub(crate) halted: Option<HaltView>,
    /// What fails now, since when, and the fix.
    pub(crate) troubles: Vec<TroubleView>,
    /// The workers that the leader knows; null where the state database cannot say, for it is a standby.
    pub(crate) workers: Option<Vec<WorkerView>>,
    /// The large transactions that the leader receives while they are open, as it saw them last; null where
    /// the state database cannot say, for it is a standby.
    pub(crate) open_transactions: Option<Vec<OpenTransactionView>>,
    /// What the leader has to do now; null where it was not asked, or did not say.
    pub(crate) work: Option<WorkView>,
    /// Why that is unknown, and whom to ask.
    pub(crate) work_error: Option<String>,
}

/// A transaction that is received while it is open.
#[derive(Debug, Serialize)]
pub(crate) struct OpenTransactionView {
    /// Its id, without an epoch, as `pg_stat_activity.backend_xid` has it.
    pub(crate) xid: u32,
    /// `open`, or `committed` while its events are made.
    pub(crate) state: String,
    /// When its first change came.
    pub(crate) since: String,
    /// How many changes of it are kept.
    pub(crate) rows: u64,
    /// What they take.
    pub(crate) bytes: u64,
    /// `memory`, or `spool` where some of it is on disk.
    pub(crate) kept_in: String,
}

/// Who leads.
#[derive(Debug, Serialize)]
pub(crate) struct LeaderView {
    /// Whether the slot is being read; null when the source did not answer.
    pub(crate) running: Option<bool>,
    /// Whether the instance that was asked says that it leads: also while its connection to the slot is lost.
    pub(crate) answers: bool,
    /// Who took the lease last.
    pub(crate) holder: Option<String>,
    /// How many leaders there have been.
    pub(crate) epoch: i64,
    /// When the lease was taken.
    pub(crate) since: Option<String>,
}

/// The replication slot.
#[derive(Debug, Serialize)]
pub(crate) struct SlotView {
    /// Whether it is being read.
    pub(crate) active: bool,
    /// Its column `wal_status`.
    pub(crate) wal_status: &'static str,
    /// The WAL that it makes the server keep.
    pub(crate) retained_bytes: u64,
    /// How much more until it is lost; null where nothing limits it.
    pub(crate) safe_bytes: Option<u64>,
}

/// Where the pipeline goes on.
#[derive(Debug, Serialize)]
pub(crate) struct CheckpointView {
    /// The position.
    pub(crate) frontier: String,
    /// When it was written last.
    pub(crate) written_at: String,
    /// The WAL between it and the end; null when the source did not answer.
    pub(crate) lag_bytes: Option<u64>,
}

/// What `walhook upgrade prepare` has recorded.
#[derive(Debug, Serialize)]
pub(crate) struct PreparedView {
    /// The checkpoint then.
    pub(crate) lsn: String,
    /// The server's version then, as `server_version_num` has it.
    pub(crate) server_version: i32,
    /// When.
    pub(crate) prepared_at: String,
    /// Nobody has led or recovered since.
    pub(crate) holds: bool,
}

/// An endpoint that walhook has switched off.
#[derive(Debug, Serialize)]
pub(crate) struct DisabledView {
    /// Its id.
    pub(crate) endpoint: String,
    /// Why.
    pub(crate) reason: String,
    /// Since when.
    pub(crate) disabled_at: String,
}

/// An endpoint that an operator has paused.
#[derive(Debug, Serialize)]
pub(crate) struct PausedView {
    /// Its id.
    pub(crate) endpoint: String,
    /// Why.
    pub(crate) reason: String,
    /// Since when.
    pub(crate) since: String,
}

/// Why the pipeline has halted.
#[derive(Debug, Serialize)]
pub(crate) struct HaltView {
    /// Why, and the fix.
    pub(crate) reason: String,
    /// Since when.
    pub(crate) since: Option<String>,
}

/// Something that fails now.
#[derive(Debug, Serialize)]
pub(crate) struct TroubleView {
    /// Which part of walhook.
    pub(crate) part: String,
    /// What does not work, and what that costs.
    pub(crate) says: String,
    /// Since when.
    pub(crate) since: String,
    /// The last error.
    pub(crate) error: String,
    /// What to do about it.
    pub(crate) fix: String,
}

/// What is left to say where the state database does not answer.
#[derive(Debug, Serialize)]
pub(crate) struct UnansweredView {
    /// The slot's name.
    pub(crate) pipeline: String,
    /// Null when there is none, or when the source did not answer either.
    pub(crate) slot: Option<SlotView>,
    /// What an instance that runs here says that fails.
    pub(crate) troubles: Vec<TroubleView>,
}

impl UnansweredView {
    fn new(config: &Config) -> Self {
        Self { pipeline: config.source.slot.clone(), slot: None, troubles: Vec::new() }
    }
}

impl From<Slot> for SlotView {
    fn from(slot: Slot) -> Self {
        Self {
            active: slot.active_pid.is_some(),
            wal_status: word(slot.wal_status),
            retained_bytes: slot.retained_bytes(),
            safe_bytes: slot.safe_bytes,
        }
    }
}

/// The state database did not answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    /// What is left to say.
    pub(crate) view: UnansweredView,
    /// Why.
    pub(crate) failure: Failure,
}

impl From<Prepared> for PreparedView {
    fn from(Prepared { lsn, server_version, prepared_at_us, holds }: Prepared) -> Self {
        let prepared_at = rfc3339(prepared_at_us);
        Self { lsn: lsn.to_string(), server_version, prepared_at, holds }
    }
}

impl From<StoppedSince> for DisabledView {
    fn from(StoppedSince { endpoint, reason, since_us }: StoppedSince) -> Self {
        Self { endpoint, reason, disabled_at: rfc3339(since_us) }
    }
}

impl From<StoppedSince> for PausedView {
    fn from(StoppedSince { endpoint, reason, since_us }: StoppedSince) -> Self {
        Self { endpoint, reason, since: rfc3339(since_us) }
    }
}

impl From<OpenTransaction> for OpenTransactionView {
    fn from(transaction: OpenTransaction) -> Self {
        let OpenTransaction { xid, state, since_us, rows, bytes, kept_in } = transaction;
        Self { xid, state, since: rfc3339(since_us), rows, bytes, kept_in }
    }
}

impl From<Told> for TroubleView {
    fn from(Told { part, says, since, error, fix }: Told) -> Self {
        Self { part, says, since, error, fix }
    }
}

/// The pipeline's state. `admin`: where the leader's admin server answers; none: on this machine, as `admin.listen`
/// says.
///
/// # Errors
/// When the state database does not answer: with what an instance that runs here still says.
pub(crate) async fn read(
    config: &Config,
    admin: Option<Url>,
) -> Result<StatusView, Box<Unanswered>> {
    let is_here = admin.is_none();
    let unanswered = |failure| Box::new(Unanswered { view: UnansweredView::new(config), failure });
    let asked = admin.map_or_else(|| Instance::here(&config.admin), |url| Ok(Instance::at(url)));
    let asked = asked.map_err(|error| unanswered(Failure::from(error)))?;
    let (found, instance, work) = tokio::join!(
        Found::read(config),
        failing::instance(config, &asked),
        work::ask(config, &asked)
    );
    match found {
        Ok(found) => {
            let running = found.is_running();
            let answers = instance.as_ref().is_some_and(|instance| instance.role == "leader");
            let troubles = failing::troubles(&found.overview, instance, running);
            let work = work.map_err(|why| why.text(&asked, is_here, running, &found.overview));
            Ok(found.into_view(config, answers, troubles, work))
        }
        Err(failure) => {
            let troubles = instance.map(|instance| instance.troubles).unwrap_or_default();
            let troubles = troubles.into_iter().map(TroubleView::from).collect();
            // How long there is until it is lost, while nothing can be stored.
            let slot = Databases::of(config).read_slot().await.ok().flatten().map(SlotView::from);
            let view = UnansweredView { slot, troubles, ..UnansweredView::new(config) };
            Err(Box::new(Unanswered { view, failure }))
        }
    }
}

/// For a lock on a state table: what asks what waits does not wait itself.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the databases hold.
struct Found {
    overview: Overview,
    slot: Option<Slot>,
    source_error: Option<String>,
    /// Where the source has no slot of ours, for it is another than the state's.
    elsewhere: Option<Halt>,
    idle_pipelines: Vec<IdlePipeline>,
    gaps: Vec<ReplayableGap>,
    prepared: Option<Prepared>,
    jobs: Vec<JobView>,
    endpoints: BTreeMap<String, i64>,
    state_bytes: u64,
    invalid: InvalidView,
    workers: Option<Vec<SeenWorker>>,
    open_transactions: Option<Vec<OpenTransaction>>,
}

impl Found {
    async fn read(config: &Config) -> Result<Self, Failure> {
        let databases = Databases::of(config);
        let state = databases.open_state_within(LOCK_TIMEOUT).await?;
        // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
        let (slot, source_error) = match databases.read_slot().await {
            Ok(slot) => (slot, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let elsewhere = match (&slot, &source_error) {
            (None, None) => databases.elsewhere(&state).await.unwrap_or_default(),
            _ => None,
        };
        let mut overview = state.overview().await?;
        let prepared = state.prepared().await?.filter(|prepared| prepared.holds);
        if prepared.is_some() && source_error.is_none() {
            overview.frontier = databases.checkpoint(&state, slot.as_ref()).await?;
        }
        let gaps = gaps::replayable(config, std::mem::take(&mut overview.gaps)).await;
        let invalid = match &source_error {
            None => InvalidView::gather(config).await,
            Some(_) => InvalidView::unknown(),
        };
        // Where a database stopped answering, another line says so.
        let idle_pipelines = idle_pipelines::gather(databases).await.unwrap_or_default();
        let jobs = jobs(&state).await?;
        let endpoints = state.troubled().await?.into_iter().collect();
        let workers = state.workers().await?;
        let open_transactions = state.open_transactions().await?;
        let state_bytes = state.sizes().await?.total_bytes;
        Ok(Self {
            overview,
            slot,
            source_error,
            elsewhere,
            idle_pipelines,
            gaps,
            prepared,
            jobs,
            endpoints,
            state_bytes,
            invalid,
            workers,
            open_transactions,
        })
    }

    /// Whether the slot is being read; `None` when the source did not answer.
    fn is_running(&self) -> Option<bool> {
        let active = self.slot.as_ref().is_some_and(|slot| slot.active_pid.is_some());
        self.source_error.is_none().then_some(active)
    }

    fn into_view(
        self,
        config: &Config,
        answers: bool,
        troubles: Vec<Told>,
        work: Result<WorkView, String>,
    ) -> StatusView {
        let running = self.is_running();
        let Self { overview, slot, source_error, elsewhere, .. } = self;
        let state = slot.as_ref().map(Slot::state);
        let checked = halt::check_slot(&config.source.slot, state.as_ref(), overview.frontier);
        let slot_problem = elsewhere.or(checked.err()).filter(|_| source_error.is_none());
        let halted_at = overview.halted_at_us.map(rfc3339);
        let (work, work_error) = match work {
            Ok(work) => (Some(work), None),
            Err(why) => (None, Some(why)),
        };
        StatusView {
            pipeline: config.source.slot.clone(),
            mode: config.delivery.mode,
            leader: LeaderView {
                running,
                answers,
                holder: overview.holder,
                epoch: overview.epoch.0,
                since: overview.taken_at_us.map(rfc3339),
            },
            checkpoint: CheckpointView {
                frontier: overview.frontier.to_string(),
                written_at: rfc3339(overview.frontier_at_us),
                lag_bytes: slot.as_ref().map(|slot| slot.wal_end.bytes_since(overview.frontier)),
            },
            slot: slot.map(SlotView::from),
            source_error,
            slot_problem: slot_problem.map(|halt| halt.to_string()),
            idle_pipelines: self.idle_pipelines,
            settled_rows: overview.settled_rows,
            deferred: overview.deferred,
            unrouted: overview.unrouted,
            endpoints: self.endpoints,
            state_bytes: self.state_bytes,
            invalid_endpoints: self.invalid,
            dead_letters: overview.dead_letters.into_iter().collect(),
            gaps: self.gaps,
            prepared: self.prepared.map(PreparedView::from),
            uncovered: overview.uncovered,
            disabled_endpoints: overview.disabled.into_iter().map(DisabledView::from).collect(),
            paused_endpoints: overview.paused.into_iter().map(PausedView::from).collect(),
            jobs: self.jobs,
            halted: overview.halt_reason.map(|reason| HaltView { reason, since: halted_at }),
            troubles: troubles.into_iter().map(TroubleView::from).collect(),
            workers: self
                .workers
                .map(|workers| workers.into_iter().map(WorkerView::from).collect()),
            open_transactions: self
                .open_transactions
                .map(|open| open.into_iter().map(OpenTransactionView::from).collect()),
            work,
            work_error,
        }
    }
}

async fn jobs(state: &StateStore) -> Result<Vec<JobView>, Failure> {
    Ok(state.unfinished_jobs().await?.into_iter().map(JobView::from).collect())
}

/// The server's own word.
fn word(status: WalStatus) -> &'static str {
    match status {
        WalStatus::Reserved => "reserved",
        WalStatus::Extended => "extended",
        WalStatus::Unreserved => "unreserved",
        WalStatus::Lost => "lost",
        WalStatus::Unknown => "unknown",
    }
}
