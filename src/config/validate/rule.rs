//! Rules: which keys go together, and which rule leaves another nothing to match.

use std::collections::HashSet;

use super::{Problem, problem, table};
use walhook_core::catalog::TableName;
use walhook_core::event::check_id;
use walhook_core::size::ByteSize;
use walhook_rules::condition::{Condition, DataExpression};
use walhook_rules::name::{is_type, is_type_pattern};
use walhook_rules::rule::missing_sides;
use walhook_rules::settings::{EventRule, RuleOperation};

/// Less would leave no room for an event worth sending.
const LEAST_MAX_BYTES: ByteSize = ByteSize(1 << 10);

/// Those of our own tables that change rarely, and that somebody may want to hear of.
const SETTLED: [&str; 2] = ["dead_letters", "gaps"];

/// So that the head of a message that is too large to be read surely holds it.
const MAX_PREFIX_BYTES: usize = 256;

pub(super) fn rules(rules: &[EventRule], memory_limit: ByteSize) -> Result<(), Problem> {
    for (n, rule) in rules.iter().enumerate() {
        let key = |key: &str| format!("events[{n}].{key}");
        one_rule(rule, &key)?;
        if rule.max_bytes.0 < LEAST_MAX_BYTES.0 || rule.max_bytes.0 > memory_limit.0 {
            let text = format!("must be {LEAST_MAX_BYTES} to memory.limit, {memory_limit}");
            return problem(&key("max_bytes"), text);
        }
        if rules.iter().take(n).any(|earlier| shadows(earlier, rule)) {
            let text = format!(
                "an earlier rule for {} takes every change that this one matches; remove one or narrow its `when`",
                rule.event_type
            );
            return problem(&key("type"), text);
        }
    }
    Ok(())
}

/// Refuses rules for what walhook itself writes as it delivers: an event of that makes the next one, for ever.
pub(super) fn own_tables(rules: &[EventRule], schema: &str) -> Result<(), Problem> {
    let own = walhook_state::tables();
    for (n, rule) in rules.iter().enumerate() {
        let table = rule.table.as_deref().and_then(|table| table.parse::<TableName>().ok());
        let Some(table) = table.filter(|table| table.schema == schema) else { continue };
        if own.contains(&table.name.as_str()) && !SETTLED.contains(&table.name.as_str()) {
            let text = format!(
                "{table} is written by walhook as it delivers, so each event would make the next one, for ever; of \
                 its own tables a rule may name {}",
                SETTLED.join(" and ")
            );
            return problem(&format!("events[{n}].table"), text);
        }
    }
    Ok(())
}

/// Of several rules of one type that match a change, the first wins.
fn shadows(earlier: &EventRule, rule: &EventRule) -> bool {
    earlier.event_type == rule.event_type
        && earlier.table == rule.table
        && earlier.prefix == rule.prefix
        && earlier.when.as_ref().is_none_or(|when| rule.when.as_ref() == Some(when))
        && rule.on.iter().all(|on| earlier.on.contains(on))
}

type Key<'a> = &'a dyn Fn(&str) -> String;

fn one_rule(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    if rule.type_column.is_some() {
        if !is_type_pattern(&rule.event_type) {
            let text = "bounds what `type_column` may hold, so it ends in .*, such as order.*; or it \
                        is * alone";
            return problem(&key("type"), text);
        }
    } else if !is_type(&rule.event_type) {
        if is_type_pattern(&rule.event_type) {
            let text = "is a pattern; give the type itself, or the column that holds it as \
                        `type_column`";
            return problem(&key("type"), text);
        }
        let rule = "1 to 128 letters, digits and the characters . _ - : /";
        return problem(
            &key("type"),
            format!("an event type has {rule}, such as subscriber.updated"),
        );
    }
    if rule.on.is_empty() {
        let names = "insert, update, delete, truncate, message";
        return problem(&key("on"), format!("is empty; name at least one of {names}"));
    }
    account(rule, key)?;
    if rule.on.contains(&RuleOperation::Message) {
        return message(rule, key);
    }
    if rule.prefix.is_some() {
        let text = "is for messages; remove it, or write on = [\"message\"] and no `table`";
        return problem(&key("prefix"), text);
    }
    let Some(name) = &rule.table else {
        let text = "is missing; every rule needs it but one with on = [\"message\"]";
        return problem(&key("table"), text);
    };
    table(&key("table"), name)?;
    if rule.when.as_ref().is_some_and(|when| when.trim().is_empty()) {
        return problem(&key("when"), "is empty; leave it out to match every change");
    }
    if let Some(text) = &rule.when {
        let of_rule = |why| problem(&key("when"), format!("rule {}: {why}", rule.event_type));
        match Condition::compile(text) {
            Err(error) => return of_rule(error.to_string()),
            Ok(when) => missing_sides(rule, |side| !when.columns(side).is_empty())
                .next()
                .map_or(Ok(()), of_rule)?,
        }
    }
    no_row(rule, key)?;
    data(rule, key)?;
    columns(rule, key)
}

