//! The publication and the customer's tables: do they hold what the configuration names?

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use tokio_postgres::Client;

use super::cost::Costs;
use super::{Report, Verdict, coverage, last_look};
use crate::config::Config;
use crate::control::setup::{looked_up, published, unpublishable};
use crate::server::labels;
use crate::server::published::other_publication;
use walhook_core::catalog::TableName;
use walhook_postgres::catalog;
use walhook_postgres::op::EQ;
use walhook_postgres::preflight::{self, Fault};
use walhook_postgres::published::published_as;
use walhook_postgres::refused_writes::{RefusedWrites, refused_writes};
use walhook_postgres::row_security;
use walhook_postgres::source::{self, Publication, Table};
use walhook_rules::rule::{self, RuleError, Rules};
use walhook_rules::settings::RuleOperation;

type Tables = BTreeMap<TableName, Table>;

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let publication = source::publication(client, &config.source.publication).await?;
    let mut names = published(config)?;
    names.extend(looked_up(config)?);
    let mut tables = Tables::new();
    for name in names {
        if let Some(table) = source::table(client, &name).await? {
            tables.insert(name, table);
        }
    }
    match &publication {
        Some(publication) => {
            let below = below_root(config, publication, client).await?;
            check_publication(config, publication, &tables, &below, report)?;
            coverage::check(config, client, report).await?;
            writes(&config.source.publication, client, report).await?;
            partitions(config, &tables, client, report).await?;
        }
        None => {
            missing(config, client, report).await?;
            for why in published(config)?.iter().filter_map(|name| refused(name, &tables)) {
                report.add(Verdict::Fail, "publication", why, None);
            }
        }
    }
    let hidden = row_security::hidden(client, &looked_up(config)?).await?;
    for hidden in &hidden {
        let finding = format!("hides rows of {} from the role {}", hidden.table, hidden.role);
        report.fail("row-level security", finding, hidden.fix());
    }
    if hidden.is_empty() {
        report.pass("row-level security", "hides no rows that are looked up");
    }
    looked_up_columns(config, client, report).await?;
    rules(config, client, publication.as_ref(), report).await
}

/// The publication is not there.
async fn missing(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    match other_publication(config, client, last_look(config).await).await? {
        Some(other) => report.halt("publication", &other),
        None => {
            let finding = format!("{} does not exist", config.source.publication);
            report.fail("publication", finding, "run `walhook setup`");
        }
    }
    Ok(())
}

/// Why `setup` would not publish the table, and the fix.
fn refused(name: &TableName, tables: &Tables) -> Option<String> {
    unpublishable(name, tables.get(name)?)
}

/// The tables whose changes come as those of a table that they are partitions of, with that one.
async fn below_root(
    config: &Config,
    publication: &Publication,
    client: &Client,
) -> Result<BTreeMap<TableName, TableName>> {
    let (name, mut below) = (&config.source.publication, BTreeMap::new());
    for table in published(config)?.difference(&publication.tables) {
        let root = published_as(client, name, table, &BTreeSet::new(), false).await?;
        below.extend(root.map(|root| (table.clone(), root)));
    }
    Ok(below)
}

fn check_publication(
    config: &Config,
    publication: &Publication,
    tables: &Tables,
    below: &BTreeMap<TableName, TableName>,
    report: &mut Report,
) -> Result<()> {
    let name = &config.source.publication;
    let before = report.0.len();
    for table in published(config)? {
        let is_logged = tables.get(&table).is_none_or(|table| table.is_logged);
        if let Some(root) = below.get(&table) {
            let finding = format!(
                "{name} publishes the changes of {table} as those of {root}, which it is a partition of, so that nothing \
                 comes of {table}"
            );
            let fix = format!(
                "name {root} in its place in the configuration (in a rule with a `when` for its rows), or detach it"
            );
            report.fail("publication", finding, fix);
        } else if !publication.tables.contains(&table) && is_logged {
            let finding = format!("{name} does not hold {table}");
            let fix = refused(&table, tables).unwrap_or_else(|| "run `walhook setup`".to_owned());
            report.fail("publication", finding, fix);
        }
        if publication.filtered.contains(&table) {
            let finding = format!("{name} has a row filter on {table}, which hides changes");
            let fix =
                format!("set its tables again without WHERE; use `when` in the rule for {table}");
            report.fail("publication", finding, fix);
        }
        let partitioned = tables.get(&table).is_some_and(|table| table.kind == 'p');
        if partitioned && !publication.via_root {
            let finding =
                format!("{name} publishes the partitions of {table} under their own names");
            let fix = "run `walhook setup`, for what is read of a partition after it was detached or \
                        dropped becomes dead letters";
            report.warn("publication", finding, fix);
        }
    }
    for (operation, is_published) in [
        (RuleOperation::Insert, publication.insert),
        (RuleOperation::Update, publication.update),
        (RuleOperation::Delete, publication.delete),
        (RuleOperation::Truncate, publication.truncate),
    ] {
        let asked = config.events.iter().find(|rule| rule.on.contains(&operation));
        // Endpoints are invalidated by every change of a row.
        if !is_published && (asked.is_some() || operation.has_row()) {
            let by = asked.map_or("the endpoint table's cache", |rule| rule.event_type.as_str());
            let finding = format!("{name} does not publish {operation}, which {by} needs");
            report.fail("publication", finding, "run `walhook setup`");
        }
    }
    if report.0.len() == before {
        report.pass("publication", format!("{name} holds every table that is needed"));
    }
    Ok(())
}

