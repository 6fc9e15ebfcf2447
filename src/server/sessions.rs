//! The sessions with PostgreSQL: what each is for, how many there are, and which of them tasks share.
//!
//! A session is shared by tasks that ask little and now and then. They have it one after the other, each
//! for a few statements ([`Shared::turn`]); none changes a setting, and no statement in it may take long:
//! `statement_timeout` and `lock_timeout` see to that. What must not wait for others, or others for it,
//! has a session of its own: the lease, the look-ups, the stream. What may take minutes opens one for as
//! long as it takes.
//!
//! Whoever needs both shared sessions at once takes the source's first.

mod limits;
mod shared;

use std::time::Duration;
use walhook_core::id::Epoch;

use tokio::time::timeout;

use super::error::TaskError;
use crate::config::Config;
pub(crate) use limits::{Finding, Need, Verdict, findings};
use shared::{Shared, Turn};
use walhook_postgres::pg::DatabaseUrl;
use walhook_postgres::source;
use walhook_postgres::sql::{ConnectError, Connection};
use walhook_postgres::timelines::Timelines;
use walhook_state::{SessionSettings, StateError, StateStore};

/// Which database a session leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    /// `source.url`, or `source.replication_url` where the server itself must answer.
    Source,
    /// `state.url`, or the source's.
    State,
}

/// When a session is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// For as long as this instance leads.
    Leading,
    /// While there is something for it to do.
    WhileNeeded,
}

/// What a kind of session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Purpose {
    /// Its `application_name`, by which `pg_stat_activity` shows it.
    pub(crate) name: &'static str,
    pub(crate) database: Database,
    pub(crate) open: Open,
    /// A replication connection: it counts against the limits of role and database, not the server's.
    pub(crate) replicates: bool,
    /// Tasks have it in turn.
    pub(crate) shared: bool,
    /// What its statements may take; `None`: as the server or our role has it.
    pub(crate) statement_timeout: Option<Duration>,
    /// What they may wait for a lock; `None`: likewise.
    pub(crate) lock_timeout: Option<Duration>,
}

/// A shared session's statement that takes longer fails: others wait meanwhile.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A statement that waits longer for a lock fails, so that it is told what it waits for.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// To have a turn and use it may take so long: a few statements of one's own, behind those of others.
const TURN_TIMEOUT: Duration = Duration::from_secs(40);

const fn of(name: &'static str, database: Database, open: Open) -> Purpose {
    let (replicates, shared, statement_timeout, lock_timeout) = (false, false, None, None);
    Purpose { name, database, open, replicates, shared, statement_timeout, lock_timeout }
}

const fn shared(purpose: Purpose) -> Purpose {
    let statement_timeout = Some(STATEMENT_TIMEOUT);
    Purpose { shared: true, statement_timeout, ..impatient(purpose) }
}

/// One whose questions nobody's lock is to keep.
const fn impatient(purpose: Purpose) -> Purpose {
    Purpose { lock_timeout: Some(LOCK_TIMEOUT), ..purpose }
}

/// The stream.
pub(super) const STREAM: Purpose =
    Purpose { replicates: true, ..of("walhook", Database::Source, Open::Leading) };
/// Ends at once when the server shuts down, also while nobody reads the stream. Reads the catalog for it.
pub(super) const SENTINEL: Purpose = impatient(of("walhook", Database::Source, Open::Leading));
/// Look-ups, with the path that `endpoints.search_path` names: nothing else may make them wait.
pub(super) const LOOK_UPS: Purpose = Purpose {
    // Longer where rows are looked up apart; see `walhook_postgres::lookup`.
    statement_timeout: Some(Duration::from_secs(30)),
    ..of("walhook look-ups", Database::Source, Open::Leading)
};
/// Look-ups of costly accounts, for which nobody else is to wait.
pub(super) const COSTLY_LOOK_UPS: Purpose =
    Purpose { name: "walhook costly look-ups", open: Open::WhileNeeded, ..LOOK_UPS };
/// The observer, and the replay window's questions.
pub(super) const OBSERVER: Purpose =
    shared(of("walhook observer", Database::Source, Open::Leading));
/// The lease and the checkpoint, alone: its transactions are the fence.
pub(super) const LEASE: Purpose = of("walhook state", Database::State, Open::Leading);
/// Jobs, replays and notices that wait; the observer and the replay window; what is kept no longer.
pub(super) const TASKS: Purpose = shared(of("walhook tasks", Database::State, Open::Leading));
/// Sizes of the state tables, by the second: to count their rows may take long.
pub(super) const SIZES: Purpose = of("walhook sizes", Database::State, Open::Leading);
/// Pages of deferred deliveries, from the first one on.
pub(super) const DEFERRED: Purpose = of("walhook deferred", Database::State, Open::WhileNeeded);
/// Vacuums a table.
pub(super) const VACUUM: Purpose = of("walhook vacuum", Database::State, Open::WhileNeeded);
/// Carries jobs out.
pub(super) const JOBS: Purpose = of("walhook jobs", Database::State, Open::WhileNeeded);
/// Moves the anchor slot, for which the server reads the WAL in between.
pub(super) const WINDOW: Purpose = of("walhook replay window", Database::Source, Open::WhileNeeded);
/// A replay's progress.
pub(super) const REPLAY_STATE: Purpose = of("walhook replay", Database::State, Open::WhileNeeded);
/// A replay's look-ups.
pub(super) const REPLAY_LOOK_UPS: Purpose =
    of("walhook replay", Database::Source, Open::WhileNeeded);
/// What [`SENTINEL`] is, beside a replay's stream.
pub(super) const REPLAY_SENTINEL: Purpose =
    impatient(of("walhook replay", Database::Source, Open::WhileNeeded));
