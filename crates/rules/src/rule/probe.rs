//! A made-up row for one rule, to measure what the rule costs a row.

use std::sync::Arc;

use super::{RuleSettings, Rules};
use crate::settings::RuleOperation;
use walhook_core::catalog::{Catalog, Table, TableColumn};
use walhook_core::event::Item;
use walhook_core::lsn::Lsn;
use walhook_core::position::WalPosition;
use walhook_core::types::Kind;
use walhook_decode::change::{Change, Rows, Transaction};
use walhook_decode::pgoutput::{Column, Datum, OldTuple, Relation, Tuple};

/// One rule, bound to its table, with a row that fits the table's columns.
#[derive(Debug)]
pub struct Probe {
    rules: Rules,
    relation: Arc<Relation>,
    operation: RuleOperation,
    texts: Vec<String>,
    made: Vec<Item>,
}

impl Probe {
    /// The rule that stands at `index`, counted from 0, with texts of `text_bytes`. `None` where it has
    /// no rows, or does not fit the catalog.
    #[must_use]
    pub fn new(
        settings: RuleSettings<'_>,
        index: usize,
        catalog: &Catalog,
        text_bytes: usize,
    ) -> Option<Self> {
        let events = settings.events.get(index..=index)?;
        let rule = events.first()?;
        let operation = *rule.on.iter().find(|operation| operation.has_row())?;
        let table = catalog.find(rule.table.as_deref()?)?;
        let mut rules = Rules::compile(RuleSettings { events, ..settings }, catalog, 0).ok()?;
        let relation = Arc::new(relation(table));
        rules.handle_relation(&relation).ok()?;
        let kind = |column: &Column| catalog.types.kind(column.type_oid).unwrap_or(Kind::Text);
        let texts = relation.columns.iter().map(|column| text(&kind(column), text_bytes)).collect();
        Some(Self { rules, relation, operation, texts, made: Vec::new() })
    }

    /// Handles the row once. Returns whether it made anything: a `when` that does not hold for it spares
    /// the rest of the work.
    pub fn run(&mut self) -> bool {
        let tuple = || Tuple(self.texts.iter().map(|text| Datum::Text(text)).collect());
        let rows = match self.operation {
            RuleOperation::Update => {
                Rows::Update { old: Some(OldTuple::Full(tuple())), new: tuple() }
            }
            RuleOperation::Delete => Rows::Delete { old: OldTuple::Full(tuple()) },
            RuleOperation::Insert | RuleOperation::Truncate | RuleOperation::Message => {
                Rows::Insert { new: tuple() }
            }
        };
        let (commit_lsn, change_lsn) = (Lsn(2), Lsn(1));
        let change = Change {
            transaction: Transaction { commit_lsn, commit_time_us: 0, xid: 1 },
            position: WalPosition { commit_lsn, change_lsn, relation: self.relation.oid, n: 0 },
            relation: Arc::clone(&self.relation),
            rows,
        };
        self.made.clear();
        self.rules.handle_change(&change, &mut self.made);
        self.made.iter().any(|item| item.event_type().is_some())
    }
}

/// As the stream would describe the table.
fn relation(table: &Table) -> Relation {
    let is_sent = |column: &&TableColumn| !column.is_withheld() && !column.is_left_out;
    let column = |column: &TableColumn| Column {
        key: table.logs_old(&column.name),
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: -1,
    };
    Relation {
        oid: table.oid,
        schema: table.schema.clone(),
        name: table.name.clone(),
        identity: table.identity,
        columns: table.columns.iter().filter(is_sent).map(column).collect(),
    }
}

/// A value of the kind as PostgreSQL prints it; texts and json take about `bytes`.
fn text(kind: &Kind, bytes: usize) -> String {
    let filled = || "person.1@example.com ".chars().cycle().take(bytes).collect::<String>();
    match kind {
        Kind::Bool => "t".to_owned(),
        Kind::Integer | Kind::Bigint => "1234567".to_owned(),
        Kind::Float | Kind::Numeric => "1234.5".to_owned(),
        Kind::Json => format!("{{\"text\": \"{}\"}}", filled()),
        Kind::Date => "2026-11-23".to_owned(),
        Kind::Timestamp => "2026-11-23 17:46:00.5".to_owned(),
        Kind::TimestampTz => "2026-11-23 17:46:00.5+00".to_owned(),
        Kind::Bytea => "\\x00ff".to_owned(),
        Kind::Text => filled(),
        Kind::Array { .. } => "{}".to_owned(),
    }
}
