//! The table `dead_letters`: letters inserted or counted, delivered after all, tried once more in vain.

use tokio_postgres::types::{PgLsn, Type};

use super::super::{key, replay_column, replay_discards, text};
use super::history::{last_ten, records};
use super::{Param, Scope, StateError, Step, Transaction, bodies, letters, saturate};
use walhook_core::persist::{DeadLetter, LETTERS_MAX, QueueId, Retried};
use walhook_postgres::op::{EQ, GT, NE, PLUS};

/// Inserts letters; one that is there already stays as it is. Those beyond the first [`LETTERS_MAX`] of a
/// queue are counted in its record instead. Returns the queues that have one from now on.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    step: Step,
    letters: &[DeadLetter],
) -> Result<Vec<QueueId>, StateError> {
    let sql = insert_sql(s, "NULL::pg_catalog.tid", "true");
    insert_by(tx, pipeline, &sql, step, letters.iter()).await
}

/// Likewise of letters that were deferred rows, each of which has its `place` in that table. They take over
/// what those knew of earlier attempts.
pub(super) async fn insert_deferred<'a>(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    place: &str,
    step: Step,
    letters: impl Iterator<Item = &'a DeadLetter> + Clone,
) -> Result<Vec<QueueId>, StateError> {
    let sql = insert_sql(s, place, "r.place IS NOT NULL");
    insert_by(tx, pipeline, &sql, step, letters).await
}

/// Inserts the letters `$2` to `$14` of the pipeline `$1` that fit `condition`, at most `$15` of a queue, as
/// the step `$16`, `$17`. A statement does not see its own rows, so it ranks before it inserts.
fn insert_sql(s: &str, place: &str, condition: &str) -> String {
    let same_queue = |of: &str, r: &str| {
        format!(
            "{of}.pipeline {EQ} $1 AND {of}.endpoint {EQ} {r}.endpoint
             AND {of}.account {EQ} {r}.account"
        )
    };
    format!(
        "WITH given AS (
             SELECT r.*, {place} AS place
             FROM unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                  AS r(event, endpoint, replay, account, reason, detail, attempts, status, history, bytes,
                       commit, why, at)),
         fresh AS (
             SELECT r.*, (SELECT h.history FROM {s}.deferred h
                          WHERE h.ctid {EQ} r.place) AS stored,
                    pg_catalog.row_number() OVER (PARTITION BY r.endpoint, r.account ORDER BY r.at)
                    {PLUS} coalesce((SELECT c.letters FROM {s}.dead_letter_counts c
                        WHERE {of_counts}), 0::bigint) AS rank
             FROM given r
             WHERE {condition} AND {letter} IS NULL),
         added AS (
             INSERT INTO {s}.dead_letters
                    (pipeline, event_id, endpoint, replay_id, account, reason, detail, attempts,
                     last_status, history, bytes)
             SELECT $1, event, endpoint, replay, account, reason, detail, attempts, status, {history},
                    bytes
             FROM fresh r WHERE rank OPERATOR(pg_catalog.<=) $15 ORDER BY at
             ON CONFLICT DO NOTHING RETURNING endpoint, account, bytes),
         counted AS (
             INSERT INTO {s}.dead_letter_counts AS c (pipeline, endpoint, account, letters, bytes)
             SELECT $1, endpoint, account, pg_catalog.count(*), pg_catalog.sum(bytes)::bigint
             FROM added GROUP BY endpoint, account
             ON CONFLICT (pipeline, endpoint, account) DO UPDATE SET
                 letters = c.letters {PLUS} excluded.letters,
                 bytes = c.bytes {PLUS} excluded.bytes),
         beyond AS (
             SELECT endpoint, account, pg_catalog.min(commit) AS first, pg_catalog.max(commit) AS last,
                    pg_catalog.count(*) AS n, (pg_catalog.array_agg(why ORDER BY at DESC))[1] AS why
             FROM fresh WHERE rank OPERATOR(pg_catalog.>) $15 GROUP BY endpoint, account),
         grown AS (
             INSERT INTO {s}.gaps AS g (pipeline, endpoint, account, reason, from_lsn, to_lsn, skipped,
                    dead_letters, last_at, counted_epoch, counted_step)
             SELECT $1, endpoint, account, why, first, last, n, true, pg_catalog.now(), $16, $17
             FROM beyond
             ON CONFLICT (pipeline, endpoint, account) WHERE dead_letters AND closed_at IS NULL
             DO UPDATE SET skipped = g.skipped {PLUS} excluded.skipped,
                 from_lsn = least(g.from_lsn, excluded.from_lsn),
                 to_lsn = greatest(g.to_lsn, excluded.to_lsn), reason = excluded.reason,
                 last_at = excluded.last_at, counted_epoch = excluded.counted_epoch,
                 counted_step = excluded.counted_step
             WHERE g.counted_epoch IS NULL OR g.counted_epoch OPERATOR(pg_catalog.<) $16
                OR g.counted_epoch {EQ} $16
                   AND g.counted_step OPERATOR(pg_catalog.<) $17)
         SELECT endpoint, account FROM beyond b
         WHERE (SELECT g.id FROM {s}.gaps g
                WHERE {of_gaps} AND g.dead_letters AND g.closed_at IS NULL) IS NULL",
        letter = key::delivery(s, "dead_letters", "id"),
        of_counts = same_queue("c", "r"),
        of_gaps = same_queue("g", "b"),
        history = last_ten("r.stored", "r.history"),
    )
}

