//! What a session was given and has not gone: small requests have a line of their own, so that none waits for all the
//! large ones that were given before it. Where both wait, they have the next frame in turn.

use std::collections::VecDeque;

/// A request of so many bytes is a small one: at least four fit into a frame
/// ([`ATTEMPTS_BYTES`](crate::frame::ATTEMPTS_BYTES)).
const SMALL: u64 = 16 << 10;

/// Keys of requests, each in one of two lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    small: VecDeque<u64>,
    large: VecDeque<u64>,
    /// The last frame was of small ones.
    large_is_next: bool,
}

impl Lines {
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_empty()
    }

    pub(super) fn push(&mut self, key: u64, bytes: u64) {
        self.of(bytes).push_back(key);
    }

    pub(super) fn remove(&mut self, key: u64, bytes: u64) {
        self.of(bytes).retain(|waiting| *waiting != key);
    }

    /// The line that the next frame is of.
    pub(super) fn next(&mut self) -> &mut VecDeque<u64> {
        let large = self.small.is_empty() || self.large_is_next && !self.large.is_empty();
        self.large_is_next = !large;
        if large { &mut self.large } else { &mut self.small }
    }

    fn of(&mut self, bytes: u64) -> &mut VecDeque<u64> {
        if bytes <= SMALL { &mut self.small } else { &mut self.large }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_ones_go_in_turn_and_each_in_their_order() {
        let mut lines = Lines::default();
        let went = |lines: &mut Lines| lines.next().pop_front().unwrap();
        (0..4).for_each(|key| lines.push(key, 1 << 20));
        (4..7).for_each(|key| lines.push(key, 500));
        lines.remove(2, 1 << 20);
        assert_eq!([(); 4].map(|()| went(&mut lines)), [4, 0, 5, 1]);
        // Whoever is alone has each.
        assert_eq!((went(&mut lines), went(&mut lines)), (6, 3));
        assert!(lines.is_empty());
        (7..9).for_each(|key| lines.push(key, 1 << 20));
        assert_eq!((went(&mut lines), went(&mut lines)), (7, 8));
        (9..11).for_each(|key| lines.push(key, 500));
        assert_eq!((went(&mut lines), went(&mut lines)), (9, 10));
    }
}
