//! One session with the state database, and what every statement of it names.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, ToSql, Type};

use walhook_core::halt::SourceIdentity;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::partition::Partition;
use walhook_postgres::ident::{quote_ident, quote_literal};
use walhook_postgres::op::EQ;
use walhook_postgres::pg::{AsDatabaseUrl, DatabaseUrl};
use walhook_postgres::timelines::{Primary, Timelines};

use super::deliveries::Refusal;
use super::persist::{Committing, Witness};
use super::schema::{NEWEST_TABLE, WITH_PAGES};
use super::session::Session;
use super::{SCHEMA_VERSION, StateError, text, unreadable};

/// How long a session may sit idle inside a transaction: a frozen leader's lock on the lease ends
/// then, and a takeover waits no longer for it. Far above what a busy leader takes between two
/// statements; one that does take longer stores the same batch again.
pub(super) const IDLE_IN_TRANSACTION: &str = "2s";

/// What we ask for is always in an index, and the tables outrun their statistics: by those of an empty
/// table, to sort all of a million rows for the first hundred looks as good as to walk to them. What is
/// switched off here the planner takes where there is no other way; `key` says how that leaves one plan.
/// Such a plan counts as expensive, so it would be compiled each time.
pub(super) const PLANS: &str = "SET enable_seqscan = off; SET enable_bitmapscan = off;
    SET enable_sort = off; SET enable_incremental_sort = off; SET enable_hashjoin = off;
    SET enable_mergejoin = off; SET max_parallel_workers_per_gather = 0; SET jit = off";

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

/// So many pipelines of a schema are named that has not the one that is looked for.
const MAX_OTHERS: usize = 10;

/// One pipeline's state, over one session.
#[derive(Debug)]
pub struct StateStore {
    pub(super) connection: Session,
    url: DatabaseUrl,
    settings: SessionSettings,
    /// Where only a primary will do: on which timelines the process has been.
    timelines: Option<Timelines>,
    /// The server, then.
    primary: Option<Primary>,
    pub(super) scope: Scope,
    epoch: Option<Epoch>,
    /// What the checkpoint's row says, since this session took the lease or stored a batch.
    pub(super) last: Option<Witness>,
    /// The batch whose COMMIT was begun and not answered.
    pub(super) committing: Option<Committing>,
    /// Whether the delivery log takes pages.
    pub(super) log: Refusal,
}

/// What every statement names.
#[derive(Debug)]
pub(super) struct Scope {
    schema: String,
    /// The schema, quoted.
    pub(super) s: String,
    pub(super) pipeline: String,
    /// The [`Partition`]'s number, as statements take it.
    pub(super) partition: i32,
    /// The tables are of a version whose leaders all know of pages.
    pub(super) writes_pages: bool,
}

pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

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
        Self::open_as(url, schema, pipeline, settings, None).await
    }

    /// The same for who leads or is to: neither a standby will do, nor a primary on an earlier timeline than the process
    /// has been on, now and at each [`StateStore::reconnect`].
    ///
    /// # Errors
    /// As [`StateStore::open`], and [`StateError::Server`].
    pub async fn open_to_lead(
        url: &impl AsDatabaseUrl,
        schema: &str,
        pipeline: &str,
        settings: SessionSettings,
        timelines: &Timelines,
    ) -> Result<Self, StateError> {
        Self::open_as(url, schema, pipeline, settings, Some(timelines.clone())).await
    }

    async fn open_as(
        url: &impl AsDatabaseUrl,
        schema: &str,
        pipeline: &str,
        settings: SessionSettings,
        timelines: Option<Timelines>,
    ) -> Result<Self, StateError> {
        let url = url.to_database_url();
        let scope = Scope {
            schema: schema.to_owned(),
            s: quote_ident(schema),
            pipeline: pipeline.to_owned(),
            partition: Partition::SOLE.number(),
            writes_pages: false,
        };
        let (connection, primary) = connect(&url, settings, timelines.as_ref()).await?;
        let mut store = Self {
            connection,
            url,
            settings,
            timelines,
            primary,
            scope,
            epoch: None,
            last: None,
            committing: None,
            log: Refusal::default(),
        };
        store.scope.writes_pages = store.check_schema().await? >= WITH_PAGES;
        Ok(store)
    }

    /// Replaces a lost session. The epoch stays: if another leader has taken over meanwhile, the
    /// next write says so.
    ///
    /// # Errors
    /// [`StateError::Connection`], [`StateError::Server`].
    pub async fn reconnect(&mut self) -> Result<(), StateError> {
        let timelines = self.timelines.as_ref();
        (self.connection, self.primary) = connect(&self.url, self.settings, timelines).await?;
        Ok(())
    }

    /// Takes note that what was committed last was, on this server.
    pub(super) fn accept_primary(&self) {
        if let (Some(timelines), Some(primary)) = (&self.timelines, self.primary) {
            timelines.accept(primary);
        }
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
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The epoch to write with, as the leader.
    pub(super) fn led_epoch(&self) -> Result<Epoch, StateError> {
        self.epoch.ok_or(StateError::Fenced { epoch: None })
    }

    /// Writes from now on as the leader that took this epoch in another session, and no longer than
    /// that one may.
    pub fn write_as(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
        // Each leader numbers its batches anew.
        self.committing = None;
        self.last = None;
    }

    /// Returns the version of the tables.
    async fn check_schema(&self) -> Result<i32, StateError> {
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
            Ok(None) => {
                let sql =
                    format!("SELECT pipeline FROM {s}.meta ORDER BY pipeline LIMIT {MAX_OTHERS}");
                let rows = self.connection.query_typed(&sql, &[]).await?;
                let others = rows.iter().map(|row| text::get(row, 0)).collect::<Result<_, _>>()?;
                Err(self.scope.holds_others(others))
            }
            Ok(Some(row)) => match (row.try_get(0)?, row.try_get(1)?) {
                (found, _) if found > SCHEMA_VERSION => Err(StateError::SchemaTooNew { found }),
                (_, false) => {
                    let schema = self.scope.schema.clone();
                    Err(StateError::SchemaTooOld { schema, table: NEWEST_TABLE })
                }
                (found, true) => Ok(found),
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
    pub async fn current_epoch(&self) -> Result<Epoch, StateError> {
        let s = &self.scope.s;
        let sql =
            format!("SELECT epoch FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        Ok(Epoch(self.one_led(&sql).await?.try_get(0)?))
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

    /// The one row of a statement whose only parameter is the pipeline.
    pub(super) async fn one(&self, sql: &str) -> Result<Row, StateError> {
        self.one_of(sql, &[(&self.scope.pipeline, Type::TEXT)]).await
    }

    /// The one row of a statement about what is led by itself, [`Scope::led`].
    pub(super) async fn one_led(&self, sql: &str) -> Result<Row, StateError> {
        self.one_of(sql, &self.scope.led()).await
    }

    async fn one_of(&self, sql: &str, params: &[Param<'_>]) -> Result<Row, StateError> {
        let row = self.connection.query_typed_opt(sql, params).await?;
        row.ok_or_else(|| self.scope.not_set_up())
    }
}

impl Scope {
    /// What is led by itself, as `$1` and `$2`: the pipeline, and which partition of it.
    pub(super) fn led(&self) -> [Param<'_>; 2] {
        [(&self.pipeline, Type::TEXT), (&self.partition, Type::INT4)]
    }

    pub(super) fn not_set_up(&self) -> StateError {
        self.holds_others(Vec::new())
    }

    fn holds_others(&self, others: Vec<String>) -> StateError {
        let (schema, pipeline) = (self.schema.clone(), self.pipeline.clone());
        StateError::NotSetUp { schema, pipeline, others }
    }
}

async fn connect(
    url: &DatabaseUrl,
    settings: SessionSettings,
    timelines: Option<&Timelines>,
) -> Result<(Session, Option<Primary>), StateError> {
    let connection = Session::open(url, settings.application_name).await?;
    let (timeout, limits) = (quote_literal(IDLE_IN_TRANSACTION), settings.sql());
    let set = format!("{limits}SET idle_in_transaction_session_timeout = {timeout}; {PLANS}");
    connection.batch_execute(&set).await?;
    let Some(timelines) = timelines else { return Ok((connection, None)) };
    let primary = connection.primary().await.map_err(StateError::Server)?;
    timelines.check(primary).map_err(StateError::Server)?;
    Ok((connection, Some(primary)))
}

pub(super) fn lsn(row: &Row, column: usize) -> Result<Lsn, StateError> {
    Ok(Lsn(row.try_get::<_, PgLsn>(column)?.into()))
}
