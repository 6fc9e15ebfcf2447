//! The processes that send for a leader, as it sees them: some are lost with what they carry, some never begin what
//! they were given, and with them slots come and go.

use std::collections::HashSet;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::attempt::{DeliveryId, FailureKind, Outcome};
use walhook_dispatch::dispatcher::{Input, Settings};

use crate::counts::Counts;
use crate::faults::Fault;
use crate::plan::Plan;

/// What a worker that is lost was silent for.
const SILENCE: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct Workers {
    rng: SmallRng,
    are_lost: bool,
    leave_unsent: bool,
    come_and_go: bool,
    are_silent: bool,
    /// The requests that were never begun, by the number of their end.
    unsent: HashSet<u64>,
}

/// How a request goes that a worker carries.
pub(crate) enum Carried {
    /// As the endpoint answers.
    Well,
    /// The worker is lost. Whether the endpoint has the request nevertheless.
    Lost(bool),
    /// It is not begun.
    Unsent,
}

impl Workers {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            rng: plan.rng("workers"),
            are_lost: plan.has(Fault::WorkerLost),
            leave_unsent: plan.has(Fault::Unsent),
            come_and_go: plan.has_varying_slots(),
            are_silent: plan.has(Fault::Doubt),
            unsent: HashSet::new(),
        }
    }

    /// How the request goes that ends with this number.
    pub(crate) fn carry(&mut self, ends: u64, counts: &mut Counts) -> Carried {
        if self.are_lost && self.rng.random_bool(0.002) {
            counts.fault(Fault::WorkerLost);
            return Carried::Lost(self.rng.random_bool(0.5));
        }
        if self.leave_unsent && self.rng.random_bool(0.004) {
            counts.fault(Fault::Unsent);
            self.unsent.insert(ends);
            return Carried::Unsent;
        }
        Carried::Well
    }

    /// What a leader is told of a request whose worker is lost.
    pub(crate) fn lost() -> Outcome {
        Outcome { elapsed: SILENCE, ..Outcome::failed(FailureKind::Lost, "simulated", SILENCE) }
    }

    /// What a request that is not begun looks like to whoever sees requests end, and when it ends.
    pub(crate) fn unsent(&mut self) -> Outcome {
        let after = Duration::from_millis(self.rng.random_range(1..3_000));
        Outcome::failed(FailureKind::Local, "simulated", after)
    }

    /// Whether the request that ends with this number was never begun.
    pub(crate) fn was_unsent(&mut self, ends: u64) -> bool {
        self.unsent.remove(&ends)
    }

    /// At times nothing is heard of those who carry some of these, or again of some. Of which that was said, and that it
    /// was said twice, makes no difference.
    pub(crate) fn doubt(
        &mut self,
        in_flight: impl Iterator<Item = DeliveryId>,
        counts: &mut Counts,
    ) -> Option<Input> {
        if !self.are_silent || !self.rng.random_bool(0.2) {
            return None;
        }
        let doubtful = self.rng.random_bool(0.5);
        let deliveries: Vec<_> = in_flight.filter(|_| self.rng.random_bool(0.3)).collect();
        if deliveries.is_empty() {
            return None;
        }
        counts.fault(Fault::Doubt);
        Some(Input::Doubt { deliveries, doubtful })
    }

    /// Slots come or go, at times. Half of them stay.
    pub(crate) fn slots(&mut self, settings: &Settings, counts: &mut Counts) -> Option<Input> {
        if !self.come_and_go || !self.rng.random_bool(0.2) {
            return None;
        }
        counts.fault(Fault::Slots);
        let mut some = |slots: u32| self.rng.random_range(slots.div_ceil(2)..=slots);
        Some(Input::Slots { fast: some(settings.fast_slots), slow: some(settings.slow_slots) })
    }
}
