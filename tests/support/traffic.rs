//! Traffic by seed, of which the oracle is told what was committed.
//!
//! Several sessions write at once: inserts, updates and deletes of one or many rows, savepoints and
//! whole transactions that are rolled back, transactions that stay open while others commit, and now
//! and then a change of an endpoint's row. Every state of a row has a `version` from a sequence, which
//! a rollback does not give back: so (type, row, version) names one change for ever, and the versions
//! of one row rise in commit order, because a row is locked before its version is drawn.

use std::time::Duration;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use walhook_core::endpoint::Secret;
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_testkit::change::{Change, Kind};
use walhook_testkit::oracle::{Oracle, Shared};

use super::World;

const SCHEMA: &str = "
    CREATE SEQUENCE ids; CREATE SEQUENCE versions;
    CREATE TABLE subscribers (id bigint PRIMARY KEY DEFAULT nextval('ids'), account_id bigint NOT NULL,
        email text, version bigint NOT NULL DEFAULT nextval('versions'));
    ALTER TABLE subscribers REPLICA IDENTITY FULL;
    CREATE TABLE webhooks (id bigint PRIMARY KEY, account_id bigint NOT NULL, url text NOT NULL,
        event_types text[] NOT NULL DEFAULT '{*}', secret text, enabled boolean NOT NULL DEFAULT true);
    CREATE INDEX ON webhooks (account_id)";

/// Sessions that write at once.
const SESSIONS: u64 = 4;

/// Accounts that rows belong to, from 1; the last has no endpoint.
pub(crate) const ACCOUNTS: i64 = 7;

/// The endpoint whose row is rewritten as it is.
pub(crate) const TOUCHED: i64 = 52;

/// The endpoint that is switched off and on.
pub(crate) const FLAPPING: i64 = 51;

/// The rows that everyone updates: their order is what is worth watching.
const HOT_ROWS: i64 = 20;

/// A world with the tables of the traffic.
pub(crate) async fn world(sections: &str, server: &[(&str, &str)]) -> Result<World> {
    let rule = |name: &str, on: &str| {
        format!(
            "[[events]]\ntype = \"subscriber.{name}\"\ntable = \"public.subscribers\"\n\
             on = [\"{on}\"]\naccount = \"account_id\"\ncolumns = [\"id\", \"email\", \"version\"]\n"
        )
    };
    let rules = rule("created", "insert") + &rule("updated", "update") + &rule("deleted", "delete");
    let world = World::bare(sections, &rules, server).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.set_up().await?;
    Ok(world)
}

/// How a transaction ended.
enum Ended {
    Committed,
    RolledBack,
    Doubtful,
    /// Before COMMIT, so that nothing of it counts.
    Broken,
}

/// Running writers.
pub(crate) struct Traffic {
    oracle: Shared,
    stop: CancellationToken,
    sessions: JoinSet<()>,
}

impl Traffic {
    /// Begins to write; each session rests for up to `rest` between two transactions.
    pub(crate) async fn start(world: &World, seed: u64, rest: Duration) -> Result<Self> {
        // The hot rows are there before anyone could want to update them.
        let oracle = Shared::open(Oracle::default());
        let mut written = Vec::new();
        for _ in 0..HOT_ROWS {
            insert(&world.sql, &mut SmallRng::seed_from_u64(seed), 1, &mut written).await?;
        }
        enter(&oracle, &Ended::Committed, &written);
        let stop = CancellationToken::new();
        let mut sessions = JoinSet::new();
        for number in 0..SESSIONS {
            let session = Session {
                url: Secret::new(world.cluster.url("postgres")),
                rng: SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
                oracle: oracle.clone(),
                stop: stop.clone(),
                rest,
            };
            sessions.spawn(session.write());
        }
        Ok(Self { oracle, stop, sessions })
    }

    /// Ends the transactions that are open, and returns the oracle.
    pub(crate) async fn stop(mut self) -> Oracle {
        self.stop.cancel();
        while self.sessions.join_next().await.is_some() {}
        self.oracle.with(|oracle, _| std::mem::take(oracle))
    }
}

fn enter(oracle: &Shared, ended: &Ended, changes: &Changes) {
    oracle.with(|oracle, at| match ended {
        Ended::Committed => {
            for &(change, account) in changes {
                oracle.committed(account, &[change], at);
            }
        }
        Ended::Doubtful => {
            for &(change, account) in changes {
                oracle.doubtful(account, &[change]);
            }
        }
        Ended::RolledBack | Ended::Broken => oracle.rolled_back(changes.len()),
    });
}

struct Session {
    url: Secret,
    rng: SmallRng,
    oracle: Shared,
    stop: CancellationToken,
    rest: Duration,
}

