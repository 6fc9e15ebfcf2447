//! Sessions: does the server let us have as many as a leader needs?

use anyhow::Result;
use tokio_postgres::Client;

use super::{NAME, Report};
use crate::config::Config;
use crate::server::sessions::{Need, Verdict, findings};
use walhook_postgres::pg::DatabaseUrl;
use walhook_postgres::sql::Connection;

const WHAT: &str = "sessions";

pub(super) async fn check(config: &Config, source: &Client, report: &mut Report) -> Result<()> {
    let (of_source, of_state) = Need::of_config(config);
    limits(source, of_source, report).await?;
    let (Some(url), Some(of_state)) = (&config.state.url, of_state) else { return Ok(()) };
    // That there is none is said where the state is looked at.
    let Ok(state) = open(url).await else { return Ok(()) };
    limits(&state, of_state, report).await
}

async fn open(url: &DatabaseUrl) -> Result<Connection> {
    Ok(Connection::open(url, NAME).await?)
}

async fn limits(client: &Client, need: Need, report: &mut Report) -> Result<()> {
    for finding in findings(client, need).await? {
        match finding.verdict {
            Verdict::Pass => report.pass(WHAT, finding.text),
            Verdict::Warn => report.warn(WHAT, finding.text, finding.fix),
            Verdict::Fail => report.fail(WHAT, finding.text, finding.fix),
        }
    }
    Ok(())
}
