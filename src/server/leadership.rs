//! Opening the source: the slot is taken, checked, and never trusted blindly.
//!
//! Every opening, the first and each after a lost connection, makes the same checks, because
//! START_REPLICATION makes none: it clamps a position that the slot has passed, without a word.

use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::cure;
use super::sessions::{
    Finding, LEASE, Need, SENTINEL, STANDBY, STREAM, Verdict, findings, open_state,
};
use super::{Stop, published};
use crate::config::Config;
use crate::server::health::{Role, Teller};
use crate::server::prepared;
use crate::server::trouble::Part;
use walhook_core::halt::{self, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_decode::change::Changes;
use walhook_dispatch::dispatcher::Start;
use walhook_postgres::catalog;
use walhook_postgres::cure::Cure;
use walhook_postgres::lookup::{LookupError, Lookups};
use walhook_postgres::pg::{Conninfo, DatabaseUrl};
use walhook_postgres::preflight;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source::{self, hosts};
use walhook_postgres::sql::{ConnectError, Connection};
use walhook_postgres::wire::{self, Class, Replication, WireError};
use walhook_process::clock::Clock;
use walhook_rules::rule::{EndpointTable, Rules};
use walhook_state::{Recovery, StateError, StateStore};

/// How long one attempt to open the source may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What is told when the slot that was ours is not free.
pub(super) const IN_USE: &str = "the slot is in use by another session";

/// And what to do about it.
pub(super) const IN_USE_FIX: &str =
    "see whose it is in pg_stat_replication; the server frees it after wal_sender_timeout";

/// How often a standby looks whether the slot is free.
const STANDBY_POLL: Duration = Duration::from_millis(100);

/// An open source: the stream, and a SQL session to the same server.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) stream: wire::Stream,
    /// Ends at once when the server shuts down, also while nobody reads the stream.
    pub(super) sentinel: Connection,
    /// The session's `wal_sender_timeout`.
    pub(super) sender_timeout: Duration,
    /// Set when this is a standby that was promoted since we last looked: its timeline, to be stored.
    promoted: Option<u32>,
}

/// All that a new leader starts with.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) epoch: i64,
    /// Started when the lease was taken.
    pub(super) clock: Clock,
    pub(super) system_identifier: u64,
    pub(super) start: Start,
    pub(super) store: StateStore,
    pub(super) session: Session,
    pub(super) rules: Rules,
    pub(super) changes: Changes,
    /// The commit LSNs of the transactions whose unreadable rest the operator gave up.
    pub(super) left_out: Vec<Lsn>,
}

/// Why the source could not be opened this time.
#[derive(Debug)]
pub(super) enum OpenError {
    /// Another process streams from the slot.
    SlotInUse,
    /// May pass by itself.
    Passing(anyhow::Error),
    /// Waiting does not cure it: `run` refuses to start with it. Once started, it is waited for, unless
    /// going on would lose changes.
    Refused {
        /// What, and the fix.
        problem: anyhow::Error,
        /// What it means after the start, where it is not waited for.
        later: Option<halt::Halt>,
    },
    /// Does not.
    Stop(Stop),
}

impl OpenError {
    fn by_cure(cure: Cure, error: impl Into<anyhow::Error>) -> Self {
        match cure {
            Cure::Waiting => Self::Passing(error.into()),
            Cure::Person => Self::refused(error),
        }
    }

    fn refused(problem: impl Into<anyhow::Error>) -> Self {
        Self::Refused { problem: problem.into(), later: None }
    }
}

impl From<Stop> for OpenError {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<halt::Halt> for OpenError {
    fn from(halt: halt::Halt) -> Self {
        Self::Stop(Stop::Halted(halt))
    }
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::by_cure(Cure::of_sql(&error), error)
    }
}

