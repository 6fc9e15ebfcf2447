//! What the dispatcher is given, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use crate::settle::SettlePolicy;
use walhook_core::delivery_log::Keep;
use walhook_core::event::{EndpointId, Event};
use walhook_core::id::{DeadLetterId, JobId};
use walhook_core::persist::{Blocked, DeferReason};
use walhook_core::tick::Tick;

/// What is delivered in order to one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Ordering {
    /// The events of one row; of tables without a primary key, those of the account.
    Row,
    /// All events of the account.
    Account,
    /// Nothing.
    None,
}

impl Ordering {
    /// Stands among the keys that a queue's rows block, and says of which ordering these are. No row has such a key,
    /// but by an accident that would have it wait for another one.
    const fn mark(self) -> u64 {
        match self {
            Self::Row => 0x9c1f_4b7a_02d6_e853,
            Self::Account => 0x5e30_d8b4_91a7_6c2f,
            Self::None => 0xb7e2_065d_3fc9_814a,
        }
    }

    /// What the table says of a queue whose rows block these.
    pub(super) fn marked(self, blocked: Blocked) -> Blocked {
        let Blocked::Keys(mut keys) = blocked else { return Blocked::All };
        keys.push(self.mark());
        Blocked::Keys(keys)
    }

    /// What the queue's rows block, of which the table says this. Keys of another ordering are none of this one, and
    /// those of an earlier version say of none: what comes joins the rows, which are ordered anew as they are read.
    pub(super) fn unmarked(self, blocked: Blocked) -> Blocked {
        let Blocked::Keys(mut keys) = blocked else { return Blocked::All };
        if keys.pop() == Some(self.mark()) { Blocked::Keys(keys) } else { Blocked::All }
    }
}

/// What the configuration decides here.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Settings {
    /// For pending events and cached routes together, in bytes.
    pub memory_limit: usize,
    /// Endpoints that an event is routed to at once, and deliveries that leave memory together; above 0. Others have
    /// their turn in between.
    pub slice: usize,
    /// An event of an account with more endpoints than that waits while so many deliveries of the account
    /// are in memory.
    pub lane_max: usize,
    /// Requests in flight to endpoints that answer within a second.
    pub fast_slots: u32,
    /// Requests in flight beside those, to slower endpoints.
    pub slow_slots: u32,
    /// What is delivered in order.
    pub ordering: Ordering,
    /// What an outcome means.
    pub settle: SettlePolicy,
    /// An endpoint is switched off after so long with nothing but failures.
    pub disable_after: Duration,
    /// A delivery that holds the frontier back is deferred after so long.
    pub max_hold: Duration,
    /// Deliveries are deferred while the frontier is so many bytes behind what was read.
    pub max_retained: u64,
    /// Whether someone is to be notified of what happens to endpoints.
    pub notifies: bool,
    /// What the state tables may take, in bytes.
    pub state_max: u64,
    /// Which lines of the delivery log are kept.
    #[cfg_attr(feature = "record", serde(default))]
    pub log: Keep,
    /// Whether they repeat what an endpoint answered.
    #[cfg_attr(feature = "record", serde(default))]
    pub log_excerpts: bool,
}

/// An operator's retry of one dead letter.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Retry {
    /// The dead letter's id.
    pub dead_letter: DeadLetterId,
    /// The job that asked.
    pub job: JobId,
    /// What to send.
    pub event: Arc<Event>,
    /// Where to.
    pub endpoint: EndpointId,
}

/// What happened so far, for metrics. Each only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Deliveries that an endpoint took.
    pub delivered: u64,
    /// Deliveries (and unroutable changes) that became dead letters.
    pub dead: u64,
    /// Events of accounts whose endpoints the database refuses to read; counted in `dead` too.
    pub refused: u64,
    /// Deliveries whose endpoint was removed.
    pub dropped: u64,
    /// Deliveries that a gap counts, of endpoints that were suspended.
    pub in_gaps: u64,
    /// Events that became rows without an endpoint, since theirs could not be looked up.
    pub unrouted: u64,
    /// Of such rows, those that were routed.
    pub routed_later: u64,
    /// Of these, those that no endpoint wanted.
    pub unwanted: u64,
    /// Deliveries that were deferred, by [`DeferReason`].
    pub deferred: [u64; DeferReason::ALL.len()],
    /// Lines of the delivery log that are stored.
    pub logged: u64,
    /// Lines of it that were left out.
    pub log_dropped: u64,
}

/// How things stand, for metrics and `/readyz`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Lanes with a delivery that waits for nothing but a slot.
    pub lanes_ready: usize,
    /// Lanes whose pending deliveries all wait for something else.
    pub lanes_waiting: usize,
    /// Bytes that pending events and deliveries take; 0 when nothing is pending.
    pub queued_bytes: usize,
    /// Bytes that routes, queues, and what is known of deferred rows take.
    pub kept_bytes: usize,
    /// Deliveries in the table `deferred`, or on their way there.
    pub deferred: u64,
    /// Queues that have some.
    pub backlogs: usize,
    /// Events that have a row without an endpoint, or are on the way there.
    pub unrouted: u64,
    /// The accounts that have some.
    pub unrouted_accounts: usize,
    /// Of these, those whose endpoint's breaker is not closed.
    pub breakers_open: usize,
    /// Endpoints that walhook has switched off.
    pub endpoints_disabled: usize,
    /// Endpoints that an operator has paused.
    pub endpoints_paused: usize,
    /// Endpoints whose row cannot be used, of those whose rows are known now.
    pub endpoints_invalid: usize,
    /// Accounts that hold more than a tenth of the slots' time, or of what waits.
    pub accounts_noisy: usize,
    /// Queues whose deliveries are counted in gaps.
    pub queues_suspended: usize,
    /// Requests in flight to fast endpoints.
    pub in_flight_fast: u32,
    /// Requests in flight to slow endpoints.
    pub in_flight_slow: u32,
    /// Requests to fast endpoints that accounts with a backlog may have in flight, all together.
    pub usable_fast: u32,
    /// To slow endpoints, likewise.
    pub usable_slow: u32,
    /// Of the fast ones, those on slots that are reserved for their accounts.
    pub reserved_fast: u32,
    /// Of the slow ones, likewise.
    pub reserved_slow: u32,
    /// Probes of dead endpoints in flight, which have slots of their own.
    pub in_flight_probe: u32,
    /// When the oldest transaction that is not settled was read.
    pub oldest_unsettled: Option<Tick>,
}

#[cfg(test)]
mod tests;
