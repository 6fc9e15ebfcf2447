//! The task that carries out what the command line asks of the leader.

use std::time::Duration;

use tokio::sync::mpsc;

use super::open_state;
use crate::config::Config;
use crate::engine::dispatcher::Retry;
use crate::io::state::{Ask, DeadLetterFilter, DeferredCursor, StateStore};

/// How often the table of jobs is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Dead letters read at once: at most so many of their bodies are in memory twice.
const PAGE: i64 = 100;

/// Feeds dead letters that are to be sent again, until it is dropped.
///
/// A job that a crash interrupts starts over: what was delivered is gone by then, and what failed was
/// tried after the job was made.
pub(super) async fn feed(config: &Config, epoch: i64, retries: mpsc::Sender<Retry>) {
    loop {
        if let Err(error) = look(config, epoch, &retries).await {
            tracing::debug!(error = %format!("{error:#}"), "cannot look for jobs");
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(config: &Config, epoch: i64, retries: &mpsc::Sender<Retry>) -> anyhow::Result<()> {
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    loop {
        let Some(job) = store.next_job().await? else {
            tokio::time::sleep(EVERY).await;
            continue;
        };
        match &job.ask {
            Ask::RetryDeadLetters(filter) => {
                feed_job(&store, job.id, filter, retries).await?;
                wait_until_done(&store, job.id, filter).await?;
            }
            Ask::RetryDeferred(filter) => {
                let mut at = DeferredCursor::default();
                while let Some(next) = store.hurry_deferred(job.id, filter, &at).await? {
                    at = next;
                }
            }
            Ask::DiscardDeferred(filter) => {
                let mut at = DeferredCursor::default();
                while let Some(next) = store.discard_deferred(job.id, filter, &at).await? {
                    at = next;
                }
            }
        }
        store.finish_job(job.id, None).await?;
        tracing::info!(job = job.id, kind = job.ask.kind(), "carried out a job");
    }
}

async fn feed_job(
    store: &StateStore,
    job: i64,
    filter: &DeadLetterFilter,
    retries: &mpsc::Sender<Retry>,
) -> anyhow::Result<()> {
    let mut after = 0;
    loop {
        let page = store.dead_letters_to_retry(job, filter, after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.id;
        for letter in page {
            let Some(endpoint) = letter.endpoint else { continue };
            let retry = Retry { dead_letter: letter.id, job, event: letter.event, endpoint };
            retries.send(retry).await?;
        }
    }
}

/// Waits until every dead letter of the job has ended and that is stored: none is left that the job
/// has not tried. One that is discarded meanwhile is not left either.
async fn wait_until_done(
    store: &StateStore,
    job: i64,
    filter: &DeadLetterFilter,
) -> anyhow::Result<()> {
    while !store.dead_letters_to_retry(job, filter, 0, 1).await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
