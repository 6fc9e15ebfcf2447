//! A logical message → items.
//!
//! Content that is JSON becomes `data` as it is; other text becomes a JSON string, and bytes that are
//! no UTF-8 become one in base64.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::build::bound_row;
use super::{Account, MessageRule};
use crate::turns::Foreseen;
use walhook_core::event::{
    AccountId, Event, Item, Operation, RowKeys, Unroutable, UnroutableReason, check_id,
    put_json_text,
};
use walhook_core::position::{EventId, Position};
use walhook_decode::change::{LogicalMessage, MessageContent};

/// Appends what the message makes by the rules, which are sorted by type.
pub(super) fn build(
    rules: &[MessageRule],
    system_identifier: u64,
    message: &LogicalMessage<'_>,
    scratch: &mut BytesMut,
    out: &mut Vec<Item>,
) {
    let mut matching = rules.iter().filter(|rule| rule.prefix == message.prefix).peekable();
    if matching.peek().is_none() {
        return;
    }
    let content = Content::of_message(message.content);
    let mut decided: Option<&Arc<str>> = None;
    for rule in matching {
        // Of several rules of one type the first wins.
        if decided.replace(&rule.event_type) == Some(&rule.event_type) {
            continue;
        }
        let mut failure = content.too_large().map(|why| (UnroutableReason::TooLarge, why));
        let account = match &rule.account {
            Account::Fixed(account) => Ok(account.clone()),
            Account::Named(key) => content.account(key),
        };
        let account = account.unwrap_or_else(|detail| {
            failure.get_or_insert((UnroutableReason::Account, detail));
            AccountId::new("")
        });
        scratch.clear();
        content.put(scratch);
        if let Some(detail) = bound_row(scratch, rule.max_bytes) {
            failure.get_or_insert((UnroutableReason::TooLarge, detail));
        }
        let row = Bytes::copy_from_slice(scratch);
        let event = event(rule, system_identifier, message, account, row);
        out.push(match failure {
            None => Item::Event(event),
            Some((reason, detail)) => {
                let detail = format!("{}: {detail}", rule.label);
                Item::Unroutable(Unroutable { event, reason, detail })
            }
        });
    }
}

/// Foresees the events that a message with this prefix and content may make.
pub(super) fn foresee(
    rules: &[MessageRule],
    prefix: &str,
    content: MessageContent<'_>,
    foreseen: &mut Foreseen,
) {
    let mut matching = rules.iter().filter(|rule| rule.prefix == prefix).peekable();
    if matching.peek().is_none() {
        return;
    }
    let content = Content::of_message(content);
    for rule in matching {
        match &rule.account {
            Account::Fixed(account) => foreseen.add_account(account),
            Account::Named(key) => {
                // Without one the message is unroutable, and nothing waits for it.
                if let Ok(account) = content.account(key) {
                    foreseen.add_account(&account);
                }
            }
        }
    }
}

fn event(
    rule: &MessageRule,
    system_identifier: u64,
    message: &LogicalMessage<'_>,
    account: AccountId,
    row: Bytes,
) -> Arc<Event> {
    let position = Position::Wal(message.position);
    let commit_time_us = message.transaction.commit_time_us;
    Arc::new(Event {
        id: EventId::derive(system_identifier, &position, &rule.event_type, commit_time_us),
        position,
        event_type: Arc::clone(&rule.event_type),
        account,
        operation: Operation::Message,
        commit_time_us,
        keys: RowKeys::new(),
        row,
    })
}

/// Finds the value under one key of an object, the last of several, and keeps nothing else: an object of
/// a large message has millions of keys.
struct Member<'k>(&'k str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, object: D) -> Result<Self::Value, D::Error> {
        object.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = members.next_key::<Cow<'de, str>>()? {
            if key == self.0 {
                found = Some(members.next_value()?);
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// What a message says.
#[derive(Debug, Clone, Copy)]
enum Content<'a> {
    Json(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
    NotRead { bytes: u64 },
}

impl<'a> Content<'a> {
    fn of_message(content: MessageContent<'a>) -> Self {
        match content {
            MessageContent::Read(bytes) => Self::of(bytes),
            MessageContent::TooLarge { bytes } => Self::NotRead { bytes },
        }
    }

    fn of(bytes: &'a [u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Err(_) => Self::Bytes(bytes),
            Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => Self::Json(text.trim()),
            Ok(text) => Self::Text(text),
        }
    }

    fn put(self, out: &mut BytesMut) {
        out.put_slice(b"\"data\":");
        match self {
            Self::Json(text) => out.put_slice(text.as_bytes()),
            Self::Text(text) => put_json_text(out, text),
            Self::Bytes(bytes) => put_json_text(out, &STANDARD.encode(bytes)),
            Self::NotRead { .. } => out.put_slice(b"null"),
        }
    }

    fn too_large(self) -> Option<String> {
        let Self::NotRead { bytes } = self else { return None };
        Some(format!(
            "the message takes {bytes} bytes in the stream, more than a quarter of memory.limit; it \
             was not read"
        ))
    }

    /// The account under `key`, or why there is none.
    fn account(self, key: &str) -> Result<AccountId, String> {
        let Self::Json(text) = self else {
            return Err("the message's content is not JSON, so it names no account".to_owned());
        };
        let value = Member(key)
            .deserialize(&mut serde_json::Deserializer::from_str(text))
            .map_err(|_| "the message's content is not a JSON object".to_owned())?;
        let value = value.ok_or_else(|| format!("the message's content has no key {key}"))?.get();
        let account = match value.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(value)
                .map_err(|_| format!("the text under {key} cannot be read"))?,
            Some(b'-' | b'0'..=b'9') => value.to_owned(),
            _ => return Err(format!("the account under {key} is neither a string nor a number")),
        };
        check_id(&account).map_err(|why| format!("the account under {key} {why}"))?;
        Ok(AccountId::new(account))
    }
}
