//! The event itself, wherever it still is: in a row of the state tables, or in the replay window.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::resend;
use crate::config::Config;
use crate::control::Failure;
use crate::server::range::Range;
use walhook_core::event::{Event, Item};
use walhook_core::position::EventId;
use walhook_core::replay::ReplayRange;
use walhook_state::{StateError, StateStore};

/// Batches on their way.
const BATCHES: usize = 2;

/// From a deferred delivery, a dead letter, or where it waits without an endpoint; since when it does that, in
/// microseconds since 1970-01-01 UTC.
pub(super) async fn of_tables(
    state: &StateStore,
    id: EventId,
) -> Result<(Option<Arc<Event>>, Option<i64>), StateError> {
    let unrouted = state.unrouted_event(id).await?;
    let (unrouted, since) = unrouted.map_or((None, None), |(event, at)| (Some(event), Some(at)));
    let event = match state.event_of_rows(id).await?.or(unrouted) {
        Some(event) => Some(event),
        None => state.event_of_page(id).await?,
    };
    Ok((event, since))
}

/// From the replay window, where that reaches back to the commit: made anew by the rules of now.
///
/// # Errors
/// When there is no window, it does not reach so far back, or it cannot be read.
pub(super) async fn of_window(config: &Config, id: EventId) -> Result<Option<Arc<Event>>, Failure> {
    let ReplayRange { from, to, from_oldest, .. } = resend::range(config, id, None).await?;
    let purpose = format!("show_{}", std::process::id());
    let range = Range::open(config, from, to, from_oldest, &purpose).await;
    let range = range.map_err(anyhow::Error::from)?;
    let (out, mut batches) = mpsc::channel(BATCHES);
    let mut task = JoinSet::new();
    task.spawn(range.read(out));
    while let Some(batch) = batches.recv().await {
        for item in batch.items {
            if let Item::Event(event) = item
                && event.id == id
            {
                return Ok(Some(event));
            }
        }
    }
    match task.join_next().await {
        Some(Ok(ended)) => ended.map_err(anyhow::Error::from)?,
        Some(Err(_)) | None => return Err(anyhow::anyhow!("the range's reader panicked").into()),
    }
    Ok(None)
}
