//! When the stream is opened without streaming although it was asked for: for a while, after what was to be
//! kept of open transactions could not be.

use std::time::Duration;

use crate::config::{self, Config};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// From the first time on. A stranger's transaction that stays open for hours would otherwise make the server
/// decode its WAL over and over.
const FIRST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Doubled with each further time up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(80 * 60);

/// From one transaction for which it is off no longer than until that is read to the next: a writer whose
/// transactions are all such would otherwise have the stream opened anew for each.
const BRIEFLY_EVERY: Duration = Duration::from_secs(60);

/// Why streaming was given up for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::server) enum Fallback {
    /// Memory is full, and there is no spool.
    Memory,
    /// The spool has reached `source.spool_max`.
    SpoolFull,
    /// The spool could not be written or read.
    Disk,
    /// A change could not be sent or understood before it was known which transaction it belongs to.
    Unreadable,
    /// A transaction holds logical messages whose place in it can only be told when it comes as a whole.
    Unclear,
}

impl Fallback {
    /// All of them.
    pub(in crate::server) const ALL: [Self; 5] =
        [Self::Memory, Self::SpoolFull, Self::Disk, Self::Unreadable, Self::Unclear];

    /// The label's value in the metrics.
    pub(in crate::server) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::SpoolFull => "spool_full",
            Self::Disk => "disk",
            Self::Unreadable => "unreadable",
            Self::Unclear => "unclear",
        }
    }

    /// What an operator can do about it.
    pub(super) const fn fix(self) -> &'static str {
        match self {
            Self::Memory => {
                "give walhook a directory: source.spool, or CacheDirectory= in its systemd unit; or raise \
                 memory.limit"
            }
            Self::SpoolFull => "raise source.spool_max, or find out who keeps so much uncommitted",
            Self::Disk => {
                "see that source.spool is a directory that walhook can write and read, and make room on its disk"
            }
            Self::Unclear => "do nothing: it is read as a whole, and streaming goes on behind it",
            Self::Unreadable => {
                "do nothing: what cannot be read is found again when it has committed"
            }
        }
    }
}

/// Until when it is off although it is wanted.
#[derive(Debug, Clone, Copy)]
enum Off {
    Until(Tick),
    /// Until all before this is read.
    Behind(Lsn),
}

/// Whether the stream is to be opened with streaming.
#[derive(Debug)]
pub(in crate::server) struct Streaming {
    wanted: bool,
    off: Option<Off>,
    on_since: Tick,
    pause: Duration,
    /// When it was last given up for one transaction alone.
    briefly_at: Option<Tick>,
}

impl Streaming {
    /// As the configuration wants it.
    pub(in crate::server) fn new(config: &Config, now: Tick) -> Self {
        Self::of(config.source.streaming == config::Streaming::On, now)
    }

    const fn of(wanted: bool, now: Tick) -> Self {
        Self { wanted, off: None, on_since: now, pause: FIRST_PAUSE, briefly_at: None }
    }

    /// Whether the next connection streams.
    pub(super) const fn is_on(&self) -> bool {
        self.wanted && self.off.is_none()
    }

    /// Gives it up, for longer where it did not last. Says for how long.
    pub(super) fn fall_back(&mut self, now: Tick) -> Duration {
        if now >= self.on_since + self.pause * 2 {
            self.pause = FIRST_PAUSE;
        }
        let pause = self.pause;
        self.off = Some(Off::Until(now + pause));
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// It was given up for the sake of one transaction: it is off for no longer than until all before `end_lsn` is
    /// read, unless such a one came lately.
    pub(super) fn off_behind(&mut self, end_lsn: Lsn, now: Tick) {
        let last = self.briefly_at.replace(now);
        if last.is_none_or(|last| now >= last + BRIEFLY_EVERY) {
            self.off = Some(Off::Behind(end_lsn));
            self.pause = FIRST_PAUSE.max(self.pause / 2);
        }
    }

    /// Whether it is off and to be tried again, when all before `read_to` is read.
    pub(super) fn is_due(&self, now: Tick, read_to: Lsn) -> bool {
        match self.off.filter(|_| self.wanted) {
            None => false,
            Some(Off::Until(due)) => now >= due,
            Some(Off::Behind(end)) => read_to >= end,
        }
    }

    /// Tries again.
    pub(super) fn resume(&mut self, now: Tick) {
        self.off = None;
        self.on_since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_that_does_not_last_is_given_up_for_ever_longer() {
        let start = Tick::default();
        let mut streaming = Streaming::of(true, start);
        assert!(streaming.is_on() && !streaming.is_due(start, Lsn(1)));
        let mut now = start + Duration::from_secs(1);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let pause = streaming.fall_back(now);
            assert!(!streaming.is_on());
            pauses.push(pause.as_secs() / 60);
            now = now + pause - Duration::from_micros(1);
            assert!(!streaming.is_due(now, Lsn(1)));
            now = now + Duration::from_micros(1);
            assert!(streaming.is_due(now, Lsn(0)));
            streaming.resume(now);
            now = now + Duration::from_secs(30);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 80]);
        // It lasted for longer than it would be given up: what was then is forgotten.
        assert_eq!(streaming.fall_back(now + Duration::from_secs(10 * 3_600)), FIRST_PAUSE);
        streaming.off_behind(Lsn(7), now);
        assert!(!streaming.is_on() && !streaming.is_due(now, Lsn(6)));
        assert!(streaming.is_due(start, Lsn(7)), "as soon as what it could not keep is read");
        streaming.resume(now);
        let pause = streaming.fall_back(now);
        assert_eq!(pause, FIRST_PAUSE, "the one before is not counted");
        streaming.off_behind(Lsn(9), now);
        assert!(!streaming.is_due(now, Lsn(9)), "another one at once");
        assert!(streaming.is_due(now + pause, Lsn(0)));
        assert!(!Streaming::of(false, start).is_on(), "as the configuration says");
    }

    #[test]
    fn fix_is_something_to_do() {
        for reason in Fallback::ALL {
            assert!(walhook_testkit::wording::is_imperative(reason.fix()), "{}", reason.fix());
        }
    }
}
