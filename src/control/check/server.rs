//! The server's settings, the role's privileges, the slot and the state.

use anyhow::Result;
use tokio_postgres::Client;

use super::{Report, age, failover, one, role};
use crate::config::Config;
use crate::control::branch::left_timeline;
use crate::control::holder::user;
use crate::control::idle_pipelines::{self, IdlePipeline};
use crate::control::setup::{foreign, use_of_state};
use crate::control::{Databases, bytes};
use crate::server::prepared;
use walhook_core::halt::{self, Halt, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_core::partition::Partition;
use walhook_postgres::anchor;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::op::{EQ, MINUS};
use walhook_postgres::pg::Conninfo;
use walhook_postgres::preflight;
use walhook_postgres::row_security;
use walhook_postgres::slot::{self, Slot, WalStatus};
use walhook_postgres::source;
use walhook_postgres::sql;
use walhook_state::{Relations, SCHEMA_VERSION};

/// The `application_name` of our replication connection.
const REPLICATION_NAME: &str = "walhook";

/// Slots that we use at most: the live one, its anchor, and a temporary one while something is replayed.
const SLOTS: i64 = 3;

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    settings(config, client, report).await?;
    failover::settings(client, report).await?;
    role::check(config, client, report).await
}

async fn settings(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    match preflight::wal_level(client).await? {
        Ok(finding) => report.pass("wal_level", finding),
        Err(fault) => report.fault(fault),
    }
    let keep: String =
        one(client, "SELECT pg_catalog.current_setting('max_slot_wal_keep_size')").await?;
    if keep == "-1" {
        report.warn(
            "max_slot_wal_keep_size",
            "unlimited: while walhook is stopped, WAL may fill the server's disk",
            "set it to what the disk can spare",
        );
    } else if keep_bytes(client).await? < config.source.replay_window.0 {
        let window = config.source.replay_window;
        report.warn(
            "max_slot_wal_keep_size",
            format!(
                "{keep}, less than source.replay_window ({window}): the window is lost now and then"
            ),
            "raise it, or lower source.replay_window",
        );
    } else {
        report.pass("max_slot_wal_keep_size", keep);
    }
    let timeout: String =
        one(client, "SELECT pg_catalog.current_setting('wal_sender_timeout')").await?;
    if timeout == "0" {
        report.warn(
            "wal_sender_timeout",
            "0: a client that hangs keeps its slot for ever; walhook's own session has \
             source.lease_timeout instead",
            "set wal_sender_timeout = 60s",
        );
    } else {
        report.pass("wal_sender_timeout", timeout);
    }
    let name: String =
        one(client, "SELECT pg_catalog.getdatabaseencoding()::pg_catalog.text").await?;
    encoding(&name, report);
    let names: String =
        one(client, "SELECT pg_catalog.current_setting('synchronous_standby_names')").await?;
    if may_be_synchronous(&names) {
        report.fail(
            "synchronous_standby_names",
            format!(
                "{names}: takes walhook for a standby, so that commits, its own too, wait until it \
                 has delivered, and for ever while it is stopped"
            ),
            "name the standbys that commits are to wait for, without * and walhook",
        );
    } else {
        report.pass("synchronous_standby_names", "commits do not wait for walhook");
    }
    Ok(())
}

fn encoding(name: &str, report: &mut Report) {
    // Of that one PostgreSQL does not know what its bytes mean, and converts nothing.
    if name == "SQL_ASCII" {
        report.warn(
            "encoding",
            "SQL_ASCII: the server sends texts as they are, and walhook halts at one that is not UTF-8",
            "keep UTF-8 only in published columns, or move to a database with encoding UTF8",
        );
    } else {
        report.pass("encoding", name);
    }
}

/// Whether `synchronous_standby_names` takes our sender for a standby. PostgreSQL makes no difference
/// between physical and logical ones: all that counts is `application_name`, in any letter case.
///
/// Shape: names with commas between them, or `FIRST n (names)`, `ANY n (names)`, `n (names)`.
fn may_be_synchronous(setting: &str) -> bool {
    let names = setting.split_once('(').map_or(setting, |(_, names)| names);
    let mut names = names.trim_end().trim_end_matches(')').split(',');
    names.any(|name| {
        let name = name.trim().trim_matches('"');
        name == "*" || name.eq_ignore_ascii_case(REPLICATION_NAME)
    })
}