/// What to do where the state tables refuse a statement for what is missing.
fn fix_of_state(refused: &tokio_postgres::Error) -> Option<&'static str> {
    match refused.code()?.code() {
        "42501" => Some("run `walhook setup --admin-url`, which grants our role what it needs"),
        // A schema, a table, a column or a function.
        "3F000" | "42P01" | "42703" | "42883" => {
            Some("run `walhook setup`, which adds what is missing")
        }
        _ => None,
    }
}

impl From<StateError> for OpenError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Fenced { .. } => Self::Stop(Stop::Fenced),
            StateError::FrontierDecreases { .. }
            | StateError::CheckpointMoved { .. }
            | StateError::Unreadable { .. } => Self::Stop(Stop::Failed(error.into())),
            StateError::Sql(ref refused) if fix_of_state(refused).is_some() => {
                let fix = fix_of_state(refused).unwrap_or_default();
                Self::refused(anyhow::anyhow!("{error}; {fix}"))
            }
            StateError::NotSetUp { .. }
            | StateError::SchemaTooOld { .. }
            | StateError::SchemaTooNew { .. }
            | StateError::Connection(_)
            | StateError::Sql(_) => Self::by_cure(error.cure(), error),
        }
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        Self::by_cure(error.cure(), error)
    }
}

impl From<WireError> for OpenError {
    fn from(error: WireError) -> Self {
        match wire::classify(&error) {
            Class::SlotInUse => Self::SlotInUse,
            // The slot's row says which of them it is, and since when: `open` reads it first. Here
            // it changed in between.
            Class::SlotUnusable | Class::SlotMissing | Class::Shutdown | Class::Retry => {
                Self::Passing(error.into())
            }
            Class::PublicationMissing => {
                let problem = format!("{:#}", anyhow::Error::from(error));
                halt::Halt::PublicationMissing { problem }.into()
            }
            Class::Access => Self::refused(error),
            // What the server says of a configuration or a right, not of what it sends.
            Class::Fatal if matches!(error, WireError::Session(_) | WireError::Start(_)) => {
                Self::refused(error)
            }
            Class::Unsendable | Class::Fatal => Self::Stop(Stop::Failed(error.into())),
        }
    }
}

