//! Whether the source still shows us what the rules need.
//!
//! A table that leaves the publication, because somebody drops the table or alters the publication,
//! leaves the stream without a word. So this is looked at whenever the source is opened, and every few seconds.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use crate::config::Config;
use walhook_core::catalog::TableName;
use walhook_core::halt::Halt;
use walhook_postgres::coverage::{self, Coverage, Kind, Lack, Moment, Seen};
use walhook_postgres::error::SourceError;
use walhook_postgres::published::published_as;
use walhook_postgres::row_security;
use walhook_postgres::source::{self, Publication};
use walhook_postgres::sql::Connection;

/// Looks.
///
/// # Errors
/// When the server does not answer; what it answers is the inner result.
pub(super) async fn check(
    config: &Config,
    client: &Connection,
    publication: Option<&Publication>,
) -> Result<Result<(), Halt>, SourceError> {
    let name = &config.source.publication;
    let Some(publication) = publication else {
        let problem = format!("publication {name:?} does not exist");
        return Ok(Err(Halt::PublicationMissing { problem }));
    };
    let rules = config.rule_tables().map(str::parse::<TableName>);
    let tables: BTreeSet<TableName> = rules.collect::<Result<_, _>>()?;
    if let Some(problem) = find_problem(config, publication, &tables) {
        if let Some(Problem { what, fix }) = missing(client, &tables).await? {
            return Ok(Err(Halt::RuleBroken(format!("{what}: {fix}"))));
        }
        let unpublished = tables.difference(&publication.tables);
        if let Some(below) = below_root(client, name, unpublished).await? {
            return Ok(Err(below));
        }
        let problem = cannot_be_held(client, name, &tables).await?.unwrap_or(problem);
        return Ok(Err(problem.halt(name)));
    }
    Ok(Ok(()))
}

/// The halt of the first of the tables whose changes come as those of a table that it is a partition of.
///
/// # Errors
/// When the server does not answer.
pub(super) async fn below_root(
    client: &Connection,
    publication: &str,
    tables: impl IntoIterator<Item = &TableName>,
) -> Result<Option<Halt>, SourceError> {
    for table in tables {
        let root = published_as(client, publication, table, &BTreeSet::new(), false).await?;
        if let Some(root) = root {
            return Ok(Some(Halt::RuleBroken(format!(
                "publication {publication:?} publishes the changes of {table} as those of {root}, which it is a partition \
                 of, so that nothing comes of {table}: name {root} in the rule, with a `when` for these rows, or detach it"
            ))));
        }
    }
    Ok(None)
}

/// What keeps changes of a table out of the stream.
pub(super) struct Problem {
    /// In words that follow the publication's name, or that name the table.
    what: String,
    /// The fix.
    pub(super) fix: String,
}

impl Problem {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// What is wrong, as a sentence's part.
    pub(super) fn describe(&self, publication: &str) -> String {
        format!("publication {publication:?} {}", self.what)
    }

    /// The same as a halt.
    pub(super) fn halt(self, publication: &str) -> Halt {
        let problem = format!("{}: {}", self.what, self.fix);
        Halt::Unpublished { publication: publication.to_owned(), problem }
    }
}

/// Of a configured publication that is not there: the halt, where the one of the last look is.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn other_publication(
    config: &Config,
    client: &Client,
    last: Option<(Moment, Coverage)>,
) -> Result<Option<Halt>, SourceError> {
    let Some((_, Coverage { publication: then, .. })) = last else { return Ok(None) };
    let called = source::publication_now(client, &then.name, then.oid).await?;
    let (configured, set_up) = (config.source.publication.clone(), then.name);
    Ok(called.map(|called| Halt::OtherPublication { configured, set_up, called }))
}

/// What keeps changes of the watched tables out of the stream. Refused at the first start; after it, it is
/// told, and endpoints are looked up anew again and again: to halt would keep everything from everyone.
///
/// # Errors
/// When the server does not answer.
pub(super) async fn unwatched(
    config: &Config,
    client: &Connection,
    publication: Option<&Publication>,
) -> Result<Result<(), Problem>, SourceError> {
    let name = &config.source.publication;
    let Some(publication) = publication else { return Ok(Ok(())) };
    let watched = config.rules().watched().map(str::parse::<TableName>);
    let tables: BTreeSet<TableName> = watched.collect::<Result<_, _>>()?;
    let Some(problem) = find_problem(config, publication, &tables) else { return Ok(Ok(())) };
    if let Some(missing) = missing(client, &tables).await? {
        let what = format!("does not hold a table that is watched: {}", missing.what);
        return Ok(Err(Problem { what, ..missing }));
    }
    for table in tables.difference(&publication.tables) {
        let root = published_as(client, name, table, &BTreeSet::new(), false).await?;
        if let Some(root) = root {
            return Ok(Err(Problem::new(
                format!(
                    "publishes the changes of {table} as those of {root}, which it is a partition of"
                ),
                format!("name {root} in its place in [endpoints], or detach it"),
            )));
        }
    }
    Ok(Err(cannot_be_held(client, name, &tables).await?.unwrap_or(problem)))
}