impl Session {
    async fn write(mut self) {
        let mut connection = None;
        while !self.stop.is_cancelled() {
            let client = match &connection {
                Some(client) => client,
                None => match Connection::open_with_path(&self.url, "writer", SERVER_SEARCH_PATH)
                    .await
                {
                    Ok(client) => connection.insert(client),
                    Err(_) => {
                        sleep(Duration::from_millis(20)).await;
                        continue;
                    }
                },
            };
            let mut changes = Vec::new();
            let ended = transaction(client, &mut self.rng, &mut changes).await;
            enter(&self.oracle, &ended, &changes);
            if matches!(ended, Ended::Doubtful | Ended::Broken) {
                connection = None;
            }
            sleep(self.rest.mul_f64(self.rng.random())).await;
        }
    }
}

type Changes = Vec<(Change, i64)>;

async fn transaction(client: &Connection, rng: &mut SmallRng, changes: &mut Changes) -> Ended {
    if statements(client, rng, changes).await.is_err() {
        // A deadlock, a lock that did not come, or a lost connection.
        return Ended::Broken;
    }
    if rng.random_ratio(1, 8) {
        return match client.batch_execute("ROLLBACK").await {
            Ok(()) => Ended::RolledBack,
            Err(_) => Ended::Broken,
        };
    }
    match client.batch_execute("COMMIT").await {
        Ok(()) => Ended::Committed,
        Err(_) => Ended::Doubtful,
    }
}

async fn statements(client: &Connection, rng: &mut SmallRng, changes: &mut Changes) -> Result<()> {
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '2s'").await?;
    for _ in 0..rng.random_range(1..=3) {
        match rng.random_range(0..20) {
            0..6 => {
                let rows = rng.random_range(1..=6);
                insert(client, rng, rows, changes).await?;
            }
            6..15 => update(client, rng, changes).await?,
            15..17 => delete(client, rng, changes).await?,
            17 | 18 => {
                let mut undone = Vec::new();
                client.batch_execute("SAVEPOINT s").await?;
                insert(client, rng, 2, &mut undone).await?;
                update(client, rng, &mut undone).await?;
                client.batch_execute("ROLLBACK TO s").await?;
            }
            _ => {
                let touched = "UPDATE webhooks SET url = url WHERE id = $1";
                let flapped = "UPDATE webhooks SET enabled = NOT enabled WHERE id = $1";
                let (sql, id) = *[(touched, TOUCHED), (flapped, FLAPPING)]
                    .get(rng.random_range(0..2))
                    .unwrap_or(&(touched, TOUCHED));
                client.execute(sql, &[&id]).await?;
            }
        }
    }
    if rng.random_ratio(1, 12) {
        // Others commit meanwhile, so that this one's changes precede their commits in the WAL.
        sleep(Duration::from_millis(rng.random_range(50..300))).await;
    }
    Ok(())
}

async fn insert(
    client: &Connection,
    rng: &mut SmallRng,
    rows: i32,
    changes: &mut Changes,
) -> Result<()> {
    let account = rng.random_range(1..=ACCOUNTS);
    let email = "x".repeat(rng.random_range(1..200));
    let sql =
        "INSERT INTO subscribers (account_id, email) SELECT $1, $2 FROM generate_series(1, $3)
               RETURNING id, version, account_id";
    let rows = client.query(sql, &[&account, &email, &rows]).await?;
    note(Kind::Created, &rows, changes);
    Ok(())
}

async fn update(client: &Connection, rng: &mut SmallRng, changes: &mut Changes) -> Result<()> {
    let from = if rng.random() {
        rng.random_range(1..=HOT_ROWS)
    } else {
        rng.random_range(HOT_ROWS..=HOT_ROWS + 300)
    };
    let ids = lock(client, from, rng.random_range(1..=4)).await?;
    let sql = "UPDATE subscribers SET version = nextval('versions') WHERE id = ANY($1)
               RETURNING id, version, account_id";
    note(Kind::Updated, &client.query(sql, &[&ids]).await?, changes);
    Ok(())
}

async fn delete(client: &Connection, rng: &mut SmallRng, changes: &mut Changes) -> Result<()> {
    let ids = lock(client, rng.random_range(HOT_ROWS + 1..=HOT_ROWS + 300), 2).await?;
    let sql = "DELETE FROM subscribers WHERE id = ANY($1) RETURNING id, version, account_id";
    note(Kind::Deleted, &client.query(sql, &[&ids]).await?, changes);
    Ok(())
}

/// Locks rows, in the order of their ids.
async fn lock(client: &Connection, from: i64, rows: i64) -> Result<Vec<i64>> {
    let sql = "SELECT id FROM subscribers WHERE id >= $1 ORDER BY id LIMIT $2 FOR UPDATE";
    Ok(client.query(sql, &[&from, &rows]).await?.iter().map(|row| row.get(0)).collect())
}

fn note(kind: Kind, rows: &[tokio_postgres::Row], changes: &mut Changes) {
    let change = |row: &tokio_postgres::Row| Change { kind, id: row.get(0), version: row.get(1) };
    changes.extend(rows.iter().map(|row| (change(row), row.get(2))));
}
