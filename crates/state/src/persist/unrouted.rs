//! The tables `unrouted`, `unrouted_accounts` and `unrouted_joined`: events whose account's endpoints are not
//! known; and `unseen`.
//!
//! A row holds its event, and no body: an earlier version of walhook, which does not know of these rows, would
//! remove it.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::try_join_all;
use tokio_postgres::types::{PgLsn, Type};

use super::super::place::{self, COMMIT, Places};
use super::bodies::array;
use super::{Param, Scope, StateError, Transaction, system_time};
use walhook_core::event::Event;
use walhook_core::persist::{Joined, Routed, UnroutedAccount, UnroutedPurge, UnroutedPurged};
use walhook_core::position::Position;
use walhook_core::settled;
use walhook_postgres::op::{EQ, MINUS, PLUS};

/// Why an account's events became a gap.
const GIVEN_UP: &str = "its endpoints could not be looked up, and a quarter of state.max_size was taken by \
                        events that could not be routed, most of them of this account";

/// What names rows, as columns: account, position and type.
struct Named<'a> {
    accounts: Vec<&'a str>,
    places: Places,
    types: Vec<&'a str>,
}

impl<'a> Named<'a> {
    fn new(of: impl Iterator<Item = (&'a str, &'a Position, &'a str)> + Clone) -> Self {
        Self {
            accounts: of.clone().map(|(account, ..)| account).collect(),
            places: Places::new(of.clone().map(|(_, position, _)| *position)),
            types: of.map(|(.., event_type)| event_type).collect(),
        }
    }

    /// The pipeline, and from `$2` on these.
    fn params<'b>(&'b self, pipeline: &'b String) -> Vec<Param<'b>> {
        let mut params: Vec<Param<'b>> =
            vec![(pipeline, Type::TEXT), (&self.accounts, Type::TEXT_ARRAY)];
        params.extend(self.places.params());
        params.push((&self.types, Type::TEXT_ARRAY));
        params
    }
}

/// Inserts events; one that is there already stays as it is.
pub(super) async fn insert(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    events: &[Arc<Event>],
) -> Result<(), StateError> {
    if events.is_empty() {
        return Ok(());
    }
    let named =
        Named::new(events.iter().map(|e| (e.account.as_str(), &e.position, &*e.event_type)));
    let ids: Vec<String> = events.iter().map(|e| e.id.to_string()).collect();
    let operations: Vec<&str> = events.iter().map(|e| e.operation.as_str()).collect();
    let times: Vec<SystemTime> = events.iter().map(|e| system_time(e.commit_time_us)).collect();
    let keys: Vec<String> = events.iter().map(|e| array(&e.keys)).collect();
    let rows: Vec<&[u8]> = events.iter().map(|e| &*e.row).collect();
    let mut params = named.params(pipeline);
    let event: [Param<'_>; 5] = [
        (&ids, Type::TEXT_ARRAY),
        (&operations, Type::TEXT_ARRAY),
        (&times, Type::TIMESTAMPTZ_ARRAY),
        (&keys, Type::TEXT_ARRAY),
        (&rows, Type::BYTEA_ARRAY),
    ];
    params.extend(event);
    let (place, arrays) = (place::columns(""), place::dollars(2, params.len() - 1));
    let sql = format!(
        "INSERT INTO {s}.unrouted (pipeline, account, {place}, event_type,
                event_id, operation, committed_at, keys, row)
         SELECT $1, account, {place}, type, id, operation, at, keys::bigint[], row
         FROM unnest({arrays})
              AS e(account, {place}, type, id, operation, at, keys, row)
         ON CONFLICT DO NOTHING"
    );
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Says how far rows were routed, and removes those that were to the end. A row that is gone is passed over.
pub(super) async fn route(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    routed: &[Routed],
) -> Result<(), StateError> {
    if routed.is_empty() {
        return Ok(());
    }
    fn name<'a>(Routed { row, .. }: &&'a Routed) -> (&'a str, &'a Position, &'a str) {
        (row.account.as_str(), &row.event.position, &*row.event.event_type)
    }
    let ended = Named::new(routed.iter().filter(|routed| routed.to.is_none()).map(|r| name(&r)));
    let rows = Named::new(routed.iter().filter(|routed| routed.to.is_some()).map(|r| name(&r)));
    let to: Vec<&str> = routed.iter().filter_map(|routed| routed.to.as_deref()).collect();
    let place = place::columns("");
    let row = format!(
        "(SELECT u.ctid FROM {s}.unrouted u WHERE u.pipeline {EQ} $1 AND u.account {EQ} r.account
            AND {} AND u.event_type {EQ} r.type)",
        place::same("u", "r")
    );
    if !ended.accounts.is_empty() {
        let params = ended.params(pipeline);
        let remove = format!(
            "DELETE FROM {s}.unrouted WHERE ctid {EQ} ANY (ARRAY (
                 SELECT {row} FROM unnest({}) AS r(account, {place}, type)))",
            place::dollars(2, params.len() - 1)
        );
        tx.execute_typed(&remove, &params).await?;
    }
    if !to.is_empty() {
        let mut params = rows.params(pipeline);
        params.push((&to, Type::TEXT_ARRAY));
        let advance = format!(
            "UPDATE {s}.unrouted t SET routed_to = r.to
             FROM (SELECT {row} AS place, r.to FROM unnest({})
                       AS r(account, {place}, type, \"to\")) r
             WHERE t.ctid {EQ} r.place",
            place::dollars(2, params.len() - 1)
        );
        tx.execute_typed(&advance, &params).await?;
    }
    Ok(())
}

/// What the next leader must know of accounts; those without rows are forgotten.
pub(super) async fn store_accounts(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    all: &[UnroutedAccount],
) -> Result<(), StateError> {
    if all.is_empty() {
        return Ok(());
    }
    let (kept, gone): (Vec<_>, Vec<_>) = all.iter().partition(|account| account.rows > 0);
    let gone: Vec<&str> = gone.iter().map(|account| account.account.as_str()).collect();
    let accounts: Vec<&str> = kept.iter().map(|account| account.account.as_str()).collect();
    let rows: Vec<i64> =
        kept.iter().map(|account| i64::try_from(account.rows).unwrap_or(i64::MAX)).collect();
    let encode = |account: &&UnroutedAccount| {
        (!account.settled.is_empty()).then(|| settled::encode(&account.settled))
    };
    let settled: Vec<Option<Vec<u8>>> = kept.iter().map(encode).collect();
    let store = format!(
        "INSERT INTO {s}.unrouted_accounts (pipeline, account, rows, settled)
         SELECT $1, account, rows, settled FROM unnest($2, $3, $4) AS r(account, rows, settled)
         ON CONFLICT (pipeline, account) DO UPDATE SET rows = excluded.rows, settled = excluded.settled"
    );
    let forget = format!(
        "DELETE FROM {s}.unrouted_accounts WHERE ctid {EQ} ANY (ARRAY (
             SELECT (SELECT a.ctid FROM {s}.unrouted_accounts a
                     WHERE a.pipeline {EQ} $1 AND a.account {EQ} r.account)
             FROM unnest($2) AS r(account)))"
    );
    if !accounts.is_empty() {
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&accounts, Type::TEXT_ARRAY),
            (&rows, Type::INT8_ARRAY),
            (&settled, Type::BYTEA_ARRAY),
        ];
        tx.execute_typed(&store, &params).await?;
    }
    if !gone.is_empty() {
        tx.execute_typed(&forget, &[(pipeline, Type::TEXT), (&gone, Type::TEXT_ARRAY)]).await?;
    }
    Ok(())
}

