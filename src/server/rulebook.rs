//! The rules, with what a stream tells of the source's tables and types. Where they do not know a table,
//! the catalog is asked beside the stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::published::below_root;
use crate::config::Config;
use walhook_core::catalog::TableName;
use walhook_core::halt::Halt;
use walhook_decode::pgoutput::{Message, Relation};
use walhook_postgres::catalog::{self, Standing, WhichTypes};
use walhook_postgres::error::SourceError;
use walhook_postgres::source::{self, Publication};
use walhook_postgres::sql::Connection;
use walhook_rules::rule::{EndpointTable, Lacks, RuleBroken, RuleError, Rules};

/// For one answer of the catalog: no status goes to the server meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The catalog could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// They do not fit the tables: all that is wrong, a line each.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Broken(Vec<RuleError>),
}

impl From<tokio_postgres::Error> for RulesError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Source(error.into())
    }
}

/// Why something could not be learned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unlearned {
    /// The SQL session gave no answer.
    #[error(transparent)]
    Unanswered(#[from] SourceError),
    /// Or not in time.
    #[error("the catalog did not answer within {0:?}")]
    NoAnswer(Duration),
    /// The rules do not fit what was learned.
    #[error(transparent)]
    Halt(Halt),
}

/// Compiles the rules against the catalog as it is now.
pub(super) async fn compile_rules(
    config: &Config,
    client: &Connection,
    system: u64,
    endpoints: EndpointTable,
) -> Result<Rules, RulesError> {
    let publication = source::publication(client, &config.source.publication).await?;
    compile_with(config, client, publication.as_ref(), WhichTypes::All, system, endpoints).await
}

/// The same where the publication has been read, with these types.
pub(super) async fn compile_with(
    config: &Config,
    client: &Connection,
    publication: Option<&Publication>,
    types: WhichTypes,
    system: u64,
    endpoints: EndpointTable,
) -> Result<Rules, RulesError> {
    let settings = config.rules();
    let mut catalog = catalog::load_with(client, settings.tables(), types).await?;
    if let Some(publication) = publication {
        catalog.leave_out(&publication.lists, publication.generated);
    }
    Rules::compile_with(settings, &catalog, system, endpoints).map_err(RulesError::Broken)
}

/// The rules of one stream. Outlives its connections.
pub(super) struct Rulebook {
    config: Config,
    system_identifier: u64,
    pub(super) rules: Rules,
    /// The tables as they were described last: rules that are compiled anew are bound to them.
    relations: HashMap<u32, Arc<Relation>>,
    /// What the stream calls the types that are not built in: schema and name.
    types: HashMap<u32, (String, String)>,
    /// The table that was described by the message before, in this transaction.
    described: Option<(Option<u32>, u32)>,
}

impl Rulebook {
    /// The rules as they were compiled, before a stream.
    pub(super) fn new(config: Config, system_identifier: u64, rules: Rules) -> Self {
        let (relations, types, described) = Default::default();
        Self { config, system_identifier, rules, relations, types, described }
    }

    /// Binds the rules to a table as the stream describes it.
    ///
    /// # Errors
    /// When a rule does not fit it any more.
    pub(super) fn bind(&mut self, relation: &Arc<Relation>) -> Result<(), RuleBroken> {
        self.relations.insert(relation.oid, Arc::clone(relation));
        self.rules.handle_relation(relation)
    }

