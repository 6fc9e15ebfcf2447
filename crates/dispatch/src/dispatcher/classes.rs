//! Which accounts are noisy: those that hold more than a tenth of what all have to share.
//!
//! An account is noisy while it holds more than a tenth of the slots' time, on the average of the last five to ten
//! seconds, or of the deliveries in memory, where these are more than there are slots: with fewer nobody waits for
//! anybody. So at most twenty accounts are noisy at once. A delivery is a noisy account's where its account was noisy
//! at any moment since it came: else the last of a flood would count as a quiet account's, with all of the flood's
//! wait.
//!
//! Cost: O(1) for each delivery that comes, is sent or ends.
//!
//! Source: Kubernetes' API priority and fairness tells mice from elephants by what each takes of what is shared.

use super::queues::{Lane, QueueNo, Queues};
use walhook_core::attempt::DeliveryId;
use walhook_core::tick::Tick;

/// A window's length, in microseconds. The one before it counts as well.
const WINDOW_US: u64 = 5_000_000;

/// Who holds more than one part of so many is noisy.
const PARTS: u64 = 10;

/// Whether an account holds much of what all share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum Class {
    /// It does not.
    Quiet,
    /// It holds more than a tenth of the slots' time, or of the work that waits.
    Noisy,
}

impl Class {
    /// Both, in the order of their declaration.
    pub const ALL: [Self; 2] = [Self::Quiet, Self::Noisy];

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Noisy => "noisy",
        }
    }
}

/// How much of the slots' time an account has had lately.
///
/// Invariant: the slot time of this window and of the one before, to the microsecond.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    in_flight: u32,
    /// Up to when it is counted.
    until: Tick,
    this_us: u64,
    before_us: u64,
    /// Deliveries below this one came while it was noisy, or before.
    noisy_before: DeliveryId,
}

/// What all accounts share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared {
    /// Slots, of whichever pool.
    pub(super) slots: u32,
    /// Deliveries in memory.
    pub(super) pending: usize,
}

impl Usage {
    /// The same up to this moment.
    fn passed(mut self, now: Tick) -> Self {
        let length = WINDOW_US;
        let (window, before) = (now.0 / length, self.until.0 / length);
        if window > before {
            let full = u64::from(self.in_flight) * length;
            let end = (before + 1) * length;
            let ended = self.this_us + u64::from(self.in_flight) * (end - self.until.0);
            self.before_us = if window == before + 1 { ended } else { full };
            (self.this_us, self.until) = (0, Tick(window * length));
        }
        self.this_us += u64::from(self.in_flight) * now.0.saturating_sub(self.until.0);
        self.until = self.until.max(now);
        self
    }

    /// Whether it holds too much now, where so many of the account's deliveries are in memory.
    fn is_noisy(&self, pending: usize, shared: Shared, now: Tick) -> bool {
        let held_us = self.this_us.saturating_add(self.before_us);
        let shared_us = u64::from(shared.slots).saturating_mul(WINDOW_US + now.0 % WINDOW_US);
        held_us.saturating_mul(PARTS) > shared_us || shared.is_mostly(pending)
    }
}

impl Shared {
    /// Whether more waits than there are slots, and more than a tenth of it is this.
    fn is_mostly(self, pending: usize) -> bool {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let all = count(self.pending);
        all > u64::from(self.slots) && count(pending).saturating_mul(PARTS) > all
    }
}

impl Queues {
    /// There are so many slots.
    pub(super) fn set_slots(&mut self, slots: u32) {
        self.shared_mut().slots = slots;
    }

    /// A request of the queue's account is sent: `change` is 1. Or it has ended: -1.
    pub(super) fn count_in_flight(&mut self, no: QueueNo, change: i32, now: Tick) {
        let (lane, coming, shared) = self.lane_in_class(no);
        let pending = lane.pending();
        let usage = lane.usage_mut();
        *usage = usage.passed(now);
        let Some(in_flight) = usage.in_flight.checked_add_signed(change) else {
            panic!("a request ends, and its account has none in flight")
        };
        usage.in_flight = in_flight;
        if usage.is_noisy(pending, shared, now) {
            usage.noisy_before = coming;
        }
    }

    /// A delivery of the queue has come.
    pub(super) fn count_pending(&mut self, no: QueueNo) {
        let (lane, coming, shared) = self.lane_in_class(no);
        if shared.is_mostly(lane.pending()) {
            lane.usage_mut().noisy_before = coming;
        }
    }