/// A replay's stream.
pub(super) const REPLAY_STREAM: Purpose =
    Purpose { replicates: true, ..of("walhook replay", Database::Source, Open::WhileNeeded) };
/// A standby, which looks whether the slot is free.
pub(super) const STANDBY: Purpose =
    impatient(of("walhook standby", Database::Source, Open::WhileNeeded));
/// A command that an operator runs beside.
const COMMAND: Purpose = of("walhook command", Database::Source, Open::WhileNeeded);
const COMMAND_STATE: Purpose = of("walhook state", Database::State, Open::WhileNeeded);

/// All of them.
pub(crate) const ALL: [Purpose; 19] = [
    STREAM,
    SENTINEL,
    LOOK_UPS,
    COSTLY_LOOK_UPS,
    OBSERVER,
    LEASE,
    TASKS,
    SIZES,
    DEFERRED,
    VACUUM,
    JOBS,
    WINDOW,
    REPLAY_STATE,
    REPLAY_LOOK_UPS,
    REPLAY_SENTINEL,
    REPLAY_STREAM,
    STANDBY,
    COMMAND,
    COMMAND_STATE,
];

/// The sessions of one leader's tasks.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) config: Config,
    epoch: Epoch,
    timelines: Timelines,
    state: Shared<StateStore>,
    source: Shared<Connection>,
}

impl Sessions {
    /// None is open yet.
    pub(super) fn new(config: Config, epoch: Epoch, timelines: Timelines) -> Self {
        Self { config, epoch, timelines, state: Shared::default(), source: Shared::default() }
    }

    /// The shared session with the state database, which writes as the leader.
    pub(super) async fn state(&self) -> Result<Turn<'_, StateStore>, StateError> {
        self.state.turn(self.own_state(TASKS)).await
    }

    /// The shared session with the source.
    pub(super) async fn source(&self) -> Result<Turn<'_, Connection>, TaskError> {
        self.source.turn(self.own_source(OBSERVER)).await
    }

    /// A session with the state database for the caller alone, which writes as the leader.
    pub(super) async fn own_state(&self, purpose: Purpose) -> Result<StateStore, StateError> {
        let mut store = open_state(&self.config, &self.timelines, purpose).await?;
        store.write_as(self.epoch);
        Ok(store)
    }

    /// A session with the source for the caller alone.
    pub(super) async fn own_source(&self, purpose: Purpose) -> Result<Connection, TaskError> {
        let client = open_source::<TaskError>(&self.config.source.url, purpose).await?;
        self.timelines.check(source::primary(&client).await?)?;
        Ok(client)
    }
}

/// Opens a session with the source.
pub(super) async fn open_source<E>(url: &DatabaseUrl, purpose: Purpose) -> Result<Connection, E>
where
    E: From<ConnectError> + From<tokio_postgres::Error>,
{
    let client = Connection::open(url, purpose.name).await?;
    let limits = settings(purpose).sql();
    if !limits.is_empty() {
        client.batch_execute(&limits).await?;
    }
    Ok(client)
}

/// Opens a session with the state database that the configuration names.
pub(super) async fn open_state(
    config: &Config,
    timelines: &Timelines,
    purpose: Purpose,
) -> Result<StateStore, StateError> {
    let url = config.state.url.as_ref().unwrap_or(&config.source.url);
    let (schema, slot) = (&config.state.schema, &config.source.slot);
    StateStore::open_to_lead(url, schema, slot, settings(purpose), timelines).await
}

fn settings(purpose: Purpose) -> SessionSettings {
    let Purpose { name: application_name, statement_timeout, lock_timeout, .. } = purpose;
    SessionSettings { application_name, statement_timeout, lock_timeout }
}

/// What needs a shared session, within the time that others may wait for it.
pub(super) async fn in_turn<T>(
    work: impl Future<Output = Result<T, TaskError>>,
) -> Result<T, TaskError> {
    timeout(TURN_TIMEOUT, work).await.unwrap_or(Err(TaskError::NoAnswer(TURN_TIMEOUT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_at_most_eight_while_a_leader_is_idle_and_documented() {
        let leading: Vec<Purpose> =
            ALL.into_iter().filter(|purpose| purpose.open == Open::Leading).collect();
        assert!(leading.len() <= 8, "{leading:?}");
        let page = include_str!("../../docs/operations/upkeep.md");
        for Purpose { name, open, shared, .. } in ALL {
            let when = match open {
                Open::Leading => "while it leads",
                Open::WhileNeeded => "while needed",
            };
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| `{name}` |")) && line.contains(when));
            let row = row.unwrap_or_else(|| {
                panic!("docs/operations/upkeep.md has no row of {name}, {when}")
            });
            assert_eq!(row.contains("in turn"), shared, "{row}");
        }
        let said = format!("{} sessions while it is idle", leading.len());
        assert!(page.contains(&said), "docs/operations/upkeep.md does not say: {said}");
        assert!(
            page.contains(&format!("at most {}", ALL.len())),
            "docs/operations/upkeep.md: {}",
            ALL.len()
        );
    }

    #[test]
    fn shared_sessions_bound_their_statements_and_the_lease_has_its_own() {
        // They read the catalog for all of the stream.
        for purpose in [SENTINEL, REPLAY_SENTINEL, STANDBY] {
            assert!(settings(purpose).sql().contains("lock_timeout"), "{purpose:?}");
        }
        for purpose in ALL.into_iter().filter(|purpose| purpose.shared) {
            assert!(purpose.statement_timeout.is_some_and(|limit| limit < TURN_TIMEOUT));
            assert!(settings(purpose).sql().contains("lock_timeout"), "{purpose:?}");
        }
        let alone = [LEASE, LOOK_UPS, STREAM, SENTINEL];
        assert!(alone.iter().all(|purpose| !purpose.shared));
    }
}
