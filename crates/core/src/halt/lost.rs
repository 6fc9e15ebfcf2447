//! Why the server gave a slot up, and what keeps it from doing so again.

use std::fmt;

/// Why a slot cannot be read any more.
///
/// Source: PostgreSQL manual, "pg_replication_slots", `invalidation_reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// `wal_removed`: more WAL was written than the server keeps for a slot; with that setting's value.
    WalRemoved(String),
    /// `idle_timeout`: nobody read from it for too long; with that setting's value.
    IdleTimeout(String),
    /// `rows_removed`: rows of the catalog that it needed are gone.
    RowsRemoved,
    /// `wal_level_insufficient`: the WAL did not hold what it needed.
    WalLevel,
    /// The server still has the slot, and cannot read WAL that it needs: it is missing or damaged; with the server's words.
    Unreadable(String),
    /// A word that this program does not know.
    Other(String),
}

impl Lost {
    /// What the server says: its word, where it has one (from 17 on), whether the slot conflicted with
    /// recovery (16), and the values of `max_slot_wal_keep_size` and `idle_replication_slot_timeout`.
    #[must_use]
    pub fn new(word: Option<&str>, conflicting: bool, keep_size: &str, idle_timeout: &str) -> Self {
        match word {
            Some("wal_removed") => Self::WalRemoved(keep_size.to_owned()),
            Some("idle_timeout") => Self::IdleTimeout(idle_timeout.to_owned()),
            Some("rows_removed") => Self::RowsRemoved,
            Some("wal_level_insufficient") => Self::WalLevel,
            Some(word) => Self::Other(word.to_owned()),
            None if conflicting => Self::RowsRemoved,
            None => Self::WalRemoved(keep_size.to_owned()),
        }
    }

    /// What keeps it from happening again.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::WalRemoved(_) => {
                "Raise max_slot_wal_keep_size to what is written while walhook may be stopped"
            }
            Self::IdleTimeout(_) => {
                "Set idle_replication_slot_timeout to 0, or to longer than walhook may ever be stopped"
            }
            Self::RowsRemoved => "Set hot_standby_feedback = on on the standby that has the slot",
            Self::WalLevel => "Keep wal_level = logical on the primary",
            Self::Unreadable(_) => {
                "Find out what removes or damages files in pg_wal, which the server alone may touch"
            }
            Self::Other(_) => "Find out in the server's log why it gave the slot up",
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WalRemoved(keep) => {
                write!(f, "the server removed WAL that it needed (max_slot_wal_keep_size = {keep})")
            }
            Self::IdleTimeout(timeout) => write!(
                f,
                "nobody read from it for longer than idle_replication_slot_timeout = {timeout}"
            ),
            Self::RowsRemoved => {
                f.write_str("the server removed catalog rows that it needed (rows_removed)")
            }
            Self::WalLevel => f.write_str("wal_level was not logical (wal_level_insufficient)"),
            Self::Unreadable(error) => {
                write!(f, "WAL that it needs is missing on the server, or damaged ({error})")
            }
            Self::Other(word) => write!(f, "the server gave it up ({word})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_slot_says_why_and_what_keeps_it_from_happening_again() {
        let lost = |word, conflicting| {
            let lost = Lost::new(word, conflicting, "64MB", "5s");
            format!("{lost}. {}", lost.fix())
        };
        for (word, conflicting, cause, fix) in [
            (Some("wal_removed"), false, "max_slot_wal_keep_size = 64MB", "Raise max_slot"),
            (None, false, "max_slot_wal_keep_size = 64MB", "Raise max_slot"),
            (
                Some("idle_timeout"),
                false,
                "idle_replication_slot_timeout = 5s",
                "to 0, or to longer",
            ),
            (Some("rows_removed"), true, "rows_removed", "hot_standby_feedback"),
            (None, true, "rows_removed", "hot_standby_feedback"),
            (
                Some("wal_level_insufficient"),
                false,
                "wal_level_insufficient",
                "wal_level = logical",
            ),
            (Some("more"), false, "gave it up (more)", "log"),
        ] {
            let text = lost(word, conflicting);
            assert!(text.contains(cause) && text.contains(fix), "{text}");
        }
    }
}
