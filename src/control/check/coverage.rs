//! Partitions and children of the tables that the configuration names: are their changes in the stream?

use anyhow::Result;
use tokio_postgres::Client;

use super::Report;
use crate::config::Config;
use crate::control::setup::published;
use walhook_postgres::coverage::{Kind, Lack};
use walhook_postgres::coverage::{Seen, look};

const SUBJECT: &str = "publication";

/// So many tables are listed, and their number.
const MAX_LISTED: usize = 50;

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let name = &config.source.publication;
    // The system's number only marks the look, which is not kept.
    let looked = look(client, name, &published(config)?, 0).await?;
    let lacking = looked.tables.iter().filter_map(|seen| Some((seen, seen.covered.lack?)));
    let lacking: Vec<(&Seen, Lack)> = lacking.collect();
    for (Seen { covered, can_be_added, .. }, lack) in lacking.iter().take(MAX_LISTED) {
        let told = lack.describe(covered, name);
        let (finding, fix) = told.rsplit_once("; ").unwrap_or((&told, ""));
        match (lack, covered.kind) {
            // `check_publication` says so.
            (Lack::Unpublished | Lack::Identityless | Lack::Filtered, Kind::Named) => {}
            (Lack::Unpublished, _) if *can_be_added => {
                let fix = "run `walhook setup`; `walhook run` adds it too, and records a gap";
                report.warn(SUBJECT, finding, fix);
            }
            // Both may be meant so.
            (Lack::Unlogged | Lack::Foreign, Kind::Partition | Kind::Child) => {
                report.warn(SUBJECT, finding, fix);
            }
            (Lack::Unpublished | Lack::Identityless | Lack::Filtered, _)
            | (Lack::Unlogged | Lack::Foreign, Kind::Named) => report.fail(SUBJECT, finding, fix),
        }
    }
    if lacking.len() > MAX_LISTED {
        let finding = format!("{} tables in all lack something like this", lacking.len());
        report.warn(SUBJECT, finding, "fix those that are listed, and check again");
    }
    let mut children = looked.tables.iter().filter(|seen| seen.covered.kind == Kind::Child);
    let by_itself = |seen: &Seen| seen.covered.by.iter().any(|by| !by.starts_with('t'));
    if let Some(child) = children.find(|seen| !by_itself(seen))
        && !looked.owns_publication
    {
        let finding = format!(
            "{} is published by its own name, and {name} belongs to another role: a child that is made \
             later is not sent until its owner adds it",
            child.covered.describe()
        );
        let fix = "make the publication's owner, and that of such tables, a role that walhook's is a member \
                   of, or publish FOR TABLES IN SCHEMA";
        report.warn(SUBJECT, finding, fix);
    }
    Ok(())
}
