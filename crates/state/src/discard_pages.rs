//! Discarding deferred deliveries that stand in pages, for an operator.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::deferred::{place_columns as delivery_columns, read_place};
use super::page::in_pages;
use super::persist::pages::{mark, place_columns};
use super::place::{self, Places};
use super::{DeferredFilter, Param, Scope, StateError, StateStore, fence_alone, text, unreadable};
use walhook_core::id::JobId;
use walhook_core::persist::{QueueId, RowId, RowKey};
use walhook_core::position::Position;
use walhook_postgres::op::{EQ, GT, LE, PLUS};

/// Pages that are looked at in one transaction, during which the leader writes nothing.
const PAGES: i64 = 4;

/// The place of a page among all of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageCursor {
    queue: QueueId,
    position: Position,
    event_type: String,
}

/// What was discarded of some pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscardedPages {
    /// The deliveries; at most 1,024.
    pub rows: Vec<(QueueId, RowKey)>,
    /// The last page that was looked at.
    pub next: PageCursor,
}

impl StateStore {
    /// Removes those deliveries that a job asks for from some pages, the first behind `after`, as the leader,
    /// and counts them as the job's. `None` when no page was left. What becomes a row meanwhile is left to
    /// [`StateStore::discard_deferred`], so that is to be called afterwards.
    ///
    /// The dispatcher must be told which are gone. One that is in flight may still arrive.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn discard_pages(
        &mut self,
        job: JobId,
        filter: &DeferredFilter,
        after: Option<&PageCursor>,
    ) -> Result<Option<DiscardedPages>, StateError> {
        let epoch = self.led_epoch()?;
        let tx = self.connection.transaction().await?;
        fence_alone(&tx, &self.scope, epoch).await?;
        let Scope { s, pipeline, .. } = &self.scope;
        let from = Bound::new(after);
        let mut params: Vec<Param<'_>> = vec![(pipeline, Type::TEXT)];
        params.extend(from.params());
        params.push((&filter.endpoint, Type::TEXT));
        params.push((&PAGES, Type::INT8));
        let (key, endpoint, limit) = (page_key(""), params.len() - 1, params.len());
        let sql = format!(
            "SELECT {key} FROM {s}.pages
             WHERE pipeline {EQ} $1 AND ({key}) {GT} ({})
               AND (${endpoint} IS NULL OR endpoint {EQ} ${endpoint})
             ORDER BY {key} LIMIT ${limit}",
            Bound::values(2)
        );
        let pages = tx.query_typed(&sql, &params).await?;
        let Some(last) = pages.last() else { return Ok(None) };
        let next = PageCursor {
            queue: text::queue(last.try_get("account")?, last.try_get("endpoint")?),
            position: place::read(last, "a page")?,
            event_type: last.try_get("event_type")?,
        };
        let to = Bound::new(Some(&next));
        let mut params = filter.params(pipeline);
        let (from_at, to_at) = (params.len() + 1, params.len() + 1 + Bound::WIDTH);
        params.extend(from.params());
        params.extend(to.params());
        let key = page_key("p.");
        let between = format!(
            "({key}) {GT} ({}) AND ({key}) {LE} ({})",
            Bound::values(from_at),
            Bound::values(to_at)
        );
        let sql = format!(
            "SELECT {} FROM {} WHERE {}",
            delivery_columns(),
            in_pages(s, &between),
            filter.condition()
        );
        let chosen = tx.query_typed(&sql, &params).await?;
        let ids = chosen.iter().map(read_id).collect::<Result<Vec<RowId>, _>>()?;
        mark(&tx, &self.scope, &ids).await?;
        let done = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        let count = format!(
            "UPDATE {s}.jobs SET done = done {PLUS} $3 WHERE pipeline {EQ} $1 AND id {EQ} $2"
        );
        let of_job: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&job.0, Type::INT8), (&done, Type::INT8)];
        tx.execute_typed(&count, &of_job).await?;
        tx.commit().await?;
        let rows = ids.into_iter().map(|id| (id.queue, id.key)).collect();
        Ok(Some(DiscardedPages { rows, next }))
    }
}

/// The columns that order the pages of a pipeline.
fn page_key(of: &str) -> String {
    format!("{of}endpoint, {of}account, {}", place_columns(of))
}

/// What of a cursor a statement takes: before all pages where there is none.
struct Bound<'a> {
    endpoint: &'a str,
    account: &'a str,
    place: Places,
    event_type: &'a str,
}

impl<'a> Bound<'a> {
    /// So many parameters.
    const WIDTH: usize = 3 + place::WIDTH;

    fn new(at: Option<&'a PageCursor>) -> Self {
        Self {
            endpoint: at.map_or("", |page| page.queue.endpoint.as_str()),
            account: at.map_or("", |page| page.queue.account.as_str()),
            place: Places::new(std::iter::once(at.map_or(Position::FIRST, |page| page.position))),
            event_type: at.map_or("", |page| &*page.event_type),
        }
    }

    fn params(&self) -> Vec<Param<'_>> {
        let mut params: Vec<Param<'_>> =
            vec![(&self.endpoint, Type::TEXT), (&self.account, Type::TEXT)];
        params.extend(self.place.params());
        params.push((&self.event_type, Type::TEXT));
        params
    }

    /// The parameters from `$first` on, in the order of [`page_key`].
    fn values(first: usize) -> String {
        let place = place::elements(first + 2, "1");
        format!("${first}, ${}, {place}, ${}", first + 1, first + Self::WIDTH - 1)
    }
}

fn read_id(row: &Row) -> Result<RowId, StateError> {
    let (queue, key) = read_place(row)?;
    let event: &str = row.try_get("event_id")?;
    let event = event.parse().map_err(unreadable("pages.event_ids"))?;
    Ok(RowId { queue, key, event })
}
