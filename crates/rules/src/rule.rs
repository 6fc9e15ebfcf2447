//! Event rules: a row change, or a logical message → the events, and the invalidations, that it
//! makes.
//!
//! ```text
//! configuration + catalog ──compile──► rules          (at start; everything wrong is told at once)
//! rules + RELATION        ──bind────► column indexes  (whenever a table is described)
//! bindings + change       ──build───► items           (for each change)
//! rules + logical message ──message─► items           (for each message: nothing to bind)
//! ```
//!
//! Of several rules of one type the first that matches wins: an event's id follows from position
//! and type, so that a change can make one event of a type only. For the same reason a rule whose
//! condition cannot be evaluated decides for its type, and no later rule is asked: the change is
//! [`Unroutable`](walhook_core::event::Unroutable), not silently another rule's.

mod bind;
mod body;
mod build;
mod compile;
mod doubt;
mod keys;
mod learn;
mod message;
mod pair;
mod probe;
mod summary;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::BytesMut;

use super::condition::{Allowance, Condition, DataExpression, Side};
use crate::settings::{Bigint, EventRule, Payload, RuleOperation};
use walhook_core::catalog::Catalog;
use walhook_core::event::{AccountId, Item};
use walhook_core::settings::Endpoints;
use walhook_decode::change::{Change, LogicalMessage};
use walhook_decode::pgoutput::Relation;

use bind::Demand;
pub use compile::{EndpointTable, missing_sides, subject};
pub use doubt::{Label, doubts, labels, nullable, unlogged};
pub use learn::Lacks;
pub use pair::casts;
pub use probe::Probe;

/// What the configuration says about making events.
#[derive(Debug, Clone, Copy)]
pub struct RuleSettings<'a> {
    /// `[[events]]`
    pub events: &'a [EventRule],
    /// `[endpoints]`
    pub endpoints: &'a Endpoints,
    /// `[payload]`
    pub payload: &'a Payload,
}

impl<'a> RuleSettings<'a> {
    /// Every table that the settings name, as they name it: what the catalog has to hold.
    pub fn tables(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let rules = self.events.iter().filter_map(|rule| rule.table.as_deref());
        rules.chain([self.endpoints.table.as_str()]).chain(self.watched())
    }

    /// The published tables whose changes invalidate cached routes.
    pub fn watched(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let watch = &self.endpoints.watch;
        let default = watch.is_empty().then_some(self.endpoints.table.as_str());
        default.into_iter().chain(watch.iter().map(String::as_str))
    }
}

/// A rule, or the endpoint table, does not fit the source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {message}")]
pub struct RuleError {
    /// Which rule: `rule 2 (subscriber.updated)`, counted from 1 as they stand in the file; or
    /// `endpoints`.
    pub subject: String,
    /// What is wrong, and the fix.
    pub message: String,
}

/// A rule that fitted when it was compiled no longer fits its table: to go on would lose events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleBroken {
    /// A column that the rule needs is not there.
    #[error(
        "{rule} needs the column {column} of {table}, which the table or the publication's column \
         list had not when a row was written"
    )]
    Column {
        /// Which rule.
        rule: String,
        /// Its table.
        table: String,
        /// The column.
        column: String,
    },
    /// Old values that the rule needs are no longer logged.
    #[error(
        "{rule} needs the old value of {column}, which the replica identity of {table} does not \
         log; ALTER TABLE {table} REPLICA IDENTITY FULL, or correct the rule"
    )]
    Identity {
        /// Which rule.
        rule: String,
        /// Its table.
        table: String,
        /// The column.
        column: String,
    },
    /// A column is of a type that the rule cannot judge.
    #[error("{rule} does not fit a row of {table}: {message}")]
    Type {
        /// Which rule.
        rule: String,
        /// Its table.
        table: String,
        /// What does not fit, and the fix.
        message: String,
    },
    /// Two of the rule's columns now have one name in the body.
    #[error("{rule} would send two columns of {table} as {name:?}; rename one of them")]
    Duplicate {
        /// Which rule.
        rule: String,
        /// Its table.
        table: String,
        /// The name in the body.
        name: String,
    },
    /// A column's type is younger than the catalog that the rules were compiled with: read the
    /// catalog and compile the rules again.
    #[error(
        "{rule} sends the column {column} of {table}, whose type (OID {type_oid}) was made after \
         the catalog was read; start again"
    )]
    UnknownType {
        /// Which rule.
        rule: String,
        /// Its table.
        table: String,
        /// The column.
        column: String,
        /// The type.
        type_oid: u32,
    },
}

