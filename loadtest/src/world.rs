//! A throw-away PostgreSQL with the demo's tables, and the real `walhook` beside it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::pipeline::Pipeline;
use walhook_testkit::program::Program;
use walhook_testkit::traffic::Writer;

use crate::books::Books;
use crate::program;
use crate::sample::Metrics;

/// For `walhook run` to stream.
const LEADING_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Everything that was started, in the order in which it ends.
#[derive(Debug)]
pub struct World {
    /// The program.
    pub walhook: Pipeline,
    /// A session of the superuser's.
    pub sql: Connection,
    /// The server.
    pub cluster: Cluster,
}

/// What a world has beside the usual.
#[derive(Debug, Clone, Default)]
pub struct Layout<'a> {
    /// Run behind the demo's schema.
    pub schema: &'a str,
    /// Keys of `[endpoints]`.
    pub endpoints: &'a str,
    /// Sections of the configuration.
    pub extra: &'a str,
    /// Rules behind the usual ones.
    pub events: &'a str,
    /// Run instead of the `walhook` that was built beside this program.
    pub program: Option<PathBuf>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Settings of the server.
    pub server: &'a [(&'a str, &'a str)],
}

impl World {
    /// Starts a server, makes the tables and runs `walhook setup`. `extra` is added to the
    /// configuration, which is the default one but for loopback addresses.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn start(extra: &str) -> Result<Self> {
        Self::arranged(Layout { extra, ..Layout::default() }).await
    }

    /// The same, otherwise arranged.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn arranged(layout: Layout<'_>) -> Result<Self> {
        let Layout { schema, endpoints, extra, events, program: instead, env, server } = layout;
        let cluster = Cluster::start(&std::env::temp_dir(), server).await?;
        let url = cluster.url("postgres");
        let sql = Connection::open_with_path(&Secret::new(url.clone()), "load", SERVER_SEARCH_PATH)
            .await?;
        sql.batch_execute(include_str!("../../sql/demo.sql")).await?;
        sql.batch_execute(schema).await?;
        let program = instead.map_or_else(program, Ok)?;
        let mut program = Program::new(program, |admin| {
            format!(
                "[source]\nurl = \"{url}\"\n[endpoints]\ntable = \"public.webhooks\"\n{endpoints}\n\
                 [egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n{extra}\n\
                 [[events]]\ntype = \"subscriber.created\"\ntable = \"public.subscribers\"\n\
                 on = [\"insert\"]\naccount = \"account_id\"\ncolumns = [\"id\", \"version\"]\n\
                 [[events]]\ntype = \"subscriber.updated\"\ntable = \"public.subscribers\"\n\
                 on = [\"update\"]\naccount = \"account_id\"\ncolumns = [\"id\", \"version\"]\n{events}"
            )
        })?;
        program.own_group = true;
        program.env = env;
        program.set_up().await?;
        let walhook = Pipeline::new(program);
        Ok(Self { walhook, sql, cluster })
    }

    /// A session more.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn connect(&self) -> Result<Connection> {
        Ok(Connection::open_with_path(
            &Secret::new(self.cluster.url("postgres")),
            "load",
            SERVER_SEARCH_PATH,
        )
        .await?)
    }

    /// A session that writes for these books.
    ///
    /// # Errors
    /// When the server does not take it.
    pub async fn writer(&self, books: &Books) -> Result<Writer> {
        Writer::open(&self.cluster.url("postgres"), books.shared()).await
    }

    /// Adds an account with one endpoint that has the same id.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn add_account(&self, account: i64, url: &str) -> Result<()> {
        let insert = "INSERT INTO accounts VALUES ($1, 'Account ' || $1::bigint)";
        self.sql.execute(insert, &[&account]).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                      VALUES ($1, $1, $2, '{subscriber.*}', 'load')";
        self.sql.execute(insert, &[&account, &url]).await?;
        Ok(())
    }

    /// Commits `rows` new subscribers of an account in one transaction.
    ///
    /// # Errors
    /// When a statement fails.
    pub async fn insert(&self, books: &Books, account: i64, rows: usize) -> Result<()> {
        let writer = self.writer(books).await?;
        writer.insert(account, i64::try_from(rows)?, "someone@example.com").await?;
        Ok(())
    }

    /// `walhook run`, until it leads; how long that took.
    ///
    /// # Errors
    /// When it does not lead within a minute; the message holds the end of its log.
    pub async fn run(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.walhook.start()?;
        while !self.walhook.is_leading().await {
            let log = || self.walhook.log_tail();
            ensure!(began.elapsed() < LEADING_TIMEOUT, "walhook run does not lead:\n{}", log());
            sleep(Duration::from_millis(5)).await;
        }
        Ok(began.elapsed())
    }

    /// Waits until `wanted` says so; how long that took.
    ///
    /// # Errors
    /// When it has not by `within`; the message names `what`, and holds the end of walhook's log.
    pub async fn until(
        &self,
        what: &str,
        within: Duration,
        mut wanted: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let began = Instant::now();
        while !wanted().await? {
            let log = || self.walhook.log_tail();
            ensure!(began.elapsed() < within, "not within {within:?}: {what}\n{}", log());
            sleep(LOOK_EVERY).await;
        }
        Ok(began.elapsed())
    }

    /// Waits until the checkpoint is behind everything that is committed now.
    ///
    /// # Errors
    /// When it is not by `within`.
    pub async fn settled(&self, within: Duration) -> Result<Duration> {
        let passed = format!(
            "SELECT (frontier >= '{}')::int::bigint FROM walhook.checkpoint",
            self.wal_end().await?
        );
        // The WAL's end is passed only when something comes behind it.
        self.sql.batch_execute("SELECT pg_logical_emit_message(true, 'load', '')").await?;
        let what = "the checkpoint passes what was committed";
        self.until(what, within, async || Ok(self.number(&passed).await? > 0)).await
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.walhook.metrics().await?))
    }

    /// What a query that gives one number gives.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn number(&self, query: &str) -> Result<u64> {
        let row = self.sql.query_one(query, &[]).await.with_context(|| query.to_owned())?;
        Ok(u64::try_from(row.get::<_, i64>(0))?)
    }

    /// Deliveries that are deferred or dead letters, once nothing changes that any more.
    ///
    /// # Errors
    /// When a query fails.
    pub async fn in_tables(&self) -> Result<u64> {
        let query = "SELECT (SELECT count(*) FROM walhook.deliveries_pending
                              WHERE endpoint <> '' AND replay_id = 0)
                          + (SELECT count(*) FROM walhook.dead_letters WHERE replay_id = 0)";
        self.number(query).await
    }

    /// What the tables of state take on disk, indexes included.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn state_bytes(&self) -> Result<u64> {
        let query = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
                     WHERE relnamespace = 'walhook'::regnamespace AND relkind = 'r'";
        self.number(query).await
    }

    /// The end of the WAL, for people and for `walhook replay`.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn wal_end(&self) -> Result<String> {
        let row = self.sql.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?;
        Ok(row.get(0))
    }
}
