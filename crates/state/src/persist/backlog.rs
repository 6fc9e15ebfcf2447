//! The table `backlog`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::super::key;
use super::{Param, Scope, StateError, Transaction, bodies, queues, system_time};
use walhook_core::persist::{BacklogRow, Blocked, QueueId};
use walhook_postgres::op::{EQ, MINUS};

/// Subtracts what an operator has removed, by the queue of each, in the transaction that removes it: a leader that ends
/// before it hears of it leaves no count that is too high. One that lives sets the same numbers.
pub(in super::super) async fn subtract<'a>(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    removed: impl Iterator<Item = &'a QueueId>,
) -> Result<(), StateError> {
    let mut counts: BTreeMap<&QueueId, i64> = BTreeMap::new();
    for queue in removed {
        *counts.entry(queue).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(());
    }
    let (endpoints, accounts) = queues::columns(counts.keys().copied());
    let counts: Vec<i64> = counts.values().copied().collect();
    let sql = format!(
        "UPDATE {s}.backlog b SET deferred = greatest(b.deferred {MINUS} r.n, 0::bigint)
         FROM unnest($2, $3, $4) AS r(endpoint, account, n) WHERE b.ctid {EQ} {}",
        key::row(s, "backlog", "ctid", "endpoint, account", "r.endpoint, r.account")
    );
    let params: [Param<'_>; 4] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&counts, Type::INT8_ARRAY),
    ];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}

/// Inserts or replaces rows.
pub(super) async fn store(
    tx: &Transaction<'_>,
    Scope { s, pipeline, .. }: &Scope,
    rows: &[BacklogRow],
) -> Result<(), StateError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (endpoints, accounts) = queues::columns(rows.iter().map(|row| &row.queue));
    let blocked: Vec<Option<String>> = rows
        .iter()
        .map(|row| match &row.blocked {
            Blocked::Keys(keys) => Some(bodies::array(keys)),
            Blocked::All => None,
        })
        .collect();
    let deferred: Vec<i64> =
        rows.iter().map(|row| i64::try_from(row.rows).unwrap_or(i64::MAX)).collect();
    let time = |us: Option<i64>| us.map(system_time);
    let failing: Vec<Option<SystemTime>> =
        rows.iter().map(|row| time(row.failing_since_us)).collect();
    let stopped: Vec<i64> = rows.iter().map(|row| row.stopped_us).collect();
    let open: Vec<Option<SystemTime>> = rows.iter().map(|row| time(row.open_until_us)).collect();
    let sql = format!(
        "INSERT INTO {s}.backlog AS b (pipeline, endpoint, account, blocked, deferred, failing_since,
                stopped_us, breaker_open_until)
         SELECT $1, endpoint, account, blocked::bigint[], deferred, failing, stopped, open
         FROM unnest($2, $3, $4, $5, $6, $7, $8)
              AS r(endpoint, account, blocked, deferred, failing, stopped, open)
         ON CONFLICT (pipeline, endpoint, account) DO UPDATE SET blocked = excluded.blocked,
             deferred = excluded.deferred, failing_since = excluded.failing_since,
             stopped_us = excluded.stopped_us, breaker_open_until = excluded.breaker_open_until"
    );
    let params: [Param<'_>; 8] = [
        (pipeline, Type::TEXT),
        (&endpoints, Type::TEXT_ARRAY),
        (&accounts, Type::TEXT_ARRAY),
        (&blocked, Type::TEXT_ARRAY),
        (&deferred, Type::INT8_ARRAY),
        (&failing, Type::TIMESTAMPTZ_ARRAY),
        (&stopped, Type::INT8_ARRAY),
        (&open, Type::TIMESTAMPTZ_ARRAY),
    ];
    tx.execute_typed(&sql, &params).await?;
    Ok(())
}
