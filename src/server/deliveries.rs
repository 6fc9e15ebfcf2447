//! The task that keeps the delivery log small while this instance leads: merges its small pages, and removes the oldest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::error::TaskError;
use super::sessions::{Sessions, in_turn};
use super::tasks::{Until, Work};
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_state::DeliveryCursor;

/// How often small pages are looked for, the log is measured, and what is too much or too old is removed: it exceeds
/// `deliveries.max_size` by what comes in between.
const EVERY: Duration = Duration::from_secs(5);

/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// See the module's documentation.
pub(super) struct DeliveryLog {
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    tell: Teller,
    /// Pages up to this one are merged.
    merged: DeliveryCursor,
    /// What is to be removed for the bound.
    excess: u64,
}

impl DeliveryLog {
    /// Nothing is known of the pages yet.
    pub(super) fn new(sessions: Arc<Sessions>, metrics: Arc<Metrics>, tell: Teller) -> Self {
        let merged = DeliveryCursor::default();
        Self { sessions, metrics, tell, merged, excess: 0 }
    }

    /// Merges some pages; says whether there are more.
    async fn merge(&mut self) -> Result<bool, TaskError> {
        let mut store = self.sessions.state().await?;
        let merged = store.merge_deliveries(self.merged).await;
        store.end();
        let merged = merged?;
        if let Some(refused) = merged.refused {
            tracing::error!(error = %refused, "a page of the delivery log stays as it is");
        }
        let Some(next) = merged.next else { return Ok(false) };
        self.merged = next;
        Ok(true)
    }

    /// Removes some pages; says whether there may be more to remove.
    async fn expire(&mut self) -> Result<bool, TaskError> {
        let retention = self.sessions.config.deliveries.retention;
        let mut store = self.sessions.state().await?;
        let removed = store.expire_deliveries(retention, self.excess).await;
        store.end();
        let (pages, bytes) = removed?;
        self.excess = if pages == 0 { 0 } else { self.excess.saturating_sub(bytes) };
        if pages > 0 {
            tracing::debug!(pages, bytes, "removed the oldest pages of the delivery log");
        }
        Ok(pages > 0)
    }

    async fn measure(&mut self) -> Result<(), TaskError> {
        let store = self.sessions.state().await?;
        let size = store.deliveries_size().await;
        store.end();
        let size = size?;
        self.metrics.delivery_log.bytes.set(i64::try_from(size.total_bytes).unwrap_or(i64::MAX));
        self.excess = size.pages_bytes.saturating_sub(self.sessions.config.deliveries.max_size.0);
        Ok(())
    }
}

impl Work for DeliveryLog {
    const NAME: &'static str = "delivery log";
    const PART: Part = Part::LogUpkeep;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            while in_turn(self.merge()).await? {}
            in_turn(self.measure()).await?;
            while in_turn(self.expire()).await? {}
            self.tell.works(Self::PART);
            sleep(EVERY).await;
        }
    }
}
