//! The table `workers`, for whoever asks how they stand.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::server::error::TaskError;
use crate::server::health::Teller;
use crate::server::sessions::{Sessions, in_turn};
use crate::server::tasks::{Until, Work};
use crate::server::trouble::Part;
use walhook_state::WorkerRow;

/// After a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// Stores what the fleet says of its workers, whenever it says something new.
pub(in crate::server) struct Rows {
    pub(in crate::server) sessions: Arc<Sessions>,
    pub(in crate::server) tell: Teller,
    pub(in crate::server) rows: watch::Receiver<Option<Vec<WorkerRow>>>,
}

impl Work for Rows {
    const NAME: &'static str = "workers";
    const PART: Part = Part::Workers;
    const UNTIL: Until = Until::Abort;
    const PAUSE: Duration = PAUSE;

    /// Begins with what was said last, for a server that has crashed has none. Until something was, an earlier leader's
    /// rows stand: another leader may have to ask its workers soon.
    async fn work(&mut self) -> Result<Infallible, TaskError> {
        loop {
            let rows = self.rows.borrow_and_update().clone();
            if let Some(rows) = rows {
                in_turn(self.store(&rows)).await?;
            }
            self.tell.works(Self::PART);
            if self.rows.changed().await.is_err() {
                // The dispatcher has ended, and in a moment all else.
                pending::<()>().await;
            }
        }
    }
}

impl Rows {
    async fn store(&self, rows: &[WorkerRow]) -> Result<(), TaskError> {
        let mut store = self.sessions.state().await?;
        let stored = store.store_workers(rows).await;
        store.end();
        Ok(stored?)
    }
}
