//! Which jobs are not finished, replays among them: by the index that has those alone.

use super::key;

/// The jobs of the pipeline `$1` that are not finished, in the order of their index: the pipeline, the id.
/// By the pipeline as a range, as in the module `key`: else all jobs by their ids would be in order too.
pub(super) const UNFINISHED: &str = "pipeline OPERATOR(pg_catalog.>=) $1
    AND pipeline OPERATOR(pg_catalog.<=) $1 AND finished_at IS NULL";

/// The place of the job `id` of the pipeline `$1`, where it is not finished.
pub(super) fn unfinished_job(s: &str, id: &str) -> String {
    of_unfinished_job(s, "ctid", id)
}

/// What is asked of the job `id` of the pipeline `$1`, where it is not finished; null where it is.
pub(super) fn of_unfinished_job(s: &str, what: &str, id: &str) -> String {
    let range = key::range("pipeline, id", &format!("$1, {id}"));
    format!(
        "(SELECT {what} FROM {s}.jobs WHERE {range} AND finished_at IS NULL
          ORDER BY pipeline, id LIMIT 1)"
    )
}