/// Of every published table, ours or not.
async fn writes(publication: &str, client: &Client, report: &mut Report) -> Result<()> {
    let refused = refused_writes(client, publication).await?;
    for RefusedWrites { table, problem, fix } in &refused {
        let finding = format!("{table} {problem}, so that its own UPDATE and DELETE fail now");
        report.fail("replica identity", finding, fix.as_str());
    }
    if refused.is_empty() {
        report.pass("replica identity", "of every published table fits: its writes go through");
    }
    Ok(())
}

/// A partition takes over its root's primary key, and no other replica identity.
async fn partitions(
    config: &Config,
    tables: &Tables,
    client: &Client,
    report: &mut Report,
) -> Result<()> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i
                        WHERE i.indrelid {EQ} $1 AND i.indisprimary AND i.indimmediate)"
    );
    for name in published(config)? {
        let Some(table) = tables.get(&name).filter(|table| table.kind == 'p') else { continue };
        let has_key: bool = client.query_one(&sql, &[&table.oid]).await?.try_get(0)?;
        if !has_key {
            let finding = format!(
                "{name} is partitioned and has no primary key, so that UPDATE and DELETE of a new partition will fail"
            );
            let fix = "give it a primary key that is not deferrable, or let whoever makes a partition run ALTER \
                       TABLE … REPLICA IDENTITY FULL for it";
            report.warn("replica identity", finding, fix);
        }
    }
    Ok(())
}

/// What the look-ups read is there, and of a type that they read.
async fn looked_up_columns(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let faults = preflight::columns(config.lookups(), client).await?;
    for (section, table) in [
        ("endpoints", Some(config.endpoints.table.as_str())),
        ("accounts", config.accounts.as_ref().map(|accounts| accounts.table.as_str())),
    ] {
        let Some(table) = table else { continue };
        let mut of_section =
            faults.iter().filter(|fault| fault.what.starts_with(section)).peekable();
        if of_section.peek().is_none() {
            report.pass(section, format!("{table} has the columns that are named"));
        }
        of_section
            .for_each(|Fault { what, finding, fix }| report.fail(what, finding, fix.as_str()));
    }
    Ok(())
}

/// What `run` would say of the rules.
async fn rules(
    config: &Config,
    client: &Client,
    publication: Option<&Publication>,
    report: &mut Report,
) -> Result<()> {
    if config.events.is_empty() {
        let fix = "add [[events]]; `walhook config show --example` has one";
        report.fail("rules", "there is none, so nothing would ever be sent", fix);
    }
    let settings = config.rules();
    let mut catalog = catalog::load(client, settings.tables()).await?;
    if let Some(publication) = publication {
        catalog.leave_out(&publication.lists, publication.generated);
    }
    // The number only goes into the ids of events.
    let (errors, weak) = match Rules::compile(settings, &catalog, 0) {
        Ok(rules) => (Vec::new(), rules.weak().to_vec()),
        Err(errors) => (errors, Vec::new()),
    };
    for RuleError { subject, message } in weak {
        report.add(Verdict::Fail, &subject, format!("of a child of its table: {message}"), None);
    }
    for RuleError { subject, message } in rule::casts(settings, &catalog) {
        report.warn(&subject, message, "give both columns one type");
    }
    let doubts = rule::doubts(settings).into_iter().chain(rule::unlogged(settings, &catalog));
    let doubts = doubts.chain(rule::nullable(settings, &catalog));
    for RuleError { subject, message } in doubts.chain(labels::unknown(config, client).await?) {
        report.add(Verdict::Warn, &subject, message, None);
    }
    let mut costs = Costs::new(settings, &catalog);
    for (index, rule) in config.events.iter().enumerate() {
        let subject = rule::subject(index, rule);
        if errors.iter().all(|error| error.subject != subject) {
            let messages = "messages need no table";
            let fits = rule.table.as_ref().map(|table| format!("fits {table}"));
            let cost = costs.measure(index, rule, report);
            let cost = cost.map(|cost| format!("; {cost}")).unwrap_or_default();
            let finding = fits.unwrap_or_else(|| messages.to_owned()) + &cost;
            report.pass(&subject, finding);
        }
    }
    costs.finish(report);
    for RuleError { subject, message } in errors {
        report.add(Verdict::Fail, &subject, message, None);
    }
    Ok(())
}
