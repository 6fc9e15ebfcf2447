//! Events without an endpoint: what a new leader reads of them, and pages of several accounts by one
//! statement.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::event::{event_columns, read_event};
use super::place::{self, Places};
use super::{DeferredFilter, Param, Scope, StateError, StateStore, lsn, text, unreadable};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{Joined, Unrouted, UnroutedAccount, UnroutedPage, UnroutedRefill};
use walhook_core::position::Position;
use walhook_core::settled;
use walhook_postgres::op::{EQ, GT, LE, TIMES};

/// Selects the accounts of the pipeline `$1` for [`read_account`].
pub(super) fn accounts_sql(s: &str) -> String {
    format!(
        "SELECT account, rows, settled FROM {s}.unrouted_accounts WHERE pipeline {EQ} $1 ORDER BY 1"
    )
}

pub(super) fn read_account(row: &Row) -> Result<UnroutedAccount, StateError> {
    let rows: i64 = row.try_get(1)?;
    let settled: Option<&[u8]> = row.try_get(2)?;
    let settled = settled.map(settled::decode).transpose();
    Ok(UnroutedAccount {
        account: AccountId::new(text::read(row.try_get(0)?)),
        rows: u64::try_from(rows).map_err(unreadable("unrouted_accounts.rows"))?,
        settled: settled.map_err(unreadable("unrouted_accounts.settled"))?.unwrap_or_default(),
    })
}

/// Selects the endpoints of the pipeline `$1` for [`read_joined`].
pub(super) fn joined_sql(s: &str) -> String {
    format!(
        "SELECT endpoint, joined_lsn FROM {s}.unrouted_joined WHERE pipeline {EQ} $1 ORDER BY 1"
    )
}

pub(super) fn read_joined(row: &Row) -> Result<Joined, StateError> {
    Ok(Joined { endpoint: EndpointId::new(text::read(row.try_get(0)?)), at: lsn(row, 1)? })
}

/// Selects the transactions of the pipeline `$1` for [`read_unseen`].
pub(super) fn unseen_sql(s: &str) -> String {
    format!("SELECT xid FROM {s}.unseen WHERE pipeline {EQ} $1 ORDER BY 1")
}

pub(super) fn read_unseen(row: &Row) -> Result<u32, StateError> {
    u32::try_from(row.try_get::<_, i64>(0)?).map_err(unreadable("unseen.xid"))
}

/// So many accounts are named.
const NAMED: i64 = 10;

/// Events that wait without an endpoint: those of their accounts cannot be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithoutEndpoint {
    /// How many.
    pub events: i64,
    /// Of how many accounts.
    pub accounts: i64,
    /// When the oldest was stored: microseconds since 1970-01-01 UTC.
    pub since_us: i64,
    /// The accounts that have most of them; at most 10.
    pub most: Vec<OfAccount>,
}

/// How many of them are an account's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfAccount {
    /// The account.
    pub account: String,
    /// How many.
    pub events: i64,
}

