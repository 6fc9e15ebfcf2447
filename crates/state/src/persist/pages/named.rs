//! In which pages deliveries stand that are named by their queues and their places in them.
//!
//! To look each up along the index would cost more than all else that is done with them. But deliveries leave
//! a page in nearly the order in which they stand in it: so they are sorted and cut into runs, the page of the
//! first of a run is looked up, and what does not stand behind the end of that page stands in it. Only the
//! others are looked up one by one.

use tokio_postgres::types::Type;

use super::super::super::place::{self, Places};
use super::super::{Param, queues};
use super::place_columns;
use walhook_core::persist::RowId;
use walhook_postgres::op::{EQ, GE, LE};

/// Deliveries in a run, at most: then a page of 256 that leaves as a whole costs about 24 look-ups, one for each of
/// its 16 runs, and as many as there are in the half of a run that stands behind its end. The least is near.
const RUN: usize = 16;

/// Deliveries, sorted and cut into runs: as the parameters of [`by_page`]. Those of replays are left out: they
/// stand in no page.
pub(super) struct Named<'a> {
    runs: Vec<i64>,
    endpoints: Vec<&'a str>,
    accounts: Vec<&'a str>,
    events: Vec<String>,
    places: Places,
    types: Vec<&'a str>,
}

impl<'a> Named<'a> {
    pub(super) fn new(ids: impl Iterator<Item = &'a RowId>) -> Self {
        let mut ids: Vec<&RowId> = ids.filter(|id| id.key.replay.is_none()).collect();
        ids.sort_by(|a, b| (&a.queue, &a.key).cmp(&(&b.queue, &b.key)));
        let runs =
            ids.chunk_by(|a, b| a.queue == b.queue).flat_map(|of_queue| of_queue.chunks(RUN));
        let (endpoints, accounts) = queues::columns(ids.iter().map(|id| &id.queue));
        Self {
            runs: (1..).zip(runs).flat_map(|(run, ids)| ids.iter().map(move |_| run)).collect(),
            endpoints,
            accounts,
            events: ids.iter().map(|id| id.event.to_string()).collect(),
            places: Places::new(ids.iter().map(|id| id.key.event.position)),
            types: ids.iter().map(|id| &*id.key.event.event_type).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// `$1` on.
    pub(super) fn params<'b>(&'b self, pipeline: &'b String) -> Vec<Param<'b>> {
        let mut params: Vec<Param<'b>> = vec![
            (pipeline, Type::TEXT),
            (&self.runs, Type::INT8_ARRAY),
            (&self.endpoints, Type::TEXT_ARRAY),
            (&self.accounts, Type::TEXT_ARRAY),
            (&self.events, Type::TEXT_ARRAY),
        ];
        params.extend(self.places.params());
        params.push((&self.types, Type::TEXT_ARRAY));
        params
    }
}

/// What a `WITH` begins with: `by_page`, the pages (their `place`) in which named deliveries may stand, with
/// the `events` of these. Without OFFSET each would be looked for twice: to be told from null, and to be grouped.
pub(super) fn by_page(s: &str) -> String {
    let (place, at) = (place_columns(""), place_columns("n."));
    let columns = format!("event, {place}");
    let page_from = |select: &str, from: &str| {
        format!(
            "SELECT {select} FROM {s}.pages
             WHERE pipeline {EQ} $1 AND endpoint {EQ} r.endpoint AND account {EQ} r.account
               AND ({place}) {GE} ({from})
             ORDER BY {place} LIMIT 1"
        )
    };
    // They keep the order of the run.
    let array = |column: &str| format!("pg_catalog.array_agg({column}) AS {column}s");
    let arrays: Vec<String> = columns.split(", ").map(array).collect();
    let first = format!("{}, r.event_types[1]", place::firsts("r."));
    format!(
        "by_page AS (
             SELECT found.page AS place, pg_catalog.array_agg(found.event) AS events FROM (
                 SELECT n.event, CASE WHEN ({at}) {LE} ({}) THEN p.page ELSE ({}) END AS page
                 FROM (SELECT endpoint, account, {}
                       FROM unnest({}) AS r(run, endpoint, account, {columns})
                       GROUP BY run, endpoint, account) r
                 CROSS JOIN LATERAL ({}) p
                 CROSS JOIN LATERAL unnest(r.events, {}, r.event_types) AS n({columns})
                 OFFSET 0) found
             WHERE found.page IS NOT NULL GROUP BY found.page)",
        place_columns("p."),
        page_from("ctid", &at),
        arrays.join(", "),
        place::dollars(2, 5 + place::WIDTH),
        page_from(&format!("ctid AS page, {place}"), &first),
        place::arrays("r."),
    )
}
