//! What the tasks tell the metrics: what is counted and observed, and what now is.

use std::time::Duration;

use super::{Metrics, NoticeResult};
use crate::server::trouble::Part;
use walhook_core::attempt::{Outcome, Record};
use walhook_core::event::UnroutableReason;
use walhook_core::persist::DeferReason;
use walhook_dispatch::dispatcher::EndpointChange;
use walhook_rules::name::pattern_covers;

impl Metrics {
    /// Counts an event by its type, or else by the longest pattern of a rule that covers it: types that
    /// rows bring along are without number. What no rule covers is not counted.
    pub fn count_event(&self, event_type: &str) {
        let by_pattern = || {
            let covers = |name: &str| pattern_covers(name, event_type);
            let named = self.events.iter().filter(|(name, _)| covers(name));
            named.max_by_key(|(name, _)| name.len()).map(|(_, counter)| counter)
        };
        if let Some(counter) = self.events.get(event_type).or_else(by_pattern) {
            counter.inc();
        }
    }

    /// Counts deliveries that were deferred for this reason.
    pub fn count_deferred(&self, reason: DeferReason, deliveries: u64) {
        self.deferred_in_all.inc_by(deliveries);
        if let Some(counter) = self.deferred_by_reason.get(reason.as_str()) {
            counter.inc_by(deliveries);
        }
    }

    /// Counts changes that could not be turned into events, or events whose endpoints cannot be told.
    pub fn count_unroutable(&self, reason: UnroutableReason, changes: u64) {
        if let Some(counter) = self.unroutable.get(reason.as_str()) {
            counter.inc_by(changes);
        }
    }

    /// Counts a request that came to an end, with the time it took.
    pub fn count_attempt(&self, outcome: &Outcome) {
        let Record { status, failure, .. } = &outcome.record;
        let label = match (failure, status) {
            (Some(failure), _) => failure.as_str(),
            (None, Some(200..300)) => "2xx",
            (None, Some(300..400)) => "3xx",
            (None, Some(400..500)) => "4xx",
            (None, Some(500..600)) => "5xx",
            (None, _) => "other",
        };
        if let Some(counter) = self.attempts.get(label) {
            counter.inc();
        }
        self.resends.inc_by(outcome.resends.into());
        self.attempt_duration.observe(outcome.elapsed.as_secs_f64());
    }

    /// Sets how many workers are in this state, which is one of `WORKER_STATES`.
    pub fn set_workers(&self, state: &str, workers: i64) {
        if let Some(gauge) = self.workers.get(state) {
            gauge.set(workers);
        }
    }

    /// Counts second opinions with this result, which is one of `SECOND_OPINIONS`.
    pub fn count_second_opinions(&self, result: &str, opinions: u64) {
        if let Some(counter) = self.second_opinions.get(result) {
            counter.inc_by(opinions);
        }
    }

    /// Counts attempts that an earlier leader's workers had made, by what was known of them: one of `ADOPTED`.
    pub fn count_adopted(&self, result: &str, attempts: u64) {
        if let Some(counter) = self.adopted.get(result) {
            counter.inc_by(attempts);
        }
    }

    /// Sets how many requests may be in flight; and of each pool how many are, and how many may be. A full pool
    /// makes its deliveries wait, however much is free in the other.
    pub fn set_slots(&self, slots: u32, pools: [(u32, u32); 2]) {
        self.worker_slots.set(slots.into());
        // None in flight, where there may be none: nothing is wanting then.
        let in_use = |(in_flight, usable): (u32, u32)| {
            (f64::from(in_flight) / f64::from(usable.max(1))).min(1.0)
        };
        self.slots_in_use.set(pools.map(in_use).into_iter().fold(0.0, f64::max));
    }

    /// Counts a change of an endpoint's state.
    pub fn count_endpoint_change(&self, change: EndpointChange) {
        if let Some(counter) = self.endpoint_changes.get(change.as_str()) {
            counter.inc();
        }
    }

    /// Counts what came of a notice.
    pub fn count_notice(&self, result: NoticeResult) {
        self.notify_failing.set(i64::from(result != NoticeResult::Sent));
        if let Some(counter) = self.notices.get(result.as_str()) {
            counter.inc();
        }
    }

    /// Counts a delivery that ended with a 2xx, `since_commit` after its transaction's commit.
    pub fn count_delivered(&self, since_commit: Duration) {
        self.delivered.inc();
        self.delivery_latency.observe(since_commit.as_secs_f64());
    }

    /// Records how long a delivery waited until its first request.
    pub fn observe_queue_wait(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// Sets the age of the oldest transaction that holds the checkpoint back; zero for none.
    pub fn set_oldest_unsettled(&self, age: Duration) {
        self.oldest_unsettled.set(age.as_secs_f64());
    }

    /// Sets what the server says of the slot. `safe_bytes` is `None` where nothing limits it.
    pub fn set_slot(&self, retained_bytes: u64, safe_bytes: Option<u64>) {
        self.slot_retained.set(saturate(retained_bytes));
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.slot_safe.set(safe_bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
    }

    /// Sets what the state tables take, and what of it rows take.
    pub fn set_state_size(&self, total_bytes: u64, used_bytes: u64) {
        self.state_bytes.set(saturate(total_bytes));
        self.about.state_used_bytes.set(saturate(used_bytes));
    }

    /// Sets the distance from the checkpoint to the end of what was received.
    pub fn set_checkpoint_lag(&self, bytes: u64) {
        self.checkpoint_lag.set(saturate(bytes));
    }

    /// Sets for how long a part has been failing; zero: it works.
    pub fn set_failing(&self, part: Part, age: Duration) {
        if let Some(gauge) = self.failing.get(&part) {
            gauge.set(age.as_secs_f64());
        }
    }

    /// Says whether this instance is the leader. What only a leader knows is forgotten when it no longer
    /// is, or it would stand there beside what the next one says.
    pub fn set_leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
        if leader {
            return;
        }
        for gauge in [
            &self.notify_failing,
            &self.in_flight_fast,
            &self.in_flight_slow,
            &self.in_flight_probe,
            &self.lanes_ready,
            &self.lanes_waiting,
            &self.queued_bytes,
            &self.kept_bytes,
            &self.connection_bytes,
            &self.worker_slots,
            &self.deferred,
            &self.backlogs,
            &self.breakers_open,
            &self.endpoints_disabled,
            &self.endpoints_paused,
            &self.endpoints_suspended,
            &self.endpoints_invalid,
            &self.dead_letters,
            &self.gaps,
            &self.uncovered,
            &self.state_bytes,
            &self.about.state_used_bytes,
            &self.about.state_max_bytes,
            &self.delivery_log.bytes,
            &self.replay_window,
            &self.slot_retained,
            &self.checkpoint_lag,
        ] {
            gauge.set(0);
        }
        for gauge in self.workers.values().chain(&self.reserved) {
            gauge.set(0);
        }
        self.streamed.clear();
        self.waits.clear();
        self.slots_in_use.set(0.0);
        self.oldest_unsettled.set(0.0);
        self.slot_safe.set(f64::NAN);
        self.bus_connected.set(f64::NAN);
    }
}

fn saturate(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
