//! Quarantines outlast sessions: a worker that ends one and begins another is the same worker.
//!
//! A process is known by its name ([`WorkerId`]). One that was never heard may be an earlier one that was started anew:
//! it takes on the quarantine of one of its host and build, as long as that one is not heard again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::health::Quarantine;
use super::session::Phase;
use super::{Fleet, SESSIONS_MAX};
use crate::frame::{Hello, SessionId, WorkerId};
use walhook_core::tick::Tick;

/// Processes that are remembered.
const PROCESSES_MAX: usize = 4 * SESSIONS_MAX;

/// The last quarantine of a session.
#[derive(Debug)]
struct Remembered {
    worker: Option<WorkerId>,
    host: String,
    build: String,
    quarantine: Quarantine,
    /// The process that took it on, as long as this one is not heard again.
    heir: Option<WorkerId>,
}

/// What is remembered of sessions that may have ended.
#[derive(Debug, Default)]
pub(super) struct Quarantines {
    /// Bounded like the sessions.
    of: BTreeMap<SessionId, Remembered>,
    /// Processes that were heard, the last so many.
    processes: BTreeSet<WorkerId>,
    in_order: VecDeque<WorkerId>,
}

impl Quarantines {
    /// Takes note of a process. Yes: it was not heard before.
    fn note_process(&mut self, worker: WorkerId) -> bool {
        let is_new = self.processes.insert(worker);
        if is_new {
            self.in_order.push_back(worker);
        }
        if self.in_order.len() > PROCESSES_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.processes.remove(&oldest);
        }
        is_new
    }

    fn find(&self, now: Tick, fits: impl Fn(SessionId, &Remembered) -> bool) -> Option<SessionId> {
        let counts = |it: &Remembered| it.quarantine.counts(now);
        self.of.iter().find(|(id, it)| counts(it) && fits(**id, it)).map(|(id, _)| *id)
    }
}

impl Fleet {
    /// A session is in quarantine from now on, or for longer.
    pub(super) fn note_quarantine(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        self.due = self.due.min(session.due(self.now, self.awake_since, &self.settings));
        self.remember_quarantine(id);
        self.tell(id);
    }

    /// What a session's quarantine has become holds for the worker's next one too.
    pub(super) fn remember_quarantine(&mut self, id: SessionId) {
        let now = self.now;
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(quarantine) = session.health.quarantine(now) else { return };
        let of = &mut self.quarantines.of;
        of.retain(|_, it| it.quarantine.counts(now));
        if of.len() < SESSIONS_MAX || of.contains_key(&id) {
            let (worker, heir) = (session.worker, None);
            let (host, build) = (session.host.clone(), session.build.clone());
            of.insert(id, Remembered { worker, host, build, quarantine, heir });
        }
    }

    /// The quarantine that a worker brings into a session that it begins: that of an earlier session of its own. While
    /// that serves, this is another worker of the same host.
    pub(super) fn inherit(&mut self, hello: &Hello) -> Option<Quarantine> {
        let (now, worker) = (self.now, hello.worker);
        let is_new = worker.is_none_or(|worker| self.quarantines.note_process(worker));
        let own = worker.and_then(|_| self.quarantines.find(now, |_, it| it.worker == worker));
        if let Some(id) = own {
            let Remembered { quarantine, heir, .. } = self.quarantines.of.remove(&id)?;
            if let Some(heir) = heir {
                self.give_back(heir, quarantine);
            }
            return Some(quarantine);
        }
        if !is_new {
            return None;
        }
        let serves = |id: SessionId| {
            self.sessions.get(&id).is_some_and(|session| session.phase == Phase::Serving)
        };
        let id = self.quarantines.find(now, |id, it| {
            (&it.host, &it.build) == (&hello.host, &hello.build) && it.heir.is_none() && !serves(id)
        })?;
        let found = self.quarantines.of.get_mut(&id)?;
        let quarantine = found.quarantine;
        if found.worker.is_some() && worker.is_some() {
            found.heir = worker;
        } else {
            self.quarantines.of.remove(&id);
        }
        Some(quarantine)
    }

    /// Tries all that are mute, in the sessions that they have and the next ones.
    pub(super) fn try_mute(&mut self) {
        let now = self.now;
        self.quarantines.of.values_mut().for_each(|it| it.quarantine.try_mute(now));
        self.sessions.values_mut().for_each(|session| session.health.try_mute(now));
        self.slots_changed = true;
    }

    /// A process has a quarantine no more that it took on for another, which is heard again.
    fn give_back(&mut self, heir: WorkerId, quarantine: Quarantine) {
        self.quarantines.of.retain(|_, it| it.worker != Some(heir) || it.quarantine != quarantine);
        let of_heir = self.sessions.iter_mut().filter(|(_, it)| it.worker == Some(heir));
        let released = of_heir.filter_map(|(id, it)| it.health.release(quarantine).then_some(*id));
        let released: Vec<_> = released.collect();
        released.into_iter().for_each(|id| self.tell(id));
    }
}
