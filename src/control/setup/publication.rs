//! The publication: made where it is missing, completed where it lacks something.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_postgres::Client;

use super::first::Checkpoint;
use super::locked::Waiting;
use super::script::{self, published};
use super::{Did, Report};
use crate::config::Config;
use crate::control::{Databases, Failure};
use crate::server::published::other_publication;
use walhook_core::catalog::TableName;
use walhook_postgres::coverage::{self, Seen};
use walhook_postgres::coverage::{Kind, Lack};
use walhook_postgres::publication_mark::{self, Mark};
use walhook_postgres::published::published_as;
use walhook_postgres::refused_writes::unpublishable_column;
use walhook_postgres::slot::Slot;
use walhook_postgres::source;
use walhook_rules::settings::RuleOperation;

/// Since version 18 a replica identity must not hold generated columns, unless they are published.
const GENERATED_COLUMNS: i32 = 180_000;

/// What is to be published, and what it takes.
pub(super) struct Wanted {
    tables: BTreeSet<TableName>,
    children: Children,
    partitioned: bool,
    generated: bool,
}

impl Wanted {
    /// Looks at the tables.
    ///
    /// # Errors
    /// When one is not there, or publishing it is impossible, or would break the customer's own writes.
    pub(super) async fn look(config: &Config, client: &Client) -> Result<Self, Failure> {
        let tables = published(config).map_err(anyhow::Error::from)?;
        let (mut partitioned, mut generated) = (false, false);
        for table in &tables {
            let table = publishable(client, table).await?;
            partitioned |= table.kind == 'p';
            generated |= table.identifies_by_generated;
        }
        refuse_below_root(config, client, &tables, partitioned).await?;
        generated &= source::server_version(client).await? >= GENERATED_COLUMNS;
        // The system's number only marks the look, which is not kept.
        let looked = coverage::look(client, &config.source.publication, &tables, 0).await?;
        let children = children(&looked.tables)?;
        Ok(Self { tables, children, partitioned, generated })
    }
}

/// Refuses a table whose changes would come as those of a table that it is a partition of: what names it would hear of
/// none.
async fn refuse_below_root(
    config: &Config,
    client: &Client,
    wanted: &BTreeSet<TableName>,
    partitioned: bool,
) -> Result<()> {
    let name = &config.source.publication;
    for table in wanted {
        if let Some(root) = published_as(client, name, table, wanted, partitioned).await? {
            bail!(
                "{table} is a partition of {root}, which the publication {name} has or is to have too, so that its \
                 changes come as those of {root}, and nothing would come of {table}: name {root} in its place in the \
                 configuration (in a rule with a `when` for its rows), or detach it"
            );
        }
    }
    Ok(())
}

/// Makes or completes it. One that a `slot` and a checkpoint are older than is made all the same: what the slot has
/// from before can be read if nothing was written meanwhile, and if not, `run` says how to go on. Without a
/// checkpoint nothing has been read yet.
pub(super) async fn publication(
    config: &Config,
    client: &Client,
    Wanted { tables: wanted, children, partitioned, generated }: Wanted,
    slot: Option<&Slot>,
    checkpoint: Option<&Checkpoint>,
    wait: Duration,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let mut waiting = Waiting::new(wait, &mut report.tell);
    let name = &config.source.publication;
    let step = format!("publication {name}");
    let mut list = wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !children.left_out.is_empty() {
        list.push_str(&format!(" (left out: {})", children.left_out.join("; ")));
    }
    let Some(found) = source::publication(client, name).await? else {
        if slot.is_some() && checkpoint.is_none() {
            return Err(anyhow::anyhow!(
                "the slot {} is older than the publication {name} would be, and could never be read; \
                 run `walhook teardown`, then set up again",
                config.source.slot
            )
            .into());
        }
        if checkpoint.is_some() {
            // Another one beside it would be younger than what the slot has still to send.
            let last = Databases::of(config).open_state().await?.last_look().await?;
            if let Some(other) = other_publication(config, client, last).await? {
                return Err(Failure::Usage(other.into()));
            }
        }
        let all: BTreeSet<TableName> = wanted.union(&children.missing).cloned().collect();
        let has_children = children.exist;
        let sql = script::create_publication(name, &all, has_children, generated);
        let mark = Mark::of(&config.source.slot).to_sql(name);
        // One transaction: what we made is never without its mark.
        create(client, &format!("{sql}; {mark}"), &all, &mut waiting).await?;
        if slot.is_some() {
            list.push_str(&format!(
                "; it was missing, and past a row that was written without it the slot {} cannot be read: \
                 if `walhook run` halts again, drop that slot, then `walhook recover --accept-gap`",
                config.source.slot
            ));
        }
        report.step(&step, Did::Created, list);
        return Ok(());
    };
    if let Some(table) = wanted.intersection(&found.filtered).next() {
        return Err(anyhow::anyhow!(
            "the publication {name} has a row filter on {table}, which hides changes; set its tables \
             again without WHERE, and use `when` in the rule"
        )
        .into());
    }
    let missing = wanted.iter().filter(|table| !found.tables.contains(*table));
    let missing: BTreeSet<&TableName> = missing.chain(&children.missing).collect();
    // One by one: none is locked while another is waited for.
    for table in &missing {
        let one = BTreeSet::from([*table]);
        let sql = script::add_to_publication(name, &one, children.exist);
        waiting.run(client, &sql, &one).await?.with_context(|| cannot_alter(&sql))?;
    }
    let mut changes: Vec<String> =
        missing.into_iter().map(|table| format!("{table} added")).collect();
    changes.extend(set_options(config, client, &found, partitioned, generated).await?);
    if let Some(others) = share(config, client).await? {
        changes.push(format!(
            "shared with {others}: what is done to it is done to both; `source.publication` gives this \
             pipeline one of its own"
        ));
    }
    if changes.is_empty() {
        report.step(&step, Did::Exists, list);
        return Ok(());
    }
    report.step(&step, Did::Changed, changes.join(", "));
    Ok(())
}

