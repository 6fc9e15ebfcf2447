//! What the configuration says about events: the rules, and how values are written.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::pattern_covers;
use walhook_core::endpoint::is_pattern;
use walhook_core::size::ByteSize;

/// What a rule listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleOperation {
    /// INSERT and COPY.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// `pg_logical_emit_message`.
    Message,
}

impl RuleOperation {
    /// The word in the configuration, which is also that of the publication's `publish` option.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Message => "message",
        }
    }

    /// Whether it is about one row.
    #[must_use]
    pub const fn has_row(self) -> bool {
        matches!(self, Self::Insert | Self::Update | Self::Delete)
    }
}

impl fmt::Display for RuleOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `[[events]]`: one rule.
///
/// Invariant, after validation: `table` is there or `on` is `["message"]` and `prefix` is; one of
/// `account` and `account_value` is there.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EventRule {
    /// The event's type, such as `subscriber.updated`; with `type_column` a pattern, `order.*`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// `schema.name` of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The operations that make events.
    pub on: Vec<RuleOperation>,
    /// The column that holds the account; of a message the key in its content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The account itself, where no column holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account_value: Option<String>,
    /// A CEL condition over `old`, `new` and `operation`; left out, every change matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// The columns to send; `["*"]` for all, also those that a migration adds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Column → name in the body.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// A CEL expression over `old`, `new`, `operation` and `row` that builds `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The column that holds the event's type, which `type` then bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_column: Option<String>,
    /// The column whose JSON becomes `data`, instead of `columns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_column: Option<String>,
    /// The prefix of the messages that make events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The most that `data`, `previous` and `unchanged` of an event take together.
    #[serde(default = "max_bytes")]
    pub max_bytes: ByteSize,
}

impl EventRule {
    /// Whether it makes events of a type that this pattern of an endpoint takes, as far as the rule alone says.
    #[must_use]
    pub fn makes(&self, pattern: &str) -> bool {
        // What an endpoint's row leaves open is whole words: `order*` is neither a type nor a pattern.
        if pattern.contains('*') && !is_pattern(pattern) {
            return false;
        }
        let of_rows = self.type_column.is_some() && pattern_covers(&self.event_type, pattern);
        pattern == self.event_type || pattern_covers(pattern, &self.event_type) || of_rows
    }
}

fn max_bytes() -> ByteSize {
    ByteSize(1 << 20)
}

/// `[payload]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Payload {
    /// How a `bigint` is written.
    pub bigint: Bigint,
}

/// How a `bigint` is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bigint {
    /// As a JSON number, digits exact.
    #[default]
    Number,
    /// As a string, for receivers whose numbers are doubles.
    String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_makes_what_an_endpoint_takes_and_nothing_for_half_a_word() {
        let rule = |more: &str| -> EventRule {
            let rule = format!("on = ['insert']\ntable = 't'\naccount = 'account_id'\n{more}");
            toml::from_str(&rule).unwrap()
        };
        let fixed = rule("type = 'subscriber.created'");
        let of_rows = rule("type = 'subscriber.*'\ntype_column = 'kind'");
        let any = rule("type = '*'\ntype_column = 'kind'");
        for (pattern, makes) in [
            ("subscriber.created", [true, true, true]),
            ("subscriber.*", [true, true, true]),
            ("*", [true, true, true]),
            ("subscriber.paid", [false, true, true]),
            ("order.*", [false, false, true]),
            // What is routed agrees: see `walhook_core::endpoint::wants`.
            ("subscriber*", [false, false, false]),
            ("subscriber.cre*", [false, false, false]),
        ] {
            let told = [&fixed, &of_rows, &any].map(|rule| rule.makes(pattern));
            assert_eq!(told, makes, "{pattern}");
            let wanted = [pattern.to_owned()];
            let is_routed = walhook_core::endpoint::wants(&wanted, "subscriber.created");
            assert!(told[0] == is_routed, "{pattern}");
        }
    }
}
