//! What is loaded: a database, the walhook that reads it, and the endpoint that answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use walhook::demo::configuration::configuration;
use walhook_core::endpoint::Secret;
use walhook_loadtest::program;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::change::Change;
use walhook_testkit::cluster::Cluster;
use walhook_testkit::pipeline::Pipeline;
use walhook_testkit::program::Program;
use walhook_testkit::receiver::{Received, Receiver, Settings};

/// Accounts that goose's users share, each with one endpoint.
const ACCOUNTS: i64 = 50;

/// For `walhook run` to stream.
const LEADING_TIMEOUT: Duration = Duration::from_secs(30);

type Waiting = Arc<Mutex<HashMap<i64, oneshot::Sender<Instant>>>>;

/// Where the users insert, and how they learn of their webhooks.
#[derive(Debug)]
pub(crate) struct Target {
    url: Secret,
    first_account: i64,
    waiting: Waiting,
}

/// What was started for the test, and ends with it.
#[derive(Debug)]
pub(crate) struct Owned {
    own: Option<(Pipeline, Cluster)>,
    _endpoint: Receiver,
}

impl Owned {
    /// Stops it in order.
    pub(crate) async fn stop(self) -> Result<()> {
        match self.own {
            Some((mut pipeline, _)) => pipeline.stop().await,
            None => Ok(()),
        }
    }
}

/// Finds or starts everything, and adds the accounts.
pub(crate) async fn prepare() -> Result<(Target, Owned)> {
    let waiting = Waiting::default();
    let waits = Arc::clone(&waiting);
    let settings = Settings {
        keep: 0,
        on_request: Some(Arc::new(move |request| tell(&waits, request))),
        ..Settings::default()
    };
    let endpoint = Receiver::start(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await?;

    let (url, own) = match std::env::var("WALHOOK_LOADTEST_URL") {
        Ok(url) => (Secret::new(url), None),
        Err(_) => {
            let cluster = Cluster::start(&std::env::temp_dir(), &[]).await?;
            let url = Secret::new(cluster.url("postgres"));
            let connection =
                Connection::open_with_path(&url, "walhook load test", SERVER_SEARCH_PATH).await?;
            connection.batch_execute(include_str!("../../sql/demo.sql")).await?;
            let mut program = Program::new(program()?, |admin| configuration(url.expose(), admin))?;
            program.own_group = true;
            program.set_up().await?;
            let mut pipeline = Pipeline::new(program);
            pipeline.start()?;
            wait_until_leading(&pipeline).await?;
            (url, Some((pipeline, cluster)))
        }
    };
    // Far above ids that are there already.
    let first_account = (1 << 40) + i64::from(rand::random::<u32>()) * ACCOUNTS;
    let target = Target { url, first_account, waiting };
    target.add_accounts(&endpoint.url("/")).await?;
    Ok((target, Owned { own, _endpoint: endpoint }))
}

impl Target {
    /// A session of its own.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        Ok(Connection::open_with_path(&self.url, "walhook load test", SERVER_SEARCH_PATH).await?)
    }

    /// The account that a user inserts for.
    pub(crate) fn account(&self, user: usize) -> i64 {
        let user = i64::try_from(user).unwrap_or_default();
        self.first_account + user % ACCOUNTS
    }

    /// Resolves when the webhook of the change with this version is answered.
    pub(crate) fn expect(&self, version: i64) -> oneshot::Receiver<Instant> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(version, sender);
        receiver
    }

    /// Removes what [`prepare`] and the users added.
    pub(crate) async fn clean_up(&self) -> Result<()> {
        let last = self.first_account + ACCOUNTS - 1;
        let connection = self.connect().await?;
        for sql in [
            "DELETE FROM webhooks WHERE account_id BETWEEN $1 AND $2",
            "DELETE FROM subscribers WHERE account_id BETWEEN $1 AND $2",
            "DELETE FROM accounts WHERE id BETWEEN $1 AND $2",
        ] {
            connection.execute(sql, &[&self.first_account, &last]).await?;
        }
        Ok(())
    }

    async fn add_accounts(&self, endpoint_url: &str) -> Result<()> {
        let connection = self.connect().await?;
        let last = self.first_account + ACCOUNTS - 1;
        connection
            .execute(
                "INSERT INTO accounts SELECT i, 'Load ' || i
                 FROM generate_series($1::bigint, $2::bigint) i",
                &[&self.first_account, &last],
            )
            .await
            .context("the database needs the tables of sql/demo.sql")?;
        connection
            .execute(
                "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                 SELECT i, i, $3, '{subscriber.created}', 'load-test'
                 FROM generate_series($1::bigint, $2::bigint) i",
                &[&self.first_account, &last, &endpoint_url],
            )
            .await?;
        Ok(())
    }
}

/// Tells the user that waits for a request's change.
fn tell(waiting: &Mutex<HashMap<i64, oneshot::Sender<Instant>>>, request: &Received) -> Result<()> {
    let change = Change::in_body(&request.body)?;
    let waiter = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&change.version);
    if let Some(waiter) = waiter {
        // A user that has given up no longer listens.
        let _ = waiter.send(Instant::now());
    }
    Ok(())
}

async fn wait_until_leading(pipeline: &Pipeline) -> Result<()> {
    let deadline = Instant::now() + LEADING_TIMEOUT;
    while !pipeline.is_leading().await {
        ensure!(
            Instant::now() < deadline,
            "walhook run does not stream; its log ends with:\n{}",
            pipeline.log_tail()
        );
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
