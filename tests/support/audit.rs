//! Compares what was committed with what endpoints received and what the tables of state hold.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use bytes::Bytes;

use super::World;
use super::traffic::{Change, Journal};

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
    pub(crate) committed: usize,
    pub(crate) delivered: usize,
    pub(crate) deferred: usize,
    pub(crate) dead: usize,
    /// Open records of ranges that were not delivered.
    pub(crate) gaps: usize,
    pub(crate) received: usize,
    pub(crate) faults: Faults,
}

/// What must not be, by kind.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Committed and owed, and neither delivered nor stored.
    pub(crate) lost: usize,
    /// Sent or stored, and never committed, or for another account.
    pub(crate) invented: usize,
    /// Two ids or bodies for one change, or two changes for one id.
    pub(crate) unstable_ids: usize,
    /// First deliveries of a row's events to one endpoint.
    pub(crate) out_of_order: usize,
    /// Signatures, and rows that are stored twice or without endpoint.
    pub(crate) others: usize,
}

/// A kind of them.
type Kind = fn(&mut Faults) -> &mut usize;

const LOST: Kind = |faults| &mut faults.lost;
const INVENTED: Kind = |faults| &mut faults.invented;
const UNSTABLE: Kind = |faults| &mut faults.unstable_ids;
const UNORDERED: Kind = |faults| &mut faults.out_of_order;
const OTHER: Kind = |faults| &mut faults.others;

/// Waits until everything is settled, and nothing is deferred that the auditor demands as delivered.
pub(crate) async fn settled(world: &World, endpoints: &[Endpoint]) -> Result<()> {
    world.settled().await?;
    let demanded = endpoints.iter().filter(|e| e.demand == Demand::Delivered);
    let ids: Vec<String> = demanded.map(|e| format!("'{}'", e.id)).collect();
    let sql =
        format!("SELECT count(*) FROM walhook.deferred WHERE endpoint IN ('', {})", ids.join(", "));
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
    journal: &Journal,
    endpoints: &[Endpoint],
    lives: &[End],
) -> Result<Audit> {
    let endpoint_of: HashMap<i64, &Endpoint> = endpoints.iter().map(|e| (e.id, e)).collect();
    let mut found = Found {
        audit: Audit {
            repeated: vec![0; lives.len()],
            unstored_ms: vec![0; lives.len()],
            committed: journal.committed.len(),
            ..Audit::default()
        },
        ..Found::default()
    };
    // What is deferred is still sent while the auditor looks, and then stands in no table any more.
    found.stored(world, journal).await?;
    let stats = world.mock.stats();
    let received = world.mock.received();
    ensure!(stats.received <= u64::try_from(received.len())?, "the receiver forgot requests");
    found.audit.received = received.len();
    for (at, request) in received.iter().enumerate() {
        let body = request.json();
        let change = Change {
            event_type: body["type"].as_str().unwrap_or_default().to_owned(),
            id: body["data"]["id"].as_i64().unwrap_or_default(),
            version: body["data"]["version"].as_i64().unwrap_or_default(),
        };
        let Some(endpoint) =
            request.path.get(1..).and_then(|id| endpoint_of.get(&id.parse().ok()?))
        else {
            found.problem(INVENTED, format!("a request for no endpoint: {}", request.path));
            continue;
        };
        if !request.verified || body["id"].as_str() != Some(&request.id) {
            found.problem(OTHER, format!("{}: wrong signature or id in the body", request.id));
        }
        match journal.committed.get(&change).or(journal.doubtful.get(&change)) {
            None => found.problem(INVENTED, format!("sent, but never committed: {change:?}")),
            Some(account) if *account != endpoint.account => {
                found.problem(
                    INVENTED,
                    format!("{change:?} of account {account} went to {endpoint:?}"),
                );
            }
            Some(_) => {}
        }
        found.identify(&request.id, &change, Some(&request.body));
        if request.is_taken() {
            let at = u64::try_from(at)?;
            let life = lives.iter().filter(|end| at >= end.received).count();
            found.take(endpoint, change, (request.at_unix_us, life), lives);
        }
    }
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.demand != Demand::Nothing) {
        let owed = journal.committed.iter().filter(|(change, account)| {
            **account == endpoint.account && change.version > endpoint.since
        });
        for (change, _) in owed {
            let delivery = (endpoint.id, change.clone());
            let delivered = found.taken.contains_key(&delivery);
            let stored = found.stored.get(&delivery);
            let ended = endpoint.demand == Demand::Ended && stored.is_some();
            if !delivered && !ended {
                let problem = format!("lost: {change:?} for {endpoint:?}, stored: {stored:?}");
                found.problem(LOST, problem);
            }
        }
    }
    let Found { mut audit, problems, taken, stored, .. } = found;
    let count = |table| stored.values().filter(|stored| **stored == table).count();
    (audit.delivered, audit.deferred, audit.dead) =
        (taken.len(), count(Stored::Deferred), count(Stored::DeadLetter));
    let gaps = world.value("SELECT count(*) FROM walhook.gaps WHERE closed_at IS NULL").await?;
    audit.gaps = gaps.parse()?;
    let shown: Vec<&str> = problems.iter().take(10).map(String::as_str).collect();
    ensure!(problems.is_empty(), "{} problems, {audit:?}:\n{}", problems.len(), shown.join("\n"));
    Ok(audit)
}

