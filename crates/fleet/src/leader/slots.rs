//! How many requests the dispatcher may have in flight, wherever they are.

use super::{Fleet, Local, Slots};

impl Slots {
    fn plus(self, other: Self) -> Self {
        Self {
            fast: self.fast.saturating_add(other.fast),
            slow: self.slow.saturating_add(other.slow),
        }
    }
}

impl Fleet {
    /// The slots of the workers that are given work, and the leader's own where it sends; what others hold is on top
    /// of that, so that it is in nobody's way.
    pub(super) fn sum_of_slots(&mut self) -> Slots {
        let (now, connected) = (self.now, self.connected);
        let mut sum = Slots::default();
        let (mut serves, mut last_resort) = (false, 0);
        for session in self.sessions.values_mut() {
            session.age(now);
            if session.is_open() && session.health.is_quarantined(now) && session.flights.is_empty()
            {
                last_resort += 1;
            }
            if !connected || session.holds_only(now) {
                sum = sum.plus(session.held());
                serves |= connected
                    && session.is_open()
                    && session.has_slots()
                    && !session.health.is_quarantined(now);
            } else {
                serves |= session.has_slots();
                sum = sum.plus(session.health.share_of(session.slots, now));
                sum = sum.plus(Slots { fast: session.taken_up, slow: 0 });
            }
        }
        let own = self.settings.own;
        let local = self.local_in_flight;
        match self.settings.local {
            Local::Always => sum.plus(own),
            Local::Fallback if !serves => sum.plus(own),
            // What it still sends itself. Those are fast ones as long as they fit, for those end soon.
            Local::Fallback => {
                let fast = local.min(own.fast);
                sum.plus(Slots { fast, slow: local - fast })
            }
            Local::Never if !serves && connected => sum.plus(Slots { fast: last_resort, slow: 0 }),
            Local::Never => sum,
        }
    }
}
