//! One batch, one transaction.
//!
//! Statements that do not need each other's answers are sent together, each with arrays instead of
//! a statement a row: a batch costs three round trips (BEGIN; the fence and all writes; COMMIT), one more
//! where it changes deliveries that may stand in pages, and one before where it may make some.
//!
//! # Storing a batch twice
//!
//! When the connection is lost while COMMIT is under way, nobody can tell whether it counted, and
//! the caller stores the batch again. Then it is looked first, by what the checkpoint's row says of when it was
//! written ([`witness`]): what was stored is not stored again, for somebody may have removed some of it
//! meanwhile. Only purges are, of which nobody knows how many rows they removed: a purge names no row, and the gap
//! counts those that it removes.
//!
//! Where the process that stores it again is another one, each part bears that as well:
//!
//! - the checkpoint is set to the same position (equal is not lower);
//! - settled ranges stand there twice, which reads as once;
//! - a dead letter's key (event, endpoint, replay) is there already, and so is its body; a deferred
//!   row's likewise;
//! - a row that was resolved or became a dead letter is not there; one that was retimed counts the
//!   attempt already, which then adds nothing to its history;
//! - a dead letter that was counted instead of stored is counted once: the record knows which [`Step`] it
//!   counted last;
//! - a gap is set to the same numbers; one that has ended grows no more;
//! - a page's key is there already, as it is made of the same deliveries again;
//! - a purge removes as many rows again, or what is left: it names no row, and the gap counts those that
//!   it removed;
//! - an event without an endpoint is a row already; one that was routed is not there, or routed as far;
//! - the backlog is set to the same numbers, and so are the accounts that have such events;
//! - a replay is set to the same numbers, and what became of its rows is counted with those that are
//!   really removed;
//! - a delivered retry finds its dead letter gone, a failed one finds its job's id in `last_job`:
//!   job counters add the rows that really changed, so neither counts again;
//! - an endpoint is switched off (or on) already;
//! - a notice counts once more than it should: the only thing that does;
//! - lines of the delivery log are this process's alone: another one tells of what it does itself;
//! - a row that the server refuses for its data ([`isolate`]) is refused again, and what stands in its
//!   place is there already.

pub(super) mod backlog;
pub(super) mod bodies;
pub(super) mod dead_letters;
mod deferred;
mod errors;
mod gaps;
mod history;
mod isolate;
mod letters;
pub(super) mod new_pages;
mod notices;
pub(super) mod pages;
mod queues;
mod stops;
mod unrouted;
mod witness;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{join, try_join};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, Type};

use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{PersistBatch, Persisted, SettledRange, UnroutedPurged};
use walhook_core::settled;
use walhook_postgres::op::{EQ, LE, LT, to_us};
use walhook_postgres::sql::is_data_error;

use self::new_pages::Split;
use super::deliveries::{Page, append};
use super::replays::{self, Late};
use super::{Param, Scope, StateError, StateStore, Transaction, fence, lsn};

pub(super) use bodies::with_unused;
pub use history::StoredAttempt;
pub(super) use witness::{Committing, Led, Witness};

impl StateStore {
    /// Makes `batch` durable, all of it or nothing.
    ///
    /// Of an endpoint that is in several of `enabled`, `disabled` and `paused`, the last of these stands.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::WentBack`] and [`StateError::FrontierDecreases`]: nothing was
    /// written, and trying again will not help. [`StateError::Sql`], when transient: [`StateStore::reconnect`] and store
    /// the same batch again.
    pub async fn persist(&mut self, batch: &PersistBatch) -> Result<Persisted, StateError> {
        // No lease taken is no right to write.
        let epoch = self.led_epoch()?;
        let split = Split::of(&self.connection, &self.scope, batch).await?;
        let is_tried = !batch.log.is_empty() && self.log.is_worth_a_try();
        let page = is_tried.then(|| Page::of(&batch.log)).flatten();
        let lines = batch.log.len() as u64;
        let mut tx = self.connection.transaction().await?;
        let is_stored = match self.committing.filter(|last| last.number == batch.number) {
            Some(last) if last.has_committed(&tx, &self.scope, epoch).await? => {
                self.last = Some(last.witness);
                true
            }
            Some(last) => last.is_stored,
            None => false,
        };
        let led = Led { epoch, last: self.last };
        let (rest, number) = (is_stored.then(|| batch.unanswered()), batch.number);
        let split = rest.as_ref().map_or(split, Split::rows);
        let batch = rest.as_ref().unwrap_or(batch);
        let mut page = page.as_ref().filter(|_| !is_stored);
        let mut written = write(&tx, &self.scope, led, batch, &split, page).await;
        let mut refused = None;
        if let Err(error @ StateError::LogRefused(_)) = written {
            // All else must not wait until that is fixed.
            (refused, page) = (Some(error), None);
            tx.rollback().await?;
            tx = self.connection.transaction().await?;
            written = write(&tx, &self.scope, led, batch, &split, None).await;
        }
        let (mut persisted, witness) = match written {
            Err(StateError::Sql(error)) if is_data_error(&error) => {
                page = None;
                tx.rollback().await?;
                tx = self.connection.transaction().await?;
                isolate::write(&tx, &self.scope, led, batch).await?
            }
            written => written?,
        };
        self.committing = Some(Committing { number, witness, is_stored });
        tx.commit().await?;
        self.committing = None;
        self.last = Some(witness);
        self.accept_primary();
        if page.is_some() {
            self.log.taken();
        } else if !is_stored {
            persisted.log_dropped = lines;
        }
        if let Some(error) = refused {
            self.log.refused(error);
        }
        Ok(persisted)
    }
}

