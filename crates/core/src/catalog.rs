//! What the source's catalog says about the tables that the configuration names.
//!
//! Plain data: `io::catalog` fills it. Rules are checked against it when they are compiled; while
//! changes stream, the columns are those of the RELATION messages, and from here come only what
//! these do not tell: the primary key, the partition root and the types.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::types::Types;

/// The tables that the configuration names, their partitions, and the types of the database.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    tables: BTreeMap<u32, Table>,
    /// How the types of columns are written.
    pub types: Types,
}

/// A table, partition or view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// Its schema's name.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Whether it is a view: changes never come from one.
    pub is_view: bool,
    /// Whether it is partitioned: its rows stand in its partitions.
    pub is_partitioned: bool,
    /// Whether it inherits from others, without being a partition: a row is in one of them alone.
    pub is_inherited: bool,
    /// The tables above it, partitioned ones or those that it inherits from, the nearest first; empty
    /// for most.
    pub ancestors: Vec<u32>,
    /// Its columns, in order, without dropped ones.
    pub columns: Vec<TableColumn>,
    /// The names of the primary key's columns, in the key's order; empty without one.
    pub primary_key: Vec<String>,
    /// Which kind of replica identity it has.
    pub identity: ReplicaIdentity,
    /// The names of the columns of which the replica identity logs old values. All of them for
    /// FULL; empty where it logs nothing.
    pub identity_columns: Vec<String>,
}

/// Which columns of an old row are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// `d`: the primary key.
    Default,
    /// `n`: none.
    Nothing,
    /// `f`: all.
    Full,
    /// `i`: those of an index.
    Index,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type's OID.
    pub type_oid: u32,
    /// Whether a row may have none of it.
    pub is_nullable: bool,
    /// Whether its collation takes different texts for equal ones.
    pub is_loose: bool,
    /// Whether it is a generated column, and what becomes of it in the stream.
    pub generated: Generated,
    /// Whether the publication's column list leaves it out.
    pub is_left_out: bool,
}

/// What a column is to the stream, beyond one that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    /// It is no generated column.
    No,
    /// It is stored, and the publication publishes it.
    Published,
    /// It is stored, and the publication could publish it (PostgreSQL 18 and later).
    Unpublished,
    /// It is stored, and this server publishes none.
    Unpublishable,
    /// It is computed when it is read, and never published.
    Virtual,
}

impl TableColumn {
    /// Whether it is a generated column that changes do not carry.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        match self.generated {
            Generated::No | Generated::Published => false,
            Generated::Unpublished | Generated::Unpublishable | Generated::Virtual => true,
        }
    }
}

impl Table {
    /// The OID of the partition root; the table's own where it is no partition. What inherits has keys of
    /// its own.
    #[must_use]
    pub fn root(&self) -> u32 {
        let root = self.ancestors.last().filter(|_| !self.is_inherited);
        root.copied().unwrap_or(self.oid)
    }

    /// The column with this name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&TableColumn> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether the replica identity logs the column's old value.
    #[must_use]
    pub fn logs_old(&self, column: &str) -> bool {
        self.identity_columns.iter().any(|name| name == column)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// An identifier as SQL has to write it.
fn quoted(name: &str) -> std::borrow::Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts_well = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    if starts_well && name.bytes().all(plain) {
        return name.into();
    }
    format!("\"{}\"", name.replace('"', "\"\"")).into()
}

impl Catalog {
    /// A catalog of these tables.
    #[must_use]
    pub fn new(tables: impl IntoIterator<Item = Table>, types: Types) -> Self {
        Self { tables: tables.into_iter().map(|table| (table.oid, table)).collect(), types }
    }

    /// The table with this OID.
    #[must_use]
    pub fn table(&self, oid: u32) -> Option<&Table> {
        self.tables.get(&oid)
    }

    /// Marks the columns that a publication leaves out. `lists` holds the columns of those tables that
    /// it publishes with a list; `generated` is whether it publishes the stored generated columns of
    /// the others.
    ///
    /// Source: PostgreSQL manual, "Generated Column Replication".
    pub fn leave_out(&mut self, lists: &BTreeMap<TableName, BTreeSet<String>>, generated: bool) {
        for table in self.tables.values_mut() {
            let name = TableName { schema: table.schema.clone(), name: table.name.clone() };
            let list = lists.get(&name);
            for column in &mut table.columns {
                column.is_left_out = list.is_some_and(|list| !list.contains(&column.name));
                if matches!(column.generated, Generated::Unpublished | Generated::Published) {
                    let published = list.map_or(generated, |_| !column.is_left_out);
                    column.generated =
                        if published { Generated::Published } else { Generated::Unpublished };
                }
            }
        }
    }