/// Remembers endpoints that joined; `passed`: none of those need be.
pub(super) async fn store_joined(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    joined: &[Joined],
    passed: bool,
) -> Result<(), StateError> {
    if passed {
        let forget = format!("DELETE FROM {s}.unrouted_joined WHERE pipeline {EQ} $1");
        tx.execute_typed(&forget, &[(pipeline, Type::TEXT)]).await?;
    }
    if joined.is_empty() {
        return Ok(());
    }
    let mut last: Vec<&Joined> = joined.iter().collect();
    last.sort_by(|a, b| (&a.endpoint, b.at).cmp(&(&b.endpoint, a.at)));
    last.dedup_by(|a, b| a.endpoint == b.endpoint);
    let endpoints: Vec<&str> = last.iter().map(|joined| joined.endpoint.as_str()).collect();
    let at: Vec<PgLsn> = last.iter().map(|joined| joined.at.0.into()).collect();
    let store = format!(
        "INSERT INTO {s}.unrouted_joined (pipeline, endpoint, joined_lsn)
         SELECT $1, endpoint, at FROM unnest($2, $3) AS r(endpoint, at)
         ON CONFLICT (pipeline, endpoint) DO UPDATE SET joined_lsn = excluded.joined_lsn"
    );
    let params: [Param<'_>; 3] =
        [(pipeline, Type::TEXT), (&endpoints, Type::TEXT_ARRAY), (&at, Type::PG_LSN_ARRAY)];
    tx.execute_typed(&store, &params).await?;
    Ok(())
}

/// Remembers transactions that look-ups may not show yet, and forgets those that one has seen.
pub(super) async fn store_unseen(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    unseen: &[u32],
    seen: &[u32],
) -> Result<(), StateError> {
    let ids = |xids: &[u32]| xids.iter().map(|xid| i64::from(*xid)).collect::<Vec<i64>>();
    if !unseen.is_empty() {
        let store = format!(
            "INSERT INTO {s}.unseen (pipeline, xid) SELECT $1, xid FROM unnest($2) AS r(xid)
             ON CONFLICT DO NOTHING"
        );
        let unseen = ids(unseen);
        tx.execute_typed(&store, &[(pipeline, Type::TEXT), (&unseen, Type::INT8_ARRAY)]).await?;
    }
    if !seen.is_empty() {
        let forget = format!(
            "DELETE FROM {s}.unseen WHERE ctid {EQ} ANY (ARRAY (
                 SELECT (SELECT u.ctid FROM {s}.unseen u
                         WHERE u.pipeline {EQ} $1 AND u.xid {EQ} r.xid)
                 FROM pg_catalog.unnest($2) AS r(xid)))"
        );
        let seen = ids(seen);
        tx.execute_typed(&forget, &[(pipeline, Type::TEXT), (&seen, Type::INT8_ARRAY)]).await?;
    }
    Ok(())
}

