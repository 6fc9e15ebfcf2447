//! What is running: the program's version, and what the process takes of the machine.

use prometheus::{IntGauge, Result};

use super::register::Register;

/// What runs, and its bounds.
#[derive(Debug)]
pub struct AboutMetrics {
    /// `walhook_state_max_bytes`: `state.max_size`, on the leader.
    pub state_max_bytes: IntGauge,
    /// `walhook_state_used_bytes`: what of the state tables is not free for new rows, on the leader.
    pub state_used_bytes: IntGauge,
}

impl AboutMetrics {
    /// Registers `walhook_build_info` too, and Prometheus' usual `process_*`, which are read when they are asked for.
    pub(super) fn new(r: &Register<'_>) -> Result<Self> {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        let info = r.floats("walhook_build_info", &["version", "profile"])?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), profile]).set(1.0);
        #[cfg(target_os = "linux")]
        r.0.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            state_max_bytes: r.gauge("walhook_state_max_bytes")?,
            state_used_bytes: r.gauge("walhook_state_used_bytes")?,
        })
    }
}
