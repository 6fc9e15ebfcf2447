//! Rules → the column indexes of one relation.

use std::collections::HashSet;

use bytes::{Bytes, BytesMut};

use super::compile::{holds_json, needs_old};
use super::{Columns, Rule, RuleBroken, Watch};
use crate::condition::{Misfit, Side};
use crate::row::{Cell, Missing};
use walhook_core::catalog::ReplicaIdentity;
use walhook_core::catalog::Table;
use walhook_core::event::put_json_text;
use walhook_core::types::{Kind, Types, oid};
use walhook_decode::pgoutput::Relation;

/// What is to be done with the changes of one relation.
#[derive(Debug)]
pub(super) struct Binding {
    /// The partition root's OID.
    pub(super) root: u32,
    /// The primary key; empty where there is none, or not all of it is published.
    pub(super) primary_key: Vec<usize>,
    pub(super) invalidates: Option<Invalidates>,
    /// Why it cannot be told whether the rules cover the relation; then no event may be sent.
    pub(super) doubt: Option<String>,
    /// In the configuration's order.
    pub(super) rules: Vec<BoundRule>,
}

/// The types whose equal values have one text, but for the blanks of `character(n)`: `boolean`, `bytea`,
/// `"char"`, `name`, integers, `text`, `oid`, `varchar`, `date`, timestamps, `inet`, `cidr`, `macaddr`,
/// `uuid`.
///
/// Source: PostgreSQL, `pg_type.dat`.
const ONE_TEXT: [u32; 18] = [
    16,
    17,
    18,
    oid::NAME,
    oid::INT8,
    oid::INT2,
    oid::INT4,
    oid::TEXT,
    26,
    650,
    829,
    869,
    oid::BPCHAR,
    oid::VARCHAR,
    oid::DATE,
    1114,
    1184,
    oid::UUID,
];

/// A key's text as it is compared and shown: without the blanks that pad `character(n)`.
pub(super) fn key_text<'t>(
    types: &Types,
    relation: &Relation,
    column: usize,
    text: &'t str,
) -> &'t str {
    match relation.columns.get(column) {
        Some(column) if types.base(column.type_oid) == oid::BPCHAR => text.trim_end_matches(' '),
        _ => text,
    }
}

/// What a change of the relation invalidates.
#[derive(Debug)]
pub(super) enum Invalidates {
    All,
    /// The relation is the endpoint table; these columns hold id and account.
    Endpoint {
        id: usize,
        account: Option<usize>,
        /// The column that says whether it is switched on.
        enabled: Option<usize>,
        /// One account may come in two texts: to the column's type (`1.0` and `1.00`) or collation, or
        /// from the column of a rule. Then a change concerns every account that is known.
        every_account: bool,
    },
}

/// A rule whose columns are indexes.
#[derive(Debug)]
pub(super) struct BoundRule {
    /// Its place among the rules.
    pub(super) rule: usize,
    /// The column that holds the account, where one does.
    pub(super) account: Option<usize>,
    /// The column that holds the type, where one does.
    pub(super) event_type: Option<usize>,
    /// The column whose JSON is the data, where one is, instead of `fields`.
    pub(super) data: Option<BoundRead>,
    pub(super) fields: Vec<BoundField>,
    pub(super) condition: BoundReads,
    /// What the data expression reads.
    pub(super) built: BoundReads,
}

/// The columns that an expression reads, in the expression's order.
#[derive(Debug, Default)]
pub(super) struct BoundReads {
    pub(super) old: Vec<BoundRead>,
    pub(super) new: Vec<BoundRead>,
}

/// A column whose value decides something.
#[derive(Debug)]
pub(super) struct BoundRead {
    pub(super) column: usize,
    pub(super) kind: Kind,
    /// Whether the rule can judge values of the type that the column has in this relation.
    pub(super) fits: bool,
}

impl BoundRead {
    /// The cell, as far as the rule can judge it: null is null in every type.
    pub(super) fn judged<'a>(&self, cell: Cell<'a>) -> Cell<'a> {
        match cell {
            Cell::Text(_) if !self.fits => Cell::Unknown(Missing::OtherType),
            Cell::Text(_) | Cell::Null | Cell::Unknown(_) => cell,
        }
    }
}

