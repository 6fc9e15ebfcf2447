//! The metrics of transactions that are received while they are open.

use std::collections::HashMap;

use prometheus::{IntCounter, IntGauge, Result};

use super::register::{Register, by_label};
use crate::server::reader::Fallback;

/// Of transactions that are received while they are open.
#[derive(Debug)]
pub struct StreamedMetrics {
    /// `walhook_open_transactions`: those whose commit has not come.
    pub open: IntGauge,
    /// `walhook_streamed_transactions_total{result="committed"}`: those that were sent on.
    pub committed: IntCounter,
    /// `walhook_streamed_transactions_total{result="aborted"}`: those that were given up, whole.
    pub aborted: IntCounter,
    /// `walhook_streamed_rows_total`: their changes, as they came.
    pub rows: IntCounter,
    /// `walhook_streamed_bytes_total`: the bytes of these.
    pub bytes: IntCounter,
    /// `walhook_streamed_aborted_bytes_total`: of these, the bytes of what was rolled back.
    pub aborted_bytes: IntCounter,
    /// `walhook_streamed_memory_bytes`: what is kept in memory.
    pub memory_bytes: IntGauge,
    /// `walhook_spool_bytes`: what the spool takes on disk.
    pub spool_bytes: IntGauge,
    /// `walhook_spooled_bytes_total`: what was ever written there.
    pub spooled_bytes: IntCounter,
    fallbacks: HashMap<Fallback, IntCounter>,
}

impl StreamedMetrics {
    pub(super) fn new(r: &Register<'_>) -> Result<Self> {
        let transactions = r.counters("walhook_streamed_transactions_total", "result")?;
        let fallbacks = r.counters("walhook_stream_fallbacks_total", "reason")?;
        Ok(Self {
            open: r.gauge("walhook_open_transactions")?,
            committed: transactions.with_label_values(&["committed"]),
            aborted: transactions.with_label_values(&["aborted"]),
            rows: r.counter("walhook_streamed_rows_total")?,
            bytes: r.counter("walhook_streamed_bytes_total")?,
            aborted_bytes: r.counter("walhook_streamed_aborted_bytes_total")?,
            memory_bytes: r.gauge("walhook_streamed_memory_bytes")?,
            spool_bytes: r.gauge("walhook_spool_bytes")?,
            spooled_bytes: r.counter("walhook_spooled_bytes_total")?,
            fallbacks: by_label(&fallbacks, Fallback::ALL, |reason| reason.as_str()),
        })
    }

    /// Counts that streaming was given up for a while.
    pub(in crate::server) fn count_fallback(&self, reason: Fallback) {
        if let Some(counter) = self.fallbacks.get(&reason) {
            counter.inc();
        }
    }

    /// Nobody leads here: there are none.
    pub(super) fn clear(&self) {
        for gauge in [&self.open, &self.memory_bytes, &self.spool_bytes] {
            gauge.set(0);
        }
    }
}
