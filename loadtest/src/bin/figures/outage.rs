//! Accounts whose endpoints die and come back together, and rows for them.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;
use walhook_loadtest::world::{Layout, World};

use crate::sink::Sink;

/// For all to be deferred, or delivered.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1_200);

/// Rows of one transaction.
const TRANSACTION: u64 = 1_000;

/// Bodies of about 360 bytes, a part of which does not compress, as names and ids do not. Nobody reads the
/// second table: it says what such rows cost by themselves.
const SCHEMA: &str = "
    CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account_id bigint NOT NULL,
        body text NOT NULL);
    CREATE TABLE unread (LIKE notes INCLUDING ALL);";

const RULE: &str = "[[events]]\ntype = \"note.created\"\ntable = \"public.notes\"\non = [\"insert\"]\n\
    account = \"account_id\"\ncolumns = [\"id\", \"body\"]\n";

/// No checkpoint comes in between, whose images of whole pages would count or not by chance.
const SERVER: [(&str, &str); 2] = [("checkpoint_timeout", "1h"), ("max_wal_size", "32GB")];

/// Accounts whose endpoints die and come back together, and rows for them.
pub(crate) struct Outage {
    pub(crate) world: World,
    pub(crate) sink: Sink,
    pub(crate) accounts: u64,
    /// Rows of `notes` so far.
    pub(crate) rows: u64,
}

impl Outage {
    /// So many accounts, an endpoint each. `env` configures walhook.
    pub(crate) async fn start(accounts: u64, env: &[(&str, &str)]) -> Result<Self> {
        let sink = Sink::start(None).await?;
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let layout =
            Layout { schema: SCHEMA, events: RULE, server: &SERVER, env, ..Layout::default() };
        let world = World::arranged(layout).await?;
        add_endpoints(&world, accounts, 1, &sink).await?;
        Ok(Self { world, sink, accounts, rows: 0 })
    }

    /// Commits rows of all accounts in turn, while nothing runs: what is measured is walhook, not the writer.
    pub(crate) async fn lay_up(&mut self, rows: u64) -> Result<()> {
        let end = self.rows + rows;
        while self.rows < end {
            let now = TRANSACTION.min(end - self.rows);
            self.world.sql.batch_execute(&self.notes("notes", now)).await?;
            self.rows += now;
        }
        Ok(())
    }

    /// A statement that inserts the next rows, into `notes` or into `unread`.
    pub(crate) fn notes(&self, table: &str, rows: u64) -> String {
        let (from, to) = (self.rows + 1, self.rows + rows);
        format!(
            "INSERT INTO {table} (account_id, body)
             SELECT 1 + n % {}, 'Subscriber ' || n || ' joined segment ' || n % 50 || ' by the form on the page '
                 || 'https://shop.example/' || md5(n::text) || ' and confirmed with ' || md5((-n)::text)
                 || ' a moment later; nothing else is known of them yet.'
             FROM generate_series({from}, {to}) n",
            self.accounts
        )
    }

    /// Has all that is laid up deferred; how long that took from the moment at which it led.
    pub(crate) async fn fill(&mut self) -> Result<Duration> {
        self.sink.fail(true);
        self.world.run().await?;
        self.stored(Instant::now()).await
    }

    /// Waits until all is deferred, and stops.
    pub(crate) async fn stored(&mut self, since: Instant) -> Result<Duration> {
        self.world.settled(PATIENCE).await?;
        let took = since.elapsed();
        self.world.walhook.stop().await?;
        Ok(took)
    }

    /// The endpoints are back, and another process, which does not wait for the probe of one that this one found
    /// dead, delivers so many. Deliveries a second, of the middle nine tenths: some have a time to wait for.
    pub(crate) async fn drain(&mut self, deliveries: u64) -> Result<f64> {
        self.sink.fail(false);
        self.sink.reset();
        self.world.run().await?;
        self.delivered(deliveries).await
    }

    /// Pauses all endpoints, as an operator does one by one, while nothing runs: what comes is deferred, and
    /// nothing of it is tried.
    pub(crate) async fn pause(&self) -> Result<()> {
        let insert = "INSERT INTO walhook.endpoint_state (pipeline, kind, endpoint, reason)
                      SELECT 'walhook', 'paused', id::text, 'figures' FROM webhooks";
        Ok(self.world.sql.batch_execute(insert).await?)
    }

    /// All are sent to again; see [`Outage::drain`].
    pub(crate) async fn resume(&mut self, deliveries: u64) -> Result<f64> {
        self.world.sql.batch_execute("DELETE FROM walhook.endpoint_state").await?;
        self.drain(deliveries).await
    }

    /// Waits until so many are delivered and nothing is deferred, and stops.
    async fn delivered(&mut self, deliveries: u64) -> Result<f64> {
        let rate = self.rate(deliveries).await?;
        let none = async || Ok(self.world.metrics().await?.sum("walhook_deferred") == 0.0);
        self.world.until("nothing is deferred", PATIENCE, none).await?;
        self.world.settled(PATIENCE).await?;
        self.world.walhook.stop().await?;
        Ok(rate)
    }

    /// Deliveries a second of the middle nine tenths of so many.
    #[expect(clippy::cast_precision_loss, reason = "a rate is not exact")]
    async fn rate(&self, deliveries: u64) -> Result<f64> {
        let (from, to) = (deliveries / 20 + 1, deliveries * 19 / 20);
        let log = || self.world.walhook.log_tail();
        self.sink.until(from).await.with_context(log)?;
        let (began, first) = (Instant::now(), self.sink.requests());
        self.sink.until(to).await.with_context(log)?;
        let rate = (self.sink.requests() - first) as f64 / began.elapsed().as_secs_f64();
        self.sink.until(deliveries).await.with_context(log)?;
        Ok(rate)
    }

    /// Where the WAL ends.
    pub(crate) async fn wal_bytes(&self) -> Result<u64> {
        let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
        self.world.number(sql).await
    }
}

/// Adds accounts from 1 on, with so many endpoints each, all at the sink.
pub(crate) async fn add_endpoints(
    world: &World,
    accounts: u64,
    each: u64,
    sink: &Sink,
) -> Result<()> {
    let (accounts, each) = (i64::try_from(accounts)?, i64::try_from(each)?);
    let insert =
        "INSERT INTO accounts SELECT n, 'Account ' || n FROM generate_series(1, $1::bigint) n";
    world.sql.execute(insert, &[&accounts]).await?;
    let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
         SELECT (n - 1) * $2::bigint + k, n, $3, '{*}', 'figures'
         FROM generate_series(1, $1::bigint) n, generate_series(1, $2::bigint) k";
    world.sql.execute(insert, &[&accounts, &each, &sink.url(0)]).await?;
    Ok(())
}
