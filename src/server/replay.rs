//! The task that carries replays out, one after the other: reads the range, routes its events, and feeds
//! the dispatcher as fast as that takes them, at most 1,000 deliveries a second.
//!
//! The dispatcher counts what has ended, or is deferred, in the transaction that makes it durable. Now and
//! then the feeder waits until all that it fed has, and stores the position: there the next leader goes on.
//! What the one before had deferred from there on is passed over, and so is what an operator has discarded of that;
//! what it had delivered is sent again. Where a connection is lost and the process lives on, it knows what it has fed,
//! and feeds nothing of that once more.

mod fed;
mod left_out;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::error::TaskError;
use super::range::Batch;
use super::range::{Range, RangeError};
use super::sessions::{REPLAY_LOOK_UPS, REPLAY_STATE, Sessions, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::trouble::Part;
use fed::Fed;
use left_out::LeftOut;
use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, Event, Item};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_dispatch::dispatcher::{Replay, ReplayInput};
use walhook_postgres::fix::line_of;
use walhook_postgres::lookup::{LookupSession, Lookups};
use walhook_state::{StateStore, StoredReplay};

/// How often the table of jobs is looked at while there is nothing to do.
const EVERY: Duration = Duration::from_secs(1);

/// How often the progress of a replay is looked at, and whether it was cancelled.
const POLL: Duration = Duration::from_millis(100);

/// How often the table is looked at although nobody says that there is a replay.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Batches on their way from the range.
const BATCHES: usize = 2;

/// Deliveries after which the position is stored: a leader that comes later sends so many again.
const STORE_EVERY: i64 = 5_000;

/// Deliveries that are fed together, and how long from one lot to the next. Endpoints that answer at once
/// would let a replay take every core that walhook and PostgreSQL have, and the live events would wait for
/// them: in small lots these never wait for many.
const LOT: u32 = 2;
const LOT_EVERY: Duration = Duration::from_millis(2);

/// Between two tries of a replay that the source interrupts.
const PAUSE: Duration = Duration::from_secs(5);

/// Tries without any progress between them, after which a replay is given up.
const TRIES: u32 = 5;

/// Carries replays out.
pub(super) struct Replays {
    sessions: Arc<Sessions>,
    tell: Teller,
    lookups: Lookups,
    input: mpsc::Sender<ReplayInput>,
    /// Told by the task of jobs, which looks at their table every second.
    asked: Arc<Notify>,
    /// Of each replay that is not finished what was fed. Outlives a lost connection, as the dispatcher's counts do.
    fed: HashMap<ReplayId, Fed>,
    /// What each of them has left out of the batches that were fed to their end, since this leader carries it out.
    left_out: HashMap<ReplayId, LeftOut>,
    /// The replay whose range this leader reads for the first time, from its beginning: nothing of it can be
    /// deferred already.
    begun: Option<ReplayId>,
}

/// Keeps lots apart.
struct Pace {
    lots: Interval,
    left: u32,
}

impl Pace {
    fn new() -> Self {
        let mut lots = interval(LOT_EVERY);
        // What was missed is not made up for.
        lots.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { lots, left: 0 }
    }

    /// Waits until one more delivery may go.
    async fn wait(&mut self) {
        if self.left == 0 {
            self.lots.tick().await;
            self.left = LOT;
        }
        self.left -= 1;
    }
}

/// How feeding a range ended.
enum Ended {
    /// All of it has ended or is deferred, and that is stored.
    Settled,
    /// It was ended by an operator.
    Cancelled,
    /// The range could not be read to its end.
    Broken(Interrupted),
}

/// Why a range was not read to its end this time.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    /// The source, or what it has.
    #[error(transparent)]
    Range(RangeError),
    /// A defect.
    #[error("the range's reader panicked")]
    Panicked,
}

