//! What the leader has to do now, for `walhook status`: how much waits, whose, for what, and how fast it goes.
//!
//! ```text
//! /work ────────wanted──► dispatcher's task ──Work───────► watch channel ──► /work
//! /events/<id> ─sought──► dispatcher's task ──EventWork──► watch channel ──► /events/<id>
//! ```
//!
//! It is made when somebody asks, and once a second at most: to make it looks at every account once. Nobody
//! waits for the dispatcher for longer than a moment; what it said last has its time with it. An event is sought
//! among the deliveries in memory some at a time, and the dispatcher goes on in between.

mod recent;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Duration, Instant, timeout};

pub(super) use recent::Recent;
use walhook_core::attempt::Asked;
use walhook_core::event::{AccountId, EndpointId, rfc3339};
use walhook_core::position::EventId;
use walhook_core::waits::Cause;
use walhook_dispatch::dispatcher::{AccountStanding, Found, OldestUnsettled, Standing};

/// What was said no longer ago is said again.
const FRESH: Duration = Duration::from_secs(1);

/// So long whoever asks waits for the dispatcher.
const PATIENCE: Duration = Duration::from_secs(1);

/// So long an event is sought.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// Deliveries that are looked at before the dispatcher goes on: some tenths of a millisecond.
pub(super) const LOOKED_AT_ONCE: usize = 2_000;

/// Accounts that are named.
pub(super) const ACCOUNTS: usize = 10;

/// What a leader says of its work, at `/work`. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// The slot's name.
    pub pipeline: String,
    /// When that was so.
    pub at: String,
    /// Deliveries in memory, those in flight included.
    pub pending: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Events in memory whose deliveries are not known yet.
    pub unrouted: usize,
    /// Deliveries that an endpoint took, for each of the last seconds.
    pub delivered_per_second: f64,
    /// How many seconds these are: 60, less where the leader is younger.
    pub over_seconds: f64,
    /// From the commit to the 2xx, of half of them.
    pub p50_ms: Option<f64>,
    /// The same of 99 in 100.
    pub p99_ms: Option<f64>,
    /// The oldest delivery that the checkpoint waits for.
    pub oldest: Option<OldestWork>,
    /// Accounts that have something in memory or deferred.
    pub waiting_accounts: usize,
    /// Those of which most waits, at most ten.
    pub accounts: Vec<AccountWork>,
}

/// The delivery that holds the checkpoint back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldestWork {
    /// Whose.
    pub account_id: String,
    /// To whom; null: the account's endpoints are not known yet.
    pub endpoint: Option<String>,
    /// Of which event.
    pub event_id: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it was committed.
    pub committed_at: String,
    /// Attempts made.
    pub attempts: u32,
    /// What it waits for now: the words of [`Cause`].
    pub cause: String,
}

/// What waits of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountWork {
    /// Whose.
    pub account_id: String,
    /// Deliveries in memory that are not in flight, and events whose deliveries are not known yet.
    pub waiting: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// Deliveries in the table.
    pub deferred: u64,
    /// The endpoint for which most of it waits; null: its endpoints are not known yet.
    pub endpoint: Option<String>,
    /// When the oldest in memory was committed; null: nothing is in memory.
    pub oldest_committed_at: Option<String>,
    /// What that for this endpoint waits for now: as of [`OldestWork`].
    pub cause: String,
}

/// What a leader says of one event, at `/events/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventWork {
    /// The slot's name.
    pub pipeline: String,
    /// Its deliveries in memory.
    pub pending: Vec<PendingWork>,
}

/// A delivery in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingWork {
    /// Whose.
    pub account_id: String,
    /// To whom; null: the account's endpoints are not known yet.
    pub endpoint: Option<String>,
    /// The replay that sends it again; null: none.
    pub replay_id: Option<i64>,
    /// Attempts made.
    pub attempts: u32,
    /// What it waits for now: as of [`OldestWork`].
    pub cause: String,
}

impl EventWork {
    /// What the dispatcher has found.
    pub(super) fn new(pipeline: &str, found: Vec<Found>) -> Self {
        let pending = |Found { account, endpoint, attempts, cause, asked }| PendingWork {
            account_id: AccountId::to_string(&account),
            endpoint: endpoint.map(|endpoint: EndpointId| endpoint.to_string()),
            replay_id: match asked {
                Some(Asked::Replay(replay)) => Some(replay.0),
                Some(Asked::Retry { .. }) | None => None,
            },
            attempts,
            cause: Cause::as_str(cause).to_owned(),
        };
        Self { pipeline: pipeline.to_owned(), pending: found.into_iter().map(pending).collect() }
    }
}

