//! What must be in place at the source before somebody leads for the first time.

use tokio_postgres::Client;

use super::open::direct_url;
use super::{OpenError, StartError};
use crate::config::Config;
use crate::server::sessions::{Finding, LEASE, Need, SENTINEL, Verdict, findings, open_source};
use walhook_postgres::sql::Connection;
use walhook_postgres::{preflight, source};

/// Refuses what is not in place at the source, all of it at once.
pub(super) async fn preflight(config: &Config) -> Result<(), OpenError> {
    let client = open_source::<OpenError>(direct_url(config), SENTINEL).await?;
    // What it lacks, the primary may have.
    source::refuse_standby(&client).await?;
    let version = source::server_version(&client).await?;
    if version < source::OLDEST_SERVER {
        return Err(OpenError::refused(StartError::OldServer { version: version / 10_000 }));
    }
    let faults = preflight::faults(config.lookups(), &client).await?;
    tell_of_limits(config, &client).await?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(OpenError::refused(StartError::NotInPlace { faults }))
}

/// Logs the limits that leave us too few sessions, and their fixes. That is no reason not to start: they may
/// be raised at any time, and until then readiness tells whose session is refused.
async fn tell_of_limits(config: &Config, source: &Client) -> Result<(), OpenError> {
    let (of_source, of_state) = Need::of_config(config);
    let mut found = findings(source, of_source).await?;
    if let (Some(url), Some(of_state)) = (&config.state.url, of_state) {
        // That there is none is said where the state is opened.
        if let Ok(state) = Connection::open(url, LEASE.name).await {
            found.extend(findings(&state, of_state).await?);
        }
    }
    for Finding { verdict, text, fix } in found {
        match verdict {
            Verdict::Pass => {}
            Verdict::Warn => tracing::warn!(problem = %text, fix, "sessions may become scarce"),
            Verdict::Fail => tracing::error!(problem = %text, fix, "there are too few sessions"),
        }
    }
    Ok(())
}
