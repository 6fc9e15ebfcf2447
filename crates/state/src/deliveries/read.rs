//! What happened is read back: by any session, with or without a leader.
//!
//! Pages that surely hold nothing of what is asked for are passed over by what the table says of them; the others are
//! read a few at a time, so that memory is bounded however much there is.

use std::slice;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::super::{Param, StateError, StateStore, unreadable};
use super::codes::outcome_bit;
use super::filter::Key;
use super::{READ_AT_ONCE, columns};
use walhook_core::delivery_log::Entry;
use walhook_core::endpoint::{is_pattern, wants};
use walhook_core::position::EventId;
use walhook_postgres::op::{EQ, GE, GT, LE, LT, MINUS, TIMES};

/// Which lines are asked for: those for which all of it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Of this event.
    pub event: Option<EventId>,
    /// Of this account.
    pub account: Option<String>,
    /// Of this endpoint.
    pub endpoint: Option<String>,
    /// Of events of this type, or of those that this pattern fits, as an endpoint's row has them.
    pub event_type: Option<String>,
    /// One of the words of [`What::word`](walhook_core::delivery_log::What::word).
    pub outcome: Option<String>,
    /// Not before then: microseconds since 1970-01-01 UTC.
    pub from_us: Option<i64>,
    /// Before then: microseconds since 1970-01-01 UTC.
    pub to_us: Option<i64>,
}

/// Where a list goes on: the line's number, which grows along the log.
///
/// Where lines are erased those before them have others from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct DeliveryCursor(pub i64);

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryPage {
    /// The lines, the newest first.
    pub entries: Vec<Entry>,
    /// Where it goes on; `None`: nothing is left.
    pub next: Option<DeliveryCursor>,
}

impl DeliveryFilter {
    /// Whether the line is asked for.
    #[must_use]
    pub fn admits(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|w| w == text);
        let fits =
            |of: &str| self.event_type.as_ref().is_none_or(|w| wants(slice::from_ref(w), of));
        self.event.is_none_or(|event| event == entry.event)
            && is(&self.account, &entry.account)
            && is(&self.endpoint, &entry.endpoint)
            && fits(&entry.event_type)
            && is(&self.outcome, entry.word())
            && self.from_us.is_none_or(|from_us| entry.at_us >= from_us)
            && self.to_us.is_none_or(|to_us| entry.at_us < to_us)
    }

    /// What a page's filter is asked for.
    pub(super) fn hashes(&self) -> Vec<i64> {
        let keys = [
            self.event.map(Key::Event),
            self.account.as_deref().map(Key::Account),
            self.endpoint.as_deref().map(Key::Endpoint),
            // A filter knows whole types alone.
            self.event_type.as_deref().filter(|of| !is_pattern(of)).map(Key::EventType),
        ];
        keys.iter().flatten().flat_map(Key::hashes).collect()
    }

    /// The least and the most that the commit time of what is asked for may be.
    fn committed(&self) -> (i64, i64) {
        let Some(event) = self.event else { return (i64::MIN, i64::MAX) };
        let from = i64::try_from(event.commit_ms()).unwrap_or(i64::MAX).saturating_mul(1_000);
        // What was before 1970 has the time 0 in its id.
        (if from == 0 { i64::MIN } else { from }, from.saturating_add(999))
    }
}

/// Which way a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    NewestFirst,
    OldestFirst,
}

/// A page with its number.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) last: i64,
    pub(super) entries: Vec<Entry>,
}

