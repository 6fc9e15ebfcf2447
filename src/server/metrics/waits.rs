//! The metrics of why deliveries wait, and of quiet and noisy accounts.

use std::time::Duration;

use prometheus::{Counter, Gauge, Histogram, IntGauge, Result};

use super::LATENCY_BUCKETS;
use super::register::Register;
use walhook_core::waits::Cause;
use walhook_dispatch::dispatcher::{Class, Measured};

/// From a moment in a queue to hours in the table.
const WAIT_BUCKETS: [f64; 13] =
    [0.000_1, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 1_800.0, 7_200.0];

/// Of deliveries that were taken, and that nobody had asked for.
#[derive(Debug)]
pub struct WaitMetrics {
    /// `walhook_noisy_accounts`: accounts that hold more than a tenth of what all share.
    pub noisy: IntGauge,
    /// `walhook_clock_skew_seconds`: how far the source's clock is ahead of this process's.
    pub skew: Gauge,
    /// `walhook_wait_seconds{cause}`, by the causes' places.
    held: Vec<Histogram>,
    first_try: Histogram,
    /// By the classes' places.
    classes: Vec<OfClass>,
}

#[derive(Debug)]
struct OfClass {
    /// `walhook_dwell_seconds{class}`.
    dwell: Histogram,
    /// `walhook_wait_seconds_total{class,cause}`, by the causes' places.
    held: Vec<Counter>,
}

impl WaitMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self> {
        let held = r.histograms("walhook_wait_seconds", "cause", &WAIT_BUCKETS)?;
        let dwell = r.histograms("walhook_dwell_seconds", "class", &LATENCY_BUCKETS)?;
        let seconds = r.float_counters("walhook_wait_seconds_total", &["class", "cause"])?;
        let of_class = |class: Class| OfClass {
            dwell: dwell.with_label_values(&[class.as_str()]),
            held: Cause::ALL
                .map(|cause| seconds.with_label_values(&[class.as_str(), cause.as_str()]))
                .into(),
        };
        let skew = r.float("walhook_clock_skew_seconds")?;
        // Until the leader has asked, it is not known.
        skew.set(f64::NAN);
        Ok(Self {
            noisy: r.gauge("walhook_noisy_accounts")?,
            skew,
            held: Cause::ALL.map(|cause| held.with_label_values(&[cause.as_str()])).into(),
            first_try: r.histogram("walhook_first_try_latency_seconds", &LATENCY_BUCKETS)?,
            classes: Class::ALL.map(of_class).into(),
        })
    }

    /// Counts a delivery that was taken.
    pub fn count(&self, measured: &Measured) {
        let Measured { waits, class, first_try } = measured;
        let took = Duration::from_micros(waits.total_us()).as_secs_f64();
        let of_class = self.classes.get(*class as usize);
        for (cause, us) in waits.iter() {
            let seconds = Duration::from_micros(us).as_secs_f64();
            if let Some(held) = self.held.get(cause as usize) {
                held.observe(seconds);
            }
            if let Some(held) = of_class.and_then(|of| of.held.get(cause as usize)) {
                held.inc_by(seconds);
            }
        }
        if let Some(of_class) = of_class {
            of_class.dwell.observe(took);
        }
        if *first_try {
            self.first_try.observe(took);
        }
    }

    /// Nobody leads here.
    pub(super) fn clear(&self) {
        self.noisy.set(0);
        self.skew.set(f64::NAN);
    }
}
