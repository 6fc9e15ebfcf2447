//! Deferred deliveries for people and for programs.

use serde::Serialize;

use crate::cli::table::{one_line, table, time};
use crate::engine::event::rfc3339;
use crate::io::state::StoredDeferred;

/// One page of a list.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    pub(super) deferred: Vec<StoredDeferred>,
    /// Where the next page begins, if there is one.
    pub(super) next_after: Option<String>,
}

impl Page {
    pub(super) fn to_text(&self) -> String {
        if self.deferred.is_empty() {
            return "no deferred delivery fits".to_owned();
        }
        let head = [
            "EVENT", "DEFERRED", "REASON", "ENDPOINT", "ACCOUNT", "TYPE", "ATTEMPTS", "NEXT",
            "DETAIL",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.deferred.iter().map(|row| {
            [
                row.event_id.clone(),
                rfc3339(row.deferred_at_us),
                row.reason.clone(),
                row.endpoint.clone(),
                row.account.clone(),
                row.event_type.clone(),
                row.attempts.to_string(),
                time(row.next_attempt_at_us),
                one_line(&row.detail),
            ]
        }));
        let mut text = table(&rows);
        if let Some(after) = &self.next_after {
            text.push_str(&format!("\nthere are more: --after {after}"));
        }
        text
    }
}
