//! Events, for a terminal.

use super::super::ago::with_ago;
use super::super::status::cause_text;
use super::super::table::{named, one_line, table};
use crate::control::events::log::{ErasedView, LineCount, LineCounts, LinePage};
use crate::control::events::{DeliveryView, EventView, LineView};
use walhook_core::persist::DeadReason;

/// Columns of a thing's name.
const NAME_WIDTH: usize = 10;

/// The reason of what failed and was no attempt.
const PROBE: &str = "probe";

/// All that is known of one.
pub(super) fn event(event: &EventView) -> String {
    let mut text: Vec<String> = head(event).iter().map(|(name, value)| line(name, value)).collect();
    for delivery in &event.deliveries {
        text.push(String::new());
        text.extend(of_delivery(delivery));
    }
    text.push(String::new());
    text.push(match (&event.body, &event.no_body) {
        (Some(body), _) => format!("{:<NAME_WIDTH$} {}", "body", one_line(body.get())),
        (None, Some(why)) => line("body", why),
        (None, None) => line("body", "unknown"),
    });
    text.extend(event.note.iter().map(|note| line("note", note)));
    text.join("\n")
}

fn line(name: &str, value: &str) -> String {
    named(name, value, NAME_WIDTH)
}

fn head(event: &EventView) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let settled = match event.settled {
        None => "",
        Some(true) => ", settled",
        Some(false) => ", not settled yet",
    };
    let position = event.commit_lsn.as_ref().map(|lsn| format!(" at {lsn}{settled}"));
    let mut head = vec![
        ("event", event.event_id.clone()),
        ("type", event.event_type.clone().unwrap_or_else(unknown)),
        ("account", event.account_id.clone().unwrap_or_else(unknown)),
        ("committed", format!("{}{}", with_ago(&event.committed_at), position.unwrap_or_default())),
    ];
    head.extend(event.memory_error.iter().map(|why| ("memory", format!("unknown: {why}"))));
    head
}

fn of_delivery(delivery: &DeliveryView) -> Vec<String> {
    let DeliveryView { endpoint, replay_id, .. } = delivery;
    let to = endpoint.as_ref().map_or_else(|| "none".to_owned(), Clone::clone);
    let replay = replay_id.map(|id| format!(", by replay {id}")).unwrap_or_default();
    let mut text =
        vec![line("endpoint", &format!("{to}{replay}")), line("stands", &stands(delivery))];
    text.extend(delivery.detail.iter().map(|detail| line("says", detail)));
    if !delivery.lines.is_empty() {
        let rows: Vec<[String; 5]> = delivery.lines.iter().map(happened).collect();
        text.extend(table(&rows).lines().map(|row| format!("  {row}")));
    }
    text
}

fn stands(delivery: &DeliveryView) -> String {
    let DeliveryView { state, since, reason, cause, next_attempt_at, .. } = delivery;
    let mut text = state.clone();
    if let Some(reason) = reason {
        text.push_str(&format!(" ({reason})"));
    }
    if let Some(since) = since {
        text.push_str(&format!(" since {}", with_ago(since)));
    }
    match delivery.attempts {
        0 => {}
        1 => text.push_str(", 1 attempt"),
        attempts => text.push_str(&format!(", {attempts} attempts")),
    }
    if let Some(next) = next_attempt_at {
        text.push_str(&format!(", the next one not before {}", with_ago(next)));
    }
    if let Some(cause) = cause {
        text.push_str(&format!("; waits for {}", cause_text(cause)));
    }
    let letter = delivery.dead_letter.map(|id| match &delivery.endpoint {
        Some(endpoint) if reason.as_deref() == Some(DeadReason::EndpointDisabled.as_str()) => {
            format!("; walhook endpoints resume {endpoint}, then walhook dead-letters retry {id}")
        }
        Some(_) => format!("; walhook dead-letters retry {id}"),
        // Nobody is there to whom it could be sent.
        None => format!("; walhook dead-letters show {id}"),
    });
    text.push_str(&letter.unwrap_or_default());
    let gap = delivery.gap.map(|id| format!("; counted in gap {id} (walhook gaps list)"));
    text.push_str(&gap.unwrap_or_default());
    text
}

/// When, what, with what answer, after how long, and what there is to say.
fn happened(line: &LineView) -> [String; 5] {
    let waits: Vec<String> =
        line.waits_ms.iter().map(|(cause, ms)| format!("{cause} {ms:.0} ms")).collect();
    let mut says: Vec<String> = line.excerpt.iter().cloned().collect();
    if !waits.is_empty() {
        says.push(format!("waited: {}", waits.join(", ")));
    }
    [
        line.at.clone(),
        what(line),
        answer(line.status, line.failure.as_deref()),
        took(line),
        says.join("; "),
    ]
}

fn what(line: &LineView) -> String {
    match line.attempt {
        Some(_) if line.reason.as_deref() == Some(PROBE) => format!("{PROBE} {}", line.what),
        Some(attempt) => format!("attempt {attempt} {}", line.what),
        None => with_reason(&line.what, line.reason.as_deref()),
    }
}

/// The same, in a list of many deliveries: with what asked for it, where it was not the stream.
fn what_and_who(line: &LineView) -> String {
    let who = match (line.replay_id, line.dead_letter) {
        (Some(replay), _) => format!(" (replay {replay})"),
        (None, Some(_)) => " (retry)".to_owned(),
        (None, None) => String::new(),
    };
    format!("{}{who}", what(line))
}

