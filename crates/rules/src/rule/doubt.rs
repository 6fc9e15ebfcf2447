//! What of the rules surely does not mean what it says. It can be carried out, so it is no error.

use super::compile::list;
use super::{RuleError, RuleSettings, subject};
use crate::condition::{Condition, DataExpression};
use crate::settings::{EventRule, RuleOperation};
use walhook_core::catalog::{Catalog, Table};
use walhook_core::types::oid;

/// A rule's expressions, as far as there are some that can be compiled: `when` and `data`.
fn expressions(rule: &EventRule) -> (Option<Condition>, Option<DataExpression>) {
    let condition = rule.when.as_deref().and_then(|text| Condition::compile(text).ok());
    (condition, rule.data.as_deref().and_then(|text| DataExpression::compile(text).ok()))
}

/// The rules with a pattern that looks for a backslash where a class was meant, which silently never matches; and
/// what to write instead. What cannot be compiled is none of them: [`Rules::compile`](super::Rules::compile) tells it.
#[must_use]
pub fn doubts(settings: RuleSettings<'_>) -> Vec<RuleError> {
    let mut found = Vec::new();
    for (index, rule) in settings.events.iter().enumerate() {
        let (condition, data) = expressions(rule);
        let of_condition =
            condition.iter().flat_map(Condition::doubts).map(|doubt| ("when", doubt));
        let of_data = data.iter().flat_map(DataExpression::doubts).map(|doubt| ("data", doubt));
        found.extend(of_condition.chain(of_data).map(|(key, doubt)| RuleError {
            subject: subject(index, rule),
            message: format!("{key}: {doubt}"),
        }));
    }
    found
}

/// A column of a rule's table that is compared with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Which rule.
    pub subject: String,
    /// The key of the expression, and the column: `when: new.status`.
    pub place: String,
    /// The column's type, under all domains.
    pub type_oid: u32,
    /// The text.
    pub text: String,
}

/// What the rules compare columns of types with that are not built in: where the type is an enum, a text that is none
/// of its labels never matches.
#[must_use]
pub fn labels(settings: RuleSettings<'_>, catalog: &Catalog) -> Vec<Label> {
    let mut found = Vec::new();
    for (index, rule) in settings.events.iter().enumerate() {
        let Some(table) = rule.table.as_ref().and_then(|table| catalog.find(table)) else {
            continue;
        };
        let (condition, data) = expressions(rule);
        let of_condition = condition.iter().flat_map(Condition::texts).map(|read| ("when", read));
        let of_data = data.iter().flat_map(DataExpression::texts).map(|read| ("data", read));
        for (key, (side, column, text)) in of_condition.chain(of_data) {
            let Some(column) = table.column(column) else { continue };
            let type_oid = catalog.types.base(column.type_oid);
            if type_oid >= oid::FIRST_USER_DEFINED {
                let place = format!("{key}: {}.{}", side.as_str(), column.name);
                found.push(Label {
                    subject: subject(index, rule),
                    place,
                    type_oid,
                    text: text.to_owned(),
                });
            }
        }
    }
    found
}

/// The rules whose expressions fail for rows that have no value of a column: it may be null, and they never ask whether
/// it is.
#[must_use]
pub fn nullable(settings: RuleSettings<'_>, catalog: &Catalog) -> Vec<RuleError> {
    let mut found = Vec::new();
    for (index, rule) in settings.events.iter().enumerate() {
        let Some(table) = rule.table.as_ref().and_then(|table| catalog.find(table)) else {
            continue;
        };
        let (condition, data) = expressions(rule);
        let of_condition =
            condition.iter().flat_map(Condition::unguarded).map(|read| ("when", read));
        let of_data = data.iter().flat_map(DataExpression::unguarded).map(|read| ("data", read));
        for (key, (side, column)) in of_condition.chain(of_data) {
            if !table.column(column).is_some_and(|column| column.is_nullable) {
                continue;
            }
            let name = format!("{}.{column}", side.as_str());
            let fix = match key {
                "when" => format!("write {name} != null && before what reads it"),
                _ => format!("write {name} == null ? null : before what reads it"),
            };
            let message = format!(
                "{key}: {name} may be null, and then the change becomes a dead letter; {fix}, or make the column NOT NULL"
            );
            found.push(RuleError { subject: subject(index, rule), message });
        }
    }
    found
}

/// The rules for deletes that name columns which a deleted row does not have: the replica identity of the table, or of
/// one of its partitions, does not log them.
#[must_use]
pub fn unlogged(settings: RuleSettings<'_>, catalog: &Catalog) -> Vec<RuleError> {
    let of_rule = |(index, rule): (usize, &EventRule)| {
        let table = catalog
            .find(rule.table.as_deref().filter(|_| rule.on.contains(&RuleOperation::Delete))?)?;
        let tables = std::iter::once(table)
            .filter(|table| !table.is_partitioned)
            .chain(catalog.leaves(table.oid));
        // Of one without an identity nothing can be deleted, which is told elsewhere.
        let (table, missing) = tables
            .filter(|table| !table.identity_columns.is_empty())
            .map(|table| (table, sent_in_vain(rule, table)))
            .find(|(_, missing)| !missing.is_empty())?;
        let message = format!(
            "of a delete it sends no {}: the replica identity of {table} logs only {}; ALTER TABLE {table} REPLICA \
             IDENTITY FULL, or name them in a rule for other operations alone",
            list(&missing),
            list(&table.identity_columns)
        );
        Some(RuleError { subject: subject(index, rule), message })
    };
    settings.events.iter().enumerate().filter_map(of_rule).collect()
}

/// The columns that the rule names to send, and of which the table logs no old values.
fn sent_in_vain<'a>(rule: &'a EventRule, table: &Table) -> Vec<&'a str> {
    let named = rule.columns.iter().map(String::as_str);
    named.filter(|name| table.column(name).is_some() && !table.logs_old(name)).collect()
}
