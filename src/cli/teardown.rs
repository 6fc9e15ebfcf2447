//! `walhook teardown`: drops what `walhook setup` made for this pipeline.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::check::session;
use super::confirm::confirm;
use super::setup::{existing_tables, state_tables, state_views};
use super::table::one_line;
use super::{CommandResult, Common, print_json, print_line, secret};
use crate::config::Config;
use crate::engine::endpoint::Secret;
use crate::io::anchor;
use crate::io::ident::quote_ident;
use crate::io::op::{EQ, NE};
use crate::io::pg::Conninfo;
use crate::io::slot;
use crate::io::source;
use crate::io::sql::Connection;

const NAME: &str = "walhook teardown";

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Refuses while an instance runs. What has not been delivered is forgotten, dead letters too.

Examples:
  walhook teardown --yes
  walhook teardown --admin-url postgres://postgres@localhost/app   what that role set up")]
pub struct Args {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// A role that owns what our own does not: the one that `setup --admin-url` was given
    #[arg(long, value_name = "URL", env = "WALHOOK_ADMIN_URL", hide_env_values = true, value_parser = secret)]
    admin_url: Option<Secret>,
}

/// Drops the slot, the publication and the state, after asking.
///
/// # Errors
/// When it is not confirmed, the slot is in use, or our role may not drop.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let source = open(&config, args.admin_url.as_ref()).await?;
    refuse_while_active(&config, &source).await?;
    if !args.yes {
        confirm("teardown", &plan(&config), &config.source.slot)?;
    }
    let dropped = tear_down(&config, &source).await?;
    if common.json {
        return print_json(&json!({ "dropped": dropped }));
    }
    if dropped.is_empty() {
        return print_line("there was nothing to drop");
    }
    dropped.iter().try_for_each(|what| print_line(&one_line(&format!("dropped  {what}"))))
}

/// Opens the source database, as an administrator where one is given.
async fn open(config: &Config, admin: Option<&Secret>) -> Result<Connection> {
    let Some(url) = admin else {
        return Connection::open(&config.source.url, NAME).await.context("source.url");
    };
    let own = Conninfo::parse(&config.source.url).context("source.url")?;
    let theirs = Conninfo::parse(url).context("--admin-url")?;
    ensure!(
        own.database() == theirs.database(),
        "--admin-url leads to another database than source.url; name the same"
    );
    Connection::open(url, NAME).await.context("--admin-url")
}

/// Refuses while the slot is active, and names the session.
pub(super) async fn refuse_while_active(config: &Config, source: &Client) -> Result<()> {
    let slot = slot::read(source, &config.source.slot).await?;
    let Some(pid) = slot.and_then(|slot| slot.active_pid) else { return Ok(()) };
    anyhow::bail!(
        "the slot {} is in use by {}; stop that first",
        config.source.slot,
        session(source, pid).await?
    )
}

fn plan(config: &Config) -> String {
    let slot = &config.source.slot;
    format!(
        "This drops the slots {slot} and {slot}_anchor, the publication {} and all of {slot}'s state in the schema {}: \
         what is not yet delivered is forgotten.",
        config.source.publication, config.state.schema
    )
}

/// The slot first: until it is gone it pins WAL, whatever happens to the rest.
async fn tear_down(config: &Config, source: &Client) -> Result<Vec<String>> {
    let mut dropped = vec![];
    let slot = &config.source.slot;
    for slot in [slot.clone(), anchor::name(slot)] {
        if slot::read(source, &slot).await?.is_some() {
            let drop =
                source.execute("SELECT pg_catalog.pg_drop_replication_slot($1)", &[&slot]).await;
            drop.with_context(|| format!("cannot drop the slot {slot}"))?;
            dropped.push(format!("slot {slot}"));
        }
    }
    let publication = &config.source.publication;
    if source::publication(source, publication).await?.is_some() {
        let drop = format!("DROP PUBLICATION {}", quote_ident(publication));
        let failed =
            || format!("cannot drop the publication {publication}; its owner can (--admin-url)");
        source.batch_execute(&drop).await.with_context(failed)?;
        dropped.push(format!("publication {publication}"));
    }
    match &config.state.url {
        None => state(config, source, &mut dropped).await?,
        Some(url) => {
            let state_db = Connection::open(url, NAME).await.context("state.url")?;
            state(config, &state_db, &mut dropped).await?;
        }
    }
    Ok(dropped)
}

