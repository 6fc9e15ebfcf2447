//! How far the source's WAL was read, by what is stored, and what of that goes when the source goes back in time.
//!
//! Positions are all that tells what is settled. Where the source goes on from an earlier point (a standby was promoted
//! that lagged, the cluster was restored to a point in time, an older copy was put in its place) the same positions
//! come again and mean something else. What is stored of them must not hide what comes.

use tokio_postgres::types::{PgLsn, Type};

use walhook_core::halt::SourceIdentity;
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_core::settled;
use walhook_postgres::op::{EQ, GE, GT, LE, PLUS};
use walhook_postgres::timelines::Primary;

use super::place::{COMMIT, COUNT};
use super::recover::{forget_unseen, move_checkpoint, store_identity, take_over};
use super::{Param, Scope, StateError, StateStore, Transaction, fence, lsn, text, unreadable};

impl StateStore {
    /// Up to where anything is settled, or was received by a leader that halted for it ([`StateStore::note_reached`]):
    /// the checkpoint, or further. Read without taking the lease.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`].
    pub async fn reached(&self) -> Result<Lsn, StateError> {
        let s = &self.scope.s;
        // Two statements would read two moments, and a leader moves what is settled behind the checkpoint.
        let sql = format!(
            "SELECT frontier, coalesce((SELECT pg_catalog.max(last_commit_lsn) FROM {s}.settled
                 WHERE pipeline {EQ} $1 AND partition {EQ} $2), '0/0')
             FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let row = self.one_led(&sql).await?;
        // Of what is settled the commit's record is known, not its end: it lies beyond its first byte.
        let settled = lsn(&row, 1)?;
        let beyond = if settled == Lsn::ZERO { settled } else { Lsn(settled.0.saturating_add(1)) };
        Ok(lsn(&row, 0)?.max(beyond))
    }

    /// Remembers, until the checkpoint has passed it, that the WAL was received up to `at` from this server: as a record
    /// of what is settled, of nothing. For a halt, which the next start must find too. Where the stored identity is
    /// another server's by now, somebody has gone on, and nothing is to be remembered.
    ///
    /// # Errors
    /// [`StateError::Fenced`] when the lease was ours and is no longer; [`StateError::Sql`].
    pub async fn note_reached(&mut self, from: Primary, at: Lsn) -> Result<(), StateError> {
        if at <= self.reached().await? {
            return Ok(());
        }
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let epoch = self.epoch();
        let tx = self.connection.transaction().await?;
        if let Some(epoch) = epoch {
            fence(&tx, &self.scope, epoch).await?;
        }
        let sql = format!(
            "INSERT INTO {s}.settled (pipeline, partition, last_commit_lsn, ranges)
             SELECT $1, $2, $3, $4 FROM {s}.meta WHERE pipeline {EQ} $1
                AND system_identifier {EQ} $5::numeric AND timeline {EQ} $6"
        );
        let system = from.system_identifier.to_string();
        let timeline = from.timeline.cast_signed();
        let (last, ranges) = (PgLsn::from(at.0.saturating_sub(1)), settled::encode(&[]));
        let params: [Param<'_>; 6] = [
            (pipeline, Type::TEXT),
            (partition, Type::INT4),
            (&last, Type::PG_LSN),
            (&ranges, Type::BYTEA),
            (&system, Type::TEXT),
            (&timeline, Type::INT4),
        ];
        tx.execute_typed(&sql, &params).await?;
        Ok(tx.commit().await?)
    }

    /// Takes note that the source is on a later timeline now, which left the one that is stored at `left`: the WAL up to
    /// there is the same. Goes on at the checkpoint `from`, or at `left` where that comes first, and forgets what was
    /// settled beyond `left`. What is deferred stays. Nothing of the new WAL is given up. Returns the new epoch.
    ///
    /// # Errors
    /// As [`StateStore::accept_gap`].
    pub async fn adopt_branch(
        &mut self,
        from: Lsn,
        left: Lsn,
        identity: &SourceIdentity,
    ) -> Result<Epoch, StateError> {
        let tx = self.connection.transaction().await?;
        let epoch = take_over(&tx, &self.scope, from).await?;
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let at = PgLsn::from(left.0);
        let cut: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&at, Type::PG_LSN)];
        let settled = format!(
            "DELETE FROM {s}.settled
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 AND last_commit_lsn {GE} $3"
        );
        tx.execute_typed(&settled, &cut).await?;
        if left < from {
            move_checkpoint(&tx, &self.scope, left).await?;
            forget_unseen(&tx, &self.scope).await?;
        }
        forget_beyond(&tx, &self.scope, left).await?;
        step_aside(&tx, &self.scope, left).await?;
        // Which time a position was at is another matter on another timeline.
        let of_pipeline: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&at, Type::PG_LSN)];
        let history =
            format!("DELETE FROM {s}.checkpoint_history WHERE pipeline {EQ} $1 AND lsn {GT} $2");
        tx.execute_typed(&history, &of_pipeline).await?;
        let gaps = format!(
            "UPDATE {s}.gaps SET other_wal = true WHERE pipeline {EQ} $1 AND to_lsn {GT} $2"
        );
        tx.execute_typed(&gaps, &of_pipeline).await?;
        store_identity(&tx, &self.scope, identity).await?;
        tx.commit().await?;
        Ok(epoch)
    }
}

