//! When a cause held that somebody is told of later: the last few spans, each with its begin and its end.
//!
//! Units: microseconds on the dispatcher's clock, where what was before it began is negative.
//!
//! Invariant: spans do not overlap, and stand in the order of their times.

use std::collections::VecDeque;

use walhook_core::tick::Tick;
use walhook_core::waits::{Cause, Waits};

/// Spans that are remembered. What held before them is not told of.
const REMEMBERED: usize = 8;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Spans {
    past: VecDeque<Span>,
    /// What holds, and since when.
    open: Option<(Cause, i64)>,
}

#[derive(Debug)]
struct Span {
    cause: Cause,
    from: i64,
    to: i64,
}

/// The moment as spans have it.
pub(super) fn at(tick: Tick) -> i64 {
    i64::try_from(tick.0).unwrap_or(i64::MAX)
}

impl Spans {
    /// This holds from now on; `None`: nothing.
    pub(super) fn set(&mut self, cause: Option<Cause>, now: i64) {
        if self.open.map(|(cause, _)| cause) == cause {
            return;
        }
        if let Some((before, from)) = self.open.take() {
            self.add(before, from, now);
        }
        self.open = cause.map(|cause| (cause, now));
    }

    /// This held then, after all that is remembered.
    pub(super) fn add(&mut self, cause: Cause, from: i64, to: i64) {
        let from = self.past.back().map_or(from, |last| from.max(last.to));
        if from >= to {
            return;
        }
        if self.past.len() == REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back(Span { cause, from, to });
    }

    /// Whether anything that is remembered held after this moment.
    pub(super) fn ended_after(&self, from: i64) -> bool {
        self.open.is_some() || self.past.back().is_some_and(|last| last.to > from)
    }

    /// Adds what held from `from` to `to`, which is now or earlier. Returns for how long something did.
    pub(super) fn add_to(&self, waits: &mut Waits, from: i64, to: i64) -> u64 {
        let open = self.open.map(|(cause, since)| Span { cause, from: since, to: i64::MAX });
        let mut held = 0;
        // Most often the last one has ended long ago.
        for span in open.iter().chain(self.past.iter().rev()) {
            if span.to <= from {
                break;
            }
            let us = span.to.min(to).saturating_sub(span.from.max(from));
            let us = u64::try_from(us).unwrap_or(0);
            waits.add_us(span.cause, us);
            held += us;
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_tell_of_what_held_within_and_of_no_moment_twice() {
        let mut spans = Spans::default();
        spans.add(Cause::Breaker, 10, 20);
        spans.add(Cause::Stopped, 15, 30);
        spans.set(Some(Cause::Memory), 40);
        spans.set(Some(Cause::Memory), 45);
        let mut waits = Waits::default();
        assert_eq!(spans.add_to(&mut waits, 12, 60), 8 + 10 + 20);
        let expected = [(Cause::Memory, 20), (Cause::Stopped, 10), (Cause::Breaker, 8)];
        assert!(waits.iter().eq(expected), "{waits:?}");
        spans.set(None, 60);
        assert_eq!(spans.add_to(&mut Waits::default(), 60, 100), 0);
        assert_eq!(spans.add_to(&mut Waits::default(), 0, 11), 1);
    }

    #[test]
    fn spans_are_remembered_up_to_a_bound() {
        let mut spans = Spans::default();
        for n in 0..1_000 {
            spans.add(Cause::Breaker, 10 * n, 10 * n + 1);
        }
        assert_eq!(spans.past.len(), REMEMBERED);
        assert_eq!(spans.add_to(&mut Waits::default(), 0, 10_000), REMEMBERED as u64);
    }
}
