//! A batch whose data the server refuses: everything but the culprit is stored.
//!
//! Text is storable and ids are bounded when they come here, so this should never happen. It must not end
//! the process all the same, at every start again. The batch is carried out once more in one transaction,
//! its rows in pieces with a savepoint each: a refused piece is split, until one row is left. That row is
//! stored with less of what it says, in the end by its position alone, as a dead letter without endpoint.
//! So promise 1 holds: what the frontier passes is a row, in the same transaction.
//!
//! The rows keep their order, so that what adds rows still goes before what removes some.

use std::sync::Arc;

use bytes::Bytes;

use super::new_pages::Split;
use super::{
    Led, PersistBatch, Persisted, Scope, StateError, Step, Transaction, Witness, write_frontier,
    write_rows,
};
use walhook_core::event::{AccountId, Event};
use walhook_core::id::ReplayId;
use walhook_core::persist::{DeadLetter, DeadReason, Retried};
use walhook_postgres::sql::is_data_error;

/// Everything between BEGIN and COMMIT, row by row where need be.
pub(super) async fn write(
    tx: &Transaction<'_>,
    scope: &Scope,
    led: Led,
    batch: &PersistBatch,
) -> Result<(Persisted, Witness), StateError> {
    let witness = write_frontier(tx, scope, led, batch).await?;
    let mut persisted = Persisted::default();
    let mut step = Step::first(led.epoch, batch);
    let mut pieces = vec![(rows_of(batch), 0)];
    while let Some((piece, weakened)) = pieces.pop() {
        step = step.next().next();
        tx.batch_execute("SAVEPOINT piece").await?;
        let refused = match write_rows(tx, scope, step, &piece, &Split::rows(&piece)).await {
            Ok(stored) => {
                tx.batch_execute("RELEASE SAVEPOINT piece").await?;
                persisted.add(stored);
                continue;
            }
            Err(StateError::Sql(error)) if is_data_error(&error) => error,
            Err(error) => return Err(error),
        };
        tx.batch_execute("ROLLBACK TO SAVEPOINT piece; RELEASE SAVEPOINT piece").await?;
        let rows = count(&piece);
        if rows > 1 {
            let (first, second) = split(piece, rows / 2);
            pieces.push((second, 0));
            pieces.push((first, 0));
            continue;
        }
        let code = refused.code().map_or("unknown", |code| code.code()).to_owned();
        let Some(weaker) = weaker(piece, weakened, &code) else {
            // Not for what the row says.
            return Err(refused.into());
        };
        if weakened == 0 {
            tracing::error!(
                sqlstate = code,
                "the state database refuses what a row says; storing it with less, in the end by its \
                 position alone"
            );
        }
        pieces.push((weaker, weakened + 1));
    }
    Ok((persisted, witness))
}

/// The part of a batch that is rows.
fn rows_of(batch: &PersistBatch) -> PersistBatch {
    PersistBatch { settled: Vec::new(), ..batch.clone() }
}

/// The parts that are lists of rows, in the order in which they are written.
macro_rules! for_each_part {
    ($do:ident) => {
        $do!(
            dead_letters,
            retried,
            unrouted,
            routed,
            unrouted_purges,
            unrouted_accounts,
            joined,
            unseen,
            seen,
            deferred,
            retimed,
            died,
            resolved,
            dropped,
            replayed,
            backlog,
            backlog_gone,
            errors,
            errors_gone,
            enabled,
            disabled,
            paused,
            jobs_done,
            notices,
            gaps,
            purges,
            letter_purges
        )
    };
}

fn count(batch: &PersistBatch) -> usize {
    macro_rules! sum {
        ($($part:ident),*) => { 0 $(+ batch.$part.len())* };
    }
    for_each_part!(sum)
}

/// The first so many rows, and the others.
fn split(mut first: PersistBatch, rows: usize) -> (PersistBatch, PersistBatch) {
    let mut second =
        PersistBatch { frontier: first.frontier, number: first.number, ..PersistBatch::default() };
    let mut left = rows;
    macro_rules! move_rows {
        ($($part:ident),*) => {
            $(
                second.$part = first.$part.split_off(left.min(first.$part.len()));
                left -= first.$part.len();
            )*
        };
    }
    for_each_part!(move_rows);
    debug_assert_eq!(left, 0, "more rows than there are");
    (first, second)
}

/// The one row with less of what it says; `None` where nothing can be left out.
fn weaker(mut row: PersistBatch, weakened: u32, code: &str) -> Option<PersistBatch> {
    let refusal = format!("the state database refused to store what it says (SQLSTATE {code})");
    if let Some(defer) = row.deferred.pop() {
        if weakened == 0 {
            let mut defer = defer;
            defer.tried.detail = refusal;
            defer.tried.history.clear();
            row.deferred.push(defer);
        } else {
            row.dead_letters.push(by_position(&defer.event, defer.id.key.replay, refusal));
        }
        return Some(row);
    }
    if let Some(event) = row.unrouted.pop() {
        row.dead_letters.push(by_position(&event, None, refusal));
        return Some(row);
    }
    if let Some((id, letter)) = row.died.pop() {
        if weakened == 0 {
            row.died.push((id, quiet(letter, refusal)));
        } else {
            row.dead_letters.push(by_position(&letter.event, letter.replay, refusal));
            row.resolved.push(id);
        }
        return Some(row);
    }
    if let Some(letter) = row.dead_letters.pop() {
        row.dead_letters.push(match weakened {
            0 => quiet(letter, refusal),
            1 | 2 => by_position(&letter.event, letter.replay, refusal),
            _ => return None,
        });
        return Some(row);
    }
    if weakened == 0
        && let Some(Retried { error: Some(letter), dead_letter, job }) = row.retried.pop()
    {
        let error = Some(quiet(letter, refusal));
        row.retried.push(Retried { dead_letter, job, error });
        return Some(row);
    }
    if weakened == 0
        && let Some((id, mut tried)) = row.retimed.pop()
    {
        tried.detail = refusal;
        tried.history.clear();
        row.retimed.push((id, tried));
        return Some(row);
    }
    // What is left tells people or the next leader of something, and no delivery depends on it.
    let nothing =
        PersistBatch { frontier: row.frontier, number: row.number, ..PersistBatch::default() };
    (weakened < 2).then_some(nothing)
}

/// The letter without what an endpoint answered.
fn quiet(letter: DeadLetter, refusal: String) -> DeadLetter {
    DeadLetter { detail: refusal, history: Vec::new(), ..letter }
}

/// What is known of the delivery without any text or data from outside.
fn by_position(event: &Event, replay: Option<ReplayId>, refusal: String) -> DeadLetter {
    let event = Event {
        id: event.id,
        position: event.position,
        event_type: Arc::clone(&event.event_type),
        account: AccountId::new(""),
        operation: event.operation,
        commit_time_us: event.commit_time_us,
        keys: event.keys.clone(),
        row: Bytes::from_static(b"\"data\":null"),
    };
    DeadLetter {
        event: Arc::new(event),
        endpoint: None,
        reason: DeadReason::Unroutable,
        detail: refusal,
        attempts: 0,
        last_status: None,
        history: Vec::new(),
        replay,
    }
}
