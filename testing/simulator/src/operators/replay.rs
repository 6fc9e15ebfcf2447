//! A past range that is sent again: read from the WAL once more, routed, and fed as the dispatcher has room,
//! also by a leader that takes over in the middle.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use walhook_core::event::{EndpointId, Event};
use walhook_core::id::ReplayId;
use walhook_core::persist::RowId;
use walhook_core::position::EventId;
use walhook_dispatch::dispatcher::{Input, Replay, ReplayInput};

use crate::facts::Replayed;
use crate::faults::Fault;
use crate::life::read_again;
use crate::run::{Happens, Run};
use crate::state::Job;

/// Deliveries after which the position is stored.
const STORE_EVERY: usize = 40;

/// Deliveries of a replay at most.
const PAIRS_MAX: usize = 150;

/// Transactions of a range.
const TXNS: usize = 60;

/// A replay that is not over.
#[derive(Debug)]
pub(crate) struct Replaying {
    replay: ReplayId,
    pairs: Vec<(Arc<Event>, EndpointId)>,
    /// Everything before this has ended, or is deferred.
    position: usize,
    cancelled_at: Option<usize>,
    /// The life that feeds it, and how far.
    feeder: Option<Feeder>,
    /// Deliveries that were handed over, again after a crash too.
    handed: i64,
    /// It was read to its end, or cancelled: rows of it may be left.
    ended: bool,
}

#[derive(Debug)]
struct Feeder {
    life: usize,
    next: usize,
    fed: i64,
    there: BTreeSet<(EventId, EndpointId)>,
}

impl Run {
    /// Begins one, where one is to come and there is something to send again.
    pub(super) fn begin_replay(&mut self) {
        let settled = self.postgres.txns.partition_point(|t| t.end_lsn <= self.state.frontier);
        let ops = &mut self.operators;
        if ops.replaying.is_some() || ops.replays_left == 0 || settled < 2 {
            return;
        }
        if self.now <= ops.until && ops.rng.random_bool(0.8) {
            return;
        }
        ops.replays_left -= 1;
        let from = ops.rng.random_range(0..settled - 1);
        let cancels = ops.rng.random_bool(0.3) && self.plan.has(Fault::ReplayCancelled);
        let to = (from + TXNS).min(settled - 1);
        let at = |txn: usize| self.postgres.txns.get(txn).map(|txn| txn.commit_lsn);
        let (Some(first), Some(last)) = (at(from), at(to)) else { return };
        let mut pairs = Vec::new();
        for event in read_again(&self.postgres, first, last) {
            for endpoint in self.postgres.routes_shown(&event.account, self.now) {
                if endpoint.enabled && endpoint.wants(&event.event_type) && pairs.len() < PAIRS_MAX
                {
                    pairs.push((Arc::clone(&event), endpoint.id.clone()));
                }
            }
        }
        let job = self.operators.job();
        let replay = ReplayId(job.0);
        self.state.jobs.insert(job, Job::default());
        let cancelled_at = cancels.then_some(pairs.len() / 2);
        self.counts.fault(Fault::Replay);
        let (position, feeder, handed, ended) = (0, None, 0, false);
        self.operators.replaying =
            Some(Replaying { replay, pairs, position, cancelled_at, feeder, handed, ended });
        self.after(Duration::from_millis(5), Happens::Feeds);
    }

