//! Replays: a past range is sent again, beside the live stream.
//!
//! The leader does the sending; what must reach it goes through the table of jobs. Only a dry run is made
//! here: it reads the range and counts.

mod bounds;
mod dry_run;
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::jobs::{self, Awaited, Before};
use super::{Databases, Failure, Progress, Tell, ensure_live};
use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_core::id::ReplayId;
use walhook_core::replay::ReplayFilter;
use walhook_postgres::lookup::{self, Listed, Lookups, Which};
use walhook_state::{StateStore, StoredReplay};

pub(crate) use bounds::{Moment, Window};
pub(crate) use dry_run::{CountsView, count};
pub(crate) use walhook_core::replay::ReplayRange;

/// A replay, and how far it is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReplayView {
    /// The job's id.
    pub(crate) id: i64,
    /// The first commit record may begin here.
    pub(crate) from: String,
    /// Commit records from here on do not count.
    pub(crate) to: String,
    /// It begins where what can be sent again begins, where that is later; left out where not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) from_oldest: bool,
    /// Which of the events in between.
    pub(crate) filter: FilterView,
    /// Everything before this was sent again, or is deferred.
    pub(crate) position: String,
    /// Deliveries that an endpoint took.
    pub(crate) delivered: i64,
    /// Deliveries that are deferred under the replay's id, and are tried again.
    pub(crate) waiting: i64,
    /// Deliveries that ended as dead letters.
    pub(crate) dead: i64,
    /// Deliveries whose endpoint was removed meanwhile, or which an operator discarded.
    pub(crate) dropped: i64,
    /// Deliveries that are counted in gaps, since their endpoints were suspended.
    pub(crate) in_gaps: i64,
    /// `delivered`, for scripts from before that had a name.
    pub(crate) done: i64,
    /// `dead`, likewise.
    pub(crate) failed: i64,
    /// When it was asked for.
    pub(crate) created_at: String,
    /// Whether its range was read to the end. Deliveries may still wait.
    pub(crate) finished: bool,
    /// Why it ended early, where it did.
    pub(crate) error: Option<String>,
    /// The replay that is carried out before it: one goes after the other. Null where that is nobody's, and where only
    /// the list tells.
    pub(crate) waits_for: Option<i64>,
    /// How much of the range is done, from 0 to 1.
    #[serde(skip)]
    pub(crate) fraction: f64,
}

/// Which events of a range, and for whom. What filters nothing is left out.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FilterView {
    /// Events of this account only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) account: Option<String>,
    /// Deliveries to this endpoint only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// Events of these types only: exact, or patterns as an endpoint's row has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) types: Vec<String>,
    /// These events only: their ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<String>,
    /// Committed at or after this: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) since_us: Option<i64>,
    /// Committed before this: microseconds since 1970-01-01 UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until_us: Option<i64>,
}

impl From<ReplayFilter> for FilterView {
    fn from(filter: ReplayFilter) -> Self {
        let ReplayFilter { account, endpoint, types, events, since_us, until_us } = filter;
        Self { account, endpoint, types, events, since_us, until_us }
    }
}

impl ReplayView {
    /// Whether it has had no delivery so far.
    pub(crate) fn is_of_nothing(&self) -> bool {
        let Self { delivered, waiting, dead, dropped, in_gaps, .. } = self;
        delivered + waiting + dead + dropped + in_gaps == 0
    }
}

impl From<StoredReplay> for ReplayView {
    fn from(replay: StoredReplay) -> Self {
        let fraction = replay.fraction();
        let ReplayRange { from, to, from_oldest, filter } = replay.range;
        Self {
            id: replay.id.0,
            from: from.to_string(),
            to: to.to_string(),
            from_oldest,
            filter: filter.into(),
            position: replay.position.to_string(),
            delivered: replay.delivered,
            waiting: replay.waiting,
            dead: replay.dead,
            dropped: replay.dropped,
            in_gaps: replay.in_gaps,
            done: replay.done,
            failed: replay.failed,
            created_at: rfc3339(replay.created_at_us),
            finished: replay.finished,
            error: replay.error,
            waits_for: None,
            fraction,
        }
    }
}

/// The list.
#[derive(Debug, Serialize)]
pub(crate) struct ReplayList {
    /// The latest first.
    pub(crate) replays: Vec<ReplayView>,
}

/// What was cancelled.
#[derive(Debug, Serialize)]
pub(crate) struct CancelledView {
    /// The replay's id.
    pub(crate) cancelled: i64,
}

/// What of the past is to be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Where it begins.
    pub(crate) from: Moment,
    /// Where it ends; `None`: at the checkpoint.
    pub(crate) to: Option<Moment>,
    /// Events of this account only.
    pub(crate) account: Option<String>,
    /// Deliveries to this endpoint only.
    pub(crate) endpoint: Option<String>,
    /// Events of these types only.
    pub(crate) types: Vec<String>,
}

/// The range that is asked for, and how many bytes of WAL it leaves out since it ends at the checkpoint.
///
/// # Errors
/// When a database does not answer, the endpoint could not be sent anything, or the range is not within the
/// replay window, which the message names.
pub(crate) async fn range(config: &Config, asked: Asked) -> Result<(ReplayRange, u64), Failure> {
    let Asked { from, to, account, endpoint, types } = asked;
    Moment::ensure_forward(from, to)?;
    let state = Databases::of(config).open_state().await?;
    if let Some(endpoint) = &endpoint {
        ensure_endpoint(config, endpoint).await?;
    }
    let window = Window::read(config, &state).await?;
    let filter = ReplayFilter { account, endpoint, types, ..ReplayFilter::default() };
    let range = window.range(&state, from, to, filter).await?;
    let left_out_bytes = window.left_out_bytes(&range);
    Ok((range, left_out_bytes))
}