/// Removes accounts' rows, the oldest first, and counts them in the accounts' gaps.
pub(super) async fn purge(
    tx: &Transaction<'_>,
    scope: &Scope,
    purges: &[UnroutedPurge],
) -> Result<Vec<UnroutedPurged>, StateError> {
    try_join_all(purges.iter().map(|purge| purge_one(tx, scope, purge))).await
}

async fn purge_one(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    UnroutedPurge { account, rows }: &UnroutedPurge,
) -> Result<UnroutedPurged, StateError> {
    let (name, rows) = (account.as_str(), i64::from(*rows));
    let place = place::columns("");
    let sql = format!(
        "WITH gone AS (
             DELETE FROM {s}.unrouted WHERE ctid {EQ} ANY (ARRAY (
                 SELECT ctid FROM {s}.unrouted WHERE pipeline {EQ} $1 AND account {EQ} $2
                 ORDER BY {place}, event_type LIMIT $3))
             RETURNING {COMMIT}),
         counted AS (
             INSERT INTO {s}.gaps AS g (pipeline, endpoint, account, unrouted, reason, from_lsn, to_lsn,
                    removed)
             SELECT $1, '', $2, true, $4, c.first, c.last, c.n
             FROM (SELECT pg_catalog.count(*) AS n, pg_catalog.min({COMMIT}) AS first,
                          pg_catalog.max({COMMIT}) AS last FROM gone) c
             WHERE c.n OPERATOR(pg_catalog.>) 0::bigint
             ON CONFLICT (pipeline, account) WHERE unrouted AND closed_at IS NULL
             DO UPDATE SET removed = g.removed {PLUS} excluded.removed,
                 from_lsn = least(g.from_lsn, excluded.from_lsn),
                 to_lsn = greatest(g.to_lsn, excluded.to_lsn)),
         left_over AS (
             UPDATE {s}.unrouted_accounts
             SET rows = greatest(rows {MINUS} (SELECT pg_catalog.count(*) FROM gone), 0::bigint)
             WHERE pipeline {EQ} $1 AND account {EQ} $2)
         SELECT pg_catalog.count(*) FROM gone"
    );
    let params: [Param<'_>; 4] =
        [(pipeline, Type::TEXT), (&name, Type::TEXT), (&rows, Type::INT8), (&GIVEN_UP, Type::TEXT)];
    let removed: i64 = tx.query_typed_one(&sql, &params).await?.try_get(0)?;
    Ok(UnroutedPurged {
        account: account.clone(),
        rows: removed.cast_unsigned(),
        all: removed < rows,
    })
}
