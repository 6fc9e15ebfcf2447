//! Whether a session is there: what has not been heard of for a while is given nothing, and is lost when its lease
//! has run out.

use super::session::{self, Session};
use super::{Ending, Fleet, FleetEffect, GONE_MAX, SESSIONS_MAX, WorkerChanged, WorkerState};
use crate::frame::SessionId;
use walhook_core::attempt::DeliveryId;
use walhook_core::tick::Tick;

impl Fleet {
    pub(super) fn note_bus(&mut self, connected: bool, max_payload: usize) {
        if connected && !self.was_connected {
            self.was_connected = true;
            self.lead_at = self.now;
            self.adoption.note_connected(self.now);
        }
        self.connected = connected;
        self.max_payload = max_payload;
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for id in sessions {
            if connected {
                self.ready.insert(id);
            } else {
                // What was under way may not have come through; who is there says so again.
                self.silence(id);
            }
        }
        self.slots_changed = true;
        self.workers_changed = true;
    }

    /// Sessions that have become silent or lost, and quarantines that are over.
    pub(super) fn look_at_the_time(&mut self) {
        let (now, awake_since, lease) = (self.now, self.awake_since, self.settings.lease);
        let (mut lost, mut silent, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
        let mut overdue = Vec::new();
        for (id, session) in &mut self.sessions {
            if now >= session.lost_at(awake_since, &self.settings) {
                lost.push(*id);
                continue;
            }
            if session.is_overdue(now, awake_since, &self.settings) {
                overdue.push(*id);
            }
            if now >= session.heard_at + lease / 2 && !session.silent {
                silent.push(*id);
            } else if now >= session.heard_at + session::quiet_after(lease) && !session.quiet {
                quiet.push(*id);
            } else if let Some(effect) = session.news(*id, now) {
                self.left.push_back(effect);
                self.workers_changed = true;
            }
            self.slots_changed = true;
        }
        lost.into_iter().for_each(|id| self.lose(id));
        silent.into_iter().for_each(|id| self.silence(id));
        quiet.into_iter().for_each(|id| self.doubt(id));
        overdue.into_iter().for_each(|id| self.end_overdue(id));
        self.due = self
            .sessions
            .values()
            .map(|session| session.due(now, self.awake_since, &self.settings))
            .min()
            .unwrap_or(Tick(u64::MAX));
    }

    /// What came of an attempt of a session should have been heard, and was not. The session ends: it begins nothing
    /// more once its lease is over, and is lost then.
    fn end_overdue(&mut self, id: SessionId) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.note_overdue(now);
        self.counters.overdue += 1;
        self.remember_quarantine(id);
        self.close_at_leader(id);
    }

    /// What became of a session's requests is heard.
    pub(super) fn note_heard(&mut self, id: SessionId) {
        let now = self.now;
        if self.sessions.get_mut(&id).is_some_and(|session| session.health.note_heard(now)) {
            self.remember_quarantine(id);
            self.tell(id);
        }
    }

    /// Nothing has been heard of a session: it is given nothing, and what has not gone comes back. One that has said
    /// that it ends, and has nothing that could be waited for, has left.
    pub(super) fn silence(&mut self, id: SessionId) {
        if self.sessions.get(&id).is_some_and(Session::has_ended) {
            self.lose(id);
        } else if let Some(session) = self.sessions.get_mut(&id) {
            session.silent = true;
            self.doubt(id);
            self.tell(id);
        }
    }

    /// A session is given nothing for now: what has not gone comes back, and what has is in doubt.
    pub(super) fn doubt(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.quiet) else {
            return;
        };
        session.quiet = true;
        let deliveries = session.sent();
        self.say_doubt(deliveries, true);
        self.release(id, u64::MAX);
    }

    /// Something was heard of a session.
    pub(super) fn trust(&mut self, id: SessionId) {
        let (now, connected) = (self.now, self.connected);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.heard_at = now;
        // What was on its way when the bus went says nothing of what is under way now.
        if connected && std::mem::take(&mut session.quiet) {
            self.due = self.due.min(session.due(now, self.awake_since, &self.settings));
            let deliveries = session.sent();
            self.say_doubt(deliveries, false);
        }
    }

    pub(super) fn say_doubt(&mut self, deliveries: Vec<DeliveryId>, doubtful: bool) {
        self.slots_changed = true;
        if !deliveries.is_empty() {
            self.left.push_back(FleetEffect::Doubt { deliveries, doubtful });
        }
    }

    /// Says what a session has become, where that has not been said.
    pub(super) fn tell(&mut self, id: SessionId) {
        let now = self.now;
        if let Some(effect) = self.sessions.get_mut(&id).and_then(|session| session.news(id, now)) {
            self.left.push_back(effect);
            self.workers_changed = true;
            self.slots_changed = true;
        }
    }

    /// A session is over: what it had comes back.
    pub(super) fn lose(&mut self, id: SessionId) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        self.ready.remove(&id);
        self.remember_gone(id);
        let mut lost = 0;
        for (_, flight) in std::mem::take(&mut session.flights) {
            let delivery = flight.attempt.first().id;
            let ending = if flight.seq.is_none() {
                Ending::Unsent
            } else {
                lost += 1;
                Ending::Lost { elapsed: self.now.since(flight.placed) }
            };
            self.end(delivery, ending, None);
        }
        if !session.is_confirmed() {
            // It never served: most often its next session is here already.
            self.workers_changed = true;
            return;
        }
        let left = lost == 0 && session.has_said_bye();
        if !left {
            self.counters.sessions_lost += 1;
        }
        if let Some(worker) = session.worker.filter(|_| lost > 0) {
            if self.lost.len() >= SESSIONS_MAX && !self.lost.contains_key(&worker) {
                self.lost.pop_first();
            }
            *self.lost.entry(worker).or_default() += u64::from(lost);
        }
        let state = if left { WorkerState::Left } else { WorkerState::Lost };
        self.left.push_back(FleetEffect::Changed(Box::new(WorkerChanged {
            session: id,
            host: session.host,
            build: session.build,
            state,
            refused: None,
            bye: None,
            lost,
            quarantine: None,
        })));
        self.slots_changed = true;
        self.workers_changed = true;
    }

    pub(super) fn remember_gone(&mut self, id: SessionId) {
        if self.gone.insert(id) {
            self.gone_in_order.push_back(id);
        }
        if self.gone_in_order.len() > GONE_MAX
            && let Some(oldest) = self.gone_in_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}
