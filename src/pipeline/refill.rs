//! Reads deferred rows back, batch after batch of pages.

use super::desk::Desk;
use super::open_state;
use crate::config::Config;
use crate::engine::persist::{Refill, Refilled};
use crate::io::state::StateStore;

/// What the dispatcher asks.
pub(super) struct RefillRequest {
    pub(super) pages: Vec<Refill>,
}

/// The answer: one for each request.
pub(super) struct RefillReply {
    pub(super) pages: Vec<Refilled>,
}

/// Reads pages from the state database.
pub(super) struct Refiller {
    config: Config,
    store: Option<StateStore>,
}

impl Refiller {
    pub(super) fn new(config: Config) -> Self {
        Self { config, store: None }
    }
}

impl Desk for Refiller {
    type Question = RefillRequest;
    type Answer = RefillReply;

    const DOES: &str = "read deferred deliveries back";

    async fn answer(&mut self, request: &RefillRequest) -> anyhow::Result<RefillReply> {
        let store = match &mut self.store {
            Some(store) => store,
            None => self.store.insert(open_state(&self.config).await?),
        };
        Ok(RefillReply { pages: store.refill(&request.pages).await? })
    }

    fn hang_up(&mut self) {
        self.store = None;
    }
}
