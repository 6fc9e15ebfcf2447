//! Events, for a terminal.

use super::super::ago::with_ago;
use super::super::status::cause_text;
use super::super::table::{named, one_line};
use crate::control::events::{DeliveryView, EventView};

/// Columns of a thing's name.
const NAME_WIDTH: usize = 10;

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
    let letter = delivery.dead_letter.map(|id| format!("; walhook dead-letters retry {id}"));
    text.push_str(&letter.unwrap_or_default());
    text
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
            "; walhook dead-letters retry 1\n",
            "body       {\"id\":\"evt_1\",\"data\":{\"id\":1},\"score\":1.50}",
        ] {
            assert!(shown.contains(part), "{part} is not in:\n{shown}");
        }
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