impl StateStore {
    /// Lines of the delivery log, the newest first: at most `limit`, which is above 0, from behind `before` on.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        limit: usize,
        before: Option<DeliveryCursor>,
    ) -> Result<DeliveryPage, StateError> {
        self.at_one_moment(self.newest(filter, limit, before)).await
    }

    async fn newest(
        &self,
        filter: &DeliveryFilter,
        limit: usize,
        before: Option<DeliveryCursor>,
    ) -> Result<DeliveryPage, StateError> {
        let mut entries = Vec::new();
        let mut next = None;
        // Lines of the page itself may be before.
        let mut from = None;
        let before = before.map_or(i64::MAX, |cursor| cursor.0);
        loop {
            let found = self.pages_of(filter, Way::NewestFirst, (from, Some(before))).await?;
            let is_end = found.len() < READ_AT_ONCE;
            for page in found {
                from = Some(page.last);
                let numbers = (0..=page.last).rev();
                for (number, entry) in numbers.zip(page.entries.into_iter().rev()) {
                    if number >= before || !filter.admits(&entry) {
                        continue;
                    }
                    if entries.len() >= limit {
                        return Ok(DeliveryPage { entries, next });
                    }
                    entries.push(entry);
                    next = Some(DeliveryCursor(number));
                }
            }
            if is_end {
                return Ok(DeliveryPage { entries, next: None });
            }
        }
    }

    /// All that the delivery log tells of one event, the oldest first; at most `limit` lines, the first ones.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn story(&self, event: EventId, limit: usize) -> Result<Vec<Entry>, StateError> {
        self.at_one_moment(self.oldest_of(event, limit)).await
    }

    async fn oldest_of(&self, event: EventId, limit: usize) -> Result<Vec<Entry>, StateError> {
        let filter = DeliveryFilter { event: Some(event), ..DeliveryFilter::default() };
        let (mut entries, mut from) = (Vec::new(), None);
        loop {
            let found = self.pages_of(&filter, Way::OldestFirst, (from, None)).await?;
            let is_end = found.len() < READ_AT_ONCE;
            for page in found {
                from = Some(page.last);
                entries.extend(page.entries.into_iter().filter(|entry| filter.admits(entry)));
            }
            if is_end || entries.len() >= limit {
                entries.truncate(limit);
                return Ok(entries);
            }
        }
    }

    /// Reads all as of one moment. Of pages that are merged between two statements a search would meet the lines twice,
    /// or not at all: the merged one has the number of the last. Where this is dropped before its end the session is
    /// left within a transaction.
    pub(super) async fn at_one_moment<T>(
        &self,
        read: impl Future<Output = Result<T, StateError>>,
    ) -> Result<T, StateError> {
        self.connection.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let read = read.await;
        let ended = self.connection.batch_execute("ROLLBACK").await;
        let read = read?;
        ended?;
        Ok(read)
    }

    /// The next pages that may hold what is asked for: behind the one of the number `from`, in that order; and of
    /// those newest first the ones that have lines before `before`.
    pub(super) async fn pages_of(
        &self,
        filter: &DeliveryFilter,
        way: Way,
        (from, before): (Option<i64>, Option<i64>),
    ) -> Result<Vec<Found>, StateError> {
        let (sql, outcomes) = (self.search(filter, way, "last, data"), outcomes(filter));
        let (committed, hashes) = (filter.committed(), filter.hashes());
        let times = (filter.from_us.unwrap_or(i64::MIN), filter.to_us.unwrap_or(i64::MAX));
        let at_once = i64::try_from(READ_AT_ONCE).unwrap_or(i64::MAX);
        let from = from.unwrap_or(match way {
            Way::NewestFirst => i64::MAX,
            Way::OldestFirst => i64::MIN,
        });
        let before = before.unwrap_or(i64::MAX);
        let mut params: Vec<Param<'_>> = self.scope.led().into();
        let numbers = [from, before, times.0, times.1, committed.0, committed.1, at_once];
        params.extend(numbers.iter().map(|n| (n as &(dyn ToSql + Sync), Type::INT8)));
        params.push((&outcomes, Type::INT4));
        params.push((&hashes, Type::INT8_ARRAY));
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(read).collect()
    }

    /// The statement that finds pages: `$3` from where, `$4` before which line, `$5` and `$6` from and before when,
    /// `$7` and `$8` the least and the most of the commit time, `$9` how many, `$10` outcomes, `$11` hashes.
    pub(super) fn search(&self, filter: &DeliveryFilter, way: Way, what: &str) -> String {
        let s = &self.scope.s;
        let (behind, order) = match way {
            Way::NewestFirst => (LT, "DESC"),
            Way::OldestFirst => (GT, "ASC"),
        };
        // A page has no filter where it has few lines. To look at a bit reads none of the page's data.
        let bits = format!("(pg_catalog.octet_length(l.filter)::bigint {TIMES} 8::bigint)");
        let is_set = |n: usize| {
            format!(
                "AND (l.filter IS NULL OR pg_catalog.get_bit(l.filter, ($11)[{n}] OPERATOR(pg_catalog.%) {bits}) {EQ} 1)"
            )
        };
        let filters: String = (1..=filter.hashes().len()).map(is_set).collect();
        format!(
            "SELECT {what} FROM {s}.delivery_log l
             WHERE l.pipeline {EQ} $1 AND l.partition {EQ} $2 AND l.last {behind} $3
               AND (l.last {MINUS} l.lines::bigint) {LT} ($4 {MINUS} 1::bigint)
               AND l.to_us {GE} $5 AND l.from_us {LT} $6
               AND l.to_committed_us {GE} $7 AND l.from_committed_us {LE} $8
               AND (l.outcomes OPERATOR(pg_catalog.&) $10) OPERATOR(pg_catalog.<>) 0 {filters}
               AND pg_catalog.cardinality($11) {GE} 0
             ORDER BY l.pipeline {order}, l.partition {order}, l.last {order} LIMIT $9"
        )
    }
}

/// The bits of the outcomes that are asked for; of a word that is none, none.
pub(super) fn outcomes(filter: &DeliveryFilter) -> i32 {
    filter.outcome.as_deref().map_or(i32::MAX, |word| outcome_bit(word).unwrap_or(0))
}

/// Reads a page from its number and its data.
pub(super) fn read(row: &Row) -> Result<Found, StateError> {
    let last: i64 = row.try_get(0)?;
    let what = format!("page {last} of the delivery log");
    let entries = columns::decode(row.try_get(1)?).map_err(unreadable(&what))?;
    Ok(Found { last, entries })
}