/// Waits until the slot is ours, and takes the lease. `None` on shutdown.
///
/// `started` is whether this configuration has led to the slot once: until then what waiting does not
/// cure is refused.
pub(super) async fn become_leader(
    config: &Config,
    tell: &Teller,
    shutdown: &CancellationToken,
    started: &mut bool,
) -> Result<Option<Leader>, Stop> {
    let mut backoff = Backoff::new();
    let mut said_standby = false;
    loop {
        let began = Instant::now();
        let tried = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(None),
            tried = tokio::time::timeout(OPEN_TIMEOUT, try_to_lead(config, *started)) => tried,
        };
        match tried {
            Ok(Ok(leader)) => {
                *started = true;
                return Ok(Some(leader));
            }
            Ok(Err(OpenError::Stop(stop))) => return Err(stop),
            Ok(Err(OpenError::Refused { problem, .. })) if !*started => {
                return Err(Stop::Config(format!("{problem:#}")));
            }
            Ok(Err(OpenError::Refused { later: Some(halt), .. })) => return Err(halt.into()),
            Ok(Err(OpenError::SlotInUse)) => {
                *started = true;
                if !std::mem::replace(&mut said_standby, true) {
                    tracing::info!(slot = %config.source.slot, "standing by: another instance streams from the slot");
                }
                tell.set_role(Role::Standby);
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(None),
                    () = until_free(config) => {}
                }
                backoff.stay_short();
            }
            Ok(Err(OpenError::Passing(problem) | OpenError::Refused { problem, .. })) => {
                tell.fails(Part::Start, began, problem.as_ref());
            }
            Err(_) => {
                let problem = format!("opening state and source took over {OPEN_TIMEOUT:?}");
                tell.fails_with(Part::Start, began, &problem, "find out what keeps the server");
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
    let Ok(client) = Connection::open(direct_url(config), STANDBY.name).await else { return };
    while let Ok(Ok(Some(slot))) =
        tokio::time::timeout(OPEN_TIMEOUT, slot::read(&client, &config.source.slot)).await
        && slot.active_pid.is_some()
    {
        tokio::time::sleep(STANDBY_POLL).await;
    }
}

/// Start, then bump the epoch, then read what the earlier leader has stored: it may have stored more
/// after we looked first, and stores nothing after the bump.
async fn try_to_lead(config: &Config, started: bool) -> Result<Leader, OpenError> {
    let refused = if started { Ok(()) } else { preflight(config).await };
    let mut store = match open_state(config, LEASE).await {
        Ok(store) => store,
        // What is told of the source names the rights that `walhook setup` needs too.
        Err(error) => return Err(refused.err().unwrap_or_else(|| error.into())),
    };
    let expected = store.source_identity().await?;
    let at = resume_prepared(config, &mut store, &expected).await?;
    let session = match open(config, &expected, at).await {
        // Another database than ours need not hold what we look for.
        Err(OpenError::Stop(stop)) => return Err(stop.into()),
        session => {
            refused?;
            session?
        }
    };
    let endpoints = if started { EndpointTable::LookedUp } else { EndpointTable::Checked };
    let system = expected.system_identifier;
    let compiled = compile_rules(config, &session.sentinel, system, endpoints).await;
    let rules = compiled.map_err(unless_passing)?;
    // After the rules: one that names no table at all is the configuration's fault.
    published::check(config, &session.sentinel).await.map_err(asked)?.map_err(refuse_halt)?;
    // These are told while we run, and help nobody by ending it.
    if !started {
        let watched = published::unwatched(config, &session.sentinel).await;
        watched.map_err(asked)?.map_err(refuse_halt)?;
        let shown = published::check_rows(config, &session.sentinel).await;
        shown.map_err(asked)?.map_err(refuse_halt)?;
        // What else may be wrong there is told by each look-up, and can be fixed meanwhile.
        if let Err(error @ LookupError::Incomparable { .. }) =
            Lookups::of(config.lookups()).check_types(&session.sentinel).await
        {
            return Err(OpenError::refused(error));
        }
        let refused = published::refuse_to_break_writes(config, &session.sentinel).await;
        refused.map_err(unless_passing)?;
    }
    let holder = format!("{} pid {}", hostname(), std::process::id());
    let recovered = store.take_lease(&holder).await?;
    let Recovery { epoch, now_us, frontier, settled, disabled, paused, .. } = recovered;
    let Recovery { backlog, suspended, unrouted, joined, unseen, failing, .. } = recovered;
    let clock = Clock::start();
    check_slot(config, &session.sentinel, frontier).await?;
    store_promotion(&mut store, session.promoted).await?;
    let left_out = store.left_out(frontier).await?;
    store.clear_halt().await?;
    let changes = Changes::new(frontier);
    let unix_us_at_zero = now_us;
    let start = Start {
        frontier,
        settled,
        disabled,
        paused,
        backlog,
        suspended,
        unrouted,
        failing,
        joined,
        unseen,
        unix_us_at_zero,
    };
    let system_identifier = expected.system_identifier;
    Ok(Leader { epoch, clock, system_identifier, start, store, session, rules, changes, left_out })
}

/// Refuses what is not in place at the source, all of it at once.
async fn preflight(config: &Config) -> Result<(), OpenError> {
    let client = Connection::open(direct_url(config), SENTINEL.name).await?;
    let version = source::server_version(&client).await.map_err(asked)?;
    if version < source::OLDEST_SERVER {
        let version = version / 10_000;
        let problem = format!("the server is PostgreSQL {version}; walhook needs 14 or later");
        return Err(OpenError::refused(anyhow::anyhow!(problem)));
    }
    let faults = preflight::faults(config.lookups(), &client).await.map_err(asked)?;
    let mut lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    lines.extend(too_few_sessions(config, &client).await?);
    if lines.is_empty() {
        return Ok(());
    }
    Err(OpenError::refused(anyhow::anyhow!(lines.join("\n"))))
}

/// The limits with which no leader can work, and their fixes; of those that are only tight, the log tells.
async fn too_few_sessions(config: &Config, source: &Client) -> Result<Vec<String>, OpenError> {
    let (of_source, of_state) = Need::of_config(config);
    let mut found = findings(source, of_source).await?;
    if let (Some(url), Some(of_state)) = (&config.state.url, of_state) {
        // That there is none is said where the state is opened.
        if let Ok(state) = Connection::open(url, LEASE.name).await {
            found.extend(findings(&state, of_state).await?);
        }
    }
    let mut refused = Vec::new();
    for Finding { verdict, text, fix } in found {
        match verdict {
            Verdict::Pass => {}
            Verdict::Warn => tracing::warn!(problem = %text, fix, "sessions may become scarce"),
            Verdict::Fail => refused.push(format!("{text}; {fix}")),
        }
    }
    Ok(refused)
}

/// What a question to the catalog ended with, by who can cure it.
fn asked(problem: anyhow::Error) -> OpenError {
    match cure::of(&*problem) {
        Some(cure) => OpenError::by_cure(cure, problem),
        None => OpenError::Stop(Stop::Failed(problem)),
    }
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
    let client = Connection::open(direct_url(config), SENTINEL.name).await?;
    let info = Conninfo::parse(&config.source.url).map_err(ConnectError::from)?;
    let found = source::identity(&client, &info).await.map_err(asked)?;
    let slot = slot::read(&client, &config.source.slot).await?;
    // Another cluster is refused when it is opened; another leader moves the checkpoint itself.
    if found != *expected || slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
        return Ok(stored);
    }
    let at = prepared::checkpoint(store, &client, &config.source.slot, slot.as_ref()).await;
    let at = at.map_err(asked)?;
    if at > stored {
        store.resume_prepared(stored, at).await?;
        tracing::info!(%at, "going on from where `walhook upgrade prepare` left the slots");
    }
    Ok(at)
}

