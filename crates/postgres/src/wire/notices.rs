//! Notices in the log: each text once in a while, for a server may repeat one every few seconds.

use std::time::Duration;

use tokio::time::Instant;

use super::error::ServerError;

/// How soon the same text is logged again, and another where there were many.
const AGAIN: Duration = Duration::from_secs(60);

/// So many different texts are logged within that time.
const DIFFERENT: usize = 16;

/// The notices of one connection.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// What was logged lately, and when.
    told: Vec<(String, Instant)>,
    /// What was not since.
    left_out: u64,
}

impl Notices {
    /// Logs a notice.
    pub(super) fn tell(&mut self, error: &ServerError) {
        let text = error.to_string();
        if self.admits(&text, Instant::now()) {
            let left_out = Some(std::mem::take(&mut self.left_out)).filter(|count| *count > 0);
            tracing::info!(sqlstate = %error.sqlstate, left_out, "the server says: {text}");
        }
    }

    fn admits(&mut self, text: &str, now: Instant) -> bool {
        self.told.retain(|(_, at)| now.duration_since(*at) < AGAIN);
        let is_known = self.told.iter().any(|(told, _)| told == text);
        if is_known || self.told.len() >= DIFFERENT {
            self.left_out += 1;
            return false;
        }
        self.told.push((text.to_owned(), now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notice_is_logged_once_a_minute_and_no_more_than_some_different_ones() {
        let (mut notices, start) = (Notices::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let admitted = (0..120).step_by(3).filter(|at| notices.admits("waits", after(*at)));
        assert_eq!(admitted.collect::<Vec<u64>>(), [0, 60]);
        assert_eq!(notices.left_out, 38);
        let different = (0..1_000).filter(|n| notices.admits(&n.to_string(), after(119)));
        assert_eq!(different.count(), DIFFERENT - 1);
        assert_eq!(notices.told.len(), DIFFERENT);
        assert!(notices.admits("another", after(179)), "a minute later there is room");
    }
}
