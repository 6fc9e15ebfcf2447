//! A world for one test: a cluster, the customer's tables, a receiver, and the program as a child.

pub(crate) mod audit;
pub(crate) mod docs;
pub(crate) mod log_audit;
pub(crate) mod nemesis;
pub(crate) mod told;
pub(crate) mod traffic;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
pub use walhook_testkit::admin::{answers, get};
use walhook_testkit::cluster::Cluster;
pub use walhook_testkit::program::{PATIENCE, Program, Running};
use walhook_testkit::receiver::{Received, Receiver, Settings};
use walhook_testkit::sign::with_one_of;

/// The secret of every endpoint that [`World::hook`] registers.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// The usual tables, which [`World::with`] creates.
pub const SCHEMA: &str = "
    CREATE TABLE subscribers (id bigint PRIMARY KEY, account_id bigint NOT NULL, email text, status text);
    ALTER TABLE subscribers REPLICA IDENTITY FULL;
    CREATE TABLE webhooks (id bigint PRIMARY KEY, account_id bigint NOT NULL, url text NOT NULL,
        event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true);
    CREATE INDEX ON webhooks (account_id)";

/// The usual rules: an event for each insert, update and delete of a subscriber.
pub const RULES: &str = r#"
[[events]]
type = "subscriber.created"
table = "public.subscribers"
on = ["insert"]
account = "account_id"
columns = ["id", "email", "status"]

[[events]]
type = "subscriber.updated"
table = "public.subscribers"
on = ["update"]
account = "account_id"
columns = ["id", "email", "status"]

[[events]]
type = "subscriber.deleted"
table = "public.subscribers"
on = ["delete"]
account = "account_id"
columns = ["id", "email", "status"]
"#;

/// All that a test stands on, and the program itself. Dropped, it leaves nothing behind.
pub struct World {
    pub cluster: Cluster,
    pub sql: Connection,
    pub mock: Receiver,
    program: Program,
}

impl Deref for World {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

impl World {
    /// A cluster with the customer's tables, set up by `walhook setup`.
    pub async fn new() -> Result<Self> {
        Self::with("", RULES, &[]).await
    }

    /// As [`World::new`], with further sections of the configuration, other rules, and settings of the
    /// server. The rules' tables are the caller's to create before [`World::set_up`] when they are
    /// not the usual ones; then it uses [`World::bare`].
    pub async fn with(sections: &str, rules: &str, server: &[(&str, &str)]) -> Result<Self> {
        let world = Self::bare(sections, rules, server).await?;
        world.sql.batch_execute(SCHEMA).await?;
        world.set_up().await?;
        Ok(world)
    }

    /// A cluster without any table, and a configuration.
    pub async fn bare(sections: &str, rules: &str, server: &[(&str, &str)]) -> Result<Self> {
        Self::on(Cluster::start_copied(&std::env::temp_dir(), server).await?, sections, rules).await
    }

    /// As [`World::bare`], on this cluster.
    pub async fn on(cluster: Cluster, sections: &str, rules: &str) -> Result<Self> {
        let sql = connect(&cluster).await?;
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = Settings {
            verify: Some(with_one_of(vec![SECRET.to_owned()])),
            keep: 1_000_000,
            ..Settings::default()
        };
        let mock = Receiver::start(any_port, settings).await?;
        let program = Program::new(env!("CARGO_BIN_EXE_walhook"), |admin| {
            format!(
                "[source]\nurl = \"{}\"\n[endpoints]\ntable = \"public.webhooks\"\n\
                 [egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n\
                 [log]\nlevel = \"info,walhook=debug\"\n{sections}\n{rules}",
                cluster.url("postgres")
            )
        })?;
        Ok(Self { cluster, sql, mock, program })
    }

    /// Replaces the SQL session, after the server was away.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.sql = connect(&self.cluster).await?;
        Ok(())
    }

