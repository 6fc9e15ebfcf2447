//! The bus: keeps the order of one publisher on one subject, and nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::frame::SessionId;

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Leader(usize),
    Worker(usize),
}

/// A subject, as far as the order goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    Lead,
    Hello,
    Worker(SessionId),
    Leader(SessionId),
}

/// How bad it is: chances in a thousand, and microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) lost: u32,
    pub(super) repeated: u32,
    pub(super) slowest_us: u64,
}

#[derive(Debug)]
pub(super) struct Bus {
    pub(super) weather: Weather,
    /// Not before the one before it.
    last: BTreeMap<(Node, Node, Subject), u64>,
}

impl Bus {
    pub(super) fn new(weather: Weather) -> Self {
        Self { weather, last: BTreeMap::new() }
    }

    /// When a frame that is published now arrives; none: it is lost, two: it comes again.
    pub(super) fn carry(
        &mut self,
        rng: &mut SmallRng,
        now: u64,
        (from, to, subject): (Node, Node, Subject),
    ) -> Vec<u64> {
        let Weather { lost, repeated, slowest_us } = self.weather;
        if rng.random_range(0..1_000) < lost {
            return Vec::new();
        }
        let times = 1 + usize::from(rng.random_range(0..1_000) < repeated);
        let last = self.last.entry((from, to, subject)).or_default();
        let arrive = |_| {
            *last = (now + rng.random_range(50..=slowest_us)).max(*last);
            *last
        };
        (0..times).map(arrive).collect()
    }
}

/// What is under way.
#[derive(Debug, Clone)]
pub(super) struct Letter {
    pub(super) to: Node,
    pub(super) bytes: Bytes,
}
