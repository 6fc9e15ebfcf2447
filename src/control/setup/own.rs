//! Is a slot of our name ours? Another program that reads it would lose what we acknowledge.

use super::sessions::Sessions;
use crate::config::Config;
use crate::control::holder::user;
use crate::control::{Databases, Failure, idle_pipelines};
use walhook_core::halt::Halt;
use walhook_postgres::anchor;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, NE};
use walhook_postgres::slot::Slot;

/// Refuses a slot that is there before the first checkpoint and was not `recorded` as ours: `slot`, or one of
/// the anchor's name. One that could be ours, and that nobody reads, is `adopted` where somebody says so.
pub(super) async fn ensure_ours(
    config: &Config,
    sessions: &Sessions,
    slot: Option<&Slot>,
    recorded: bool,
    adopted: bool,
) -> Result<(), Failure> {
    let name = &config.source.slot;
    let anchor = anchor::read(&sessions.source, name).await.map_err(anyhow::Error::from)?;
    let anchor_name = anchor::name(name);
    // An anchor is made of our slot, so it cannot be older.
    let strange =
        [(name, slot, recorded), (&anchor_name, anchor.as_ref(), recorded && slot.is_some())];
    for (name, slot, recorded) in strange {
        let Some(slot) = slot else { continue };
        let can_be_ours = slot.is_ours() && !slot.two_phase;
        if can_be_ours && (recorded || adopted && slot.active_pid.is_none()) {
            continue;
        }
        if let Some(database) = slot.database.as_ref().filter(|_| !slot.here) {
            let problem = format!(
                "it belongs to the database {database} of this cluster, most likely to another pipeline"
            );
            return Err(Halt::SlotForeign { slot: name.clone(), problem, elsewhere: true }.into());
        }
        let mut problem =
            format!("it was there before, {}, and walhook did not make it", kind(slot));
        if can_be_ours {
            let first = if slot.active_pid.is_some() { "stop what uses it; " } else { "" };
            problem.push_str(&format!(
                ", or its state is not in the schema {}: mostly `state.schema` or `state.url` is another than it was set \
                 up with; or its state tables are gone: then {first}`walhook setup --adopt-slot` goes on where the slot \
                 stands",
                config.state.schema
            ));
        }
        if let Some(pid) = slot.active_pid {
            let user = user(Databases::of(config), &sessions.source, pid).await?;
            problem.push_str(&format!("; it is in use by {user}"));
        }
        return Err(Halt::SlotForeign { slot: name.clone(), problem, elsewhere: false }.into());
    }
    Ok(())
}

/// Refuses a new pipeline in a copy of a database that has one, and beside one that nobody runs: mostly it is the same one,
/// and only `source.slot` was changed.
pub(super) async fn ensure_one_more(config: &Config, sessions: &Sessions) -> Result<(), Failure> {
    ensure_no_copy(config, sessions).await?;
    let (schema, own) = (&config.state.schema, &config.source.slot);
    let source = (&*sessions.source, &sessions.identity);
    let idle = idle_pipelines::find(source, sessions.state(), (schema, own)).await?;
    if idle.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = idle.iter().map(|idle| idle.pipeline.as_str()).collect();
    let names = names.join(", ");
    Err(Failure::Usage(anyhow::anyhow!(
        "the state schema {schema} holds no pipeline {own}, but {names}, which no instance runs: if `source.slot` \
         was changed or is mistyped, set it back, for what waits there would be sent by nobody; if this is \
         one more pipeline, `walhook setup --new-pipeline`"
    )))
}

/// Refuses a database whose state tables came with it from another one: its endpoints did, too.
async fn ensure_no_copy(config: &Config, sessions: &Sessions) -> Result<(), Failure> {
    // Elsewhere they may be of many sources.
    if !sessions.is_one() {
        return Ok(());
    }
    let (schema, own, here) = (&config.state.schema, &config.source.slot, &sessions.identity);
    let sql = format!(
        "SELECT pipeline, database FROM {}.meta
         WHERE pipeline {NE} $1 AND NOT (system_identifier {EQ} $2::pg_catalog.text::numeric AND database {EQ} $3)
         ORDER BY pipeline LIMIT 1",
        quote_ident(schema)
    );
    let system_identifier = here.system_identifier.to_string();
    let row = sessions.state().query_opt(&sql, &[own, &system_identifier, &here.database]).await;
    let Some(row) = row.map_err(anyhow::Error::from)? else { return Ok(()) };
    let text = |n: usize| row.try_get::<_, String>(n).map_err(anyhow::Error::from);
    let (pipeline, of, database) = (text(0)?, text(1)?, &here.database);
    let whose = match of == *database {
        true => "a database of this name in another cluster".to_owned(),
        false => format!("the database {of}"),
    };
    Err(Failure::Usage(anyhow::anyhow!(
        "the state tables in the schema {schema} are those of the pipeline {pipeline} of {whose}. If this one \
         ({database}) is a copy of that, its endpoints are copies too, and walhook would send to your customers: point them \
         elsewhere first, then `walhook setup --new-pipeline` begins with what is committed from then on, and what waits in \
         the copied tables is never sent. If it is the same database, which was renamed or has moved, set `source.slot` back \
         to {pipeline} and run `walhook recover --adopt-cluster`"
    )))
}

/// What kind of slot it is.
fn kind(slot: &Slot) -> String {
    let Some(plugin) = &slot.plugin else { return "a physical slot".to_owned() };
    let temporary = if slot.temporary { "temporary " } else { "" };
    let two_phase = if slot.two_phase { ", for prepared transactions too" } else { "" };
    format!("a {temporary}slot of the plugin {plugin}{two_phase}")
}
