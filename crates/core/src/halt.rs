//! When going on would lose data silently: the reasons to halt, and the checks that find them.
//!
//! A halt ends the process with exit code 3 and stands in the checkpoint's row until it is resolved.
//! START_REPLICATION itself says nothing of all this: it clamps a position that the slot has passed.

mod lost;
mod slot;

use std::fmt;

use super::lsn::Lsn;
pub use lost::Lost;
pub use slot::{SlotState, check_ours, check_readable, check_slot};

/// Which database this is, beyond its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity {
    /// The cluster's own number, from its initdb.
    pub system_identifier: u64,
    /// Counts promotions.
    pub timeline: u32,
    /// The hosts in the configured URL.
    pub host: String,
    /// The database's name.
    pub database: String,
}

impl fmt::Display for SourceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system_identifier, timeline, host, database } = self;
        write!(f, "host {host}, database {database}, ")?;
        write!(f, "system identifier {system_identifier}, timeline {timeline}")
    }
}

/// Why walhook halts: for the operator, with the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The slot is gone.
    #[error(
        "replication slot {slot:?} does not exist any more: changes committed after {from} cannot be \
         read. `walhook recover --accept-gap` makes a new slot, records the gap and goes on from there"
    )]
    SlotMissing {
        /// Its name.
        slot: String,
        /// The checkpoint.
        from: Lsn,
    },
    /// The server has given the slot up.
    #[error(
        "replication slot {slot:?} is lost: {why}. Changes committed after {from} cannot be read. \
         `walhook recover --accept-gap` makes a new slot, records the gap and goes on from there. \
         {}, so that it does not happen again", why.fix()
    )]
    SlotLost {
        /// Its name.
        slot: String,
        /// Why it is lost.
        why: Lost,
        /// The checkpoint.
        from: Lsn,
    },
    /// The slot sends what is prepared, which may never be committed.
    #[error(
        "replication slot {slot:?} sends transactions when they are prepared, not when they are committed \
         (two_phase), and walhook has made none like that: changes committed after {from} cannot be read \
         from it. `walhook recover --accept-gap` drops it, makes a new slot, records the gap and goes on from there"
    )]
    SlotTwoPhase {
        /// Its name.
        slot: String,
        /// The checkpoint.
        from: Lsn,
    },
    /// The slot is not one of ours.
    #[error("replication slot {slot:?} is not ours: {problem}. {}", fix_of_foreign(slot, *elsewhere))]
    SlotForeign {
        /// Its name.
        slot: String,
        /// What is wrong with it.
        problem: String,
        /// Whether it is of another database, where it serves somebody we cannot see: most likely another pipeline.
        elsewhere: bool,
    },
    /// The slot begins after the checkpoint: it was recreated, or the state was restored.
    #[error(
        "replication slot {slot:?} begins at {to}, after the checkpoint {from}: it was recreated, or \
         the state was restored from a backup. Changes committed between the two cannot be read. \
         `walhook recover --accept-gap` records the gap and goes on from {to}"
    )]
    Gap {
        /// The slot's name.
        slot: String,
        /// The checkpoint.
        from: Lsn,
        /// Where the slot begins.
        to: Lsn,
    },
    /// Another cluster, timeline or database answers at our address, or this is another address.
    #[error("{}", of_other_source(*what, found, expected))]
    OtherSource {
        /// What differs.
        what: Differs,
        /// What it is now.
        found: String,
        /// What it was at set-up.
        expected: String,
    },
    /// A standby was promoted that had not received everything that walhook had, or the cluster was restored to a
    /// point in time.
    #[error(
        "the new primary (timeline {timeline}) left the old one's WAL at {left}, which walhook has read up to \
         {from}: what was committed and delivered in between is not in it. `walhook recover \
         --adopt-cluster` goes on there; where a standby was promoted, synchronized_standby_slots on the primary \
         keeps this from happening again"
    )]
    Diverged {
        /// The new primary's.
        timeline: u32,
        /// Where its WAL begins to differ.
        left: Lsn,
        /// Up to where anything was settled or received.
        from: Lsn,
    },
    /// What was read lies beyond the end of the WAL: an older copy of the cluster was put in place.
    #[error(
        "{from}, up to which walhook has read, lies beyond the end of the WAL, {wal_end}: the cluster was replaced \
         by an older copy of itself, and whatever it commits before {from} would be left out. \
         `walhook recover --accept-gap` records that and goes on where the slot of the copy begins"
    )]
    OlderCopy {
        /// Up to where anything was settled or received.
        from: Lsn,
        /// Where the server's WAL ends.
        wal_end: Lsn,
    },
    /// The publication is gone, or was when a change was committed that is to be read.
    #[error(
        "{problem}. If source.publication was changed, set it back: nothing is lost. If it was dropped, \
         `walhook setup` makes it. The slot can never be read past a row that was written without \
         it, so if this is said again, drop the slot; `walhook recover --accept-gap` makes a new one and \
         records the gap"
    )]
    PublicationMissing {
        /// Which, in whoever's words found out.
        problem: String,
    },
    /// The configured publication is not there, but the one that the pipeline was set up with is.
    #[error(
        "publication {configured:?} does not exist, but the one that the pipeline was set up with does: {}",
        set_back(set_up, called)
    )]
    OtherPublication {
        /// The configured one.
        configured: String,
        /// What the other was called when it was looked at last.
        set_up: String,
        /// What it is called now.
        called: String,
    },
    /// The publication no longer holds what the rules need: changes would be left out silently.
    #[error("publication {publication:?} {problem}. What is committed until then is not sent")]
    Unpublished {
        /// Its name.
        publication: String,
        /// What is missing, as what it does or does not do, and the fix.
        problem: String,
    },
    /// Row-level security hides rows of a table that is looked up: accounts would seem to have no
    /// endpoints.
    #[error(
        "row-level security hides rows of {table} from the role {role}, so that events would find no \
         endpoint: {fix}. Then start walhook again"
    )]
    RowsHidden {
        /// The table.
        table: String,
        /// The role as which it is read.
        role: String,
        /// The statement that fixes it.
        fix: String,
    },
    /// A transaction that the server cannot send, or that cannot be understood.
    #[error(
        "the transaction with commit LSN {commit} cannot be read to its end: {problem}. All before it \
         is delivered or stored. `walhook recover --skip-change {commit}` gives up what cannot be read \
         of it, records the gap and goes on behind it"
    )]
    Unreadable {
        /// Its commit record's LSN.
        commit: Lsn,
        /// The server's words, or ours.
        problem: String,
    },
    /// A rule's table or column is gone.
    #[error("{0}. Then start walhook again: nothing is lost")]
    RuleBroken(String),
}

