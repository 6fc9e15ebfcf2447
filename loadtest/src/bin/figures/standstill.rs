//! How long accounts stand still while another one's burst is delivered, on a machine that has other things
//! to do.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::bare::{Own, say};
use crate::latency::{ACCOUNTS, RATE, Side};
use walhook_loadtest::figure::{Better, Figure};
use walhook_loadtest::sample::Spread as Latencies;
use walhook_loadtest::traffic;

/// For the burst to be delivered, and stored.
const PATIENCE: Duration = Duration::from_secs(300);

/// Before and behind the burst.
const AROUND: Duration = Duration::from_secs(1);

/// Processes that do nothing but compute.
const BUSY: usize = 2;

/// Who bursts.
const WHALE: i64 = ACCOUNTS + 1;

/// Of each burst, the longest time that a delivery of any other account took from its commit: while one of them
/// waits, its account stands still. In it is the time in which PostgreSQL sends the burst's transaction.
pub(crate) async fn measure(deliveries: u64, bursts: usize) -> Result<Vec<Figure>> {
    let what = "s that a healthy account stood still at most";
    let mut longest = Figure::new("standstill", "seconds", what, Better::Less);
    let mut p99 = Figure::new("standstill", "p99", "ms from commit to arrival, p99", Better::Less);
    let mut side = Side::start().await?;
    side.world.add_account(WHALE, &format!("{}whale", side.sink.url(0))).await?;
    side.world.run().await?;
    let accounts: Vec<i64> = (1..=ACCOUNTS).collect();
    for _ in 0..bursts {
        let _busy: Vec<Own> =
            (0..BUSY).map(|_| Own::start(&["busy".to_owned()], &[])).collect::<Result<_>>()?;
        let traffic = traffic::start(&side.world, &side.books, &accounts, RATE).await?;
        sleep(AROUND).await;
        side.sink.reset();
        let from = side.books.now();
        let insert = format!(
            "INSERT INTO subscribers (account_id, email)
             SELECT {WHALE}, 'someone@example.com' FROM generate_series(1, {deliveries})"
        );
        side.world.sql.batch_execute(&insert).await?;
        side.sink.until(deliveries).await?;
        sleep(AROUND).await;
        traffic.stop().await?;
        let to = side.books.now();
        side.world.settled(PATIENCE).await?;
        let all = async || Ok(side.books.delivered() >= side.books.committed());
        side.world.until("all that was committed arrives", PATIENCE, all).await?;
        let latencies = Latencies::of_micros(side.books.latencies(1..=ACCOUNTS, from, to));
        longest.value(latencies.max / 1_000.0);
        p99.value(latencies.p99);
    }
    side.world.walhook.stop().await?;
    Ok(vec![longest, p99])
}

/// The process that computes, until its standard input ends.
pub(crate) async fn busy() -> Result<()> {
    std::thread::spawn(|| {
        loop {
            std::hint::black_box((0..1_000_000_u64).sum::<u64>());
        }
    });
    say("busy").await
}
