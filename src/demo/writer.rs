//! The demo's traffic: transactions whose effect is known row by row.
//!
//! A change is entered into the [`Shared`] oracle when its COMMIT was acknowledged, never before. Some
//! transactions are rolled back on purpose, whole or to a savepoint: their changes never happened,
//! and an event of one of them is a fault.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio_postgres::{Row, Transaction};
use tokio_util::sync::CancellationToken;

use super::plan::Class;
use walhook_postgres::sql::Connection;
use walhook_testkit::change::{Change, Kind};
use walhook_testkit::oracle::Shared;

/// Deliveries of the whale that may wait before its writers pause, so that the drain stays short.
const WHALE_BACKLOG: u64 = 4_000;

/// How often the whale's steady writer commits.
const FLOOD_TICK: Duration = Duration::from_millis(100);

/// Between two of the whale's bulk transactions.
const BURST_EVERY: Duration = Duration::from_secs(8);

/// Rows of a bulk transaction.
const BURST_ROWS: i64 = 2_000;

/// Of a hundred transactions, those that are rolled back on purpose.
const ROLLED_BACK_PERCENT: u32 = 5;

/// Changes small accounts: each about once a second, at random moments.
///
/// # Errors
/// When the database fails.
pub async fn small(
    mut connection: Connection,
    accounts: Vec<i64>,
    oracle: Shared,
    seed: u64,
    stop: CancellationToken,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rows = Vec::with_capacity(accounts.len());
    for &account in &accounts {
        rows.push((account, rows_of(&connection, account).await?));
    }
    let mean_gap = 1.0 / f64::from(u32::try_from(accounts.len().max(1))?);
    loop {
        // Exponential gaps: what comes of many independent people.
        let gap = Duration::from_secs_f64(-mean_gap * (1.0 - rng.random::<f64>()).ln());
        if pause(gap.min(Duration::from_secs(5)), &stop).await {
            return Ok(());
        }
        let chosen = rng.random_range(0..rows.len());
        let Some((account, rows)) = rows.get_mut(chosen) else { continue };
        let mut transaction = Known::begin(&mut connection, *account, rows.clone()).await?;
        for _ in 0..1 + u32::from(rng.random_ratio(1, 5)) {
            match rng.random_range(0..10_u32) {
                0..4 => transaction.insert(1).await?,
                4..9 => transaction.update(1).await?,
                _ => transaction.delete(1).await?,
            }
        }
        if rng.random_ratio(ROLLED_BACK_PERCENT, 100) {
            transaction.roll_back().await?;
        } else {
            *rows = transaction.commit(&oracle).await?;
        }
    }
}

/// Floods: as much as `rate` events a second, as long as the whale's backlog is not too long.
///
/// # Errors
/// When the database fails.
pub async fn flood(
    mut connection: Connection,
    account: i64,
    rate: u32,
    oracle: Shared,
    seed: u64,
    stop: CancellationToken,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rows = rows_of(&connection, account).await?;
    let each_tick = u64::from(rate).div_ceil(10);
    while !pause(FLOOD_TICK, &stop).await {
        let waiting = oracle.with(|oracle, _| oracle.waiting(Class::Whale.group()));
        let n = i64::try_from(each_tick.min(WHALE_BACKLOG.saturating_sub(waiting)))?;
        if n == 0 {
            continue;
        }
        let mut transaction = Known::begin(&mut connection, account, rows.clone()).await?;
        match rng.random_range(0..10_u32) {
            0..6 => transaction.insert(n).await?,
            6..9 => transaction.update(n).await?,
            _ => transaction.delete(n).await?,
        }
        if rng.random_ratio(ROLLED_BACK_PERCENT, 100) {
            transaction.roll_back().await?;
        } else {
            rows = transaction.commit(&oracle).await?;
        }
    }
    Ok(())
}

