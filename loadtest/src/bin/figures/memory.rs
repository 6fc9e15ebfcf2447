//! What walhook keeps in memory: for a delivery that waits, for an account that has nothing to do, and for an
//! endpoint that it knows.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;
use walhook_loadtest::sample::Resident;

use crate::outage::{Outage, PATIENCE, add_endpoints};
use walhook_loadtest::figure::{Better, Figure};

/// Nothing is deferred, forgotten or given up for want of room or time while it is weighed.
const ROOM: [(&str, &str); 3] = [
    ("WALHOOK_MEMORY__LIMIT", "4GiB"),
    ("WALHOOK_WAL__MAX_HOLD", "10m"),
    ("WALHOOK_DELIVERY__TIMEOUT", "10m"),
];

/// Until the allocator has given back what it does not need.
const CALM: Duration = Duration::from_secs(2);

/// This part of the accounts comes first, so that connections and their buffers are there, and is not weighed.
const WARM: u64 = 10;

/// Endpoints of each account, where there are fewer accounts.
const MANY: u64 = 10;

/// Bytes of resident memory, each.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) async fn measure(deliveries: u64, repetitions: usize) -> Result<Vec<Figure>> {
    let group = "memory";
    let mut queued = Figure::new(group, "delivery", "bytes a queued delivery", Better::Less);
    let mut account = Figure::new(group, "account", "bytes an idle account", Better::Less);
    let mut endpoint = Figure::new(group, "endpoint", "bytes a known endpoint", Better::Less);
    for _ in 0..repetitions {
        queued.value(waiting(deliveries).await? / deliveries as f64);
        let endpoints = (deliveries / 2).next_multiple_of(WARM * MANY);
        // As many endpoints each time, of many accounts and of few: what is more is the accounts'.
        let (many, few) = (endpoints, endpoints / MANY);
        let (of_many, of_few) = (known(many, 1).await?, known(few, MANY).await?);
        let part = |whole: u64| (whole - whole / WARM) as f64;
        let each = (of_many - of_few) / (part(many) - part(few));
        account.value(each);
        endpoint.value((of_many - each * part(many)) / part(endpoints));
    }
    Ok(vec![queued, account, endpoint])
}

/// What the deliveries for an endpoint take that does not answer.
async fn waiting(deliveries: u64) -> Result<f64> {
    let mut outage = Outage::start(1, &ROOM).await?;
    outage.sink.hold();
    outage.world.run().await?;
    // The one that goes on has its request made.
    outage.lay_up(1).await?;
    let before = read(&outage, 1).await?;
    outage.lay_up(deliveries).await?;
    let after = read(&outage, 1 + deliveries).await?;
    outage.world.walhook.kill().await?;
    Ok(after - before)
}

/// Resident bytes when so many changes were read, and all of them are in memory.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn read(outage: &Outage, changes: u64) -> Result<f64> {
    let all =
        async || Ok(outage.world.metrics().await?.sum("walhook_changes_total") >= changes as f64);
    outage.world.until("all is read", PATIENCE, all).await?;
    resident(outage).await
}

/// What so many accounts with so many endpoints each, less those of the warm-up, take when one event of each is
/// delivered.
async fn known(accounts: u64, each: u64) -> Result<f64> {
    let mut outage = Outage::start(0, &ROOM).await?;
    add_endpoints(&outage.world, accounts, each, &outage.sink).await?;
    outage.accounts = accounts;
    outage.world.run().await?;
    let warm = accounts / WARM;
    let mut weighed = [0.0; 2];
    for (accounts, weighed) in [warm, accounts - warm].into_iter().zip(&mut weighed) {
        outage.lay_up(accounts).await?;
        outage.sink.until(outage.rows * each).await?;
        outage.world.settled(PATIENCE).await?;
        *weighed = resident(&outage).await?;
    }
    outage.world.walhook.stop().await?;
    let [before, after] = weighed;
    Ok(after - before)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn resident(outage: &Outage) -> Result<f64> {
    sleep(CALM).await;
    Ok(Resident::of(outage.world.walhook.pid())?.now as f64)
}
