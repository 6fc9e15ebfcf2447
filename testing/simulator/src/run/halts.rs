//! Halts: what makes a leader halt, at its start and amid the stream, and what an operator does about it.

use rand::RngExt;

use walhook_core::halt::{self, Halt, SlotState, SourceIdentity};
use walhook_core::lsn::Lsn;

use super::Run;
use crate::faults::Fault;
use crate::schema::SYSTEM;

/// How a halt was resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// What was wrong is right again.
    PutRight,
    /// By `recover --accept-gap`.
    GapAccepted,
    /// By `recover --adopt-cluster`.
    ClusterAdopted,
    /// By `recover --skip-change`.
    ChangeSkipped,
}

impl Run {
    /// The checks of every opening; now and then one of them halts, and an operator resolves it.
    pub(crate) fn check_source(&mut self) {
        let from = self.state.frontier;
        let slot = SlotState {
            confirmed_flush: Some(self.postgres.slot.confirmed),
            lost: None,
            plugin: "pgoutput".into(),
            here: true,
            temporary: false,
            two_phase: false,
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
        match self.find_halt(from, &slot, &source) {
            Ok(()) => self.fail("checkpoint", format!("a start on {slot:?} does not halt")),
            Err(halt) => self.resolve(&halt),
        }
    }

    /// What one of these would find.
    fn find_halt(
        &mut self,
        from: Lsn,
        slot: &SlotState,
        source: &SourceIdentity,
    ) -> Result<(), Halt> {
        match self.chance.random_range(0..12) {
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
                halt::check_source(&staging, source)
            }
            4 => {
                let promoted = SourceIdentity { timeline: 2, ..source.clone() };
                halt::check_promotion(&promoted, source, Some(Lsn(from.0 - 1)), from)
            }
            5 => halt::check_wal_end(Lsn(from.0 - 1), from),
            6 => {
                let later = SlotState { confirmed_flush: Some(Lsn(from.0 + 1)), ..slot.clone() };
                halt::check_slot("walhook", Some(&later), from)
            }
            7 => {
                let prepares = SlotState { two_phase: true, ..slot.clone() };
                halt::check_slot("walhook", Some(&prepares), from)
            }
            // These are found by queries, which are not simulated; what they lead to is.
            8 => Err(Halt::PublicationMissing { problem: "it is gone".to_owned() }),
            9 => {
                let (publication, problem) = ("walhook".to_owned(), "lacks a table".to_owned());
                Err(Halt::Unpublished { publication, problem })
            }
            10 => {
                let [configured, set_up, called] =
                    ["other", "walhook", "walhook"].map(str::to_owned);
                Err(Halt::OtherPublication { configured, set_up, called })
            }
            _ => {
                let (table, role) = ("public.webhooks".to_owned(), "walhook".to_owned());
                Err(Halt::RowsHidden { table, role, fix: "GRANT".to_owned() })
            }
        }
    }

    /// What an operator does about a halt at the start.
    fn resolve(&mut self, halt: &Halt) {
        self.counts.fault(Fault::Halt);
        self.counts.halt(halt);
        self.trace.note(self.now, || format!("halts: {halt}"));
        // A slot that is gone, or cannot be read any more, is made anew where the WAL ends. All else is put
        // right: the copy is taken away, the configuration corrected.
        let resolved = match halt {
            Halt::SlotMissing { .. }
            | Halt::SlotLost { .. }
            | Halt::SlotTwoPhase { .. }
            | Halt::PublicationMissing { .. } => {
                let from = self.state.frontier;
                let to = self.postgres.wal_end().max(from);
                self.state.accept_gap(from, to);
                self.postgres.make_slot(to, self.now);
                Resolved::GapAccepted
            }
            // The same cluster at another address: nothing is given up.
            Halt::OtherSource { .. } if self.chance.random_bool(0.5) => {
                self.state.take_lease();
                Resolved::ClusterAdopted
            }
            Halt::SlotForeign { .. }
            | Halt::Gap { .. }
            | Halt::OtherSource { .. }
            | Halt::Diverged { .. }
            | Halt::OlderCopy { .. }
            | Halt::OtherPublication { .. }
            | Halt::Unpublished { .. }
            | Halt::RowsHidden { .. }
            | Halt::Unreadable { .. }
            | Halt::RuleBroken(_) => Resolved::PutRight,
        };
        self.counts.resolved(resolved);
    }

    /// A process that is to halt does so once all that it read is settled and stored.
    pub(crate) fn halt_if_settled(&mut self, number: usize) {
        let stored = self.state.frontier;
        let Some(life) = self.life(number) else { return };
        let due = !life.stale && stored >= life.changes.resume_lsn();
        let Some(halt) = life.halting.take_if(|_| due) else { return };
        let unreadable = life.connection.as_ref().and_then(|connection| connection.garbled);
        self.counts.halt(&halt);
        self.counts.fault(Fault::Halt);
        let resolved = match (&halt, unreadable) {
            (Halt::Unreadable { commit, .. }, Some(place)) if self.chance.random_bool(0.5) => {
                // It stays as it is, and its rest is given up.
                self.postgres.unreadable.insert(place);
                self.state.leave_out(*commit);
                Resolved::ChangeSkipped
            }
            _ => Resolved::PutRight,
        };
        self.counts.resolved(resolved);
        self.end_life(number);
        self.begin_life();
    }
}
