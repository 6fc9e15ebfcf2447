//! Reads deferred rows back, batch after batch of pages.

use super::error::TaskError;
use super::responder::Responder;
use super::sessions::{DEFERRED, open_state};
use crate::config::Config;
use crate::server::trouble::Part;
use walhook_core::persist::{Refill, Refilled, UnroutedPage, UnroutedRefill};
use walhook_postgres::timelines::Timelines;
use walhook_state::StateStore;

/// What the dispatcher asks.
pub(super) enum RefillRequest {
    /// Deferred rows.
    Deferred(Vec<Refill>),
    /// Events without an endpoint.
    Unrouted(Vec<UnroutedRefill>),
}

/// The answer: one for each request.
pub(super) enum RefillReply {
    /// Deferred rows.
    Deferred(Vec<Refilled>),
    /// Events without an endpoint.
    Unrouted(Vec<UnroutedPage>),
}

/// Reads pages from the state database.
pub(super) struct Refiller {
    config: Config,
    timelines: Timelines,
    store: Option<StateStore>,
}

impl Refiller {
    pub(super) fn new(config: Config, timelines: Timelines) -> Self {
        Self { config, timelines, store: None }
    }
}

impl Responder for Refiller {
    type Question = RefillRequest;
    type Answer = RefillReply;

    fn part(&self) -> Part {
        Part::Deferred
    }

    async fn answer(&mut self, request: &RefillRequest) -> Result<RefillReply, TaskError> {
        let store = match &mut self.store {
            Some(store) => store,
            None => {
                let opened = open_state(&self.config, &self.timelines, DEFERRED).await?;
                self.store.insert(opened)
            }
        };
        Ok(match request {
            RefillRequest::Deferred(pages) => RefillReply::Deferred(store.refill(pages).await?),
            RefillRequest::Unrouted(pages) => RefillReply::Unrouted(store.unrouted(pages).await?),
        })
    }

    async fn probe(&mut self) -> Result<(), TaskError> {
        // Nobody waits for a page, and a session that is not needed is not opened.
        let Some(store) = &self.store else { return Ok(()) };
        store.frontier().await?;
        Ok(())
    }

    fn hang_up(&mut self, _hung: bool) {
        self.store = None;
    }
}
