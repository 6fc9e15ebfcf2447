//! What a replay would send, counted by reading the range here.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::server::range::Range;
use walhook_core::endpoint::Routes;
use walhook_core::event::{AccountId, Item};
use walhook_core::replay::ReplayRange;
use walhook_postgres::lookup::{self, Lookups};
use walhook_postgres::sql::Connection;

/// Batches on their way.
const BATCHES: usize = 8;

/// Accounts whose events are counted together before their endpoints are looked up.
const ACCOUNTS_AT_ONCE: usize = 500;

/// What a replay would send.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CountsView {
    /// Events that the filter admits, whether or not anyone wants them.
    pub(crate) events: u64,
    /// Deliveries to the endpoints of now.
    pub(crate) deliveries: u64,
    /// Deliveries by event type.
    pub(crate) by_type: BTreeMap<String, u64>,
    /// Changes that could not be turned into an event; they are not sent again.
    pub(crate) unroutable: u64,
    /// Bytes of WAL behind the range that are not counted, for the checkpoint has not passed them; 0 where the range
    /// ends before the checkpoint.
    pub(crate) left_out_bytes: u64,
}

/// Reads the range, which leaves out so many bytes of WAL, and counts. Sends nothing.
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
                Item::Unroutable(_) => counts.unroutable += 1,
                Item::Event(_)
                | Item::Begin { .. }
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
    Ok(counts)
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
