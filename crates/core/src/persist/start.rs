//! What a new leader begins with.

use super::{
    BacklogRow, DisableEndpoint, EndpointError, GapChange, Joined, PauseEndpoint, SettledRange,
    UnroutedAccount,
};
use crate::lsn::Lsn;

/// Where an earlier leader left off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Start {
    /// The checkpoint.
    pub frontier: Lsn,
    /// What is settled ahead of it.
    pub settled: Vec<SettledRange>,
    /// The endpoints that walhook has switched off.
    pub disabled: Vec<DisableEndpoint>,
    /// The endpoints that an operator has paused.
    pub paused: Vec<PauseEndpoint>,
    /// The queues that have deferred rows.
    pub backlog: Vec<BacklogRow>,
    /// The gaps of suspended queues.
    pub suspended: Vec<GapChange>,
    /// The accounts that have rows without an endpoint.
    pub unrouted: Vec<UnroutedAccount>,
    /// The endpoints that joined since the first of these rows.
    pub joined: Vec<Joined>,
    /// Transactions whose changes of watched tables look-ups may not show yet.
    pub unseen: Vec<u32>,
    /// The endpoints that fail.
    pub failing: Vec<EndpointError>,
    /// What the state database's clock said when the lease was taken, which is the new leader's tick 0:
    /// microseconds since 1970-01-01 UTC. All leaders go by that one, whatever their own say; a step of it
    /// later changes nothing.
    pub unix_us_at_zero: i64,
    /// What it said when the checkpoint was written last: nobody has sent anything since. None: that is not known.
    pub written_us: Option<i64>,
}
