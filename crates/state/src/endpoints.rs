//! What the state tables know of endpoints.

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, StateStore, text};
use walhook_core::event::EndpointId;
use walhook_core::persist::{DisableEndpoint, EndpointError, PauseEndpoint};
use walhook_postgres::op::{EQ, GT, NE, to_us};

/// An endpoint that has something in the state tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its id.
    pub endpoint: String,
    /// The accounts of its deferred rows, where it has any.
    pub account: Option<String>,
    /// `suspended`, `disabled`, `paused`, `breaker_open`, `failing`, or `ok`.
    pub state: String,
    /// Why it is stopped.
    pub reason: Option<String>,
    /// Since when it is stopped or fails: microseconds since 1970-01-01 UTC.
    pub since_us: Option<i64>,
    /// Its deferred rows.
    pub deferred: i64,
    /// Its dead letters.
    pub dead_letters: i64,
    /// When it is tried next, while its breaker is open: microseconds since 1970-01-01 UTC.
    pub open_until_us: Option<i64>,
    /// What its last request failed by, while it fails.
    pub last_error: Option<String>,
    /// When: microseconds since 1970-01-01 UTC.
    pub last_error_us: Option<i64>,
    /// Requests that have failed since it took one.
    pub failed: i64,
}

impl StateStore {
    /// Endpoints by their ids' bytes: those of `ids`, or else those behind `after` that are not well
    /// or have deferred rows or dead letters.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn standings(
        &self,
        ids: Option<&[String]>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Standing>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT endpoint, account, state, reason, {}, deferred, dead_letters, {}, last_error, {}, failed
             FROM {s}.endpoints WHERE pipeline {EQ} $1 AND ($2 IS NULL OR endpoint {EQ} ANY ($2))
               AND endpoint COLLATE pg_catalog.\"C\" {GT} $3
             ORDER BY endpoint COLLATE pg_catalog.\"C\" LIMIT $4",
            to_us("since"),
            to_us("breaker_open_until"),
            to_us("last_error_at")
        );
        let params: [Param<'_>; 4] = [
            (pipeline, Type::TEXT),
            (&ids, Type::TEXT_ARRAY),
            (&after, Type::TEXT),
            (&limit, Type::INT8),
        ];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter()
            .map(|row| {
                Ok(Standing {
                    endpoint: text::get(row, 0)?,
                    account: text::get_opt(row, 1)?,
                    state: row.try_get(2)?,
                    reason: text::get_opt(row, 3)?,
                    since_us: row.try_get(4)?,
                    deferred: row.try_get(5)?,
                    dead_letters: row.try_get(6)?,
                    open_until_us: row.try_get(7)?,
                    last_error: text::get_opt(row, 8)?,
                    last_error_us: row.try_get(9)?,
                    failed: row.try_get(10)?,
                })
            })
            .collect()
    }

    /// How many endpoints are in each state that is not `ok`.
    ///
    /// # Errors
    /// [`StateError::Sql`].
    pub async fn troubled(&self) -> Result<Vec<(String, i64)>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT state, pg_catalog.count(*) FROM {s}.endpoints WHERE pipeline {EQ} $1
             AND state {NE} 'ok'
             GROUP BY 1 ORDER BY 1"
        );
        let rows = self.connection.query_typed(&sql, &[(pipeline, Type::TEXT)]).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }
}

/// Selects the endpoints of the pipeline `$1` that fail for [`read_error`].
pub(super) fn errors_sql(s: &str) -> String {
    format!(
        "SELECT account, endpoint, {}, failed, {}, error FROM {s}.endpoint_errors
         WHERE pipeline {EQ} $1 ORDER BY 2, 1",
        to_us("failing_since"),
        to_us("last_at")
    )
}

pub(super) fn read_error(row: &Row) -> Result<EndpointError, StateError> {
    let failed: i64 = row.try_get(3)?;
    Ok(EndpointError {
        queue: text::queue(row.try_get(0)?, row.try_get(1)?),
        since_us: row.try_get(2)?,
        failed: failed.cast_unsigned(),
        last_us: row.try_get(4)?,
        error: text::get(row, 5)?,
    })
}

/// The endpoints that are stopped, by whom.
pub(super) struct Stops {
    pub(super) disabled: Vec<DisableEndpoint>,
    pub(super) paused: Vec<PauseEndpoint>,
}

/// Selects the stopped endpoints of the pipeline `$1` for [`Stops::read`].
pub(super) fn stops_sql(s: &str) -> String {
    format!(
        "SELECT endpoint, reason, kind, {} FROM {s}.endpoint_state WHERE pipeline {EQ} $1
         ORDER BY 1",
        to_us("disabled_at")
    )
}

impl Stops {
    pub(super) fn read(rows: &[Row]) -> Result<Self, StateError> {
        let mut stops = Self { disabled: Vec::new(), paused: Vec::new() };
        for row in rows {
            let endpoint = EndpointId::new(text::get(row, 0)?);
            let reason = text::get(row, 1)?;
            match row.try_get(2)? {
                "disabled" => stops.disabled.push(DisableEndpoint { endpoint, reason }),
                // Also what a later version calls otherwise: so nothing is sent, and nothing ends.
                _ => {
                    let since_us = row.try_get(3)?;
                    stops.paused.push(PauseEndpoint { endpoint, reason, since_us });
                }
            }
        }
        Ok(stops)
    }
}