    /// Learns what `message` says of types, and what the rules lack to understand the table that it
    /// describes.
    ///
    /// The server describes a table anew when it was altered, attached or detached, also where the
    /// description is the same: so each one is a reason to ask. `xid` is the transaction around it, which
    /// may have made what is asked for.
    pub(super) async fn learn(
        &mut self,
        message: &Message<'_>,
        xid: Option<u32>,
        client: &Connection,
    ) -> Result<(), Unlearned> {
        if let Message::Type { oid, schema, name } = message {
            self.types.insert(*oid, ((*schema).to_owned(), (*name).to_owned()));
            return Ok(());
        }
        let Message::Relation(relation) = message else {
            self.described = None;
            return Ok(());
        };
        let before = self.described.filter(|before| before.0 == xid).map(|before| before.1);
        let lacks = self.rules.lacks(relation);
        let ask = async {
            if let (Some(_), Some(xid)) = (lacks, xid) {
                catalog::until_shown(client, xid).await?;
            }
            match lacks {
                Some(Lacks::Type) => self.read_catalog(client).await?,
                Some(Lacks::Fit) => {
                    self.read_catalog(client).await?;
                    self.rules.handle_fitting(relation.oid);
                }
                Some(Lacks::Standing) => self.place(relation, client).await?,
                None => {}
            }
            match before {
                Some(before) => self.refuse_root(before, relation, client).await,
                None => Ok(()),
            }
        };
        let asked = timeout(ANSWER_TIMEOUT, ask).await;
        asked.unwrap_or(Err(Unlearned::NoAnswer(ANSWER_TIMEOUT)))?;
        self.described = Some((xid, relation.oid));
        Ok(())
    }

    /// Halts where changes of the table come as those of a root, past rules that name it or what lies between.
    ///
    /// Before such changes the server describes the root, and at once the partition. It does the same before a TRUNCATE of
    /// several tables, so the catalog decides. Where a large transaction is played between the two, the observer sees it.
    async fn refuse_root(
        &self,
        before: u32,
        relation: &Relation,
        client: &Connection,
    ) -> Result<(), Unlearned> {
        if !self.rules.passes_by(before, relation) {
            return Ok(());
        }
        let tables = self.config.rule_tables().map(str::parse::<TableName>);
        let tables: Vec<TableName> = tables.collect::<Result<_, _>>().map_err(SourceError::from)?;
        match below_root(client, &self.config.source.publication, &tables).await? {
            Some(below) => Err(Unlearned::Halt(below)),
            None => Ok(()),
        }
    }

    async fn place(&mut self, relation: &Relation, client: &Connection) -> Result<(), Unlearned> {
        let named = self.rules.named();
        let publication = &self.config.source.publication;
        match catalog::standing(client, publication, relation.oid, &named).await? {
            Standing::Independent => {}
            Standing::Descendant => self.read_catalog(client).await?,
            Standing::Unclear => {
                if self.rules.handle_doubtful(relation) {
                    tracing::warn!(
                        schema = %relation.schema, table = %relation.name,
                        "neither a partition, a child nor published now, but with the columns of one \
                         of a table that rules name: its changes become dead letters"
                    );
                }
            }
        }
        Ok(())
    }

    /// Compiles the rules against the catalog as it is now, and binds them to the tables known so far.
    async fn read_catalog(&mut self, client: &Connection) -> Result<(), Unlearned> {
        tracing::info!("a table or type is not known: reading the catalog again");
        let compiled =
            compile_rules(&self.config, client, self.system_identifier, EndpointTable::LookedUp)
                .await;
        let mut rules = compiled.map_err(|error| match error {
            RulesError::Source(error) => Unlearned::Unanswered(error),
            // They fitted when we started: what they have lost is told as a rule's other losses are.
            // Lines are for the terminal; a halt's reason is one.
            error @ RulesError::Broken(_) => {
                Unlearned::Halt(Halt::RuleBroken(error.to_string().replace('\n', "; ")))
            }
        })?;
        rules.inherit(&mut self.rules);
        for (oid, (schema, name)) in &self.types {
            rules.handle_type(*oid, schema, name);
        }
        self.rules = rules;
        for relation in self.relations.values() {
            let bound = self.rules.handle_relation(relation);
            bound.map_err(|broken| Unlearned::Halt(Halt::RuleBroken(broken.to_string())))?;
        }
        Ok(())
    }
}