/// In what a database differs from the one that walhook was set up for. Where it is the name, cluster and timeline are the
/// same; where it is the host, all else is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// The cluster's own number.
    SystemIdentifier,
    /// Whose WAL it goes on with.
    Timeline,
    /// The database's name.
    Name,
    /// The hosts in the URL.
    Host,
}

fn of_other_source(what: Differs, found: &str, expected: &str) -> String {
    let what = match what {
        Differs::SystemIdentifier => "its system identifier",
        Differs::Timeline => "its timeline",
        Differs::Name => {
            return format!(
                "source.url leads to the database {found}, and walhook was set up for {expected} of the same cluster. \
                 If {expected} was renamed, `walhook recover --adopt-cluster` takes note of its name and goes on at the \
                 checkpoint: nothing is lost. If {found} is another database, correct source.url; if this is a copy \
                 of the server, do not run walhook on it: it would send to your customers"
            );
        }
        Differs::Host => {
            return format!(
                "source.url names other hosts than when walhook was set up: {found}, it was {expected}; \
                 cluster and database are the same. If you changed the URL, `walhook recover --adopt-cluster` \
                 takes note of the hosts and goes on at the checkpoint: nothing is lost. If this is a \
                 copy of the server, do not run walhook on it: it would send to your customers"
            );
        }
    };
    format!(
        "this is not the database that walhook was set up for: {what} is {found}, it was {expected}. \
         If this is a copy, do not run walhook on it: it would send to your customers. If it is the \
         new primary, `walhook recover --adopt-cluster` records the gap and goes on here; if it is the \
         one that was made by pg_upgrade after `walhook upgrade prepare`, `walhook upgrade finish` does"
    )
}

