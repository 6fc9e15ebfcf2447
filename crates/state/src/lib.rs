//! The state database: what must outlive a process, behind one fence.
//!
//! A leader takes the lease by adding 1 to the epoch of its `lease` row. Each of its transactions
//! first reads that row with its own epoch, `FOR SHARE`. That is what makes the fence hold: the bump
//! waits for transactions that hold the row, so all they wrote is there when the new leader reads;
//! and whoever asks for the row after the bump finds no row with its epoch and writes nothing. A
//! leader that freezes in the middle of a transaction cannot hold the bump up for long, because its
//! session carries an `idle_in_transaction_session_timeout`.
//!
//! A connection may be lost after COMMIT was sent and before its answer came. The caller then
//! reconnects and stores the same batch again: the module `persist` says why that changes nothing.

mod coverage;
mod dead_letters;
mod deferred;
mod endpoints;
mod event;
mod filter;
mod gaps;
mod history;
mod holders;
mod inspect;
mod jobs;
mod notices;
mod persist;
mod place;
mod recover;
mod refill;
mod replays;
mod session;
pub mod slots;
mod text;
mod troubles;
mod unrouted;
mod upgrade;
mod upkeep;

#[cfg(test)]
extern crate self as walhook_state;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use coverage::MAX_ALARMS;
pub use dead_letters::StoredDeadLetter;
pub use deferred::{Changed, DeferredCursor, StoredDeferred};
pub use endpoints::Standing;
pub use filter::{DeadLetterFilter, DeferredFilter, Filter};
pub use gaps::Gap;
pub use inspect::{Overview, StoppedSince};
pub use jobs::{Ask, Asked, EndpointStop, Job, JobState};
pub use persist::StoredAttempt;
pub use replays::{REPLAY_JOB, StoredReplay};
pub use troubles::Told;
pub use unrouted::{OfAccount, WithoutEndpoint};
pub use upgrade::Prepared;

use std::time::Duration;

use futures_util::try_join;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use walhook_core::halt::SourceIdentity;
use walhook_core::lsn::Lsn;
use walhook_core::partition::Partition;
use walhook_core::persist::{
    BacklogRow, DisableEndpoint, EndpointError, GapChange, Joined, PauseEndpoint, SettledRange,
    UnroutedAccount,
};
use walhook_core::settled;
use walhook_postgres::op::{EQ, PLUS, to_us};
use walhook_postgres::pg::{AsDatabaseUrl, DatabaseUrl};

use self::endpoints::{Stops, stops_sql};
use self::refill::{backlog_sql, read_backlog};
use self::session::{Session, Transaction};
use walhook_postgres::fix::{AS_IT_SAYS, Failure, FixedBy, Line};
use walhook_postgres::ident::{quote_ident, quote_literal};
use walhook_postgres::sql::{ConnectError, error_text, is_data_error};

/// The version of the state tables that this program reads and writes.
pub const SCHEMA_VERSION: i32 = 1;

/// The table that was added last: where it is missing, an earlier version's `setup` made the schema.
const NEWEST_TABLE: &str = "endpoint_errors";

/// How long a session may sit idle inside a transaction: a frozen leader's lock on the lease ends
/// then, and a takeover waits no longer for it. Far above what a busy leader takes between two
/// statements; one that does take longer stores the same batch again.
const IDLE_IN_TRANSACTION: &str = "2s";

/// What we ask for is always in an index, and the tables outrun their statistics: by those of an empty
/// table, to sort all of a million rows for the first hundred looks as good as to walk to them.
const PLANS: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off";

/// What the server knows of a session, and how long it may take with a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// Its `application_name`.
    pub application_name: &'static str,
    /// Longer statements fail; `None`: as the server or our role has it.
    pub statement_timeout: Option<Duration>,
    /// Statements that wait longer for a lock fail; `None`: likewise.
    pub lock_timeout: Option<Duration>,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { application_name: "walhook state", statement_timeout: None, lock_timeout: None }
    }
}

