//! What the leader has to do now, as it says itself.

use serde::Serialize;

use super::super::instance::Instance;
use crate::config::Config;
use crate::server::work::{AccountWork, OldestWork, Work};
use walhook_state::Overview;

/// How much waits, whose, for what, and how fast it goes.
#[derive(Debug, Serialize)]
pub(crate) struct WorkView {
    /// When that was so: at most a second ago, where the leader is well.
    pub(crate) at: String,
    /// Deliveries in memory, those in flight included.
    pub(crate) pending: usize,
    /// Requests in flight.
    pub(crate) in_flight: usize,
    /// Events in memory whose deliveries are not known yet.
    pub(crate) unrouted_in_memory: usize,
    /// Deliveries that an endpoint took, a second.
    pub(crate) delivered_per_second: f64,
    /// Over so many seconds: 60, less where the leader is younger.
    pub(crate) over_seconds: f64,
    /// From the commit to the 2xx, of half of them; null where there were none.
    pub(crate) p50_ms: Option<f64>,
    /// The same of 99 in 100.
    pub(crate) p99_ms: Option<f64>,
    /// The oldest delivery that the checkpoint waits for; null where it waits for none.
    pub(crate) oldest: Option<OldestView>,
    /// Accounts that have something in memory or deferred.
    pub(crate) waiting_accounts: usize,
    /// Those of which most waits, at most ten.
    pub(crate) accounts: Vec<AccountWorkView>,
}

/// The delivery that holds the checkpoint back.
#[derive(Debug, Serialize)]
pub(crate) struct OldestView {
    /// Whose.
    pub(crate) account_id: String,
    /// To whom; null: the account's endpoints are not known yet.
    pub(crate) endpoint: Option<String>,
    /// Of which event.
    pub(crate) event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub(crate) event_type: String,
    /// When it was committed.
    pub(crate) committed_at: String,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// What it waits for now, such as `breaker`.
    pub(crate) cause: String,
}

/// What waits of one account.
#[derive(Debug, Serialize)]
pub(crate) struct AccountWorkView {
    /// Whose.
    pub(crate) account_id: String,
    /// Deliveries in memory that are not in flight, and events whose deliveries are not known yet.
    pub(crate) waiting: usize,
    /// Requests in flight.
    pub(crate) in_flight: usize,
    /// Deliveries in the table.
    pub(crate) deferred: u64,
    /// The endpoint for which most of it waits; null: its endpoints are not known yet.
    pub(crate) endpoint: Option<String>,
    /// When the oldest in memory was committed; null: nothing is in memory.
    pub(crate) oldest_committed_at: Option<String>,
    /// What that for this endpoint waits for now, such as `endpoint_limit`.
    pub(crate) cause: String,
}

impl From<Work> for WorkView {
    fn from(work: Work) -> Self {
        let Work { at, pending, in_flight, unrouted, delivered_per_second, over_seconds, .. } =
            work;
        Self {
            at,
            pending,
            in_flight,
            unrouted_in_memory: unrouted,
            delivered_per_second,
            over_seconds,
            p50_ms: work.p50_ms,
            p99_ms: work.p99_ms,
            oldest: work.oldest.map(OldestView::from),
            waiting_accounts: work.waiting_accounts,
            accounts: work.accounts.into_iter().map(AccountWorkView::from).collect(),
        }
    }
}

impl From<OldestWork> for OldestView {
    fn from(oldest: OldestWork) -> Self {
        let OldestWork {
            account_id,
            endpoint,
            event_id,
            event_type,
            committed_at,
            attempts,
            cause,
        } = oldest;
        Self { account_id, endpoint, event_id, event_type, committed_at, attempts, cause }
    }
}

impl From<AccountWork> for AccountWorkView {
    fn from(work: AccountWork) -> Self {
        let AccountWork { account_id, waiting, in_flight, deferred, endpoint, .. } = work;
        let (oldest_committed_at, cause) = (work.oldest_committed_at, work.cause);
        Self { account_id, waiting, in_flight, deferred, endpoint, oldest_committed_at, cause }
    }
}

/// Why it is unknown.
#[derive(Debug)]
pub(super) enum Unknown {
    /// Nobody answers.
    Nobody(String),
    /// Whoever answers is another pipeline's.
    Other(String),
    /// It says that it has nothing to say.
    Refused(String),
}

/// Asks the instance.
pub(super) async fn ask(config: &Config, asked: &Instance) -> Result<WorkView, Unknown> {
    let answer = asked.get("/work").await.map_err(|error| Unknown::Nobody(format!("{error:#}")))?;
    if !answer.is_ok {
        return Err(Unknown::Refused(answer.text));
    }
    let work: Work =
        serde_json::from_str(&answer.text).map_err(|error| Unknown::Refused(error.to_string()))?;
    if work.pipeline == config.source.slot {
        Ok(work.into())
    } else {
        Err(Unknown::Other(work.pipeline))
    }
}

impl Unknown {
    /// What to tell the operator. `is_here`: who was asked is where `admin.listen` says; `running`: whether a leader
    /// streams, where that is known.
    pub(super) fn text(
        self,
        asked: &Instance,
        is_here: bool,
        running: Option<bool>,
        overview: &Overview,
    ) -> String {
        if running == Some(false) {
            return "no leader runs".to_owned();
        }
        let address = asked.address();
        let found = match self {
            Self::Nobody(why) => format!("no admin server answers at {address}: {why}"),
            Self::Other(pipeline) => {
                format!("at {address} answers an instance of pipeline {pipeline}")
            }
            Self::Refused(why) => format!("the instance at {address} says: {why}"),
        };
        let holder = overview.holder.as_deref().unwrap_or("unknown");
        let key = if is_here { " (`admin.listen`)" } else { "" };
        format!(
            "{found}{key}; the leader is {holder}: name its admin server with --admin http://HOST:PORT"
        )
    }
}