/// Bulk transactions of thousands of rows, each with a savepoint that is rolled back.
///
/// # Errors
/// When the database fails.
pub async fn bursts(
    mut connection: Connection,
    account: i64,
    oracle: Shared,
    stop: CancellationToken,
) -> Result<()> {
    while !pause(BURST_EVERY, &stop).await {
        if oracle.with(|oracle, _| oracle.waiting(Class::Whale.group())) > WHALE_BACKLOG {
            continue;
        }
        let mut transaction = Known::begin(&mut connection, account, VecDeque::new()).await?;
        transaction.insert(BURST_ROWS).await?;
        transaction.update_for_nothing(BURST_ROWS / 4).await?;
        transaction.commit(&oracle).await?;
    }
    Ok(())
}

/// Waits; whether the traffic is to stop.
async fn pause(time: Duration, stop: &CancellationToken) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}

async fn rows_of(connection: &Connection, account: i64) -> Result<VecDeque<i64>> {
    let found = connection
        .query("SELECT id FROM subscribers WHERE account_id = $1 ORDER BY id", &[&account])
        .await?;
    Ok(found.iter().map(|row| row.get(0)).collect())
}

/// A transaction that knows what it changed.
struct Known<'a> {
    transaction: Transaction<'a>,
    account: i64,
    /// The account's rows as this transaction sees them, the longest untouched first.
    rows: VecDeque<i64>,
    changes: Vec<Change>,
}

impl<'a> Known<'a> {
    async fn begin(
        connection: &'a mut Connection,
        account: i64,
        rows: VecDeque<i64>,
    ) -> Result<Self> {
        let transaction = connection.transaction().await?;
        Ok(Self { transaction, account, rows, changes: Vec::new() })
    }

    async fn insert(&mut self, n: i64) -> Result<()> {
        let sql = "INSERT INTO subscribers (account_id, email)
                   SELECT $1::bigint, 'subscriber-' || i || '@account-' || $1::bigint || '.example'
                   FROM generate_series(1, $2::bigint) i RETURNING id, version";
        let inserted = self.transaction.query(sql, &[&self.account, &n]).await?;
        self.rows.extend(inserted.iter().map(|row| row.get::<_, i64>(0)));
        self.note(Kind::Created, &inserted);
        Ok(())
    }

    async fn update(&mut self, n: i64) -> Result<()> {
        let ids = self.take(n)?;
        let updated = update(&self.transaction, &ids).await?;
        self.rows.extend(ids);
        self.note(Kind::Updated, &updated);
        Ok(())
    }

    /// Updates rows of this transaction, then rolls back to the savepoint before.
    async fn update_for_nothing(&mut self, n: i64) -> Result<()> {
        let ids: Vec<i64> = self.rows.iter().copied().take(usize::try_from(n)?).collect();
        let savepoint = self.transaction.savepoint("for_nothing").await?;
        update(&savepoint, &ids).await?;
        savepoint.rollback().await?;
        Ok(())
    }

    async fn delete(&mut self, n: i64) -> Result<()> {
        let ids = self.take(n)?;
        let sql = "DELETE FROM subscribers WHERE id = ANY($1) RETURNING id, version";
        let deleted = self.transaction.query(sql, &[&ids]).await?;
        self.note(Kind::Deleted, &deleted);
        Ok(())
    }

    async fn roll_back(self) -> Result<()> {
        self.transaction.rollback().await.context("ROLLBACK")
    }

    /// Commits, enters the changes, and returns the account's rows.
    async fn commit(self, oracle: &Shared) -> Result<VecDeque<i64>> {
        let Self { transaction, account, rows, changes } = self;
        match transaction.commit().await {
            Ok(()) => oracle.with(|oracle, at| oracle.committed(account, &changes, at)),
            Err(error) => {
                oracle.with(|oracle, _| oracle.doubtful(account, &changes));
                return Err(error).context("COMMIT");
            }
        }
        Ok(rows)
    }

    fn take(&mut self, n: i64) -> Result<Vec<i64>> {
        let n = usize::try_from(n)?.min(self.rows.len());
        Ok(self.rows.drain(..n).collect())
    }

    fn note(&mut self, kind: Kind, rows: &[Row]) {
        let change = |row: &Row| Change { kind, id: row.get(0), version: row.get(1) };
        self.changes.extend(rows.iter().map(change));
    }
}

