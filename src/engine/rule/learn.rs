//! What the rules do not know of the source, and what they learn while changes stream.
//!
//! The catalog was read when the rules were compiled; the stream is older or younger than that. A
//! type may have been made since, or dropped; and where partitions are published under their own
//! names, one may have been attached since, or detached, or dropped.

use super::bind::{self, Binding, Identity};
use super::{RuleBroken, Rules};
use crate::engine::catalog::Table;
use crate::engine::pgoutput::Relation;

/// What the rules have to be told before a table's changes can be handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacks {
    /// What type a column has: read the catalog, and where that does not know, see
    /// [`Rules::handle_type`].
    Type,
    /// Whether the table is a partition of one that rules name: ask the catalog.
    Standing,
    /// Whether the replica identity, which logged less than the rules need when the table was
    /// described, has been mended: read the catalog, and if the rules fit it, say so with
    /// [`Rules::handle_mended`].
    Identity,
}

impl Rules {
    /// What has to be known before the changes of `relation` are handled, beyond what is.
    #[must_use]
    pub fn lacks(&self, relation: &Relation) -> Option<Lacks> {
        let known = self.table(relation).filter(|_| !self.doubtful.contains_key(&relation.oid));
        let Some(table) = known else {
            let partitioned = self.catalog.partitioned().next().is_some();
            return partitioned.then_some(Lacks::Standing);
        };
        let types = &self.catalog.types;
        if relation.columns.iter().any(|column| types.kind(column.type_oid).is_none()) {
            return Some(Lacks::Type);
        }
        match self.bind(table, relation, Identity::Required) {
            Err(RuleBroken::Identity { .. }) => Some(Lacks::Identity),
            Ok(_)
            | Err(
                RuleBroken::Column { .. }
                | RuleBroken::Duplicate { .. }
                | RuleBroken::UnknownType { .. },
            ) => None,
        }
    }

    /// The partitioned tables that rules name, or the endpoints.
    #[must_use]
    pub fn partitioned(&self) -> Vec<u32> {
        self.catalog.partitioned().map(|table| table.oid).collect()
    }

    /// Takes what the stream says of a type, where the catalog does not know it.
    pub fn handle_type(&mut self, type_oid: u32, schema: &str, name: &str) {
        self.catalog.types.handle_type(type_oid, schema, name);
    }

    /// Takes note that the catalog's table logs what the rules need.
    pub fn handle_mended(&mut self, table: u32) {
        self.mended.insert(table);
    }

    /// Takes over what rules that were compiled from an older catalog have learned.
    pub fn inherit(&mut self, older: &mut Self) {
        self.mended = std::mem::take(&mut older.mended);
        self.doubtful = std::mem::take(&mut older.doubtful);
        self.doubtful.retain(|oid, _| self.catalog.table(*oid).is_none());
        self.catalog.keep_partitions(&older.catalog);
    }

    /// Takes a table that is neither a partition nor published now. Where it has all columns that the
    /// rules of a partitioned table need it may have been one when its rows were written: they become
    /// dead letters rather than nothing.
    pub fn handle_doubtful(&mut self, relation: &Relation) {
        // From the roots down, for a message is to name what the rule names.
        let mut partitioned: Vec<&Table> = self.catalog.partitioned().collect();
        partitioned.sort_unstable_by_key(|table| (table.ancestors.len(), table.oid));
        let adopted = partitioned.into_iter().find_map(|root| {
            let table = Table {
                oid: relation.oid,
                schema: relation.schema.clone(),
                name: relation.name.clone(),
                is_partitioned: false,
                ancestors: [root.oid].into_iter().chain(root.ancestors.iter().copied()).collect(),
                ..root.clone()
            };
            let bound = self.bind(&table, relation, Identity::Mended);
            let fits = !matches!(bound, Ok(None) | Err(RuleBroken::Column { .. }));
            fits.then(|| {
                (format!("{table} is no partition now, but may have been one of {root}"), table)
            })
        });
        if let Some((doubt, table)) = adopted {
            self.doubtful.insert(relation.oid, doubt);
            self.catalog.insert(table);
        }
    }

    pub(super) fn bind(
        &self,
        table: &Table,
        relation: &Relation,
        identity: Identity,
    ) -> Result<Option<Binding>, RuleBroken> {
        bind::bind(&self.rules, &self.watch, &self.catalog.types, table, relation, identity)
    }

    /// What the catalog says of a table.
    pub(super) fn table(&self, relation: &Relation) -> Option<&Table> {
        let by_oid = self.catalog.table(relation.oid);
        by_oid.or_else(|| self.catalog.by_name(&relation.schema, &relation.name))
    }
}