/// The table that holds a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Deferred,
    DeadLetter,
}

#[derive(Default)]
struct Found {
    audit: Audit,
    problems: Vec<String>,
    /// When each delivery was taken last, and in which life.
    taken: HashMap<(i64, Change), (i64, usize)>,
    stored: HashMap<(i64, Change), Stored>,
    change_of: HashMap<String, (Change, Option<Bytes>)>,
    id_of: HashMap<Change, String>,
    last: HashMap<(i64, i64), (i64, bool)>,
}

impl Found {
    fn problem(&mut self, kind: Kind, problem: String) {
        *kind(&mut self.audit.faults) += 1;
        self.problems.push(problem);
    }

    /// An id belongs to one change with one body, and a change to one id.
    fn identify(&mut self, id: &str, change: &Change, body: Option<&Bytes>) {
        let known =
            self.change_of.entry(id.to_owned()).or_insert_with(|| (change.clone(), body.cloned()));
        let same =
            known.0 == *change && body.is_none_or(|b| known.1.as_ref().is_none_or(|k| k == b));
        let known_id = self.id_of.entry(change.clone()).or_insert_with(|| id.to_owned());
        if !same || known_id != id {
            let problem = format!("{id} is {:?} and {change:?}; {known_id}", self.change_of[id]);
            self.problem(UNSTABLE, problem);
        }
    }

    fn take(&mut self, endpoint: &Endpoint, change: Change, at: (i64, usize), lives: &[End]) {
        let (row, order) = ((endpoint.id, change.id), change.order());
        if let Some((before_us, life)) = self.taken.insert((endpoint.id, change.clone()), at) {
            if life == at.1 {
                self.audit.repeated_within += 1;
            } else {
                self.audit.repeated[life] += 1;
                let unstored_ms = (lives[life].at_unix_us - before_us) / 1_000;
                self.audit.unstored_ms[life] = self.audit.unstored_ms[life].max(unstored_ms);
            }
            return;
        }
        let last = self.last.get(&row).copied().unwrap_or(order);
        self.last.insert(row, last.max(order));
        if last > order {
            let problem = format!("endpoint {} got {change:?} after {last:?}", endpoint.id);
            self.problem(UNORDERED, problem);
        }
    }

    /// What the tables of state hold: each delivery at most once, and only of what was committed.
    async fn stored(&mut self, world: &World, journal: &Journal) -> Result<()> {
        let sql = "SELECT d.event_id, d.endpoint, b.event_type, r.data->>'id', r.data->>'version', d.dead
                   FROM (SELECT pipeline, event_id, endpoint, true AS dead FROM walhook.dead_letters
                         UNION ALL SELECT pipeline, event_id, endpoint, false FROM walhook.deferred) d
                        JOIN walhook.bodies b USING (pipeline, event_id),
                        LATERAL (SELECT ('{' || convert_from(b.row, 'UTF8') || '}')::json->'data' AS data) r";
        for row in world.sql.query(sql, &[]).await? {
            let change = Change {
                event_type: row.get(2),
                id: row.get::<_, &str>(3).parse()?,
                version: row.get::<_, &str>(4).parse()?,
            };
            self.identify(row.get(0), &change, None);
            if !journal.committed.contains_key(&change) && !journal.doubtful.contains_key(&change) {
                self.problem(INVENTED, format!("stored, but never committed: {change:?}"));
            }
            let table = if row.get(5) { Stored::DeadLetter } else { Stored::Deferred };
            let Ok(endpoint) = row.get::<_, &str>(1).parse() else {
                self.problem(OTHER, format!("unroutable: {change:?}"));
                continue;
            };
            if let Some(other) = self.stored.insert((endpoint, change.clone()), table) {
                let problem =
                    format!("{change:?} for {endpoint} stands in {table:?} and {other:?}");
                self.problem(OTHER, problem);
            }
        }
        Ok(())
    }
}