impl SessionSettings {
    /// The statement that makes a session so.
    #[must_use]
    pub fn sql(&self) -> String {
        let limits =
            [("statement_timeout", self.statement_timeout), ("lock_timeout", self.lock_timeout)];
        let set = |(name, limit): (&str, Option<Duration>)| {
            limit.map(|limit| format!("SET {name} = {}; ", limit.as_millis()))
        };
        limits.into_iter().filter_map(set).collect()
    }
}

/// The state tables, of a `{schema}` and with the `{partition}` of a pipeline that is not divided.
const STATE: &str = include_str!("../../../sql/state.sql");

/// The state tables' names.
#[must_use]
pub fn tables() -> Vec<&'static str> {
    names("CREATE TABLE IF NOT EXISTS {schema}.")
}

/// The views that stand on the state tables.
#[must_use]
pub fn views() -> Vec<&'static str> {
    names("CREATE OR REPLACE VIEW {schema}.")
}

fn names(before: &str) -> Vec<&'static str> {
    STATE.lines().filter_map(|l| l.strip_prefix(before)?.split_whitespace().next()).collect()
}

/// The statements that create the state tables in `schema`; idempotent.
#[must_use]
pub fn schema_sql(schema: &str) -> String {
    let sole = Partition::SOLE.to_string();
    STATE.replace("{partition}", &sole).replace("{schema}", &quote_ident(schema))
}

/// Why the state database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A later leader has taken the lease, or we never did. Nothing was written, and nothing more may be
    /// sent.
    #[error("{}", fenced(*epoch))]
    Fenced {
        /// The epoch that we held; `None`: we held none, which is no right to write.
        epoch: Option<i64>,
    },
    /// The tables, or the pipeline's rows in them, are not there.
    #[error(
        "the state schema \"{schema}\" holds no pipeline \"{pipeline}\"; run `walhook setup` first"
    )]
    NotSetUp {
        /// The schema that was looked in.
        schema: String,
        /// The pipeline that was looked for.
        pipeline: String,
    },
    /// An earlier program has made the tables.
    #[error(
        "the state schema \"{schema}\" lacks the table {table}; run `walhook setup`, which adds it"
    )]
    SchemaTooOld {
        /// The schema that was looked in.
        schema: String,
        /// What is not in it.
        table: &'static str,
    },
    /// A later program has changed the tables.
    #[error(
        "the state tables have version {found}, this program knows {SCHEMA_VERSION}; run a later walhook"
    )]
    SchemaTooNew {
        /// The version that the tables have.
        found: i32,
    },
    /// The batch would move the checkpoint back. Nothing was written.
    #[error("the frontier {asked} is behind the stored checkpoint {stored}; this is a defect")]
    FrontierDecreases {
        /// The checkpoint that stands.
        stored: Lsn,
        /// The frontier that was to replace it.
        asked: Lsn,
    },
    /// The checkpoint is not where it was when we looked. Nothing was written.
    #[error(
        "the checkpoint moved from {from} to {to} meanwhile: an instance is running; stop it first"
    )]
    CheckpointMoved {
        /// Where it was.
        from: Lsn,
        /// Where it is.
        to: Lsn,
    },
    /// A stored value is none that this program writes.
    #[error("{what} in the state tables cannot be read: {detail}")]
    Unreadable {
        /// Which value.
        what: String,
        /// Why not.
        detail: String,
    },
    /// No session could be opened.
    #[error("no connection to the state database")]
    Connection(#[source] ConnectError),
    /// The server refused, or the session was lost.
    #[error("state database: {}{}", error_text(.0), session::advice(.0))]
    Sql(#[from] tokio_postgres::Error),
}

impl Failure for StateError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::Fenced { .. }
            | Self::NotSetUp { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. } => FixedBy::Person,
            Self::Connection(error) => error.fixed_by(),
            Self::Sql(error) => error.fixed_by(),
        }
    }

    fn fix(&self) -> &'static str {
        match self {
            Self::Fenced { .. }
            | Self::NotSetUp { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. } => AS_IT_SAYS,
            Self::Connection(error) => error.fix(),
            Self::Sql(error) => error.fix(),
        }
    }

    fn say(&self, line: &mut Line) {
        line.push(&self.to_string());
        match self {
            Self::Connection(error) => error.say(line),
            Self::Sql(error) => error.say(line),
            Self::Fenced { .. }
            | Self::NotSetUp { .. }
            | Self::SchemaTooNew { .. }
            | Self::SchemaTooOld { .. }
            | Self::FrontierDecreases { .. }
            | Self::CheckpointMoved { .. }
            | Self::Unreadable { .. } => {}
        }
    }
}

