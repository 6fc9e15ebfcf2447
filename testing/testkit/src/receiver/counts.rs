//! What a receiver has got.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::http::HeaderMap;
use bytes::Bytes;
use serde::Serialize;

use super::Behaviour;
use crate::clock::unix_us;

/// A longer path is not counted apart.
const PATH_MAX: usize = 1 << 10;

/// What a request takes that is kept, beside its texts, and each of its headers.
const REQUEST_BYTES: usize = 256;
const HEADER_BYTES: usize = 128;

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
    /// When, in microseconds since 1970: right before the answer was written.
    pub answered_at_unix_us: i64,
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
            answered_at_unix_us: 0,
        }
    }

    fn size_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        REQUEST_BYTES
            + self.path.len()
            + self.id.len()
            + self.body.len()
            + headers.map(|bytes| bytes + HEADER_BYTES).sum::<usize>()
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
    /// Taken again.
    pub duplicates: u64,
    /// Taken when so many different ones were known already that this one could not be told apart:
    /// it may be one more of either. Zero means that `distinct` and `duplicates` are exact, and
    /// `taken` is always the sum of the three.
    pub untold: u64,
    /// Answered with a right and fresh signature.
    pub verified: u64,
    /// Came, and not answered yet.
    pub in_flight: u64,
    /// Taken, by path.
    pub by_path: BTreeMap<String, u64>,
    /// Taken at paths beyond those that are counted apart.
    pub by_other_paths: u64,
}

/// What it may remember.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Whole requests, the last ones.
    pub(super) requests: usize,
    /// The bytes of all that they hold.
    pub(super) bytes: usize,
    /// Different deliveries, which are told apart by a hash of 16 bytes.
    pub(super) distinct: usize,
    /// Paths that are counted apart.
    pub(super) paths: usize,
}

#[derive(Debug)]
pub(super) struct Counts {
    bounds: Bounds,
    kept: VecDeque<Received>,
    kept_bytes: usize,
    taken: HashSet<[u64; 2]>,
    stats: Stats,
    pub(super) in_flight: u64,
    /// Bodies that wait for their answer.
    pub(super) waiting_bytes: usize,
    pub(super) behaviours: HashMap<String, Behaviour>,
    pub(super) default: Option<Behaviour>,
}

impl Counts {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            kept: VecDeque::new(),
            kept_bytes: 0,
            taken: HashSet::new(),
            stats: Stats::default(),
            in_flight: 0,
            waiting_bytes: 0,
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
            self.tell_apart(&received);
        }
        self.kept_bytes += received.size_bytes();
        self.kept.push_back(received);
        while self.kept.len() > self.bounds.requests || self.kept_bytes > self.bounds.bytes {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.kept_bytes -= oldest.size_bytes();
        }
    }

    fn tell_apart(&mut self, received: &Received) {
        let Received { path, id, .. } = received;
        let stats = &mut self.stats;
        let room = stats.by_path.len() < self.bounds.paths && path.len() <= PATH_MAX;
        match stats.by_path.get_mut(path) {
            Some(count) => *count += 1,
            None if room => drop(stats.by_path.insert(path.clone(), 1)),
            None => stats.by_other_paths += 1,
        }
        let mark = [0u8, 1].map(|salt| {
            let mut hasher = DefaultHasher::new();
            (salt, path, id).hash(&mut hasher);
            hasher.finish()
        });
        if self.taken.contains(&mark) {
            stats.duplicates += 1;
        } else if self.taken.len() < self.bounds.distinct {
            self.taken.insert(mark);
            stats.distinct += 1;
        } else {
            stats.untold += 1;
        }
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.kept.iter().cloned().collect()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats { in_flight: self.in_flight, ..self.stats.clone() }
    }
}