/// A column that is sent.
#[derive(Debug)]
pub(super) struct BoundField {
    pub(super) column: usize,
    pub(super) kind: Kind,
    /// Its name in the body, as JSON text.
    pub(super) name: Bytes,
}

/// What the description of a table must have for rules to be bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Demand {
    /// Nothing: the table has all of it by now, and its changes were written before. What cannot be told of one
    /// becomes a dead letter.
    Nothing,
    /// The columns that the rules name. Where the replica identity does not log what they read of old rows, the changes
    /// that lack it become dead letters.
    Columns,
    /// That they are of types which the rules can judge, too.
    Types,
    /// All of that.
    All,
}

/// `None` when the relation concerns nobody.
pub(super) fn bind(
    rules: &[Rule],
    watch: &Watch,
    types: &Types,
    table: &Table,
    relation: &Relation,
    demand: Demand,
) -> Result<Option<Binding>, RuleBroken> {
    let index = |name: &str| relation.columns.iter().position(|column| column.name == name);
    // One more child, of many that come and go, is no reason to halt: where it logs less than a rule
    // needs, `Rules::weak` says so, and what lacks it becomes a dead letter.
    let demand = if table.is_inherited { demand.min(Demand::Types) } else { demand };
    let covers = |oid: u32| table.oid == oid || table.ancestors.contains(&oid);
    let mut bound = Vec::new();
    for (at, rule) in rules.iter().enumerate().filter(|(_, rule)| covers(rule.table)) {
        bound.push(Binder { rule, types, table, relation, demand }.bind(at)?);
    }
    let invalidates = if covers(watch.endpoint_table) {
        let account = index(&watch.account);
        let column = account.and_then(|account| relation.columns.get(account));
        let one_text = |oid: u32| ONE_TEXT.contains(&types.base(oid));
        let every_account =
            watch.has_several_texts || column.is_none_or(|column| !one_text(column.type_oid));
        let enabled = index(&watch.enabled);
        let endpoint = |id| Invalidates::Endpoint { id, account, enabled, every_account };
        index(&watch.id).map(endpoint).or(Some(Invalidates::All))
    } else {
        watch.others.iter().any(|oid| covers(*oid)).then_some(Invalidates::All)
    };
    if bound.is_empty() && invalidates.is_none() {
        return Ok(None);
    }
    let key: Option<Vec<usize>> = table.primary_key.iter().map(|name| index(name)).collect();
    Ok(Some(Binding {
        root: table.root(),
        primary_key: key.unwrap_or_default(),
        invalidates,
        doubt: None,
        rules: bound,
    }))
}

struct Binder<'a> {
    rule: &'a Rule,
    types: &'a Types,
    table: &'a Table,
    relation: &'a Relation,
    demand: Demand,
}

