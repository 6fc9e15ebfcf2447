//! An event is sent again: a replay of its transaction that admits it alone.

use anyhow::anyhow;

use super::super::replay::{Moment, ReplayRange, ReplayView, Window, ensure_endpoint};

use super::super::{Databases, Failure, bytes};
use super::{Gathered, LINES_MAX, gather};
use crate::config::Config;
use walhook_core::delivery_log::{Entry, What};
use walhook_core::lsn::Lsn;
use walhook_core::position::EventId;
use walhook_core::replay::ReplayFilter;

/// Why nothing came of sending it again: the replay window is asked whether there is such an event.
///
/// # Errors
/// When a database does not answer, or the replay window cannot be read.
pub(crate) async fn why_nothing(
    config: &Config,
    id: EventId,
    sent: &ReplayView,
) -> Result<String, Failure> {
    if let Some(event) = super::body::of_window(config, id).await? {
        let (of, account) = (&event.event_type, &event.account);
        return Ok(match &sent.filter.endpoint {
            Some(endpoint) => format!("endpoint {endpoint} takes no {of} of account {account} now"),
            None => format!("no endpoint of account {account} wants {of} now"),
        });
    }
    if let Some(why) = unroutable(config, id).await? {
        return Ok(format!(
            "{id} could not be turned into an event with an endpoint: {why}; correct the rule or the endpoint table and \
             send it again, or have the row written anew"
        ));
    }
    let older = match sent.from_oldest {
        true => format!(
            "it was committed before {}, where what can be sent again begins, or ",
            sent.from
        ),
        false => String::new(),
    };
    let state = Databases::of(config).open_state().await?;
    let settled = gather(config, &state, id, None).await?.settled(&state, id).await?;
    let newer = match settled {
        Some(true) => String::new(),
        Some(false) | None => format!(
            "it was committed after {}, where the checkpoint was, and can be sent again when that has passed it, or ",
            sent.to
        ),
    };
    Ok(format!(
        "{older}{newer}the rules of now do not make {id} of what the replay window has: a rule was changed, or it is no event \
         of this pipeline"
    ))
}

/// Why it could not be routed, where it is known not to have been: what its dead letter says, or the delivery log.
///
/// # Errors
/// When the state database does not answer.
async fn unroutable(config: &Config, id: EventId) -> Result<Option<String>, Failure> {
    let state = Databases::of(config).open_state().await?;
    let letters = state.letters_of_event(id).await?;
    if let Some(letter) = letters.into_iter().find(|letter| letter.endpoint.is_none()) {
        return Ok(Some(letter.detail));
    }
    let is_dead = |line: &&Entry| matches!(line.what, What::Dead(_)) && line.endpoint().is_none();
    let story = state.story(id, LINES_MAX).await?;
    Ok(story.iter().rev().find(is_dead).map(|line| line.excerpt.clone()))
}

/// What a replay is to read for it.
///
/// # Errors
/// When a database does not answer, the endpoint could not be sent anything, or the event does not lie in the replay
/// window: the message says how far back that reaches.
pub(crate) async fn range(
    config: &Config,
    id: EventId,
    endpoint: Option<String>,
) -> Result<ReplayRange, Failure> {
    let state = Databases::of(config).open_state().await?;
    if let Some(endpoint) = &endpoint {
        ensure_endpoint(config, endpoint).await?;
    }
    let window = Window::read(config, &state).await?;
    let gathered = gather(config, &state, id, None).await?;
    let (from, to) = match gathered.commit() {
        Some(commit) if commit < window.checkpoint => {
            (Moment::Position(commit), Moment::Position(Lsn(commit.0 + 1)))
        }
        Some(_) => return Err(not_yet(config, id, &gathered, &window).into()),
        None if gathered.known.is_under_way() => {
            return Err(not_yet(config, id, &gathered, &window).into());
        }
        // Its id tells when it was committed, to a millisecond.
        None => {
            let from_us = super::commit_us(id);
            // Where no time is known that is as old, the window may reach back to it all the same.
            let is_known = state.position_before(from_us).await?.is_some();
            let from = if is_known { Moment::Time(from_us) } else { Moment::Oldest };
            (from, Moment::Time(from_us.saturating_add(1_000)))
        }
    };
    let filter = ReplayFilter { endpoint, events: vec![id.to_string()], ..ReplayFilter::default() };
    window.range(&state, from, Some(to), filter).await
}

/// That the checkpoint has not passed it, and what that waits for.
fn not_yet(config: &Config, id: EventId, gathered: &Gathered, window: &Window) -> anyhow::Error {
    let why = match (gathered.known.is_under_way(), &gathered.memory_error) {
        (true, _) => "for it is still being delivered for the first time",
        (false, None) => {
            "although nothing of it is on its way any more: something that was committed before it still is"
        }
        (false, Some(_)) => {
            "for it, or something that was committed before it, is still being delivered for the first time"
        }
    };
    anyhow!(
        "{id} cannot be sent again yet: the checkpoint ({}, {} behind the WAL) has not passed it, {why}. A delivery holds \
         the checkpoint back for at most wal.max_hold ({})",
        window.checkpoint,
        bytes(window.lag_bytes()),
        humantime::format_duration(config.wal.max_hold)
    )
}
