//! Where the time went between commit and 2xx, as the pipeline itself counts it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Causes that are shown of each class.
const SHOWN: usize = 4;

/// What deliveries of the pipeline's two classes waited for. Quiet are accounts that hold at most a tenth of what all
/// share, noisy are the others.
#[derive(Debug, Clone, Default, Serialize)]
pub struct WaitSummary {
    /// What was taken of quiet accounts.
    pub quiet: ClassWaits,
    /// What was taken of noisy accounts.
    pub noisy: ClassWaits,
}

/// The same of one class.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClassWaits {
    /// Deliveries that were taken.
    pub delivered: u64,
    /// How long each cause held them, all together, in seconds.
    pub seconds: BTreeMap<String, f64>,
}

impl WaitSummary {
    /// Adds what a process of the pipeline has counted, as its metrics say.
    pub(super) fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (Some(class), cause) = (label(series, "class"), label(series, "cause")) else {
                continue;
            };
            let of_class = if class == "quiet" { &mut self.quiet } else { &mut self.noisy };
            if series.starts_with("walhook_dwell_seconds_count{") {
                of_class.delivered += whole(value);
            } else if let Some(cause) = cause.filter(|_| value > 0.0) {
                *of_class.seconds.entry(cause.to_owned()).or_default() += value;
            }
        }
    }
}

impl fmt::Display for WaitSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (class, waits) in [("quiet", &self.quiet), ("noisy", &self.noisy)] {
            if waits.delivered == 0 {
                continue;
            }
            let all: f64 = waits.seconds.values().sum();
            let mut most: Vec<(&String, &f64)> = waits.seconds.iter().collect();
            most.sort_by(|a, b| b.1.total_cmp(a.1));
            let shares: Vec<String> = most
                .into_iter()
                .take(SHOWN)
                .map(|(cause, seconds)| format!("{cause} {:.0} %", 100.0 * seconds / all))
                .collect();
            writeln!(f, "{class} accounts waited for: {}", shares.join(", "))?;
        }
        Ok(())
    }
}

/// The value of a series' label.
fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let (_, labels) = series.split_once('{')?;
    let labels = labels.strip_suffix('}')?.split(',');
    let mut values = labels.filter_map(|label| label.split_once('='));
    values.find(|(label, _)| *label == name).map(|(_, value)| value.trim_matches('"'))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count, which is whole and not negative"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_adds_what_processes_counted_and_shows_what_held_most() {
        let metrics = "walhook_dwell_seconds_bucket{class=\"quiet\",le=\"1\"} 7\n\
                       walhook_dwell_seconds_count{class=\"quiet\"} 10\n\
                       walhook_wait_seconds_total{cause=\"attempt\",class=\"quiet\"} 0.75\n\
                       walhook_wait_seconds_total{cause=\"turn\",class=\"quiet\"} 0.25\n\
                       walhook_wait_seconds_total{cause=\"pool\",class=\"quiet\"} 0\n\
                       walhook_wait_seconds_sum{cause=\"turn\"} 5\n";
        let mut summary = WaitSummary::default();
        summary.add(metrics);
        summary.add(metrics);
        assert_eq!(summary.quiet.delivered, 20);
        assert_eq!(summary.to_string(), "quiet accounts waited for: attempt 75 %, turn 25 %\n");
        assert!((summary.quiet.seconds["attempt"] - 1.5).abs() < 1e-9);
    }
}