fn data(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    let Some(text) = &rule.data else { return Ok(()) };
    if rule.data_column.is_some() {
        let text = "stands beside `data_column`, which is all that is sent; remove one";
        return problem(&key("data"), text);
    }
    match DataExpression::compile(text) {
        Err(error) => problem(&key("data"), format!("rule {}: {error}", rule.event_type)),
        Ok(data) if data.reads_row() && rule.columns.is_empty() => {
            problem(&key("data"), "reads row, for which `columns` names no columns; add it")
        }
        Ok(data) if data.reads_row() && rule.on.contains(&RuleOperation::Truncate) => {
            let text = "reads row, which truncate does not have; write a rule for truncate alone";
            problem(&key("data"), text)
        }
        Ok(data) => {
            let of_rule = |why| problem(&key("data"), format!("rule {}: {why}", rule.event_type));
            missing_sides(rule, |side| !data.columns(side).is_empty())
                .next()
                .map_or(Ok(()), of_rule)
        }
    }
}

/// Keys that name columns, where a truncate has none.
fn no_row(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    if !rule.on.contains(&RuleOperation::Truncate) {
        return Ok(());
    }
    let text = "names a column, and a truncate has no row; write a rule for truncate alone";
    for (name, column) in [("type_column", &rule.type_column), ("data_column", &rule.data_column)] {
        if column.is_some() {
            return problem(&key(name), text);
        }
    }
    Ok(())
}

fn account(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    match (&rule.account, &rule.account_value) {
        (Some(_), Some(_)) => {
            let text = "stands beside `account`; remove the one that is not meant";
            problem(&key("account_value"), text)
        }
        (None, None) => problem(
            &key("account"),
            "is missing; name the column that holds the account (of a message, the key in its \
             content), or give the account itself as `account_value`",
        ),
        (Some(name), None) if name.is_empty() => {
            problem(&key("account"), "is empty; name the column that holds the account")
        }
        (None, Some(value)) if value.is_empty() => {
            problem(&key("account_value"), "is empty; give the account that the events are for")
        }
        (Some(_), None) if rule.on.contains(&RuleOperation::Truncate) => problem(
            &key("account"),
            "names a column, and a truncate has no row; give the account as `account_value`, in a \
             rule for truncate alone if the others have their account in the row",
        ),
        (None, Some(value)) => check_id(value).or_else(|why| problem(&key("account_value"), why)),
        (Some(_), None) => Ok(()),
    }
}

fn message(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    if rule.on.iter().any(|on| *on != RuleOperation::Message) {
        let text = "holds message beside others; write a rule for messages alone";
        return problem(&key("on"), text);
    }
    for (name, is_there) in [
        ("table", rule.table.is_some()),
        ("when", rule.when.is_some()),
        ("columns", !rule.columns.is_empty()),
        ("rename", !rule.rename.is_empty()),
        ("data", rule.data.is_some()),
        ("type_column", rule.type_column.is_some()),
        ("data_column", rule.data_column.is_some()),
    ] {
        if is_there {
            let text = "is of no use to a message, which has no row; remove it";
            return problem(&key(name), text);
        }
    }
    match rule.prefix.as_deref() {
        None | Some("") => problem(
            &key("prefix"),
            "is missing; give the prefix that pg_logical_emit_message is called with",
        ),
        Some(prefix) if prefix.len() > MAX_PREFIX_BYTES => {
            problem(&key("prefix"), format!("is too long; it may have {MAX_PREFIX_BYTES} bytes"))
        }
        Some(_) => Ok(()),
    }
}

fn columns(rule: &EventRule, key: Key<'_>) -> Result<(), Problem> {
    let has_row = rule.on.iter().any(|on| on.has_row());
    if !has_row && !rule.columns.is_empty() {
        return problem(&key("columns"), "is of no use to a truncate, which has no row; remove it");
    }
    if rule.data_column.is_some() {
        for (name, is_there) in
            [("columns", !rule.columns.is_empty()), ("rename", !rule.rename.is_empty())]
        {
            if is_there {
                let text = "stands beside `data_column`, which is all that is sent; remove one";
                return problem(&key(name), text);
            }
        }
        return Ok(());
    }
    if has_row && rule.columns.is_empty() && rule.data.is_none() {
        let text = "is missing or empty; name the columns to send, or write [\"*\"]";
        return problem(&key("columns"), text);
    }
    let every = rule.columns.iter().any(|column| column == "*");
    if every && rule.columns.len() > 1 {
        return problem(&key("columns"), "holds * beside names; write one or the other");
    }
    if let Some((column, _)) = rule.rename.iter().find(|(_, name)| name.is_empty()) {
        return problem(&key("rename"), format!("gives {column} an empty name"));
    }
    let mut names = HashSet::new();
    for column in &rule.columns {
        let name = rule.rename.get(column).unwrap_or(column);
        if !names.insert(name) {
            return problem(&key("columns"), format!("two columns are sent as {name}"));
        }
    }
    let unsent = rule.rename.keys().find(|column| !every && !rule.columns.contains(column));
    match unsent {
        Some(column) => problem(&key("rename"), format!("{column} is not among `columns`")),
        None => Ok(()),
    }
}
