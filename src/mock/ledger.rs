//! What mock endpoints have received.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Serialize;

use super::Behaviour;
use crate::io::clock::unix_us;

/// A request that was answered.
#[derive(Debug, Clone)]
pub struct Received {
    /// The path, without the query: which endpoint it was for.
    pub path: String,
    /// `webhook-id`
    pub id: String,
    /// The attempt's number, from the header whose name ends in `-attempt`; 0 without one.
    pub attempt: u32,
    /// Whether a header whose name ends in `-replay` says so.
    pub replay: bool,
    /// Whether the signature is right and fresh.
    pub verified: bool,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// When it came, in microseconds since 1970.
    pub at_unix_us: i64,
    /// The status that it was answered with.
    pub answered: u16,
}

impl Received {
    pub(super) fn new(path: String, headers: &HeaderMap, body: Bytes, verified: bool) -> Self {
        let ending = |end: &str| {
            let ours = headers.iter().find(|(name, _)| name.as_str().ends_with(end));
            ours.and_then(|(_, value)| value.to_str().ok())
        };
        let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        Self {
            path,
            id: id.to_owned(),
            attempt: ending("-attempt").and_then(|n| n.parse().ok()).unwrap_or(0),
            replay: ending("-replay") == Some("true"),
            verified,
            headers: headers.clone(),
            body,
            at_unix_us: unix_us(),
            answered: 0,
        }
    }

    /// Whether it was answered with a 2xx.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        (200..300).contains(&self.answered)
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Counts of requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Answered, with whatever status.
    pub received: u64,
    /// Answered with a 2xx.
    pub taken: u64,
    /// Different ids by path among those taken.
    pub distinct: u64,
    /// Taken again: `taken` less `distinct`.
    pub duplicates: u64,
    /// Answered with a right and fresh signature.
    pub verified: u64,
    /// Came, and not answered yet.
    pub in_flight: u64,
    /// Taken, by path.
    pub by_path: BTreeMap<String, u64>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    keep: usize,
    kept: VecDeque<Received>,
    taken: HashMap<String, HashSet<String>>,
    stats: Stats,
    pub(super) in_flight: u64,
    pub(super) behaviours: HashMap<String, Behaviour>,
    pub(super) default: Option<Behaviour>,
}

impl Ledger {
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep,
            kept: VecDeque::new(),
            taken: HashMap::new(),
            stats: Stats::default(),
            in_flight: 0,
            behaviours: HashMap::new(),
            default: None,
        }
    }

    pub(super) fn behaviour(&self, path: &str) -> Option<Behaviour> {
        self.behaviours.get(path).copied().or(self.default)
    }

    pub(super) fn enter(&mut self, received: Received) {
        self.stats.received += 1;
        self.stats.verified += u64::from(received.verified);
        if received.is_taken() {
            self.stats.taken += 1;
            *self.stats.by_path.entry(received.path.clone()).or_default() += 1;
            let ids = self.taken.entry(received.path.clone()).or_default();
            // Ids are kept for their number, so that duplicates are counted exactly; a receiver that
            // runs for days is not what this is for.
            if ids.insert(received.id.clone()) {
                self.stats.distinct += 1;
            } else {
                self.stats.duplicates += 1;
            }
        }
        if self.kept.len() == self.keep {
            self.kept.pop_front();
        }
        self.kept.push_back(received);
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.kept.iter().cloned().collect()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats { in_flight: self.in_flight, ..self.stats.clone() }
    }
}
