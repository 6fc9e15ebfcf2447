//! The rules of the configuration, checked against the catalog. Every error names the rule and the
//! fix, and all of them are told at once.

mod hint;
mod watch;

use std::collections::HashSet;

pub(super) use self::hint::list;
use self::hint::unknown_column;
use super::{Account, Columns, MessageRule, Rule, RuleError, RuleSettings, Watch, pair};
use crate::condition::{Condition, DataExpression, Misfit, SIDES, Side};
use crate::name::{is_type, is_type_pattern};
use crate::settings::{EventRule, RuleOperation};
use walhook_core::catalog::{Catalog, Generated, Table, TableName};
use walhook_core::event::{AccountId, check_id};
use walhook_core::types::Kind;

/// What becomes of an endpoint table that lacks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointTable {
    /// It is an error.
    Checked,
    /// Look-ups tell it, and go on when it is there again: for a pipeline that runs.
    LookedUp,
}

/// What the configuration is compiled to.
pub(super) struct Compiled {
    pub(super) rules: Vec<Rule>,
    pub(super) messages: Vec<MessageRule>,
    pub(super) watch: Watch,
    /// What is wrong with children of the rules' tables, which fails nothing.
    pub(super) weak: Vec<RuleError>,
}

pub(super) fn compile(
    settings: RuleSettings<'_>,
    catalog: &Catalog,
    endpoints: EndpointTable,
) -> Result<Compiled, Vec<RuleError>> {
    let mut errors = Vec::new();
    let (mut rules, mut messages, mut weak) = (Vec::new(), Vec::new(), Vec::new());
    for (index, rule) in settings.events.iter().enumerate() {
        let mut check = Check { subject: subject(index, rule), errors: &mut errors };
        check.event_type(rule);
        if rule.on.contains(&RuleOperation::Message) {
            messages.extend(check.message_rule(rule));
        } else {
            let compiled = check.rule(rule, catalog);
            weak.extend(compiled.iter().flat_map(|rule| weak_children(rule, catalog)));
            rules.extend(compiled);
        }
    }
    errors.extend(rules.iter().filter_map(|rule| pair::lossy(rule, settings, catalog)));
    messages.sort_by(|a, b| a.event_type.cmp(&b.event_type));
    let mut lacks = Vec::new();
    let mut check = Check { subject: "endpoints".to_owned(), errors: &mut lacks };
    let mut watch = check.watch(settings, catalog);
    watch.lacks = !lacks.is_empty();
    match endpoints {
        EndpointTable::Checked => errors.extend(lacks),
        EndpointTable::LookedUp => {}
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    watch.has_several_texts = pair::has_several_texts(&rules, &messages, settings, catalog);
    Ok(Compiled { rules, messages, watch, weak })
}

/// How messages name the rule that stands at `index`, counted from 0: `rule 2 (subscriber.updated)`.
#[must_use]
pub fn subject(index: usize, rule: &EventRule) -> String {
    format!("rule {} ({})", index + 1, rule.event_type)
}

/// Where an expression of the rule `reads` a row which an operation of the rule does not have: what is wrong, and the
/// fix.
pub fn missing_sides(
    rule: &EventRule,
    reads: impl Fn(Side) -> bool,
) -> impl Iterator<Item = String> {
    let all = rule.on.iter().flat_map(|operation| SIDES.map(|side| (*operation, side)));
    let missing =
        all.filter(move |(operation, side)| side.is_missing_in(*operation) && reads(*side));
    missing.map(|(operation, side)| {
        format!(
            "reads {}, which {operation} does not have; write a rule of the same type for {operation} alone",
            side.as_str()
        )
    })
}

struct Check<'a> {
    subject: String,
    errors: &'a mut Vec<RuleError>,
}