/// What is known of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpoint {
    /// It is here, in the WAL of this source.
    At(Lsn),
    /// It is that of another source, which was told of.
    OfAnother,
    /// There is none, or it could not be read.
    Unknown,
}

impl Checkpoint {
    /// Where it is in the WAL of this source.
    pub(super) fn of_this_source(self) -> Option<Lsn> {
        match self {
            Self::At(lsn) => Some(lsn),
            Self::OfAnother | Self::Unknown => None,
        }
    }
}

/// The slot, seen before the `checkpoint` was.
pub(super) async fn slot(
    config: &Config,
    client: &Client,
    slot: Option<Slot>,
    checkpoint: Checkpoint,
    report: &mut Report,
) -> Result<()> {
    let (name, frontier) = (&config.source.slot, checkpoint.of_this_source());
    free_slots(name, client, report).await?;
    let active_pid = slot.as_ref().and_then(|slot| slot.active_pid);
    if active_pid.is_none() {
        let sql = "SELECT pg_catalog.current_setting('max_wal_senders')::bigint
                       OPERATOR(pg_catalog.-) pg_catalog.count(*)
                   FROM pg_catalog.pg_stat_replication";
        let left: i64 = one(client, sql).await?;
        match left {
            1.. => report.pass("max_wal_senders", format!("{left} left")),
            _ => report.fail("max_wal_senders", "none left", "raise it and restart the server"),
        }
    }
    let state = slot.as_ref().map(Slot::state);
    let begins = state.as_ref().and_then(|state| state.confirmed_flush);
    let checked = halt::check_slot(name, state.as_ref(), frontier.or(begins).unwrap_or_default());
    match (checked, frontier) {
        (Err(Halt::SlotMissing { .. }), None) if checkpoint == Checkpoint::OfAnother => {
            let fix = "do what is said above of the state; no slot is made before";
            report.fail("slot", format!("{name} does not exist here"), fix);
            return Ok(());
        }
        (Err(Halt::SlotMissing { .. }), None) => {
            report.fail("slot", format!("{name} does not exist"), "run `walhook setup`");
            return Ok(());
        }
        (Err(Halt::SlotLost { why, .. }), None) => {
            let finding = format!("{name} is lost, and no checkpoint rests on it: {why}");
            report.fail("slot", finding, "run `walhook teardown`, then `walhook setup`");
            return Ok(());
        }
        (Err(Halt::SlotTwoPhase { .. }), None) => {
            let finding = format!("{name} sends transactions when they are prepared (two_phase)");
            report.fail("slot", finding, "drop that slot, then run `walhook setup`");
            return Ok(());
        }
        (Err(halt), _) => {
            report.halt("slot", &halt);
            return Ok(());
        }
        (Ok(()), _) => {}
    }
    let Some(slot) = slot else { return Ok(()) };
    if slot.wal_status == WalStatus::Unreserved {
        report.warn(
            "slot",
            format!("{name} retains more WAL than max_slot_wal_keep_size and will soon be lost"),
            "start `walhook run`, or raise the limit",
        );
    } else if let Some(pid) = active_pid {
        report.pass(
            "slot",
            format!("{name} is in use by {}", user(Databases::of(config), client, pid).await?),
        );
    } else {
        let retained = slot.retained_bytes();
        report.pass("slot", format!("{name} is free and retains {retained} bytes of WAL"));
    }
    let anchor_name = anchor::name(name);
    let anchor = anchor::read(client, name).await?;
    if anchor.as_ref().is_some_and(|anchor| !anchor.is_ours()) {
        let finding =
            format!("{anchor_name} is another program's, so that there is no replay window");
        report.warn("anchor", finding, "drop that slot, or choose another source.slot");
    } else if let Some(why) = anchor.and_then(|anchor| anchor.lost) {
        let finding = format!("{anchor_name} is lost, and the replay window with it: {why}");
        report.warn("anchor", finding, format!("a running leader begins it anew. {}", why.fix()));
    }
    age::check(config, client, frontier, report).await?;
    failover::slot(client, name, report).await
}

