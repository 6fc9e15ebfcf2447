//! One session at its worker.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{AttemptKey, ServeEffect, To, hello_every_us, part_us, told_for_us};
use crate::frame::{
    Body, Bye, ByeReason, EARLIER_KEYS, Earlier, Frame, Grant, Hello, HelloState, OLDEST,
    OUTCOMES_MAX, Outcomes, PipelineId, Request, SessionId, WireOutcome,
};
use walhook_core::attempt::{FailureKind, Outcome};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::id::Epoch;
use walhook_core::tick::micros;

/// Whether a frame came in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Took {
    InTurn,
    /// It is not to be taken: it was taken before, or nothing is any more.
    Not,
    /// One before it did not come.
    Gap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    Closing(ByeReason),
    /// Nobody wants to hear of it.
    Orphan,
}

/// Invariant: `unheard` holds the outcomes from number `first` on, of which those before `sent` have been published, the
/// first of them at `sent_at_us` or before one that was acknowledged then.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) epoch: Epoch,
    pipeline: Option<PipelineId>,
    version: u8,
    lease: Duration,
    phase: Phase,
    began_us: u64,
    /// Requests may begin until then.
    pub(super) until_us: Option<u64>,
    /// When a grant came last.
    heard_us: u64,
    hello_seq: u64,
    hello_due_us: u64,
    /// The number of the next frame in its turn.
    next: u64,
    /// By key, each with what a later leader is told of it by.
    running: BTreeMap<u64, Option<DeliveryKey>>,
    /// Requests of earlier leaders that the leader was told run, by the key under which it was.
    earlier: BTreeMap<u64, AttemptKey>,
    /// The session's first outcomes, so many, are of earlier leaders.
    kept: u64,
    unheard: VecDeque<WireOutcome>,
    /// Outcomes of its own that nobody wants to hear of.
    dropped: u64,
    first: u64,
    sent: u64,
    sent_at_us: u64,
    out_seq: u64,
    bye_due: bool,
    /// The leader knows that it is closing.
    closed: bool,
}

impl Session {
    pub(super) fn new(
        id: SessionId,
        (epoch, pipeline): (Epoch, Option<PipelineId>),
        version: u8,
        lease: Duration,
        now_us: u64,
    ) -> Self {
        Self {
            id,
            epoch,
            pipeline,
            version,
            lease,
            phase: Phase::Serving,
            began_us: now_us,
            until_us: None,
            heard_us: now_us,
            hello_seq: 0,
            hello_due_us: now_us,
            next: 1,
            running: BTreeMap::new(),
            earlier: BTreeMap::new(),
            kept: 0,
            unheard: VecDeque::new(),
            dropped: 0,
            first: 0,
            sent: 0,
            sent_at_us: 0,
            out_seq: 0,
            bye_due: false,
            closed: false,
        }
    }

    /// Has the leader told first what earlier ones ordered: what runs, and what endpoints took.
    pub(super) fn tell_earlier(
        mut self,
        running: impl Iterator<Item = (AttemptKey, DeliveryKey)>,
        taken: impl Iterator<Item = (DeliveryKey, Outcome)>,
    ) -> Self {
        let mut keys = EARLIER_KEYS..;
        for (key, (attempt, delivery)) in keys.by_ref().zip(running) {
            self.earlier.insert(key, attempt);
            let earlier = Some(Earlier::Runs(delivery));
            self.unheard.push_back(WireOutcome { key, outcome: None, earlier });
        }
        for (key, (delivery, outcome)) in keys.zip(taken) {
            let (outcome, earlier) = (Some(outcome), Some(Earlier::Delivered(delivery)));
            self.unheard.push_back(WireOutcome { key, outcome, earlier });
        }
        self.kept = self.all_outcomes();
        self
    }

    pub(super) fn kept(&self) -> u64 {
        self.kept
    }

    /// Whether the leader has granted it anything.
    pub(super) fn was_granted(&self) -> bool {
        self.until_us.is_some()
    }

    /// Whether the leader knows all that it was to be told at first.
    pub(super) fn has_told(&self) -> bool {
        self.first >= self.kept
    }

    /// A leader that does not know the session yet would not hear its outcomes.
    fn may_tell(&self) -> bool {
        !self.is_serving() || self.was_granted()
    }

