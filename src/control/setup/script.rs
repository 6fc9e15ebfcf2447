//! The SQL of the set-up, as text: what `setup` runs, and what `setup --print-sql` shows.

use std::collections::BTreeSet;

use crate::config::Config;
use walhook_core::catalog::{TableName, TableNameError};
use walhook_core::partition::Partition;
use walhook_core::settings::SEARCH_PATH;
use walhook_postgres::ident::{quote_ident, quote_literal, quote_name};
use walhook_postgres::op::{EQ, PLUS};
use walhook_postgres::pg::Conninfo;
use walhook_postgres::publication_mark::Mark;
use walhook_postgres::refused_writes::create_guarded;
use walhook_postgres::source::{TIMELINE, hosts};
use walhook_state::SCHEMA_VERSION;

/// The tables to publish: those of the rules and those whose changes invalidate routes.
pub(crate) fn published(config: &Config) -> Result<BTreeSet<TableName>, TableNameError> {
    let watched = config.endpoints.watched().iter().map(String::as_str);
    config.rule_tables().chain(watched).map(str::parse).collect()
}

/// The tables that are looked up by SQL.
pub(crate) fn looked_up(config: &Config) -> Result<BTreeSet<TableName>, TableNameError> {
    let accounts = config.accounts.as_ref().map(|accounts| accounts.table.as_str());
    [Some(config.endpoints.table.as_str()), accounts]
        .into_iter()
        .flatten()
        .map(str::parse)
        .collect()
}

fn members<'a>(tables: impl IntoIterator<Item = &'a TableName>, only: bool) -> String {
    let only = if only { "ONLY " } else { "" };
    let tables = tables.into_iter().map(|table| format!("{only}{}", quote_name(table)));
    tables.collect::<Vec<_>>().join(", ")
}

/// Changes of partitions are published as the root's, so that a rule may name the root and a new
/// partition needs no other publication.
///
/// With `only`, the children of the tables are listed themselves, and others are not meant: of an
/// unlogged one the server would refuse all.
pub(super) fn create_publication(
    name: &str,
    tables: &BTreeSet<TableName>,
    only: bool,
    generated: bool,
) -> String {
    let (name, tables) = (quote_ident(name), members(tables, only));
    let generated = if generated { ", publish_generated_columns = stored" } else { "" };
    format!(
        "CREATE PUBLICATION {name} FOR TABLE {tables} \
         WITH (publish_via_partition_root = true{generated})"
    )
}

pub(super) fn add_to_publication(name: &str, tables: &BTreeSet<&TableName>, only: bool) -> String {
    let tables = members(tables.iter().copied(), only);
    format!("ALTER PUBLICATION {} ADD TABLE {tables}", quote_ident(name))
}

pub(super) fn set_publication(name: &str, option: &str) -> String {
    format!("ALTER PUBLICATION {} SET ({option})", quote_ident(name))
}

/// What the role needs in the source database, beside REPLICATION.
pub(super) fn source_grants(role: &str, looked_up: &BTreeSet<TableName>) -> Vec<String> {
    let role = quote_ident(role);
    let schemas: BTreeSet<&str> = looked_up.iter().map(|table| table.schema.as_str()).collect();
    let usage = schemas
        .into_iter()
        .map(|schema| format!("GRANT USAGE ON SCHEMA {} TO {role}", quote_ident(schema)));
    let select =
        looked_up.iter().map(|table| format!("GRANT SELECT ON {} TO {role}", quote_name(table)));
    usage.chain(select).collect()
}

/// What the role needs in the state database: the relations by their names, for the schema may hold the
/// application's too. Numbers of identity columns need no right to their sequences.
pub(super) fn state_grants(role: &str, schema: &str) -> Vec<String> {
    let (role, schema) = (quote_ident(role), quote_ident(schema));
    let names = [walhook_state::tables(), walhook_state::views()].concat();
    let relations: Vec<String> = names.iter().map(|name| format!("{schema}.{name}")).collect();
    vec![
        format!("GRANT USAGE ON SCHEMA {schema} TO {role}"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {role}", relations.join(", ")),
    ]
}

/// What gives a role the right to replicate, and what has to be set before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    /// Your own.
    SelfHosted,
    /// Amazon RDS and Aurora.
    Rds,
    /// Google Cloud SQL.
    CloudSql,
    /// Azure Database, flexible server.
    Azure,
    /// Supabase.
    Supabase,
}

impl Server {
    fn before(self) -> &'static str {
        match self {
            Self::SelfHosted => {
                "Before: wal_level = logical, and a restart. ALTER ROLE … REPLICATION is a superuser's."
            }
            Self::Rds => {
                "Before: rds.logical_replication = 1 in the parameter group, and a reboot."
            }
            Self::CloudSql => "Before: the flag cloudsql.logical_decoding = on, and a restart.",
            Self::Azure => "Before: the server parameter wal_level = LOGICAL, and a restart.",
            Self::Supabase => "As postgres, over the direct connection and not the pooler.",
        }
    }

    pub(super) fn may_replicate(self, role: &str) -> String {
        let role = quote_ident(role);
        match self {
            Self::Rds => format!("GRANT rds_replication TO {role}"),
            Self::SelfHosted | Self::CloudSql | Self::Azure | Self::Supabase => {
                format!("ALTER ROLE {role} REPLICATION")
            }
        }
    }
}

