//! Events without an endpoint: what a new leader reads of them, and pages of several accounts by one
//! statement.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use super::event::{EVENT_COLUMNS, read_event};
use super::{Param, Scope, StateError, StateStore, lsn, text, unreadable};
use crate::engine::event::{AccountId, EndpointId};
use crate::engine::persist::{Joined, Unrouted, UnroutedAccount, UnroutedPage, UnroutedRefill};
use crate::engine::position::Position;
use crate::engine::settled;
use crate::io::op::{EQ, GT, LE};

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

impl StateStore {
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
        let after = || {
            refills.iter().map(|r| {
                r.after.as_ref().map(|key| {
                    let Position::Wal(position) = key.position;
                    position
                })
            })
        };
        let commits: Vec<PgLsn> = after().map(|p| p.map_or(0, |p| p.commit_lsn.0).into()).collect();
        let changes: Vec<PgLsn> = after().map(|p| p.map_or(0, |p| p.change_lsn.0).into()).collect();
        let relations: Vec<u32> = after().map(|p| p.map_or(0, |p| p.relation)).collect();
        let ns: Vec<i64> = after().map(|p| p.map_or(0, |p| i64::from(p.n))).collect();
        let rows: Vec<i64> = refills.iter().map(|r| i64::from(r.rows)).collect();
        let most = rows.iter().copied().max().unwrap_or_default();
        let bytes: Vec<i64> =
            refills.iter().map(|r| i64::try_from(r.bytes).unwrap_or(i64::MAX)).collect();
        let place = "q.commit_lsn, q.change_lsn, q.relation, q.n, q.event_type";
        // Behind a LIMIT the planner takes a LATERAL as it stands: first the requests, for each its rows
        // along the primary key.
        let sql = format!(
            "SELECT * FROM (
                 SELECT r.at, r.bytes, b.rank, b.routed_to,
                        pg_catalog.count(*) OVER (PARTITION BY r.at) AS found,
                        pg_catalog.sum(pg_catalog.octet_length(b.row))
                            OVER (PARTITION BY r.at ORDER BY b.rank) AS so_far,
                        {EVENT_COLUMNS}
                 FROM unnest($2, $3, $4, $5, $6, $7, $8, $9)
                      WITH ORDINALITY AS r(account, commit, change, relation, n, type, rows, bytes, at)
                 CROSS JOIN LATERAL (
                     SELECT q.*, pg_catalog.row_number() OVER (ORDER BY {place}) AS rank FROM (
                         SELECT * FROM {s}.unrouted q
                         WHERE q.pipeline {EQ} $1 AND q.account {EQ} r.account
                           AND ({place}) {GT} (r.commit, r.change, r.relation, r.n, r.type)
                         ORDER BY {place} LIMIT $10) q) b
                 WHERE b.rank {LE} r.rows) page
             WHERE so_far {LE} bytes OR rank {EQ} 1 ORDER BY at, rank"
        );
        let params: [Param<'_>; 10] = [
            (pipeline, Type::TEXT),
            (&accounts, Type::TEXT_ARRAY),
            (&commits, Type::PG_LSN_ARRAY),
            (&changes, Type::PG_LSN_ARRAY),
            (&relations, Type::OID_ARRAY),
            (&ns, Type::INT8_ARRAY),
            (&types, Type::TEXT_ARRAY),
            (&rows, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
            (&most, Type::INT8),
        ];
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
