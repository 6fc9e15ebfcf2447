//! Becoming the leader: the slot is taken, checked, and never trusted blindly.

mod error;
mod open;
mod preflight;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::open::{check_slot, direct_url, open, store_promotion};
use self::preflight::preflight;
use super::backoff::Backoff;
use super::known::Known;
use super::rulebook::compile_with;
use super::sessions::{LEASE, SENTINEL, STANDBY, open_source, open_state};
use super::{Stop, labels, published};
use crate::config::{Config, Streaming};
use crate::server::health::{Role, Teller};
use crate::server::prepared;
use crate::server::trouble::{Part, SLOW_FIX};
use walhook_core::halt::{Halt, SourceIdentity};
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::persist::Start;
use walhook_decode::change::Changes;
use walhook_postgres::catalog::WhichTypes;
use walhook_postgres::lookup::{LookupError, Lookups};
use walhook_postgres::pg::Conninfo;
use walhook_postgres::refused_writes::refused_writes;
use walhook_postgres::slot;
use walhook_postgres::source;
use walhook_postgres::sql::{ConnectError, Connection};
use walhook_process::clock::Clock;
use walhook_rules::rule::{EndpointTable, Rules};
use walhook_state::{Recovery, StateStore};

pub(super) use self::error::OpenError;
pub(super) use self::error::StartError;
pub(super) use self::open::{IN_USE, IN_USE_FIX, Place, Session, reopen};

/// How long one attempt to open the source may take.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// That one took longer.
pub(super) fn too_slow() -> String {
    format!("opening state and source took over {OPEN_TIMEOUT:?}")
}

/// A worker that was heard within this time by the leader before may know what that one sent: it keeps that for a
/// minute, and the leader stores when it heard it each ten seconds.
const WORKERS_WITHIN: Duration = Duration::from_secs(75);

/// How often a standby looks whether the slot is free.
const STANDBY_POLL: Duration = Duration::from_millis(100);

/// All that a new leader starts with.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) epoch: Epoch,
    /// Started when the lease was taken.
    pub(super) clock: Clock,
    pub(super) system_identifier: u64,
    pub(super) start: Start,
    pub(super) store: StateStore,
    pub(super) source: Source,
    pub(super) before: LeaderBefore,
    pub(super) known: Known,
}

/// What the reader starts with.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) session: Session,
    /// Whether the session streams transactions that are open.
    pub(super) streams: bool,
    pub(super) rules: Rules,
    pub(super) changes: Changes,
    /// The commit LSNs of the transactions whose unreadable rest the operator gave up.
    pub(super) left_out: Vec<Lsn>,
}

/// What is known of the leader before, for workers that may know more.
#[cfg_attr(not(feature = "workers"), expect(dead_code, reason = "there are no workers to ask"))]
#[derive(Debug)]
pub(super) struct LeaderBefore {
    /// The end of the WAL when the slot was ours: it has sent nothing that was committed from here on.
    pub(super) until: Lsn,
    /// The sessions of its workers, as it stored them last.
    pub(super) sessions: Vec<String>,
    /// What this one and that lead.
    pub(super) database: SourceIdentity,
}

/// What is known of earlier attempts to lead.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Whether this configuration has passed the checks of a start: until then what waiting does not fix is refused.
    started: bool,
    /// Whether the first connection streams transactions that are open.
    pub(super) streams: bool,
    known: Known,
}

impl Attempt {
    /// None was made yet.
    pub(super) fn first(config: &Config, known: Known) -> Self {
        Self { started: false, streams: config.source.streaming == Streaming::On, known }
    }
}