impl Work for Replays {
    const NAME: &'static str = "replays";
    const PART: Part = Part::Replays;
    const UNTIL: Until = Until::Drain;
    const PAUSE: Duration = EVERY;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            let next = in_turn(self.next()).await?;
            self.tell.works(Self::PART);
            let Some(replay) = next else {
                // While a job is carried out nobody says.
                let _ = timeout(LOOK_EVERY, self.asked.notified()).await;
                continue;
            };
            let mut store = self.sessions.own_state(REPLAY_STATE).await?;
            self.carry_out(&mut store, replay).await?;
        }
    }
}

impl Replays {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        tell: Teller,
        input: mpsc::Sender<ReplayInput>,
        asked: Arc<Notify>,
    ) -> Self {
        let lookups = Lookups::of(sessions.config.lookups());
        let (fed, left_out) = Default::default();
        Self { sessions, tell, lookups, input, asked, fed, left_out, begun: None }
    }

    async fn next(&self) -> Result<Option<StoredReplay>, TaskError> {
        let store = self.sessions.state().await?;
        let next = store.next_replay().await;
        store.end();
        Ok(next?)
    }

    async fn carry_out(
        &mut self,
        store: &mut StateStore,
        replay: StoredReplay,
    ) -> Result<(), TaskError> {
        let (from, to) = (replay.position, replay.range.to);
        tracing::info!(replay = replay.id.0, %from, %to, "sending a past range again");
        let StoredReplay { id: job, counts, .. } = replay;
        let range = replay.range.clone();
        let is_new = !self.fed.contains_key(&job) && counts.total() == 0;
        self.begun = (is_new && from <= range.from).then_some(job);
        self.fed.entry(job).or_insert_with(|| Fed::new(counts.total()));
        self.input.send(ReplayInput::Start(job, counts)).await?;
        let problem = self.feed_until_settled(store, replay).await?;
        self.input.send(ReplayInput::End(job)).await?;
        self.fed.remove(&job);
        let left_out = self.left_out.remove(&job).and_then(|left_out| left_out.to_text());
        let problem = match (problem, left_out) {
            (Some(problem), Some(left_out)) => Some(format!("{problem}; {left_out}")),
            (problem, left_out) => problem.or(left_out),
        };
        if problem.is_none() {
            for gap in store.close_replayed_gaps(job, &range).await? {
                tracing::info!(
                    gap,
                    replay = job.0,
                    "closed the gap that the replay has sent again"
                );
            }
        }
        store.finish_job(job.into(), problem.as_deref()).await?;
        let left = store.replay(job).await?;
        let (waiting, dead) = left.map_or((0, 0), |left| (left.waiting, left.dead));
        tracing::info!(
            replay = job.0,
            problem,
            waiting,
            dead,
            "the replay's range is read to its end"
        );
        Ok(())
    }

    /// Feeds a replay until all of it is settled. Says why it ended early, where it did.
    async fn feed_until_settled(
        &mut self,
        store: &mut StateStore,
        mut replay: StoredReplay,
    ) -> Result<Option<String>, TaskError> {
        let mut tries = 0;
        loop {
            let problem = match self.feed_range(store, &replay).await? {
                Ended::Settled | Ended::Cancelled => return Ok(None),
                Ended::Broken(interrupted) => interrupted,
            };
            let is_final = matches!(&problem, Interrupted::Range(error) if error.without_publication().is_some());
            let problem = line_of(&problem);
            if is_final {
                return Ok(Some(problem));
            }
            let Some(now) = store.replay(replay.id).await? else { return Ok(None) };
            tries = if now.position > replay.position { 1 } else { tries + 1 };
            replay = now;
            if tries >= TRIES {
                return Ok(Some(problem));
            }
            tracing::warn!(replay = replay.id.0, %problem, "the replay was interrupted; trying again");
            sleep(PAUSE).await;
        }
    }

    async fn feed_range(
        &mut self,
        store: &mut StateStore,
        replay: &StoredReplay,
    ) -> Result<Ended, TaskError> {
        let (mut from, to) = (replay.position.max(replay.range.from), replay.range.to);
        // What was fed before the connection was lost is a row by then, or has ended.
        if !self.until_ended(store, replay.id).await? {
            return Ok(Ended::Cancelled);
        }
        let fed_to = self.fed.get_mut(&replay.id).and_then(Fed::begin_again);
        if let Some(fed_to) = fed_to.filter(|fed_to| *fed_to > from) {
            store.set_replay_position(replay.id, fed_to).await?;
            from = fed_to;
        }
        let may_be_there = self.begun.take() != Some(replay.id);
        let purpose = format!("replay_{}", replay.id);
        let (config, from_oldest) = (&self.sessions.config, replay.range.from_oldest);
        let range = match Range::open(config, from, to, from_oldest, &purpose).await {
            Ok(range) => range,
            Err(error) => return Ok(Ended::Broken(Interrupted::Range(error))),
        };
        let lookups = LookupSession::open(config.lookups(), REPLAY_LOOK_UPS.name).await?;
        let (out, mut batches) = mpsc::channel::<Batch>(BATCHES);
        let mut task = JoinSet::new();
        task.spawn(range.read(out));
        let (left_out, pace) = (LeftOut::default(), Pace::new());
        let mut feeding = Feeding { replay, lookups, may_be_there, unstored: 0, left_out, pace };
        while let Some(batch) = batches.recv().await {
            let mut end = None;
            let events = events(replay, batch.items, &mut end);
            if !self.feed_events(store, &mut feeding, &events).await? {
                return Ok(Ended::Cancelled);
            }
            self.fed.entry(replay.id).or_default().end_batch(end);
            let before = self.left_out.entry(replay.id).or_default();
            before.append(std::mem::take(&mut feeding.left_out));
            if let Some(end) = end.filter(|end| feeding.unstored >= STORE_EVERY || *end >= to) {
                if !self.until_ended(store, replay.id).await? {
                    return Ok(Ended::Cancelled);
                }
                store.set_replay_position(replay.id, end).await?;
                feeding.unstored = 0;
            }
        }
        match task.join_next().await {
            Some(Ok(Ok(()))) => Ok(Ended::Settled),
            Some(Ok(Err(error))) => Ok(Ended::Broken(Interrupted::Range(error))),
            Some(Err(_)) | None => Ok(Ended::Broken(Interrupted::Panicked)),
        }
    }

    /// Feeds the deliveries of events; `false` when the replay was cancelled meanwhile.
    async fn feed_events(
        &mut self,
        store: &StateStore,
        feeding: &mut Feeding<'_>,
        events: &[Arc<Event>],
    ) -> Result<bool, TaskError> {
        let Feeding { replay, may_be_there, .. } = *feeding;
        let there = match may_be_there && !events.is_empty() {
            true => {
                let ids: Vec<String> = events.iter().map(|e| e.id.to_string()).collect();
                store.replayed_before(replay.id, &ids).await?
            }
            false => HashSet::new(),
        };
        let fed = self.fed.entry(replay.id).or_default();
        fed.begin_batch(events.last().map(|event| event.position));
        let mut accounts: Vec<AccountId> = events.iter().map(|e| e.account.clone()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        while !accounts.is_empty() {
            // As many of them as memory has room for, and one delivery after the other: an account may
            // have very many endpoints.
            let routes = feeding.lookups.fetch(&self.lookups, &accounts).await?.routes;
            let routes: HashMap<AccountId, Routes> = routes.into_iter().collect();
            accounts.retain(|account| !routes.contains_key(account));
            feeding.leave_out(fed, &routes, events);
            for delivery in deliveries(replay, events, &routes) {
                let Replay { event, endpoint, .. } = &delivery;
                if may_be_there && there.contains(&(event.id.to_string(), endpoint.to_string()))
                    || fed.has(event, endpoint)
                {
                    continue;
                }
                feeding.pace.wait().await;
                feeding.unstored += 1;
                fed.add(event, endpoint);
                // The dispatcher takes it when it has room; a cancelled replay must not wait for that.
                tokio::select! {
                    sent = self.input.send(ReplayInput::Deliver(delivery)) => sent?,
                    () = cancelled(store, replay.id) => return Ok(false),
                }
            }
            fed.leave_position();
        }
        Ok(true)
    }

    /// Waits until all that was fed has ended or is deferred, and that is stored; `false` when the replay was cancelled
    /// meanwhile.
    async fn until_ended(&self, store: &StateStore, id: ReplayId) -> Result<bool, TaskError> {
        let fed = self.fed.get(&id).map_or(0, Fed::total);
        loop {
            match store.replay(id).await? {
                None | Some(StoredReplay { finished: true, .. }) => return Ok(false),
                Some(now) if now.counts.total() >= fed => return Ok(true),
                Some(_) => sleep(POLL).await,
            }
        }
    }
}

