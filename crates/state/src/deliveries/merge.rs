//! Small pages become large ones: less room for each line, and fewer pages to look at.
//!
//! A page that has a filter is large, and stays as it is: so a line is written once more at most. Small ones wait until
//! they are worth it together, or until a large one stands behind them.

use tokio_postgres::types::Type;

use super::super::{Param, StateError, StateStore, fence};
use super::DeliveryCursor;
use super::read;
use super::write::{COLUMNS, Page, values};
use walhook_core::delivery_log::Entry;
use walhook_postgres::op::{EQ, GE, GT, LE};

/// Lines, and bytes of pages, that are worth a page.
const LINES: i64 = 4_096;
const BYTES: i64 = 1 << 20;

/// Pages that are looked at in one step.
const LOOKED_AT: i64 = 4_096;

/// What a step came to.
#[derive(Debug, Default)]
pub struct Merged {
    /// Pages before, and after.
    pub pages: (usize, usize),
    /// Where the next step goes on; `None`: for now there is nothing.
    pub next: Option<DeliveryCursor>,
    /// Why pages stay as they are that should be merged.
    pub refused: Option<StateError>,
}

/// Small pages that stand one behind the other.
#[derive(Debug, Default)]
struct Run {
    pages: usize,
    lines: i64,
    bytes: i64,
    from: i64,
    to: i64,
}

impl Run {
    fn add(&mut self, last: i64, lines: i32, bytes: i64) {
        if self.pages == 0 {
            self.from = last;
        }
        self.to = last;
        self.pages += 1;
        self.lines += i64::from(lines);
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.lines >= LINES || self.bytes >= BYTES
    }
}

impl StateStore {
    /// Merges the next small pages of the delivery log behind `from`, as the leader: one step, of a few thousand lines.
    /// A run of them that a page keeps from being merged, which cannot be read, stays as it is.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn merge_deliveries(&mut self, from: DeliveryCursor) -> Result<Merged, StateError> {
        let epoch = self.led_epoch()?;
        let s = &self.scope.s;
        let look = format!(
            "SELECT last, lines, filter IS NULL, pg_catalog.octet_length(data)::bigint FROM {s}.delivery_log
             WHERE pipeline {EQ} $1 AND partition {EQ} $2 AND last {GT} $3
             ORDER BY pipeline, partition, last LIMIT $4"
        );
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.push((&from.0, Type::INT8));
        params.push((&LOOKED_AT, Type::INT8));
        let rows = self.connection.query_typed(&look, &params).await?;
        let (mut run, mut next, mut ends) = (Run::default(), from, false);
        for row in &rows {
            let (last, is_small): (i64, bool) = (row.try_get(0)?, row.try_get(2)?);
            if is_small {
                run.add(last, row.try_get(1)?, row.try_get(3)?);
                ends = run.is_full();
            } else if run.pages > 0 {
                ends = true;
            } else {
                next = DeliveryCursor(last);
            }
            if ends {
                break;
            }
        }
        if !ends {
            // More may come behind what there is now.
            let is_all = rows.len() < usize::try_from(LOOKED_AT).unwrap_or(usize::MAX);
            let has_moved = next > from && !is_all;
            return Ok(Merged { next: has_moved.then_some(next), ..Merged::default() });
        }
        let next = Some(DeliveryCursor(run.to));
        if run.pages < 2 {
            return Ok(Merged { next, ..Merged::default() });
        }
        let remove = format!(
            "DELETE FROM {s}.delivery_log WHERE pipeline {EQ} $1 AND partition {EQ} $2
             AND last {GE} $3 AND last {LE} $4 RETURNING last, data"
        );
        let insert = format!(
            "INSERT INTO {s}.delivery_log (pipeline, partition, last, {COLUMNS})
             VALUES ($1, $2, $11, $3, $4, $5, $6, $7, $8, $9, $10)"
        );
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.push((&run.from, Type::INT8));
        params.push((&run.to, Type::INT8));
        let rows = tx.query_typed(&remove, &params).await?;
        let found: Result<Vec<_>, _> = rows.iter().map(read::read).collect();
        let mut found = match found {
            Ok(found) => found,
            Err(refused) => {
                tx.rollback().await?;
                return Ok(Merged { next, refused: Some(refused), ..Merged::default() });
            }
        };
        found.sort_unstable_by_key(|page| page.last);
        let pages = (found.len(), 1);
        let entries: Vec<Entry> = found.into_iter().flat_map(|page| page.entries).collect();
        // Whatever its size, it is not merged again.
        let Some(page) = Page::large(&entries) else {
            // Somebody has removed them meanwhile.
            tx.rollback().await?;
            return Ok(Merged { next, ..Merged::default() });
        };
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        params.extend(values(&page));
        params.push((&run.to, Type::INT8));
        tx.execute_typed(&insert, &params).await?;
        tx.commit().await?;
        Ok(Merged { pages, next, refused: None })
    }
}