impl Check<'_> {
    fn fail(&mut self, message: impl Into<String>) {
        self.errors.push(RuleError { subject: self.subject.clone(), message: message.into() });
    }

    fn table<'c>(&mut self, name: &str, catalog: &'c Catalog) -> Option<&'c Table> {
        if let Err(error) = name.parse::<TableName>() {
            self.fail(error.to_string());
            return None;
        }
        let table = catalog.find(name);
        if table.is_none() {
            self.fail(format!(
                "there is no table {name}, or our role may not see its schema; correct the name"
            ));
        }
        table
    }

    fn column(&mut self, key: &str, column: &str, table: &Table) {
        if table.column(column).is_none() {
            self.fail(format!("{key}: {}", unknown_column(column, table)));
        }
    }

    /// A column that changes have to carry.
    fn published_column(&mut self, key: &str, column: &str, table: &Table) {
        self.column(key, column, table);
        let Some(found) = table.column(column) else { return };
        if let Some(why) = withheld(found.generated) {
            self.fail(format!("{key}: the column {column} of {table} is generated, {why}"));
        } else if found.is_left_out {
            self.fail(format!(
                "{key}: the publication's column list leaves out {column} of {table}; publish the \
                 table without a list, or with this column in it"
            ));
        }
    }

    fn event_type(&mut self, rule: &EventRule) {
        let of_row = rule.type_column.is_some();
        if of_row && !is_type_pattern(&rule.event_type) {
            self.fail("type is not a pattern, which type_column needs: order.*");
        } else if !of_row && !is_type(&rule.event_type) {
            self.fail(
                "type is not valid; write letters, digits and the characters . _ - : /, at most \
                 128 of them: subscriber.updated",
            );
        }
    }

    fn account(&mut self, rule: &EventRule) -> Option<Account> {
        match (&rule.account, &rule.account_value) {
            (Some(name), None) => Some(Account::Named(name.clone())),
            (None, Some(value)) => match check_id(value) {
                Ok(()) => Some(Account::Fixed(AccountId::new(value.as_str()))),
                Err(why) => {
                    self.fail(format!("account_value {why}"));
                    None
                }
            },
            (Some(_), Some(_)) | (None, None) => {
                self.fail("give either account or account_value");
                None
            }
        }
    }

    /// `None` when there was an error.
    fn message_rule(&mut self, rule: &EventRule) -> Option<MessageRule> {
        let account = self.account(rule);
        if rule.on.len() > 1 || rule.table.is_some() {
            self.fail("message stands beside rows; write a rule for messages alone");
        }
        let Some(prefix) = &rule.prefix else {
            self.fail("prefix is missing; give the one that the messages are written with");
            return None;
        };
        Some(MessageRule {
            label: self.subject.clone(),
            event_type: rule.event_type.as_str().into(),
            prefix: prefix.clone(),
            account: account?,
            max_bytes: max_bytes(rule),
        })
    }

    /// `None` when there was an error.
    fn rule(&mut self, rule: &EventRule, catalog: &Catalog) -> Option<Rule> {
        let before = self.errors.len();
        if rule.on.is_empty() {
            self.fail("on is empty; name at least one of insert, update, delete and truncate");
        }
        let condition = self.condition(rule);
        let data = self.data(rule);
        let account = self.account(rule);
        let Some(table) = &rule.table else {
            self.fail("table is missing; name the table whose changes make the events");
            return None;
        };
        let table = self.table(table, catalog)?;
        if table.is_view {
            self.fail(format!("{table} is a view, which has no changes; name the table behind it"));
            return None;
        }
        if let Some(column) = account.as_ref().and_then(Account::name) {
            self.published_column("account", column, table);
            if rule.on.contains(&RuleOperation::Truncate) {
                self.fail(
                    "account names a column, which truncate does not have; give account_value",
                );
            }
        }
        let columns = self.columns(rule, table);
        if let Some(condition) = &condition {
            self.read_columns("when", |side| condition.columns(side), table);
            let misfit = condition.misfits(|column| kind(column, table, catalog)).next();
            self.misfit("when", misfit);
        }
        if let Some(data) = &data {
            self.read_columns("data", |side| data.columns(side), table);
            let misfit = data.misfits(|column| kind(column, table, catalog)).next();
            self.misfit("data", misfit);
        }
        if let Some(column) = &rule.type_column {
            self.published_column("type_column", column, table);
        }
        if let Some(column) = &rule.data_column {
            self.published_column("data_column", column, table);
            if kind(column, table, catalog).is_some_and(|kind| !holds_json(&kind)) {
                self.fail(format!(
                    "data_column: {column} of {table} holds no JSON; name a json, jsonb or text column"
                ));
            }
        }
        let compiled = Rule {
            label: self.subject.clone(),
            event_type: rule.event_type.as_str().into(),
            table: table.oid,
            on: rule.on.clone(),
            account: account?,
            condition,
            columns,
            rename: rule.rename.clone().into_iter().collect(),
            type_column: rule.type_column.clone(),
            data,
            data_column: rule.data_column.clone(),
            max_bytes: max_bytes(rule),
        };
        // The rows of a partitioned table are logged by the identities of its partitions.
        for table in std::iter::once(table).chain(catalog.leaves(table.oid)) {
            let so_far = self.errors.len();
            self.identity(&compiled, table);
            if self.errors.len() > so_far {
                break;
            }
        }
        (self.errors.len() == before).then_some(compiled)
    }

    fn columns(&mut self, rule: &EventRule, table: &Table) -> Columns {
        let all = rule.columns.iter().any(|column| column == "*");
        let sends_columns = rule.on != [RuleOperation::Truncate]
            && rule.data_column.is_none()
            && rule.data.is_none();
        if rule.columns.is_empty() && sends_columns {
            self.fail("columns is empty; name the columns to send, or [\"*\"] for all");
        }
        if all && rule.columns.len() > 1 {
            self.fail("columns holds \"*\" beside others; write [\"*\"] alone, or names only");
        }
        let selected: Vec<String> = match all {
            true => {
                let published = table
                    .columns
                    .iter()
                    .filter(|column| !column.is_withheld() && !column.is_left_out);
                published.map(|column| column.name.clone()).collect()
            }
            false => rule.columns.clone(),
        };
        let mut seen = HashSet::new();
        for column in &selected {
            self.published_column("columns", column, table);
            if !seen.insert(column) {
                self.fail(format!("columns names {column} twice; remove one of them"));
            }
        }
        for (column, name) in &rule.rename {
            if !seen.contains(column) {
                self.fail(format!("rename names {column}, which columns does not; add it there"));
            }
            if name.is_empty() {
                self.fail(format!("rename gives {column} an empty name"));
            }
        }
        let mut names = HashSet::new();
        for column in seen {
            let name = rule.rename.get(column).unwrap_or(column);
            if !names.insert(name) {
                self.fail(format!("two columns are sent as {name:?}; rename one of them"));
            }
        }
        if all { Columns::All(selected.into_iter().collect()) } else { Columns::Named(selected) }
    }

    fn condition(&mut self, rule: &EventRule) -> Option<Condition> {
        let condition = match Condition::compile(rule.when.as_ref()?) {
            Ok(condition) => condition,
            Err(error) => {
                self.fail(format!("when: {error}"));
                return None;
            }
        };
        self.sides("when", rule, |side| !condition.columns(side).is_empty());
        Some(condition)
    }

    fn data(&mut self, rule: &EventRule) -> Option<DataExpression> {
        let data = match DataExpression::compile(rule.data.as_ref()?) {
            Ok(data) => data,
            Err(error) => {
                self.fail(format!("data: {error}"));
                return None;
            }
        };
        self.sides("data", rule, |side| !data.columns(side).is_empty());
        if data.reads_row() && rule.on.contains(&RuleOperation::Truncate) {
            self.fail("data reads row, which truncate does not have; write a rule for it alone");
        }
        Some(data)
    }

    /// Refuses an expression that reads a row which an operation of the rule does not have.
    fn sides(&mut self, key: &str, rule: &EventRule, reads: impl Fn(Side) -> bool) {
        for why in missing_sides(rule, reads) {
            self.fail(format!("{key} {why}"));
        }
    }

    fn read_columns<'c>(
        &mut self,
        key: &str,
        columns: impl Fn(Side) -> &'c [String],
        table: &Table,
    ) {
        for column in SIDES.into_iter().flat_map(columns) {
            self.published_column(key, column, table);
        }
    }

    fn misfit(&mut self, key: &str, misfit: Option<Misfit<'_>>) {
        if let Some(Misfit { why, .. }) = misfit {
            self.fail(format!("{key}: {why}"));
        }
    }

    /// Refuses a rule that reads old values which the WAL will never carry.
    fn identity(&mut self, rule: &Rule, table: &Table) {
        for operation in [RuleOperation::Update, RuleOperation::Delete] {
            if !rule.on.contains(&operation) {
                continue;
            }
            if table.identity_columns.is_empty() {
                self.fail(format!(
                    "{table} has no replica identity, so that PostgreSQL refuses to {} its rows \
                     once it is published; give it a primary key that is not deferrable, or ALTER TABLE {table} REPLICA \
                     IDENTITY FULL",
                    operation
                ));
                return;
            }
            let mut missing = needs_old(rule, operation);
            missing.retain(|column| table.column(column).is_some() && !table.logs_old(column));
            if !missing.is_empty() {
                self.fail(format!(
                    "on {} it needs the old value of {}, and the replica identity of {table} logs \
                     only {}; ALTER TABLE {table} REPLICA IDENTITY FULL",
                    operation,
                    list(&missing),
                    list(&table.identity_columns),
                ));
            }
        }
    }
}

