//! Hosts that hang: none holds more than three quarters of the fast slots.
//!
//! Thousands of accounts may have their endpoints at one host. Where that hangs, each of these is found out by its own
//! requests alone, and those of all fill the fast slots second by second, until the breaker of the last one is open.
//! Whoever has an endpoint elsewhere would wait for as long.
//!
//! A host is known by the requests that became old in the fast pool ([`super::sending::FAST_HOLD`]); so where none
//! hangs, nothing is looked up and nothing is counted.
//!
//! # Invariants
//!
//! - A host counts its requests in the fast pool that started while some host hung.
//! - A queue in the line of a host stands in the fast ring of its lane, as far as it knows itself: it is in no other
//!   line and not forgotten meanwhile, and what of it belongs to another pool is sent from there.
//! - Nobody stands in the line of a host that has room for long: in each round as many leave it as there is room for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::schedule::Pool;
use super::Dispatcher;
use super::probes::host;
use super::queues::{AccountNo, QueueNo};
use super::turns::Turns;
use walhook_core::tick::Tick;

/// A host hangs of which so many requests become old within [`WINDOW`]: one for each so many fast slots. What hangs of it
/// then has held a quarter of these for that second.
const SLOTS_PER_OLD: u32 = 4;
const WINDOW: Duration = Duration::from_secs(1);

/// It is taken for hanging for so long from then on: its requests become old in waves, a second apart and more.
const HANGS_FOR: Duration = Duration::from_secs(10);

/// Hosts that are known before the first are forgotten.
const FORGET_AT: usize = 64;

/// One host's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostNo(u64);

#[derive(Debug, Default)]
struct Host {
    /// Its requests on fast slots.
    fast: u32,
    /// Since when old ones are counted, and how many there were.
    counted: (Tick, u32),
    hangs_until: Tick,
    /// The queues that wait for one of its slots.
    line: Turns<AccountNo, QueueNo>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    numbers: BTreeMap<Box<str>, HostNo>,
    of: BTreeMap<HostNo, Host>,
    next: u64,
    /// Those that are over are forgotten when there are so many.
    forget_at: usize,
    /// Until when one of them hangs.
    hang_until: Tick,
    /// Queues in all lines.
    waiting: usize,
}

/// What one host may hold of so many fast slots while it hangs.
fn most(slots: u32) -> u32 {
    slots - slots / 4
}

impl Hosts {
    /// A request to this URL has become old on one of so many fast slots.
    pub(super) fn note_old(&mut self, url: &str, slots: u32, now: Tick) {
        let name = host(url);
        let known = self.numbers.get(name.as_str()).copied();
        let no = known.unwrap_or_else(|| self.add(name.into(), now));
        let Some(host) = self.of.get_mut(&no) else { return };
        if now.since(host.counted.0) >= WINDOW {
            host.counted = (now, 0);
        }
        host.counted.1 += 1;
        if host.counted.1 >= (slots / SLOTS_PER_OLD).max(1) {
            host.hangs_until = now + HANGS_FOR;
            self.hang_until = host.hangs_until;
        }
    }

    fn add(&mut self, name: Box<str>, now: Tick) -> HostNo {
        if self.of.len() >= self.forget_at {
            // One comes for each old request at most, so those are few that are not over.
            let is_over = |host: &Host| {
                host.fast == 0 && host.line.len() == 0 && now.since(host.counted.0) >= HANGS_FOR
            };
            self.of.retain(|_, host| !is_over(host));
            self.numbers.retain(|_, no| self.of.contains_key(no));
            self.forget_at = (self.of.len() * 2).max(FORGET_AT);
        }
        let no = HostNo(self.next);
        self.next += 1;
        self.of.insert(no, Host::default());
        self.numbers.insert(name, no);
        no
    }

    /// The URL's host, where some host hangs and something of this one was old.
    pub(super) fn find(&self, url: &str, now: Tick) -> Option<HostNo> {
        let is_looked_up = now < self.hang_until;
        is_looked_up.then(|| self.numbers.get(host(url).as_str()).copied()).flatten()
    }

    /// Whether the host hangs, and holds all of so many fast slots that it may.
    pub(super) fn is_full(&self, no: HostNo, slots: u32, now: Tick) -> bool {
        let host = self.of.get(&no);
        host.is_some_and(|host| now < host.hangs_until && host.fast >= most(slots))
    }

    /// A request to the host takes a fast slot.
    pub(super) fn start(&mut self, no: HostNo) {
        if let Some(host) = self.of.get_mut(&no) {
            host.fast += 1;
        }
    }

    /// It has given the slot back.
    pub(super) fn end(&mut self, no: HostNo) {
        let Some(host) = self.of.get_mut(&no).filter(|host| host.fast > 0) else {
            panic!("a request to {no:?} ends, and none is in flight")
        };
        host.fast -= 1;
    }

    /// The queue waits for a slot of the host.
    fn wait(&mut self, no: HostNo, account: AccountNo, queue: QueueNo) {
        if let Some(host) = self.of.get_mut(&no) {
            host.line.push(account, queue);
            self.waiting += 1;
        }
    }

    /// Those leave the lines whose turn it is, as many as there is room for.
    fn leave(&mut self, slots: u32, now: Tick) -> Vec<QueueNo> {
        let mut left = Vec::new();
        if self.waiting == 0 {
            return left;
        }
        for host in self.of.values_mut() {
            for _ in 0..host.room(slots, now) {
                let Some((_, queue)) = host.line.pop() else { break };
                left.push(queue);
            }
        }
        self.waiting -= left.len();
        left
    }

    /// When the next one may leave a line, though no request ends.
    pub(super) fn deadline(&self, slots: u32, now: Tick) -> Option<Tick> {
        if self.waiting == 0 {
            return None;
        }
        let with_line = self.of.values().filter(|host| host.line.len() > 0);
        with_line.map(|host| if host.room(slots, now) > 0 { now } else { host.hangs_until }).min()
    }
}

impl Host {
    /// How many may leave the line now.
    fn room(&self, slots: u32, now: Tick) -> u32 {
        let most = most(slots);
        if now < self.hangs_until { most.saturating_sub(self.fast) } else { most }
    }
}

impl Dispatcher {
    /// The queue, whose turn it was, waits for a fast slot of its host.
    pub(super) fn wait_for_host(&mut self, queue: QueueNo, host: HostNo) {
        self.queues.in_use(queue).join_ring(Pool::Fast);
        let account = self.queues.at(queue).account();
        self.sending.hosts_mut().wait(host, account, queue);
    }

    /// Whoever waited for a slot of a host that has some stands in the ring of its lane again.
    pub(super) fn leave_hosts(&mut self, now: Tick) {
        let slots = self.sending.slots(Pool::Fast);
        for queue in self.sending.hosts_mut().leave(slots, now) {
            self.queues.end_wait_for_host(queue);
            self.sync(queue);
        }
    }

    /// What became old tells of its host.
    pub(super) fn note_old(&mut self, now: Tick) {
        while let Some(queue) = self.sending.take_old() {
            let Some(lane) = self.queues.lane_id(queue) else { continue };
            let routes = self.queues.lane(lane).1.routes();
            let Some(routes) = self.routing.router.get_pinned(routes, now) else { continue };
            if let Some(endpoint) = routes.endpoint(&self.queues.id(queue).endpoint) {
                let slots = self.sending.slots(Pool::Fast);
                self.sending.hosts_mut().note_old(&endpoint.url, slots, now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
