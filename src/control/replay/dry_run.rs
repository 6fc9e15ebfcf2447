//! What a replay would send, counted by reading the range here.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::Config;
use crate::server::range::Range;
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::replay::ReplayRange;
use walhook_postgres::lookup::{self, Lookups};
use walhook_postgres::sql::Connection;

/// Batches on their way.
const BATCHES: usize = 8;

/// What was committed behind the range is looked through where it is no more WAL than this: it mostly is of the last
/// seconds.
const LEFT_OUT_READ_MAX: u64 = 16 << 20;

/// And in this time.
const LEFT_OUT_PATIENCE: Duration = Duration::from_secs(10);

/// Accounts whose events are counted together before their endpoints are looked up.
const ACCOUNTS_AT_ONCE: usize = 500;

/// What a replay would send.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CountsView {
    /// Events that the filter admits, whether or not anyone wants them.
    pub(crate) events: u64,
    /// Events that it does not admit: of other accounts or types.
    pub(crate) other_events: u64,
    /// Deliveries to the endpoints of now.
    pub(crate) deliveries: u64,
    /// Deliveries by event type.
    pub(crate) by_type: BTreeMap<String, u64>,
    /// Changes that could not be turned into an event; they are not sent again.
    pub(crate) unroutable: u64,
    /// Bytes of WAL behind the range that are not counted, for the checkpoint has not passed them; 0 where the range
    /// ends before the checkpoint.
    pub(crate) left_out_bytes: u64,
    /// Events that the filter admits in that; null where that was not looked at, as where `events` is not 0.
    pub(crate) left_out_events: Option<u64>,
}

/// Reads the range, which leaves out so many bytes of WAL, and counts; where nothing is found, those too. Sends nothing.
///
/// # Errors
/// When the range cannot be read, or endpoints not looked up.
pub(crate) async fn count(
    config: &Config,
    range: &ReplayRange,
    left_out_bytes: u64,
) -> anyhow::Result<CountsView> {
    let purpose = format!("dry_run_{}", std::process::id());
    let reader = Range::open(config, range.from, range.to, range.from_oldest, &purpose).await?;
    let client = lookup::connect(config.lookups(), "walhook replay").await?;
    let lookups = Lookups::of(config.lookups());
    let (out, mut batches) = mpsc::channel(BATCHES);
    let mut task = JoinSet::new();
    task.spawn(reader.read(out));
    let mut counts = CountsView { left_out_bytes, ..CountsView::default() };
    let mut pending: HashMap<AccountId, BTreeMap<String, u64>> = HashMap::new();
    while let Some(batch) = batches.recv().await {
        for item in batch.items {
            match item {
                Item::Event(event) if range.filter.admits(&event) => {
                    counts.events += 1;
                    let types = pending.entry(event.account.clone()).or_default();
                    *types.entry(event.event_type.to_string()).or_default() += 1;
                }
                Item::Event(_) => counts.other_events += 1,
                Item::Unroutable(_) => counts.unroutable += 1,
                Item::Begin { .. }
                | Item::Invalidate(_)
                | Item::Commit { .. }
                | Item::Pause
                | Item::Resume { .. }
                | Item::Progress { .. } => {}
            }
        }
        if pending.len() >= ACCOUNTS_AT_ONCE {
            route(&client, &lookups, range, &mut pending, &mut counts).await?;
        }
    }
    route(&client, &lookups, range, &mut pending, &mut counts).await?;
    task.join_next().await.context("the reader is gone")?.context("the reader panicked")??;
    if counts.events == 0 {
        counts.left_out_events = look_behind(config, range, left_out_bytes).await;
    }
    Ok(counts)
}

/// How many events that the filter admits lie in so many bytes of WAL behind the range; `None` where there are none, or
/// too many, or they cannot be read now: what was asked for is counted all the same.
async fn look_behind(config: &Config, range: &ReplayRange, bytes: u64) -> Option<u64> {
    if bytes == 0 || bytes > LEFT_OUT_READ_MAX {
        return None;
    }
    let purpose = format!("dry_rest_{}", std::process::id());
    let end = Lsn(range.to.0.saturating_add(bytes));
    let counted = async {
        let reader = Range::open(config, range.to, end, false, &purpose).await.ok()?;
        let (out, mut batches) = mpsc::channel(BATCHES);
        let mut task = JoinSet::new();
        task.spawn(reader.read(out));
        let mut events = 0;
        while let Some(batch) = batches.recv().await {
            let admits =
                |item: &&Item| matches!(item, Item::Event(event) if range.filter.admits(event));
            events += batch.items.iter().filter(admits).count() as u64;
        }
        task.join_next().await?.ok()?.ok().map(|()| events)
    };
    timeout(LEFT_OUT_PATIENCE, counted).await.ok().flatten()
}

/// Counts the deliveries of what is pending.
async fn route(
    client: &Connection,
    lookups: &Lookups,
    range: &ReplayRange,
    pending: &mut HashMap<AccountId, BTreeMap<String, u64>>,
    counts: &mut CountsView,
) -> anyhow::Result<()> {
    let accounts: Vec<AccountId> = pending.keys().cloned().collect();
    for some in accounts.chunks(ACCOUNTS_AT_ONCE) {
        for (account, routes) in lookups.fetch_all(client, some).await? {
            for (event_type, events) in pending.remove(&account).unwrap_or_default() {
                let deliveries = events * takers(&routes, &event_type, range);
                counts.deliveries += deliveries;
                *counts.by_type.entry(event_type).or_default() += deliveries;
            }
        }
    }
    Ok(())
}

fn takers(routes: &Routes, event_type: &str, range: &ReplayRange) -> u64 {
    let takes = |endpoint: &&std::sync::Arc<walhook_core::endpoint::Endpoint>| {
        endpoint.enabled && endpoint.wants(event_type) && range.filter.admits_endpoint(&endpoint.id)
    };
    routes.endpoints.iter().filter(takes).count() as u64
}
