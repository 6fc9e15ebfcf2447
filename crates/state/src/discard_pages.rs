//! Discarding deferred deliveries that stand in pages, for an operator.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::deferred::NAMED;
use super::page::in_pages_with_commits;
use super::persist::backlog;
use super::persist::pages::{mark, place_columns};
use super::place::{self, Places};
use super::row_place::{place_columns as delivery_columns, read_place};
use super::{
    DeferredFilter, Logged, Param, Scope, StateError, StateStore, Uncommitted, discard_log,
    fence_alone, text, unreadable,
};
use walhook_core::id::JobId;
use walhook_core::persist::{QueueId, RowId, RowKey};
use walhook_core::position::Position;
use walhook_postgres::op::{EQ, GT, LE, PLUS, to_us};

/// Pages of which something is discarded in one transaction, during which the leader writes nothing.
const PAGES: usize = 4;

/// Pages that are looked through at once for those.
const LOOKED_THROUGH: usize = 64;

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
    /// The deliveries; at most 1,024, and those of pages that came meanwhile. There may be none.
    pub rows: Vec<(QueueId, RowKey)>,
    /// The last page that was looked at.
    pub next: PageCursor,
    /// What came of the lines of the delivery log that say so.
    pub logged: Logged,
}

impl StateStore {
    /// Removes those deliveries that a job asks for from some pages, the first behind `after`, as the leader,
    /// and counts them as the job's; to be committed. `None` when no page was left. What becomes a row meanwhile is
    /// left to [`StateStore::discard_deferred`], so that is to be called afterwards.
    ///
    /// The table `backlog` counts them no more. The dispatcher must be told which these are before they are gone, and
    /// once more afterwards. One that is in flight may still arrive. The delivery log gets a line for each, at
    /// `log_at_us`, microseconds since 1970-01-01 UTC; none where that is `None`.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn discard_pages(
        &mut self,
        job: JobId,
        filter: &DeferredFilter,
        after: Option<&PageCursor>,
        log_at_us: Option<i64>,
    ) -> Result<Option<Uncommitted<'_, DiscardedPages>>, StateError> {
        let epoch = self.led_epoch()?;
        // Many pages may have to be looked through for one event, and hold the leader off only where it is.
        let Some(Looked { next, fits }) = self.look_through(filter, after).await? else {
            return Ok(None);
        };
        if !fits {
            let (rows, logged) = (Vec::new(), Logged::default());
            return Ok(Some(Uncommitted::new(None, DiscardedPages { rows, next, logged })));
        }
        let tx = self.connection.transaction().await?;
        fence_alone(&tx, &self.scope, epoch).await?;
        let Scope { s, pipeline, .. } = &self.scope;
        let (from, to) = (Bound::new(after), Bound::new(Some(&next)));
        let mut params = filter.params(pipeline);
        let (from_at, to_at) = (params.len() + 1, params.len() + 1 + Bound::WIDTH);
        params.extend(from.params());
        params.extend(to.params());
        let key = page_key("p.");
        let between = format!(
            "({key}) {GT} ({}) AND ({key}) {LE} ({}) AND {NAMED}",
            Bound::values(from_at),
            Bound::values(to_at)
        );
        let sql = format!(
            "SELECT {}, {} AS committed FROM {} WHERE {}",
            delivery_columns(),
            to_us("committed_at"),
            in_pages_with_commits(s, &between),
            filter.condition()
        );
        let chosen = tx.query_typed(&sql, &params).await?;
        let ids = chosen.iter().map(read_id).collect::<Result<Vec<RowId>, _>>()?;
        mark(&tx, &self.scope, &ids).await?;
        backlog::subtract(&tx, &self.scope, ids.iter().map(|id| &id.queue)).await?;
        let logged = discard_log::log(&tx, &self.scope, &chosen, log_at_us).await?;
        let done = i64::try_from(ids.len()).unwrap_or(i64::MAX);
        let count = format!(
            "UPDATE {s}.jobs SET done = done {PLUS} $3 WHERE pipeline {EQ} $1 AND id {EQ} $2"
        );
        let of_job: [Param<'_>; 3] =
            [(pipeline, Type::TEXT), (&job.0, Type::INT8), (&done, Type::INT8)];
        tx.execute_typed(&count, &of_job).await?;
        let rows = ids.into_iter().map(|id| (id.queue, id.key)).collect();
        Ok(Some(Uncommitted::new(Some(tx), DiscardedPages { rows, next, logged })))
    }

    /// Looks through the next pages behind `after`; `None`: there are none.
    async fn look_through(
        &self,
        filter: &DeferredFilter,
        after: Option<&PageCursor>,
    ) -> Result<Option<Looked>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let from = Bound::new(after);
        let mut params = filter.params(pipeline);
        let from_at = params.len() + 1;
        params.extend(from.params());
        let key = page_key("p.");
        let sql = format!(
            "SELECT {key}, ($3 IS NULL OR p.endpoint {EQ} $3) AND ($4 IS NULL OR p.account {EQ} $4) AND {NAMED}
             FROM (SELECT * FROM {s}.pages p WHERE p.pipeline {EQ} $1 AND ({key}) {GT} ({})
                   ORDER BY {key} LIMIT {LOOKED_THROUGH}) p
             ORDER BY {key}",
            Bound::values(from_at)
        );
        let pages = self.connection.query_typed(&sql, &params).await?;
        let mut looked = None;
        let mut fitting = 0;
        for page in &pages {
            fitting += usize::from(page.try_get::<_, bool>(page.len() - 1)?);
            let next = PageCursor {
                queue: text::queue(page.try_get("account")?, page.try_get("endpoint")?),
                position: place::read(page, "a page")?,
                event_type: page.try_get("event_type")?,
            };
            looked = Some(Looked { next, fits: fitting > 0 });
            if fitting == PAGES {
                break;
            }
        }
        Ok(looked)
    }
}

/// What [`StateStore::look_through`] found.
struct Looked {
    /// The last page that was looked at.
    next: PageCursor,
    /// Whether something for the filter may be in one of them; in few of them at most.
    fits: bool,
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
