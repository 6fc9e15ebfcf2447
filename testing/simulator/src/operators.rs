//! What operators do meanwhile: pause and resume endpoints, have dead letters sent again, make deferred rows
//! due or discard them, and send past ranges again.

mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::event::{EndpointId, Event};
use walhook_core::id::{DeadLetterId, JobId};
use walhook_core::persist::{QueueId, RowId, RowKey};
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{Input, OperatorInput, Retry};

use crate::faults::Fault;
use crate::plan::Plan;
use crate::plants::Plant;
use crate::run::{Happens, Run};
use crate::state::{DeferredRow, Job};
use replay::Replaying;

/// A job that the leader has not carried out yet.
#[derive(Debug)]
enum Open {
    Pause(EndpointId),
    Resume(EndpointId),
    Retry(Vec<Asked>),
}

/// A dead letter that is to be sent again.
#[derive(Debug, Clone)]
struct Asked {
    letter: DeadLetterId,
    event: Arc<Event>,
    endpoint: EndpointId,
}

/// The leader that is to be told, and of what.
type Untold = (usize, Vec<(QueueId, RowKey)>);

#[derive(Debug)]
pub(crate) struct Operators {
    rng: SmallRng,
    /// Nothing new is begun after that.
    until: Tick,
    next_job: i64,
    open: BTreeMap<JobId, Open>,
    /// When they resume what they have paused.
    resume_at: Vec<(Tick, EndpointId)>,
    /// What was removed, of which a leader is told late.
    untold: Option<Untold>,
    replaying: Option<Replaying>,
    replays_left: u32,
    over: bool,
}

impl Operators {
    pub(crate) fn new(plan: &Plan, span: Tick) -> Self {
        let mut rng = plan.rng("operators");
        let replays_left = if plan.has(Fault::Replay) { rng.random_range(0..3) } else { 0 };
        Self {
            rng,
            until: Tick(span.0 + 5_000_000),
            next_job: 0,
            open: BTreeMap::new(),
            resume_at: Vec::new(),
            untold: None,
            replaying: None,
            replays_left,
            over: false,
        }
    }

    /// Whether nothing more is to come of them.
    pub(crate) fn is_idle(&self) -> bool {
        self.over && self.open.is_empty() && self.resume_at.is_empty() && self.replaying.is_none()
    }

    fn job(&mut self) -> JobId {
        self.next_job += 1;
        JobId(self.next_job)
    }
}

impl Run {
    /// They look what there is to do, and do something of it.
    pub(crate) fn operate(&mut self) {
        self.end_jobs();
        let now = self.now;
        let due = |(at, _): &(Tick, EndpointId)| *at <= now || now > self.operators.until;
        if let Some(at) = self.operators.resume_at.iter().position(due) {
            let (_, endpoint) = self.operators.resume_at.swap_remove(at);
            self.open(Open::Resume(endpoint));
        }
        if now > self.operators.until {
            self.operators.over = self.operators.replays_left == 0;
        } else {
            match self.operators.rng.random_range(0..10) {
                0 | 1 => self.pause(),
                2 | 3 => self.retry(),
                4 => self.change_rows(Fault::Hurry),
                5 => self.change_rows(Fault::Discard),
                _ => {}
            }
        }
        self.begin_replay();
        if let Some(leader) = self.leader().map(|life| life.number) {
            self.poll(leader);
        }
        if !self.operators.is_idle() {
            let span = self.operators.until.0 / 60;
            let late = if self.now > self.operators.until { 2_000 } else { 100 };
            let ms = late + self.operators.rng.random_range(0..=span / 1_000);
            self.after(Duration::from_millis(ms), Happens::Operates);
        }
    }

    fn open(&mut self, open: Open) {
        let job = self.operators.job();
        self.state.jobs.insert(job, Job::default());
        self.operators.open.insert(job, open);
    }

    /// Those that are carried out.
    fn end_jobs(&mut self) {
        let state = &self.state;
        self.operators.open.retain(|job, open| match open {
            Open::Pause(_) | Open::Resume(_) => {
                !state.jobs.get(job).is_some_and(|job| job.finished)
            }
            Open::Retry(letters) => {
                let is_left = |asked: &&Asked| {
                    let key = (asked.event.id, asked.endpoint.clone(), None);
                    let letter = state.letters.get(&key).filter(|letter| letter.id == asked.letter);
                    letter.is_some_and(|letter| letter.last_job != Some(*job))
                };
                letters.iter().any(|asked| is_left(&asked))
            }
        });
    }

    fn pause(&mut self) {
        if !self.plan.has(Fault::Pause) || self.operators.resume_at.len() > 2 {
            return;
        }
        let all = self.postgres.versions.len();
        let at = self.operators.rng.random_range(0..all.max(1));
        let Some(endpoint) = self.postgres.versions.keys().nth(at).cloned() else { return };
        let seconds = self.operators.rng.random_range(0..20);
        let until = self.now + Duration::from_secs(seconds);
        self.counts.fault(Fault::Pause);
        self.facts.paused.insert(endpoint.clone());
        self.operators.resume_at.push((until, endpoint.clone()));
        self.open(Open::Pause(endpoint));
    }

    fn retry(&mut self) {
        let busy = self.operators.open.values().any(|open| matches!(open, Open::Retry(_)));
        if !self.plan.has(Fault::Retry) || busy {
            return;
        }
        let letters = self
            .state
            .letters
            .iter()
            .filter(|((_, endpoint, replay), _)| replay.is_none() && !endpoint.is_empty());
        let asked = letters.map(|((_, endpoint, _), letter)| Asked {
            letter: letter.id,
            event: Arc::clone(&letter.event),
            endpoint: endpoint.clone(),
        });
        let asked: Vec<Asked> = asked.take(15).collect();
        if !asked.is_empty() {
            self.counts.fault(Fault::Retry);
            self.open(Open::Retry(asked));
        }
    }

