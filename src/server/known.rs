//! What this process remembers of the databases, beyond what stands in them: they may be older than they were.

use std::sync::{Arc, Mutex, PoisonError};

use walhook_core::halt::SourceIdentity;
use walhook_core::lsn::Lsn;
use walhook_postgres::timelines::{Primary, Timelines};

/// Outlives a leader; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Of source and state.
    pub(super) timelines: Timelines,
    received: Arc<Mutex<Option<(Primary, Lsn)>>>,
}

impl Known {
    /// A leader of ours has ended that had received everything up to `at` from this server.
    pub(super) fn received(&self, from: Primary, at: Lsn) {
        *self.received.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, at));
    }

    /// From which server a leader of ours has received last, and up to where.
    pub(super) fn last_received(&self) -> Option<(Primary, Lsn)> {
        *self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to where a server has been read that the stored identity is that of: to `at`, as is stored, or further by a
    /// leader of ours.
    pub(super) fn read_up_to(&self, stored: &SourceIdentity, at: Lsn) -> Lsn {
        let received = self.last_received();
        let of_it = |(from, _): &(Primary, Lsn)| *from == primary(stored);
        received.filter(of_it).map_or(at, |(_, received)| received.max(at))
    }
}

/// Which server an identity is of.
pub(super) fn primary(of: &SourceIdentity) -> Primary {
    Primary { system_identifier: of.system_identifier, timeline: of.timeline }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_counts_where_it_was_received_from() {
        let stored = |timeline| SourceIdentity {
            system_identifier: 7,
            timeline,
            host: "db".into(),
            database: "app".into(),
        };
        let known = Known::default();
        assert_eq!(known.read_up_to(&stored(1), Lsn(5)), Lsn(5));
        known.received(primary(&stored(1)), Lsn(8));
        assert_eq!(known.clone().read_up_to(&stored(1), Lsn(5)), Lsn(8));
        assert_eq!(known.read_up_to(&stored(1), Lsn(9)), Lsn(9));
        assert_eq!(known.read_up_to(&stored(2), Lsn(5)), Lsn(5));
    }
}
