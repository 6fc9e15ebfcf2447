//! One of four endpoints is dead for a quarter of an hour at 200 events a second, and comes back.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::latency::{ACCOUNTS, Side};
use crate::sink::Sink;
use walhook_loadtest::figure::{Better, Figure};
use walhook_loadtest::sample::Spread as Latencies;
use walhook_loadtest::traffic;

/// How long it is dead, at full size.
pub(crate) const DEAD: Duration = Duration::from_secs(900);

/// Events a second of the account with the four endpoints.
const RATE: u32 = 200;

/// Commits a second of the others.
const BESIDE: f64 = 50.0;

/// The account with the four endpoints.
const FOUR: i64 = ACCOUNTS + 1;

/// Before it dies.
const CALM: Duration = Duration::from_secs(10);

/// Looks at the slot.
const LOOK_EVERY: u32 = RATE / 2;

/// For what was left to be delivered.
const PATIENCE: Duration = Duration::from_secs(600);

/// The largest WAL that our slots kept.
const SLOT_WAL: &str =
    "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)), 0)::bigint
    FROM pg_replication_slots";

/// Each repetition is a server of its own.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn measure(dead: Duration, repetitions: usize) -> Result<Vec<Figure>> {
    let group = "catch_up";
    let mut seconds = Figure::new(group, "seconds", "s from its return to the last", Better::Less);
    let mut wal =
        Figure::new(group, "slot_wal", "MB of WAL that the slot kept at most", Better::Less);
    let mut p99 = Figure::new(group, "p99", "ms that the others' p99 grew by", Better::Less);
    for _ in 0..repetitions {
        let mut case = Case::start().await?;
        let accounts: Vec<i64> = (1..=ACCOUNTS).collect();
        let traffic = traffic::start(&case.side.world, &case.side.books, &accounts, BESIDE).await?;
        let from = case.side.books.now();
        case.write(CALM).await?;
        let before = case.side.books.now();
        case.dead.fail(true);
        let had = case.dead.requests();
        let kept = case.write(dead).await?;
        case.dead.reset();
        let (owed, began) = (case.written - had, Instant::now());
        case.dead.fail(false);
        case.dead.until(owed).await.with_context(|| case.side.world.walhook.log_tail())?;
        seconds.value(began.elapsed().as_secs_f64());
        wal.value(kept as f64 / 1e6);
        let after = case.side.books.now();
        traffic.stop().await?;
        case.side.world.settled(PATIENCE).await?;
        let of =
            |from, to| Latencies::of_micros(case.side.books.latencies(1..=ACCOUNTS, from, to)).p99;
        p99.value(of(before, after) - of(from, before));
        case.side.world.walhook.stop().await?;
    }
    Ok(vec![seconds, wal, p99])
}

/// Accounts with an endpoint each, and one with four, of which one dies.
struct Case {
    side: Side,
    dead: Sink,
    /// Events of the account with four.
    written: u64,
}

impl Case {
    async fn start() -> Result<Self> {
        let mut side = Side::configured(&[("WALHOOK_SOURCE__REPLAY_WINDOW", "0")]).await?;
        let dead = Sink::start(None).await?;
        let others = format!("{}four", side.sink.url(0));
        side.world.add_account(FOUR, &dead.url(0)).await?;
        let insert = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                      SELECT $1::bigint + n, $1, $2, '{subscriber.*}', 'load' FROM generate_series(1, 3) n";
        side.world.sql.execute(insert, &[&FOUR, &others]).await?;
        side.world.run().await?;
        Ok(Self { side, dead, written: 0 })
    }

    /// Writes for so long; the most WAL that the slot kept meanwhile.
    async fn write(&mut self, time: Duration) -> Result<u64> {
        let insert = format!(
            "INSERT INTO subscribers (account_id, email) VALUES ({FOUR}, 'someone@example.com')"
        );
        let mut due = interval(Duration::from_secs(1) / RATE);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut kept = 0;
        for n in 0..(time * RATE).as_secs() {
            due.tick().await;
            self.side.world.sql.batch_execute(&insert).await?;
            self.written += 1;
            if n % u64::from(LOOK_EVERY) == 0 {
                kept = kept.max(self.side.world.number(SLOT_WAL).await?);
            }
        }
        Ok(kept)
    }
}