/// The compiled rules, and what is bound of them.
#[derive(Debug)]
pub struct Rules {
    system_identifier: u64,
    bigint: Bigint,
    catalog: Catalog,
    /// In the configuration's order.
    rules: Vec<Rule>,
    /// Sorted by type.
    messages: Vec<MessageRule>,
    watch: Watch,
    weak: Vec<RuleError>,
    /// By the OID in RELATION messages.
    bindings: HashMap<u32, bind::Binding>,
    /// Tables that may have been partitions of one that rules name, and why that cannot be told.
    doubtful: HashMap<u32, String>,
    /// Tables that have by now what the rules need, a column, its type or old values, and had not when they were
    /// described.
    fitting: HashSet<u32>,
    /// Tables as open transactions describe them.
    summaries: HashMap<u32, summary::Summary>,
    scratch: BytesMut,
}

/// A scratch buffer that grew beyond this, for one large event, is given back.
const KEEP_SCRATCH_BYTES: usize = 1 << 20;

/// One compiled rule.
#[derive(Debug)]
struct Rule {
    /// How messages name it.
    label: String,
    /// With a type column, the pattern that bounds what it may hold.
    event_type: Arc<str>,
    type_column: Option<String>,
    /// Its table's OID.
    table: u32,
    on: Vec<RuleOperation>,
    account: Account,
    condition: Option<Condition>,
    columns: Columns,
    /// Column → name in the body.
    rename: HashMap<String, String>,
    /// What builds the data, instead of `columns`.
    data: Option<DataExpression>,
    /// The column whose JSON is the data, instead of `columns`.
    data_column: Option<String>,
    max_bytes: usize,
}

impl Rule {
    /// The old columns that its expressions read.
    fn reads_old(&self) -> impl Iterator<Item = &str> {
        let condition = self.condition.as_ref().map(|condition| condition.columns(Side::Old));
        let data = self.data.as_ref().map(|data| data.columns(Side::Old));
        condition.into_iter().chain(data).flatten().map(String::as_str)
    }

    /// The columns of the row at hand, which of a delete is the old one, that its event cannot do
    /// without.
    fn needs_current(&self) -> impl Iterator<Item = &str> {
        let columns =
            [self.account.name(), self.type_column.as_deref(), self.data_column.as_deref()];
        columns.into_iter().flatten()
    }
}

/// One compiled rule for logical messages.
#[derive(Debug)]
struct MessageRule {
    label: String,
    event_type: Arc<str>,
    prefix: String,
    account: Account,
    max_bytes: usize,
}

/// Where the account of an event stands.
#[derive(Debug)]
enum Account {
    /// In this column, or under this key of a message's content.
    Named(String),
    /// It is always this one.
    Fixed(AccountId),
}

impl Account {
    /// The column or key that holds it.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name) => Some(name),
            Self::Fixed(_) => None,
        }
    }
}

/// Which columns a rule sends.
#[derive(Debug)]
enum Columns {
    /// `["*"]`; the columns that the rule's table had when the catalog was read.
    All(HashSet<String>),
    Named(Vec<String>),
}

/// The tables whose changes invalidate cached routes, by OID.
#[derive(Debug)]
struct Watch {
    endpoint_table: u32,
    id: String,
    account: String,
    enabled: String,
    /// One account may come in several texts, by the collation or by the rules.
    has_several_texts: bool,
    others: Vec<u32>,
    /// The endpoint table, or a column of it, was not there.
    lacks: bool,
}

