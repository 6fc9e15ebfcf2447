//! Deferred deliveries for people and for programs.

use serde::Serialize;

use crate::cli::table::{one_line, table, time};
use walhook_core::event::rfc3339;
use walhook_state::{OfAccount, StoredDeferred, WithoutEndpoint};

/// One page of a list.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    pub(super) deferred: Vec<StoredDeferred>,
    /// Where the next page begins, if there is one.
    pub(super) next_after: Option<String>,
    /// What fits but is no delivery yet; `null` where there is nothing of the kind.
    pub(super) without_endpoint: Option<Waiting>,
}

/// Events whose accounts' endpoints cannot be looked up, and what to do.
#[derive(Debug, Serialize)]
pub(super) struct Waiting {
    #[serde(flatten)]
    events: WithoutEndpoint,
    fix: &'static str,
}

impl Waiting {
    pub(super) fn new(events: WithoutEndpoint) -> Self {
        let fix =
            "`walhook check` says why; once that is corrected they become deliveries by themselves";
        Self { events, fix }
    }

    fn to_text(&self) -> String {
        let WithoutEndpoint { events, accounts, since_us, most } = &self.events;
        let named =
            |OfAccount { account, events }: &OfAccount| format!("{}: {events}", one_line(account));
        let mut named: Vec<String> = most.iter().map(named).collect();
        if *accounts > i64::try_from(most.len()).unwrap_or(i64::MAX) {
            named.push("others: fewer each".to_owned());
        }
        format!(
            "without an endpoint: {events} events wait (by account: {}), the oldest since {}, because the \
             endpoints of {accounts} accounts cannot be looked up; {}",
            named.join(", "),
            rfc3339(*since_us),
            self.fix
        )
    }
}

impl Page {
    pub(super) fn to_text(&self) -> String {
        let mut text = self.table();
        if let Some(waiting) = &self.without_endpoint {
            text.push('\n');
            text.push_str(&waiting.to_text());
        }
        text
    }

    fn table(&self) -> String {
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
