//! What comes of asking the leader by a job.

use anyhow::anyhow;

use super::{CommandResult, print_json, print_line};
use crate::control::jobs::JobView;

/// How far a job is.
pub(super) fn print(job: &JobView, json: bool) -> CommandResult {
    if json { print_json(job) } else { print_line(&text(job)) }
}

/// The same on one line.
pub(super) fn text(job: &JobView) -> String {
    let end = if job.finished { "finished" } else { "not finished" };
    let total = job.known_total();
    format!("job {}: {} done, {} failed of {total}, {end}", job.id, job.done, job.failed)
}

/// Whether all that was asked is done.
pub(super) fn verdict(job: &JobView) -> CommandResult {
    if let Some(error) = &job.error {
        return Err(anyhow!("job {}: {error}", job.id).into());
    }
    if !job.finished {
        return Err(
            anyhow!("job {} is not finished; it goes on without this command", job.id).into()
        );
    }
    if job.failed > 0 {
        let total = job.known_total();
        return Err(anyhow!("{} of {total} failed again, or could not be sent", job.failed).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn job_ends_well_only_where_all_of_it_was_done() {
        let says = |job: &JobView| verdict(job).unwrap_err().to_string();
        let done = JobView { failed: 0, ..sample::job() };
        verdict(&done).unwrap();
        let more = JobView { done: 55, total: 40, ..done.clone() };
        assert!(text(&more).contains("55 done, 0 failed of 55"), "{}", text(&more));
        assert_eq!(says(&sample::job()), "1 of 3 failed again, or could not be sent");
        assert!(says(&JobView { finished: false, ..done }).contains("not finished"));
        assert_eq!(says(&sample::job_with_error()), "job 4: the arguments cannot be read");
    }
}
