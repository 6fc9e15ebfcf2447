//! The history of a delivery: its last attempts, in the table beside it.

use serde::{Deserialize, Serialize};

use super::super::{text, unreadable};
use super::StateError;
use walhook_core::event::rfc3339;
use walhook_core::persist::AttemptRecord;
use walhook_postgres::op::CAT;

/// Attempts that a row keeps.
const KEPT: usize = 10;

/// One attempt, as the tables and `--json` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAttempt {
    /// When it ended, as RFC 3339 in UTC.
    pub at: String,
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// From the call to the end of the answer, in milliseconds.
    pub latency_ms: u64,
    /// What failed, with the answer's first KiB.
    pub error: String,
}

impl StoredAttempt {
    /// Reads what a table's column `history` holds.
    pub(in super::super) fn read(history: Option<&str>) -> Result<Vec<Self>, StateError> {
        let read = |json| serde_json::from_str(&text::read(json)).map_err(unreadable("a history"));
        history.map_or_else(|| Ok(Vec::new()), read)
    }
}

/// New attempts as the text of a `jsonb`; null when there are none.
pub(super) fn records(history: &[AttemptRecord]) -> Option<String> {
    let skipped = history.len().saturating_sub(KEPT);
    let attempts: Vec<StoredAttempt> = history
        .iter()
        .skip(skipped)
        .map(|attempt| StoredAttempt {
            at: rfc3339(attempt.at_us),
            status: attempt.status,
            latency_ms: u64::try_from(attempt.latency.as_millis()).unwrap_or(u64::MAX),
            // Within JSON it would be an escape, which `jsonb` refuses.
            error: attempt.error.replace('\0', "\u{fffd}"),
        })
        .collect();
    // Texts and numbers: there is nothing in it that JSON could not hold.
    (!attempts.is_empty()).then(|| serde_json::to_string(&attempts).unwrap_or_default())
}

/// SQL for the last attempts of `stored` (a `jsonb`) and `new` (its text); null when there are none.
pub(super) fn last_ten(stored: &str, new: &str) -> String {
    format!(
        "(SELECT pg_catalog.jsonb_agg(e ORDER BY at) FROM (
              SELECT e, at FROM pg_catalog.jsonb_array_elements(
                  coalesce({stored}, '[]') {CAT} coalesce({new}::pg_catalog.jsonb, '[]'))
                  WITH ORDINALITY x(e, at)
              ORDER BY at DESC LIMIT {KEPT}) kept)"
    )
}