    /// Feeds what may be, and looks again a little later.
    pub(crate) fn feed(&mut self) {
        let Some(mut replaying) = self.operators.replaying.take() else { return };
        let leader = self.leader().filter(|life| !life.stopping).map(|life| life.number);
        if let Some(leader) = leader {
            if !replaying.ended {
                self.feed_to(leader, &mut replaying);
            }
            if replaying.ended && replaying.cancelled_at.is_some() {
                self.discard_replay(leader, replaying.replay);
            }
            self.poll(leader);
        }
        if replaying.ended && self.waiting(replaying.replay) == 0 {
            let pairs =
                replaying.pairs.iter().map(|(event, endpoint)| (event.id, endpoint.clone()));
            let (replay, cancelled) = (replaying.replay, replaying.cancelled_at.is_some());
            let fed = replaying.handed;
            self.facts.replays.push(Replayed { replay, pairs: pairs.collect(), cancelled, fed });
            return;
        }
        let wait = if replaying.ended { 5_000 } else { 20 };
        self.operators.replaying = Some(replaying);
        self.after(Duration::from_millis(wait), Happens::Feeds);
    }

    /// How many of its rows are left.
    fn waiting(&self, replay: ReplayId) -> usize {
        let rows = self.state.deferred.values().flat_map(std::collections::BTreeMap::keys);
        rows.filter(|key| key.replay == Some(replay)).count()
    }

    fn feed_to(&mut self, leader: usize, replaying: &mut Replaying) {
        let replay = replaying.replay;
        let Some(counts) = self.state.jobs.get(&replay.into()).map(|job| job.counts) else {
            return;
        };
        let feeder = match replaying.feeder.take().filter(|feeder| feeder.life == leader) {
            Some(feeder) => feeder,
            None => {
                self.hand(leader, Input::Replay(Box::new(ReplayInput::Start(replay, counts))));
                let rows = self.state.deferred.iter().flat_map(|(queue, rows)| {
                    let of_it = rows.iter().filter(|(key, _)| key.replay == Some(replay));
                    of_it.map(|(_, row)| (row.event.id, queue.endpoint.clone()))
                });
                let letters = self.state.letters.keys().filter(|(.., of)| *of == Some(replay));
                let letters = letters.map(|(event, endpoint, _)| (*event, endpoint.clone()));
                let discarded = self.facts.discarded_of_replays.iter();
                let discarded = discarded.filter(|(of, ..)| *of == replay);
                let discarded = discarded.map(|(_, event, endpoint)| (*event, endpoint.clone()));
                let there = rows.chain(letters).chain(discarded).collect();
                Feeder { life: leader, next: replaying.position, fed: counts.total(), there }
            }
        };
        let feeder = replaying.feeder.insert(feeder);
        let ends = loop {
            if !self.life(leader).is_some_and(|life| life.dispatcher.wants_replay()) {
                return;
            }
            if replaying.cancelled_at == Some(feeder.next) {
                self.counts.fault(Fault::ReplayCancelled);
                break true;
            }
            let lot_ends = feeder.next - replaying.position >= STORE_EVERY;
            if lot_ends || feeder.next == replaying.pairs.len() {
                if counts.total() < feeder.fed {
                    break false;
                }
                replaying.position = feeder.next;
            }
            let Some((event, endpoint)) = replaying.pairs.get(feeder.next) else { break true };
            feeder.next += 1;
            if feeder.there.contains(&(event.id, endpoint.clone())) {
                continue;
            }
            feeder.fed += 1;
            replaying.handed += 1;
            let (event, endpoint) = (Arc::clone(event), endpoint.clone());
            let deliver = ReplayInput::Deliver(Replay { replay, event, endpoint });
            self.hand(leader, Input::Replay(Box::new(deliver)));
        };
        if ends {
            self.hand(leader, Input::Replay(Box::new(ReplayInput::End(replay))));
            replaying.ended = true;
        }
    }

    /// What is deferred under the id of a replay that was cancelled.
    fn discard_replay(&mut self, leader: usize, replay: ReplayId) {
        let mut gone = Vec::new();
        for (queue, rows) in &self.state.deferred {
            for (key, row) in rows.iter().filter(|(key, _)| key.replay == Some(replay)) {
                gone.push(RowId { queue: queue.clone(), key: key.clone(), event: row.event.id });
            }
        }
        if !gone.is_empty() && self.operators.untold.is_none() {
            self.remove(leader, &gone);
        }
    }
}
