//! What the metrics of a process say that matters over all lives.

use std::fmt;
use std::ops::AddAssign;

use super::log_audit;

/// Counters of one process, or of some.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// Lines of the delivery log that were left out.
    pub(crate) left_out: u64,
    /// Transactions that were received while they were open, by how they ended.
    pub(crate) committed: u64,
    pub(crate) aborted: u64,
    /// What of such transactions went to the spool.
    pub(crate) spooled_bytes: u64,
    /// How often streaming was given up for a while.
    pub(crate) fallbacks: u64,
}

impl Told {
    /// Reads Prometheus' text format.
    pub(crate) fn by(metrics: &str) -> Self {
        let sum = |name: &str, label: &str| {
            let its = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
            its.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let streamed = "walhook_streamed_transactions_total";
        Self {
            left_out: log_audit::left_out(metrics).unwrap_or_default(),
            committed: sum(streamed, "result=\"committed\""),
            aborted: sum(streamed, "result=\"aborted\""),
            spooled_bytes: sum("walhook_spooled_bytes_total", ""),
            fallbacks: sum("walhook_stream_fallbacks_total", ""),
        }
    }
}

impl AddAssign for Told {
    fn add_assign(&mut self, other: Self) {
        self.left_out += other.left_out;
        self.committed += other.committed;
        self.aborted += other.aborted;
        self.spooled_bytes += other.spooled_bytes;
        self.fallbacks += other.fallbacks;
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { committed, aborted, spooled_bytes, fallbacks, .. } = self;
        write!(
            f,
            "streamed transactions: committed {committed}, rolled back {aborted}; spooled bytes {spooled_bytes}; \
             streaming given up {fallbacks}"
        )
    }
}
