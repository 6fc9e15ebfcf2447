//! Processes that begin, die, and lose their lease.

use std::time::Duration;

use rand::RngExt;

use walhook_core::halt::{self, Halt, SlotState, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_dispatch::dispatcher::Input;

use super::{Happens, Run};
use crate::checkers::Seen;
use crate::faults::Fault;
use crate::life::{Broken, Life};
use crate::postgres::UNIX_US;
use crate::schema::SYSTEM;

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
        let life = Life::new(number, epoch, settings, start, &self.postgres, &mut self.rng);
        self.lives.push(life);
        self.trace.note(self.now, || format!("life {number} begins with epoch {epoch}"));
        self.see(&Seen::Began);
        self.plan_reading(number, Duration::from_micros(50));
        self.after(Duration::from_millis(500), Happens::Measured(number));
    }

    /// The checks of every opening; now and then one of them halts, and an operator resolves it.
    fn check_source(&mut self) {
        let from = self.state.frontier;
        let slot = SlotState {
            confirmed_flush: Some(self.postgres.slot.confirmed),
            lost: None,
            plugin: "pgoutput".into(),
            here: true,
            temporary: false,
        };
        let source = SourceIdentity {
            system_identifier: SYSTEM,
            timeline: 1,
            host: "db".into(),
            database: "app".into(),
        };
        let checked = halt::check_slot("walhook", Some(&slot), from)
            .and_then(|()| halt::check_wal_end(self.postgres.wal_end().max(from), from))
            .and_then(|()| halt::check_source(&source, &source));
        if let Err(halt) = checked {
            self.fail("checkpoint", format!("a start halts: {halt}"));
        }
        if !self.plan.has(Fault::Halt) || !self.chance.random_bool(0.2) {
            return;
        }
        let found = match self.chance.random_range(0..7) {
            0 => halt::check_slot("walhook", None, from),
            1 => {
                let lost = Some(halt::Lost::WalLevel);
                halt::check_slot("walhook", Some(&SlotState { lost, ..slot.clone() }), from)
            }
            2 => {
                let other = SlotState { plugin: "test_decoding".into(), ..slot.clone() };
                halt::check_slot("walhook", Some(&other), from)
            }
            3 => {
                let staging = SourceIdentity { host: "staging".into(), ..source.clone() };
                halt::check_source(&staging, &source)
            }
            4 => {
                let promoted = SourceIdentity { timeline: 2, ..source.clone() };
                halt::check_promotion(&promoted, &source, Some(Lsn(from.0 - 1)), from)
            }
            5 => halt::check_wal_end(Lsn(from.0 - 1), from),
            _ => {
                let later = SlotState { confirmed_flush: Some(Lsn(from.0 + 1)), ..slot.clone() };
                halt::check_slot("walhook", Some(&later), from)
            }
        };
        match found {
            Ok(()) => self.fail("checkpoint", format!("a start on {slot:?} does not halt")),
            Err(halt) => self.resolve(&halt),
        }
    }

    /// What an operator does about a halt.
    fn resolve(&mut self, halt: &Halt) {
        self.counts.fault(Fault::Halt);
        self.counts.halt(halt);
        self.trace.note(self.now, || format!("halts: {halt}"));
        // Where the slot is gone a new one begins where the WAL ends. All else is put right: the copy is
        // taken away, the configuration corrected.
        if matches!(halt, Halt::SlotMissing { .. } | Halt::SlotLost { .. }) {
            let from = self.state.frontier;
            let to = self.postgres.wal_end().max(from);
            self.state.accept_gap(from, to);
            self.postgres.slot.confirmed = self.postgres.slot.confirmed.max(to);
        }
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
                self.receive(&flight.attempt);
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

    /// It ends as it is asked to: what is in flight ends first, and is stored.
    pub(crate) fn shut_down(&mut self) {
        let Some(life) = self.leader() else { return };
        let number = life.number;
        life.stopping = true;
        self.counts.fault(Fault::Shutdown);
        self.hand(number, Input::Stop);
        self.after(EXPIRES, Happens::Expires(number));
        self.poll(number);
    }

    /// One that is to stop ends when it is drained.
    pub(crate) fn end_if_drained(&mut self, number: usize) {
        let life = self.life(number);
        if life.is_some_and(|life| life.stopping && life.dispatcher.is_drained()) {
            self.expire(number);
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
        let garbled = self.chance.random_bool(0.0002) && self.plan.has(Fault::Halt);
        let lacks = garbled && self.chance.random_bool(0.3);
        let Some(life) = self.lives.iter_mut().find(|life| life.number == number) else { return };
        life.reads = false;
        if life.stale || life.stopping || life.halting.is_some() || !life.dispatcher.wants_input() {
            return;
        }
        if life.connection.is_none() {
            life.reconnect(&self.postgres);
        }
        if garbled && let Some(connection) = &mut life.connection {
            connection.harm(lacks);
        }
        let read = life.read(&self.postgres, messages);
        let items = std::mem::take(&mut life.items);
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

    /// A process that is to halt does so once all that it read is settled and stored.
    pub(crate) fn halt_if_settled(&mut self, number: usize) {
        let stored = self.state.frontier;
        let Some(life) = self.life(number) else { return };
        let due = !life.stale && stored >= life.changes.resume_lsn();
        if let Some(halt) = life.halting.take_if(|_| due) {
            self.counts.halt(&halt);
            self.counts.fault(Fault::Halt);
            self.end_life(number);
            self.begin_life();
        }
    }
}
