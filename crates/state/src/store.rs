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

use super::deliveries::Refusal;
use super::persist::Committing;
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

/// One pipeline's state, over one session.
#[derive(Debug)]
pub struct StateStore {
    pub(super) connection: Session,
    url: DatabaseUrl,
    settings: SessionSettings,
    pub(super) scope: Scope,
    epoch: Option<Epoch>,
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
        let url = url.to_database_url();
        let scope = Scope {
            schema: schema.to_owned(),
            s: quote_ident(schema),
            pipeline: pipeline.to_owned(),
            partition: Partition::SOLE.number(),
            writes_pages: false,
        };
        let connection = connect(&url, settings).await?;
        let (epoch, committing, log) = (None, None, Refusal::default());
        let mut store = Self { connection, url, settings, scope, epoch, committing, log };
        store.scope.writes_pages = store.check_schema().await? >= WITH_PAGES;
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
            Ok(None) => Err(self.scope.not_set_up()),
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

pub(super) fn lsn(row: &Row, column: usize) -> Result<Lsn, StateError> {
    Ok(Lsn(row.try_get::<_, PgLsn>(column)?.into()))
}
