//! What happens, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;

use walhook_core::attempt::DeliveryId;
use walhook_core::event::{Invalidation, Item, Scope};
use walhook_core::room::{Holder, Measured, StateSize};
use walhook_dispatch::dispatcher::Input;
use walhook_dispatch::route::LookUpLine;

use super::{Happens, Run};
use crate::checkers::Seen;
use crate::faults::Fault;
use crate::life::LookingUp;
use crate::plants::Plant;
use crate::state::Fenced;

/// What a row takes.
const ROW_BYTES: u64 = 1_000;

impl Run {
    pub(super) fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Commits => self.commit(),
            Happens::Reads(life) => self.read(life),
            Happens::Ends(life, id, ends) => self.request_ends(life, id, ends),
            Happens::LookedUp(life, line) => self.looked_up(life, line),
            Happens::Refilled(life) => self.refilled(life),
            Happens::Routable(life) => {
                let pages = self.life(life).and_then(|life| life.unrouted.take());
                if let Some(pages) = pages {
                    self.hand(life, Input::UnroutedPages(pages));
                    self.poll(life);
                }
            }
            Happens::Committed(life) => self.committed(life),
            Happens::Stored(life) => self.stored(life),
            Happens::Measured(life) => self.measured(life),
            Happens::Wakes(life) => self.poll(life),
            Happens::Crashes => self.crash(),
            Happens::TakesOver => self.take_over(),
            Happens::ShutsDown => self.shut_down(),
            Happens::Expires(life) => self.expire(life),
            Happens::StreamBreaks => self.break_stream(),
            Happens::Evicts => self.evict(),
            Happens::Operates => self.operate(),
            Happens::TellsRemoved => self.tell_removed(),
            Happens::Feeds => self.feed(),
        }
    }

    fn commit(&mut self) {
        let Some(txn) = self.postgres.txns.get(self.postgres.committed) else { return };
        for (_, row) in txn.endpoints.iter().filter(|_| self.postgres.committed > 0) {
            let fault = if row.is_none() { Fault::EndpointRemoved } else { Fault::EndpointChanged };
            self.counts.fault(fault);
            if row.as_ref().is_some_and(|row| !row.valid) {
                self.counts.fault(Fault::EndpointInvalid);
            }
        }
        if txn.changes_weights() {
            self.counts.fault(Fault::WeightChanged);
        }
        for _ in 0..txn.unchanged {
            self.counts.fault(Fault::UnchangedToast);
        }
        if txn.shown_at > txn.at {
            self.counts.fault(Fault::LookUpLags);
        }
        let expects = self.postgres.expects.get(txn.expects.clone()).unwrap_or_default();
        for _ in expects.iter().filter(|expect| expect.unroutable) {
            self.counts.fault(Fault::Unroutable);
        }
        self.postgres.committed += 1;
        if let Some(next) = self.postgres.txns.get(self.postgres.committed).map(|txn| txn.at) {
            self.at(next, Happens::Commits);
        }
        let wait = self.rng.random_range(20..400);
        if let Some(leader) = self.leader().map(|life| life.number) {
            self.plan_reading(leader, Duration::from_micros(wait));
        }
    }

    /// The catalog has changed, say: whatever was looked up may be outdated. That is told at any place of the
    /// stream, between two transactions too.
    fn evict(&mut self) {
        let last = self.postgres.committed.checked_sub(1).and_then(|at| self.postgres.txns.get(at));
        let Some(xid) = last.map(|txn| txn.xid) else { return };
        let Some(life) = self.leader().filter(|life| life.dispatcher.wants_input()) else { return };
        let number = life.number;
        self.counts.fault(Fault::Evicted);
        let evicted = Item::Invalidate(Invalidation::new(xid, Scope::All));
        self.hand(number, Input::Items(vec![evicted]));
        self.poll(number);
    }

    fn request_ends(&mut self, number: usize, id: DeliveryId, ends: u64) {
        let Some(life) = self.life(number) else { return };
        let Some(flight) = life.in_flight.get(&id) else { return };
        if ends == 0 {
            // Planted: the outcome is told, and the request goes on.
            let outcome = flight.outcome.clone();
            life.unstored += 1;
            self.hand(number, Input::Outcome { delivery: id, outcome });
            self.poll(number);
            return;
        }
        if flight.ends != ends {
            return;
        }
        let Some(flight) = life.in_flight.remove(&id) else { return };
        let unsent = self.workers.was_unsent(ends);
        if let Some(life) = self.life(number)
            && !unsent
        {
            life.unstored += 1;
        }
        if !self.planted.kept_back.remove(&ends) {
            let (attempt, outcome) = (&flight.attempt, &flight.outcome);
            self.see(&Seen::Ended { life: number, attempt, outcome });
        }
        if unsent {
            self.hand(number, Input::Unsent(id));
            self.poll(number);
            return;
        }
        if flight.outcome.delivered() {
            self.receive(number, &flight.attempt);
        }
        if self.planted.early.remove(&ends) || self.planted.is(Plant::OutcomeForgotten) {
            return;
        }
        let outcome = self.planted.outcome(flight.outcome);
        self.hand(number, Input::Outcome { delivery: id, outcome });
        self.poll(number);
    }

    fn looked_up(&mut self, number: usize, line: LookUpLine) {
        let asked = self.life(number).and_then(|life| life.look_ups.remove(&line));
        let answer = match asked {
            Some(LookingUp::Asked(look_up)) => {
                if let Some(until) = self.outages.until(self.now) {
                    self.counts.fault(Fault::LookUpOutage);
                    if let Some(life) = self.life(number) {
                        life.look_ups.insert(line, LookingUp::Asked(look_up));
                    }
                    let again = until + Duration::from_millis(self.rng.random_range(1..200));
                    self.delay(again.since(self.now) + Duration::from_secs(5));
                    self.at(again, Happens::LookedUp(number, line));
                    return;
                }
                Box::new(self.routes(look_up))
            }
            Some(LookingUp::Answered(answer)) => answer,
            None => return,
        };
        self.hand(number, Input::Routes(answer));
        self.poll(number);
    }

    fn refilled(&mut self, number: usize) {
        let asked = self.life(number).and_then(|life| life.deferred.take());
        let Some((pages, read)) = asked else { return };
        let read = read.unwrap_or_else(|| self.state.refill(&pages));
        let read = self.planted.pages(read);
        self.hand(number, Input::DeferredPages(read));
        self.poll(number);
    }

    /// A state transaction commits, or is refused.
    fn committed(&mut self, number: usize) {
        let lets_through = self.has_plant(Plant::StaleWrite);
        let Some(life) = self.lives.iter_mut().find(|life| life.number == number) else { return };
        let epoch = life.epoch;
        let Some(mut storing) = life.storing.take() else { return };
        let again = storing.result.is_some();
        if again {
            // It is stored, which its writer finds out.
            storing.batch = Box::new(storing.batch.unanswered());
        }
        let result = match self.state.persist(epoch, &storing.batch) {
            Err(Fenced) if lets_through => Ok(self.state.write(epoch, &storing.batch)),
            result => result,
        };
        match result {
            Ok(_) => self.keep(epoch, &storing.batch),
            Err(Fenced) => self.counts.fault(Fault::StaleWrite),
        }
        let batch = &*storing.batch;
        self.see(&Seen::Stored { life: number, epoch, batch, result: &result, again });
        storing.result = Some(result);
        if let Some(life) = self.life(number) {
            life.storing = Some(storing);
        }
        let busy = self.postgres.committed < self.postgres.txns.len();
        if busy && self.plan.has(Fault::CrashAfterCommit) && self.chance.random_bool(0.0004) {
            self.crash();
        } else if !again && self.plan.has(Fault::AnswerLost) && self.chance.random_bool(0.01) {
            self.counts.fault(Fault::AnswerLost);
            self.after(Duration::from_millis(30), Happens::Committed(number));
        } else {
            let wait = Duration::from_micros(self.rng.random_range(100..1_500));
            self.after(wait, Happens::Stored(number));
        }
    }

    fn stored(&mut self, number: usize) {
        let Some(life) = self.life(number) else { return };
        let Some(storing) = life.storing.take() else { return };
        match storing.result {
            Some(Ok(persisted)) => {
                self.hand(number, Input::Stored(Box::new(persisted)));
                self.poll(number);
            }
            // It learns that another one leads, and ends.
            Some(Err(Fenced)) | None => {
                life.unstored += storing.outcomes;
                self.expire(number);
            }
        }
    }

    fn measured(&mut self, number: usize) {
        if self.life(number).is_none() {
            return;
        }
        let bytes = self.rng.random_range(0..1usize << 16);
        self.hand(number, Input::ConnectionBytes(bytes));
        if let Some(slots) = self.workers.slots(&self.plan.settings, &mut self.counts) {
            self.hand(number, slots);
        }
        let in_flight: Vec<DeliveryId> = self
            .life(number)
            .map_or_else(Vec::new, |life| life.in_flight.keys().copied().collect());
        if let Some(doubt) = self.workers.doubt(in_flight.into_iter(), &mut self.counts) {
            self.hand(number, doubt);
        }
        if self.plan.bound.is_some() {
            let measured = self.measure();
            self.hand(number, Input::StateSize(Box::new(measured)));
        }
        self.poll(number);
        // Seldom, once little happens.
        let busy = self.postgres.committed < self.postgres.txns.len();
        let wait = Duration::from_millis(if busy { 500 } else { 5_000 });
        self.after(wait, Happens::Measured(number));
    }

    /// What the tables take. Files stay as large as they were.
    fn measure(&mut self) -> Measured {
        let state = &self.state;
        let rows = |n: usize| n as u64 * ROW_BYTES;
        let bound = self.plan.bound.unwrap_or(u64::MAX);
        let deferred: usize = state.deferred.values().map(BTreeMap::len).sum();
        let unrouted: usize = state.unrouted.values().map(BTreeMap::len).sum();
        let unrouted_bytes = rows(unrouted);
        let others = if self.outages.others_rows(self.now) { bound } else { 0 };
        let used_bytes = rows(deferred + state.letters.len()) + unrouted_bytes + others;
        self.outages.largest = self.outages.largest.max(used_bytes);
        let size = StateSize { total_bytes: self.outages.largest, used_bytes, unrouted_bytes };
        if used_bytes >= bound {
            self.counts.fault(Fault::TablesFull);
        }
        let letters = state.letter_counts.iter().filter(|(_, n)| **n > 0);
        let queues: BTreeSet<_> =
            state.deferred.keys().chain(letters.map(|(queue, _)| queue)).collect();
        let mut holders: Vec<(u64, Holder)> = queues
            .into_iter()
            .map(|queue| {
                let letters = u64::from(state.letter_counts.get(queue).copied().unwrap_or(0));
                let all = letters + state.deferred.get(queue).map_or(0, |rows| rows.len() as u64);
                let (queue, letter_bytes) = (queue.clone(), letters * ROW_BYTES);
                (all, Holder { queue, letters, letter_bytes })
            })
            .collect();
        holders.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.queue.cmp(&y.queue)));
        Measured { size, holders: holders.into_iter().map(|(_, holder)| holder).collect() }
    }
}
