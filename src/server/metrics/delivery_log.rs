//! The metrics of the delivery log.

use prometheus::{IntCounter, IntGauge, Result};

use super::register::Register;

/// Of the delivery log.
#[derive(Debug)]
pub struct LogMetrics {
    /// `walhook_delivery_log_bytes`: what its table takes on disk.
    pub bytes: IntGauge,
    /// `walhook_delivery_log_entries_total{result="stored"}`: lines that are stored.
    pub stored: IntCounter,
    /// `walhook_delivery_log_entries_total{result="dropped"}`: lines that were left out.
    pub dropped: IntCounter,
}

impl LogMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self> {
        let entries = r.counters("walhook_delivery_log_entries_total", "result")?;
        Ok(Self {
            bytes: r.gauge("walhook_delivery_log_bytes")?,
            stored: entries.with_label_values(&["stored"]),
            dropped: entries.with_label_values(&["dropped"]),
        })
    }
}
