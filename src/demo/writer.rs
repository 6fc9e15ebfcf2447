//! The demo's traffic: who changes how much, and when.
//!
//! Some transactions are rolled back on purpose, whole or to a savepoint: their changes never happened,
//! and an event of one of them is a fault.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::plan::Class;
use walhook_testkit::oracle::Shared;
use walhook_testkit::traffic::{Stop, Transaction, Writer};

/// Deliveries of the whale that may wait before its writers pause, so that the drain stays short.
const WHALE_BACKLOG: u64 = 4_000;

/// How often the whale's steady writer commits.
const FLOOD_TICK: Duration = Duration::from_millis(100);

/// Between two of the whale's bulk transactions.
const BURST_EVERY: Duration = Duration::from_secs(8);

/// Rows of a bulk transaction.
const BURST_ROWS: usize = 2_000;

/// Of a hundred transactions, those that are rolled back on purpose.
const ROLLED_BACK_PERCENT: u32 = 5;

/// Changes small accounts: each about once a second, at random moments.
///
/// # Errors
/// When the database fails.
pub async fn small(
    mut writer: Writer,
    accounts: Vec<i64>,
    seed: u64,
    mut stop: Stop,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rows = Vec::with_capacity(accounts.len());
    for &account in &accounts {
        rows.push(Rows::of(&writer, account).await?);
    }
    let mean_gap = 1.0 / f64::from(u32::try_from(accounts.len().max(1))?);
    loop {
        // Exponential gaps: what comes of many independent people.
        let gap = Duration::from_secs_f64(-mean_gap * (1.0 - rng.random::<f64>()).ln());
        if stop.within(gap.min(Duration::from_secs(5))).await {
            return Ok(());
        }
        let chosen = rng.random_range(0..rows.len());
        let Some(rows) = rows.get_mut(chosen) else { continue };
        let mut transaction = writer.begin().await?;
        let mut left = rows.clone();
        for _ in 0..1 + u32::from(rng.random_ratio(1, 5)) {
            match rng.random_range(0..10_u32) {
                0..4 => left.insert(&mut transaction, 1).await?,
                4..9 => left.update(&mut transaction, 1).await?,
                _ => left.delete(&mut transaction, 1).await?,
            }
        }
        if rng.random_ratio(ROLLED_BACK_PERCENT, 100) {
            transaction.roll_back().await?;
        } else {
            transaction.commit().await?;
            *rows = left;
        }
    }
}

/// Floods: as much as `rate` events a second, as long as the whale's backlog is not too long.
///
/// # Errors
/// When the database fails.
pub async fn flood(
    mut writer: Writer,
    account: i64,
    rate: u32,
    oracle: Shared,
    seed: u64,
    mut stop: Stop,
) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut rows = Rows::of(&writer, account).await?;
    let each_tick = u64::from(rate).div_ceil(10);
    while !stop.within(FLOOD_TICK).await {
        let waiting = oracle.with(|oracle, _| oracle.waiting(Class::Whale.group()));
        let n = usize::try_from(each_tick.min(WHALE_BACKLOG.saturating_sub(waiting)))?;
        if n == 0 {
            continue;
        }
        let mut transaction = writer.begin().await?;
        let mut left = rows.clone();
        match rng.random_range(0..10_u32) {
            0..6 => left.insert(&mut transaction, n).await?,
            6..9 => left.update(&mut transaction, n).await?,
            _ => left.delete(&mut transaction, n).await?,
        }
        if rng.random_ratio(ROLLED_BACK_PERCENT, 100) {
            transaction.roll_back().await?;
        } else {
            transaction.commit().await?;
            rows = left;
        }
    }
    Ok(())
}

/// Bulk transactions of thousands of rows, each with a savepoint that is rolled back.
///
/// # Errors
/// When the database fails.
pub async fn bursts(
    mut writer: Writer,
    account: i64,
    oracle: Shared,
    mut stop: Stop,
) -> Result<()> {
    while !stop.within(BURST_EVERY).await {
        if oracle.with(|oracle, _| oracle.waiting(Class::Whale.group())) > WHALE_BACKLOG {
            continue;
        }
        let mut transaction = writer.begin().await?;
        let mut rows = Rows { account, ids: VecDeque::new() };
        rows.insert(&mut transaction, BURST_ROWS).await?;
        let savepoint = transaction.savepoint().await?;
        rows.update(&mut transaction, BURST_ROWS / 4).await?;
        transaction.roll_back_to(savepoint).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// An account's rows, the longest untouched first.
#[derive(Debug, Clone)]
struct Rows {
    account: i64,
    ids: VecDeque<i64>,
}

impl Rows {
    async fn of(writer: &Writer, account: i64) -> Result<Self> {
        Ok(Self { account, ids: writer.rows_of(account).await?.into() })
    }

    async fn insert(&mut self, transaction: &mut Transaction<'_>, n: usize) -> Result<()> {
        let email = format!("subscriber@account-{}.example", self.account);
        self.ids.extend(transaction.insert(self.account, i64::try_from(n)?, &email).await?);
        Ok(())
    }

    async fn update(&mut self, transaction: &mut Transaction<'_>, n: usize) -> Result<()> {
        let ids = self.take(n);
        transaction.update(&ids).await?;
        self.ids.extend(ids);
        Ok(())
    }

    async fn delete(&mut self, transaction: &mut Transaction<'_>, n: usize) -> Result<()> {
        transaction.delete(&self.take(n)).await
    }

    fn take(&mut self, n: usize) -> Vec<i64> {
        self.ids.drain(..n.min(self.ids.len())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::{plan, schema};
    use std::collections::HashSet;
    use walhook_core::endpoint::Secret;
    use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
    use walhook_testkit::change::{Change, Kind};
    use walhook_testkit::cluster::Cluster;
    use walhook_testkit::oracle::{Oracle, Stored};
    use walhook_testkit::traffic::Traffic;

    /// The WAL itself is the witness: what a logical slot decodes is what the ledger expects.
    #[tokio::test]
    async fn writers_enter_exactly_what_the_wal_says_was_committed() {
        let cluster = Cluster::start_copied(&std::env::temp_dir(), &[]).await.unwrap();
        let url = Secret::new(cluster.url("postgres"));
        let accounts = plan::accounts();
        let endpoints = plan::endpoints(&accounts);
        let admin = Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await.unwrap();
        schema::create(&admin, &accounts, &endpoints, &vec![String::new(); endpoints.len()])
            .await
            .unwrap();
        let slot = "SELECT pg_create_logical_replication_slot('witness', 'test_decoding')";
        admin.execute(slot, &[]).await.unwrap();

        let oracle = Shared::open(Oracle::new(&plan::owed(&endpoints)));
        let writer = async || Writer::open(url.expose(), oracle.clone()).await.unwrap();
        let [small_writer, flooder, burster] = [writer().await, writer().await, writer().await];
        let mut traffic = Traffic::default();
        traffic.spawn(|stop| small(small_writer, (2..=51).collect(), 1, stop));
        traffic.spawn(|stop| flood(flooder, 1, 300, oracle.clone(), 2, stop));
        traffic.spawn(|stop| bursts(burster, 1, oracle.clone(), stop));
        while oracle.with(|oracle, _| oracle.tally(Class::Whale.group()).committed) < 3_000
            || oracle.with(|oracle, _| oracle.tally(Class::Small.group()).committed) < 100
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        traffic.stop().await.unwrap();

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