async fn insert_by<'a>(
    tx: &Transaction<'_>,
    pipeline: &String,
    sql: &str,
    Step { epoch, step }: Step,
    letters: impl Iterator<Item = &'a DeadLetter> + Clone,
) -> Result<Vec<QueueId>, StateError> {
    if letters.clone().next().is_none() {
        return Ok(Vec::new());
    }
    let all = || letters.clone();
    let ids: Vec<String> = all().map(|l| l.event.id.to_string()).collect();
    let endpoints: Vec<&str> = all().map(|l| l.endpoint.as_deref().unwrap_or_default()).collect();
    let replays: Vec<i64> = all().map(|l| replay_column::of(l.replay)).collect();
    let accounts: Vec<&str> = all().map(|l| l.event.account.as_str()).collect();
    let reasons: Vec<&str> = all().map(|l| l.reason.as_str()).collect();
    let details: Vec<&str> = all().map(|l| l.detail.as_str()).collect();
    let attempts: Vec<i32> = all().map(|l| saturate(l.attempts)).collect();
    let statuses: Vec<Option<i32>> = all().map(|l| l.last_status.map(i32::from)).collect();
    let histories: Vec<Option<String>> = all().map(|l| records(&l.history)).collect();
    let bytes: Vec<i64> = all().map(bytes_of).collect();
    let commits: Vec<PgLsn> = all().map(|l| l.event.position.commit_lsn().0.into()).collect();
    let whys: Vec<String> = all().map(why).collect();
    let places: Vec<i64> = (0..).take(ids.len()).collect();
    let most = i64::from(LETTERS_MAX);
    let params: [Param<'_>; 17] = [
        (pipeline, Type::TEXT),
        (&ids, Type::TEXT_ARRAY),
        (&endpoints, Type::TEXT_ARRAY),
        (&replays, Type::INT8_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&details, Type::TEXT_ARRAY),
        (&attempts, Type::INT4_ARRAY),
        (&statuses, Type::INT4_ARRAY),
        (&histories, Type::TEXT_ARRAY),
        (&bytes, Type::INT8_ARRAY),
        (&commits, Type::PG_LSN_ARRAY),
        (&whys, Type::TEXT_ARRAY),
        (&places, Type::INT8_ARRAY),
        (&most, Type::INT8),
        (&epoch.0, Type::INT8),
        (&step, Type::INT8),
    ];
    let opened = tx.query_typed(sql, &params).await?;
    opened.iter().map(|row| Ok(text::queue(row.try_get(1)?, row.try_get(0)?))).collect()
}

