//! On which timelines this process has been, so that an old primary does not vouch for itself.
//!
//! A primary that was failed over from and comes back knows nothing of the other one: its tables, its slot and its
//! identity are as they were. What tells is that it is on a lower timeline of the same cluster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::error::SourceError;

/// A server that takes writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Primary {
    /// The cluster's own number, from its initdb.
    pub system_identifier: u64,
    /// Counts promotions.
    pub timeline: u32,
}

impl Primary {
    /// Refuses this one where the cluster has been on a later timeline.
    ///
    /// # Errors
    /// [`SourceError::OldPrimary`]
    pub fn check(self, newest: u32) -> Result<(), SourceError> {
        let Self { timeline, .. } = self;
        if timeline < newest { Err(SourceError::OldPrimary { timeline, newest }) } else { Ok(()) }
    }
}

/// The latest timeline of each cluster that this process has been with; clones share it. There are as many as somebody
/// let the URLs lead to.
#[derive(Debug, Clone, Default)]
pub struct Timelines(Arc<Mutex<BTreeMap<u64, u32>>>);

impl Timelines {
    /// Refuses a server on an earlier timeline than the process has been on.
    ///
    /// # Errors
    /// [`SourceError::OldPrimary`]
    pub fn check(&self, found: Primary) -> Result<(), SourceError> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&found.system_identifier).map_or(Ok(()), |newest| found.check(*newest))
    }

    /// Takes note that the process goes on with this server.
    pub fn accept(&self, found: Primary) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = seen.entry(found.system_identifier).or_default();
        *newest = found.timeline.max(*newest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_on_an_earlier_timeline_of_the_same_cluster_is_refused() {
        let at = |system_identifier, timeline| Primary { system_identifier, timeline };
        let seen = Timelines::default();
        assert!(seen.check(at(7, 1)).is_ok(), "nothing is known");
        seen.accept(at(7, 2));
        seen.clone().accept(at(7, 1));
        let refused = seen.check(at(7, 1)).unwrap_err();
        assert!(matches!(refused, SourceError::OldPrimary { timeline: 1, newest: 2 }));
        assert!(seen.check(at(7, 2)).is_ok() && seen.check(at(7, 3)).is_ok());
        assert!(seen.check(at(8, 1)).is_ok(), "another cluster");
    }
}