impl Halt {
    /// The same halt of a leader whose checkpoint is `checkpoint`. What it had received beyond that, it
    /// may not have delivered, so the range that cannot be read again begins there.
    #[must_use]
    pub fn since(mut self, checkpoint: Lsn) -> Self {
        match &mut self {
            Self::SlotMissing { from, .. }
            | Self::SlotLost { from, .. }
            | Self::SlotTwoPhase { from, .. }
            | Self::Gap { from, .. } => *from = checkpoint,
            Self::SlotForeign { .. }
            | Self::OtherSource { .. }
            | Self::Diverged { .. }
            | Self::OlderCopy { .. }
            | Self::PublicationMissing { .. }
            | Self::OtherPublication { .. }
            | Self::Unpublished { .. }
            | Self::RowsHidden { .. }
            | Self::Unreadable { .. }
            | Self::RuleBroken(_) => {}
        }
        self
    }

    /// Whether the source lacks WAL that was read.
    #[must_use]
    pub fn is_of_lost_wal(&self) -> bool {
        matches!(self, Self::Diverged { .. } | Self::OlderCopy { .. })
    }
}

/// How to get back to the publication that the pipeline was set up with.
fn set_back(set_up: &str, called: &str) -> String {
    if called == set_up {
        return format!(
            "set source.publication back to {set_up:?}. Nothing is lost; docs/install.md says how to change it \
             without a loss"
        );
    }
    format!(
        "it was renamed from {set_up:?} to {called:?}. Rename it back, and let source.publication name it: \
         nothing is lost unless rows were written meanwhile"
    )
}

/// Whether the WAL reaches to `from`, up to where anything was settled or received: START_REPLICATION would wait in
/// silence for it to get there, and what is settled would hide what comes in its place.
///
/// `wal_end` must have been read after `from`, which a leader moves.
///
/// # Errors
/// [`Halt::OlderCopy`]
pub fn check_wal_end(wal_end: Lsn, from: Lsn) -> Result<(), Halt> {
    if wal_end < from { Err(Halt::OlderCopy { from, wal_end }) } else { Ok(()) }
}

/// Whether `found` can only be `expected` after a promotion: the same host, cluster and database on a
/// later timeline.
#[must_use]
pub fn is_promoted(found: &SourceIdentity, expected: &SourceIdentity) -> bool {
    let on_same = SourceIdentity { timeline: expected.timeline, ..found.clone() };
    found.timeline > expected.timeline && on_same == *expected
}

/// Whether the positions up to `from`, up to where anything was settled or received, mean the same on the promoted
/// timeline, which left the expected one at `left`.
///
/// # Errors
/// [`Halt::Diverged`], and [`Halt::OtherSource`] where it does not descend from the expected one.
pub fn check_promotion(
    found: &SourceIdentity,
    expected: &SourceIdentity,
    left: Option<Lsn>,
    from: Lsn,
) -> Result<(), Halt> {
    match left {
        None => check_source(found, expected),
        Some(left) => check_left(found.timeline, left, from),
    }
}

/// As [`check_promotion`], where it is known to descend from the expected one.
///
/// # Errors
/// [`Halt::Diverged`]
pub fn check_left(timeline: u32, left: Lsn, from: Lsn) -> Result<(), Halt> {
    if left < from { Err(Halt::Diverged { timeline, left, from }) } else { Ok(()) }
}

/// Whether the database is the one that walhook was set up for.
///
/// # Errors
/// [`Halt::OtherSource`] with what differs first.
pub fn check_source(found: &SourceIdentity, expected: &SourceIdentity) -> Result<(), Halt> {
    let differs = |what, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(Halt::OtherSource { what, found, expected }) }
    };
    differs(
        Differs::SystemIdentifier,
        found.system_identifier.to_string(),
        expected.system_identifier.to_string(),
    )?;
    differs(Differs::Timeline, found.timeline.to_string(), expected.timeline.to_string())?;
    differs(Differs::Name, found.database.clone(), expected.database.clone())?;
    differs(Differs::Host, found.host.clone(), expected.host.clone())
}