/// A server that goes away in the middle of a question is no reason to give up.
fn unless_passing(stop: Stop) -> OpenError {
    match stop {
        Stop::Failed(problem) => asked(problem),
        Stop::Config(problem) => {
            // Lines are for the terminal; a halt's reason is one.
            let later = Some(halt::Halt::RuleBroken(problem.replace('\n', "; ")));
            OpenError::Refused { problem: anyhow::anyhow!(problem), later }
        }
        stop @ (Stop::Halted(_) | Stop::Fenced) => OpenError::Stop(stop),
    }
}

/// What is missing from the publication, or hidden from our role, is refused at the start. That there is
/// no publication is more than that: the slot cannot be read past what was written without it.
fn refuse_halt(halt: halt::Halt) -> OpenError {
    if matches!(halt, halt::Halt::Unpublished { .. } | halt::Halt::RowsHidden { .. }) {
        return OpenError::Refused {
            problem: anyhow::anyhow!(halt.to_string()),
            later: Some(halt),
        };
    }
    halt.into()
}

/// Opens the source again for a leader that has received everything up to `at`.
pub(super) async fn reopen(config: &Config, epoch: i64, at: Lsn) -> Result<Session, OpenError> {
    let mut store = open_state(config, LEASE).await?;
    store.write_as(epoch);
    let expected = store.source_identity().await?;
    let session = open(config, &expected, at).await?;
    // The slot was free for a while: has another led meanwhile? Asked first, for that one has moved the
    // slot on, which would look like a gap.
    if store.current_epoch().await? != epoch {
        return Err(OpenError::Stop(Stop::Fenced));
    }
    check_slot(config, &session.sentinel, at).await?;
    published::check(config, &session.sentinel).await.map_err(OpenError::Passing)??;
    store_promotion(&mut store, session.promoted).await?;
    Ok(session)
}

