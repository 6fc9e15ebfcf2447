//! Carries out what a dispatcher asks for.

use std::time::Duration;

use rand::RngExt;

use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::persist::PersistBatch;
use walhook_dispatch::dispatcher::{Effect, LookUp, LookUpAnswer, Settled};
use walhook_dispatch::route::LookUpLine;

use super::{Happens, Run};
use crate::checkers::Seen;
use crate::faults::Fault;
use crate::life::{InFlight, LookingUp, Storing};
use crate::plants::Plant;
use crate::workers::{Carried, Workers};

impl Run {
    /// Lets a dispatcher do all that it can at this moment.
    pub(crate) fn poll(&mut self, number: usize) {
        self.tell_jobs(number);
        let now = self.now;
        while let Some(effect) = self.life(number).and_then(|life| life.dispatcher.poll(now)) {
            self.counts.effect(&effect);
            self.trace.effect(now, number, &effect);
            self.recorded.effect(number, &effect);
            self.carry_out(number, effect);
        }
        self.recorded.polled(number, now);
        let Some(life) = self.lives.iter().find(|life| life.number == number) else { return };
        let gauges = life.dispatcher.gauges();
        let behind = life.connection.as_ref().is_none_or(|c| c.has_more(&self.postgres))
            || life.progress < self.postgres.wal_end()
            || life.is_playing();
        if behind && !life.stale && !life.reads && life.dispatcher.wants_input() {
            let wait = self.rng.random_range(5..200);
            self.plan_reading(number, Duration::from_micros(wait));
        }
        self.see(&Seen::Rested { life: number, gauges });
        self.halt_if_settled(number);
        self.end_if_drained(number);
    }

    fn carry_out(&mut self, number: usize, effect: Effect) {
        match effect {
            Effect::Send(dispatch) => self.send(number, dispatch.attempt),
            Effect::Abort(id) => self.abort(number, id),
            Effect::LookUp(look_up) => self.look_up(number, look_up),
            Effect::ReadDeferred(pages) => {
                let early = self.rng.random_bool(0.5).then(|| self.state.refill(&pages));
                let wait = self.slow_at_times(3, 500);
                let asked = self.life(number).map(|life| life.deferred.replace((pages, early)));
                if asked.flatten().is_some() {
                    self.fail("door", "two reads of deferred rows at once".to_owned());
                }
                self.after(wait, Happens::Refilled(number));
            }
            Effect::ReadUnrouted(pages) => {
                let read = self.state.read_unrouted(&pages);
                let wait = self.slow_at_times(3, 500);
                let asked = self.life(number).map(|life| life.unrouted.replace(read));
                if asked.flatten().is_some() {
                    self.fail("door", "two reads of unrouted events at once".to_owned());
                }
                self.after(wait, Happens::Routable(number));
            }
            Effect::Store(batch) => self.store(number, batch),
            Effect::Flush(lsn) => {
                let lsn = self.planted.flush(lsn);
                self.see(&Seen::Flushed { lsn });
                if self.life(number).is_some_and(|life| life.connection.is_some()) {
                    self.postgres.slot.confirmed = self.postgres.slot.confirmed.max(lsn);
                }
            }
            Effect::Settled(Settled { event, measured: Some(measured), .. }) => {
                self.see(&Seen::Measured { event: &event, waits: &measured.waits });
            }
            Effect::Settled(_) | Effect::Report(_) | Effect::StateFull { .. } => {}
        }
    }

    fn slow_at_times(&mut self, ms: u64, slow_ms: u64) -> Duration {
        let slow = self.rng.random_bool(0.03);
        Duration::from_millis(if slow { slow_ms } else { ms })
    }

    fn send(&mut self, number: usize, attempt: Attempt) {
        let (attempt, late) = self.planted.turn(attempt, &self.postgres);
        if let Some(wait) = late {
            // Kept back, as if others had had its turn: nobody sees it until it is sent after all.
            let ends = self.request_number();
            let id = attempt.first().id;
            let outcome = Outcome::failed(FailureKind::Local, "", Duration::ZERO);
            self.planted.kept_back.insert(ends);
            self.start(number, attempt, outcome, ends);
            self.after(wait, Happens::Ends(number, id, ends));
            return;
        }
        if self.life(number).is_some_and(|life| life.paused.contains(&attempt.endpoint.id)) {
            self.fail("limits", format!("sent to {}, which is paused", attempt.endpoint.id));
        }
        self.see(&Seen::Sent { life: number, attempt: &attempt });
        if self.planted.is(Plant::SentTwice) {
            self.see(&Seen::Sent { life: number, attempt: &attempt });
        }
        if self.life(number).is_some_and(|life| life.stale) {
            self.facts.excused += 1;
        }
        let (id, ends) = (attempt.first().id, self.request_number());
        let answer = self.receivers.answer(&attempt, self.now, &mut self.counts);
        let carried = self.workers.carry(ends, &mut self.counts);
        if !matches!(carried, Carried::Well) {
            self.facts.not_carried.insert(attempt.endpoint.id.clone());
        }
        let outcome = match carried {
            Carried::Well => answer,
            Carried::Lost(arrives) => {
                if answer.delivered() && arrives {
                    self.facts.excused += 1;
                    self.receive(number, &attempt);
                }
                Workers::lost()
            }
            Carried::Unsent => self.workers.unsent(),
        };
        self.after(outcome.elapsed, Happens::Ends(number, id, ends));
        if outcome.delivered() && self.planted.is(Plant::KeyUnlockedEarly) {
            self.planted.early.insert(ends);
            self.after(outcome.elapsed / 4, Happens::Ends(number, id, 0));
        }
        self.start(number, attempt, outcome, ends);
    }

