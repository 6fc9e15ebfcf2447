//! Whether a stream has shown that it leads on.
//!
//! One that breaks off at the same place each time, for the server cannot send what comes there, is opened again without
//! fault: to call that well again would tell nobody that nothing comes.

use std::time::Duration;

use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

/// A stream that has held for so long leads on, if only nothing was committed.
const HOLDS: Duration = Duration::from_secs(10);

/// Of the stream of now, or of the last one while there is none.
#[derive(Debug)]
pub(in crate::server) struct Proof {
    from: Lsn,
    until: Tick,
    is_given: bool,
}

impl Proof {
    /// Before the first stream.
    pub(in crate::server) fn new() -> Self {
        Self { from: Lsn::ZERO, until: Tick(0), is_given: true }
    }

    /// A stream begins, from there on.
    pub(super) fn begin(&mut self, from: Lsn, now: Tick) {
        *self = Self { from, until: now + HOLDS, is_given: false };
    }

    /// Transactions have been received up to there. Whether the stream has shown it just now.
    pub(super) fn look(&mut self, at: Lsn, now: Tick) -> bool {
        let shows = !self.is_given && (at > self.from || now >= self.until);
        self.is_given |= shows;
        shows
    }

    /// Whether the stream has shown it.
    pub(super) fn is_given(&self) -> bool {
        self.is_given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_leads_on_with_the_first_transaction_or_when_it_holds() {
        let mut proof = Proof::new();
        assert!(proof.is_given());
        for (at, later, shows) in [
            (5, Duration::ZERO, false),
            (6, Duration::ZERO, true),
            (5, HOLDS - Duration::from_millis(1), false),
            (5, HOLDS, true),
        ] {
            proof.begin(Lsn(5), Tick(1_000));
            assert_eq!(proof.look(Lsn(at), Tick(1_000) + later), shows);
            assert_eq!(proof.is_given(), shows);
            assert!(!proof.look(Lsn(at), Tick(1_000) + later), "it is told once");
        }
    }
}