    /// What runs of it that a later leader can be told of.
    pub(super) fn running_deliveries(
        &self,
    ) -> impl Iterator<Item = (AttemptKey, DeliveryKey)> + use<'_> {
        let session = self.id;
        self.running.iter().filter_map(move |(key, delivery)| {
            Some((AttemptKey { session, key: *key }, (*delivery)?))
        })
    }

    /// No later leader is to be told of what runs.
    pub(super) fn forget_deliveries(&mut self) {
        self.running.values_mut().for_each(|delivery| *delivery = None);
    }

    fn all_outcomes(&self) -> u64 {
        self.first + u64::try_from(self.unheard.len()).unwrap_or(0)
    }

    /// Requests of its own that were made, and of which its leader has not heard what came of them.
    pub(super) fn untold(&self) -> u64 {
        let is_own = |it: &&WireOutcome| it.key < EARLIER_KEYS && it.outcome.is_some();
        let unheard = u64::try_from(self.unheard.iter().filter(is_own).count()).unwrap_or(0);
        self.dropped.saturating_add(unheard)
    }

    pub(super) fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn received_upto(&self) -> u64 {
        self.next - 1
    }

    /// Whether it had a lease, and has it no more.
    pub(super) fn is_over(&self, now_us: u64) -> bool {
        self.until_us.is_some_and(|until| now_us >= until)
    }

    /// Whether it has asked for a lease for so long that another one should.
    pub(super) fn is_unheard(&self, now_us: u64) -> bool {
        self.until_us.is_none() && now_us >= self.began_us.saturating_add(micros(self.lease))
    }

    pub(super) fn is_done(&self, now_us: u64, leaves: bool) -> bool {
        let heard = match self.phase {
            Phase::Serving => false,
            Phase::Closing(_) => {
                self.closed && self.unheard.is_empty() && self.earlier.is_empty()
                    || now_us >= self.heard_us + told_for_us(self.lease, leaves)
            }
            Phase::Orphan => true,
        };
        heard && self.running.is_empty()
    }

    pub(super) fn close(&mut self, why: ByeReason, now_us: u64) {
        self.phase = Phase::Closing(why);
        self.until_us = None;
        self.bye_due = true;
        self.heard_us = now_us;
        self.hello_due_us = now_us;
    }

    pub(super) fn orphan(&mut self) {
        self.phase = Phase::Orphan;
        self.until_us = None;
        self.dropped = self.untold();
        self.unheard.clear();
        self.earlier.clear();
    }

    /// All that has not been acknowledged is to be said once more.
    pub(super) fn say_again(&mut self, now_us: u64) {
        self.sent = self.first;
        self.hello_due_us = now_us;
        self.bye_due = !self.closed;
    }

    pub(super) fn take_number(&mut self, seq: u64) -> Took {
        if !self.is_serving() || seq < self.next {
            return Took::Not;
        }
        if seq > self.next {
            return Took::Gap;
        }
        self.next += 1;
        Took::InTurn
    }

    pub(super) fn hear_grant(&mut self, seq: u64, grant: &Grant, now_us: u64) -> Took {
        let took = self.take_number(seq);
        // What it acknowledges it does in any order.
        let first = self.first;
        while self.first < grant.outcomes_upto
            && self.first < self.sent
            && self.unheard.pop_front().is_some()
        {
            self.first += 1;
        }
        if self.first > first {
            self.sent_at_us = now_us;
        }
        if self.phase == Phase::Orphan {
            return took;
        }
        if !self.is_serving() {
            self.closed |= grant.closed;
            self.heard_us = now_us;
        }
        // A stamp that this clock has not shown is none of ours.
        if took == Took::InTurn && grant.stamp_us <= now_us && grant.stamp_us >= self.began_us {
            self.heard_us = now_us;
            self.lease = grant.lease;
            if self.until_us.is_none() {
                // The leader gives nothing to one that has not shown that it hears it.
                self.hello_due_us = now_us;
            }
            let until = grant.stamp_us.saturating_add(micros(grant.lease));
            self.until_us = Some(self.until_us.map_or(until, |before| before.max(until)));
        }
        took
    }

    pub(super) fn hear_abort(
        &mut self,
        seq: u64,
        keys: &[u64],
        now_us: u64,
    ) -> (Took, Vec<AttemptKey>) {
        debug_assert!(
            self.until_us.is_none_or(|until| now_us < until),
            "a session whose lease is over has been closed"
        );
        let took = self.take_number(seq);
        // It may be given up in any order: one that is not known yet is in a frame that is not taken.
        let given_up = keys.iter().filter_map(|key| {
            let own = self.running.remove(key).map(|_| AttemptKey { session: self.id, key: *key });
            own.or_else(|| self.earlier.remove(key))
        });
        (took, given_up.collect())
    }

    /// A request was given up, in this session or in another one of the same leader's: of what was told here that it
    /// runs it is told that it does no more.
    pub(super) fn given_up(&mut self, attempt: AttemptKey) {
        if attempt.session == self.id {
            self.running.remove(&attempt.key);
        }
        let given_up = Outcome::failed(FailureKind::Aborted, "given up by walhook", Duration::ZERO);
        self.earlier_ended(attempt, &Some(given_up));
    }

    /// Whether a request that came in its turn may begin; it is answered for otherwise.
    pub(super) fn begin(&mut self, request: &Request, now_us: u64) -> bool {
        let may = self.until_us.is_some_and(|until| now_us < until);
        let known = self.running.contains_key(&request.key);
        if may && !known {
            self.running.insert(request.key, request.delivery);
        } else if !known {
            let unbegun = WireOutcome { key: request.key, outcome: None, earlier: None };
            self.unheard.push_back(unbegun);
        }
        may && !known
    }

    /// A request of its own has ended. What a later leader is told of it by; `None`: it does not run.
    pub(super) fn ended(
        &mut self,
        key: u64,
        outcome: &Option<Outcome>,
    ) -> Option<Option<DeliveryKey>> {
        let delivery = self.running.remove(&key)?;
        if self.phase == Phase::Orphan {
            self.dropped += u64::from(outcome.is_some());
        } else {
            let outcome = outcome.clone();
            self.unheard.push_back(WireOutcome { key, outcome, earlier: None });
        }
        Some(delivery)
    }

    /// A request of an earlier leader's has ended.
    pub(super) fn earlier_ended(&mut self, attempt: AttemptKey, outcome: &Option<Outcome>) {
        let told = self.earlier.iter().find(|(_, of)| **of == attempt).map(|(key, _)| *key);
        if let Some(key) = told {
            self.earlier.remove(&key);
            let outcome = outcome.clone();
            self.unheard.push_back(WireOutcome { key, outcome, earlier: None });
        }
    }

    pub(super) fn hello_state(&self) -> HelloState {
        match self.phase {
            Phase::Closing(why) => HelloState::Closing(why),
            Phase::Serving | Phase::Orphan => HelloState::Serving,
        }
    }

    pub(super) fn hello_is_due(&self, now_us: u64) -> bool {
        self.phase != Phase::Orphan && now_us >= self.hello_due_us
    }

    pub(super) fn hello(&mut self, hello: Hello, now_us: u64) -> ServeEffect {
        self.hello_seq += 1;
        self.hello_due_us = now_us + hello_every_us(self.lease);
        let frame = Frame {
            version: OLDEST,
            epoch: self.epoch,
            pipeline: self.pipeline,
            session: self.id,
            seq: self.hello_seq,
            body: Body::Hello(hello),
        };
        ServeEffect::Publish { to: To::Hello, frame: Box::new(frame) }
    }

    fn publish(&mut self, body: Body) -> ServeEffect {
        self.out_seq += 1;
        let frame = Frame {
            version: self.version,
            epoch: self.epoch,
            pipeline: self.pipeline,
            session: self.id,
            seq: self.out_seq,
            body,
        };
        ServeEffect::Publish { to: To::Leader, frame: Box::new(frame) }
    }

    /// The word that it is closing, where that is to be said.
    pub(super) fn take_bye(&mut self) -> Option<ServeEffect> {
        let Phase::Closing(why) = self.phase else { return None };
        let received_upto = self.received_upto();
        std::mem::take(&mut self.bye_due)
            .then(|| self.publish(Body::Bye(Bye { received_upto, why })))
    }

    /// Outcomes that have not been published, or not been acknowledged in time.
    /// A frame has so many bytes of them at most, or one.
    pub(super) fn take_outcomes(
        &mut self,
        now_us: u64,
        most: usize,
        into: &mut VecDeque<ServeEffect>,
    ) {
        if !self.may_tell() {
            return;
        }
        let all = self.all_outcomes();
        // Whether others follow or not: those behind one that was lost are not acknowledged either.
        if self.first < self.sent && now_us >= self.again_at_us() {
            self.sent = self.first;
        }
        while self.sent < all {
            let from = usize::try_from(self.sent - self.first).unwrap_or(usize::MAX);
            let (mut bytes, mut first_of_all) = (0, true);
            let fits = |outcome: &&WireOutcome| {
                let text = outcome.outcome.as_ref().map_or(0, |outcome| outcome.record.text.len());
                bytes += 64 + text;
                std::mem::take(&mut first_of_all) || bytes <= most
            };
            let outcomes: Vec<_> = self
                .unheard
                .iter()
                .skip(from)
                .take(OUTCOMES_MAX)
                .take_while(fits)
                .cloned()
                .collect();
            let first = self.sent;
            self.sent += u64::try_from(outcomes.len()).unwrap_or(0);
            if first == self.first {
                self.sent_at_us = now_us;
            }
            into.push_back(self.publish(Body::Outcomes(Outcomes { first, outcomes })));
        }
    }

    /// When outcomes that were not acknowledged are published once more: grants come twice in that time.
    fn again_at_us(&self) -> u64 {
        self.sent_at_us.saturating_add(part_us(self.lease, 2))
    }

    /// When something of it changes by time alone.
    pub(super) fn due(&self, connected: bool, leaves: bool) -> u64 {
        let mut due = match self.phase {
            Phase::Serving => self.until_us.unwrap_or(self.began_us + micros(self.lease)),
            Phase::Closing(_) if self.running.is_empty() => {
                self.heard_us + told_for_us(self.lease, leaves)
            }
            Phase::Closing(_) | Phase::Orphan => u64::MAX,
        };
        if connected && self.phase != Phase::Orphan {
            due = due.min(self.hello_due_us);
            if !self.unheard.is_empty() && self.may_tell() {
                due = due.min(self.again_at_us());
            }
        }
        due
    }
}