/// What `max_slot_wal_keep_size` limits a slot to; it is kept in megabytes.
async fn keep_bytes(client: &Client) -> Result<u64> {
    let sql = "SELECT setting::bigint OPERATOR(pg_catalog.*) 1048576 FROM pg_catalog.pg_settings
               WHERE name OPERATOR(pg_catalog.=) 'max_slot_wal_keep_size'";
    let bytes: i64 = client.query_one(sql, &[]).await?.try_get(0)?;
    Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// Whether the server has room for the slots of ours that are not there yet.
async fn free_slots(name: &str, client: &Client, report: &mut Report) -> Result<()> {
    let sql = format!(
        "SELECT pg_catalog.current_setting('max_replication_slots')::bigint
                    {MINUS} pg_catalog.count(*),
                pg_catalog.count(*) FILTER (WHERE slot_name {EQ} $1::pg_catalog.text),
                pg_catalog.count(*) FILTER (WHERE slot_name {EQ} $2::pg_catalog.text)
         FROM pg_catalog.pg_replication_slots"
    );
    let anchor = anchor::name(name);
    let row = client.query_one(&sql, &[&name, &anchor]).await?;
    let (left, live, anchors): (i64, i64, i64) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let missing = SLOTS - live - anchors;
    let fix = "raise it and restart the server, or drop a slot that is not used";
    if left >= missing {
        report.pass("max_replication_slots", format!("{left} left"));
    } else if left == 0 && live == 0 {
        report.fail("max_replication_slots", "none left", fix);
    } else {
        let finding = format!(
            "{left} left, but walhook needs {missing} more: a running leader keeps {anchor}, and \
             a replay reads from a slot of its own"
        );
        report.warn("max_replication_slots", finding, fix);
    }
    Ok(())
}

/// A session for people: its pid and what is known of it.
pub(crate) async fn session(client: &Client, pid: i32) -> Result<String> {
    let sql = "SELECT pg_catalog.format('pid %s (%s, %s, %s)', pid, usename,
                      CASE WHEN application_name OPERATOR(pg_catalog.<>) '' THEN application_name
                      ELSE 'no application name' END,
                      coalesce(pg_catalog.host(client_addr), 'local'))
               FROM pg_catalog.pg_stat_activity WHERE pid OPERATOR(pg_catalog.=) $1";
    match client.query_opt(sql, &[&pid]).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Ok(format!("pid {pid}")),
    }
}

/// Whether the state is there, ours to write, and of this source. `client` is the state database's.
pub(super) async fn state(
    config: &Config,
    client: &Client,
    report: &mut Report,
) -> Result<Checkpoint> {
    let schema = &config.state.schema;
    let tables = walhook_state::tables();
    let relations = Relations::find(client, schema).await?;
    if let Some((finding, fix)) = foreign(schema, &relations) {
        report.fail("state", finding, fix);
        return Ok(Checkpoint::Unknown);
    }
    let found = relations.tables.len();
    if found < tables.len() {
        let finding = format!("the schema {schema} has {found} of {} tables", tables.len());
        report.fail("state", finding, role::fix_of_state(config, client).await?);
        return Ok(Checkpoint::Unknown);
    }
    let role: String = one(client, "SELECT current_user::pg_catalog.text").await?;
    let sql =
        "SELECT pg_catalog.has_schema_privilege($1, 'USAGE') AND coalesce(pg_catalog.bool_and(
                          pg_catalog.has_table_privilege(c.oid, 'SELECT')
                          AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
                          AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')
                          AND pg_catalog.has_table_privilege(c.oid, 'DELETE')), false)
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
               WHERE n.nspname OPERATOR(pg_catalog.=) $1
               AND c.relname OPERATOR(pg_catalog.=) ANY ($2)";
    if !client.query_one(sql, &[schema, &tables]).await?.try_get::<_, bool>(0)? {
        let finding = format!("{role} may not use the schema {schema}");
        report.fail("state", finding, use_of_state(config, client).await?);
        return Ok(Checkpoint::Unknown);
    }
    if let Some(barred) = row_security::barred(client, schema, &tables, None).await? {
        report.fail("state", barred.finding(), barred.fix());
        return Ok(Checkpoint::Unknown);
    }
    report.pass("state", format!("the schema {schema} is there and {role} may use it"));
    checkpoint(config, client, report).await
}

/// Says where the tables are those of an earlier version.
fn version(found: i32, report: &mut Report) {
    if found < SCHEMA_VERSION {
        report.warn(
            "state",
            format!("the tables have version {found}, for an earlier walhook to lead on: deferred deliveries are rows, which take some nine times the room of pages"),
            "run `walhook setup` when none is to lead again",
        );
    }
}

