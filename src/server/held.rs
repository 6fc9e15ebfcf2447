//! Whether the server holds our stream back for standbys, which nothing shows but what its sender waits for: the
//! connection stands, and the server answers on it.

use std::time::Duration;

use tokio::time::Instant;

use super::health::Teller;
use super::trouble::{PASSING, Part};
use walhook_postgres::standbys::{HeldBack, Standby};

/// What was seen of it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How the standbys stood when the sender was last seen to wait for them, and since when one of them stands still.
    waiting: Option<(Instant, Vec<Standby>)>,
    /// What was told.
    told: Option<String>,
}

impl Held {
    /// The sender waits for one of these standbys at this moment, or for none.
    pub(super) fn look(&mut self, waited_for: Option<Vec<Standby>>, now: Instant, tell: &Teller) {
        let Some(standbys) = waited_for else {
            self.waiting = None;
            return self.ends(tell);
        };
        // With each commit it waits for a moment. That the standbys have not moved since the look before is another
        // thing.
        let before = self.waiting.take();
        let held = before.and_then(|(since, before)| {
            (now.duration_since(since) >= PASSING)
                .then(|| HeldBack::by(&before, &standbys))
                .flatten()
                .map(|by| (since, by))
        });
        let since = match held {
            Some((since, by)) => {
                let problem = by.to_string();
                tell.fails_with(Part::Stream, since, &problem, by.fix());
                self.told = Some(problem);
                since
            }
            None => {
                self.ends(tell);
                now
            }
        };
        self.waiting = Some((since, standbys));
    }

    /// How long until the next look, where there is a reason to look soon.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.waiting.is_some().then_some(PASSING)
    }

    fn ends(&mut self, tell: &Teller) {
        if let Some(problem) = self.told.take() {
            tell.ended(Part::Stream, &problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::lsn::Lsn;
    use walhook_postgres::standbys::StandbyState;

    fn waits(state: StandbyState) -> Option<Vec<Standby>> {
        Some(vec![Standby { slot: "one".to_owned(), state }])
    }

    #[test]
    fn stream_fails_while_a_standby_stands_still_and_works_again_when_nobody_waits() {
        let (tell, listen) = Teller::new("p");
        let (mut held, start) = (Held::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let told = || listen.borrow().told();
        let streams = |at| waits(StandbyState::Streams(Some(Lsn(at))));
        // It waits whenever it is looked at, for what the standby then receives.
        for second in 0..30 {
            held.look(streams(second), after(second), &tell);
            assert_eq!(told(), []);
        }
        let away = || waits(StandbyState::Away);
        held.look(away(), after(30), &tell);
        assert_eq!((told(), held.pause()), (Vec::new(), Some(PASSING)), "it was seen once");
        held.look(away(), after(33), &tell);
        held.look(away(), after(36), &tell);
        let trouble = listen.borrow().troubles[&Part::Stream].clone();
        assert_eq!(trouble.since, after(30));
        assert!(trouble.error.contains("(one) have received it: no standby"), "{}", trouble.error);
        assert_eq!(trouble.fix, "start the standby, or amend synchronized_standby_slots");
        held.look(None, after(39), &tell);
        assert_eq!((told(), held.pause()), (Vec::new(), None));
    }

    #[test]
    fn end_of_the_wait_leaves_what_else_fails() {
        let (tell, listen) = Teller::new("p");
        let (mut held, start) = (Held::default(), Instant::now());
        for second in [0, 5] {
            held.look(waits(StandbyState::Away), start + Duration::from_secs(second), &tell);
        }
        tell.fails_with(Part::Stream, Instant::now(), "the connection broke", "start the server");
        held.look(None, start + Duration::from_secs(10), &tell);
        assert_eq!(listen.borrow().told()[0].error, "the connection broke");
    }
}
