//! What the delivery log tells of an account is erased, and that it was is recorded.

use tokio_postgres::types::{ToSql, Type};

use super::super::{Param, StateError, StateStore, hold_off_leader, text};
use super::read::{DeliveryFilter, Way, outcomes, read};
use super::write::{Page, values};
use walhook_postgres::op::{EQ, PLUS, to_us};

/// Pages that one transaction looks through: the leader waits meanwhile.
const PAGES: i64 = 4;

/// An erasure, as its row tells of it, which stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Its number.
    pub id: i64,
    /// Whose lines.
    pub account: String,
    /// Who asked.
    pub by: String,
    /// When: microseconds since 1970-01-01 UTC.
    pub begun_us: i64,
    /// When the last was gone; `None`: it was broken off, or goes on.
    pub finished_us: Option<i64>,
    /// How many lines were erased.
    pub lines: i64,
    /// How many pages could not be read, and were removed whole.
    pub unreadable: i64,
}

impl StateStore {
    /// Erases all that the delivery log tells of an account: page by page, in short transactions, during each of which
    /// the leader writes nothing. `by` is recorded as who asked. A page that cannot be read is removed whole: nobody
    /// can tell whose lines it has.
    ///
    /// What happens to the account's deliveries from then on is told again.
    ///
    /// # Errors
    /// [`StateError::NotSetUp`], [`StateError::Sql`]: what was erased until then stays so, and is recorded.
    pub async fn erase_deliveries(
        &mut self,
        account: &str,
        by: &str,
    ) -> Result<Erasure, StateError> {
        let s = &self.scope.s;
        let begin = format!(
            "INSERT INTO {s}.delivery_erasures (pipeline, account, erased_by) VALUES ($1, $2, $3) RETURNING id"
        );
        let params: [Param<'_>; 3] =
            [(&self.scope.pipeline, Type::TEXT), (&account, Type::TEXT), (&by, Type::TEXT)];
        let id: i64 = self.connection.query_typed_one(&begin, &params).await?.try_get(0)?;
        let mut from = Some(i64::MIN);
        while let Some(behind) = from {
            from = self.erase_some(id, account, behind).await?;
        }
        let s = &self.scope.s;
        let end = format!(
            "UPDATE {s}.delivery_erasures SET finished_at = pg_catalog.clock_timestamp()
             WHERE pipeline {EQ} $1 AND id {EQ} $2 RETURNING {}",
            columns()
        );
        let params: [Param<'_>; 2] = [(&self.scope.pipeline, Type::TEXT), (&id, Type::INT8)];
        erasure(&self.connection.query_typed_one(&end, &params).await?)
    }

    /// The erasures of the pipeline, the newest first.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn erasures(&self, limit: u32) -> Result<Vec<Erasure>, StateError> {
        let s = &self.scope.s;
        let sql = format!(
            "SELECT {} FROM {s}.delivery_erasures WHERE pipeline {EQ} $1
             ORDER BY pipeline DESC, id DESC LIMIT $2",
            columns()
        );
        let limit = i64::from(limit);
        let params: [Param<'_>; 2] = [(&self.scope.pipeline, Type::TEXT), (&limit, Type::INT8)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(erasure).collect()
    }

    /// Looks through some pages behind `from`. Returns behind which one the next begins; `None`: that was all.
    async fn erase_some(
        &mut self,
        id: i64,
        account: &str,
        from: i64,
    ) -> Result<Option<i64>, StateError> {
        let filter =
            DeliveryFilter { account: Some(account.to_owned()), ..DeliveryFilter::default() };
        let search = self.search(&filter, Way::OldestFirst, "l.last, l.data");
        let (outcomes, hashes) = (outcomes(&filter), filter.hashes());
        let scope = &self.scope;
        let s = &scope.s;
        let remove = format!(
            "DELETE FROM {s}.delivery_log WHERE pipeline {EQ} $1 AND partition {EQ} $2 AND last {EQ} $3"
        );
        let update = format!(
            "UPDATE {s}.delivery_log
             SET lines = $4, outcomes = $5, from_us = $6, to_us = $7, from_committed_us = $8,
                 to_committed_us = $9, filter = $10, data = $11
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 AND last {EQ} $3"
        );
        let record = format!(
            "UPDATE {s}.delivery_erasures SET lines = lines {PLUS} $3, unreadable = unreadable {PLUS} $4
             WHERE pipeline {EQ} $1 AND id {EQ} $2"
        );
        let tx = self.connection.transaction().await?;
        hold_off_leader(&tx, scope).await?;
        let mut params: Vec<Param<'_>> = scope.led().into();
        let numbers = [from, i64::MAX, i64::MIN, i64::MAX, i64::MIN, i64::MAX, PAGES];
        params.extend(numbers.iter().map(|n| (n as &(dyn ToSql + Sync), Type::INT8)));
        params.push((&outcomes, Type::INT4));
        params.push((&hashes, Type::INT8_ARRAY));
        let rows = tx.query_typed(&search, &params).await?;
        let (mut lines, mut unreadable, mut next) = (0i64, 0i64, None);
        for row in &rows {
            let last: i64 = row.try_get(0)?;
            next = Some(last);
            let kept = match read(row) {
                Ok(mut found) => {
                    let before = found.entries.len();
                    found.entries.retain(|entry| !filter.admits(entry));
                    if found.entries.len() == before {
                        continue;
                    }
                    lines += i64::try_from(before - found.entries.len()).unwrap_or(i64::MAX);
                    found.entries
                }
                Err(StateError::Unreadable { .. }) => {
                    unreadable += 1;
                    Vec::new()
                }
                Err(error) => return Err(error),
            };
            let mut params: Vec<Param<'_>> = scope.led().into();
            params.push((&last, Type::INT8));
            match Page::large(&kept) {
                Some(page) => {
                    params.extend(values(&page));
                    tx.execute_typed(&update, &params).await?;
                }
                None => _ = tx.execute_typed(&remove, &params).await?,
            }
        }
        if lines > 0 || unreadable > 0 {
            let params: [Param<'_>; 4] = [
                (&scope.pipeline, Type::TEXT),
                (&id, Type::INT8),
                (&lines, Type::INT8),
                (&unreadable, Type::INT8),
            ];
            tx.execute_typed(&record, &params).await?;
        }
        tx.commit().await?;
        Ok(next)
    }
}

fn columns() -> String {
    format!(
        "id, account, erased_by, {}, {}, lines, unreadable",
        to_us("begun_at"),
        to_us("finished_at")
    )
}

fn erasure(row: &tokio_postgres::Row) -> Result<Erasure, StateError> {
    Ok(Erasure {
        id: row.try_get(0)?,
        account: text::get(row, 1)?,
        by: text::get(row, 2)?,
        begun_us: row.try_get(3)?,
        finished_us: row.try_get(4)?,
        lines: row.try_get(5)?,
        unreadable: row.try_get(6)?,
    })
}