/// Refuses to start where row-level security may hide rows that are looked up. While we run, look-ups
/// fail of it and say so.
///
/// # Errors
/// When the server does not answer; what it answers is the inner result.
pub(super) async fn check_rows(
    config: &Config,
    client: &Connection,
) -> Result<Result<(), Halt>, SourceError> {
    let hidden = row_security::hidden(client, &looked_up(config)?).await?;
    Ok(hidden.into_iter().next().map_or(Ok(()), |hidden| {
        let fix = hidden.fix();
        Err(Halt::RowsHidden { table: hidden.table.to_string(), role: hidden.role, fix })
    }))
}

/// The first table that is not there, and the fix. Of one that was renamed the stream still has everything.
async fn missing(
    client: &Connection,
    tables: &BTreeSet<TableName>,
) -> Result<Option<Problem>, SourceError> {
    for table in tables {
        if source::table(client, table).await?.is_none() {
            return Ok(Some(Problem::new(
                format!("there is no table {table} any more"),
                "if it was renamed or moved, correct the rules that name it, or rename it back",
            )));
        }
    }
    Ok(None)
}

/// What is wrong with a table that cannot be published, and the fix.
async fn cannot_be_held(
    client: &Connection,
    publication: &str,
    tables: &BTreeSet<TableName>,
) -> Result<Option<Problem>, SourceError> {
    for table in tables {
        if source::table(client, table).await?.is_some_and(|table| matches!(table.kind, 'v' | 'm'))
        {
            return Ok(Some(Problem::new(
                format!("cannot hold {table}, which is a view now"),
                "name in its place the tables that it stands on (of an endpoint view, in endpoints.watch), then run \
                 `walhook setup`",
            )));
        }
    }
    let looked = coverage::look(client, publication, tables, 0).await?;
    let named = looked.tables.iter().filter(|seen| seen.covered.kind == Kind::Named);
    Ok(named.into_iter().find_map(|Seen { name, covered, .. }| match covered.lack? {
        Lack::Unlogged => Some(Problem::new(
            format!("cannot hold the table {name}, which is unlogged"),
            format!("ALTER TABLE {name} SET LOGGED, then run `walhook setup`"),
        )),
        Lack::Foreign => Some(Problem::new(
            format!(
                "cannot hold {name}, which is a foreign table: its changes are in another server's WAL"
            ),
            "remove what names it from the configuration, and run a walhook there",
        )),
        Lack::Unpublished | Lack::Identityless | Lack::Filtered => None,
    }))
}

/// The tables whose changes must be in the stream.
pub(super) fn needed(config: &Config) -> Result<BTreeSet<TableName>, SourceError> {
    let rules = config.rule_tables();
    let tables = rules.chain(config.rules().watched()).map(str::parse::<TableName>);
    Ok(tables.collect::<Result<_, _>>()?)
}

/// The tables and views that are looked up.
fn looked_up(config: &Config) -> Result<BTreeSet<TableName>, SourceError> {
    let accounts = config.accounts.as_ref().map(|accounts| accounts.table.as_str());
    let tables = std::iter::once(config.endpoints.table.as_str()).chain(accounts);
    Ok(tables.map(str::parse).collect::<Result<_, _>>()?)
}

/// The first thing that is missing, and the fix, in words that follow the publication's name.
fn find_problem(
    config: &Config,
    publication: &Publication,
    tables: &BTreeSet<TableName>,
) -> Option<Problem> {
    for table in tables {
        if !publication.tables.contains(table) {
            let what = format!("does not hold the table {table}");
            return Some(Problem::new(what, "`walhook setup` puts it back"));
        }
        if publication.filtered.contains(table) {
            return Some(Problem::new(
                format!("has a row filter for the table {table}, which hides changes"),
                "publish it again without WHERE, and use `when` in the rule",
            ));
        }
    }
    let operations: BTreeSet<&str> = config
        .events
        .iter()
        .flat_map(|rule| &rule.on)
        .map(|operation| operation.as_str())
        // Endpoints are invalidated by every change of a row.
        .chain(["insert", "update", "delete"])
        .collect();
    let published = [
        ("insert", publication.insert),
        ("update", publication.update),
        ("delete", publication.delete),
        ("truncate", publication.truncate),
    ];
    let missing = published.iter().find(|(name, is)| !is && operations.contains(name));
    missing.map(|(name, _)| {
        Problem::new(format!("does not publish {name}s"), "`walhook setup` has it do so")
    })
}