impl Binder<'_> {
    fn bind(&self, rule: usize) -> Result<BoundRule, RuleBroken> {
        let find = |name: Option<&str>| name.map(|name| self.index(name)).transpose();
        let account = find(self.rule.account.name())?;
        let event_type = find(self.rule.type_column.as_deref())?;
        let data =
            self.rule.data_column.as_deref().map(|name| self.data_column(name)).transpose()?;
        let fields = self.fields()?;
        let condition = self.rule.condition.as_ref();
        let condition = condition
            .map(|c| self.reads("when", |side| c.columns(side), c.misfits(|name| self.kind(name))))
            .transpose()?;
        let built = self.rule.data.as_ref();
        let built = built
            .map(|d| self.reads("data", |side| d.columns(side), d.misfits(|name| self.kind(name))))
            .transpose()?;
        let (condition, built) = (condition.unwrap_or_default(), built.unwrap_or_default());
        self.check_identity()?;
        Ok(BoundRule { rule, account, event_type, data, fields, condition, built })
    }

    fn reads<'c>(
        &self,
        key: &str,
        columns: impl Fn(Side) -> &'c [String],
        misfits: impl Iterator<Item = Misfit<'c>>,
    ) -> Result<BoundReads, RuleBroken> {
        let read =
            |side| columns(side).iter().map(|name| self.read(name)).collect::<Result<_, _>>();
        let mut reads = BoundReads { old: read(Side::Old)?, new: read(Side::New)? };
        for Misfit { side, column, why } in misfits {
            self.refuse_type(|| format!("{key}: {why}"))?;
            let of_side = if side == Side::Old { &mut reads.old } else { &mut reads.new };
            let named = columns(side).iter().zip(of_side).filter(|(name, _)| *name == column);
            named.for_each(|(_, read)| read.fits = false);
        }
        Ok(reads)
    }

    fn read(&self, name: &str) -> Result<BoundRead, RuleBroken> {
        self.typed(name).map(|(column, kind)| BoundRead { column, kind, fits: true })
    }

    fn data_column(&self, name: &str) -> Result<BoundRead, RuleBroken> {
        let mut read = self.read(name)?;
        read.fits = self.kind(name).is_none_or(|kind| holds_json(&kind));
        if !read.fits {
            self.refuse_type(|| format!("data_column: {name} holds no JSON"))?;
        }
        Ok(read)
    }

    /// What a column holds, as the relation describes it; `None` where that is not known.
    fn kind(&self, name: &str) -> Option<Kind> {
        let column = self.relation.columns.iter().find(|column| column.name == name)?;
        self.types.kind(column.type_oid)
    }

    /// Fails where the types are to fit the rules, of which one does not.
    fn refuse_type(&self, message: impl Fn() -> String) -> Result<(), RuleBroken> {
        if self.demand < Demand::Types {
            return Ok(());
        }
        Err(RuleBroken::Type {
            rule: self.rule.label.clone(),
            table: self.table.to_string(),
            message: message(),
        })
    }

    fn fields(&self) -> Result<Vec<BoundField>, RuleBroken> {
        let all = self.relation.columns.iter().map(|column| column.name.as_str());
        let selected: Vec<&str> = match &self.rule.columns {
            // What a child has beyond its parent was never asked for.
            Columns::All(known) if self.table.is_inherited => {
                all.filter(|name| known.contains(*name)).collect()
            }
            Columns::All(_) => all.collect(),
            Columns::Named(names) => names.iter().map(String::as_str).collect(),
        };
        let mut names = HashSet::new();
        let mut fields = Vec::with_capacity(selected.len());
        for column in selected {
            let name = self.rule.rename.get(column).map_or(column, String::as_str);
            if !names.insert(name) {
                return Err(RuleBroken::Duplicate {
                    rule: self.rule.label.clone(),
                    table: self.table.to_string(),
                    name: name.to_owned(),
                });
            }
            let (index, kind) = self.typed(column)?;
            let mut json = BytesMut::new();
            put_json_text(&mut json, name);
            fields.push(BoundField { column: index, kind, name: json.freeze() });
        }
        Ok(fields)
    }

    /// The column's place; behind all others where there may be none, and is none.
    fn index(&self, name: &str) -> Result<usize, RuleBroken> {
        let index = self.relation.columns.iter().position(|column| column.name == name);
        let absent = (self.demand == Demand::Nothing).then_some(self.relation.columns.len());
        index.or(absent).ok_or_else(|| RuleBroken::Column {
            rule: self.rule.label.clone(),
            table: self.table.to_string(),
            column: name.to_owned(),
        })
    }

    fn typed(&self, name: &str) -> Result<(usize, Kind), RuleBroken> {
        let index = self.index(name)?;
        let described = self.relation.columns.get(index).map(|column| column.type_oid);
        let by_now = || self.table.column(name).map(|column| column.type_oid);
        let type_oid = described.or_else(by_now).unwrap_or_default();
        let kind = self.types.kind(type_oid).ok_or_else(|| RuleBroken::UnknownType {
            rule: self.rule.label.clone(),
            table: self.table.to_string(),
            column: name.to_owned(),
            type_oid,
        })?;
        Ok((index, kind))
    }

    fn check_identity(&self) -> Result<(), RuleBroken> {
        if self.demand < Demand::All || self.relation.identity == ReplicaIdentity::Full {
            return Ok(());
        }
        for name in self.rule.on.iter().flat_map(|on| needs_old(self.rule, *on)) {
            let column = self.relation.columns.get(self.index(name)?);
            if !column.is_some_and(|column| column.key) {
                return Err(RuleBroken::Identity {
                    rule: self.rule.label.clone(),
                    table: self.table.to_string(),
                    column: name.to_owned(),
                });
            }
        }
        Ok(())
    }
}
