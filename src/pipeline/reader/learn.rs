//! What the stream's tables and types are, where the rules do not know: asks the catalog beside it.

use std::time::Duration;

use tokio::time::timeout;

use super::Reader;
use crate::engine::halt::Halt;
use crate::engine::pgoutput::{Message, Relation};
use crate::engine::rule::Lacks;
use crate::io::catalog::{self, Standing};
use crate::io::sql::Connection;
use crate::pipeline::Stop;
use crate::pipeline::source::compile_rules;

/// For one answer of the catalog: no status goes to the server meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why something could not be learned.
pub(super) enum Unlearned {
    /// The SQL session gave no answer.
    Unanswered(String),
    /// What was learned stops the pipeline.
    Stop(Stop),
}

impl Reader {
    /// Learns what `message` says of types, and what the rules lack to understand the table that it
    /// describes.
    ///
    /// The server describes a table anew when it was altered, attached or detached, also where the
    /// description is the same: so each one is a reason to ask.
    pub(super) async fn learn(
        &mut self,
        message: &Message<'_>,
        client: &Connection,
    ) -> Result<(), Unlearned> {
        if let Message::Type { oid, schema, name } = message {
            self.types.insert(*oid, ((*schema).to_owned(), (*name).to_owned()));
        }
        let Message::Relation(relation) = message else { return Ok(()) };
        let Some(lacks) = self.rules.lacks(relation) else { return Ok(()) };
        let ask = async {
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
        let partitioned = self.rules.partitioned();
        let publication = &self.config.source.publication;
        let standing = catalog::standing(client, publication, relation.oid, &partitioned).await;
        match standing.map_err(|error| Unlearned::Unanswered(format!("{error:#}")))? {
            Standing::Independent => {}
            Standing::Partition => self.read_catalog(client).await?,
            Standing::Unclear => {
                self.rules.handle_doubtful(relation);
                tracing::warn!(
                    schema = %relation.schema, table = %relation.name,
                    "neither a partition nor published now: if it has the columns of a partitioned \
                     table that rules name, its changes become dead letters"
                );
            }
        }
        Ok(())
    }

    /// Compiles the rules against the catalog as it is now, and binds them to the tables known so far.
    async fn read_catalog(&mut self, client: &Connection) -> Result<(), Unlearned> {
        tracing::info!("a table or type is not known: reading the catalog again");
        let compiled = compile_rules(&self.config, client, self.system_identifier).await;
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