/// A replay goes to the endpoints of now, so to one that is not there it would send nothing, and say
/// nothing of that.
pub(super) async fn ensure_endpoint(config: &Config, id: &str) -> Result<(), Failure> {
    let ids = [id.to_owned()];
    let rows = listed(config, Which { ids: Some(&ids), limit: 1, ..Which::default() }).await?;
    let table = &config.endpoints.table;
    match rows.first() {
        None => Err(anyhow!(
            "{table} has no endpoint {id}, so nothing would be sent; `walhook endpoints list` shows them"
        )
        .into()),
        Some(row) if !row.enabled => Err(anyhow!(
            "endpoint {id} is switched off in {table}, so nothing would be sent; switch its row on first"
        )
        .into()),
        Some(_) => Ok(()),
    }
}

/// A type that no rule makes, or an account without an endpoint, is mistyped: nothing would be sent.
async fn ensure_wanted(config: &Config, filter: &ReplayFilter) -> Result<(), Failure> {
    let is_made = |of: &&String| config.events.iter().any(|rule| rule.makes(of));
    if let Some(of) = filter.types.iter().find(|of| !is_made(of)) {
        return Err(anyhow!("no rule makes an event of type {of}, so nothing would be sent").into());
    }
    let Some(account) = &filter.account else { return Ok(()) };
    let which = Which { account: Some(account), limit: 1, ..Which::default() };
    if listed(config, which).await?.is_empty() {
        let table = &config.endpoints.table;
        return Err(anyhow!(
            "{table} has no endpoint of account {account}, so nothing would be sent"
        )
        .into());
    }
    Ok(())
}

/// Rows of the endpoint table.
async fn listed(config: &Config, which: Which<'_>) -> Result<Vec<Listed>, Failure> {
    let source = lookup::connect(config.lookups(), "walhook replay").await.context("source.url")?;
    let rows = Lookups::of(config.lookups()).list(&source, which).await;
    Ok(rows.context("cannot read the endpoint table")?)
}

/// Asks the leader for the replay.
///
/// # Errors
/// When nothing is sent from here, no rule makes a type that is asked for, the account has no endpoint, or a database
/// does not answer.
pub(crate) async fn start(
    config: &Config,
    range: &ReplayRange,
    tell: Tell<'_>,
) -> Result<ReplayView, Failure> {
    ensure_live(config)?;
    ensure_wanted(config, &range.filter).await?;
    let databases = Databases::of(config);
    let replay = databases.open_state().await?.create_replay(range).await?;
    let then = format!("replay {} begins when one does", replay.id);
    jobs::note_without_leader(databases, &then, tell).await;
    Ok(replay.into())
}

/// Waits for its end, at most `wait`: until its range was read, or `for_all` until nothing of it waits.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn wait_for(
    databases: Databases<'_>,
    replay: ReplayView,
    for_all: bool,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<ReplayView, Failure> {
    let state = databases.open_state().await?;
    let waited = jobs::wait_for(&state, Waited { replay, for_all }, wait, tell).await?;
    Ok(waited.replay)
}

/// A replay, and what of it is waited for.
struct Waited {
    replay: ReplayView,
    for_all: bool,
}

impl Awaited for Waited {
    fn is_finished(&self) -> bool {
        let Self { replay, for_all } = self;
        let something_waits = *for_all && replay.error.is_none() && replay.waiting > 0;
        replay.finished && !something_waits
    }

    fn progress(&self) -> Progress<'_> {
        Progress::Replay(&self.replay)
    }

    async fn before(&self, state: &StateStore) -> Result<Option<Before>, Failure> {
        let has_begun = self.replay.finished || !self.replay.is_of_nothing();
        let next = if has_begun { None } else { state.next_replay().await? };
        Ok(next.filter(|next| next.id.0 < self.replay.id).map(Before::replay))
    }

    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure> {
        let id = self.replay.id;
        let replay =
            state.replay(ReplayId(id)).await?.ok_or_else(|| anyhow!("replay {id} is gone"))?;
        Ok(Self { replay: replay.into(), for_all: self.for_all })
    }
}

impl Before {
    fn replay(replay: StoredReplay) -> Self {
        let ReplayView { id, filter, fraction, .. } = replay.into();
        let of = filter.account.map(|account| format!("account {account}, ")).unwrap_or_default();
        Self { id, what: format!("replay {id} ({of}{:.0} %)", 100.0 * fraction) }
    }
}

/// Lists replays, the latest first.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn list(databases: Databases<'_>, limit: i64) -> Result<ReplayList, Failure> {
    let state = databases.open_state().await?;
    let next = state.next_replay().await?.map(|next| next.id.0);
    let replays = state.replays(limit).await?.into_iter().map(ReplayView::from);
    let waits_for = |replay: &ReplayView| next.filter(|next| !replay.finished && *next < replay.id);
    let replays = replays.map(|replay| ReplayView { waits_for: waits_for(&replay), ..replay });
    Ok(ReplayList { replays: replays.collect() })
}

/// Ends a replay, and discards what waits of it; what it has sent stays sent.
///
/// # Errors
/// When there is none of this id, it has ended already, or the state database does not answer.
pub(crate) async fn cancel(databases: Databases<'_>, id: i64) -> Result<CancelledView, Failure> {
    let mut state = databases.open_state().await?;
    if state.cancel_replay(ReplayId(id)).await? {
        return Ok(CancelledView { cancelled: id });
    }
    let why = match state.replay(ReplayId(id)).await? {
        Some(_) => format!("replay {id} has ended already, and nothing of it waits"),
        None => format!("there is no replay {id}; `walhook replay list` shows them"),
    };
    Err(anyhow!(why).into())
}