/// Why changes do not carry a generated column, and the fix.
fn withheld(generated: Generated) -> Option<&'static str> {
    match generated {
        Generated::No | Generated::Published => None,
        Generated::Unpublished => Some(
            "and the publication does not publish it; ALTER PUBLICATION ... SET \
             (publish_generated_columns = stored), or name it in the publication's column list",
        ),
        Generated::Unpublishable => Some(
            "and PostgreSQL does not publish generated columns before version 18; use the columns it is \
             made from",
        ),
        Generated::Virtual => Some(
            "and PostgreSQL does not publish generated columns that are virtual; use the columns it is \
             made from, or make it STORED",
        ),
    }
}

/// The children of the rule's table whose replica identity does not fit the rule.
fn weak_children(rule: &Rule, catalog: &Catalog) -> Vec<RuleError> {
    let mut errors = Vec::new();
    let mut check = Check { subject: rule.label.clone(), errors: &mut errors };
    catalog.children(rule.table).into_iter().for_each(|child| check.identity(rule, child));
    errors
}

/// The columns whose old values an event of `operation` cannot do without.
pub(super) fn needs_old(rule: &Rule, operation: RuleOperation) -> Vec<&str> {
    let read = rule.reads_old();
    let mut columns: Vec<&str> = match operation {
        RuleOperation::Insert | RuleOperation::Truncate | RuleOperation::Message => Vec::new(),
        RuleOperation::Update => read.collect(),
        RuleOperation::Delete => rule.needs_current().chain(read).collect(),
    };
    let mut seen = HashSet::new();
    columns.retain(|column| seen.insert(*column));
    columns
}

/// Whether a column of this kind may be a rule's `data_column`.
pub(super) fn holds_json(kind: &Kind) -> bool {
    matches!(kind, Kind::Json | Kind::Text)
}

fn kind(column: &str, table: &Table, catalog: &Catalog) -> Option<Kind> {
    catalog.types.kind(table.column(column)?.type_oid)
}

fn max_bytes(rule: &EventRule) -> usize {
    usize::try_from(rule.max_bytes.0).unwrap_or(usize::MAX)
}