/// Notes on a publication that walhook made for other pipelines that this one reads it too, so that their `teardown`
/// keeps it; says which they are where that is news.
async fn share(config: &Config, client: &Client) -> Result<Option<String>> {
    let (name, pipeline) = (&config.source.publication, &config.source.slot);
    let Some(mut mark) = publication_mark::read(client, name).await? else { return Ok(None) };
    if !mark.add(pipeline) {
        return Ok(None);
    }
    alter(client, &mark.to_sql(name)).await?;
    Ok(mark.others(pipeline))
}

/// Sets the options that `found` lacks, and says what changed.
async fn set_options(
    config: &Config,
    client: &Client,
    found: &source::Publication,
    partitioned: bool,
    generated: bool,
) -> Result<Vec<String>> {
    let name = &config.source.publication;
    let truncates = config.events.iter().any(|rule| rule.on.contains(&RuleOperation::Truncate));
    let mut changes = Vec::new();
    for (is_needed, option, change) in [
        (
            partitioned && !found.via_root,
            "publish_via_partition_root = true",
            "partitions published as their root",
        ),
        (
            !(found.insert && found.update && found.delete) || (truncates && !found.truncate),
            "publish = 'insert, update, delete, truncate'",
            "every operation published",
        ),
        (
            generated && !found.generated,
            "publish_generated_columns = stored",
            "generated columns published, which replica identities hold",
        ),
    ] {
        if is_needed {
            alter(client, &script::set_publication(name, option)).await?;
            changes.push(change.to_owned());
        }
    }
    Ok(changes)
}

/// What inherits from the wanted tables.
struct Children {
    exist: bool,
    /// Those that are to be added.
    missing: BTreeSet<TableName>,
    /// What makes no WAL, in words.
    left_out: Vec<String>,
}

/// # Errors
/// When publishing a child would break the customer's own writes.
fn children(tables: &[Seen]) -> Result<Children> {
    let mut children = Children { exist: false, missing: BTreeSet::new(), left_out: Vec::new() };
    for Seen { name, covered, .. } in tables.iter().filter(|seen| seen.covered.kind != Kind::Named)
    {
        children.exist |= covered.kind == Kind::Child;
        match covered.lack {
            Some(Lack::Unpublished) if covered.kind == Kind::Child => {
                children.missing.insert(name.clone());
            }
            Some(Lack::Identityless) => {
                bail!("{}", no_identity(&covered.describe(), &covered.name))
            }
            Some(Lack::Unlogged) => children.left_out.push(format!("{name} is unlogged")),
            Some(Lack::Foreign) => children.left_out.push(format!("{name} is a foreign table")),
            Some(Lack::Unpublished | Lack::Filtered) | None => {}
        }
    }
    Ok(children)
}

fn no_identity(table: &str, name: &str) -> String {
    format!(
        "{table} has no replica identity that can be published: your own UPDATE and DELETE of it would \
         fail; give it a primary key that is not deferrable and REPLICA IDENTITY DEFAULT, or, where it has no virtual generated \
         column, ALTER TABLE {name} REPLICA IDENTITY FULL"
    )
}

/// Makes the publication; what `--print-sql` prints does too.
async fn create(
    client: &Client,
    sql: &str,
    tables: &BTreeSet<TableName>,
    waiting: &mut Waiting<'_, '_>,
) -> Result<()> {
    let failed = || format!("cannot run `{sql}`; use --admin-url or --print-sql");
    waiting.run(client, sql, &tables.iter().collect()).await?.with_context(failed)
}

/// Changes one that is there.
async fn alter(client: &Client, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.with_context(|| cannot_alter(sql))
}

fn cannot_alter(sql: &str) -> String {
    format!(
        "cannot run `{sql}`: a role that owns the publication, and tables that it adds, can; have it \
         do so, or use --admin-url"
    )
}

/// The table.
///
/// # Errors
/// When publishing it is impossible, or would break the customer's own writes.
async fn publishable(client: &Client, name: &TableName) -> Result<source::Table> {
    let found = source::table(client, name).await?;
    let table = found.with_context(|| {
        format!(
            "there is no table {name}; if it was renamed or moved, correct the configuration; else create it"
        )
    })?;
    match unpublishable(name, &table) {
        Some(why) => bail!(why),
        None => Ok(table),
    }
}

/// Why publishing it is impossible, or would break the customer's own writes, and the fix.
pub(in crate::control) fn unpublishable(name: &TableName, table: &source::Table) -> Option<String> {
    if table.kind == 'f' {
        return Some(format!(
            "{name} is a foreign table, whose changes are in another server's WAL: let a view of it be \
             endpoints.table, and name in endpoints.watch a table of this database that changes with it"
        ));
    }
    if !table.is_publishable() {
        return Some(format!(
            "{name} is not a table, so it cannot be published; of a view name the tables it stands on in \
             endpoints.watch"
        ));
    }
    if !table.is_logged {
        return Some(format!(
            "{name} is unlogged, so that it cannot be published; ALTER TABLE {name} SET LOGGED"
        ));
    }
    if let Some(first) = table.without_identity.first() {
        return Some(no_identity(first, first));
    }
    let (first, column) = table.whole_with_virtual.first()?;
    let (problem, fix) = unpublishable_column(first, column);
    Some(format!(
        "{first} {problem}: publishing it would make your own UPDATE and DELETE of it fail; {fix}"
    ))
}