async fn checkpoint(config: &Config, client: &Client, report: &mut Report) -> Result<Checkpoint> {
    let schema = quote_ident(&config.state.schema);
    let sql = format!(
        "SELECT m.system_identifier::pg_catalog.text, m.timeline, m.host, m.database,
                c.frontier::pg_catalog.text, c.halt_reason, m.schema_version
         FROM {schema}.meta m JOIN {schema}.checkpoint c ON c.pipeline {EQ} m.pipeline
         WHERE m.pipeline {EQ} $1 AND c.partition {EQ} $2"
    );
    let row = client.query_opt(&sql, &[&config.source.slot, &Partition::SOLE.number()]).await?;
    let source = sql::Connection::open(&config.source.url, super::NAME).await?;
    let identity = source::identity(&source, &Conninfo::parse(&config.source.url)?).await?;
    let own = &config.source.slot;
    let others = (config.state.schema.as_str(), own.as_str());
    for IdlePipeline { pipeline, retained_bytes } in
        idle_pipelines::find((&source, &identity), client, others).await?
    {
        let finding = format!(
            "no instance runs the pipeline {pipeline} of this schema, whose slot retains {}",
            bytes(retained_bytes)
        );
        let fix = format!(
            "start it, or remove it with `walhook teardown`; if `source.slot` was changed from {pipeline} to \
             {own}, set it back"
        );
        report.warn("pipelines", finding, fix);
    }
    let Some(row) = row else {
        report.fail("checkpoint", "there is none", "run `walhook setup`");
        return Ok(Checkpoint::Unknown);
    };
    version(row.try_get(6)?, report);
    let stored = SourceIdentity {
        system_identifier: row.try_get::<_, &str>(0)?.parse()?,
        timeline: row.try_get::<_, i32>(1)?.cast_unsigned(),
        host: row.try_get(2)?,
        database: row.try_get(3)?,
    };
    let state = Databases::of(config).open_state().await?;
    let read = state.reached().await?;
    let same = if halt::is_promoted(&identity, &stored) {
        let left = left_timeline(config, super::NAME, &identity, &stored).await?;
        halt::check_promotion(&identity, &stored, left, read)
    } else {
        halt::check_source(&identity, &stored)
    };
    if let Err(halt) = &same {
        report.halt("state", halt);
    }
    let stored: Lsn = row.try_get::<_, &str>(4)?.parse()?;
    let mut frontier = stored;
    if same.is_ok() {
        let slot = slot::read(&source, &config.source.slot).await?;
        frontier =
            prepared::checkpoint(&state, &source, &config.source.slot, slot.as_ref()).await?;
        let read = read.max(frontier);
        if let Err(halt) = halt::check_wal_end(slot::wal_end(&source).await?, read) {
            report.halt("checkpoint", &halt);
            return Ok(Checkpoint::Unknown);
        }
    }
    match row.try_get::<_, Option<&str>>(5)? {
        Some(reason) => {
            // The lines below say whether the reason still stands.
            let finding = format!("halted at {frontier}: {reason}");
            report.warn("checkpoint", finding, "once nothing fails here, start `walhook run`");
        }
        None => report.pass("checkpoint", format!("at {frontier}")),
    }
    Ok(match same {
        Ok(()) => Checkpoint::At(frontier),
        Err(_) => Checkpoint::OfAnother,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn standby_names_take_us_in_whatever_form_the_list_has() {
        for names in
            ["*", "walhook", "a, WALHOOK", "2 (a,\"walhook\" , b)", "ANY 1 (a, *)", "\"*\""]
        {
            assert!(may_be_synchronous(names), "{names}");
        }
        for names in ["", "a", "walhook2, a", "FIRST 1 (a, b)", "ANY 2 (my_walhook, b)"] {
            assert!(!may_be_synchronous(names), "{names}");
        }
    }

    #[test]
    fn encoding_that_promises_nothing_is_warned_of() {
        for (name, expected) in [("SQL_ASCII", Verdict::Warn), ("UTF8", Verdict::Pass)] {
            let mut report = Report::default();
            encoding(name, &mut report);
            assert_eq!(report.0[0].verdict, expected, "{name}");
        }
    }
}
