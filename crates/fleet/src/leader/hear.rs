//! What workers say.

use super::pick::spread;
use super::session::{Phase, Session};
use super::{Ending, Fleet, FleetEffect, SESSIONS_MAX, WORKERS_AGAIN, WorkerChanged, WorkerState};
use crate::frame::{
    Body, Bye, Frame, Hello, HelloState, OLDEST, Outcomes, Refusal, Refused, SessionId,
};
use walhook_core::attempt::Outcome;

impl Fleet {
    pub(super) fn hear(&mut self, frame: Frame) {
        let Frame { epoch, pipeline, session, seq, body, .. } = frame;
        if pipeline.is_some_and(|pipeline| pipeline != self.settings.pipeline) {
            self.counters.foreign += 1;
            return;
        }
        if epoch != self.settings.epoch {
            let is_ahead = epoch > self.settings.epoch && pipeline.is_some();
            if is_ahead && matches!(body, Body::Hello(_)) {
                self.counters.ahead += 1;
            } else {
                self.counters.strange += 1;
            }
            return;
        }
        self.trust(session);
        match body {
            Body::Hello(hello) => self.hear_hello(session, seq, &hello),
            Body::Outcomes(outcomes) => {
                self.note_heard(session);
                self.hear_outcomes(session, outcomes);
            }
            Body::Bye(Bye { received_upto, why }) => {
                self.note_heard(session);
                self.close(session, received_upto.saturating_add(1), Phase::Closing(Some(why)));
            }
            // Only leaders say these.
            Body::Lead(_)
            | Body::Attempts(_)
            | Body::Grant(_)
            | Body::Abort(_)
            | Body::Refused(_) => {
                self.counters.strange += 1;
            }
        }
    }

    fn hear_hello(&mut self, id: SessionId, seq: u64, hello: &Hello) {
        let now = self.now;
        if !self.sessions.contains_key(&id) && !self.join(id, hello) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else {
            unreachable!("a session that has joined is there");
        };
        let before = (session.slots, session.is_open());
        if !session.hear(hello, seq, now) {
            return;
        }
        self.slow_at = self.slow_at.max(session.slow_at);
        if before != (session.slots, session.is_open()) {
            self.workers_changed = true;
            self.slots_changed = true;
        }
        self.due = self.due.min(session.due(now, self.awake_since, &self.settings));
        self.ready.insert(id);
        self.note_former(id, hello);
        if self.workers_told.is_some_and(|told| now >= told + WORKERS_AGAIN) {
            self.workers_changed = true;
        }
        if let HelloState::Closing(why) = hello.state {
            self.close(id, hello.received_upto.saturating_add(1), Phase::Closing(Some(why)));
        }
        self.tell(id);
    }

    /// Whether a session that is not known may join; says so to one that may not.
    fn join(&mut self, id: SessionId, hello: &Hello) -> bool {
        let settings = &self.settings;
        let version = hello.versions.common(settings.versions);
        let known = self.gone.contains(&id)
            || hello.received_upto > 0
            || hello.state != HelloState::Serving;
        let why = match version {
            _ if known => Refusal::Lost,
            None => Refusal::Version,
            Some(_) if settings.egress.is_some_and(|egress| egress != hello.egress) => {
                Refusal::Egress
            }
            Some(_) if self.sessions.len() >= SESSIONS_MAX => Refusal::Full,
            Some(_) if self.stopping => return false,
            Some(version) => {
                let hash = spread(settings.seed ^ fold(id.0));
                let mut session = Session::new(hello, version, hash, settings.lease, self.now);
                if let Some(quarantine) = self.inherit(hello) {
                    session.health.inherit(quarantine);
                }
                self.sessions.insert(id, session);
                self.remember_quarantine(id);
                return true;
            }
        };
        let frame = Frame {
            version: OLDEST,
            epoch: settings.epoch,
            pipeline: Some(settings.pipeline),
            session: id,
            seq: 0,
            body: Body::Refused(Refused { why }),
        };
        self.left.push_back(FleetEffect::Publish(Box::new(frame)));
        // Said once of each: it asks again until it has heard.
        if !self.gone.contains(&id) {
            self.counters.sessions_refused += 1;
            self.remember_gone(id);
            self.left.push_back(FleetEffect::Changed(Box::new(WorkerChanged {
                session: id,
                host: hello.host.clone(),
                build: hello.build.clone(),
                state: WorkerState::Refused,
                refused: Some(why),
                bye: None,
                lost: 0,
                quarantine: None,
            })));
        }
        false
    }

    fn hear_outcomes(&mut self, id: SessionId, Outcomes { first, outcomes }: Outcomes) {
        let Some(session) = self.sessions.get_mut(&id) else {
            self.counters.late += u64::try_from(outcomes.len()).unwrap_or(0);
            return;
        };
        let (from, count) = (first, u64::try_from(outcomes.len()).unwrap_or(0));
        session.confirm();
        let heard = session.count_outcomes(first, count);
        self.ready.insert(id);
        for (number, told) in (from..).zip(outcomes) {
            match told.earlier {
                None => self.hear_outcome(id, told.key, told.outcome),
                // What comes again, or before its turn, is not taken: what is told of it later would be undone.
                Some(earlier) if heard.contains(&number) => self.hear_earlier(id, told, earlier),
                Some(_) => {}
            }
        }
        self.note_told(id);
    }

    fn hear_outcome(&mut self, id: SessionId, key: u64, outcome: Option<Outcome>) {
        let Some(flight) = self.take_back(id, key) else {
            // Said again until it is granted, and of what was given up.
            if !self.earlier_ended(id, key, outcome) {
                self.counters.late += 1;
            }
            return;
        };
        if let (Some(seq), false) = (flight.seq, flight.earlier)
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.window.note_outcome(seq, self.now);
        }
        match outcome {
            None => self.end(flight.attempt.first().id, Ending::Unsent, None),
            Some(outcome) => self.settle(id, flight, outcome),
        }
    }

    /// A frame that nobody heard: its session ends, and begins nothing of it.
    pub(super) fn unheard(&mut self, id: SessionId, seq: u64) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.published = session.published.max(seq);
        self.close(id, seq, Phase::Closing(None));
    }

    /// Its frames cannot be read: nothing more is given to it. What it has may still come back, or is lost.
    pub(super) fn close_at_leader(&mut self, id: SessionId) {
        self.close(id, u64::MAX, Phase::Closing(None));
    }

    /// A session takes no more, and begins nothing of the frame `from` and those behind it.
    fn close(&mut self, id: SessionId, from: u64, phase: Phase) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        // A frame that reached nobody comes before the word of a worker that is still there, if it is.
        if !session.has_said_bye() {
            session.phase = phase;
        }
        self.slots_changed = true;
        self.release(id, from);
        self.tell(id);
    }

    /// What was not in a frame before `from` comes back unsent.
    pub(super) fn release(&mut self, id: SessionId, from: u64) {
        let keys = self.sessions.get(&id).map_or_else(Vec::new, |session| session.behind(from));
        for key in keys {
            if let Some(flight) = self.take_back(id, key) {
                self.end(flight.attempt.first().id, Ending::Unsent, None);
            }
        }
    }
}

/// Both halves of a number.
fn fold(wide: u128) -> u64 {
    let [high, low] =
        [wide >> 64, wide & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0));
    high ^ low.rotate_left(32)
}
