//! Whether the publication holds what the rules need.
//!
//! A table that leaves it, because somebody drops the table or alters the publication, leaves the
//! stream without a word. So this is looked at whenever the source is opened, and every few seconds.

use std::collections::BTreeSet;

use anyhow::Context;

use crate::config::Config;
use crate::engine::catalog::TableName;
use crate::engine::halt::Halt;
use crate::engine::rule::RuleSettings;
use crate::io::source::{self, Publication};
use crate::io::sql::Connection;

/// Looks.
///
/// # Errors
/// When the server does not answer; what it answers is the inner result.
pub(super) async fn check(
    config: &Config,
    client: &Connection,
) -> anyhow::Result<Result<(), Halt>> {
    let name = &config.source.publication;
    let Some(publication) = source::publication(client, name).await? else {
        let problem = format!("publication {name:?} does not exist");
        return Ok(Err(Halt::PublicationMissing { problem }));
    };
    let problem = find_problem(config, &publication)?;
    let unpublished = |problem| Halt::Unpublished { publication: name.clone(), problem };
    Ok(problem.map_or(Ok(()), |problem| Err(unpublished(problem))))
}

/// The first thing that is missing, in words that follow the publication's name.
fn find_problem(config: &Config, publication: &Publication) -> anyhow::Result<Option<String>> {
    let settings = RuleSettings::of(config);
    let tables = config.rule_tables().chain(settings.watched()).map(str::parse::<TableName>);
    let tables = tables.collect::<Result<BTreeSet<_>, _>>().context("a table's name")?;
    for table in &tables {
        if !publication.tables.contains(table) {
            return Ok(Some(format!("does not hold the table {table}")));
        }
        if publication.filtered.contains(table) {
            return Ok(Some(format!("has a row filter for the table {table}")));
        }
    }
    let operations: BTreeSet<&str> = config
        .events
        .iter()
        .flat_map(|rule| &rule.on)
        .map(|operation| operation.as_str())
        .collect();
    let published = [
        ("insert", publication.insert),
        ("update", publication.update),
        ("delete", publication.delete),
        ("truncate", publication.truncate),
    ];
    let missing = published.iter().find(|(name, is)| !is && operations.contains(name));
    Ok(missing.map(|(name, _)| format!("does not publish {name}s")))
}
