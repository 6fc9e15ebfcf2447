//! What a refill reads of the table `pages`, and how that and the rows become one answer.

use tokio_postgres::types::Type;

use super::super::page::{Page, page_columns};
use super::super::persist::pages::place_columns;
use super::super::place::{self, Places};
use super::super::{Param, Scope, StateError, StateStore, unreadable};
use walhook_core::persist::{Deferred, Refill, Refilled, RowKey};
use walhook_core::position::Position;
use walhook_postgres::op::{EQ, GE, LE, LT, MINUS};

/// Pages of a queue that are read at once.
const PAGES: i64 = 16;

/// Of which refill pages are asked for, and from which key on.
type Asked = (usize, Option<RowKey>);

/// The pages of one queue that were read, in their order.
#[derive(Default)]
pub(super) struct Found {
    pages: Vec<Page>,
    /// There are more behind them.
    more: bool,
}

/// What every refill asks first.
pub(super) fn first(refills: &[Refill]) -> Vec<Asked> {
    refills.iter().map(|refill| refill.from.clone()).enumerate().collect()
}

impl StateStore {
    /// Adds to `answers`, which have the rows, what was `found` in pages for those that `asked`.
    pub(super) async fn add_pages(
        &self,
        refills: &[Refill],
        answers: &mut [Refilled],
        mut asked: Vec<Asked>,
        mut found: Vec<Found>,
    ) -> Result<(), StateError> {
        loop {
            let mut again = Vec::new();
            for ((at, from), Found { pages, more }) in asked.into_iter().zip(found) {
                let (Some(refill), Some(answer)) = (refills.get(at), answers.get_mut(at)) else {
                    continue;
                };
                let last = pages.last().map(|page| page.last.clone()).filter(|_| more);
                let rows = pages.into_iter().flat_map(|page| page.rows).flatten();
                let rows = rows.filter(|row| from.as_ref().is_none_or(|from| row.key >= *from));
                let of_table = answer.rows.len();
                answer.rows.extend(rows);
                match last {
                    // Nothing is left in them, and rows behind them wait for what is in the next.
                    Some(last) if answer.rows.len() == of_table => {
                        again.push((at, Some(last.successor())));
                    }
                    last => merge(refill, answer, of_table, last),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            found = self.pages(refills, &again).await?;
            asked = again;
        }
    }

    /// The first pages that end at or behind the keys, of those queues: as many as hold what is wanted, and
    /// one at least.
    pub(super) async fn pages(
        &self,
        refills: &[Refill],
        asked: &[Asked],
    ) -> Result<Vec<Found>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let wanted: Vec<&Refill> = asked.iter().filter_map(|(at, _)| refills.get(*at)).collect();
        let queues = wanted.iter().map(|refill| &refill.queue);
        let (endpoints, accounts): (Vec<&str>, Vec<&str>) =
            queues.map(|queue| (queue.endpoint.as_str(), queue.account.as_str())).unzip();
        let from = asked.iter().map(|(_, from)| from.as_ref().map(|key| key.event.position));
        let places = Places::new(from.map(|position| position.unwrap_or(Position::FIRST)));
        let types: Vec<String> = asked
            .iter()
            .map(|(_, from)| from.as_ref().map_or_else(String::new, least_type))
            .collect();
        let rows: Vec<i64> = wanted.iter().map(|refill| i64::from(refill.rows)).collect();
        let bytes: Vec<i64> =
            wanted.iter().map(|r| i64::try_from(r.bytes).unwrap_or(i64::MAX)).collect();
        let most = PAGES + 1;
        let mut params: Vec<Param<'_>> = vec![
            (pipeline, Type::TEXT),
            (&endpoints, Type::TEXT_ARRAY),
            (&accounts, Type::TEXT_ARRAY),
        ];
        params.extend(places.params());
        let rest: [Param<'_>; 3] =
            [(&types, Type::TEXT_ARRAY), (&rows, Type::INT8_ARRAY), (&bytes, Type::INT8_ARRAY)];
        params.extend(rest);
        let arrays = place::dollars(2, params.len() - 1);
        params.push((&most, Type::INT8));
        let place = place_columns("");
        let before = |column: &str| {
            format!("pg_catalog.sum({column}) OVER (ORDER BY {place}) {MINUS} {column}")
        };
        let sql = format!(
            "SELECT r.at, p.found, {}
             FROM unnest({arrays}) WITH ORDINALITY
                  AS r(endpoint, account, {}, type, rows, bytes, at)
             CROSS JOIN LATERAL (
                 SELECT *, pg_catalog.row_number() OVER (ORDER BY {place}) AS rank,
                        {} AS rows_before, {} AS bytes_before,
                        pg_catalog.count(*) OVER () AS found
                 FROM (SELECT * FROM {s}.pages
                       WHERE pipeline {EQ} $1 AND endpoint {EQ} r.endpoint AND account {EQ} r.account
                         AND ({place}) {GE} ({}, r.type)
                       ORDER BY {place} LIMIT ${}) q) p
             WHERE p.rank {EQ} 1::bigint
                OR (p.rank {LE} {PAGES}::bigint AND p.rows_before {LT} r.rows
                    AND p.bytes_before {LT} r.bytes)
             ORDER BY r.at, p.rank",
            page_columns(s),
            place::columns(""),
            before("deliveries"),
            before("bytes"),
            place::columns("r."),
            params.len()
        );
        let mut found: Vec<Found> = asked.iter().map(|_| Found::default()).collect();
        for row in self.connection.query_typed(&sql, &params).await? {
            let at = usize::try_from(row.try_get::<_, i64>("at")?).unwrap_or_default();
            let of = at.checked_sub(1).and_then(|at| found.get_mut(at));
            let of = of.ok_or("it was not asked for").map_err(unreadable("a page"))?;
            of.pages.push(Page::read(&row)?);
            let there: i64 = row.try_get("found")?;
            of.more = usize::try_from(there).is_ok_and(|there| there > of.pages.len());
        }
        Ok(found)
    }
}

/// The least type of an event at the key's position that is wanted. In a page nothing is a replay's, so from
/// a replay's key on the event itself is not; and no text is less than this one but those up to its type.
fn least_type(RowKey { event, replay }: &RowKey) -> String {
    let behind = if replay.is_some() { "\u{1}" } else { "" };
    format!("{}{behind}", event.event_type)
}

/// Orders the rows of an answer, the first `of_table` of which are from `deferred`, and leaves out what may
/// not follow: behind the last of these, where there are more, and behind the last page, where there are.
fn merge(refill: &Refill, answer: &mut Refilled, of_table: usize, last_page: Option<RowKey>) {
    let last_row = of_table.checked_sub(1).and_then(|last| answer.rows.get(last));
    let last_row = last_row.filter(|_| !answer.end).map(|row| row.key.clone());
    answer.end &= last_page.is_none();
    answer.rows.sort_by(|a, b| a.key.cmp(&b.key));
    let (rows, mut bytes) = (usize::try_from(refill.rows).unwrap_or(usize::MAX), 0);
    let fits = |(at, row): &(usize, &Deferred)| {
        bytes += row.event.row.len() as u64;
        (*at == 0 || bytes <= refill.bytes)
            && last_row.as_ref().is_none_or(|last| row.key <= *last)
            && last_page.as_ref().is_none_or(|last| row.key <= *last)
    };
    let fitting = answer.rows.iter().enumerate().take_while(fits).count().min(rows);
    if fitting < answer.rows.len() {
        answer.rows.truncate(fitting);
        answer.end = false;
    }
}