/// Everything between BEGIN and COMMIT.
pub(super) async fn write(
    tx: &Transaction<'_>,
    scope: &Scope,
    led: Led,
    batch: &PersistBatch,
    split: &Split,
    page: Option<&Page>,
) -> Result<(Persisted, Witness), StateError> {
    // Answered in this order: whoever is fenced off learns it first, and rolls the rest back.
    let step = Step::first(led.epoch, batch);
    let all_else = async {
        try_join!(write_frontier(tx, scope, led, batch), write_rows(tx, scope, step, batch, split))
    };
    let (written, logged) = join!(all_else, append(tx, scope, page));
    match (written, logged) {
        (Ok((witness, persisted)), Ok(())) => Ok((persisted, witness)),
        (Ok(_), Err(error)) => Err(error),
        // What was refused before it fails all that comes after.
        (Err(StateError::Sql(error)), Err(refused @ StateError::LogRefused(_)))
            if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) =>
        {
            Err(refused)
        }
        (Err(error), _) => Err(error),
    }
}

/// The fence, and what is settled.
async fn write_frontier(
    tx: &Transaction<'_>,
    scope: &Scope,
    led: Led,
    batch: &PersistBatch,
) -> Result<Witness, StateError> {
    let ((), witness, (), ()) = try_join!(
        fence(tx, scope, led.epoch),
        checkpoint(tx, scope, led, batch.frontier),
        append_settled(tx, scope, &batch.settled),
        remove_passed(tx, scope, batch.frontier),
    )?;
    Ok(witness)
}

/// All else: rows, each of which tells of one thing.
async fn write_rows(
    tx: &Transaction<'_>,
    scope: &Scope,
    step: Step,
    batch: &PersistBatch,
    split: &Split,
) -> Result<Persisted, StateError> {
    let (rows, unrouted_purged) =
        (write_deferred(tx, scope, step, batch, split), write_unrouted(tx, scope, batch));
    let (persisted, unrouted_purged) = try_join!(rows, unrouted_purged)?;
    Ok(Persisted { unrouted_purged, ..persisted })
}

/// Rows without an endpoint, and what is to be remembered while look-ups fail.
async fn write_unrouted(
    tx: &Transaction<'_>,
    scope: &Scope,
    batch: &PersistBatch,
) -> Result<Vec<UnroutedPurged>, StateError> {
    let ((), (), (), purged, (), ()) = try_join!(
        unrouted::insert(tx, scope, &batch.unrouted),
        unrouted::route(tx, scope, &batch.routed),
        unrouted::store_accounts(tx, scope, &batch.unrouted_accounts),
        unrouted::purge(tx, scope, &batch.unrouted_purges),
        unrouted::store_joined(tx, scope, &batch.joined, batch.joined_passed),
        unrouted::store_unseen(tx, scope, &batch.unseen, &batch.seen),
    )?;
    Ok(purged)
}

/// Rows of endpoints.
async fn write_deferred(
    tx: &Transaction<'_>,
    scope: &Scope,
    step: Step,
    batch: &PersistBatch,
    split: &Split,
) -> Result<Persisted, StateError> {
    let changed = batch.retimed.iter().map(|(id, _)| id);
    let changed = changed.chain(batch.died.iter().map(|(id, _)| id));
    let apart = pages::take_apart(tx, scope, changed).await?;
    // What adds rows goes before what removes some: a body that is still needed then shows it. And letters
    // before bodies: those that are only counted need none.
    let (
        beyond,
        ..,
        beyond_died,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        _,
        purged,
        letters_purged,
    ) = try_join!(
        dead_letters::insert(tx, scope, step, &batch.dead_letters),
        bodies::insert(tx, scope, &batch.dead_letters, &split.rows, &apart),
        dead_letters::mark_failed(tx, scope, &batch.retried),
        new_pages::insert(tx, scope, &split.pages),
        deferred::insert(tx, scope, &split.rows),
        deferred::retime(tx, scope, &batch.retimed),
        deferred::die(tx, scope, step.next(), &batch.died),
        pages::mark(tx, scope, &batch.resolved),
        deferred::resolve(tx, scope, &batch.resolved, Late::Done),
        pages::mark(tx, scope, &batch.dropped),
        deferred::resolve(tx, scope, &batch.dropped, Late::Dropped),
        dead_letters::remove_delivered(tx, scope, &batch.retried),
        replays::count(tx, scope, &batch.replayed),
        backlog::store(tx, scope, &batch.backlog),
        queues::remove(tx, scope, "backlog", &batch.backlog_gone),
        stops::enable(tx, scope, &batch.enabled),
        stops::disable(tx, scope, &batch.disabled),
        stops::pause(tx, scope, &batch.paused),
        stops::end_jobs(tx, scope, &batch.jobs_done),
        errors::store(tx, scope, &batch.errors),
        queues::remove(tx, scope, "endpoint_errors", &batch.errors_gone),
        notices::add(tx, scope, &batch.notices),
        gaps::store(tx, scope, batch.frontier, &batch.gaps),
        gaps::purge(tx, scope, &batch.purges),
        letters::purge(tx, scope, &batch.letter_purges),
    )?;
    let beyond = [beyond, beyond_died].concat();
    Ok(Persisted { purged, letters_purged, beyond, ..Persisted::default() })
}

