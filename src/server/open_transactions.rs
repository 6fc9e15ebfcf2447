//! The table `open_transactions`, for whoever asks which are received while they are open.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::error::TaskError;
use super::health::Teller;
use super::sessions::{Sessions, in_turn};
use super::tasks::{Until, Work};
use super::trouble::Part;
use walhook_state::OpenTransaction;

/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// Stores what the reader says of them, whenever it says something new.
pub(super) struct OpenTransactionRows {
    pub(super) sessions: Arc<Sessions>,
    pub(super) tell: Teller,
    pub(super) rows: watch::Receiver<Vec<OpenTransaction>>,
}

impl Work for OpenTransactionRows {
    const NAME: &'static str = "open transactions";
    const PART: Part = Part::OpenTransactions;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    /// What an earlier leader has stored is not shown, so nothing is stored before there is something.
    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            if self.rows.changed().await.is_err() {
                // The reader has ended, and in a moment all else.
                pending::<()>().await;
            }
            let rows = self.rows.borrow_and_update().clone();
            let stored = in_turn(self.store(&rows)).await;
            if stored.is_err() {
                // To be stored when it is tried again.
                self.rows.mark_changed();
            }
            stored?;
            self.tell.works(Self::PART);
        }
    }
}

impl OpenTransactionRows {
    async fn store(&self, rows: &[OpenTransaction]) -> Result<(), TaskError> {
        let mut store = self.sessions.state().await?;
        let stored = store.store_open_transactions(rows).await;
        store.end();
        Ok(stored?)
    }
}
