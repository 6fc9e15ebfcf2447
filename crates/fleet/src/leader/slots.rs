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
    /// Whether those in quarantine are given work as any other: nobody else is there to send, and where all fail it is
    /// hardly each of them by itself.
    pub(super) fn all_serve(&self) -> bool {
        self.settings.local == Local::Never
            && !self.sessions.values().any(|session| session.is_well(self.now))
    }

    /// The slots of the workers that are given work, and the leader's own where it sends; what others hold is on top
    /// of that, so that it is in nobody's way.
    pub(super) fn sum_of_slots(&mut self) -> Slots {
        let (now, connected, all_serve) = (self.now, self.connected, self.all_serve());
        let mut sum = Slots::default();
        let (mut serves, mut last_resort) = (false, 0);
        for session in self.sessions.values_mut() {
            session.age(now);
            let is_kept = session.health.is_kept(all_serve, now);
            if session.is_open() && is_kept && session.flights.is_empty() {
                last_resort += 1;
            }
            if !connected || session.holds_only(all_serve, now) {
                sum = sum.plus(session.held());
                serves |= connected && session.is_open() && session.has_slots() && !is_kept;
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