/// An estimate of what a letter takes, its event's body and the entries in indexes included.
fn bytes_of(letter: &DeadLetter) -> i64 {
    const FIXED: usize = 560;
    let attempts: usize = letter.history.iter().map(|attempt| 100 + attempt.error.len()).sum();
    let bytes = FIXED + letter.event.row.len() + letter.detail.len() + attempts;
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What the record says, if this letter is the last of those that it counts.
fn why(letter: &DeadLetter) -> String {
    let detail: String = letter.detail.chars().take(200).collect();
    let reason = letter.reason.as_str();
    format!("dead letters beyond the first {LETTERS_MAX}; the last one: {reason}, {detail}")
}

pub(super) async fn remove_delivered(
    tx: &Transaction<'_>,
    scope: &Scope,
    retried: &[Retried],
) -> Result<(), StateError> {
    let delivered = retried.iter().filter(|r| r.error.is_none());
    let (ids, jobs): (Vec<i64>, Vec<i64>) = delivered.map(|r| (r.dead_letter.0, r.job.0)).unzip();
    if ids.is_empty() {
        return Ok(());
    }
    remove(tx, scope, &ids, &jobs).await?;
    Ok(())
}

/// Removes dead letters, with the bodies that nothing else needs, and adds them to their
/// jobs' `done`. `jobs` is as long as `ids`; 0 is no job.
pub(in super::super) async fn remove(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    ids: &[i64],
    jobs: &[i64],
) -> Result<i64, StateError> {
    let remove = format!(
        "WITH gone AS (
             DELETE FROM {s}.dead_letters WHERE ctid {EQ} ANY (ARRAY (
                 SELECT {} FROM pg_catalog.unnest($2) AS r(id)))
             RETURNING event_id, endpoint, replay_id, account, bytes,
                       $3[pg_catalog.array_position($2, id)] AS job),
         counted AS (
             UPDATE {s}.jobs j SET done = j.done {PLUS} g.n
             FROM (SELECT job, pg_catalog.count(*) AS n FROM gone GROUP BY job) g
             WHERE j.ctid {EQ} {}),
         {}, {}, {}
         SELECT pg_catalog.count(*) FROM gone",
        key::row(s, "dead_letters", "ctid", "id", "r.id"),
        key::row(s, "jobs", "ctid", "id", "g.job"),
        letters::with_uncounted(s),
        replay_discards::with_letters_named(s),
        bodies::with_unused(s, "dead_letters")
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&ids, Type::INT8_ARRAY), (&jobs, Type::INT8_ARRAY)];
    Ok(tx.query_typed_one(&remove, &params).await?.try_get(0)?)
}

pub(super) async fn mark_failed(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    retried: &[Retried],
) -> Result<(), StateError> {
    let failed: Vec<_> = retried
        .iter()
        .filter_map(|r| Some((r.dead_letter.0, r.job.0, r.error.as_ref()?)))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = failed.iter().map(|(id, _, _)| *id).collect();
    let jobs: Vec<i64> = failed.iter().map(|(_, job, _)| *job).collect();
    let reasons: Vec<&str> = failed.iter().map(|(_, _, e)| e.reason.as_str()).collect();
    let details: Vec<&str> = failed.iter().map(|(_, _, e)| e.detail.as_str()).collect();
    let attempts: Vec<i32> = failed.iter().map(|(_, _, e)| saturate(e.attempts)).collect();
    let statuses: Vec<Option<i32>> =
        failed.iter().map(|(_, _, e)| e.last_status.map(i32::from)).collect();
    let histories: Vec<Option<String>> =
        failed.iter().map(|(_, _, e)| records(&e.history)).collect();
    // Where no request was made, it only says why: what it died of, and when it was tried, is as before.
    let sent =
        |new: &str, old: &str| format!("CASE WHEN r.attempts {GT} 0 THEN {new} ELSE d.{old} END");
    let update = format!(
        "WITH tried AS (
             UPDATE {s}.dead_letters d
             SET reason = {}, detail = r.detail, attempts = d.attempts {PLUS} r.attempts,
                 last_status = {}, history = {history}, tried_at = {}, last_job = r.job
             FROM unnest($2, $3, $4, $5, $6, $7, $8)
                  AS r(id, job, reason, detail, attempts, status, history)
             WHERE d.ctid {EQ} {letter}
               AND (d.last_job IS NULL OR d.last_job {NE} r.job)
             RETURNING r.job)
         UPDATE {s}.jobs j SET failed = j.failed {PLUS} t.n
         FROM (SELECT job, pg_catalog.count(*) AS n FROM tried GROUP BY job) t
         WHERE j.ctid {EQ} {job}",
        sent("r.reason", "reason"),
        sent("r.status", "last_status"),
        sent("pg_catalog.now()", "tried_at"),
        letter = key::row(s, "dead_letters", "ctid", "id", "r.id"),
        history = last_ten("d.history", "r.history"),
        job = key::row(s, "jobs", "ctid", "id", "t.job"),
    );
    tx.execute_typed(
        &update,
        &[
            (pipeline, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&jobs, Type::INT8_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&details, Type::TEXT_ARRAY),
            (&attempts, Type::INT4_ARRAY),
            (&statuses, Type::INT4_ARRAY),
            (&histories, Type::TEXT_ARRAY),
        ],
    )
    .await?;
    Ok(())
}
