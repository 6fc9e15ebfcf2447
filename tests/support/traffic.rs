//! Traffic by seed.
//!
//! Several sessions write at once: inserts, updates and deletes of one or many rows, savepoints and
//! whole transactions that are rolled back, transactions that stay open while others commit, and now
//! and then a change of an endpoint's row. Where it is wanted, one session more writes large transactions, which
//! are streamed while they are open: [`large`].

mod large;

use std::time::Duration;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;
use walhook_testkit::oracle::{Oracle, Shared};
use walhook_testkit::traffic::{self, Stop, Transaction, Writer};

use super::World;

const SCHEMA: &str = "
    CREATE SEQUENCE ids; CREATE SEQUENCE change_number;
    CREATE TABLE subscribers (id bigint PRIMARY KEY DEFAULT nextval('ids'), account_id bigint NOT NULL,
        email text, status text NOT NULL DEFAULT 'active',
        version bigint NOT NULL DEFAULT nextval('change_number'));
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

/// Has walhook stream what [`Traffic::write_large`] writes, and keep it in a spool where it is very large.
pub(crate) fn stream_large(world: &World) -> Result<()> {
    let spool = world.dir().join("spool");
    let source =
        format!("stream_above = \"{}\"\nspool = {spool:?}\n[endpoints]", large::STREAM_ABOVE);
    world.edit_config("[endpoints]", &source)?;
    world.edit_config("[admin]", &format!("[memory]\nlimit = \"{}\"\n[admin]", large::MEMORY))
}

/// Running writers.
pub(crate) struct Traffic {
    oracle: Shared,
    sessions: traffic::Traffic,
}

impl Traffic {
    /// Begins to write; each session rests for up to `rest` between two transactions.
    pub(crate) async fn start(world: &World, seed: u64, rest: Duration) -> Result<Self> {
        let oracle = Shared::open(Oracle::default());
        let url = world.cluster.url("postgres");
        // The hot rows are there before anyone could want to update them.
        let writer = Writer::open(&url, oracle.clone()).await?;
        let theirs = SmallRng::seed_from_u64(seed).random_range(1..=ACCOUNTS);
        for _ in 0..HOT_ROWS {
            writer.insert(theirs, 1, "hot").await?;
        }
        let mut sessions = traffic::Traffic::default();
        for number in 0..SESSIONS {
            let session = Session {
                url: url.clone(),
                rng: SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
                oracle: oracle.clone(),
                rest,
            };
            sessions.spawn(|stop| session.write(stop));
        }
        Ok(Self { oracle, sessions })
    }

    /// Writes large transactions, too, in one session more.
    pub(crate) fn write_large(&mut self, world: &World, seed: u64) {
        let url = world.cluster.url("postgres");
        // Its numbers are not those of the others.
        let rng = SmallRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(SESSIONS));
        let session = large::Session { url, rng, oracle: self.oracle.clone() };
        self.sessions.spawn(|stop| session.write(stop));
    }

    /// Ends the transactions that are open, and returns the oracle.
    pub(crate) async fn stop(self) -> Oracle {
        self.sessions.stop().await.unwrap();
        self.oracle.with(|oracle, _| std::mem::take(oracle))
    }
}

struct Session {
    url: String,
    rng: SmallRng,
    oracle: Shared,
    rest: Duration,
}

impl Session {
    async fn write(mut self, mut stop: Stop) -> Result<()> {
        let mut writer = None;
        while !stop.is_told() {
            let Some(open) = opened(&mut writer, &self.url, &self.oracle, &mut stop).await else {
                continue;
            };
            // A deadlock, a lock that did not come, or a lost connection.
            if transaction(open, &mut self.rng).await.is_err() {
                writer = None;
            }
            stop.within(self.rest.mul_f64(self.rng.random())).await;
        }
        Ok(())
    }
}

/// The writer, opened anew where there is none. None for a moment while the server takes nobody.
async fn opened<'a>(
    writer: &'a mut Option<Writer>,
    url: &str,
    oracle: &Shared,
    stop: &mut Stop,
) -> Option<&'a mut Writer> {
    if writer.is_none() {
        match Writer::open(url, oracle.clone()).await {
            Ok(open) => *writer = Some(open),
            Err(_) => {
                stop.within(Duration::from_millis(20)).await;
            }
        }
    }
    writer.as_mut()
}

async fn transaction(writer: &mut Writer, rng: &mut SmallRng) -> Result<()> {
    let mut transaction = writer.begin().await?;
    statements(&mut transaction, rng).await?;
    if rng.random_ratio(1, 8) { transaction.roll_back().await } else { transaction.commit().await }
}

async fn statements(transaction: &mut Transaction<'_>, rng: &mut SmallRng) -> Result<()> {
    transaction.execute("SET LOCAL lock_timeout = '2s'", &[]).await?;
    for _ in 0..rng.random_range(1..=3) {
        match rng.random_range(0..20) {
            0..6 => {
                let rows = rng.random_range(1..=6);
                insert(transaction, rng, rows).await?;
            }
            6..15 => update(transaction, rng).await?,
            15..17 => {
                let from = rng.random_range(HOT_ROWS + 1..=HOT_ROWS + 300);
                let ids = transaction.lock(from, 2).await?;
                transaction.delete(&ids).await?;
            }
            17 | 18 => {
                let savepoint = transaction.savepoint().await?;
                insert(transaction, rng, 2).await?;
                update(transaction, rng).await?;
                transaction.roll_back_to(savepoint).await?;
            }
            _ => {
                let touched = "UPDATE webhooks SET url = url WHERE id = $1";
                let flapped = "UPDATE webhooks SET enabled = NOT enabled WHERE id = $1";
                let (sql, id) = if rng.random() { (touched, TOUCHED) } else { (flapped, FLAPPING) };
                transaction.execute(sql, &[&id]).await?;
            }
        }
    }
    if rng.random_ratio(1, 12) {
        // Others commit meanwhile, so that this one's changes precede their commits in the WAL.
        sleep(Duration::from_millis(rng.random_range(50..300))).await;
    }
    Ok(())
}

async fn insert(transaction: &mut Transaction<'_>, rng: &mut SmallRng, rows: i64) -> Result<()> {
    let account = rng.random_range(1..=ACCOUNTS);
    let email = "x".repeat(rng.random_range(1..200));
    transaction.insert(account, rows, &email).await?;
    Ok(())
}

async fn update(transaction: &mut Transaction<'_>, rng: &mut SmallRng) -> Result<()> {
    let from = if rng.random() {
        rng.random_range(1..=HOT_ROWS)
    } else {
        rng.random_range(HOT_ROWS..=HOT_ROWS + 300)
    };
    let ids = transaction.lock(from, rng.random_range(1..=4)).await?;
    transaction.update(&ids).await
}
