//! The transactions that the leader receives while they are open, for `walhook status`.
//!
//! The table is unlogged, and what it says may be missing, as of `workers`: the leader says it again.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use walhook_postgres::op::{EQ, from_us, to_us};

use super::{Param, Scope, StateError, StateStore, fence, text};

/// So many rows are stored at most: those that hold most.
const MOST: usize = 256;

/// A transaction that is received before its commit, or played after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Its id, as the stream has it: without an epoch.
    pub xid: u32,
    /// `open`, or `committed` while its events are made.
    pub state: String,
    /// When its first change came: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// How many changes of it are kept.
    pub rows: u64,
    /// What they take.
    pub bytes: u64,
    /// `memory`, or `spool` where some of it is on disk.
    pub kept_in: String,
}

impl StateStore {
    /// Stores, as the leader, these transactions in the place of those before; of more than 256 those that
    /// hold most.
    ///
    /// In a transaction of its own, which waits neither for a flush of the WAL nor for a standby.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn store_open_transactions(
        &mut self,
        transactions: &[OpenTransaction],
    ) -> Result<(), StateError> {
        let Scope { s, pipeline, partition, .. } = &self.scope;
        let epoch = self.led_epoch()?;
        let mut stored: Vec<&OpenTransaction> = transactions.iter().collect();
        stored.sort_by_key(|one| (std::cmp::Reverse(one.bytes), one.xid));
        stored.truncate(MOST);
        let numbers = |of: fn(&OpenTransaction) -> i64| -> Vec<i64> {
            stored.iter().map(|one| of(one)).collect()
        };
        let texts = |of: fn(&OpenTransaction) -> &str| -> Vec<&str> {
            stored.iter().map(|one| of(one)).collect()
        };
        let (xids, since) = (numbers(|one| i64::from(one.xid)), numbers(|one| one.since_us));
        let (rows, bytes) = (numbers(|one| saturate(one.rows)), numbers(|one| saturate(one.bytes)));
        let (states, kept) = (texts(|one| &one.state), texts(|one| &one.kept_in));
        let remove = format!(
            "DELETE FROM {s}.open_transactions WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        let add = format!(
            "INSERT INTO {s}.open_transactions (pipeline, partition, xid, epoch, state, since, row_count,
                    bytes, kept_in)
             SELECT $1, $2, xid, $9, state, {}, row_count, bytes, kept_in
             FROM unnest($3, $4, $5, $6, $7, $8)
                  AS t(xid, state, since, row_count, bytes, kept_in)
             ON CONFLICT DO NOTHING",
            from_us("since")
        );
        let values: [Param<'_>; 9] = [
            (pipeline, Type::TEXT),
            (partition, Type::INT4),
            (&xids, Type::INT8_ARRAY),
            (&states, Type::TEXT_ARRAY),
            (&since, Type::INT8_ARRAY),
            (&rows, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
            (&kept, Type::TEXT_ARRAY),
            (&epoch.0, Type::INT8),
        ];
        let tx = self.connection.transaction().await?;
        // As of `workers`: nothing is lost with it that would not be said again.
        tx.batch_execute("SET LOCAL synchronous_commit = off").await?;
        fence(&tx, &self.scope, epoch).await?;
        tx.execute_typed(&remove, &self.scope.led()).await?;
        tx.execute_typed(&add, &values).await?;
        Ok(tx.commit().await?)
    }

    /// The transactions that the last leader has stored, those that hold most first. `None` where this server
    /// cannot say: it is a standby.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn open_transactions(&self) -> Result<Option<Vec<OpenTransaction>>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT xid, state, {}, row_count, bytes, kept_in
             FROM {s}.open_transactions
             WHERE pipeline {EQ} $1 AND partition {EQ} $2
               AND epoch {EQ} (SELECT l.epoch FROM {s}.lease l
                               WHERE l.pipeline {EQ} $1 AND l.partition {EQ} $2)",
            to_us("since")
        );
        let rows = match self.connection.query_typed(&sql, &self.scope.led()).await {
            Ok(rows) => rows,
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let mut found = rows.iter().map(read).collect::<Result<Vec<_>, StateError>>()?;
        found.sort_by_key(|one| (std::cmp::Reverse(one.bytes), one.xid));
        Ok(Some(found))
    }
}

fn read(row: &tokio_postgres::Row) -> Result<OpenTransaction, StateError> {
    let count = |column: usize| -> Result<u64, StateError> {
        Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or_default())
    };
    Ok(OpenTransaction {
        xid: u32::try_from(count(0)?).unwrap_or_default(),
        state: text::get(row, 1)?,
        since_us: row.try_get(2)?,
        rows: count(3)?,
        bytes: count(4)?,
        kept_in: text::get(row, 5)?,
    })
}

fn saturate(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
