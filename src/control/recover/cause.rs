//! What a gap is recorded for: what happened. What a halt says of what to do about it is done then.

use walhook_core::halt::{Differs, Halt};

/// The halt without its fix.
pub(super) fn cause(halt: &Halt) -> String {
    match halt {
        Halt::SlotMissing { slot, .. } => {
            format!("replication slot {slot:?} did not exist any more")
        }
        Halt::SlotLost { slot, why, .. } => format!("replication slot {slot:?} was lost: {why}"),
        Halt::SlotTwoPhase { slot, .. } => format!(
            "replication slot {slot:?} was made with two_phase, and sent what was prepared before it committed"
        ),
        Halt::Gap { slot, .. } => format!(
            "replication slot {slot:?} began after the checkpoint: it was recreated, or the state was \
             restored from a backup"
        ),
        Halt::OtherSource { what, found, expected } => {
            let what = match what {
                Differs::SystemIdentifier => "system identifier",
                Differs::Timeline => "timeline",
                Differs::Name => "name",
                Differs::Host => "host",
            };
            format!("source.url led elsewhere: the {what} is {found}, it was {expected}")
        }
        Halt::Diverged { timeline, left, .. } => format!(
            "the new primary (timeline {timeline}) left the old one's WAL at {left}, which had been read further"
        ),
        Halt::OlderCopy { from, wal_end } => format!(
            "the cluster was replaced by an older copy of itself, whose WAL ended at {wal_end}, and had been read \
             up to {from}"
        ),
        // No recovery makes a gap of these.
        Halt::SlotForeign { .. }
        | Halt::PublicationMissing { .. }
        | Halt::OtherPublication { .. }
        | Halt::Unpublished { .. }
        | Halt::RowsHidden { .. }
        | Halt::Unreadable { .. }
        | Halt::RuleBroken(_) => halt.to_string(),
    }
}