fn with_reason(what: &str, reason: Option<&str>) -> String {
    reason.map_or_else(|| what.to_owned(), |reason| format!("{what} ({reason})"))
}

/// The status, or what failed where there was none.
fn answer(status: Option<u16>, failure: Option<&str>) -> String {
    status
        .map(|status| status.to_string())
        .unwrap_or_else(|| failure.unwrap_or_default().to_owned())
}

fn took(line: &LineView) -> String {
    line.latency_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default()
}

/// Lines of the log, the newest first.
pub(super) fn list(page: &LinePage) -> String {
    if page.lines.is_empty() {
        return "no line of the delivery log fits".to_owned();
    }
    let head = ["AT", "WHAT", "EVENT", "TYPE", "ACCOUNT", "ENDPOINT", "ANSWER", "TOOK", "SAYS"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(page.lines.iter().map(|line| {
        [
            line.at.clone(),
            what_and_who(line),
            line.event_id.clone(),
            line.event_type.clone(),
            line.account_id.clone(),
            line.endpoint.as_deref().unwrap_or("-").to_owned(),
            answer(line.status, line.failure.as_deref()),
            took(line),
            line.excerpt.clone().unwrap_or_default(),
        ]
    }));
    let mut text = table(&rows);
    if let Some(before) = page.next_before {
        text.push_str(&format!("\nthere are more: --before {before}"));
    }
    text
}

/// How many lines there are.
pub(super) fn counts(counts: &LineCounts) -> String {
    if counts.by.is_empty() {
        return "no line of the delivery log fits".to_owned();
    }
    let mut rows = vec![["LINES", "WHAT", "ANSWER", "FIRST", "LAST"].map(str::to_owned)];
    rows.extend(counts.by.iter().map(|count| {
        let LineCount { what, reason, status, failure, lines, first_at, last_at } = count;
        [
            lines.to_string(),
            with_reason(what, reason.as_deref()),
            answer(*status, failure.as_deref()),
            with_ago(first_at),
            with_ago(last_at),
        ]
    }));
    format!("{}\n{} in all", table(&rows), counts.lines)
}

/// What was erased.
pub(super) fn erased(erased: &ErasedView) -> String {
    let ErasedView { id, account_id, erased_by, lines, unreadable_pages, .. } = erased;
    let unreadable = match unreadable_pages {
        0 => String::new(),
        pages => format!(", and {pages} pages that could not be read"),
    };
    one_line(&format!(
        "erased {lines} lines of account {account_id}{unreadable}: record {id}, asked by {erased_by}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    #[test]
    fn event_is_shown_with_each_delivery_and_where_it_stands() {
        let shown = event(&sample::event());
        for part in [
            "event      evt_01KB4ZD2G0ABCDEFGHJKMNPQRS\ntype       subscriber.updated\naccount    42\n",
            "at 0/210, not settled yet",
            "endpoint   7\nstands     deferred (failed) since 2026-11-28T12:00:02.000000Z (",
            ", 2 attempts, the next one not before 2026-11-28T12:00:10.000000Z (",
            "; waits for attempt: the request is under way\nsays       status 503\n",
            "endpoint   8, by replay 3\nstands     dead_letter (exhausted) since",
            "; walhook dead-letters retry 1; counted in gap 3 (walhook gaps list)\n",
            "  2026-11-28T12:00:01.000000Z  attempt 2 failed   503  12 ms  status 503; waited: retry 900 ms\n",
            "  2026-11-28T12:00:02.000000Z  deferred (failed)\n",
            "body       {\"id\":\"evt_1\",\"data\":{\"id\":1},\"score\":1.50}",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        let probe = LineView {
            what: "failed".into(),
            reason: Some(PROBE.into()),
            attempt: Some(2),
            ..sample::line_page().lines[0].clone()
        };
        assert_eq!(what(&probe), "probe failed", "it is no attempt");
        let replayed = LineView { replay_id: Some(3), dead_letter: None, ..probe.clone() };
        let retried = LineView { replay_id: None, dead_letter: Some(9), ..probe };
        assert_eq!(what_and_who(&replayed), "probe failed (replay 3)");
        assert_eq!(what_and_who(&retried), "probe failed (retry)");
        let shown = list(&sample::line_page());
        for part in ["AT  ", "  attempt 2 failed  ", "\nthere are more: --before 17"] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        let shown = counts(&sample::line_counts());
        for part in [
            "\n3      failed             503     2026",
            "\n1      deferred (failed)          2026",
            "\n4 in all",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
        assert_eq!(
            erased(&sample::erased()),
            "erased 12 lines of account 42: record 1, asked by support, ticket 5"
        );
        let mut off = sample::event().deliveries[1].clone();
        off.reason = Some("endpoint_disabled".into());
        let shown = stands(&off);
        assert!(
            shown.contains("; walhook endpoints resume 8, then walhook dead-letters"),
            "{shown}"
        );
        let mut unroutable = sample::event().deliveries[1].clone();
        unroutable.endpoint = None;
        assert!(
            stands(&unroutable).contains("; walhook dead-letters show 1"),
            "it has nobody to be sent to"
        );
        let shown = event(&sample::unknown_event());
        for part in [
            "type       unknown",
            "memory     unknown: no admin",
            "body       no row",
            "note       ",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
    }
}
