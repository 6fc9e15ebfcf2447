//! Processes that begin, die, and lose their lease.

use std::time::Duration;

use rand::RngExt;

use walhook_dispatch::dispatcher::Input;

use super::{Happens, Run};
use crate::checkers::Seen;
use crate::faults::Fault;
use crate::life::{Broken, Life};
use crate::plants::Plant;
use crate::postgres::UNIX_US;

/// How long an instance without the lease may go on.
const EXPIRES: Duration = Duration::from_secs(10);

impl Run {
    /// A new leader: it starts to stream, takes the lease, and reads what is stored.
    pub(crate) fn begin_life(&mut self) {
        self.check_source();
        let number = self.next_life;
        self.next_life += 1;
        let epoch = self.state.take_lease();
        let start = self.state.recover(UNIX_US);
        let settings = self.plan.settings.clone();
        let seed = self.rng.random();
        self.record(number, &settings, &start, seed);
        let mut life =
            Life::new(number, epoch, settings, start, &self.postgres, self.plan.streaming, seed);
        life.left_out.clone_from(&self.state.left_out);
        self.lives.push(life);
        self.trace.note(self.now, || format!("life {number} begins with epoch {epoch}"));
        self.see(&Seen::Began);
        self.plan_reading(number, Duration::from_micros(50));
        let measured = Duration::from_millis(self.rng.random_range(5..500));
        self.after(measured, Happens::Measured(number));
    }

    /// The process is gone, with all that it had in memory.
    pub(crate) fn end_life(&mut self, number: usize) {
        let Some(at) = self.lives.iter().position(|life| life.number == number) else { return };
        let life = self.lives.remove(at);
        self.facts.has_stale = self.lives.iter().any(|life| life.stale);
        self.facts.excused += life.excused();
        if life.storing.as_ref().is_some_and(|storing| matches!(storing.result, Some(Ok(_)))) {
            self.counts.fault(Fault::CrashAfterCommit);
        }
        // Requests on their way arrive, or they do not.
        for flight in life.in_flight.values() {
            if flight.outcome.delivered() && self.rng.random_bool(0.5) {
                self.receive(number, &flight.attempt);
            }
        }
        self.trace.note(self.now, || format!("life {number} ends"));
        self.see(&Seen::Died { life: number });
    }

    pub(crate) fn crash(&mut self) {
        let Some(number) = self.leader().map(|life| life.number) else { return };
        self.counts.fault(Fault::Crash);
        self.end_life(number);
        self.begin_life();
    }

    /// The slot is free, since the connection broke; another instance was waiting for it.
    pub(crate) fn take_over(&mut self) {
        let Some(life) = self.leader() else { return };
        let number = life.number;
        life.connection = None;
        life.stale = true;
        self.facts.has_stale = true;
        self.counts.fault(Fault::Takeover);
        self.after(EXPIRES, Happens::Expires(number));
        self.begin_life();
    }

    /// It ends as it is asked to: what takes long ends first, then what is in flight, and is stored.
    pub(crate) fn shut_down(&mut self) {
        let Some(life) = self.leader() else { return };
        let number = life.number;
        life.winds_down = true;
        self.counts.fault(Fault::Shutdown);
        self.hand(number, Input::WindDown);
        self.after(EXPIRES, Happens::Expires(number));
        self.poll(number);
    }

    /// One that is to end stops once what takes long has ended, and ends when it is drained.
    pub(crate) fn end_if_drained(&mut self, number: usize) {
        let Some(life) = self.life(number) else { return };
        if life.stopping {
            if life.dispatcher.is_drained() {
                self.expire(number);
            }
        } else if life.winds_down && life.dispatcher.is_wound_down() {
            life.stopping = true;
            self.hand(number, Input::Stop);
            self.poll(number);
        }
    }

    pub(crate) fn expire(&mut self, number: usize) {
        let leads = self.life(number).is_some_and(|life| !life.stale);
        self.end_life(number);
        if leads {
            self.begin_life();
        }
    }

    pub(crate) fn break_stream(&mut self) {
        if let Some(life) = self.leader() {
            let number = life.number;
            life.connection = None;
            self.counts.fault(Fault::StreamLost);
            self.plan_reading(number, Duration::from_millis(300));
        }
    }

    pub(crate) fn plan_reading(&mut self, number: usize, wait: Duration) {
        if self.life(number).is_some_and(|life| !std::mem::replace(&mut life.reads, true)) {
            self.after(wait, Happens::Reads(number));
        }
    }

    /// A process reads its stream, and hands on what comes of it.
    pub(crate) fn read(&mut self, number: usize) {
        let messages = self.rng.random_range(1..64);
        let garbled = self.chance.random_bool(0.0004) && self.plan.has(Fault::Halt);
        let lacks = garbled && self.chance.random_bool(0.3);
        let Some(life) = self.lives.iter_mut().find(|life| life.number == number) else { return };
        life.reads = false;
        if life.stale || life.stopping || !life.dispatcher.wants_input() {
            return;
        }
        // What is played ends before a halt.
        let live = life.halting.is_none();
        if !live && !life.is_playing() {
            return;
        }
        if life.connection.is_none() && live {
            life.reconnect(&self.postgres);
        }
        match &mut life.connection {
            Some(connection) if lacks => connection.lose_column(),
            Some(connection) if garbled => connection.garble(&self.postgres, &mut self.chance),
            Some(_) | None => {}
        }
        let forgets = self.plan.options.plant == Some(Plant::AccountsForgotten);
        let read = life.read(&self.postgres, messages, live, forgets);
        let streamed = std::mem::take(&mut life.streamed);
        let mut items = Vec::new();
        while !life.turns.is_empty() {
            items.extend(life.turns.take());
        }
        (0..streamed).for_each(|_| self.counts.fault(Fault::Streamed));
        if !items.is_empty() {
            let items = self.planted.items(items);
            for item in &items {
                self.see(&Seen::Item { life: number, item });
            }
            self.hand(number, Input::Items(items));
        }
        match read {
            Ok(()) => {}
            Err(Broken::Connection) => self.reopen(number),
            Err(Broken::Halt(halt)) => {
                self.trace.note(self.now, || format!("will halt: {halt}"));
                if let Some(life) = self.life(number) {
                    life.halting = Some(halt);
                }
            }
        }
        self.poll(number);
    }

    fn reopen(&mut self, number: usize) {
        let again = self.chance.random_bool(0.5);
        let Some(life) = self.lives.iter_mut().find(|life| life.number == number) else { return };
        let garbled = life.connection.as_ref().and_then(|connection| connection.garbled);
        life.reconnect(&self.postgres);
        if let Some(connection) = &mut life.connection {
            connection.garbled = garbled.filter(|_| again);
        }
    }
}