    fn start(&mut self, number: usize, attempt: Attempt, outcome: Outcome, ends: u64) {
        if let Some(life) = self.life(number) {
            let id = attempt.first().id;
            life.in_flight.insert(id, InFlight { attempt, outcome, ends });
        }
    }

    /// A request is given up; half of those that would have been taken have been.
    fn abort(&mut self, number: usize, id: DeliveryId) {
        let ends = self.request_number();
        let arrives = self.rng.random_bool(0.5);
        let Some(life) = self.life(number) else { return };
        let Some(flight) = life.in_flight.get_mut(&id) else { return };
        let aborted = Outcome::failed(FailureKind::Aborted, "", Duration::from_secs(1));
        let outcome = std::mem::replace(&mut flight.outcome, aborted);
        flight.ends = ends;
        let attempt = flight.attempt.clone();
        if outcome.delivered() && arrives {
            self.facts.excused += 1;
            self.receive(number, &attempt);
        }
        self.after(Duration::ZERO, Happens::Ends(number, id, ends));
    }

    /// An endpoint takes what a process has sent.
    pub(crate) fn receive(&mut self, life: usize, attempt: &Attempt) {
        let key = (attempt.first().event.id, attempt.endpoint.id.clone());
        if attempt.first().asked.is_some() {
            *self.facts.resent.entry(key).or_default() += 1;
        } else {
            let times = self.facts.received.entry(key).or_default();
            *times += 1;
            self.facts.duplicates += u64::from(*times > 1);
        }
        self.see(&Seen::Received { life, attempt });
    }

    fn look_up(&mut self, number: usize, look_up: LookUp) {
        let early = self.rng.random_bool(0.5) && self.outages.until(self.now).is_none();
        let line = look_up.line;
        let look_up = if early {
            LookingUp::Answered(Box::new(self.routes(look_up)))
        } else {
            LookingUp::Asked(look_up)
        };
        let wait = match line {
            LookUpLine::Usual => self.slow_at_times(4, 700),
            LookUpLine::Costly => self.slow_at_times(300, 3_000),
        };
        // For a costly account nobody else may wait.
        if line == LookUpLine::Usual && wait > Duration::from_millis(100) {
            self.delay(wait);
        }
        let asked = self.life(number).map(|life| life.look_ups.insert(line, look_up));
        if asked.flatten().is_some() {
            self.fail("door", "two look-ups of one line at once".to_owned());
        }
        self.after(wait, Happens::LookedUp(number, line));
    }

    /// Nothing can be told of delays until then.
    pub(crate) fn delay(&mut self, wait: Duration) {
        self.facts.delayed_until = self.facts.delayed_until.max(self.now + wait);
    }

    /// What a statement answers now.
    pub(crate) fn routes(&mut self, LookUp { line, accounts }: LookUp) -> LookUpAnswer {
        let snapshot = self.postgres.snapshot(self.now);
        let (mut answers, mut costly, mut put_off) = (Vec::new(), Vec::new(), Vec::new());
        for account in accounts {
            if let Some(wait) = self.outages.puts_off(&account, self.now) {
                self.counts.fault(Fault::LookUpPutOff);
                self.delay(wait * 2);
                put_off.push((account, wait));
            } else if let Some(refused) = self.outages.refuses(&account, self.now) {
                self.counts.fault(Fault::LookUpRefused);
                self.facts.refused.insert(account.clone());
                answers.push((account, refused));
            } else {
                let routes = self.postgres.routes(&account, self.now);
                if routes.is_costly && line == LookUpLine::Usual && self.rng.random() {
                    costly.push(account);
                } else {
                    answers.push((account, routes));
                }
            }
        }
        LookUpAnswer { line, snapshot, costly, put_off, answers }
    }

    fn store(&mut self, number: usize, batch: Box<PersistBatch>) {
        let slow = self.plan.has(Fault::StateSlow) && self.chance.random_bool(0.005);
        let mut ms =
            if slow { self.rng.random_range(1_000..4_000) } else { self.rng.random_range(2..8) };
        if let Some(until) = self.outages.of_state(self.now) {
            // It is tried until the database answers again.
            self.counts.fault(Fault::StateOutage);
            let out = until.since(self.now);
            ms += u64::try_from(out.as_millis()).unwrap_or(0) + self.rng.random_range(1..500);
            self.delay(out * 2 + Duration::from_secs(5));
        }
        if slow {
            self.counts.fault(Fault::StateSlow);
            self.delay(Duration::from_millis(2 * ms));
        }
        let is_playing = self.life(number).is_some_and(|life| life.is_playing());
        let batch = self.planted.batch(batch, &self.postgres, is_playing);
        let Some(life) = self.life(number) else { return };
        let outcomes = std::mem::take(&mut life.unstored);
        let before = life.storing.replace(Storing { batch, result: None, outcomes });
        if before.is_some() {
            self.fail("door", "two state transactions at once".to_owned());
        }
        self.after(Duration::from_millis(ms), Happens::Committed(number));
    }
}