impl StateError {
    /// Whether the server refused the values that it was given, whatever they are.
    #[must_use]
    pub fn is_data_error(&self) -> bool {
        matches!(self, Self::Sql(error) if is_data_error(error))
    }
}

fn fenced(epoch: Option<i64>) -> String {
    epoch.map_or_else(
        || "this instance does not lead: it has not taken the lease".to_owned(),
        |epoch| format!("another instance has taken over: epoch {epoch} is no longer the lease's"),
    )
}

/// What a new leader starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The epoch that was taken; every transaction from now on carries it.
    pub epoch: i64,
    /// The database's clock when it was taken: microseconds since 1970-01-01 UTC.
    pub now_us: i64,
    /// Where the stream starts again.
    pub frontier: Lsn,
    /// What lies behind the frontier and is settled all the same.
    pub settled: Vec<SettledRange>,
    /// The endpoints that are switched off.
    pub disabled: Vec<DisableEndpoint>,
    /// The endpoints that an operator has paused.
    pub paused: Vec<PauseEndpoint>,
    /// The queues that have deferred rows.
    pub backlog: Vec<BacklogRow>,
    /// The gaps of suspended queues.
    pub suspended: Vec<GapChange>,
    /// The accounts that have rows without an endpoint.
    pub unrouted: Vec<UnroutedAccount>,
    /// The endpoints that joined since the first of these rows.
    pub joined: Vec<Joined>,
    /// Transactions whose changes of watched tables look-ups may not show yet.
    pub unseen: Vec<u32>,
    /// The endpoints that fail.
    pub failing: Vec<EndpointError>,
}

/// One pipeline's state, over one session.
#[derive(Debug)]
pub struct StateStore {
    connection: Session,
    url: DatabaseUrl,
    settings: SessionSettings,
    scope: Scope,
    epoch: Option<i64>,
}

/// What every statement names.
#[derive(Debug)]
struct Scope {
    schema: String,
    /// The schema, quoted.
    s: String,
    pipeline: String,
    /// The [`Partition`]'s number, as statements take it.
    partition: i32,
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

impl StateStore {
    /// Connects, and checks that `walhook setup` has been here.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::SchemaTooNew`], [`StateError::SchemaTooOld`],
    /// [`StateError::Connection`].
    pub async fn open(
        url: &impl AsDatabaseUrl,
        schema: &str,
        pipeline: &str,
    ) -> Result<Self, StateError> {
        Self::open_with(url, schema, pipeline, SessionSettings::default()).await
    }

    /// The same in a session of another kind.
    ///
    /// # Errors
    /// As [`StateStore::open`].
    pub async fn open_with(
        url: &impl AsDatabaseUrl,
        schema: &str,
        pipeline: &str,
        settings: SessionSettings,
    ) -> Result<Self, StateError> {
        let url = url.to_database_url();
        let scope = Scope {
            schema: schema.to_owned(),
            s: quote_ident(schema),
            pipeline: pipeline.to_owned(),
            partition: Partition::SOLE.number(),
        };
        let connection = connect(&url, settings).await?;
        let store = Self { connection, url, settings, scope, epoch: None };
        store.check_schema().await?;
        Ok(store)
    }