    /// The partitions below the table that hold rows; none where it is not partitioned.
    pub fn leaves(&self, oid: u32) -> impl Iterator<Item = &Table> {
        let below = self.tables.values().filter(move |table| table.ancestors.contains(&oid));
        below.filter(|table| !table.is_inherited && !table.is_partitioned)
    }

    /// The tables that inherit from this one, at any distance, by name.
    #[must_use]
    pub fn children(&self, oid: u32) -> Vec<&Table> {
        let below = self.tables.values().filter(|table| table.ancestors.contains(&oid));
        let mut children: Vec<&Table> = below.filter(|table| table.is_inherited).collect();
        children.sort_unstable_by_key(|table| (&table.schema, &table.name));
        children
    }

    /// The partitioned tables, and those that others inherit from.
    #[must_use]
    pub fn parents(&self) -> Vec<&Table> {
        let above: BTreeSet<u32> =
            self.tables.values().flat_map(|table| table.ancestors.iter().copied()).collect();
        let all = self.tables.values();
        all.filter(|table| table.is_partitioned || above.contains(&table.oid)).collect()
    }

    /// Adds a table that was not read from the source.
    pub fn insert(&mut self, table: Table) {
        self.tables.insert(table.oid, table);
    }

    /// Keeps what an older catalog has below the same tables: a partition or child that was detached or
    /// dropped since may have rows in the WAL from before.
    pub fn keep_descendants(&mut self, older: &Self) {
        for table in older.tables.values() {
            if table.ancestors.iter().any(|oid| self.tables.contains_key(oid)) {
                self.tables.entry(table.oid).or_insert_with(|| table.clone());
            }
        }
    }

    /// The table that the configuration names so; `None` where there is none or the name cannot be
    /// read.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Table> {
        let name: TableName = name.parse().ok()?;
        self.by_name(&name.schema, &name.name)
    }

    /// The table of this name in this schema, neither folded nor quoted.
    #[must_use]
    pub fn by_name(&self, schema: &str, name: &str) -> Option<&Table> {
        self.tables.values().find(|table| table.schema == schema && table.name == name)
    }
}

/// A table or view: its schema and its name, as the catalog has them.
///
/// Prints as SQL reads it, and reads back from that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema; `public` where the text names none.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// The text is not a table's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a table; write schema.name, with double quotes around a part that \
     holds capitals or other characters"
)]
pub struct TableNameError(String);

impl std::str::FromStr for TableName {
    type Err = TableNameError;

    /// Reads `name`, `schema.name`, `"My Schema"."Name"`.
    ///
    /// As in SQL, what is not quoted is folded to lower case; unlike SQL, a name without a schema
    /// is in `public`, whatever the session's `search_path`.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let error = || TableNameError(text.to_owned());
        let (first, rest) = identifier(text).ok_or_else(error)?;
        if rest.is_empty() {
            return Ok(Self { schema: "public".to_owned(), name: first });
        }
        let rest = rest.strip_prefix('.').ok_or_else(error)?;
        match identifier(rest) {
            Some((name, "")) => Ok(Self { schema: first, name }),
            Some(_) | None => Err(error()),
        }
    }
}

/// Takes one identifier from the start of `text`; returns it and what follows.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at_checked(end)?;
        let valid = name.chars().next().is_some_and(|c| !c.is_ascii_digit() && c != '$');
        return valid.then(|| (name.to_ascii_lowercase(), rest));
    };
    let mut name = String::new();
    let mut left = quoted;
    loop {
        let (part, after) = left.split_once('"')?;
        name.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                left = more;
            }
            None => return (!name.is_empty()).then_some((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn table_name_is_read_as_sql_reads_it_but_for_the_search_path() {
        assert_eq!("webhooks".parse(), Ok(name("public", "webhooks")));
        assert_eq!("App.Webhooks".parse(), Ok(name("app", "webhooks")));
        assert_eq!("app.\"Web.hooks\"".parse(), Ok(name("app", "Web.hooks")));
        assert_eq!("\"a\"\"b\".c$1".parse(), Ok(name("a\"b", "c$1")));
        for text in ["", ".", "a.", ".b", "a.b.c", "a b", "\"a", "\"\"", "1a", "a\"b\"", "a;b"] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn table_name_round_trips_through_its_text(schema in "[^\0]{1,8}", table in "[^\0]{1,8}") {
            let table = name(&schema, &table);
            prop_assert_eq!(table.to_string().parse(), Ok(table));
        }
    }
}
