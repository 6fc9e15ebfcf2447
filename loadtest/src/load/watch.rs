//! Looks at walhook, PostgreSQL and the machine twice a second, and slows the disturbance where it takes too much.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use walhook_postgres::sql::Connection;
use walhook_testkit::admin::{get, without_pipeline};

use super::stage::Stage;
use crate::books::Books;
use crate::cpu::{cpu_seconds, idle_seconds, server_cpu_seconds};
use crate::sample::{Metrics, Resident};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);

/// Of all cores, what walhook, PostgreSQL and this program may take of them before the disturbance writes more
/// slowly, and below which it writes faster again. What is above is free, unless others use the machine too.
const TOO_MUCH: f64 = 0.88;
const LITTLE: f64 = 0.80;

/// The whole of a pace.
const FULL: u32 = 1_000;

/// The share of its own rate at which a disturbance may write.
#[derive(Debug)]
pub(super) struct Pace(AtomicU32);

impl Default for Pace {
    fn default() -> Self {
        Self(AtomicU32::new(FULL))
    }
}

impl Pace {
    /// How long to wait where it would be so long at the full rate.
    #[must_use]
    pub(super) fn stretched(&self, gap: Duration) -> Duration {
        gap * FULL / self.0.load(Ordering::Relaxed).max(1)
    }

    /// From 0 to 1.
    #[must_use]
    pub(super) fn share(&self) -> f64 {
        f64::from(self.0.load(Ordering::Relaxed)) / f64::from(FULL)
    }

    fn adjust(&self, used: f64) {
        let now = self.0.load(Ordering::Relaxed);
        let next = if used > TOO_MUCH {
            (now * 7 / 10).max(FULL / 50)
        } else if used < LITTLE {
            (now * 12 / 10 + 1).min(FULL)
        } else {
            now
        };
        self.0.store(next, Ordering::Relaxed);
    }
}

/// How things stand at one moment. CPU is in cores, since the last look.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sample {
    /// Since the books were opened, in seconds.
    pub seconds: f64,
    /// Of walhook.
    pub walhook_cpu: f64,
    /// Of PostgreSQL, its sessions included.
    pub server_cpu: f64,
    /// Of this program: writers, receivers, goose.
    pub own_cpu: f64,
    /// What of the machine nobody used, from 0 to 1.
    pub free: f64,
    /// The share of its rate at which the disturbance wrote.
    pub pace: f64,
    /// Of walhook, in bytes.
    pub resident: u64,
    /// That the slot makes the server keep, in bytes.
    pub wal_bytes: u64,
    /// Requests in flight, by pool.
    pub fast: f64,
    /// Likewise.
    pub slow: f64,
    /// Accounts that wait for nothing but a slot.
    pub ready: f64,
    /// Deliveries in the state tables.
    pub deferred: f64,
    /// Deliveries to small accounts so far.
    pub small: u64,
    /// Deliveries to those of the disturbance so far, a replay's among them.
    pub others: u64,
    /// Of the disturbance: committed, and not delivered.
    pub waiting: u64,
}

/// What it takes to look.
#[derive(Debug)]
pub(super) struct Watcher {
    admin: SocketAddr,
    data: PathBuf,
    sql: Connection,
    pid: Arc<AtomicU32>,
    pace: Arc<Pace>,
    books: [Arc<Books>; 2],
}

/// CPU seconds that were used so far, and when.
struct Used {
    at: Instant,
    /// And whose walhook's are: it may be another process the next time.
    walhook: (u32, f64),
    server: f64,
    own: f64,
    idle: f64,
}

impl Watcher {
    pub(super) async fn of(stage: &Stage) -> Result<Self> {
        let search_path = walhook_postgres::sql::SERVER_SEARCH_PATH;
        Ok(Self {
            admin: stage.world.walhook.admin,
            data: stage.world.cluster.data(),
            sql: Connection::open_with_path(&stage.url(), "watch", search_path).await?,
            pid: Arc::clone(&stage.pid),
            pace: Arc::clone(&stage.pace),
            books: [Arc::clone(&stage.small), Arc::clone(&stage.others)],
        })
    }

