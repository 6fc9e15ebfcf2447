//! The columns of the endpoint and account tables: are they there, and of types that are read?

use tokio_postgres::Client;

use super::Fault;
use crate::error::SourceError;
use crate::lookup::LookupSettings;
use crate::source;
use walhook_core::catalog::TableName;

/// What a column of the endpoint or account table may be.
struct Wanted<'a> {
    key: &'static str,
    column: &'a str,
    types: &'static [&'static str],
}

fn wanted<'a>(key: &'static str, column: &'a str, types: &'static [&'static str]) -> Wanted<'a> {
    Wanted { key, column, types }
}

/// So many columns at most are listed in a message.
const MAX_LISTED: usize = 20;

const ANY: &[&str] = &[];
const TEXT: &[&str] = &["text", "character varying", "character", "citext"];
const TEXTS: &[&str] = &["text[]", "character varying[]", "citext[]", "jsonb", "json"];
const SECRET: &[&str] =
    &["text", "text[]", "character varying", "character varying[]", "jsonb", "json"];
const BOOLEAN: &[&str] = &["boolean"];
const JSON: &[&str] = &["jsonb", "json"];
const WHOLE: &[&str] = &["integer", "smallint", "bigint"];
const NUMBER: &[&str] = &["double precision", "numeric", "real", "integer", "smallint", "bigint"];

/// What is wrong with the columns that the configuration names.
///
/// # Errors
/// When the server does not answer.
pub async fn columns(
    settings: LookupSettings<'_>,
    client: &Client,
) -> Result<Vec<Fault>, SourceError> {
    let LookupSettings { endpoints, accounts, .. } = settings;
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
    let mut faults = of_table(client, "endpoints", &endpoints.table, &all).await?;
    if let Some(accounts) = accounts {
        let mut all = vec![
            wanted("accounts.id", &accounts.id, ANY),
            wanted("accounts.weight", &accounts.weight, NUMBER),
        ];
        all.extend(accounts.reserved.iter().map(|r| wanted("accounts.reserved", r, WHOLE)));
        faults.extend(of_table(client, "accounts", &accounts.table, &all).await?);
    }
    Ok(faults)
}

async fn of_table(
    client: &Client,
    section: &str,
    name: &str,
    wanted: &[Wanted<'_>],
) -> Result<Vec<Fault>, SourceError> {
    let name: TableName = name.parse()?;
    let Some(table) = source::table(client, &name).await? else {
        let what = format!("{section}.table");
        let fix = format!("correct {section}.table, or create it");
        return Ok(vec![Fault { what, finding: format!("{name} does not exist"), fix }]);
    };
    let mut faults = Vec::new();
    for Wanted { key, column, types } in wanted {
        let what = (*key).to_owned();
        let Some(found) = table.column(column) else {
            let finding = format!("{name} has no column {column}");
            let there: Vec<&str> =
                table.columns.iter().map(|(name, _)| name.as_str()).take(MAX_LISTED).collect();
            let fix = format!("there are {}; name the column in {key}", there.join(", "));
            faults.push(Fault { what, finding, fix });
            continue;
        };
        // A type outside pg_catalog is printed with its schema.
        let bare = found.rsplit('.').next().unwrap_or(found);
        if !types.is_empty() && !types.contains(&bare) {
            let finding = format!("{name}.{column} is {found}");
            let fix = format!("it must be {}", types.join(" or "));
            faults.push(Fault { what, finding, fix });
        }
    }
    Ok(faults)
}
