//! Does a look-up work, in the session in which `run` makes them?

use anyhow::Result;
use tokio_postgres::error::SqlState;

use super::{NAME, Report};
use crate::config::Config;
use crate::engine::event::AccountId;
use crate::io::lookup::{self, LookupError, Lookups};

const WHAT: &str = "look-up";

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
        let first = lookup::list(&client, &config.endpoints, None, None, "", 1).await?;
        let accounts: Vec<_> = first.iter().map(|row| AccountId::new(&*row.account)).collect();
        Lookups::new(&config.endpoints, config.accounts.as_ref()).fetch(&client, &accounts).await
    };
    match looked_up.await {
        Ok(_) => {
            let path = &config.endpoints.search_path;
            report.pass(WHAT, format!("works under the search_path {path}"));
        }
        Err(error) => {
            let mend = mend(config, &error);
            report.fail(WHAT, format!("{:#}", anyhow::Error::from(error)), mend);
        }
    }
    Ok(())
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