    /// Rows of one queue are made due, or removed; the leader is told which.
    fn change_rows(&mut self, fault: Fault) {
        let Some(leader) = self.leader().map(|life| life.number) else { return };
        let all = self.state.deferred.len();
        let is_busy = fault == Fault::Discard && self.operators.untold.is_some();
        if all == 0 || is_busy || !self.plan.has(fault) {
            return;
        }
        let at = self.operators.rng.random_range(0..all);
        let Some((queue, rows)) = self.state.deferred.iter_mut().nth(at) else { return };
        let queue = queue.clone();
        let mut changed: Vec<RowId> = Vec::new();
        let waits = |row: &DeferredRow| fault != Fault::Hurry || row.tried.due_us.is_some();
        for (key, row) in rows.iter_mut().filter(|(_, row)| waits(row)).take(3) {
            if fault == Fault::Hurry {
                row.tried.due_us = None;
            }
            changed.push(RowId { queue: queue.clone(), key: key.clone(), event: row.event.id });
        }
        if changed.is_empty() {
            if fault == Fault::Hurry {
                self.counts.fault(fault);
                let hurry = OperatorInput::Hurry(vec![queue]);
                self.hand(leader, Input::Command(Box::new(hurry)));
            }
            return;
        }
        self.counts.fault(fault);
        if fault == Fault::Hurry {
            self.facts.hurried.insert(queue.endpoint.clone());
            let changed = changed.into_iter().map(|row| (row.queue, row.key)).collect();
            let changed = OperatorInput::RowsChanged(changed);
            self.hand(leader, Input::Command(Box::new(changed)));
        } else {
            self.remove(leader, &changed);
        }
    }

    /// Rows are removed, one transaction at a time. The leader hears which before; whether that has committed it hears
    /// later, or never where the session is lost.
    fn remove(&mut self, leader: usize, rows: &[RowId]) {
        let told: Vec<(QueueId, RowKey)> =
            rows.iter().map(|row| (row.queue.clone(), row.key.clone())).collect();
        let removing = OperatorInput::RowsBeingRemoved(told.clone());
        self.hand(leader, Input::Command(Box::new(removing)));
        if self.operators.rng.random_bool(0.1) {
            return;
        }
        for row in rows {
            self.discard(row);
        }
        if self.operators.rng.random_bool(0.9) {
            self.operators.untold = Some((leader, told));
            let ms = self.operators.rng.random_range(0..2_000);
            self.after(Duration::from_millis(ms), Happens::TellsRemoved);
        }
    }

    /// The leader hears that rows are gone, where it has not ended since.
    pub(crate) fn tell_removed(&mut self) {
        let Some((leader, rows)) = self.operators.untold.take() else { return };
        if self.life(leader).is_some() {
            self.hand(leader, Input::Command(Box::new(OperatorInput::RowsRemoved(rows))));
            self.poll(leader);
        }
    }

    fn discard(&mut self, row: &RowId) {
        if self.state.remove_row(row, |late| late.dropped += 1)
            && let Some(counted) = self.state.backlog.get_mut(&row.queue)
        {
            counted.rows = counted.rows.saturating_sub(1);
        }
        self.facts.discards.insert(row.queue.endpoint.clone());
        let endpoint = row.queue.endpoint.clone();
        match row.key.replay {
            None => _ = self.facts.discarded.insert((row.event, endpoint)),
            Some(id) => _ = self.facts.discarded_of_replays.insert((id, row.event, endpoint)),
        }
    }

    /// The leader hears of the jobs that it does not know.
    pub(crate) fn tell_jobs(&mut self, number: usize) {
        let Some(life) = self.lives.iter_mut().find(|life| life.number == number) else { return };
        if life.stale || life.stopping {
            return;
        }
        let mut commands = Vec::new();
        for (job, open) in &self.operators.open {
            if !life.told.insert(*job) {
                continue;
            }
            let job = *job;
            match open {
                Open::Pause(endpoint) => {
                    let (endpoint, reason) = (endpoint.clone(), "maintenance".to_owned());
                    life.paused.insert(endpoint.clone());
                    commands.push(OperatorInput::Pause { job, endpoint, reason });
                }
                Open::Resume(endpoint) => {
                    let endpoint = endpoint.clone();
                    life.paused.remove(&endpoint);
                    commands.push(OperatorInput::Resume { job, endpoint });
                }
                Open::Retry(letters) => {
                    let state = &self.state;
                    let left = letters.iter().filter(|asked| {
                        let key = (asked.event.id, asked.endpoint.clone(), None);
                        let letter = state.letters.get(&key);
                        letter.is_some_and(|letter| letter.last_job != Some(job))
                    });
                    life.retries.extend(left.map(|asked| Retry {
                        dead_letter: asked.letter,
                        job,
                        event: Arc::clone(&asked.event),
                        endpoint: asked.endpoint.clone(),
                    }));
                }
            }
        }
        for command in commands {
            let forgets = matches!(command, OperatorInput::Pause { .. })
                && self.planted.is_often(Plant::PauseForgotten);
            if !forgets {
                self.hand(number, Input::Command(Box::new(command)));
            }
        }
        while let Some(life) = self.life(number)
            && life.dispatcher.wants_input()
            && let Some(retry) = life.retries.pop_front()
        {
            self.hand(number, Input::Retry(Box::new(retry)));
        }
    }
}