/// Waits until the slot is ours, and takes the lease. `None` on shutdown. `stands_by` is called when another
/// instance is found to lead.
pub(super) async fn become_leader(
    config: &Config,
    tell: &Teller,
    shutdown: &CancellationToken,
    attempt: &mut Attempt,
    mut stands_by: impl FnMut(),
) -> Result<Option<Leader>, Stop> {
    let mut backoff = Backoff::new();
    let mut said_standby = false;
    loop {
        let began = Instant::now();
        let tried = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            tried = tokio::time::timeout(OPEN_TIMEOUT, try_to_lead(config, attempt)) => tried,
        };
        // Perhaps it was cut, so that it led elsewhere.
        if !attempt.started && !matches!(tried, Ok(Ok(_))) && config.has_another_url() {
            return Err(Stop::UrlChanged);
        }
        match tried {
            Ok(Ok(leader)) => {
                attempt.started = true;
                return Ok(Some(leader));
            }
            Ok(Err(OpenError::Stop(stop))) => return Err(stop),
            Ok(Err(OpenError::Refused { problem, .. })) if !attempt.started => {
                return Err(Stop::Config(problem.into()));
            }
            Ok(Err(OpenError::Refused { later: Some(halt), .. })) => return Err(halt.into()),
            Ok(Err(OpenError::SlotInUse)) => {
                attempt.started = true;
                if !std::mem::replace(&mut said_standby, true) {
                    tracing::info!(slot = %config.source.slot, "standing by: another instance streams from the slot");
                }
                tell.set_role(Role::Standby);
                stands_by();
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(None),
                    () = until_free(config) => {}
                }
                backoff.stay_short();
            }
            Ok(Err(OpenError::Passing(problem) | OpenError::Refused { problem, .. })) => {
                tell.fails(Part::Start, began, &*problem);
            }
            Err(_) => {
                tell.fails_with(Part::Start, began, &too_slow(), SLOW_FIX);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = backoff.wait() => {}
        }
    }
}

/// Stands by on one session, until the slot is free or nothing can be said of it.
///
/// A standby asks often, for it is to take over within a second; so it must not connect each time.
async fn until_free(config: &Config) {
    let opened = open_source::<OpenError>(direct_url(config), STANDBY).await;
    let Ok(client) = opened else { return };
    while let Ok(Ok(Some(slot))) =
        tokio::time::timeout(OPEN_TIMEOUT, slot::read(&client, &config.source.slot)).await
        && slot.active_pid.is_some()
        && slot.is_ours()
    {
        tokio::time::sleep(STANDBY_POLL).await;
    }
}

/// Start, then bump the epoch, then read what the earlier leader has stored: it may have stored more
/// after we looked first, and stores nothing after the bump.
async fn try_to_lead(config: &Config, attempt: &Attempt) -> Result<Leader, OpenError> {
    let Attempt { started, streams, ref known } = *attempt;
    let refused = if started { Ok(()) } else { preflight(config).await };
    let mut store = match open_state(config, &known.timelines, LEASE).await {
        Ok(store) => store,
        // What is told of the source names the rights that `walhook setup` needs too.
        Err(error) => return Err(refused.err().unwrap_or_else(|| error.into())),
    };
    // Before the identity, which another leader may replace, and then store what is further on.
    let reached = store.reached().await?;
    let expected = store.source_identity().await?;
    let at = resume_prepared(config, &mut store, &expected).await?;
    let checks = match (started, store.current_epoch().await?) {
        (true, _) => Checks::Takeover,
        (false, Epoch(0)) => Checks::First,
        (false, _) => Checks::Restart,
    };
    let session = match open(config, known, &expected, (at, reached.max(at)), streams).await {
        // Another database than ours need not hold what we look for.
        Err(OpenError::Stop(stop)) => return Err(stop.into()),
        session => {
            refused?;
            session
        }
    };
    let system = expected.system_identifier;
    let session = match session {
        // Before it is needed: one that does not fit could not take over, and would halt for its own faults.
        Err(OpenError::SlotInUse) if !started => {
            let client = open_source::<OpenError>(direct_url(config), SENTINEL).await?;
            let checked = check_fit(config, &client, &store, system, checks).await;
            return Err(checked.map_or_else(OpenError::beside_a_leader, |_| OpenError::SlotInUse));
        }
        session => session?,
    };
    let rules = check_fit(config, &session.sentinel, &store, system, checks).await?;
    let sessions = match &config.workers {
        Some(_) => store.sessions_of_workers(WORKERS_WITHIN).await?,
        None => Vec::new(),
    };
    let holder = format!("{} pid {}", hostname(), std::process::id());
    let Recovery { epoch, start, taken_at } = store.take_lease(&holder).await?;
    let (clock, frontier) = (Clock::since(taken_at), start.frontier);
    let read = known.read_up_to(&expected, store.reached().await?);
    store_promotion(&mut store, session.promoted, read).await?;
    let until = check_slot(config, &session.sentinel, frontier, read).await?;
    let left_out = store.left_out(frontier).await?;
    store.clear_halt().await?;
    let changes = Changes::new(frontier);
    let before = LeaderBefore { until, sessions, database: expected };
    let source = Source { session, streams, rules, changes, left_out };
    let known = known.clone();
    Ok(Leader { epoch, clock, system_identifier: system, start, store, source, before, known })
}