/// Names are those of a cluster, so another pipeline may have taken one; what it waits for must not be dropped.
fn fix_of_foreign(slot: &str, elsewhere: bool) -> String {
    let choose = "Choose another name in source.slot";
    match elsewhere {
        true => format!("{choose}: a slot's name is the cluster's, not the database's"),
        false => format!(
            "{choose}; or, if nobody needs that slot, `SELECT pg_catalog.pg_drop_replication_slot('{slot}')` and \
             run `walhook setup`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wal_that_ends_before_the_checkpoint_halts() {
        assert_eq!(check_wal_end(Lsn(5), Lsn(5)), Ok(()));
        let halt = Halt::OlderCopy { from: Lsn(6), wal_end: Lsn(5) };
        assert_eq!(check_wal_end(Lsn(5), Lsn(6)), Err(halt));
    }

    #[test]
    fn halt_of_a_leader_begins_at_its_checkpoint() {
        let gap = |from| Halt::Gap { slot: "s".into(), from: Lsn(from), to: Lsn(9) };
        assert_eq!(gap(7).since(Lsn(5)), gap(5));
    }

    #[test]
    fn promotion_keeps_positions_up_to_where_the_timelines_part() {
        let old = SourceIdentity {
            system_identifier: 1,
            timeline: 1,
            host: "db".into(),
            database: "app".into(),
        };
        let new = SourceIdentity { timeline: 3, ..old.clone() };
        assert!(is_promoted(&new, &old) && !is_promoted(&old, &new) && !is_promoted(&old, &old));
        assert!(!is_promoted(&SourceIdentity { host: "staging".into(), ..new.clone() }, &old));
        assert_eq!(check_promotion(&new, &old, Some(Lsn(5)), Lsn(5)), Ok(()));
        let diverged = Halt::Diverged { timeline: 3, left: Lsn(5), from: Lsn(6) };
        assert_eq!(check_promotion(&new, &old, Some(Lsn(5)), Lsn(6)), Err(diverged));
        let other = check_promotion(&new, &old, None, Lsn(5));
        assert!(matches!(other, Err(Halt::OtherSource { .. })));
    }

    #[test]
    fn another_cluster_timeline_or_database_halts() {
        let ours = SourceIdentity {
            system_identifier: 1,
            timeline: 1,
            host: "db".into(),
            database: "app".into(),
        };
        assert_eq!(check_source(&ours.clone(), &ours), Ok(()));
        for other in [
            SourceIdentity { system_identifier: 2, ..ours.clone() },
            SourceIdentity { timeline: 2, ..ours.clone() },
            SourceIdentity { host: "staging".into(), ..ours.clone() },
            SourceIdentity { database: "copy".into(), ..ours.clone() },
        ] {
            assert!(matches!(check_source(&other, &ours), Err(Halt::OtherSource { .. })));
        }
        let said = |other| check_source(&other, &ours).unwrap_err().to_string();
        let host = "staging".to_owned();
        let renamed = said(SourceIdentity { host: host.clone(), ..ours.clone() });
        assert!(
            renamed.contains("staging, it was db; cluster and database are the same"),
            "{renamed}"
        );
        assert!(renamed.contains("nothing is lost") && !renamed.contains("gap"), "{renamed}");
        for host in [host, ours.host.clone()] {
            let other = said(SourceIdentity { host, database: "app2".into(), ..ours.clone() });
            assert!(other.contains("the database app2, and walhook was set up for app"), "{other}");
            assert!(other.contains("nothing is lost") && !other.contains("gap"), "{other}");
        }
        let copied = said(SourceIdentity { system_identifier: 2, ..ours.clone() });
        assert!(copied.contains("its system identifier is 2, it was 1"), "{copied}");
        assert!(copied.contains("gap"), "{copied}");
    }
}
