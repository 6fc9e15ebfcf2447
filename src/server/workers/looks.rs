//! Looks whether the bus takes larger messages than it said, while something is too large for it: a server that was told
//! to take them says so to new connections alone.
//!
//! A look that finds it makes the connection anew, which ends the sessions of all workers. Of servers that do not all take
//! the same, another may get the connection, in vain. So after each of these the next look waits twice as long.

use std::time::Duration;

use tokio::task::JoinSet;

use walhook_bus::{Bus, Looked};
use walhook_core::tick::Tick;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(30);

/// The longest wait, after connections that were made anew in vain.
const LONGEST: Duration = Duration::from_secs(3_600);

/// See the module's documentation.
pub(super) struct Looks {
    under_way: JoinSet<Looked>,
    pace: Pace,
}

/// When the next look may be.
struct Pace {
    at: Tick,
    wait: Duration,
}

impl Looks {
    pub(super) fn new() -> Self {
        Self { under_way: JoinSet::new(), pace: Pace::new() }
    }

    /// Looks where it is time, and `something` is too large.
    pub(super) fn look(&mut self, now: Tick, something: bool, bus: &Bus) {
        while let Some(ended) = self.under_way.try_join_next() {
            let Ok(looked) = ended else { continue };
            self.pace.note(now, looked);
            match looked {
                Looked::NoLarger => {}
                Looked::Larger => {
                    tracing::info!("the bus takes larger messages now; connected anew");
                }
                Looked::InVain => tracing::warn!(
                    "only some servers of the bus take larger messages: give all of them the same max_payload"
                ),
            }
        }
        if something && self.under_way.is_empty() && self.pace.begins(now) {
            let bus = bus.clone();
            self.under_way.spawn(async move { bus.look_again().await });
        }
    }
}

impl Pace {
    fn new() -> Self {
        Self { at: Tick(0), wait: EVERY }
    }

    /// Whether it is time for a look, which then begins.
    fn begins(&mut self, now: Tick) -> bool {
        let is_due = now >= self.at;
        if is_due {
            self.at = now + self.wait;
        }
        is_due
    }

    /// What came of it.
    fn note(&mut self, now: Tick, looked: Looked) {
        self.wait = match looked {
            Looked::NoLarger => self.wait,
            Looked::Larger => EVERY,
            Looked::InVain => (self.wait * 2).min(LONGEST),
        };
        self.at = now + self.wait;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks in so many seconds, each of which comes to this.
    fn looks(pace: &mut Pace, from: u64, seconds: u64, looked: Looked) -> usize {
        let mut looks = 0;
        for second in from..from + seconds {
            let now = Tick(0) + Duration::from_secs(second);
            if pace.begins(now) {
                looks += 1;
                pace.note(now, looked);
            }
        }
        looks
    }

    #[test]
    fn connections_that_are_made_anew_in_vain_become_rare_and_looks_that_change_nothing_do_not() {
        let mut pace = Pace::new();
        assert_eq!(looks(&mut pace, 0, 3_600, Looked::NoLarger), 120);
        assert_eq!(looks(&mut pace, 3_600, 3_600, Looked::InVain), 6);
        assert_eq!(looks(&mut pace, 7_200, 24 * 3_600, Looked::InVain), 24);
        assert_eq!(looks(&mut pace, 100_000, 1, Looked::Larger), 1);
        assert_eq!(looks(&mut pace, 100_001, 300, Looked::NoLarger), 10);
    }
}
