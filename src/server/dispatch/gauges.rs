//! What the dispatcher holds and has counted, for the metrics and for a leader's last line.

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Tools};
use walhook_core::event::UnroutableReason;
use walhook_core::persist::DeferReason;
use walhook_dispatch::dispatcher::{Counters, Dispatcher};

/// How often gauges are brought up to date.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) fn report_now_and_then(&mut self) {
        if Instant::now() >= self.next_gauges {
            self.next_gauges = Instant::now() + GAUGES_EVERY;
            self.report();
            self.log.say_withheld(self.tools.clock.now());
        }
    }

    fn report(&mut self) {
        report(&self.dispatcher, &mut self.reported, &self.tools);
        let gauges = self.dispatcher.gauges();
        let pools = [
            (gauges.in_flight_fast, gauges.usable_fast),
            (gauges.in_flight_slow, gauges.usable_slow),
        ];
        self.tools.metrics.set_slots(self.slots, pools);
        let now = self.tools.clock.now();
        if let Some(workers) = &mut self.tools.workers {
            workers.report(now);
        }
        let own = self.tools.sender.proxy_trouble().map(|ours| (ours.since, ours.reason));
        let theirs = || self.tools.workers.as_ref()?.proxy_trouble(now);
        let trouble = own.or_else(theirs);
        self.tools.tell.proxy(trouble.as_ref().map(|(since, reason)| (*since, &**reason)));
        let names = self.tools.sender.names_trouble();
        self.tools.tell.names(names.as_ref().map(|it| (it.since, &*it.reason)));
    }

    /// The last line of a leader that was asked to stop.
    pub(super) fn say_what_is_left(&mut self) {
        self.report();
        let (dispatcher, sent_again) = (&self.dispatcher, self.in_flight());
        tracing::info!(
            finished = self.ended.unwrap_or_default(),
            sent_again,
            queued = dispatcher.queued(),
            deferred = dispatcher.gauges().deferred,
            dead_letters = self.tools.metrics.dead_letters.get(),
            checkpoint = %dispatcher.frontier(),
            "stopped: `finished` requests came to an end since the signal, and `sent_again` are sent again at \
             the next start, as is what was still `queued`; `deferred` deliveries and dead letters are stored"
        );
    }
}

/// Brings the metrics up to date with the dispatcher.
fn report(dispatcher: &Dispatcher, reported: &mut Counters, tools: &Tools) {
    let (metrics, gauges, counters) = (&tools.metrics, dispatcher.gauges(), dispatcher.counters());
    metrics.dead.inc_by(counters.dead - reported.dead);
    metrics.dropped.inc_by(counters.dropped - reported.dropped);
    metrics.in_gaps.inc_by(counters.in_gaps - reported.in_gaps);
    metrics.count_unroutable(UnroutableReason::Endpoints, counters.refused - reported.refused);
    for (reason, (now, then)) in
        DeferReason::ALL.into_iter().zip(counters.deferred.into_iter().zip(reported.deferred))
    {
        metrics.count_deferred(reason, now - then);
    }
    metrics.unrouted_stored.inc_by(counters.unrouted - reported.unrouted);
    metrics.unrouted_routed.inc_by(counters.routed_later - reported.routed_later);
    metrics.unrouted_unwanted.inc_by(counters.unwanted - reported.unwanted);
    metrics.unrouted.set(i64::try_from(gauges.unrouted).unwrap_or(i64::MAX));
    metrics.delivery_log.stored.inc_by(counters.logged - reported.logged);
    metrics.delivery_log.dropped.inc_by(counters.log_dropped - reported.log_dropped);
    *reported = counters;
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    metrics.waits.noisy.set(count(gauges.accounts_noisy));
    metrics.in_flight_fast.set(gauges.in_flight_fast.into());
    metrics.in_flight_slow.set(gauges.in_flight_slow.into());
    let reserved = [gauges.reserved_fast, gauges.reserved_slow];
    metrics.reserved.iter().zip(reserved).for_each(|(gauge, slots)| gauge.set(slots.into()));
    metrics.in_flight_probe.set(gauges.in_flight_probe.into());
    metrics.lanes_ready.set(count(gauges.lanes_ready));
    metrics.lanes_waiting.set(count(gauges.lanes_waiting));
    metrics.deferred.set(i64::try_from(gauges.deferred).unwrap_or(i64::MAX));
    metrics.backlogs.set(count(gauges.backlogs));
    metrics.breakers_open.set(count(gauges.breakers_open));
    metrics.endpoints_disabled.set(count(gauges.endpoints_disabled));
    metrics.endpoints_paused.set(count(gauges.endpoints_paused));
    metrics.endpoints_invalid.set(count(gauges.endpoints_invalid));
    metrics.endpoints_suspended.set(count(gauges.queues_suspended));
    metrics.queued_bytes.set(count(gauges.queued_bytes));
    metrics.kept_bytes.set(count(gauges.kept_bytes));
    metrics.connection_bytes.set(count(tools.sender.held_bytes()));
    let now = tools.clock.now();
    let age = gauges.oldest_unsettled.map_or(Duration::ZERO, |since| now.since(since));
    metrics.set_oldest_unsettled(age);
}
