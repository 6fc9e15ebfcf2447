//! What a worker does with a frame of its leader's.

use super::session::Took;
use super::{AttemptKey, FORGET_AFTER, Leader, REFUSED_FOR, ServeEffect, Serving, micros};
use crate::frame::{Attempts, Body, Frame, Grant, Lead, OLDEST, PipelineId, Refusal, SessionId};
use walhook_core::id::Epoch;

impl Serving {
    pub(super) fn hear(&mut self, frame: Frame) {
        let Frame { epoch, pipeline, session, seq, body, .. } = frame;
        if let Body::Lead(lead) = &body {
            self.hear_lead(epoch, pipeline, lead);
            return;
        }
        if self.is_of_another(pipeline) {
            return;
        }
        let higher = self.leader.is_some_and(|leader| epoch > leader.epoch);
        let Some(found) = self.session_mut(session) else { return };
        if higher || epoch > found.epoch {
            // Another leads: what this one is said by `Lead`, which comes twice a second.
            self.orphan_all();
            self.leader = None;
            return;
        }
        if epoch < found.epoch || self.leader.is_some_and(|leader| epoch < leader.epoch) {
            // Nor does a leader that was overtaken give up what is its successor's now.
            return;
        }
        match body {
            Body::Refused(refused) => self.hear_refused(session, refused.why),
            Body::Grant(grant) => self.hear_grant(session, seq, grant),
            Body::Attempts(attempts) => self.hear_attempts(session, seq, attempts),
            Body::Abort(abort) => {
                let now_us = self.now_us;
                let Some(found) = self.session_mut(session) else { return };
                let (took, given_up) = found.hear_abort(seq, &abort.keys, now_us);
                for attempt in given_up {
                    self.sessions_mut().for_each(|session| session.given_up(attempt));
                    self.left.push_back(ServeEffect::GiveUp(attempt));
                }
                self.close_on_gap(took);
            }
            // Only workers say these, and `Lead` is above.
            Body::Lead(_) | Body::Hello(_) | Body::Outcomes(_) | Body::Bye(_) => {}
        }
    }

    /// Whether a frame is of another pipeline than the one that it serves.
    fn is_of_another(&self, pipeline: Option<PipelineId>) -> bool {
        let served = self.pipeline.zip(pipeline);
        served.is_some_and(|((ours, _), theirs)| ours != theirs)
    }

    fn hear_lead(&mut self, epoch: Epoch, pipeline: Option<PipelineId>, lead: &Lead) {
        let now_us = self.now_us;
        let is_past = |heard_us: u64| now_us >= heard_us.saturating_add(micros(FORGET_AFTER));
        let another = self.is_of_another(pipeline);
        if another && self.pipeline.is_some_and(|(_, heard_us)| !is_past(heard_us)) {
            // Its workers' subjects are another's too. Whoever came first stays, whatever the epochs, which
            // each pipeline counts for itself.
            self.another_us = Some(now_us);
            return;
        }
        if let Some(leader) = self.leader {
            let lower = epoch < leader.epoch;
            if lower && !another && !is_past(leader.heard_us) {
                self.lower_us = Some(now_us);
                return;
            }
            if lower || another {
                self.forget_past();
            }
            if epoch != leader.epoch || another {
                self.orphan_all();
                self.refused = None;
            }
        } else if another {
            self.forget_past();
        }
        if let Some(served) = pipeline.or(self.pipeline.map(|(served, _)| served)) {
            self.pipeline = Some((served, now_us));
        }
        let version = self.settings.versions.common(lead.versions).unwrap_or(OLDEST);
        let (lease, asks) = (lead.lease, lead.asks);
        self.leader = Some(Leader { epoch, lease, version, heard_us: now_us, asks });
        self.join();
    }

    fn hear_refused(&mut self, id: SessionId, why: Refusal) {
        if self.current.as_ref().is_some_and(|current| current.id == id) {
            self.orphan_current();
            if why != Refusal::Lost {
                self.refused = Some((why, self.now_us.saturating_add(micros(REFUSED_FOR))));
            }
        } else if let Some(session) = self.closing.get_mut(&id) {
            session.orphan();
        }
        self.join();
    }

    fn hear_grant(&mut self, id: SessionId, seq: u64, grant: Grant) {
        let now_us = self.now_us;
        let Some(session) = self.session_mut(id) else { return };
        let took = session.hear_grant(seq, &grant, now_us);
        let closed = grant.closed && session.is_serving();
        self.refused = None;
        self.close_on_gap(if closed { Took::Gap } else { took });
    }

    fn hear_attempts(&mut self, id: SessionId, seq: u64, attempts: Attempts) {
        let now_us = self.now_us;
        let Some(session) = self.session_mut(id) else { return };
        let took = session.take_number(seq);
        if took == Took::InTurn {
            let until_us = session.until_us.unwrap_or(0);
            let begun =
                attempts.requests.into_iter().filter(|request| session.begin(request, now_us));
            let begun = begun.map(|request| ServeEffect::Begin {
                key: AttemptKey { session: id, key: request.key },
                request: Box::new(request),
                until_us,
            });
            let begun: Vec<_> = begun.collect();
            self.left.extend(begun);
        }
        self.close_on_gap(took);
    }
}
