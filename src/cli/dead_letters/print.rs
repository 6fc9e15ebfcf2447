//! Dead letters for people and for programs.

use anyhow::Context;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli::table::{attempts, one_line, table};
use walhook_core::event::rfc3339;
use walhook_core::position::Position;
use walhook_state::{Gap, JobState, StoredAttempt, StoredDeadLetter};

/// One page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) letters: Vec<StoredDeadLetter>,
    /// Where the next page begins, if there is one.
    pub(super) next_after: Option<i64>,
    /// Records of letters that are counted only.
    pub(super) beyond: Vec<Gap>,
}

impl Page {
    pub(super) fn to_json(&self) -> Value {
        let letters: Vec<Value> = self.letters.iter().map(brief).collect();
        json!({ "dead_letters": letters, "next_after": self.next_after, "beyond": self.beyond })
    }

    pub(super) fn to_text(&self) -> String {
        if self.letters.is_empty() && self.beyond.is_empty() {
            return "no dead letter fits".to_owned();
        }
        let head = ["ID", "STORED", "REASON", "ENDPOINT", "ACCOUNT", "TYPE", "DETAIL"];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.letters.iter().map(|letter| {
            [
                letter.id.to_string(),
                rfc3339(letter.died_at_us),
                letter.reason.clone(),
                letter.endpoint.as_deref().unwrap_or("-").to_owned(),
                letter.event.account.to_string(),
                letter.event.event_type.to_string(),
                one_line(&letter.detail),
            ]
        }));
        let mut text = table(&rows);
        if let Some(after) = self.next_after {
            text.push_str(&format!("\nthere are more: --after {after}"));
        }
        for Gap { id, endpoint, account, removed, skipped, reason, .. } in &self.beyond {
            let of = |id: &Option<String>| match id.as_deref() {
                None | Some("") => "-".to_owned(),
                Some(id) => one_line(id),
            };
            text.push_str(&format!(
                "\nand {} more of endpoint {} of account {}, counted in gap {id} (`walhook gaps list`): {}",
                removed + skipped,
                of(endpoint),
                of(account),
                one_line(reason)
            ));
        }
        text
    }
}

/// What a list says of a dead letter. Times are RFC 3339 in UTC.
fn brief(letter: &StoredDeadLetter) -> Value {
    json!({
        "id": letter.id,
        "event_id": letter.event.id.to_string(),
        "type": &*letter.event.event_type,
        "account_id": letter.event.account.as_str(),
        "endpoint": letter.endpoint.as_deref(),
        "reason": letter.reason,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "last_status": letter.last_status,
        "died_at": rfc3339(letter.died_at_us),
        "tried_at": rfc3339(letter.tried_at_us),
    })
}

/// A job of retries, with what those that failed again failed by.
pub(super) fn retry_json(job: &JobState, failed: &[StoredDeadLetter]) -> Value {
    let mut value = json!(job);
    if let Some(object) = value.as_object_mut() {
        object.insert("errors".to_owned(), failed.iter().map(brief).collect());
    }
    value
}

/// What a retry failed by.
pub(super) fn failed_line(letter: &StoredDeadLetter) -> String {
    let StoredDeadLetter { id, endpoint, event, attempts, detail, .. } = letter;
    let endpoint = endpoint.as_deref().unwrap_or("-");
    one_line(&format!(
        "dead letter {id} (endpoint {endpoint}, event {}), after {attempts} attempts: {detail}",
        event.id
    ))
}

/// A dead letter with its last attempts, the position of its change and its request's body, each character of it.
#[derive(Debug, serde::Serialize)]
pub(super) struct Whole<'a> {
    #[serde(flatten)]
    brief: Value,
    history: &'a [StoredAttempt],
    commit_lsn: String,
    change_lsn: String,
    body: Box<RawValue>,
}

pub(super) fn whole(letter: &StoredDeadLetter) -> anyhow::Result<Whole<'_>> {
    let Position::Wal(position) = letter.event.position;
    let body = String::from_utf8(letter.event.body().into()).context("the body is no UTF-8")?;
    Ok(Whole {
        brief: brief(letter),
        history: &letter.history,
        commit_lsn: position.commit_lsn.to_string(),
        change_lsn: position.change_lsn.to_string(),
        body: RawValue::from_string(body).context("the body is no JSON")?,
    })
}

pub(super) fn whole_text(letter: &StoredDeadLetter) -> String {
    let Position::Wal(position) = letter.event.position;
    let rows = [
        ("id", letter.id.to_string()),
        ("event", letter.event.id.to_string()),
        ("type", letter.event.event_type.to_string()),
        ("account", letter.event.account.to_string()),
        ("endpoint", letter.endpoint.as_deref().unwrap_or("none").to_owned()),
        ("reason", letter.reason.clone()),
        ("detail", letter.detail.clone()),
        ("attempts", letter.attempts.to_string()),
        ("last status", letter.last_status.map_or_else(|| "none".into(), |s| s.to_string())),
        ("stored", rfc3339(letter.died_at_us)),
        ("last tried", rfc3339(letter.tried_at_us)),
        ("tried", attempts(&letter.history, &" ".repeat(13))),
        ("committed", rfc3339(letter.event.commit_time_us)),
        ("position", format!("{} in {}", position.change_lsn, position.commit_lsn)),
        ("body", String::from_utf8_lossy(&letter.event.body()).into_owned()),
    ];
    // The attempts stand on lines of their own, each escaped by itself.
    let value = |name: &str, value: &str| match name {
        "tried" => value.to_owned(),
        _ => one_line(value),
    };
    let rows: Vec<String> =
        rows.iter().map(|(name, text)| format!("{name:<12} {}", value(name, text))).collect();
    rows.join("\n")
}