    /// Replaces a lost session. The epoch stays: if another leader has taken over meanwhile, the
    /// next write says so.
    ///
    /// # Errors
    /// [`StateError::Connection`].
    pub async fn reconnect(&mut self) -> Result<(), StateError> {
        self.connection = connect(&self.url, self.settings).await?;
        Ok(())
    }

    /// Whether the session has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Waits until the session ends, and says why; cancel-safe.
    pub async fn closed(&mut self) -> Option<tokio_postgres::Error> {
        self.connection.closed().await
    }

    /// The epoch that this store has taken, if it has.
    #[must_use]
    pub fn epoch(&self) -> Option<i64> {
        self.epoch
    }

    /// The epoch to write with, as the leader.
    fn led_epoch(&self) -> Result<i64, StateError> {
        self.epoch.ok_or(StateError::Fenced { epoch: None })
    }

    /// Writes from now on as the leader that took this epoch in another session, and no longer than
    /// that one may.
    pub fn write_as(&mut self, epoch: i64) {
        self.epoch = Some(epoch);
    }

    async fn check_schema(&self) -> Result<(), StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT schema_version, pg_catalog.to_regclass($2) IS NOT NULL FROM {s}.meta
             WHERE pipeline {EQ} $1"
        );
        let newest = format!("{s}.{NEWEST_TABLE}");
        let row = self
            .connection
            .query_typed_opt(&sql, &[(pipeline, Type::TEXT), (&newest, Type::TEXT)])
            .await;
        let missing = |e: &tokio_postgres::Error| {
            e.code() == Some(&SqlState::UNDEFINED_TABLE)
                || e.code() == Some(&SqlState::INVALID_SCHEMA_NAME)
        };
        match row {
            Err(e) if missing(&e) => Err(self.scope.not_set_up()),
            Err(e) => Err(e.into()),
            Ok(None) => Err(self.scope.not_set_up()),
            Ok(Some(row)) => match (row.try_get(0)?, row.try_get(1)?) {
                (found, _) if found > SCHEMA_VERSION => Err(StateError::SchemaTooNew { found }),
                (_, false) => {
                    let schema = self.scope.schema.clone();
                    Err(StateError::SchemaTooOld { schema, table: NEWEST_TABLE })
                }
                (_, true) => Ok(()),
            },
        }
    }

    /// Which database the stored positions belong to, as `setup` found it.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn source_identity(&self) -> Result<SourceIdentity, StateError> {
        let sql = format!(
            "SELECT system_identifier::pg_catalog.text, timeline, host, database FROM {}.meta
             WHERE pipeline {EQ} $1",
            self.scope.s
        );
        let row = self.one(&sql).await?;
        let system: String = row.try_get(0)?;
        let timeline: i32 = row.try_get(1)?;
        Ok(SourceIdentity {
            system_identifier: system.parse().map_err(unreadable("meta.system_identifier"))?,
            timeline: u32::try_from(timeline).map_err(unreadable("meta.timeline"))?,
            host: text::get(&row, 2)?,
            database: text::get(&row, 3)?,
        })
    }

    /// The checkpoint, read without taking the lease.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`].
    pub async fn frontier(&self) -> Result<Lsn, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT frontier FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        lsn(&self.one_led(&sql).await?, 0)
    }

    /// The epoch that the lease has now, whoever took it.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`].
    pub async fn current_epoch(&self) -> Result<i64, StateError> {
        let s = &self.scope.s;
        let sql =
            format!("SELECT epoch FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        Ok(self.one_led(&sql).await?.try_get(0)?)
    }

    /// Who took the lease last: `host pid n`.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`].
    pub async fn holder(&self) -> Result<Option<String>, StateError> {
        let s = &self.scope.s;
        let sql =
            format!("SELECT holder FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        Ok(text::get_opt(&self.one_led(&sql).await?, 0)?)
    }

    /// Takes the lease, and reads what the leaders before left.
    ///
    /// Waits for those transactions of an earlier leader that passed the fence; all that they wrote
    /// is in what this returns, and later ones of that leader fail with [`StateError::Fenced`].
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Unreadable`], [`StateError::Sql`]; calling it again
    /// is harmless.
    pub async fn take_lease(&mut self, holder: &str) -> Result<Recovery, StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let tx = self.connection.transaction().await?;
        let bump = format!(
            "UPDATE {s}.lease
             SET epoch = epoch {PLUS} 1, holder = $3, taken_at = pg_catalog.clock_timestamp()
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 RETURNING epoch, {}",
            to_us("taken_at")
        );
        let bump_params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&holder, Type::TEXT)];
        let bumped = tx.query_typed_opt(&bump, &bump_params).await?;
        let Some(bumped) = bumped else { return Err(self.scope.not_set_up()) };
        let epoch: i64 = bumped.try_get(0)?;

        // Each statement reads by a snapshot of its own, taken after the bump had its row.
        let checkpoint = format!(
            "SELECT frontier FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let ranges =
            format!("SELECT ranges FROM {s}.settled WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        let stopped = stops_sql(s);
        let behind = backlog_sql(s);
        let (led, param) = (self.scope.led(), [(pipeline as _, Type::TEXT)]);
        let growing = gaps::growing_sql(s);
        let (unrouted, joined) = (unrouted::accounts_sql(s), unrouted::joined_sql(s));
        let (unseen, failing) = (unrouted::unseen_sql(s), endpoints::errors_sql(s));
        let (checkpoint, ranges, stopped, behind, growing, unrouted, joined, unseen, failing) = try_join!(
            tx.query_typed_opt(&checkpoint, &led),
            tx.query_typed(&ranges, &led),
            tx.query_typed(&stopped, &param),
            tx.query_typed(&behind, &param),
            tx.query_typed(&growing, &param),
            tx.query_typed(&unrouted, &param),
            tx.query_typed(&joined, &param),
            tx.query_typed(&unseen, &param),
            tx.query_typed(&failing, &param),
        )?;
        let Some(checkpoint) = checkpoint else { return Err(self.scope.not_set_up()) };
        let Stops { disabled, paused } = Stops::read(&stopped)?;
        let recovery = Recovery {
            epoch,
            now_us: bumped.try_get(1)?,
            frontier: lsn(&checkpoint, 0)?,
            settled: read_ranges(&ranges)?,
            disabled,
            paused,
            backlog: behind.iter().map(read_backlog).collect::<Result<_, _>>()?,
            suspended: growing.iter().map(gaps::read_growing).collect::<Result<_, _>>()?,
            unrouted: unrouted.iter().map(unrouted::read_account).collect::<Result<_, _>>()?,
            joined: joined.iter().map(unrouted::read_joined).collect::<Result<_, _>>()?,
            unseen: unseen.iter().map(unrouted::read_unseen).collect::<Result<_, _>>()?,
            failing: failing.iter().map(endpoints::read_error).collect::<Result<_, _>>()?,
        };
        tx.commit().await?;
        self.epoch = Some(epoch);
        Ok(recovery)
    }

    /// Records why the pipeline has halted, for `walhook status`.
    ///
    /// # Errors
    /// [`StateError::Fenced`] when the lease was ours and is no longer; [`StateError::Sql`].
    pub async fn store_halt(&mut self, reason: &str) -> Result<(), StateError> {
        self.set_halt(Some(reason)).await
    }

    /// Forgets the reason of an earlier halt.
    ///
    /// # Errors
    /// As [`StateStore::store_halt`].
    pub async fn clear_halt(&mut self) -> Result<(), StateError> {
        self.set_halt(None).await
    }

    async fn set_halt(&mut self, reason: Option<&str>) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let tx = self.connection.transaction().await?;
        // A halt can come before the lease is taken (another cluster behind the URL, say).
        if let Some(epoch) = self.epoch {
            fence(&tx, &self.scope, epoch).await?;
        }
        let sql = format!(
            "UPDATE {s}.checkpoint SET halt_reason = $3,
                    halted_at = CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.now() END
             WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&reason, Type::TEXT)];
        tx.execute_typed(&sql, &params).await?;
        Ok(tx.commit().await?)
    }

    /// The one row of a statement whose only parameter is the pipeline.
    async fn one(&self, sql: &str) -> Result<Row, StateError> {
        self.one_of(sql, &[(&self.scope.pipeline, Type::TEXT)]).await
    }

    /// The one row of a statement about what is led by itself, [`Scope::led`].
    async fn one_led(&self, sql: &str) -> Result<Row, StateError> {
        self.one_of(sql, &self.scope.led()).await
    }

    async fn one_of(&self, sql: &str, params: &[Param<'_>]) -> Result<Row, StateError> {
        let row = self.connection.query_typed_opt(sql, params).await?;
        row.ok_or_else(|| self.scope.not_set_up())
    }
}

impl Scope {
    /// What is led by itself, as `$1` and `$2`: the pipeline, and which partition of it.
    fn led(&self) -> [Param<'_>; 2] {
        [(&self.pipeline, Type::TEXT), (&self.partition, Type::INT4)]
    }

    fn not_set_up(&self) -> StateError {
        StateError::NotSetUp { schema: self.schema.clone(), pipeline: self.pipeline.clone() }
    }
}

async fn connect(url: &DatabaseUrl, settings: SessionSettings) -> Result<Session, StateError> {
    let connection = Session::open(url, settings.application_name).await?;
    let (timeout, limits) = (quote_literal(IDLE_IN_TRANSACTION), settings.sql());
    let set = format!("{limits}SET idle_in_transaction_session_timeout = {timeout}; {PLANS}");
    connection.batch_execute(&set).await?;
    Ok(connection)
}

/// Passes only while the lease has `epoch`, and keeps it so until the transaction ends.
///
/// A test by sub-select in the writing statement would not do: a stale leader could pass it before
/// the bump commits, and commit after it.
async fn fence(tx: &Transaction<'_>, scope: &Scope, epoch: i64) -> Result<(), StateError> {
    let Scope { s, pipeline, partition, .. } = scope;
    let sql = format!(
        "SELECT FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2
         AND epoch {EQ} $3 FOR SHARE"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&epoch, Type::INT8)];
    let row = tx.query_typed_opt(&sql, &params).await?;
    row.map(|_| ()).ok_or(StateError::Fenced { epoch: Some(epoch) })
}

/// As [`fence`], and keeps other sessions of the same leader from writing too.
async fn fence_alone(tx: &Transaction<'_>, scope: &Scope, epoch: i64) -> Result<(), StateError> {
    hold_off_leader(tx, scope).await?;
    fence(tx, scope, epoch).await
}

/// Keeps every leader from writing until the transaction ends, and waits for one that does: for what
/// an operator's command changes itself of the rows that need a body.
///
/// Short transactions only: the leader sends nothing meanwhile.
async fn hold_off_leader(tx: &Transaction<'_>, scope: &Scope) -> Result<(), StateError> {
    let s = &scope.s;
    let sql = format!(
        "SELECT FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2 FOR NO KEY UPDATE"
    );
    let row = tx.query_typed_opt(&sql, &scope.led()).await?;
    row.map(|_| ()).ok_or_else(|| scope.not_set_up())
}

fn read_ranges(rows: &[Row]) -> Result<Vec<SettledRange>, StateError> {
    let mut ranges = Vec::new();
    for row in rows {
        ranges.extend(settled::decode(row.try_get(0)?).map_err(unreadable("settled.ranges"))?);
    }
    Ok(ranges)
}

fn lsn(row: &Row, column: usize) -> Result<Lsn, StateError> {
    Ok(Lsn(row.try_get::<_, PgLsn>(column)?.into()))
}

/// Wraps why a stored value cannot be read.
fn unreadable<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> StateError {
    move |detail| StateError::Unreadable { what: what.to_owned(), detail: detail.to_string() }
}