/// A range that is being fed.
struct Feeding<'a> {
    replay: &'a StoredReplay,
    lookups: LookupSession,
    /// Some of it may be deferred under the replay's id already, or dead.
    may_be_there: bool,
    /// Deliveries since the position was stored.
    unstored: i64,
    left_out: LeftOut,
    pace: Pace,
}

impl Feeding<'_> {
    /// Tells of the accounts whose endpoints cannot be read.
    fn leave_out(&mut self, fed: &Fed, routes: &HashMap<AccountId, Routes>, events: &[Arc<Event>]) {
        for (account, routes) in routes {
            let Some(why) = &routes.refused else { continue };
            // The others' must not wait for it; it can be replayed by itself afterwards.
            let is_new = |e: &&Arc<Event>| e.account == *account && !fed.had(e.position);
            let of_account = events.iter().filter(is_new).count();
            self.left_out.add(account, of_account as u64, why);
            let (replay, account) = (self.replay.id.0, account.escape_debug());
            tracing::warn!(replay, %account, %why, "a replay leaves the account out");
        }
    }
}

/// The events among the items that are to be sent again. `end` becomes the position up to which
/// transactions are complete with these items, where any is.
fn events(replay: &StoredReplay, items: Vec<Item>, end: &mut Option<Lsn>) -> Vec<Arc<Event>> {
    let mut events = Vec::new();
    for item in items {
        match item {
            Item::Event(event) if replay.range.filter.admits(&event) => events.push(event),
            Item::Commit { end_lsn } => *end = Some(end_lsn),
            Item::Progress { wal_end } => *end = Some(wal_end),
            // What cannot be routed stands among the dead letters since the first time.
            Item::Event(_) | Item::Unroutable(_) | Item::Invalidate(_) => {}
            // What is complete ends before a transaction that is not. A replay reads one after the other.
            Item::Begin { .. } | Item::Pause | Item::Resume { .. } => {}
        }
    }
    events
}

/// The deliveries that events make.
fn deliveries<'a>(
    replay: &'a StoredReplay,
    events: &'a [Arc<Event>],
    routes: &'a HashMap<AccountId, Routes>,
) -> impl Iterator<Item = Replay> + 'a {
    let filter = &replay.range.filter;
    events.iter().flat_map(move |event| {
        let endpoints = routes.get(&event.account).into_iter().flat_map(|r| &r.endpoints);
        let takes = move |e: &&Arc<Endpoint>| {
            e.enabled && e.wants(&event.event_type) && filter.admits_endpoint(&e.id)
        };
        endpoints.filter(takes).map(move |endpoint| Replay {
            replay: replay.id,
            event: Arc::clone(event),
            endpoint: endpoint.id.clone(),
        })
    })
}

/// Waits until the replay has been ended by an operator.
async fn cancelled(store: &StateStore, id: ReplayId) {
    loop {
        sleep(POLL).await;
        if let Ok(None | Some(StoredReplay { finished: true, .. })) = store.replay(id).await {
            return;
        }
    }
}
