//! The task that makes outcomes durable: one state transaction at a time, tried until it succeeds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Stop;
use super::backoff::Backoff;
use crate::engine::persist::{
    LETTERS_MAX, PersistBatch, Persisted, Purged, QueueId, UnroutedPurged,
};
use crate::io::admin::Health;
use crate::io::failpoint::Failpoint;
use crate::io::state::{StateError, StateStore};

/// What the dispatcher asks.
pub(super) struct PersistRequest {
    pub(super) batch: PersistBatch,
}

/// A state transaction that takes longer is given up and tried again on a new connection.
const PERSIST_TIMEOUT: Duration = Duration::from_secs(30);

/// Stores batch after batch, until the dispatcher ends or `abort`.
///
/// While the state database is away it tries the same batch again with backoff: nothing is
/// acknowledged meanwhile, and the dispatcher sends nothing. Likewise where it refuses every value (by a
/// constraint or trigger that somebody put on our tables): rows from outside must not end the process.
///
/// # Errors
/// [`Stop::Fenced`] when another leader has taken over; [`Stop::Failed`] when the state database
/// refuses for a reason that waiting does not mend.
pub(super) async fn write(
    mut store: StateStore,
    mut requests: mpsc::Receiver<PersistRequest>,
    persisted: mpsc::Sender<Persisted>,
    health: Arc<watch::Sender<Health>>,
    abort: CancellationToken,
) -> Result<(), Stop> {
    while let Some(PersistRequest { batch }) = requests.recv().await {
        let mut backoff = Backoff::new();
        Failpoint::Storing.pass();
        let done = loop {
            let stored = tokio::select! {
                biased;
                () = abort.cancelled() => return Ok(()),
                stored = tokio::time::timeout(PERSIST_TIMEOUT, store.persist(&batch)) => stored,
            };
            let problem = match stored {
                Ok(Ok(done)) => break done,
                Ok(Err(StateError::Fenced { .. })) => return Err(Stop::Fenced),
                // A defect, or another's doing; all else a person or time cures, and nothing is sent
                // meanwhile.
                Ok(Err(
                    error @ (StateError::FrontierDecreases { .. }
                    | StateError::CheckpointMoved { .. }
                    | StateError::Unreadable { .. }
                    | StateError::SchemaTooNew { .. }),
                )) => {
                    return Err(Stop::Failed(
                        anyhow::Error::new(error).context("cannot store the checkpoint"),
                    ));
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {PERSIST_TIMEOUT:?}"),
            };
            tracing::warn!(%problem, "cannot store the checkpoint; trying again, and sending nothing meanwhile");
            tokio::select! {
                () = abort.cancelled() => return Ok(()),
                () = backoff.wait() => {}
            }
            if let Err(error) = store.reconnect().await {
                let problem = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(%problem, "the state database cannot be reached");
            }
        };
        report(&done);
        if !batch.deferred.is_empty() {
            Failpoint::DeferredCommitted.pass();
        }
        if !batch.dead_letters.is_empty() || !batch.died.is_empty() {
            Failpoint::DeadLetterCommitted.pass();
        }
        let purges = batch.purges.len() + batch.letter_purges.len() + batch.unrouted_purges.len();
        if !batch.gaps.is_empty() || purges > 0 {
            Failpoint::GapCommitted.pass();
        }
        Failpoint::CheckpointCommitted.pass();
        health.send_modify(|health| health.checkpoint_written_at = Some(Instant::now()));
        if persisted.send(done).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// What is lost to a bound of the dead letters is said aloud.
fn report(Persisted { letters_purged, beyond, unrouted_purged, .. }: &Persisted) {
    for UnroutedPurged { account, rows, .. } in
        unrouted_purged.iter().filter(|purged| purged.rows > 0)
    {
        tracing::error!(
            %account, rows,
            "events that cannot be routed take a quarter of state.max_size, and the account has the most: \
             they are counted in one gap; `walhook gaps list` shows the replay that sends them"
        );
    }
    for QueueId { account, endpoint } in beyond {
        tracing::error!(
            %endpoint, %account,
            "{LETTERS_MAX} dead letters stand there for it: those that follow are counted in one gap; \
             `walhook gaps list` shows the replay that sends them"
        );
    }
    for Purged { queue: QueueId { account, endpoint }, rows, .. } in letters_purged {
        if *rows > 0 {
            tracing::error!(
                %endpoint, %account, rows,
                "state.max_size is reached, and it holds the most: its dead letters are counted in one gap; \
                 `walhook gaps list` shows the replay that sends them"
            );
        }
    }
}
