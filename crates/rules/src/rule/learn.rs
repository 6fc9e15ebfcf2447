//! What the rules do not know of the source, and what they learn while changes stream.
//!
//! The catalog was read when the rules were compiled; the stream is older or younger than that. A
//! type may have been made since, or dropped; and a table that is published under its own name may be
//! a partition or child of one that rules name since, or no longer, or dropped.

use std::collections::BTreeSet;

use super::bind::{self, Binding, Demand};
use super::{RuleBroken, Rules};
use walhook_core::catalog::Table;
use walhook_decode::pgoutput::Relation;

/// What the rules have to be told before a table's changes can be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// What type a column has, or whether a child has it from its parent: read the catalog, and where
    /// that does not know the type, see [`Rules::handle_type`].
    Type,
    /// Whether the table is a partition or a child of one that rules name: ask the catalog.
    Standing,
    /// Whether the table has all that the rules need by now, a column, its type or old values, which it had not when it
    /// was described: read the catalog, and if the rules fit it, say so with [`Rules::handle_fitting`].
    Fit,
}

impl Rules {
    /// What has to be known before the changes of `relation` are handled, beyond what is.
    #[must_use]
    pub fn lacks(&self, relation: &Relation) -> Option<Lacks> {
        if self.watch.lacks {
            // It may be this one, made again.
            return Some(Lacks::Type);
        }
        let known = self.table(relation).filter(|_| !self.doubtful.contains_key(&relation.oid));
        let Some(table) = known else {
            return self.may_descend(relation).then_some(Lacks::Standing);
        };
        let types = &self.catalog.types;
        if relation.columns.iter().any(|column| types.kind(column.type_oid).is_none()) {
            return Some(Lacks::Type);
        }
        let is_new = |name: &str| table.column(name).is_none();
        if table.is_inherited && relation.columns.iter().any(|column| is_new(&column.name)) {
            return Some(Lacks::Type);
        }
        match self.bind(table, relation, Demand::All) {
            Err(
                RuleBroken::Identity { .. } | RuleBroken::Column { .. } | RuleBroken::Type { .. },
            ) => Some(Lacks::Fit),
            Ok(_) if self.is_account_altered(table, relation) => Some(Lacks::Type),
            Ok(_) | Err(RuleBroken::Duplicate { .. } | RuleBroken::UnknownType { .. }) => None,
        }
    }

    /// Whether a column that holds accounts is described with another type than the catalog has for it: how
    /// accounts of events are compared with those of endpoints follows from their types.
    fn is_account_altered(&self, table: &Table, relation: &Relation) -> bool {
        let (types, watch) = (&self.catalog.types, &self.watch);
        let covers = |oid: u32| table.oid == oid || table.ancestors.contains(&oid);
        let rules = self.rules.iter().filter(|rule| covers(rule.table));
        let of_endpoints = covers(watch.endpoint_table).then_some(watch.account.as_str());
        rules.filter_map(|rule| rule.account.name()).chain(of_endpoints).any(|name| {
            let described = relation.columns.iter().find(|column| column.name == name);
            let (Some(described), Some(known)) = (described, table.column(name)) else {
                return false;
            };
            types.base(described.type_oid) != types.base(known.type_oid)
        })
    }

    /// Whether a rule that covers the table's changes would not have them if they came as those of `root`.
    #[must_use]
    pub fn passes_by(&self, root: u32, relation: &Relation) -> bool {
        let Some(table) = self.table(relation) else { return false };
        let above = self.catalog.table(root).map_or(&[][..], |root| &root.ancestors);
        self.rules.iter().map(|rule| rule.table).any(|named| {
            let covers = named == table.oid || table.ancestors.contains(&named);
            covers && named != root && !above.contains(&named)
        })
    }

