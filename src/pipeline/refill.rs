//! The task that reads deferred rows back, batch after batch of pages, on a connection of its own.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::{Stop, open_state};
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

/// A batch that takes longer is given up and asked again on a new connection.
const REFILL_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads pages until the dispatcher ends or `abort`. While the state database is away it tries again
/// with backoff.
pub(super) async fn refill(
    config: Config,
    mut requests: mpsc::Receiver<RefillRequest>,
    replies: mpsc::Sender<RefillReply>,
    abort: CancellationToken,
) -> Result<(), Stop> {
    let mut store: Option<StateStore> = None;
    while let Some(RefillRequest { pages }) = requests.recv().await {
        let mut backoff = Backoff::new();
        let reply = loop {
            let read = tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                read = tokio::time::timeout(REFILL_TIMEOUT, read(&mut store, &config, &pages)) => read,
            };
            let problem = match read {
                Ok(Ok(pages)) => break RefillReply { pages },
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("no answer within {REFILL_TIMEOUT:?}"),
            };
            store = None;
            tracing::warn!(%problem, "cannot read deferred deliveries back; trying again");
            tokio::select! {
                () = abort.cancelled() => return Ok(()),
                () = backoff.wait() => {}
            }
        };
        if replies.send(reply).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn read(
    store: &mut Option<StateStore>,
    config: &Config,
    pages: &[Refill],
) -> anyhow::Result<Vec<Refilled>> {
    let store = match store {
        Some(store) => store,
        None => store.insert(open_state(config).await?),
    };
    Ok(store.refill(pages).await?)
}
