//! Who writes beside the users: the background of small accounts, and what disturbances have in common.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, sleep_until};
use walhook_testkit::traffic::{Stop, Traffic, Writer};

use super::watch::Pace;

/// Rows of one transaction of a whale.
const TRANSACTION: i64 = 100;

const EMAIL: &str = "someone@example.com";

/// Steady commits of one row each, by these accounts in turn.
#[derive(Debug, Clone)]
pub(super) struct Steady {
    pub(super) accounts: RangeInclusive<i64>,
    pub(super) per_second: f64,
    /// Rows of one transaction, each of another account.
    pub(super) at_once: usize,
}

impl Steady {
    /// Begins to write, at the pace where there is one.
    pub(super) fn start(self, writer: Arc<Writer>, pace: Option<Arc<Pace>>, traffic: &mut Traffic) {
        traffic.spawn(|stop| self.write(writer, pace, stop));
    }

    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    async fn write(
        self,
        writer: Arc<Writer>,
        pace: Option<Arc<Pace>>,
        mut stop: Stop,
    ) -> Result<()> {
        let gap = Duration::from_secs_f64(self.at_once as f64 / self.per_second);
        let mut due = Instant::now();
        let mut accounts = self.accounts.cycle();
        loop {
            if stop.within(due.saturating_duration_since(Instant::now())).await {
                return Ok(());
            }
            due += pace.as_ref().map_or(gap, |pace| pace.stretched(gap));
            if self.at_once == 1 {
                let account = accounts.next().unwrap_or_default();
                writer.change(account, None, EMAIL).await?;
            } else {
                let some: Vec<i64> = accounts.by_ref().take(self.at_once).collect();
                writer.insert_each(&some, EMAIL).await?;
            }
        }
    }
}

/// Statements a second of a transaction that is written a part at a time.
const STATEMENTS: u32 = 10;

/// When the next statement of large transactions is due.
#[derive(Debug)]
pub(super) struct Beat {
    /// Of one statement.
    pub(super) rows: i64,
    due: Instant,
    pace: Arc<Pace>,
}

impl Beat {
    /// For so many rows a second.
    pub(super) fn of(per_second: i64, pace: Arc<Pace>) -> Self {
        let rows = (per_second / i64::from(STATEMENTS)).max(1);
        Self { rows, due: Instant::now(), pace }
    }

    /// Waits for it. What was late is not caught up.
    pub(super) async fn next(&mut self) {
        sleep_until(self.due).await;
        self.due =
            self.due.max(Instant::now()) + self.pace.stretched(Duration::from_secs(1) / STATEMENTS);
    }
}

/// Rows of one account: each is inserted, and then updated so often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub(super) account: i64,
    pub(super) rows: i64,
    pub(super) updates: u32,
    /// Changes; none: as fast as it goes, whatever the machine has left.
    pub(super) per_second: Option<f64>,
    /// Rows of one transaction at most.
    pub(super) at_once: i64,
    /// Before the first one.
    pub(super) after: Duration,
}

impl Rows {
    pub(super) fn of(account: i64, rows: i64, per_second: f64) -> Self {
        Self {
            account,
            rows,
            updates: 0,
            per_second: Some(per_second),
            at_once: TRANSACTION,
            after: Duration::ZERO,
        }
    }

    /// Begins to write all of it, or until it is told to stop.
    pub(super) fn start(self, writer: Writer, pace: Arc<Pace>, traffic: &mut Traffic) {
        traffic.spawn(|mut stop| async move { self.write(&writer, &pace, Some(&mut stop)).await });
    }

    /// Writes all of it, or until it is told to stop.
    #[expect(clippy::cast_precision_loss, reason = "some rows")]
    pub(super) async fn write(
        self,
        writer: &Writer,
        pace: &Pace,
        mut stop: Option<&mut Stop>,
    ) -> Result<()> {
        let mut due = Instant::now() + self.after;
        let mut turn = async |rows: i64| {
            let wait = due.saturating_duration_since(Instant::now());
            let stopped = match &mut stop {
                Some(stop) => stop.within(wait).await,
                None => {
                    tokio::time::sleep(wait).await;
                    false
                }
            };
            if let Some(per_second) = self.per_second {
                // What was late is not caught up.
                due = due.max(Instant::now())
                    + pace.stretched(Duration::from_secs_f64(rows as f64 / per_second));
            }
            stopped
        };
        let mut ids = Vec::new();
        while (ids.len() as i64) < self.rows {
            let rows = self.at_once.min(self.rows - ids.len() as i64);
            if turn(rows).await {
                return Ok(());
            }
            ids.extend(writer.insert(self.account, rows, EMAIL).await?);
        }
        for _ in 0..self.updates {
            for part in ids.chunks(usize::try_from(self.at_once)?) {
                if turn(part.len() as i64).await {
                    return Ok(());
                }
                writer.update(part).await?;
            }
        }
        Ok(())
    }
}
