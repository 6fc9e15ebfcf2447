//! Holds the delivery log against what endpoints took.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use walhook_core::delivery_log::What;
use walhook_core::endpoint::Secret;
use walhook_state::{DeliveryFilter, StateStore};

use super::World;
use super::audit::{Demand, Endpoint};

/// More lines than any test makes.
const LINES_MAX: usize = 1_000_000;

/// An endpoint and an event.
type Delivery = (i64, String);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct LogAudit {
    /// Lines.
    pub(crate) lines: usize,
    /// Deliveries that endpoints took.
    pub(crate) taken: usize,
    /// Of those that must stand in the log, they do not: lines that were left out.
    pub(crate) missing: usize,
}

/// Lines of the delivery log that a process has left out, as its metrics say.
pub(crate) fn left_out(metrics: &str) -> Option<u64> {
    let mut lines =
        metrics.lines().filter(|line| line.starts_with("walhook_delivery_log_entries_total{"));
    let line = lines.find(|line| line.contains("result=\"dropped\""))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Checks, when all is settled, that the log tells of each delivery that was taken, but for `left_out` lines at most,
/// and of none more often than it was taken.
///
/// Of an endpoint that was switched off for a while only the latter: what it took just before may be forgotten by a
/// crash, and is not sent again.
///
/// # Errors
/// Names what does not hold.
pub(crate) async fn audit_log(
    world: &World,
    endpoints: &[Endpoint],
    left_out: u64,
) -> Result<LogAudit> {
    // What is deferred and may fail is still sent meanwhile: what was taken before must be told, and what is told must
    // have been taken until then.
    let before = taken(world)?;
    let url = Secret::new(world.cluster.url("postgres"));
    let store = StateStore::open(&url, "walhook", "walhook").await?;
    let page = store.deliveries(&DeliveryFilter::default(), LINES_MAX, None).await?;
    ensure!(page.next.is_none(), "more than {LINES_MAX} lines");
    // How often each was told as delivered; one that was only told of otherwise: never.
    let mut told: BTreeMap<Delivery, usize> = BTreeMap::new();
    for line in &page.entries {
        let Some(endpoint) = line.endpoint() else { continue };
        let delivered = told.entry((endpoint.parse()?, line.event.to_string())).or_default();
        *delivered += usize::from(line.what == What::Delivered);
    }
    let until_then = taken(world)?;
    let invented: Vec<_> = told
        .iter()
        .filter(|(delivery, times)| {
            **times > until_then.get(*delivery).copied().unwrap_or_default()
        })
        .take(10)
        .collect();
    ensure!(invented.is_empty(), "the log tells of what no endpoint took: {invented:?}");
    let demand_of: BTreeMap<i64, Demand> = endpoints.iter().map(|e| (e.id, e.demand)).collect();
    let is_missing = |delivery: &&Delivery| match demand_of.get(&delivery.0) {
        // It was taken, and so it arrived in the end, or stands in a table.
        Some(Demand::Delivered) => told.get(*delivery).is_none_or(|times| *times == 0),
        Some(Demand::Ended) => !told.contains_key(*delivery),
        Some(Demand::Nothing) | None => false,
    };
    let missing: Vec<_> = before.keys().filter(is_missing).collect();
    ensure!(
        u64::try_from(missing.len())? <= left_out,
        "{left_out} lines were left out, and the log tells nothing of {} deliveries that were taken: {:?}",
        missing.len(),
        missing.iter().take(10).collect::<Vec<_>>()
    );
    Ok(LogAudit { lines: page.entries.len(), taken: before.len(), missing: missing.len() })
}

/// How often each delivery was taken so far.
fn taken(world: &World) -> Result<BTreeMap<Delivery, usize>> {
    let mut taken: BTreeMap<Delivery, usize> = BTreeMap::new();
    for request in world.mock.received().into_iter().filter(|request| request.is_taken()) {
        let endpoint = request.path.trim_start_matches('/').parse()?;
        *taken.entry((endpoint, request.id)).or_default() += 1;
    }
    Ok(taken)
}
