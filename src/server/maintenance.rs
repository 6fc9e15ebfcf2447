//! The tasks that keep the state tables small while this instance leads.
//!
//! Apart from each other: to vacuum may take minutes, and sizes are wanted meanwhile.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::error::TaskError;
use super::sessions::{SIZES, Sessions, VACUUM, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::room::{Measured, Room};

/// How often the tables are measured: they exceed `state.max_size` by what comes in between.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How often rows that are too old are removed, a thousand in each round: many times what a day can
/// add. And how often tables are looked at for dead rows.
const CLEAN_EVERY: Duration = Duration::from_secs(5);

/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// Measures the tables, on a session of its own, and tells the dispatcher.
pub(super) struct Measuring {
    pub(super) sessions: Arc<Sessions>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
    pub(super) measured: Arc<watch::Sender<Measured>>,
}

impl Work for Measuring {
    const NAME: &'static str = "sizes";
    const PART: Part = Part::Sizes;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        let store = self.sessions.own_state(SIZES).await?;
        // Where the session before was lost, the server may have crashed.
        store.count_rows().await?;
        loop {
            let size = store.sizes().await?;
            self.metrics.set_state_size(size.total_bytes, size.used_bytes);
            let max_bytes = self.sessions.config.state.max_size.0;
            let max = i64::try_from(max_bytes).unwrap_or(i64::MAX);
            self.metrics.about.state_max_bytes.set(max);
            let holders = match size.room(max_bytes) {
                Room::None | Room::Little => store.holders().await?,
                Room::Enough => Vec::new(),
            };
            self.measured.send_replace(Measured { size, holders });
            self.tell.works(Self::PART);
            sleep(MEASURE_EVERY).await;
        }
    }
}

/// Removes what `state.retention` no longer keeps.
pub(super) struct Retention {
    pub(super) sessions: Arc<Sessions>,
    pub(super) tell: Teller,
}

impl Retention {
    async fn expire(&self) -> Result<u64, TaskError> {
        let mut store = self.sessions.state().await?;
        let removed = store.expire(self.sessions.config.state.retention).await;
        store.end();
        Ok(removed?)
    }
}

impl Work for Retention {
    const NAME: &'static str = "retention";
    const PART: Part = Part::Retention;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            let removed = in_turn(self.expire()).await?;
            if removed > 0 {
                tracing::info!(rows = removed, "removed what state.retention no longer keeps");
            }
            self.tell.works(Self::PART);
            sleep(CLEAN_EVERY).await;
        }
    }
}

/// Vacuums, on a session that is open meanwhile.
pub(super) struct Vacuum {
    pub(super) sessions: Arc<Sessions>,
    pub(super) tell: Teller,
    pub(super) measured: Arc<watch::Sender<Measured>>,
}

impl Vacuum {
    async fn worth(&self, is_near: bool) -> Result<Vec<String>, TaskError> {
        let store = self.sessions.state().await?;
        let tables = store.worth_a_vacuum(is_near).await;
        store.end();
        Ok(tables?)
    }
}

impl Work for Vacuum {
    const NAME: &'static str = "vacuum";
    const PART: Part = Part::Vacuum;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            // Near the bound the room of removed rows is wanted soon.
            let size = self.measured.borrow().size;
            let is_near = size.is_near(self.sessions.config.state.max_size.0);
            let tables = in_turn(self.worth(is_near)).await?;
            if !tables.is_empty() {
                let store = self.sessions.own_state(VACUUM).await?;
                for table in &tables {
                    store.vacuum(table).await?;
                }
                tracing::debug!(tables = tables.join(", "), "vacuumed");
            }
            self.tell.works(Self::PART);
            sleep(if is_near { MEASURE_EVERY } else { CLEAN_EVERY }).await;
        }
    }
}