async fn update(transaction: &Transaction<'_>, ids: &[i64]) -> Result<Vec<Row>> {
    let sql = "UPDATE subscribers SET version = nextval('change_number'),
               status = CASE status WHEN 'active' THEN 'unsubscribed' ELSE 'active' END
               WHERE id = ANY($1) RETURNING id, version";
    Ok(transaction.query(sql, &[&ids]).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{plan, schema};
    use std::collections::HashSet;
    use walhook_core::endpoint::Secret;
    use walhook_postgres::sql::SERVER_SEARCH_PATH;
    use walhook_testkit::cluster::Cluster;
    use walhook_testkit::oracle::{Oracle, Stored};

    /// The WAL itself is the witness: what a logical slot decodes is what the ledger expects.
    #[tokio::test]
    async fn writers_enter_exactly_what_the_wal_says_was_committed() {
        let cluster = Cluster::start_copied(&std::env::temp_dir(), &[]).await.unwrap();
        let url = Secret::new(cluster.url("postgres"));
        let accounts = plan::accounts();
        let endpoints = plan::endpoints(&accounts);
        let connection = || Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH);
        let admin = connection().await.unwrap();
        schema::create(&admin, &accounts, &endpoints, &vec![String::new(); endpoints.len()])
            .await
            .unwrap();
        let slot = "SELECT pg_create_logical_replication_slot('witness', 'test_decoding')";
        admin.execute(slot, &[]).await.unwrap();

        let oracle = Shared::open(Oracle::new(&plan::owed(&endpoints)));
        let stop = CancellationToken::new();
        let small_accounts = (2..=51).collect();
        let writers = async {
            tokio::try_join!(
                small(connection().await?, small_accounts, oracle.clone(), 1, stop.clone()),
                flood(connection().await?, 1, 300, oracle.clone(), 2, stop.clone()),
                bursts(connection().await?, 1, oracle.clone(), stop.clone()),
            )
        };
        let enough = async {
            while oracle.with(|oracle, _| oracle.tally(Class::Whale.group()).committed) < 3_000
                || oracle.with(|oracle, _| oracle.tally(Class::Small.group()).committed) < 100
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stop.cancel();
        };
        let (wrote, ()) = tokio::join!(writers, enough);
        wrote.unwrap();

        let decoded = admin
            .query("SELECT data FROM pg_logical_slot_get_changes('witness', NULL, NULL)", &[])
            .await
            .unwrap();
        let decoded: Vec<Change> =
            decoded.iter().filter_map(|row| decode(row.get::<_, &str>(0))).collect();
        let distinct: HashSet<Change> = decoded.iter().copied().collect();
        assert_eq!(distinct.len(), decoded.len(), "each change has a number of its own");
        oracle.with(|oracle, _| {
            let committed: u64 =
                Class::ALL.map(|class| oracle.tally(class.group()).committed).iter().sum();
            assert_eq!(committed, u64::try_from(decoded.len()).unwrap());
            let missing: HashSet<(i64, Change)> = oracle.missing().collect();
            for &change in &decoded {
                for endpoint in endpoints.iter().map(|endpoint| endpoint.id) {
                    if missing.contains(&(endpoint, change)) {
                        oracle.stored(endpoint, change, Stored::DeadLetter);
                    }
                }
            }
            assert_eq!(oracle.waiting_in_all(), 0, "the WAL holds all that is expected");
        });
    }

    /// `table public.subscribers: INSERT: id[bigint]:1 … version[bigint]:1`, and of an update or
    /// delete the old row too, in which the version that counts stands last for an update.
    fn decode(line: &str) -> Option<Change> {
        let line = line.strip_prefix("table public.subscribers: ")?;
        let (operation, row) = line.split_once(':')?;
        let kind = match operation {
            "INSERT" => Kind::Created,
            "UPDATE" => Kind::Updated,
            "DELETE" => Kind::Deleted,
            other => panic!("unexpected {other}"),
        };
        let number = |name: &str| row.rsplit_once(name)?.1.split(' ').next()?.parse().ok();
        Some(Change { kind, id: number(" id[bigint]:")?, version: number("version[bigint]:")? })
    }
}
