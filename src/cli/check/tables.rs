//! The publication and the customer's tables: do they hold what the configuration names?

use std::collections::BTreeMap;

use anyhow::Result;
use tokio_postgres::Client;

use super::cost::Costs;
use super::{Report, Verdict, coverage};
use crate::cli::setup::{looked_up, published};
use crate::config::{Config, RuleOperation};
use crate::engine::catalog::TableName;
use crate::engine::rule::{self, RuleError, RuleSettings, Rules};
use crate::io::refused_writes::{RefusedWrites, refused_writes};
use crate::io::source::{self, Publication, Table};
use crate::io::{catalog, row_security};

type Tables = BTreeMap<TableName, Table>;

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let publication = source::publication(client, &config.source.publication).await?;
    let mut names = published(config)?;
    names.extend(looked_up(config)?);
    names.extend(publication.iter().flat_map(|publication| publication.tables.iter().cloned()));
    let mut tables = Tables::new();
    for name in names {
        if let Some(table) = source::table(client, &name).await? {
            tables.insert(name, table);
        }
    }
    match &publication {
        Some(publication) => {
            check_publication(config, publication, &tables, report)?;
            coverage::check(config, client, report).await?;
            writes(&config.source.publication, client, report).await?;
        }
        None => {
            let finding = format!("{} does not exist", config.source.publication);
            report.fail("publication", finding, "run `walhook setup`");
        }
    }
    let hidden = row_security::hidden(client, &looked_up(config)?).await?;
    for hidden in &hidden {
        let finding = format!("hides rows of {} from the role {}", hidden.table, hidden.role);
        report.fail("row-level security", finding, hidden.mend());
    }
    if hidden.is_empty() {
        report.pass("row-level security", "hides no rows that are looked up");
    }
    endpoint_columns(config, &tables, report)?;
    rules(config, client, publication.as_ref(), report).await
}

fn check_publication(
    config: &Config,
    publication: &Publication,
    tables: &Tables,
    report: &mut Report,
) -> Result<()> {
    let name = &config.source.publication;
    let before = report.0.len();
    for table in published(config)? {
        let is_logged = tables.get(&table).is_none_or(|table| table.is_logged);
        if !publication.tables.contains(&table) && is_logged {
            report.fail(
                "publication",
                format!("{name} does not hold {table}"),
                "run `walhook setup`",
            );
        }
        if publication.filtered.contains(&table) {
            let finding = format!("{name} has a row filter on {table}, which hides changes");
            let mend =
                format!("set its tables again without WHERE; use `when` in the rule for {table}");
            report.fail("publication", finding, mend);
        }
        let partitioned = tables.get(&table).is_some_and(|table| table.kind == 'p');
        if partitioned && !publication.via_root {
            let finding =
                format!("{name} publishes the partitions of {table} under their own names");
            let mend = "run `walhook setup`, for what is read of a partition after it was detached or \
                        dropped becomes dead letters";
            report.warn("publication", finding, mend);
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
    for RefusedWrites { table, problem, mend } in &refused {
        let finding = format!("{table} {problem}, so that its own UPDATE and DELETE fail now");
        report.fail("replica identity", finding, mend.as_str());
    }
    if refused.is_empty() {
        report.pass("replica identity", "of every published table fits: its writes go through");
    }
    Ok(())
}

/// What a column of the endpoint or account table may be.
struct Wanted<'a> {
    key: &'static str,
    column: &'a str,
    types: &'static [&'static str],
}

fn wanted<'a>(key: &'static str, column: &'a str, types: &'static [&'static str]) -> Wanted<'a> {
    Wanted { key, column, types }
}

const ANY: &[&str] = &[];
const TEXT: &[&str] = &["text", "character varying", "citext"];
const TEXTS: &[&str] = &["text[]", "character varying[]", "citext[]"];
const SECRET: &[&str] = &["text", "text[]", "character varying", "character varying[]"];
const BOOLEAN: &[&str] = &["boolean"];
const JSON: &[&str] = &["jsonb", "json"];
const WHOLE: &[&str] = &["integer", "smallint", "bigint"];
const NUMBER: &[&str] = &["double precision", "numeric", "real", "integer", "smallint", "bigint"];

fn endpoint_columns(config: &Config, tables: &Tables, report: &mut Report) -> Result<()> {
    let endpoints = &config.endpoints;
    let all = [
        wanted("endpoints.id", &endpoints.id, ANY),
        wanted("endpoints.account", &endpoints.account, ANY),
        wanted("endpoints.url", &endpoints.url, TEXT),
        wanted("endpoints.event_types", &endpoints.event_types, TEXTS),
        wanted("endpoints.secret", &endpoints.secret, SECRET),
        wanted("endpoints.enabled", &endpoints.enabled, BOOLEAN),
    ];
    let optional = [
        ("endpoints.headers", &endpoints.headers, JSON),
        ("endpoints.max_in_flight", &endpoints.max_in_flight, WHOLE),
        ("endpoints.rate_per_second", &endpoints.rate_per_second, NUMBER),
    ];
    let named = optional.iter().filter_map(|(key, column, types)| {
        column.as_ref().map(|column| wanted(key, column, types))
    });
    let all: Vec<Wanted<'_>> = all.into_iter().chain(named).collect();
    columns("endpoints", &endpoints.table.parse()?, &all, tables, report);
    let Some(accounts) = &config.accounts else { return Ok(()) };
    let all = [
        wanted("accounts.id", &accounts.id, ANY),
        wanted("accounts.weight", &accounts.weight, NUMBER),
    ];
    columns("accounts", &accounts.table.parse()?, &all, tables, report);
    Ok(())
}

fn columns(
    section: &str,
    name: &TableName,
    wanted: &[Wanted<'_>],
    tables: &Tables,
    report: &mut Report,
) {
    let Some(table) = tables.get(name) else {
        let mend = format!("correct {section}.table, or create it");
        report.fail(&format!("{section}.table"), format!("{name} does not exist"), mend);
        return;
    };
    let before = report.0.len();
    for Wanted { key, column, types } in wanted {
        let Some(found) = table.column(column) else {
            let finding = format!("{name} has no column {column}");
            report.fail(key, finding, format!("name the column in {key}"));
            continue;
        };
        // A type outside pg_catalog is printed with its schema.
        let bare = found.rsplit('.').next().unwrap_or(found);
        if !types.is_empty() && !types.contains(&bare) {
            let mend = format!("it must be {}", types.join(" or "));
            report.fail(key, format!("{name}.{column} is {found}"), mend);
        }
    }
    if report.0.len() == before {
        report.pass(section, format!("{name} has the columns that are named"));
    }
}

/// What `run` would say of the rules.
async fn rules(
    config: &Config,
    client: &Client,
    publication: Option<&Publication>,
    report: &mut Report,
) -> Result<()> {
    if config.events.is_empty() {
        let mend = "add [[events]]; `walhook config show --example` has one";
        report.fail("rules", "there is none, so nothing would ever be sent", mend);
    }
    let settings = RuleSettings::of(config);
    let mut catalog = catalog::load(client, settings.tables()).await?;
    if let Some(publication) = publication {
        catalog.leave_out(&publication.lists);
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