impl Work {
    /// What the dispatcher and the last minute say, at `at_us`, in microseconds since 1970-01-01 UTC.
    pub(super) fn new(pipeline: &str, at_us: i64, standing: Standing, pace: recent::Pace) -> Self {
        let Standing { pending, in_flight, unrouted, waiting_accounts, oldest, accounts } =
            standing;
        Self {
            pipeline: pipeline.to_owned(),
            at: rfc3339(at_us),
            pending,
            in_flight,
            unrouted,
            delivered_per_second: pace.per_second,
            over_seconds: pace.over.as_secs_f64(),
            p50_ms: pace.p50.map(ms),
            p99_ms: pace.p99.map(ms),
            oldest: oldest.map(OldestWork::from),
            waiting_accounts,
            accounts: accounts.into_iter().map(AccountWork::from).collect(),
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

impl From<OldestUnsettled> for OldestWork {
    fn from(oldest: OldestUnsettled) -> Self {
        let OldestUnsettled {
            account,
            endpoint,
            event,
            event_type,
            commit_time_us,
            attempts,
            cause,
        } = oldest;
        Self {
            account_id: account.to_string(),
            endpoint: endpoint.map(|endpoint| endpoint.to_string()),
            event_id: event.to_string(),
            event_type: event_type.to_string(),
            committed_at: rfc3339(commit_time_us),
            attempts,
            cause: cause.as_str().to_owned(),
        }
    }
}

impl From<AccountStanding> for AccountWork {
    fn from(of: AccountStanding) -> Self {
        let AccountStanding { account, waiting, in_flight, deferred, endpoint, .. } = of;
        Self {
            account_id: account.to_string(),
            waiting,
            in_flight,
            deferred,
            endpoint: endpoint.map(|endpoint| endpoint.to_string()),
            oldest_committed_at: of.oldest_commit_us.map(rfc3339),
            cause: of.cause.as_str().to_owned(),
        }
    }
}

/// Both ends of the way from the dispatcher's task to `/work` and `/events`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shown {
    wanted: Arc<Notify>,
    made: Arc<watch::Sender<Option<Made>>>,
    sought: Arc<watch::Sender<Option<EventId>>>,
    found: Arc<watch::Sender<Option<FoundOf>>>,
    /// One event is sought at a time.
    turn: Arc<Mutex<()>>,
}

/// What was found of which event.
type FoundOf = (EventId, Arc<EventWork>);

#[derive(Debug, Clone)]
struct Made {
    work: Arc<Work>,
    at: Instant,
}

impl Default for Shown {
    fn default() -> Self {
        let (made, sought, found) = Default::default();
        Self { wanted: Arc::default(), made, sought, found, turn: Arc::default() }
    }
}

impl Shown {
    /// Waits until somebody wants to know.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Shows what `make` says, where what was said last is not fresh.
    pub(super) fn show(&self, make: impl FnOnce() -> Work) {
        if !is_fresh(&self.made.borrow()) {
            let work = Arc::new(make());
            self.made.send_replace(Some(Made { work, at: Instant::now() }));
        }
    }

    /// The event that somebody wants to know of, when that changes.
    pub(super) fn sought(&self) -> watch::Receiver<Option<EventId>> {
        self.sought.subscribe()
    }

    /// Says where its deliveries are in memory.
    pub(super) fn tell(&self, event: EventId, found: EventWork) {
        self.found.send_replace(Some((event, Arc::new(found))));
    }

    /// Where the event's deliveries are in memory; none: the dispatcher does not say it in time.
    pub(super) async fn find(&self, event: EventId) -> Option<Arc<EventWork>> {
        let _turn = self.turn.lock().await;
        let mut found = self.found.subscribe();
        self.sought.send_replace(Some(event));
        let is_it = |found: &Option<FoundOf>| found.as_ref().is_some_and(|(id, _)| *id == event);
        let told = async {
            found.changed().await.ok()?;
            let told = found.wait_for(is_it).await.ok()?;
            told.as_ref().map(|(_, work)| Arc::clone(work))
        };
        timeout(FOUND_WITHIN, told).await.ok().flatten()
    }

    /// Nobody leads here any more.
    pub(super) fn clear(&self) {
        self.made.send_replace(None);
    }

    /// What the dispatcher says now; what it said last, where it says nothing for a second; none: it has said nothing.
    pub(super) async fn ask(&self) -> Option<Arc<Work>> {
        let mut made = self.made.subscribe();
        if !is_fresh(&made.borrow()) {
            self.wanted.notify_one();
            let _or_what_it_said_last = timeout(PATIENCE, made.wait_for(is_fresh)).await;
        }
        let last = made.borrow();
        last.as_ref().map(|made| Arc::clone(&made.work))
    }
}

fn is_fresh(made: &Option<Made>) -> bool {
    made.as_ref().is_some_and(|made| made.at.elapsed() < FRESH)
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    fn work(pending: usize) -> Work {
        let standing = Standing { pending, ..Standing::default() };
        Work::new("p", 0, standing, Recent::default().pace(walhook_core::tick::Tick(0)))
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_made_for_whoever_asks_and_once_a_second_at_most() {
        let shown = Shown::default();
        let mut dispatcher = JoinSet::new();
        let ours = shown.clone();
        dispatcher.spawn(async move {
            for n in 1.. {
                ours.wanted().await;
                ours.show(|| work(n));
            }
        });
        let pending = async || shown.ask().await.unwrap().pending;
        assert_eq!(pending().await, 1);
        assert_eq!(pending().await, 1, "it is fresh");
        tokio::time::advance(FRESH).await;
        assert_eq!(pending().await, 2);
        shown.show(|| work(9));
        assert_eq!(pending().await, 2);

        // A dispatcher that is stuck: what it said last.
        dispatcher.shutdown().await;
        tokio::time::advance(FRESH).await;
        assert_eq!(pending().await, 2);
        shown.clear();
        assert_eq!(shown.ask().await, None);
    }
}