impl Rules {
    /// Compiles all rules and checks them against the catalog's tables and columns.
    ///
    /// # Errors
    /// All that is wrong with any of them: unknown tables and columns, names that occur twice, an
    /// invalid type or condition, a replica identity that does not log what the rule reads.
    pub fn compile(
        settings: RuleSettings<'_>,
        catalog: &Catalog,
        system_identifier: u64,
    ) -> Result<Self, Vec<RuleError>> {
        Self::compile_with(settings, catalog, system_identifier, EndpointTable::Checked)
    }

    /// As [`Rules::compile`], with what is to become of an endpoint table that lacks something.
    ///
    /// # Errors
    /// As there.
    pub fn compile_with(
        settings: RuleSettings<'_>,
        catalog: &Catalog,
        system_identifier: u64,
        endpoints: EndpointTable,
    ) -> Result<Self, Vec<RuleError>> {
        let compile::Compiled { rules, messages, watch, weak } =
            compile::compile(settings, catalog, endpoints)?;
        Ok(Self {
            system_identifier,
            bigint: settings.payload.bigint,
            catalog: catalog.clone(),
            rules,
            messages,
            watch,
            weak,
            bindings: HashMap::new(),
            doubtful: HashMap::new(),
            fitting: HashSet::new(),
            summaries: HashMap::new(),
            scratch: BytesMut::new(),
        })
    }

    /// Which children of a rule's table log less of old rows than the rule needs, and the fix. Their
    /// changes that lack it become dead letters.
    #[must_use]
    pub fn weak(&self) -> &[RuleError] {
        &self.weak
    }

    /// Binds the rules of a table to the columns that its following changes have.
    ///
    /// A table is known by its OID, wherever it was renamed to. One whose OID the catalog does not
    /// hold is known by its name: the WAL may be older than a table that was dropped and made
    /// again.
    ///
    /// # Errors
    /// When a rule no longer fits the table. Its changes must not be handled then.
    pub fn handle_relation(&mut self, relation: &Arc<Relation>) -> Result<(), RuleBroken> {
        self.bindings.remove(&relation.oid);
        let Some(table) = self.table(relation) else { return Ok(()) };
        let is_fitting = self.fitting.contains(&relation.oid);
        // What cannot be placed makes nothing but dead letters.
        let is_doubtful = self.doubtful.contains_key(&relation.oid);
        let demand = if is_fitting || is_doubtful { Demand::Nothing } else { Demand::All };
        let binding = self.bind(table, relation, demand)?;
        if let Some(mut binding) = binding {
            let renamed = || self.renamed(table, relation).filter(|_| is_fitting);
            binding.doubt = self.doubtful.get(&relation.oid).cloned().or_else(renamed);
            self.bindings.insert(relation.oid, binding);
        }
        Ok(())
    }

    /// Appends what the change makes: an invalidation first, then events and unroutable changes in
    /// the order of their types.
    ///
    /// Invariant: the change's relation was the last with its OID that
    /// [`handle_relation`](Self::handle_relation) took.
    pub fn handle_change(&mut self, change: &Change<'_>, out: &mut Vec<Item>) {
        let Some(binding) = self.bindings.get(&change.relation.oid) else { return };
        build::Builder {
            system_identifier: self.system_identifier,
            bigint: self.bigint,
            rules: &self.rules,
            binding,
            types: &self.catalog.types,
            change,
            scratch: &mut self.scratch,
            allowance: Allowance::default(),
        }
        .build(out);
        self.give_scratch_back();
    }

    /// Appends the events and unroutable messages that a logical message makes, in the order of their
    /// types.
    pub fn handle_message(&mut self, message: &LogicalMessage<'_>, out: &mut Vec<Item>) {
        message::build(&self.messages, self.system_identifier, message, &mut self.scratch, out);
        self.give_scratch_back();
    }

    fn give_scratch_back(&mut self) {
        if self.scratch.capacity() > KEEP_SCRATCH_BYTES {
            self.scratch = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests;