/// The whole set-up as a script for psql. `role` is our own, `source` what its URL says.
pub(super) fn whole(
    config: &Config,
    server: Server,
    role: &str,
    source: &Conninfo,
) -> Result<String, TableNameError> {
    let published = published(config)?;
    let slot = quote_literal(&config.source.slot);
    let mut script = Script(String::new());

    script.comment("Names without a schema are searched for where nobody else can put any.");
    script.statement(&format!("SET search_path = {SEARCH_PATH}"));
    script.0.push('\n');
    script
        .comment("Part 1, in the source database, as an administrator: one who owns the published");
    script.comment("tables and may CREATE in the database.");
    script.comment(server.before());
    script.comment(&format!("CREATE ROLE {} LOGIN PASSWORD '…';", quote_ident(role)));
    script.statement(&server.may_replicate(role));
    source_grants(role, &looked_up(config)?).iter().for_each(|grant| script.statement(grant));
    script.comment("From PostgreSQL 18 on, where a replica identity holds a generated column, add");
    script.comment("publish_generated_columns = stored to the options.");
    let publication = &config.source.publication;
    script.comment(
        "It fails, and makes none, where your own writes would fail of it. The comment is for",
    );
    script.comment("`walhook teardown`: whose it is, and who reads it.");
    let create = create_publication(publication, &published, false, false);
    let mark = Mark::of(&config.source.slot).to_sql(publication);
    script.comment(
        "So long a migration that waits for one of these tables is not ended as deadlocked.",
    );
    script.statement("SET lock_timeout = '1500ms'");
    script.statement(&create_guarded(publication, &format!("{create};\n    {mark}")));
    script.statement("RESET lock_timeout");
    let own_database = config.state.url.is_some();
    if own_database {
        script.0.push('\n');
        script.comment("Likewise, in the state database.");
    }
    script.0.push('\n');
    script.0.push_str(&walhook_state::schema_sql(&config.state.schema));
    script.0.push('\n');
    state_grants(role, &config.state.schema).iter().for_each(|grant| script.statement(grant));
    script.comment("The slot below is ours: without this, `walhook setup` does not take it.");
    script.statement(&format!(
        "INSERT INTO {}.slots (pipeline, slot) VALUES ({slot}, {slot}) ON CONFLICT DO NOTHING",
        quote_ident(&config.state.schema)
    ));

    script.0.push('\n');
    script.comment(&format!(
        "Part 2, in the source database, as {role}: what `walhook setup` does too."
    ));
    script.comment(
        "The slot must be younger than the publication, so without one there is none. It waits for open transactions; with",
    );
    script.comment(
        "a timeout it fails cleanly instead. From PostgreSQL 17 on, with three more arguments,",
    );
    script.comment("false, false, true, standbys can keep it.");
    script.statement("SET lock_timeout = '1s'");
    script.statement(&format!(
        "SELECT pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput')
FROM pg_catalog.pg_publication WHERE pubname {EQ} {}",
        quote_literal(publication)
    ));
    script.statement("RESET lock_timeout");

    script.0.push('\n');
    if own_database {
        script.comment("The first checkpoint, in the state database: `walhook setup` writes it.");
        return Ok(script.0);
    }
    script.first_checkpoint(config, source);
    Ok(script.0)
}

struct Script(String);

impl Script {
    fn comment(&mut self, text: &str) {
        self.0.push_str(&format!("-- {text}\n"));
    }

    fn statement(&mut self, sql: &str) {
        self.0.push_str(sql);
        self.0.push_str(";\n");
    }

    /// Where the slot begins, in the database that has the state too.
    fn first_checkpoint(&mut self, config: &Config, source: &Conninfo) {
        /// Makes of the server's signed 64-bit integer the unsigned one that it stands for.
        const UNSIGNED: &str = "18446744073709551616";
        let slot = quote_literal(&config.source.slot);
        let schema = quote_ident(&config.state.schema);
        self.comment("The first checkpoint: where the slot begins.");
        self.statement(&format!(
            "INSERT INTO {schema}.meta (pipeline, schema_version, system_identifier, timeline, host, database)
SELECT {slot}, {SCHEMA_VERSION},
       (system_identifier::numeric {PLUS} {UNSIGNED}) OPERATOR(pg_catalog.%) {UNSIGNED},
       {TIMELINE}, {}, pg_catalog.current_database()
FROM pg_catalog.pg_control_system()
ON CONFLICT (pipeline) DO UPDATE SET schema_version = excluded.schema_version
    WHERE meta.schema_version OPERATOR(pg_catalog.<) excluded.schema_version",
            quote_literal(&hosts(source)),
        ));
        self.statement(&format!(
            "INSERT INTO {schema}.lease (pipeline, partition, epoch)
VALUES ({slot}, {}, 0) ON CONFLICT DO NOTHING",
            Partition::SOLE
        ));
        self.statement(&format!(
            "INSERT INTO {schema}.checkpoint (pipeline, partition, frontier)
SELECT slot_name, {}, confirmed_flush_lsn FROM pg_catalog.pg_replication_slots
    WHERE slot_name {EQ} {slot}
ON CONFLICT DO NOTHING",
            Partition::SOLE
        ));
    }
}
