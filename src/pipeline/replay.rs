//! The task that carries replays out, one after the other: reads the range, and feeds the dispatcher as
//! fast as that takes it.
//!
//! The dispatcher tells of progress through the table of jobs, in the transaction that makes outcomes
//! durable. So a leader that comes later goes on at what is settled, and a command line sees the same.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::open_state;
use super::range::Range;
use super::reader::Batch;
use crate::config::Config;
use crate::engine::dispatcher::ReplayInput;
use crate::io::state::{StateStore, StoredReplay};

/// How often the table of jobs is looked at while there is nothing to do.
const EVERY: Duration = Duration::from_secs(1);

/// How often the progress of a replay is looked at, and whether it was cancelled.
const POLL: Duration = Duration::from_millis(250);

/// Batches on their way from the range to the dispatcher.
const BATCHES: usize = 2;

/// Between two tries of a replay that the source interrupts.
const PAUSE: Duration = Duration::from_secs(5);

/// Tries without any progress between them, after which a replay is given up.
const TRIES: u32 = 5;

/// Carries replays out until it is dropped.
pub(super) async fn feed(config: &Config, epoch: i64, input: mpsc::Sender<ReplayInput>) {
    loop {
        if let Err(error) = look(config, epoch, &input).await {
            tracing::debug!(error = %format!("{error:#}"), "cannot look for replays");
        }
        sleep(EVERY).await;
    }
}

async fn look(
    config: &Config,
    epoch: i64,
    input: &mpsc::Sender<ReplayInput>,
) -> anyhow::Result<()> {
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    loop {
        let Some(replay) = store.next_replay().await? else {
            sleep(EVERY).await;
            continue;
        };
        tracing::info!(
            replay = replay.id, from = %replay.position, to = %replay.range.to,
            "sending a past range again"
        );
        input.send(ReplayInput::start(&replay)).await?;
        let carried_out = carry_out(config, &store, &replay, input).await;
        // Also when we could not say how it went: nothing of it must stay behind in the dispatcher.
        input.send(ReplayInput::End { job: replay.id }).await?;
        let problem = carried_out?;
        store.finish_job(replay.id, problem.as_deref()).await?;
        tracing::info!(replay = replay.id, problem, "the replay has ended");
    }
}

/// Feeds a replay until all of it is settled. Says why it ended early, where it did.
async fn carry_out(
    config: &Config,
    store: &StateStore,
    replay: &StoredReplay,
    input: &mpsc::Sender<ReplayInput>,
) -> anyhow::Result<Option<String>> {
    let mut tries = 0;
    let mut from = replay.position.max(replay.range.from);
    loop {
        let problem = match feed_range(config, store, replay, from, input).await? {
            Fed::Settled | Fed::Cancelled => return Ok(None),
            Fed::Broken(problem) => problem,
        };
        let now = store.replay(replay.id).await?;
        let position = now.map_or(from, |replay| replay.position.max(from));
        tries = if position > from { 1 } else { tries + 1 };
        from = position;
        if tries >= TRIES {
            return Ok(Some(problem));
        }
        tracing::warn!(replay = replay.id, %problem, "the replay was interrupted; trying again");
        sleep(PAUSE).await;
        // What the dispatcher still has of it comes again.
        input.send(ReplayInput::End { job: replay.id }).await?;
        let again = StoredReplay { position: from, ..replay.clone() };
        input.send(ReplayInput::start(&again)).await?;
    }
}

enum Fed {
    /// Up to the range's end.
    Settled,
    /// By an operator; the job is finished already.
    Cancelled,
    /// The range could not be read to its end.
    Broken(String),
}

async fn feed_range(
    config: &Config,
    store: &StateStore,
    replay: &StoredReplay,
    from: crate::engine::lsn::Lsn,
    input: &mpsc::Sender<ReplayInput>,
) -> anyhow::Result<Fed> {
    let purpose = format!("replay_{}", replay.id);
    let range = match Range::open(config, from, replay.range.to, &purpose).await {
        Ok(range) => range,
        Err(error) => return Ok(Fed::Broken(format!("{error:#}"))),
    };
    let (out, mut batches) = mpsc::channel::<Batch>(BATCHES);
    let mut task = JoinSet::new();
    task.spawn(range.read(out));
    let mut look_at = Instant::now() + POLL;
    let mut at_end = false;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(look_at) => {
                look_at = Instant::now() + POLL;
                match store.replay(replay.id).await? {
                    None => return Ok(Fed::Cancelled),
                    Some(now) if now.finished => return Ok(Fed::Cancelled),
                    Some(now) if at_end && now.position >= replay.range.to => return Ok(Fed::Settled),
                    Some(_) => {}
                }
            }
            batch = batches.recv(), if !at_end => match batch {
                Some(batch) => {
                    let items = ReplayInput::Items { job: replay.id, items: batch.items };
                    // The dispatcher takes it when it has room; a cancelled replay must not wait.
                    tokio::select! {
                        sent = input.send(items) => sent?,
                        () = cancelled(store, replay.id) => return Ok(Fed::Cancelled),
                    }
                }
                None => {
                    match task.join_next().await {
                        Some(Ok(Ok(()))) => at_end = true,
                        Some(Ok(Err(error))) => return Ok(Fed::Broken(format!("{error:#}"))),
                        Some(Err(_)) | None => return Ok(Fed::Broken("its reader panicked".into())),
                    }
                }
            },
        }
    }
}

/// Waits until the replay has been ended by an operator.
async fn cancelled(store: &StateStore, id: i64) {
    loop {
        sleep(POLL).await;
        if let Ok(None | Some(StoredReplay { finished: true, .. })) = store.replay(id).await {
            return;
        }
    }
}