    /// Looks until it is told to stop.
    pub(super) async fn watch(self, mut stop: watch::Receiver<bool>) -> Result<Vec<Sample>> {
        let cores = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
        let mut samples: Vec<Sample> = Vec::new();
        let mut used = self.used()?;
        loop {
            tokio::select! {
                _ = stop.changed() => return Ok(samples),
                () = sleep(EVERY) => {}
            }
            let now = self.used()?;
            let seconds = (now.at - used.at).as_secs_f64();
            let per = |now: f64, before: f64| (now - before).max(0.0) / seconds;
            // A process that has just begun is measured from its begin.
            let before = if now.walhook.0 == used.walhook.0 { used.walhook.1 } else { 0.0 };
            let mut sample = Sample {
                walhook_cpu: per(now.walhook.1, before),
                server_cpu: per(now.server, used.server),
                own_cpu: per(now.own, used.own),
                free: per(now.idle, used.idle) / cores,
                pace: self.pace.share(),
                ..Sample::default()
            };
            self.pace.adjust((sample.walhook_cpu + sample.server_cpu + sample.own_cpu) / cores);
            self.look(&mut sample).await?;
            samples.push(sample);
            used = now;
        }
    }

    fn used(&self) -> Result<Used> {
        let pid = self.pid.load(Ordering::Relaxed);
        // It may end at any moment.
        let walhook = if pid == 0 { 0.0 } else { cpu_seconds(pid).unwrap_or_default() };
        Ok(Used {
            at: Instant::now(),
            walhook: (pid, walhook),
            server: server_cpu_seconds(&self.data)?,
            own: cpu_seconds(std::process::id())?,
            idle: idle_seconds()?,
        })
    }

    async fn look(&self, sample: &mut Sample) -> Result<()> {
        let query =
            "SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn), 0)::bigint
                     FROM pg_replication_slots WHERE slot_name = 'walhook'";
        let row = self.sql.query_one(query, &[]).await.context("the slot's WAL")?;
        sample.wal_bytes = u64::try_from(row.get::<_, i64>(0))?;
        let pid = self.pid.load(Ordering::Relaxed);
        if pid != 0
            && let Ok((_, text)) = get(self.admin, "/metrics").await
        {
            let metrics = Metrics::parse(&without_pipeline(&text));
            sample.resident = Resident::of(Some(pid)).map_or(0, |resident| resident.now);
            sample.fast = metrics.get("walhook_in_flight{pool=\"fast\"}");
            sample.slow = metrics.get("walhook_in_flight{pool=\"slow\"}");
            sample.ready = metrics.get("walhook_lanes{state=\"ready\"}");
            sample.deferred = metrics.get("walhook_deferred");
        }
        let [small, others] = &self.books;
        (sample.small, sample.others) = (small.delivered(), others.delivered() + others.replayed());
        sample.waiting = others.shared().with(|oracle, _| oracle.waiting_in_all());
        sample.seconds = small.now().as_secs_f64();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_falls_while_too_much_is_used_and_recovers() {
        let pace = Pace::default();
        assert_eq!(pace.stretched(Duration::from_millis(10)), Duration::from_millis(10));
        pace.adjust(1.0);
        assert_eq!(pace.share(), 0.7);
        assert_eq!(pace.stretched(Duration::from_millis(7)), Duration::from_millis(10));
        pace.adjust(0.85);
        assert_eq!(pace.share(), 0.7);
        for _ in 0..100 {
            pace.adjust(1.0);
        }
        assert!(pace.share() > 0.0);
        for _ in 0..100 {
            pace.adjust(0.0);
        }
        assert_eq!(pace.share(), 1.0);
    }
}
