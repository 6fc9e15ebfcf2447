//! Requests of a flood are spread over the time that they take, instead of all at once.
//!
//! Endpoints that take as long as each other answer at the same moments: what was sent together ends together, and
//! is followed together. So 248 slots whose requests take 50 ms are a burst of 248 every 50 ms, which the processor
//! works off in the order in which it came. Whoever commits within it waits for all of it, however free slots are.
//!
//! Here a request costs what it is known to hold its slot, divided by all slots: the mean time between two where all
//! of them are in use. Requests may go three times as fast as that, so that no slot is ever kept from use for long:
//! those that were spread once end one after the other, and are followed one after the other.
//!
//! An idle lane never waits for it, nor does a request for which nothing is known.

use std::time::Duration;

use walhook_core::tick::{Tick, micros};

/// What may go within this time may go at once: timers ring to a millisecond, and late.
const AT_ONCE: Duration = Duration::from_millis(2);

/// So many times faster than all slots could follow each other.
const HASTE: u64 = 3;

/// See the module's documentation.
///
/// Invariant: whatever is sent, the next request waits for the spacing of the last one at most; and for none, once all
/// that was sent could have followed each other at this pace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// When all that was sent could have followed each other.
    even: Tick,
}

impl Pace {
    /// A request is sent from one of so many slots, for which it is known to hold it for so long.
    pub fn sent(&mut self, now: Tick, hold: Duration, slots: u32) {
        let spacing = micros(hold) / (HASTE * u64::from(slots.max(1)));
        self.even = self.even.max(now) + Duration::from_micros(spacing);
    }

    /// When the next one may be sent, where that is not now.
    #[must_use]
    pub fn until(&self, now: Tick) -> Option<Tick> {
        (self.even.since(now) > AT_ONCE).then(|| Tick(self.even.0 - micros(AT_ONCE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u32 = 248;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn flood_goes_at_three_times_the_pace_of_its_slots_behind_a_few_at_once() {
        let (mut pace, mut now, mut sent) = (Pace::default(), Tick(7), Vec::new());
        while sent.len() < 248 {
            match pace.until(now) {
                None => {
                    pace.sent(now, ms(50), SLOTS);
                    sent.push(now);
                }
                Some(until) => {
                    assert!(until > now, "it can be sent at the moment that is said");
                    now = until;
                }
            }
        }
        assert_eq!(sent.iter().filter(|at| **at == Tick(7)).count(), 30);
        let took = sent.last().unwrap().since(Tick(7));
        assert!(took > ms(14) && took < ms(15), "{took:?}");
    }

    #[test]
    fn whoever_comes_late_catches_up() {
        let (mut pace, start) = (Pace::default(), Tick(0));
        (0..30).for_each(|_| pace.sent(start, ms(50), SLOTS));
        assert!(pace.until(start).is_some());
        // A timer rings a little late: all that could have gone meanwhile goes at once.
        let late = start + ms(2);
        let at_once = std::iter::from_fn(|| {
            pace.until(late).is_none().then(|| pace.sent(late, ms(50), SLOTS))
        });
        assert_eq!(at_once.count(), 30);
    }

    #[test]
    fn short_and_unknown_requests_are_not_spaced() {
        let (mut pace, now) = (Pace::default(), Tick(9));
        (0..1_000).for_each(|_| pace.sent(now, Duration::ZERO, SLOTS));
        assert_eq!(pace.until(now), None);
        (0..1_000).for_each(|_| pace.sent(now, Duration::from_micros(400), SLOTS));
        assert_eq!(pace.until(now), None);
    }

    #[test]
    fn next_request_waits_for_the_spacing_of_the_last_one_at_most() {
        let (mut pace, now) = (Pace::default(), Tick(9));
        while pace.until(now).is_none() {
            pace.sent(now, ms(900), SLOTS);
        }
        let waits = pace.until(now).unwrap().since(now);
        assert!(waits <= ms(900) / (3 * SLOTS), "{waits:?}");
    }
}