    /// Waits until a query's first value, as text, is as wanted.
    pub async fn until(&self, sql: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.value(sql).await?;
            if value == wanted {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{sql}: {value:?}, not {wanted:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Registers an endpoint at the path `/<id>` (and a query for the receiver) of the receiver.
    pub async fn hook(&self, id: i64, account: i64, query: &str) -> Result<()> {
        let url = self.mock.url(&format!("/{id}{query}"));
        let insert = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $2, $3, $4)";
        self.sql.execute(insert, &[&id, &account, &url, &SECRET]).await?;
        Ok(())
    }

    /// Inserts a subscriber.
    pub async fn subscribe(&self, id: i64, account: i64) -> Result<()> {
        let insert = "INSERT INTO subscribers VALUES ($1, $2, 'a@example.com', 'active')";
        self.sql.execute(insert, &[&id, &account]).await?;
        Ok(())
    }

    /// Waits until endpoints have taken so many different deliveries, and returns all requests.
    pub async fn delivered(&self, distinct: u64) -> Result<Vec<Received>> {
        let what = format!("{distinct} deliveries");
        self.mock.wait_until(&what, PATIENCE, |stats| stats.distinct >= distinct).await?;
        Ok(self.mock.received())
    }

    /// Waits until everything that is committed now is settled and stored, so that what has not been
    /// delivered by then never will be.
    pub async fn settled(&self) -> Result<()> {
        let sql = "SELECT pg_current_wal_insert_lsn()::text";
        let end: String = self.sql.query_one(sql, &[]).await?.get(0);
        let sql = "SELECT frontier >= $1::text::pg_lsn FROM walhook.checkpoint";
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.pulse().await?;
            if self.sql.query_one(sql, &[&end]).await?.get(0) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the checkpoint does not reach {end}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// A commit that lets the frontier pass the last change of ours: one of an account without
    /// endpoints, which is stored sooner than a keepalive, where there are the usual tables.
    async fn pulse(&self) -> Result<()> {
        let event = "INSERT INTO subscribers (id, account_id)
             SELECT least(min(id), 0) - 1, -1 FROM subscribers";
        if self.sql.batch_execute(event).await.is_err() {
            self.sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await?;
        }
        Ok(())
    }

    /// A new SQL session, for another transaction beside [`World::sql`]'s.
    pub async fn connect(&self) -> Result<Connection> {
        connect(&self.cluster).await
    }

    /// The first value of a query, as text.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let rows = self.sql.simple_query(sql).await?;
        let value = rows.iter().find_map(|message| {
            let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
            row.get(0).map(str::to_owned)
        });
        Ok(value.unwrap_or_default())
    }
}

async fn connect(cluster: &Cluster) -> Result<Connection> {
    Ok(Connection::open_with_path(
        &Secret::new(cluster.url("postgres")),
        "test",
        SERVER_SEARCH_PATH,
    )
    .await?)
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The bodies that the endpoint of a path took, in order, without repeats.
pub fn bodies(received: &[Received], path: &str) -> Vec<serde_json::Value> {
    let mut seen = HashSet::new();
    let taken = received.iter().filter(|request| request.is_taken() && request.path == path);
    taken.filter(|request| seen.insert(request.id.as_str())).map(Received::json).collect()
}

/// The events that an endpoint took, by its path: (type, the row's id), in order, without repeats.
pub fn taken(received: &[Received]) -> BTreeMap<String, Vec<(String, i64)>> {
    let mut seen: HashMap<(String, String), ()> = HashMap::new();
    let mut taken: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
    for request in received.iter().filter(|request| request.is_taken()) {
        if seen.insert((request.path.clone(), request.id.clone()), ()).is_some() {
            continue;
        }
        let body = request.json();
        let event_type = body["type"].as_str().unwrap_or_default().to_owned();
        let id = body["data"]["id"].as_i64().unwrap_or_default();
        taken.entry(request.path.clone()).or_default().push((event_type, id));
    }
    taken
}
