//! Asking the leader by a job, and waiting for what comes of it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::anyhow;
use tokio::time::{Instant, sleep};

use super::status::{open_state, read_slot};
use super::table::one_line;
use super::{CommandResult, Failure, print_json, print_line, print_remark};
use crate::config::Config;
use walhook_state::{Ask, JobState, StateStore};

/// How often a job is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Leaves a job and waits for its end, at most `wait`; says when no leader runs. `None`: it would concern
/// nothing, and there is none.
pub(super) async fn ask(
    config: &Config,
    ask: &Ask,
    wait: Duration,
) -> Result<Option<JobState>, Failure> {
    let mut state = open_state(config).await?;
    let Some(job) = state.create_job(ask).await? else { return Ok(None) };
    note_without_leader(config, &format!("job {} stands until one does", job.id)).await;
    wait_for(&state, job, wait).await.map(Some)
}

/// Says when no leader runs now that would take up what was asked, and what that means.
pub(super) async fn note_without_leader(config: &Config, then: &str) {
    match read_slot(config).await {
        Ok(slot) if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) => {}
        Ok(_) => note(&format!("no leader runs now: {then}")),
        Err(error) => note(&format!("cannot tell whether a leader runs: {error:#}")),
    }
}

/// Work of the leader's that comes to an end.
pub(super) trait Awaited: Sized {
    /// Whether it has.
    fn is_finished(&self) -> bool;

    /// How far it is, on one line.
    fn progress(&self) -> String;

    /// The same as it is now.
    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure>;
}

impl Awaited for JobState {
    fn is_finished(&self) -> bool {
        self.finished
    }

    fn progress(&self) -> String {
        text(self)
    }

    async fn look_again(&self, state: &StateStore) -> Result<Self, Failure> {
        Ok(state.job(self.id).await?.ok_or_else(|| anyhow!("job {} is gone", self.id))?)
    }
}

/// Waits until the work has ended, at most `wait`; shows on a terminal how far it is.
pub(super) async fn wait_for<A: Awaited>(
    state: &StateStore,
    mut work: A,
    wait: Duration,
) -> Result<A, Failure> {
    let deadline = Instant::now() + wait;
    let terminal = std::io::stderr().is_terminal();
    while !work.is_finished() && Instant::now() < deadline {
        if terminal {
            let _ = write!(std::io::stderr(), "\r{}", one_line(&work.progress()));
        }
        sleep(POLL.min(deadline.duration_since(Instant::now()))).await;
        work = work.look_again(state).await?;
    }
    if terminal {
        let _ = writeln!(std::io::stderr(), "\r{}", one_line(&work.progress()));
    }
    Ok(work)
}

/// How far a job is.
pub(super) fn print(job: &JobState, json: bool) -> CommandResult {
    if json { print_json(job) } else { print_line(&text(job)) }
}

fn text(job: &JobState) -> String {
    let end = if job.finished { "finished" } else { "not finished" };
    format!("job {}: {} done, {} failed of {}, {end}", job.id, job.done, job.failed, job.total)
}

/// Whether all that was asked is done.
pub(super) fn verdict(job: &JobState) -> CommandResult {
    if let Some(error) = &job.error {
        return Err(anyhow!("job {}: {error}", job.id).into());
    }
    if !job.finished {
        return Err(
            anyhow!("job {} is not finished; it goes on without this command", job.id).into()
        );
    }
    if job.failed > 0 {
        return Err(anyhow!("{} of {} failed again", job.failed, job.total).into());
    }
    Ok(())
}

/// A remark beside the result, which goes to standard output.
fn note(text: &str) {
    print_remark(text);
}
