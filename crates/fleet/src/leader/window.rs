//! How many bytes of requests are on their way to one worker, so that what keeps its lease alive is never long behind
//! them: a `Grant` goes the same way.
//!
//! The bus does not say how fast it is. What a worker says that it has taken shows it: where that comes in time more is
//! published at once, else half as much.

use std::collections::VecDeque;
use std::time::Duration;

use walhook_core::tick::Tick;

/// The first window is what a way of this pace carries in a quarter of a lease.
const START_BYTES_PER_SECOND: u64 = 2 << 20;

/// It gets no smaller: one frame of small requests ([`ATTEMPTS_BYTES`](crate::frame::ATTEMPTS_BYTES)).
const LEAST: u64 = 64 << 10;

/// Where less is on its way than this it is not the bus that is slow.
const MUCH: u64 = 256 << 10;

/// A frame with requests, which the worker has not said that it has.
#[derive(Debug)]
struct Sent {
    seq: u64,
    bytes: u64,
    at: Tick,
}

/// See the module's documentation. Invariant: `sent` is in the order of the frames, and `bytes` is its sum.
#[derive(Debug)]
pub(super) struct Window {
    /// What is confirmed within this is in time, later than this is late. A worker speaks eight times a lease, so the
    /// frame itself took less.
    in_time: Duration,
    late: Duration,
    most: u64,
    sent: VecDeque<Sent>,
    bytes: u64,
    /// The frame that filled the window since it was changed last: it waited behind all of it.
    filled: Option<(u64, Tick)>,
    /// What was sent before tells nothing of the window of now.
    narrowed_at: Tick,
}

impl Window {
    pub(super) fn new(lease: Duration, now: Tick) -> Self {
        let quarter = u64::try_from((lease / 4).as_millis()).unwrap_or(u64::MAX);
        Self {
            in_time: lease * 3 / 16,
            late: lease * 3 / 8,
            most: (START_BYTES_PER_SECOND.saturating_mul(quarter) / 1_000).max(LEAST),
            sent: VecDeque::new(),
            bytes: 0,
            filled: None,
            narrowed_at: now,
        }
    }

    /// Whether another frame has to wait. One always goes.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.most
    }

    /// A frame with so many bytes of requests goes.
    pub(super) fn send(&mut self, seq: u64, bytes: u64, now: Tick) {
        self.sent.push_back(Sent { seq, bytes, at: now });
        self.bytes += bytes;
        if self.is_full() {
            self.filled.get_or_insert((seq, now));
        }
    }

    /// What came of a request shows that its frame was taken before; that it comes late, nothing.
    pub(super) fn note_outcome(&mut self, seq: u64, now: Tick) {
        self.take_upto(seq);
        self.widen(seq, now);
    }

    /// The worker says that it has the frames up to this one. Returns whether the bus is slow.
    pub(super) fn confirm(&mut self, upto: u64, now: Tick) -> bool {
        let much = self.bytes >= MUCH;
        // The oldest of what it has, else of what it still has not.
        let oldest = self.sent.front().map(|first| first.at);
        self.take_upto(upto);
        let Some(oldest) = oldest.filter(|at| *at >= self.narrowed_at) else { return false };
        if now.since(oldest) > self.late {
            self.most = (self.most / 2).max(LEAST);
            self.narrowed_at = now;
            self.filled = None;
            return much;
        }
        self.widen(upto, now);
        false
    }

    /// Where the frame that filled the window was taken in time.
    fn widen(&mut self, upto: u64, now: Tick) {
        let filled = self.filled.take_if(|(seq, _)| *seq <= upto);
        if filled.is_some_and(|(_, at)| now.since(at) <= self.in_time) {
            self.most = self.most.saturating_mul(2);
        }
    }

    fn take_upto(&mut self, seq: u64) {
        while let Some(first) = self.sent.front().filter(|first| first.seq <= seq) {
            self.bytes -= first.bytes;
            self.sent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);
    const LARGE: u64 = 500 << 10;

    /// A way of this pace: what it has carried when the worker speaks, eight times a lease. Returns how late a grant
    /// was at the most, and how many bytes were carried in all.
    fn carried(bytes_per_second: u64, seconds: u64, worker_stalls: bool) -> (Duration, u64) {
        let mut window = Window::new(LEASE, Tick(0));
        let (mut seq, mut taken, mut queue, mut sum) = (0, 0, VecDeque::new(), 0);
        let (mut credit, mut late) = (0, Duration::ZERO);
        let step = Duration::from_millis(10);
        for n in 0..seconds * 100 {
            let now = Tick(0) + step * u32::try_from(n).unwrap();
            while !window.is_full() {
                seq += 1;
                window.send(seq, LARGE, now);
                queue.push_back((seq, LARGE));
            }
            let waits: u64 = queue.iter().map(|(_, bytes)| bytes).sum();
            // From a while on: the first window is a guess.
            if n > 300 {
                late = late.max(Duration::from_millis(waits * 1_000 / bytes_per_second));
            }
            let resting = queue.is_empty();
            credit = if resting { 0 } else { credit + bytes_per_second / 100 };
            while let Some(&(first, bytes)) = queue.front().filter(|(_, bytes)| *bytes <= credit) {
                (credit, taken, sum) = (credit - bytes, first, sum + bytes);
                queue.pop_front();
            }
            let stalled = worker_stalls && (500..700).contains(&n);
            if n % 25 == 0 && !stalled {
                window.confirm(taken, now);
            }
        }
        (late, sum)
    }

    #[test]
    fn grants_wait_behind_less_than_half_a_lease_and_the_way_is_used() {
        for megabytes in [2, 3, 12, 100] {
            for stalls in [false, true] {
                let pace = megabytes * 1_000_000;
                let (late, sum) = carried(pace, 30, stalls);
                assert!(late <= LEASE * 11 / 20, "{megabytes} MB/s, {stalls}: {late:?}");
                assert!(sum > pace * 30 / 2, "{megabytes} MB/s, {stalls}: {sum}");
            }
        }
    }

    #[test]
    fn window_is_wider_where_it_is_too_narrow_alone_and_never_closed() {
        let mut window = Window::new(LEASE, Tick(0));
        let start = window.most;
        let at = |ms: u64| Tick(ms * 1_000);
        window.send(1, 100, at(0));
        assert!(!window.confirm(1, at(250)));
        assert_eq!(window.most, start, "nothing waited for room");
        for seq in 2..40 {
            let now = at(seq * 10_000);
            assert!(!window.is_full(), "one frame always goes");
            window.send(seq, LARGE, now);
            assert!(window.confirm(seq, now + LEASE), "it is slow");
        }
        assert_eq!(window.most, LEAST);
        // What came of a request frees its bytes, and says nothing of the pace where it took long.
        window.send(40, LARGE, at(500_000));
        assert!(window.is_full());
        window.note_outcome(40, at(501_000));
        assert!(!window.is_full());
        assert_eq!((window.bytes, window.most), (0, LEAST));
        window.send(41, LARGE, at(502_000));
        window.note_outcome(41, at(502_010));
        assert_eq!(window.most, 2 * LEAST);
    }
}