/// Removes this pipeline's rows, and with the last pipeline the tables and their schema.
async fn state(config: &Config, client: &Client, dropped: &mut Vec<String>) -> Result<()> {
    let name = &config.state.schema;
    let schema = quote_ident(name);
    let tables = state_tables();
    let found = existing_tables(client, name, &tables).await?;
    if found == 0 {
        return Ok(());
    }
    let slot = &config.source.slot;
    if found == tables.len() {
        let sql = format!("SELECT pg_catalog.count(*) FROM {schema}.meta WHERE pipeline {NE} $1");
        let others: i64 = client.query_one(&sql, &[slot]).await?.try_get(0)?;
        if others > 0 {
            for table in tables {
                let sql = format!("DELETE FROM {schema}.{table} WHERE pipeline {EQ} $1");
                client.execute(&sql, &[slot]).await?;
            }
            dropped.push(format!("state of {slot} (the schema {name} holds other pipelines)"));
            return Ok(());
        }
    }
    let views = state_views().into_iter().map(|view| ("VIEW", view));
    for (kind, relation) in views.chain(tables.into_iter().map(|table| ("TABLE", table))) {
        let drop = format!("DROP {kind} IF EXISTS {schema}.{relation}");
        let failed = || format!("cannot drop {name}.{relation}; its owner can (--admin-url)");
        client.batch_execute(&drop).await.with_context(failed)?;
    }
    dropped.push(format!("state tables in {name}"));
    // What is not ours in it stays, and so does the schema then; `public` is never ours.
    if name == "public" {
        return Ok(());
    }
    match client.batch_execute(&format!("DROP SCHEMA {schema}")).await {
        Ok(()) => dropped.push(format!("schema {name}")),
        Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot drop the schema {name}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture::Fixture;
    use crate::cli::setup;

    const LEFT: &str = "SELECT concat_ws(' ', (SELECT count(*) FROM pg_replication_slots),
        (SELECT count(*) FROM pg_publication),
        (SELECT count(*) FROM pg_namespace WHERE nspname = 'walhook'))";

    #[tokio::test]
    async fn teardown_leaves_nothing_and_is_done_once() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        assert_eq!(fixture.text(LEFT).await, "1 1 1");
        let source = fixture.connect().await;
        let dropped = tear_down(&config, &source).await.unwrap();
        assert_eq!(dropped.len(), 4, "{dropped:?}");
        assert_eq!(fixture.text(LEFT).await, "0 0 0");
        assert!(tear_down(&config, &source).await.unwrap().is_empty());
        setup::quietly(&config).await.unwrap();
        assert_eq!(fixture.text(LEFT).await, "1 1 1");
    }

    #[tokio::test]
    async fn teardown_as_the_owner_drops_what_our_role_may_not() {
        let fixture = Fixture::start().await;
        setup::quietly(&fixture.config("")).await.unwrap();
        fixture.run("CREATE ROLE sender LOGIN REPLICATION").await;
        let config = fixture.config_as("sender", "");
        let own = open(&config, None).await.unwrap();
        let error = format!("{:#}", tear_down(&config, &own).await.unwrap_err());
        assert!(error.contains("--admin-url"), "{error}");

        let elsewhere = Secret::new(fixture.cluster.url("postgres"));
        assert!(open(&config, Some(&elsewhere)).await.is_err());
        let admin = Secret::new(fixture.cluster.url("app"));
        let admin = open(&config, Some(&admin)).await.unwrap();
        tear_down(&config, &admin).await.unwrap();
        assert_eq!(fixture.text(LEFT).await, "0 0 0");
    }

    #[tokio::test]
    async fn teardown_keeps_the_state_of_other_pipelines_and_what_is_not_ours() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        let mut other = config.clone();
        other.source.slot = "other".to_owned();
        other.source.publication = "other".to_owned();
        setup::quietly(&other).await.unwrap();
        fixture.run("CREATE TABLE walhook.mine ()").await;
        let source = fixture.connect().await;

        tear_down(&config, &source).await.unwrap();
        let left = "SELECT string_agg(pipeline, ' ') FROM walhook.checkpoint";
        assert_eq!(fixture.text(left).await, "other");

        tear_down(&other, &source).await.unwrap();
        assert_eq!(fixture.text("SELECT count(*)::text FROM walhook.mine").await, "0");
    }

    #[tokio::test]
    async fn teardown_refuses_while_the_slot_is_in_use_and_names_the_process() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        setup::quietly(&config).await.unwrap();
        let source = fixture.connect().await;
        let reader = fixture.read_slot().await;
        let slot = slot::read(&source, "walhook").await.unwrap().unwrap();
        let pid = slot.active_pid.unwrap();
        let error = refuse_while_active(&config, &source).await.unwrap_err().to_string();
        assert!(error.contains(&format!("pid {pid} (postgres, a reader")), "{error}");
        drop(reader);
    }
}
