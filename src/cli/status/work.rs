//! What the leader has to do, in lines of `walhook status`.

use super::super::ago::ago;
use super::Lines;
use crate::control::status::StatusView;
use crate::control::status::work::{AccountWorkView, OldestView, WorkView};

/// Accounts that are shown; `--json` has all that were told.
const SHOWN: usize = 5;

/// How much waits, whose, and for what.
pub(super) fn lines(status: &StatusView) -> Lines {
    let Some(work) = &status.work else {
        let why = status.work_error.as_deref().unwrap_or("not asked");
        return vec![("work", format!("unknown: {why}"))];
    };
    let mut lines = vec![("work", amounts(work)), ("pace", pace(work))];
    lines.extend(work.oldest.iter().map(|oldest| ("oldest", oldest_text(oldest))));
    let shown = work.accounts.iter().take(SHOWN);
    lines.extend(shown.map(|account| ("waits", account_text(account))));
    let others = work.waiting_accounts.saturating_sub(work.accounts.len().min(SHOWN));
    if others > 0 {
        lines.push(("waits", format!("of {others} other accounts no more than that")));
    }
    lines
}

fn amounts(work: &WorkView) -> String {
    let WorkView { pending, in_flight, unrouted_in_memory, .. } = work;
    let unrouted = match unrouted_in_memory {
        0 => String::new(),
        events => format!(", and {events} events that are not routed yet"),
    };
    format!("{pending} deliveries in memory, {in_flight} of them in flight{unrouted}")
}

fn pace(work: &WorkView) -> String {
    let WorkView { delivered_per_second, over_seconds, p50_ms, p99_ms, .. } = work;
    let times = match (p50_ms, p99_ms) {
        (Some(p50), Some(p99)) => {
            format!("; from commit to 2xx p50 {}, p99 {}", time(*p50), time(*p99))
        }
        _ => String::new(),
    };
    format!("{delivered_per_second:.1} deliveries/s over the last {over_seconds:.0} s{times}")
}

fn time(ms: f64) -> String {
    if ms < 10_000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1_000.0) }
}

fn oldest_text(oldest: &OldestView) -> String {
    let OldestView { account_id, endpoint, event_id, event_type, committed_at, attempts, cause } =
        oldest;
    let to =
        endpoint.as_ref().map_or_else(String::new, |endpoint| format!(", endpoint {endpoint}"));
    let age = ago(committed_at).unwrap_or_else(|| committed_at.clone());
    let attempts = match attempts {
        0 => "not tried yet".to_owned(),
        1 => "1 attempt".to_owned(),
        more => format!("{more} attempts"),
    };
    format!(
        "{event_id} ({event_type}) of account {account_id}{to}, committed {age}, {attempts}: {}",
        cause_text(cause)
    )
}

fn account_text(account: &AccountWorkView) -> String {
    let AccountWorkView { account_id, waiting, in_flight, deferred, endpoint, cause, .. } = account;
    let deferred = match deferred {
        0 => String::new(),
        rows => format!(", {rows} deferred"),
    };
    let oldest = account.oldest_committed_at.as_deref().and_then(ago);
    let oldest = oldest.map_or_else(String::new, |ago| format!(", the oldest committed {ago}"));
    let most = endpoint.as_ref().map_or_else(String::new, |to| format!(", most for endpoint {to}"));
    format!(
        "account {account_id}: {waiting} in memory, {in_flight} in flight{deferred}{oldest}{most}: {}",
        cause_text(cause)
    )
}

/// The word, and what it means.
pub(in super::super) fn cause_text(cause: &str) -> String {
    let means = match cause {
        "read" => "the stream is behind",
        "lookup" => "its account's endpoints are looked up",
        "memory" => "there is no room in memory",
        "refill" => "it is to be read back from the state database",
        "stopped" => "its endpoint is paused, switched off or suspended",
        "breaker" => "its endpoint fails, and is only tried now and then",
        "retry" => "an attempt failed, and the next one has its time",
        "order" => "an earlier delivery of the same row, or account, is not settled",
        "endpoint_limit" => "its endpoint has as many requests in flight as it may have",
        "rate_limit" => "its endpoint's rate is used up",
        "state" => "the state database is slow to store what was settled",
        "unpersisted" => "too many outcomes wait to be stored",
        "pool" => {
            "every slot is in use or there is none, or walhook lacks something else to send it with"
        }
        "turn" => "other accounts have their turn",
        "bus" => "it is on the way to a worker, or its outcome on the way back",
        "attempt" => "the request is under way",
        _ => return cause.to_owned(),
    };
    format!("{cause}: {means}")
}

#[cfg(test)]
mod tests {
    use walhook_core::waits::Cause;

    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn each_cause_has_its_meaning_in_words() {
        for cause in Cause::ALL {
            let text = cause_text(cause.as_str());
            assert!(text.starts_with(&format!("{}: ", cause.as_str())), "{text}");
        }
        assert_eq!(cause_text("of a later version"), "of a later version");
    }

    #[test]
    fn work_says_how_much_how_fast_whose_and_why() {
        let text = lines(&sample::status());
        let text: Vec<String> =
            text.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let text = text.join("\n");
        for part in [
            "work 3000 deliveries in memory, 64 of them in flight, and 2 events that are not routed yet",
            "pace 412.5 deliveries/s over the last 60 s; from commit to 2xx p50 12 ms, p99 340 ms",
            "(subscriber.updated) of account 42, endpoint 7, committed ",
            ", 2 attempts: retry: an attempt failed",
            "waits account 42: 2936 in memory, 64 in flight, 5 deferred, the oldest committed ",
            ", most for endpoint 7: endpoint_limit: its endpoint has",
            "waits of 2 other accounts no more than that",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let unknown = lines(&sample::status_of_little());
        assert_eq!(unknown, [("work", "unknown: no leader runs".to_owned())]);
    }
}