/// Tells a statement that counts from every earlier one. Stored again, a batch has the same steps.
#[derive(Debug, Clone, Copy)]
struct Step {
    epoch: Epoch,
    step: i64,
}

impl Step {
    /// Of a batch.
    fn first(epoch: Epoch, batch: &PersistBatch) -> Self {
        // Of one batch there are at most a million.
        Self { epoch, step: i64::try_from(batch.number << 20).unwrap_or(i64::MAX) }
    }

    fn next(self) -> Self {
        Self { step: self.step.saturating_add(1), ..self }
    }
}

/// Moves the checkpoint on. Who does has not halted, so what another process that may not lead left there of its own
/// halt goes.
async fn checkpoint(
    tx: &Transaction<'_>,
    scope: &Scope,
    led: Led,
    frontier: Lsn,
) -> Result<Witness, StateError> {
    let Scope { s, pipeline, partition, .. } = scope;
    let advance = format!(
        "WITH stored AS (SELECT frontier, {} AS written FROM {s}.checkpoint
                         WHERE pipeline {EQ} $1 AND partition {EQ} $2 FOR UPDATE),
              advanced AS (UPDATE {s}.checkpoint c
                           SET frontier = $3, updated_at = pg_catalog.clock_timestamp(),
                               halt_reason = NULL, halted_at = NULL
                           WHERE c.pipeline {EQ} $1 AND c.partition {EQ} $2
                             AND (SELECT frontier FROM stored) {LE} $3
                           RETURNING {} AS written)
         SELECT frontier, written, (SELECT written FROM advanced) FROM stored",
        to_us("updated_at"),
        to_us("c.updated_at")
    );
    let asked = PgLsn::from(frontier.0);
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&asked, Type::PG_LSN)];
    let stored = tx.query_typed_opt(&advance, &params).await?;
    let row = stored.ok_or_else(|| scope.not_set_up())?;
    led.check(Witness(row.try_get(1)?))?;
    match lsn(&row, 0)? {
        stored if stored > frontier => {
            Err(StateError::FrontierDecreases { stored, asked: frontier })
        }
        _ => Ok(Witness(row.try_get(2)?)),
    }
}

async fn append_settled(
    tx: &Transaction<'_>,
    Scope { s, pipeline, partition, .. }: &Scope,
    ranges: &[SettledRange],
) -> Result<(), StateError> {
    let Some(last) = settled::last_commit_lsn(ranges) else { return Ok(()) };
    let insert = format!(
        "INSERT INTO {s}.settled (pipeline, partition, last_commit_lsn, ranges) VALUES ($1, $2, $3, $4)"
    );
    let (last, ranges) = (PgLsn::from(last.0), settled::encode(ranges));
    let params: [Param<'_>; 4] = [
        (pipeline, Type::TEXT),
        (partition, Type::INT4),
        (&last, Type::PG_LSN),
        (&ranges, Type::BYTEA),
    ];
    tx.execute_typed(&insert, &params).await?;
    Ok(())
}

/// Removes ranges of which the frontier has passed every transaction. One that commits exactly at
/// the frontier is still to come.
async fn remove_passed(
    tx: &Transaction<'_>,
    Scope { s, pipeline, partition, .. }: &Scope,
    frontier: Lsn,
) -> Result<(), StateError> {
    let delete = format!(
        "DELETE FROM {s}.settled WHERE pipeline {EQ} $1 AND partition {EQ} $2
         AND last_commit_lsn {LT} $3"
    );
    let frontier = PgLsn::from(frontier.0);
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&frontier, Type::PG_LSN)];
    tx.execute_typed(&delete, &params).await?;
    Ok(())
}

fn saturate(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn system_time(unix_us: i64) -> SystemTime {
    let distance = Duration::from_micros(unix_us.unsigned_abs());
    if unix_us < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
