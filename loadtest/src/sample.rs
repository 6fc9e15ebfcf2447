//! Looking at processes, at the machine, and at numbers.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::Serialize;
use walhook_testkit::memory::memory_bytes;

/// A process's resident memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resident {
    /// Now, in bytes.
    pub now: u64,
    /// The most so far, in bytes.
    pub peak: u64,
}

impl Resident {
    /// Reads it.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: Option<u32>) -> Result<Self> {
        let pid = pid.context("the process has ended")?;
        Ok(Self { now: memory_bytes(pid, "VmRSS:")?, peak: memory_bytes(pid, "VmHWM:")? })
    }
}

/// The machine's load average of the last minute.
///
/// # Errors
/// Where there is no `/proc/loadavg`.
pub fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("an empty /proc/loadavg")?.parse()?)
}

/// What `/metrics` said: values by name and labels, as they stand there.
#[derive(Debug, Clone, Default)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    /// Reads Prometheus' text format.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |line: &str| -> Option<(String, f64)> {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(value).collect())
    }

    /// One of them, such as `walhook_lanes{state="ready"}`; 0 where it is not there.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Those of this name, whatever their labels, added up.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        let its = |labelled: &str| labelled.split('{').next() == Some(name);
        self.0.iter().filter(|(labelled, _)| its(labelled)).map(|(_, value)| value).sum()
    }
}

/// A distribution in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many values.
    pub n: usize,
    /// The median.
    pub p50: f64,
    /// 99 of a hundred are at most this.
    pub p99: f64,
    /// 999 of a thousand are at most this.
    pub p999: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values; nearest rank. All zero without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let rank = |permille: usize| (n * permille).div_ceil(1_000).saturating_sub(1);
        let at = |i: usize| values.get(i).copied().unwrap_or_default();
        Self {
            n,
            p50: at(rank(500)),
            p99: at(rank(990)),
            p999: at(rank(999)),
            min: at(0),
            max: at(n.saturating_sub(1)),
        }
    }

    /// Of microseconds, in milliseconds.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a latency is not exact")]
    pub fn of_micros(values: Vec<u64>) -> Self {
        Self::of(values.into_iter().map(|us| us as f64 / 1_000.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_by_nearest_rank() {
        let spread = Spread::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((spread.p50, spread.p99, spread.min, spread.max), (100.0, 198.0, 1.0, 200.0));
        assert_eq!(spread.p999, 200.0);
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn metrics_are_found_by_name_and_labels() {
        let metrics = Metrics::parse("# TYPE a gauge\na{b=\"c d\"} 3\na{b=\"e\"} 4\nd 1.5\nab 9\n");
        assert_eq!(
            (metrics.get("a{b=\"c d\"}"), metrics.get("d"), metrics.get("e")),
            (3.0, 1.5, 0.0)
        );
        assert_eq!((metrics.sum("a"), metrics.sum("d"), metrics.sum("c")), (7.0, 1.5, 0.0));
    }

    #[test]
    fn resident_memory_is_read_of_our_own_process() {
        let resident = Resident::of(Some(std::process::id())).unwrap();
        assert!(0 < resident.now && resident.now <= resident.peak);
        assert!(Resident::of(None).is_err());
    }
}
