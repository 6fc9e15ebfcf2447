//! Requests to endpoints: how long each takes, and what comes of it.

use std::time::Duration;

use rand::RngExt;

use super::nodes::pipeline;
use super::world::{BUSY, Happens, MS, Mode, SECOND, TIMEOUT, World};
use crate::leader::{Ending, FleetInput, Local};
use crate::worker::{AttemptKey, ServeInput};
use walhook_core::attempt::{DeliveryId, FailureKind, Meaning, Outcome};
use walhook_core::id::Epoch;

/// How a process stands to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    Well,
    /// It cannot connect to anybody.
    None,
    /// What it sends reaches nobody.
    Swallows,
}

impl World {
    pub(super) fn begin(
        &mut self,
        at: usize,
        life: u32,
        key: AttemptKey,
        epoch: Epoch,
        until_us: u64,
    ) {
        let now = self.now;
        let Some(worker) = self.workers[at].as_mut().filter(|worker| worker.life == life) else {
            return;
        };
        if !worker.running.contains_key(&key) {
            return;
        }
        if worker.clock + now >= until_us {
            worker.running.remove(&key);
            self.tell_worker(at, ServeInput::Ended { key, outcome: None });
            return;
        }
        let (served, highest) = worker.highest.expect("a leader was heard");
        assert!(
            epoch >= highest || worker.serving.epoch() != Some(epoch),
            "an order of epoch {epoch}"
        );
        let run = self.account.begin_key(epoch, key.key, life, now);
        let number = self.account.number_of(run);
        if self.mode == Mode::Swallows && self.local != Local::Never {
            let before = self.timed_out.get(&number);
            assert_ne!(before, Some(&life), "{number} goes again where it timed out last");
        }
        let of = self.deliveries.get(number).of;
        assert_eq!(pipeline(of), served, "an order of another pipeline");
        worker.running.insert(key, Some(run));
        let swallows = now < worker.swallows_until;
        let takes = match self.rng.random_range(0..20) {
            _ if swallows => u64::try_from(TIMEOUT.as_micros()).unwrap(),
            0 => self.rng.random_range(SECOND..4 * SECOND),
            _ => self.rng.random_range(MS..200 * MS),
        };
        self.after(takes, Happens::End { worker: at, life, key, run });
    }

    pub(super) fn outcome(&mut self, run: u32, by: Network) -> Outcome {
        let elapsed = Duration::from_millis(5);
        let mut outcome = match self.rng.random_range(0..40) {
            _ if by == Network::Swallows => {
                Outcome::failed(FailureKind::Timeout, "no answer", TIMEOUT)
            }
            _ if by == Network::None => Outcome::failed(FailureKind::Connect, "no route", elapsed),
            0 if self.mode != Mode::Swallows => {
                Outcome::failed(FailureKind::Timeout, "no answer", elapsed)
            }
            1 if self.mode != Mode::Swallows => {
                Outcome::failed(FailureKind::Dns, "no such name", elapsed)
            }
            _ => {
                let mut outcome = Outcome::new(Meaning::Delivered, elapsed);
                outcome.record.status = Some(200);
                outcome
            }
        };
        outcome.resends = run;
        let harmless =
            matches!(outcome.record.failure, Some(FailureKind::Connect | FailureKind::Dns));
        self.account.ended(run, harmless);
        if outcome.delivered() {
            self.deliveries.taken(self.account.number_of(run), run);
        }
        outcome
    }

    pub(super) fn end(&mut self, at: usize, life: u32, key: AttemptKey, run: u32) {
        let Some(worker) = self.workers[at].as_mut().filter(|worker| worker.life == life) else {
            return;
        };
        if worker.running.remove(&key).is_none() {
            return;
        }
        let by = if worker.cut_off && self.now < BUSY {
            Network::None
        } else if self.now < worker.swallows_until {
            Network::Swallows
        } else {
            Network::Well
        };
        let outcome = self.outcome(run, by);
        if outcome.record.failure == Some(FailureKind::Timeout) {
            self.timed_out.insert(self.account.number_of(run), life);
            self.account.timed_out += 1;
        }
        self.tell_worker(at, ServeInput::Ended { key, outcome: Some(outcome) });
    }

    pub(super) fn local_end(&mut self, at: usize, delivery: DeliveryId, run: u32, told: bool) {
        let outcome = self.outcome(run, Network::Well);
        if let Some(Some(leader)) = self.leaders.get_mut(at) {
            leader.local.remove(&delivery);
            if told {
                self.tell_leader(at, FleetInput::Ended { delivery, outcome });
            } else {
                self.came_back(at, delivery, &Ending::Outcome(outcome));
            }
        }
    }

    pub(super) fn carry_locally(&mut self, at: usize, delivery: DeliveryId, told: bool) {
        let Some(Some(leader)) = self.leaders.get_mut(at) else { return };
        leader.local.insert(delivery);
        let number = leader.in_flight[&delivery];
        let run = self.account.begin((leader.epoch, delivery), None, self.now);
        self.deliveries.excuse(number);
        let takes = self.rng.random_range(MS..300 * MS);
        self.after(takes, Happens::LocalEnd { leader: at, delivery, run, told });
    }
}
