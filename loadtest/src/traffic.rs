//! Writers that commit at a steady rate.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;
use walhook_testkit::traffic::{Stop, Traffic, Writer};

use crate::books::Books;
use crate::world::World;

/// Sessions that write at once: one alone would wait for its own slow commits.
const SESSIONS: u32 = 4;

/// Commits until [`Traffic::stop`], each of one row, of the accounts in turn: inserts, and every second
/// time an update of the row that the session inserted last for the account.
///
/// # Errors
/// When the server takes no further session.
pub async fn start(
    world: &World,
    books: &Books,
    accounts: &[i64],
    per_second: f64,
) -> Result<Traffic> {
    let mut traffic = Traffic::default();
    let every = Duration::from_secs_f64(f64::from(SESSIONS) / per_second);
    for n in 0..SESSIONS {
        // Each account belongs to one session, so that a row's versions grow in its commits.
        let its = accounts.iter().copied().skip(n as usize).step_by(SESSIONS as usize);
        let its: Vec<i64> = its.collect();
        let writer = world.writer(books).await?;
        let first = Instant::now() + every / SESSIONS * n;
        traffic.spawn(|stop| write(writer, its, first, every, stop));
    }
    Ok(traffic)
}

async fn write(
    writer: Writer,
    accounts: Vec<i64>,
    first: Instant,
    every: Duration,
    mut stop: Stop,
) -> Result<()> {
    // The row of each account that is to be updated next.
    let mut last = HashMap::new();
    let mut due = first;
    for account in accounts.iter().cycle() {
        if stop.within(due.saturating_duration_since(Instant::now())).await {
            break;
        }
        due += every;
        if let Some(id) = last.remove(account) {
            writer.update(&[id]).await?;
        } else if let [id] = writer.insert(*account, 1, "someone@example.com").await?[..] {
            last.insert(*account, id);
        }
    }
    Ok(())
}