impl StateStore {
    /// Counts the events without an endpoint that fit the filter; `None` where there are none. Which endpoint
    /// they are for is not known, so the filter's does not matter; of a replay there are none.
    ///
    /// Time: that of reading the table once, which is at most a quarter of `state.max_size`.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn without_endpoint(
        &self,
        filter: &DeferredFilter,
    ) -> Result<Option<WithoutEndpoint>, StateError> {
        if filter.replay.is_some_and(|replay| replay != 0) {
            return Ok(None);
        }
        let filter = DeferredFilter { endpoint: None, replay: None, ..filter.clone() };
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT account, events,
                    (pg_catalog.sum(events) OVER ())::bigint, pg_catalog.count(*) OVER (),
                    (extract(epoch FROM pg_catalog.min(since) OVER ()) {TIMES} 1000000)::bigint
             FROM (SELECT d.account, pg_catalog.count(*) AS events, pg_catalog.min(d.deferred_at) AS since
                   FROM (SELECT u.pipeline, u.account, u.event_id, u.event_type, u.stored_at AS deferred_at,
                                NULL::pg_catalog.text AS endpoint, 'unrouted'::pg_catalog.text AS reason
                         FROM {s}.unrouted u) d
                   WHERE {} GROUP BY d.account) a
             ORDER BY events DESC, account LIMIT {NAMED}",
            filter.condition()
        );
        let rows = self.connection.query_typed(&sql, &filter.params(pipeline)).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let of = |row: &Row| {
            Ok(OfAccount { account: text::get(row, "account")?, events: row.try_get(1)? })
        };
        Ok(Some(WithoutEndpoint {
            events: first.try_get(2)?,
            accounts: first.try_get(3)?,
            since_us: first.try_get(4)?,
            most: rows.iter().map(of).collect::<Result<_, StateError>>()?,
        }))
    }

    /// Reads a page of each account's events, in the order of the stream.
    ///
    /// Memory: what the requests allow together, twice for a moment. Time: that of as many walks along an
    /// index, however many rows there are.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn unrouted(
        &self,
        refills: &[UnroutedRefill],
    ) -> Result<Vec<UnroutedPage>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let accounts: Vec<&str> = refills.iter().map(|r| r.account.as_str()).collect();
        let types: Vec<&str> =
            refills.iter().map(|r| r.after.as_ref().map_or("", |key| &key.event_type)).collect();
        // Behind nothing is behind zero: no row stands there.
        let after = refills.iter().map(|r| r.after.as_ref().map(|key| key.position));
        let places = Places::new(after.map(|position| position.unwrap_or(Position::FIRST)));
        let rows: Vec<i64> = refills.iter().map(|r| i64::from(r.rows)).collect();
        let most = rows.iter().copied().max().unwrap_or_default();
        let bytes: Vec<i64> =
            refills.iter().map(|r| i64::try_from(r.bytes).unwrap_or(i64::MAX)).collect();
        let mut params: Vec<Param<'_>> =
            vec![(pipeline, Type::TEXT), (&accounts, Type::TEXT_ARRAY)];
        params.extend(places.params());
        params.push((&types, Type::TEXT_ARRAY));
        params.push((&rows, Type::INT8_ARRAY));
        params.push((&bytes, Type::INT8_ARRAY));
        let arrays = place::dollars(2, params.len() - 1);
        params.push((&most, Type::INT8));
        let limit = params.len();
        let place = format!("{}, q.event_type", place::columns("q."));
        // Behind a LIMIT the planner takes a LATERAL as it stands: first the requests, for each its rows
        // along the primary key.
        let sql = format!(
            "SELECT * FROM (
                 SELECT r.at, r.bytes, b.rank, b.routed_to,
                        pg_catalog.count(*) OVER (PARTITION BY r.at) AS found,
                        pg_catalog.sum(pg_catalog.octet_length(b.row))
                            OVER (PARTITION BY r.at ORDER BY b.rank) AS so_far,
                        {}
                 FROM unnest({arrays})
                      WITH ORDINALITY AS r(account, {}, type, rows, bytes, at)
                 CROSS JOIN LATERAL (
                     SELECT q.*, pg_catalog.row_number() OVER (ORDER BY {place}) AS rank FROM (
                         SELECT * FROM {s}.unrouted q
                         WHERE q.pipeline {EQ} $1 AND q.account {EQ} r.account
                           AND ({place}) {GT} ({}, r.type)
                         ORDER BY {place} LIMIT ${limit}) q) b
                 WHERE b.rank {LE} r.rows) page
             WHERE so_far {LE} bytes OR rank {EQ} 1 ORDER BY at, rank",
            event_columns(),
            place::columns(""),
            place::columns("r.")
        );
        let found = self.connection.query_typed(&sql, &params).await?;
        let mut answers: Vec<UnroutedPage> = refills
            .iter()
            .map(|r| UnroutedPage { account: r.account.clone(), rows: Vec::new(), end: true })
            .collect();
        for row in &found {
            let at = usize::try_from(row.try_get::<_, i64>("at")?).unwrap_or_default();
            let place = at.checked_sub(1);
            let Some((refill, answer)) =
                place.and_then(|at| Some((refills.get(at)?, answers.get_mut(at)?)))
            else {
                return Err(unreadable("the page of an account")("it was not asked for"));
            };
            let routed_to = text::get_opt(row, "routed_to")?.map(EndpointId::new);
            answer.rows.push(Unrouted { event: Arc::new(read_event(row)?), routed_to });
            let found: i64 = row.try_get("found")?;
            let whole = usize::try_from(found).is_ok_and(|found| found == answer.rows.len());
            answer.end = whole && found < i64::from(refill.rows);
        }
        Ok(answers)
    }
}