/// What is refused beside what would lose changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checks {
    /// Nobody has led this pipeline yet: all that is wrong.
    First,
    /// Somebody has, who would still: what of the configuration waiting does not fix. What has become of the
    /// publication since is told while we run, as by the leader that was there; to refuse would keep everything from
    /// everyone.
    Restart,
    /// This process has passed them.
    Takeover,
}

/// Compiles the rules, and checks that the source shows what they and the look-ups need.
async fn check_fit(
    config: &Config,
    client: &Connection,
    store: &StateStore,
    system: u64,
    checks: Checks,
) -> Result<Rules, OpenError> {
    let endpoints = match checks {
        Checks::Takeover => EndpointTable::LookedUp,
        Checks::First | Checks::Restart => EndpointTable::Checked,
    };
    let publication = source::publication(client, &config.source.publication).await?;
    let publication = publication.as_ref();
    let rules =
        compile_with(config, client, publication, WhichTypes::All, system, endpoints).await?;
    // After the rules: one that names no table at all is the configuration's fault.
    let published = published::check(config, client, publication).await?;
    if let Err(Halt::PublicationMissing { .. }) = published {
        let last = store.last_look().await?;
        if let Some(other) = published::other_publication(config, client, last).await? {
            return Err(OpenError::of_halt(other));
        }
    }
    published.map_err(OpenError::of_halt)?;
    if checks == Checks::Takeover {
        return Ok(rules);
    }
    if checks == Checks::First {
        let watched = published::unwatched(config, client, publication).await?;
        watched.map_err(|problem| OpenError::of_halt(problem.halt(&config.source.publication)))?;
        refuse_to_break_writes(config, client).await?;
    }
    published::check_rows(config, client).await?.map_err(OpenError::of_halt)?;
    // What else may be wrong there is told by each look-up, and can be fixed meanwhile.
    if let Err(error @ LookupError::Incomparable { .. }) =
        Lookups::of(config.lookups()).check_types(client).await
    {
        return Err(OpenError::refused(error));
    }
    for doubt in labels::unknown(config, client).await? {
        tracing::warn!("{doubt}");
    }
    Ok(rules)
}

/// The checkpoint. Where an upgrade was prepared and then given up, it moves to where the slots were put.
async fn resume_prepared(
    config: &Config,
    store: &mut StateStore,
    expected: &SourceIdentity,
) -> Result<Lsn, OpenError> {
    let stored = store.frontier().await?;
    if !store.prepared().await?.is_some_and(|prepared| prepared.holds) {
        return Ok(stored);
    }
    let client = open_source::<OpenError>(direct_url(config), SENTINEL).await?;
    let info = Conninfo::parse(&config.source.url).map_err(ConnectError::from)?;
    let found = source::identity(&client, &info).await?;
    let slot = slot::read(&client, &config.source.slot).await?;
    // Another cluster is refused when it is opened; another leader moves the checkpoint itself.
    if found != *expected || slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
        return Ok(stored);
    }
    let at = prepared::checkpoint(store, &client, &config.source.slot, slot.as_ref()).await;
    let at = at?;
    if at > stored {
        store.resume_prepared(stored, at).await?;
        tracing::info!(%at, "going on from where `walhook upgrade prepare` left the slots");
    }
    Ok(at)
}

/// Refuses to begin where being published makes somebody's own writes fail.
async fn refuse_to_break_writes(config: &Config, client: &Connection) -> Result<(), OpenError> {
    let publication = config.source.publication.clone();
    let tables = refused_writes(client, &publication).await?;
    if tables.is_empty() {
        return Ok(());
    }
    Err(OpenError::refused_or_halts(StartError::RefusedWrites { publication, tables }))
}

/// The machine's name, for people.
pub(super) fn hostname() -> String {
    // Not from /proc, of which a service may see no more than processes.
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
