//! `walhook setup`: the state schema, the publication, the slot and the first checkpoint.

use std::time::Duration;

use super::table::one_line;
use super::terminal::Terminal;
use super::{CommandResult, Common, print_json, print_line, secret};
use crate::control::Progress;
use crate::control::setup::{self, Did, Options, StepView};
use walhook_core::endpoint::Secret;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook setup
  walhook setup --admin-url postgres://postgres@localhost/app   as another role; grants included
  walhook setup --print-sql > setup.sql                         for an administrator to run
  walhook setup --print-sql=rds                                 likewise, for Amazon RDS and Aurora
  walhook setup --schema-version 1                              to go back to such a walhook")]
pub struct Args {
    /// A role that may do what our own may not; it also grants our own role what that needs
    #[arg(long, value_name = "URL", env = "WALHOOK_ADMIN_URL", hide_env_values = true, value_parser = secret)]
    admin_url: Option<Secret>,
    /// Print the statements, with the grants for this kind of server, and run none
    #[arg(long, value_name = "SERVER", num_args = 0..=1, require_equals = true,
          default_missing_value = "self-hosted")]
    print_sql: Option<Server>,
    /// How long to try where a step waits: the slot for the transactions open at that moment, the publication for locks
    /// on its tables
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Take the slot of our name that is there for ours: its state tables were lost, and it still has what was not
    /// delivered. What they held is gone: deferred deliveries and dead letters; `walhook replay start` sends the events again
    #[arg(long, conflicts_with = "print_sql")]
    adopt_slot: bool,
    /// Set up one more pipeline beside one of the same state schema that no instance runs, or in a copy of a database that
    /// has one
    #[arg(long, conflicts_with = "print_sql")]
    new_pipeline: bool,
    /// Make the state tables those of this earlier version, for a walhook that refuses them, and do nothing else.
    /// What they hold stays; what that version does not know takes more room
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["admin_url", "print_sql", "adopt_slot", "new_pipeline"],
          value_parser = clap::value_parser!(i32).range(1..i64::from(setup::SCHEMA_VERSION)))]
    schema_version: Option<i32>,
}

/// What gives a role the right to replicate, and what has to be set before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Server {
    /// Your own
    SelfHosted,
    /// Amazon RDS and Aurora
    Rds,
    /// Google Cloud SQL
    CloudSql,
    /// Azure Database, flexible server
    Azure,
    /// Supabase
    Supabase,
}

impl From<Server> for setup::Server {
    fn from(server: Server) -> Self {
        match server {
            Server::SelfHosted => Self::SelfHosted,
            Server::Rds => Self::Rds,
            Server::CloudSql => Self::CloudSql,
            Server::Azure => Self::Azure,
            Server::Supabase => Self::Supabase,
        }
    }
}

/// Sets up.
///
/// # Errors
/// When a step fails, or cannot be done without losing changes; the message says what to do.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    if let Some(server) = args.print_sql {
        let script = setup::script(&config, server.into())?;
        let print = || print_line(script.sql.trim_end());
        return if common.json { print_json(&script) } else { print() };
    }
    let terminal = Terminal::unless(common.json);
    let mut shown = Ok(());
    let mut tell = |progress: Progress<'_>| {
        // Each step is shown as it ends; what cannot be shown ends no set-up.
        if let Progress::Step(step) = progress
            && !common.json
            && shown.is_ok()
        {
            shown = print_line(&line(step));
        }
        terminal.tell(progress);
    };
    let done = match args.schema_version {
        Some(version) => setup::go_back(&config, version, &mut tell).await?,
        None => {
            let options = Options {
                admin: args.admin_url.as_ref(),
                wait: args.wait,
                adopts_slot: args.adopt_slot,
                adds_pipeline: args.new_pipeline,
            };
            setup::set_up(&config, options, &mut tell).await?
        }
    };
    if common.json { print_json(&done) } else { shown }
}

fn line(StepView { step, did, detail }: &StepView) -> String {
    let word = match did {
        Did::Exists => "exists ",
        Did::Created => "created",
        Did::Changed => "changed",
    };
    one_line(&format!("{word}  {step}: {detail}"))
}
