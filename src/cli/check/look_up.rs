//! Does a look-up work, in the session in which `run` makes them?

use anyhow::Result;
use tokio_postgres::error::SqlState;

use super::{NAME, Report};
use crate::config::Config;
use crate::engine::event::AccountId;
use crate::engine::sign::Weakness;
use crate::io::lookup::{self, Listed, LookupError, Lookups, Which};

const WHAT: &str = "look-up";

/// Endpoints that are looked at, by their ids.
const LOOKED_AT: i64 = 10_000;

/// Endpoints that are named of those with one thing wrong.
const NAMED: usize = 5;

/// What a name that is not found says, in the words of the server.
const MISSING: [SqlState; 5] = [
    SqlState::UNDEFINED_FUNCTION,
    SqlState::UNDEFINED_TABLE,
    SqlState::UNDEFINED_OBJECT,
    SqlState::UNDEFINED_COLUMN,
    SqlState::INVALID_SCHEMA_NAME,
];

/// Looks up the endpoints of an account that has one: functions behind a view are only called for rows.
pub(super) async fn check(config: &Config, report: &mut Report) -> Result<()> {
    let client = match lookup::connect(config, NAME).await {
        Ok(client) => client,
        Err(error) => {
            report.fail(WHAT, format!("{error:#}"), "correct endpoints.search_path");
            return Ok(());
        }
    };
    let looked_up = async {
        let lookups = Lookups::of(config);
        let listed = lookups.list(&client, Which { limit: LOOKED_AT, ..Which::default() }).await?;
        let first = listed.iter().find(|row| row.invalid.is_none()).or(listed.first());
        let accounts: Vec<_> = first.iter().map(|row| AccountId::new(&*row.account)).collect();
        lookups.fetch(&client, &accounts).await?;
        Ok::<_, LookupError>(listed)
    };
    match looked_up.await {
        Ok(listed) => {
            let path = &config.endpoints.search_path;
            report.pass(WHAT, format!("works under the search_path {path}"));
            endpoints(&listed, report);
        }
        Err(error) => {
            let mend = mend(config, &error);
            report.fail(WHAT, format!("{:#}", anyhow::Error::from(error)), mend);
        }
    }
    Ok(())
}

/// What is wrong, or weak, with the endpoints that are switched on. Never fails: other endpoints work.
fn endpoints(listed: &[Listed], report: &mut Report) {
    let enabled: Vec<&Listed> = listed.iter().filter(|row| row.enabled).collect();
    let among = match i64::try_from(listed.len()) {
        Ok(LOOKED_AT) => format!("of the first {LOOKED_AT} endpoints"),
        _ => format!("of {} endpoints", listed.len()),
    };
    let invalid: Vec<&&Listed> = enabled.iter().filter(|row| row.invalid.is_some()).collect();
    if !invalid.is_empty() {
        let named = invalid
            .iter()
            .take(NAMED)
            .map(|row| format!("{} ({})", row.id, row.invalid.as_deref().unwrap_or_default()));
        let named = named.collect::<Vec<_>>().join(", ");
        let finding = format!("{} {among} cannot be used: {named}", invalid.len());
        let mend = "correct their rows: until then what comes for them becomes dead letters";
        report.warn("endpoints", finding, mend);
    }
    for (weakness, what) in [
        (Weakness::Plain, "have a secret of plain text, which few libraries take"),
        (Weakness::Short, "have a secret of fewer than 24 bytes"),
    ] {
        let weak: Vec<&str> = enabled
            .iter()
            .filter(|row| row.weak == Some(weakness))
            .map(|row| row.id.as_str())
            .collect();
        if !weak.is_empty() {
            let named = weak.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let finding = format!("{} {among} {what}: {named}", weak.len());
            report.warn("secrets", finding, "use whsec_ and the base64 of 24 to 64 random bytes");
        }
    }
}

fn mend(config: &Config, error: &LookupError) -> String {
    let table = &config.endpoints.table;
    let LookupError::Sql(error) = error else { return format!("correct {table}") };
    if error.code().is_some_and(|code| MISSING.contains(code)) {
        return format!(
            "{table} is read under the search_path {}: name the schemas that its functions rely on in \
             endpoints.search_path, or better give those functions a path of their own with ALTER \
             FUNCTION ... SET search_path",
            config.endpoints.search_path
        );
    }
    format!("correct what {table} holds or calls")
}
