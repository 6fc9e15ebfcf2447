//! The rules, with what a stream tells of the source's tables and types. Where they do not know a table,
//! the catalog is asked beside the stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::Stop;
use super::leadership::compile_rules;
use crate::config::Config;
use walhook_core::halt::Halt;
use walhook_decode::pgoutput::{Message, Relation};
use walhook_postgres::catalog::{self, Standing};
use walhook_postgres::sql::Connection;
use walhook_rules::rule::{EndpointTable, Lacks, RuleBroken, Rules};

/// For one answer of the catalog: no status goes to the server meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why something could not be learned.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unlearned {
    /// The SQL session gave no answer.
    #[error("{0}")]
    Unanswered(String),
    /// What was learned stops the pipeline.
    #[error(transparent)]
    Stop(#[from] Stop),
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
}

impl Rulebook {
    /// The rules as they were compiled, before a stream.
    pub(super) fn new(config: Config, system_identifier: u64, rules: Rules) -> Self {
        let (relations, types) = Default::default();
        Self { config, system_identifier, rules, relations, types }
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
        }
        let Message::Relation(relation) = message else { return Ok(()) };
        let Some(lacks) = self.rules.lacks(relation) else { return Ok(()) };
        let ask = async {
            if let Some(xid) = xid {
                let shown = catalog::until_shown(client, xid).await;
                shown.map_err(|error| Unlearned::Unanswered(format!("{error:#}")))?;
            }
            match lacks {
                Lacks::Type => self.read_catalog(client).await,
                Lacks::Identity => {
                    self.read_catalog(client).await?;
                    self.rules.handle_mended(relation.oid);
                    Ok(())
                }
                Lacks::Standing => self.place(relation, client).await,
            }
        };
        timeout(ANSWER_TIMEOUT, ask).await.unwrap_or_else(|_| {
            let problem = format!("the catalog did not answer within {ANSWER_TIMEOUT:?}");
            Err(Unlearned::Unanswered(problem))
        })
    }

    async fn place(&mut self, relation: &Relation, client: &Connection) -> Result<(), Unlearned> {
        let named = self.rules.named();
        let publication = &self.config.source.publication;
        let standing = catalog::standing(client, publication, relation.oid, &named).await;
        match standing.map_err(|error| Unlearned::Unanswered(format!("{error:#}")))? {
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
        let mut rules = compiled.map_err(|stop| match stop {
            Stop::Failed(error) => Unlearned::Unanswered(format!("{error:#}")),
            // They fitted when we started: what they have lost is told as a rule's other losses are.
            Stop::Config(problem) => Unlearned::Stop(Stop::Halted(Halt::RuleBroken(problem))),
            stop @ (Stop::Halted(_) | Stop::Fenced) => Unlearned::Stop(stop),
        })?;
        rules.inherit(&mut self.rules);
        for (oid, (schema, name)) in &self.types {
            rules.handle_type(*oid, schema, name);
        }
        self.rules = rules;
        for relation in self.relations.values() {
            let bound = self.rules.handle_relation(relation);
            bound.map_err(|broken| {
                Unlearned::Stop(Stop::Halted(Halt::RuleBroken(broken.to_string())))
            })?;
        }
        Ok(())
    }
}