    /// The class of a delivery that is in memory, or was a moment ago.
    pub(super) fn class_of(&mut self, no: QueueNo, id: DeliveryId) -> Class {
        let (lane, ..) = self.lane_in_class(no);
        if id < lane.usage().noisy_before { Class::Noisy } else { Class::Quiet }
    }

    /// Accounts that are noisy at this moment.
    pub(super) fn noisy(&self, now: Tick) -> usize {
        let is_noisy =
            |lane: &&Lane| lane.usage().passed(now).is_noisy(lane.pending(), self.shared(), now);
        self.lanes().filter(is_noisy).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::rig::{Rig, settings};
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use walhook_core::event::{AccountId, EndpointId};

    proptest! {
        /// The model: a list of spans with their requests in flight, looked through.
        #[test]
        fn usage_counts_the_slot_time_of_this_window_and_the_one_before(
            spans in prop::collection::vec((0u64..12_000_000, 0u32..5), 1..40),
        ) {
            let length = WINDOW_US;
            let (mut usage, mut now, mut held) = (Usage::default(), 0u64, Vec::new());
            for (us, in_flight) in spans {
                usage.in_flight = in_flight;
                held.push((now, now + us, in_flight));
                now += us;
                usage = usage.passed(Tick(now));
                let this = now / length * length;
                let within = |from: u64, to: u64| -> u64 {
                    let overlap = |(a, b, n): &(u64, u64, u32)| {
                        u64::from(*n) * b.min(&to).saturating_sub(*a.max(&from))
                    };
                    held.iter().map(overlap).sum()
                };
                prop_assert_eq!(usage.this_us, within(this, now));
                prop_assert_eq!(usage.before_us, within(this.saturating_sub(length), this));
            }
        }
    }

    fn class_of(rig: &mut Rig, name: &str, id: DeliveryId) -> Class {
        let queue = rig.dispatcher.queues.find_of(&AccountId::new(name), &EndpointId::new(name));
        rig.dispatcher.queues.class_of(queue.unwrap(), id)
    }

    #[test]
    fn account_with_most_of_what_waits_is_noisy_and_so_is_all_of_its_flood() {
        let mut rig = Rig::new(settings());
        for _ in 0..200 {
            rig.commit("whale");
        }
        rig.commit("small");
        let sent = rig.send();
        let classes: Vec<(String, DeliveryId)> = sent
            .iter()
            .map(|dispatch| {
                let delivery = dispatch.attempt.first();
                (delivery.event.account.to_string(), delivery.id)
            })
            .collect();
        assert!(classes.iter().any(|(account, _)| account == "small"), "{classes:?}");
        for (account, id) in classes {
            let expected = if account == "whale" { Class::Noisy } else { Class::Quiet };
            assert_eq!(class_of(&mut rig, &account, id), expected);
        }
        assert_eq!(rig.dispatcher.gauges().accounts_noisy, 1);
        for dispatch in sent {
            rig.answer(dispatch.attempt.first().id, 204);
        }
        // The last of it, when hardly anything is left.
        loop {
            let sent = rig.send();
            let Some(last) = sent.last() else { break };
            let id = last.attempt.first().id;
            assert_eq!(class_of(&mut rig, "whale", id), Class::Noisy);
            sent.iter().for_each(|dispatch| rig.answer(dispatch.attempt.first().id, 204));
        }
        rig.wait(Duration::from_micros(2 * WINDOW_US));
        assert_eq!(rig.dispatcher.gauges().accounts_noisy, 0);
        rig.commit("whale");
        let id = rig.send()[0].attempt.first().id;
        assert_eq!(class_of(&mut rig, "whale", id), Class::Quiet, "it was noisy once");
    }

    #[test]
    fn account_that_holds_slots_for_long_is_noisy_although_nothing_waits() {
        let mut rig = Rig::new(Settings { fast_slots: 16, slow_slots: 16, ..settings() });
        for _ in 0..10 {
            rig.commit("slow");
        }
        let sent = rig.send().len();
        assert!(sent >= 4, "only {sent} were sent");
        rig.wait(Duration::from_micros(2 * WINDOW_US));
        assert_eq!(rig.dispatcher.gauges().accounts_noisy, 1, "{sent} of 32 slots are its");
    }
}