/// The positions are those of the new primary from now on.
async fn store_promotion(store: &mut StateStore, promoted: Option<u32>) -> Result<(), StateError> {
    let Some(timeline) = promoted else { return Ok(()) };
    store.set_timeline(timeline).await?;
    tracing::warn!(timeline, "going on from a standby that was promoted: nothing is missing");
    Ok(())
}

/// Whether the slot that is ours now sends everything from `at` on.
async fn check_slot(config: &Config, sentinel: &Connection, at: Lsn) -> Result<(), OpenError> {
    let name = &config.source.slot;
    let slot = slot::read(sentinel, name).await?;
    halt::check_slot(name, slot.as_ref().map(Slot::state).as_ref(), at)?;
    slot.map_or(Ok(()), |slot| Ok(halt::check_wal_end(slot.wal_end, at)?))
}

/// Where the server itself answers, and no connection pooler.
fn direct_url(config: &Config) -> &DatabaseUrl {
    config.source.replication_url.as_ref().unwrap_or(&config.source.url)
}

async fn open(config: &Config, expected: &SourceIdentity, at: Lsn) -> Result<Session, OpenError> {
    let source = &config.source;
    let url = direct_url(config);
    // Past a pooler, whose sessions outlive the server's shutdown.
    let sentinel = Connection::open(url, SENTINEL.name).await?;
    let mut replication = wire::connect(url, STREAM.name).await?;
    let system = replication.identify_system().await?;
    let found = SourceIdentity {
        system_identifier: system.system_identifier,
        timeline: system.timeline,
        host: hosts(&Conninfo::parse(&source.url).map_err(ConnectError::from)?),
        database: system.database,
    };
    let promoted = if halt::is_promoted(&found, expected) {
        let left = replication.left_timeline(expected.timeline, found.timeline).await?;
        halt::check_promotion(&found, expected, left, at)?;
        Some(found.timeline)
    } else {
        halt::check_source(&found, expected)?;
        None
    };
    let slot = slot::read(&sentinel, &source.slot).await?;
    if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
        return Err(OpenError::SlotInUse);
    }
    // What an active slot has confirmed may be ahead of what we know; an idle one must not be gone.
    if slot.as_ref().is_none_or(|slot| slot.is_lost()) {
        halt::check_slot(&source.slot, slot.as_ref().map(Slot::state).as_ref(), at)?;
    }
    let sender_timeout = lease_timeout(&mut replication, source.lease_timeout).await?;
    let replication = replication.with_messages(config.reads_messages());
    let stream = replication
        .start(&source.slot, &source.publication, at, config.memory.max_change_bytes())
        .await?;
    Ok(Session { stream, sentinel, sender_timeout, promoted })
}

/// How long the server keeps the slot for us should we freeze: what it is set to, and at most `ours`.
async fn lease_timeout(
    replication: &mut Replication,
    ours: Duration,
) -> Result<Duration, WireError> {
    let server = replication.wal_sender_timeout().await?;
    if server.is_zero() {
        tracing::warn!(
            lease_timeout = ?ours,
            "wal_sender_timeout is 0, so that a frozen client would keep a slot for ever; ours is kept \
             for source.lease_timeout"
        );
    } else if server <= ours {
        return Ok(server);
    }
    replication.set_wal_sender_timeout(ours).await?;
    Ok(ours)
}

/// Compiles the rules against the catalog as it is now.
pub(super) async fn compile_rules(
    config: &Config,
    client: &Connection,
    system: u64,
    endpoints: EndpointTable,
) -> Result<Rules, Stop> {
    let settings = config.rules();
    let mut catalog = catalog::load(client, settings.tables()).await?;
    if let Some(publication) = source::publication(client, &config.source.publication).await? {
        catalog.leave_out(&publication.lists, publication.generated);
    }
    Rules::compile_with(settings, &catalog, system, endpoints).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Stop::Config(errors.join("\n"))
    })
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("no host name");
    name.map_or_else(|_| "unknown host".to_owned(), |name| name.trim().to_owned())
}
