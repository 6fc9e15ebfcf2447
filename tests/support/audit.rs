//! Compares what was committed with what endpoints received and what the tables of state hold.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use walhook_testkit::change::Change;
use walhook_testkit::oracle::{self, Faults, Oracle, Receipt, Stored};
use walhook_testkit::receiver::Received;
use walhook_testkit::stored;

use super::World;

/// What the auditor may demand of an endpoint's deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// All delivered.
    Delivered,
    /// All delivered, deferred or dead letters.
    Ended,
    /// Nothing but what was committed, in order: it was switched off for a while.
    Nothing,
}

/// A registered endpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Endpoint {
    pub(crate) id: i64,
    pub(crate) account: i64,
    pub(crate) demand: Demand,
    /// It was registered when every version above this one was drawn.
    pub(crate) since: i64,
}

/// When one life of the program ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// Requests that the receiver had answered.
    pub(crate) received: u64,
    /// Microseconds since 1970.
    pub(crate) at_unix_us: i64,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Deliveries that were taken again in a later life, by the life whose end made that necessary.
    pub(crate) repeated: Vec<u64>,
    /// How long before that end, in milliseconds, the oldest of them had been taken.
    pub(crate) unstored_ms: Vec<i64>,
    /// Deliveries that were taken again in the same life.
    pub(crate) repeated_within: u64,
    pub(crate) committed: u64,
    pub(crate) delivered: u64,
    pub(crate) deferred: usize,
    pub(crate) dead: usize,
    /// Open records of ranges that were not delivered.
    pub(crate) gaps: usize,
    pub(crate) received: usize,
    /// Changes of which nobody knows whether they were committed.
    pub(crate) doubtful: u64,
    /// Committed and owed, and neither delivered nor stored.
    pub(crate) lost: usize,
    pub(crate) faults: Faults,
    /// Signatures, and rows that are stored twice or without endpoint.
    pub(crate) others: usize,
}

/// Waits until everything is settled, and nothing is deferred that the auditor demands as delivered.
pub(crate) async fn settled(world: &World, endpoints: &[Endpoint]) -> Result<()> {
    world.settled().await?;
    let demanded = endpoints.iter().filter(|e| e.demand == Demand::Delivered);
    let ids: Vec<String> = demanded.map(|e| format!("'{}'", e.id)).collect();
    let sql = format!(
        "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint IN ('', {})",
        ids.join(", ")
    );
    world.until(&sql, "0").await
}

/// Checks everything that must hold at the end, when all is settled: nothing lost, nothing invented,
/// ids and bodies stable, first deliveries in order by row and endpoint.
///
/// `lives`: how each life of the program ended but for the last.
///
/// # Errors
/// Names what does not hold.
pub(crate) async fn audit(
    world: &World,
    mut oracle: Oracle,
    endpoints: &[Endpoint],
    lives: &[End],
) -> Result<Audit> {
    for &Endpoint { id, account, demand, since } in endpoints {
        let since = if demand == Demand::Nothing { i64::MAX } else { since };
        oracle.add_endpoint(oracle::Endpoint { since, ..oracle::Endpoint::new(id, account) });
    }
    // What is deferred is still sent while the auditor looks, and then stands in no table any more.
    let mut others = stored(world, &mut oracle).await?;
    let stats = world.mock.stats();
    let received = world.mock.received();
    ensure!(stats.received <= u64::try_from(received.len())?, "the receiver forgot requests");
    let mut audit = Audit {
        repeated: vec![0; lives.len()],
        unstored_ms: vec![0; lives.len()],
        received: received.len(),
        ..Audit::default()
    };
    // When each delivery was taken last, and in which life.
    let mut taken: HashMap<(i64, Change), (i64, usize)> = HashMap::new();
    for (at, request) in received.iter().enumerate() {
        let endpoint = request.path.get(1..).and_then(|id| id.parse().ok());
        let (Some(endpoint), Ok(change)) = (endpoint, Change::in_body(&request.body)) else {
            others.push(format!("a request that is no event: {}", request.path));
            continue;
        };
        if !request.verified || request.json()["id"].as_str() != Some(&request.id) {
            others.push(format!("{}: wrong signature or id in the body", request.id));
        }
        let Received { id: event_id, body, .. } = request;
        let is_taken = request.is_taken();
        let receipt = Receipt { endpoint, event_id, change, body, taken: is_taken, replay: false };
        oracle.received(receipt, Duration::ZERO);
        if !is_taken {
            continue;
        }
        let at = u64::try_from(at)?;
        let this = lives.iter().filter(|end| at >= end.received).count();
        match taken.insert((endpoint, change), (request.at_unix_us, this)) {
            None => {}
            Some((_, life)) if life == this => audit.repeated_within += 1,
            Some((before_us, life)) => {
                audit.repeated[life] += 1;
                let unstored_ms = (lives[life].at_unix_us - before_us) / 1_000;
                audit.unstored_ms[life] = audit.unstored_ms[life].max(unstored_ms);
            }
        }
    }
    let demand_of: HashMap<i64, Demand> = endpoints.iter().map(|e| (e.id, e.demand)).collect();
    for (endpoint, change, stored) in oracle.undelivered() {
        if stored.is_none() || demand_of[&endpoint] != Demand::Ended {
            audit.lost += 1;
            others.push(format!("lost: {change:?} for {endpoint}, stored: {stored:?}"));
        }
    }
    audit.others = others.len() - audit.lost;
    (audit.faults, audit.delivered) = (oracle.faults(), oracle.delivered());
    [audit.committed, audit.doubtful, _] = oracle.changes();
    (audit.deferred, audit.dead) =
        (oracle.in_table(Stored::Deferred), oracle.in_table(Stored::DeadLetter));
    let gaps = world.value("SELECT count(*) FROM walhook.gaps WHERE closed_at IS NULL").await?;
    audit.gaps = gaps.parse()?;
    let mut shown = oracle.examples();
    shown.extend(others.iter().take(10).cloned());
    ensure!(others.is_empty() && audit.faults.is_empty(), "{audit:?}:\n{}", shown.join("\n"));
    Ok(audit)
}

/// Enters what the tables of state hold: each delivery at most once. Returns what is wrong with them.
async fn stored(world: &World, oracle: &mut Oracle) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for delivery in stored::deliveries(&world.sql).await? {
        let change = Change::in_row(&delivery.event_type, &delivery.row)?;
        let Ok(endpoint) = delivery.endpoint.parse() else {
            problems.push(format!("unroutable: {change:?}"));
            continue;
        };
        let (event_id, body) = (&*delivery.event_id, &[][..]);
        oracle.identify(&Receipt { endpoint, event_id, change, body, taken: false, replay: false });
        if let Some(other) = oracle.stored(endpoint, change, delivery.table) {
            let table = delivery.table;
            let problem = format!("{change:?} for {endpoint} stands in {table:?} and {other:?}");
            problems.push(problem);
        }
    }
    Ok(problems)
}