    /// The tables that rules or endpoints name, and what lies between them and others: a partition or
    /// child is one of these.
    #[must_use]
    pub fn named(&self) -> Vec<u32> {
        let rules = self.rules.iter().map(|rule| rule.table);
        let watched =
            [self.watch.endpoint_table].into_iter().chain(self.watch.others.iter().copied());
        rules.chain(watched).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether an unknown table may be a partition or child of one that is named: it has the columns
    /// which that one's rules need. Of many tables most have not, and nobody is asked.
    fn may_descend(&self, relation: &Relation) -> bool {
        let has = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let watch = &self.watch;
        if has(&watch.id) && has(&watch.account) {
            return true;
        }
        let mut watched = watch.others.iter().filter_map(|oid| self.catalog.table(*oid));
        if watched.any(|table| table.columns.iter().all(|c| c.is_withheld() || has(&c.name))) {
            return true;
        }
        let mut rules = self.rules.iter().filter_map(|rule| self.catalog.table(rule.table));
        rules.any(|table| table.is_partitioned || self.adopted(table, relation).is_some())
    }

    /// The unknown table as a descendant of `parent`, where it has the columns for that.
    fn adopted(&self, parent: &Table, relation: &Relation) -> Option<Table> {
        let table = Table {
            oid: relation.oid,
            schema: relation.schema.clone(),
            name: relation.name.clone(),
            is_partitioned: false,
            is_inherited: !parent.is_partitioned,
            ancestors: [parent.oid].into_iter().chain(parent.ancestors.iter().copied()).collect(),
            ..parent.clone()
        };
        let bound = self.bind(&table, relation, Demand::Columns);
        (!matches!(bound, Ok(None) | Err(RuleBroken::Column { .. }))).then_some(table)
    }

    /// Takes what the stream says of a type, where the catalog does not know it.
    pub fn handle_type(&mut self, type_oid: u32, schema: &str, name: &str) {
        self.catalog.types.handle_type(type_oid, schema, name);
    }

    /// Takes note that the catalog's table has and logs what the rules need.
    pub fn handle_fitting(&mut self, table: u32) {
        self.fitting.insert(table);
    }

    /// Why it cannot be told what the table's changes were to make: it lacked a column that the rules need, and had
    /// another of its type that it has no more, so that the one may be the other's new name. A column that only came later was
    /// never written.
    pub(super) fn renamed(&self, table: &Table, relation: &Relation) -> Option<String> {
        let Err(RuleBroken::Column { column: lacking, .. }) =
            self.bind(table, relation, Demand::Columns)
        else {
            return None;
        };
        let type_oid = table.column(&lacking)?.type_oid;
        let mut columns = relation.columns.iter();
        let gone = columns.find(|c| c.type_oid == type_oid && table.column(&c.name).is_none())?;
        Some(format!(
            "{table} had no column {lacking} when the row was written, but {}, which it has no more: one may be \
             the new name of the other",
            gone.name
        ))
    }

    /// Takes over what rules that were compiled from an older catalog have learned.
    pub fn inherit(&mut self, older: &mut Self) {
        self.fitting = std::mem::take(&mut older.fitting);
        self.doubtful = std::mem::take(&mut older.doubtful);
        self.doubtful.retain(|oid, _| self.catalog.table(*oid).is_none());
        self.catalog.keep_descendants(&older.catalog);
    }

    /// Takes a table that is neither a partition, a child nor published now. Where it has all columns that
    /// the rules of a table with such need it may have been one when its rows were written: they become
    /// dead letters rather than nothing. Returns whether it is so.
    pub fn handle_doubtful(&mut self, relation: &Relation) -> bool {
        // From the roots down, for a message is to name what the rule names.
        let mut parents = self.catalog.parents();
        parents.sort_unstable_by_key(|table| (table.ancestors.len(), table.oid));
        let adopted = parents.into_iter().find_map(|parent| {
            let table = self.adopted(parent, relation)?;
            let kind = if parent.is_partitioned { "partition" } else { "child" };
            Some((format!("{table} is no {kind} now, but may have been one of {parent}"), table))
        });
        let is_doubtful = adopted.is_some();
        if let Some((doubt, table)) = adopted {
            self.doubtful.insert(relation.oid, doubt);
            self.catalog.insert(table);
        }
        is_doubtful
    }

    pub(super) fn bind(
        &self,
        table: &Table,
        relation: &Relation,
        demand: Demand,
    ) -> Result<Option<Binding>, RuleBroken> {
        bind::bind(&self.rules, &self.watch, &self.catalog.types, table, relation, demand)
    }

    /// What the catalog says of a table.
    pub(super) fn table(&self, relation: &Relation) -> Option<&Table> {
        let by_oid = self.catalog.table(relation.oid);
        by_oid.or_else(|| self.catalog.by_name(&relation.schema, &relation.name))
    }
}