/// Forgets, of events that could not be routed, what refers to positions from `at` on: what was settled of their
/// accounts' deliveries, and where endpoints joined. What comes there now is other events.
pub(super) async fn forget_beyond(
    tx: &Transaction<'_>,
    scope: &Scope,
    at: Lsn,
) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let position = PgLsn::from(at.0);
    let joined = format!(
        "UPDATE {s}.unrouted_joined SET joined_lsn = $2
         WHERE pipeline {EQ} $1 AND joined_lsn {GT} $2"
    );
    tx.execute_typed(&joined, &[(pipeline, Type::TEXT), (&position, Type::PG_LSN)]).await?;
    let accounts = format!(
        "SELECT account, settled FROM {s}.unrouted_accounts
         WHERE pipeline {EQ} $1 AND settled IS NOT NULL ORDER BY 1"
    );
    let cut = format!(
        "UPDATE {s}.unrouted_accounts SET settled = $3 WHERE pipeline {EQ} $1 AND account {EQ} $2"
    );
    for row in tx.query_typed(&accounts, &[(pipeline, Type::TEXT)]).await? {
        let account = text::get(&row, 0)?;
        let mut ranges =
            settled::decode(row.try_get(1)?).map_err(unreadable("unrouted_accounts.settled"))?;
        let all = ranges.len();
        ranges.retain(|range| range.to.position.commit_lsn() < at);
        if ranges.len() == all {
            continue;
        }
        let kept = (!ranges.is_empty()).then(|| settled::encode(&ranges));
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&account, Type::TEXT), (&kept, Type::BYTEA)];
        tx.execute_typed(&cut, &params).await?;
    }
    Ok(())
}

/// Changes that share all of a place but their count are never so many: it has room for what stepped aside.
const ASIDE_BITS: u32 = 24;

/// What waits keeps its order and makes room: its place is its key, and from `at` on other events come to the same
/// places. Each time that this happens all that waits there is counted from another multiple of 2^24 on.
pub(super) async fn step_aside(
    tx: &Transaction<'_>,
    scope: &Scope,
    at: Lsn,
) -> Result<(), StateError> {
    let Scope { s, pipeline, .. } = scope;
    let at = PgLsn::from(at.0);
    let beyond = format!("pipeline {EQ} $1 AND {COMMIT} {GE} $2");
    let of =
        |table, order: &str| format!("(SELECT {COUNT} FROM {s}.{table} WHERE {beyond}{order})");
    // As the key of `deferred` goes on behind the pipeline: in this order its index is the one way to find rows.
    let by_key = format!(" ORDER BY endpoint, account, {COMMIT}");
    let waiting = [of("deferred", &by_key), of("pages", ""), of("unrouted", "")];
    let waiting = waiting.join(" UNION ALL ");
    let last = format!("SELECT pg_catalog.max({COUNT}) FROM ({waiting}) w");
    let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&at, Type::PG_LSN)];
    let last = tx.query_typed_opt(&last, &params).await?;
    let Some(last) = last.map(|row| row.try_get::<_, Option<i64>>(0)).transpose()?.flatten() else {
        return Ok(());
    };
    let by: i64 = ((last >> ASIDE_BITS) + 1) << ASIDE_BITS;
    let most = i64::from(u32::MAX) - by;
    let params: [Param<'_>; 4] =
        [(pipeline, Type::TEXT), (&at, Type::PG_LSN), (&by, Type::INT8), (&most, Type::INT8)];
    let rest = format!("{beyond} AND {COUNT} {LE} $4");
    let deferred =
        format!("ctid {EQ} ANY (ARRAY(SELECT ctid FROM {s}.deferred WHERE {rest}{by_key}))");
    for (table, which) in [("deferred", &deferred), ("bodies", &rest), ("unrouted", &rest)] {
        let sql = format!("UPDATE {s}.{table} SET {COUNT} = {COUNT} {PLUS} $3 WHERE {which}");
        tx.execute_typed(&sql, &params).await?;
    }
    // A page may begin before.
    let moved = |commit: &str, count: &str| {
        format!(
            "CASE WHEN {commit} {GE} $2 AND {count} {LE} $4 THEN {count} {PLUS} $3 ELSE {count} END"
        )
    };
    let sql = format!(
        "UPDATE {s}.pages SET {COUNT} = {}, first_{COUNT} = {}, {COUNT}s = ARRAY (
             SELECT {} FROM unnest({COMMIT}s, {COUNT}s) WITH ORDINALITY AS u({COMMIT}, {COUNT}, slot)
             ORDER BY u.slot)
         WHERE {beyond}",
        moved(COMMIT, COUNT),
        moved(&format!("first_{COMMIT}"), &format!("first_{COUNT}")),
        moved(&format!("u.{COMMIT}"), &format!("u.{COUNT}"))
    );
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}
