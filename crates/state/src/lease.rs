//! The lease: taken by a new leader, who reads what the leaders before left; and what holds the others off.

use futures_util::try_join;
use tokio::time::Instant;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use walhook_core::id::Epoch;
use walhook_core::persist::{SettledRange, Start};
use walhook_core::settled;
use walhook_postgres::op::{EQ, PLUS, to_us};

use super::endpoints::{Stops, stops_sql};
use super::persist::Witness;
use super::refill::{backlog_sql, read_backlog};
use super::schema::WITH_PAGES;
use super::session::Transaction;
use super::{
    Param, SCHEMA_VERSION, Scope, StateError, StateStore, endpoints, gaps, lsn, unreadable,
    unrouted,
};

/// What a new leader starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The epoch that was taken; every transaction from now on carries it.
    pub epoch: Epoch,
    /// What the leaders before have left.
    pub start: Start,
    /// The moment of [`Start::unix_us_at_zero`], as far as the way of the server's answer lets us know.
    pub taken_at: Instant,
}

impl StateStore {
    /// Takes the lease, and reads what the leaders before left.
    ///
    /// Waits for those transactions of an earlier leader that passed the fence; all that they wrote
    /// is in what this returns, and later ones of that leader fail with [`StateError::Fenced`].
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::SchemaTooNew`], [`StateError::Sql`]: the lease was not
    /// taken. [`StateError::Unreadable`]: it was, but we do not lead. Calling it again is harmless.
    pub async fn take_lease(&mut self, holder: &str) -> Result<Recovery, StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let tx = self.connection.transaction().await?;
        let bump = format!(
            "UPDATE {s}.lease
             SET epoch = epoch {PLUS} 1, holder = $3, taken_at = pg_catalog.clock_timestamp()
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 RETURNING epoch, {}",
            to_us("taken_at")
        );
        let bump_params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&holder, Type::TEXT)];
        let bumped = tx.query_typed_opt(&bump, &bump_params).await?;
        let taken_at = Instant::now();
        let Some(bumped) = bumped else { return Err(self.scope.not_set_up()) };
        let epoch = Epoch(bumped.try_get(0)?);
        let version = check_version(&tx, &self.scope).await?;

        // Each statement reads by a snapshot of its own, taken after the bump had its row.
        let checkpoint = format!(
            "SELECT frontier, {} FROM {s}.checkpoint WHERE pipeline {EQ} $1 AND partition {EQ} $2",
            to_us("updated_at")
        );
        let ranges =
            format!("SELECT ranges FROM {s}.settled WHERE pipeline {EQ} $1 AND partition {EQ} $2");
        let stopped = stops_sql(s);
        let behind = backlog_sql(s);
        let (led, param) = (self.scope.led(), [(pipeline as _, Type::TEXT)]);
        let growing = gaps::growing_sql(s);
        let (unrouted, joined) = (unrouted::accounts_sql(s), unrouted::joined_sql(s));
        let (unseen, failing) = (unrouted::unseen_sql(s), endpoints::errors_sql(s));
        let (checkpoint, ranges, stopped, behind, growing, unrouted, joined, unseen, failing) = try_join!(
            tx.query_typed_opt(&checkpoint, &led),
            tx.query_typed(&ranges, &led),
            tx.query_typed(&stopped, &param),
            tx.query_typed(&behind, &param),
            tx.query_typed(&growing, &param),
            tx.query_typed(&unrouted, &param),
            tx.query_typed(&joined, &param),
            tx.query_typed(&unseen, &param),
            tx.query_typed(&failing, &param),
        )?;
        let Some(checkpoint) = checkpoint else { return Err(self.scope.not_set_up()) };
        // Before the rows are decoded: the session may not sit idle in it for long, and they may be many.
        tx.commit().await?;
        let Stops { disabled, paused } = Stops::read(&stopped)?;
        let start = Start {
            unix_us_at_zero: bumped.try_get(1)?,
            written_us: Some(checkpoint.try_get(1)?),
            frontier: lsn(&checkpoint, 0)?,
            settled: read_ranges(&ranges)?,
            disabled,
            paused,
            backlog: behind.iter().map(read_backlog).collect::<Result<_, _>>()?,
            suspended: growing.iter().map(gaps::read_growing).collect::<Result<_, _>>()?,
            unrouted: unrouted.iter().map(unrouted::read_account).collect::<Result<_, _>>()?,
            joined: joined.iter().map(unrouted::read_joined).collect::<Result<_, _>>()?,
            unseen: unseen.iter().map(unrouted::read_unseen).collect::<Result<_, _>>()?,
            failing: failing.iter().map(endpoints::read_error).collect::<Result<_, _>>()?,
        };
        self.write_as(epoch);
        self.last = Some(Witness(checkpoint.try_get(1)?));
        self.accept_primary();
        self.scope.writes_pages = version >= WITH_PAGES;
        Ok(Recovery { epoch, start, taken_at })
    }

    /// Records why the pipeline has halted, for `walhook status`, until a leader stores something.
    ///
    /// # Errors
    /// [`StateError::Fenced`] when the lease was ours and is no longer; [`StateError::Sql`].
    pub async fn store_halt(&mut self, reason: &str) -> Result<(), StateError> {
        self.set_halt(Some(reason)).await
    }

    /// Forgets the reason of an earlier halt.
    ///
    /// # Errors
    /// As [`StateStore::store_halt`].
    pub async fn clear_halt(&mut self) -> Result<(), StateError> {
        self.set_halt(None).await
    }

    async fn set_halt(&mut self, reason: Option<&str>) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        // A halt can come before the lease is taken (another cluster behind the URL, say). Beside a leader it stands
        // until that one's next batch.
        let epoch = self.epoch();
        let tx = self.connection.transaction().await?;
        if let Some(epoch) = epoch {
            fence(&tx, &self.scope, epoch).await?;
        }
        let sql = format!(
            "UPDATE {s}.checkpoint SET halt_reason = $3,
                    halted_at = CASE WHEN $3 IS NULL THEN NULL ELSE pg_catalog.now() END
             WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let params: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (partition, Type::INT4), (&reason, Type::TEXT)];
        tx.execute_typed(&sql, &params).await?;
        Ok(tx.commit().await?)
    }
}

/// Refuses tables that a later `setup` has changed since this session was opened: a standby of this version
/// would not know what a later leader has written into them. Returns their version.
pub(super) async fn check_version(tx: &Transaction<'_>, scope: &Scope) -> Result<i32, StateError> {
    let Scope { s, pipeline, .. } = scope;
    let sql = format!("SELECT schema_version FROM {s}.meta WHERE pipeline {EQ} $1");
    let row = tx.query_typed_opt(&sql, &[(pipeline, Type::TEXT)]).await?;
    let found: i32 = row.ok_or_else(|| scope.not_set_up())?.try_get(0)?;
    if found > SCHEMA_VERSION { Err(StateError::SchemaTooNew { found }) } else { Ok(found) }
}

/// Passes only while the lease has `epoch`, and keeps it so until the transaction ends.
///
/// A test by sub-select in the writing statement would not do: a stale leader could pass it before
/// the bump commits, and commit after it.
pub(super) async fn fence(
    tx: &Transaction<'_>,
    scope: &Scope,
    epoch: Epoch,
) -> Result<(), StateError> {
    let Scope { s, pipeline, partition, .. } = scope;
    let sql = format!(
        "SELECT FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2
         AND epoch {EQ} $3 FOR SHARE"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (partition, Type::INT4), (&epoch.0, Type::INT8)];
    let row = tx.query_typed_opt(&sql, &params).await?;
    row.map(|_| ()).ok_or(StateError::Fenced { epoch: Some(epoch) })
}

/// As [`fence`], and keeps other sessions of the same leader from writing too.
pub(super) async fn fence_alone(
    tx: &Transaction<'_>,
    scope: &Scope,
    epoch: Epoch,
) -> Result<(), StateError> {
    hold_off_leader(tx, scope).await?;
    fence(tx, scope, epoch).await
}

/// Keeps every leader from writing until the transaction ends, and waits for one that does: for what
/// an operator's command changes itself of the rows that need a body.
///
/// The leader sends nothing meanwhile. So what is to be changed is chosen before, and asked for by its keys here.
pub(super) async fn hold_off_leader(tx: &Transaction<'_>, scope: &Scope) -> Result<(), StateError> {
    let s = &scope.s;
    let sql = format!(
        "SELECT FROM {s}.lease WHERE pipeline {EQ} $1 AND partition {EQ} $2 FOR NO KEY UPDATE"
    );
    let row = tx.query_typed_opt(&sql, &scope.led()).await?;
    row.map(|_| ()).ok_or_else(|| scope.not_set_up())
}

fn read_ranges(rows: &[Row]) -> Result<Vec<SettledRange>, StateError> {
    let mut ranges = Vec::new();
    for row in rows {
        ranges.extend(settled::decode(row.try_get(0)?).map_err(unreadable("settled.ranges"))?);
    }
    Ok(ranges)
}
