//! `walhook config`: what the configuration says, and whether it can be used.

use clap::Subcommand;
use serde::Serialize;

use super::run::Role;
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::config::{Config, EXAMPLE};
use crate::control;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook config show --example > walhook.toml
  walhook config show                            what is in force, without secrets
  walhook config validate --config new.toml
  walhook config validate --role worker          what a worker reads: no database, no rules")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print what is in force: file, environment and defaults together, secrets hidden
    Show {
        /// Print a commented example instead, without reading anything
        #[arg(long)]
        example: bool,
        /// Of a process with this role
        #[arg(long, value_enum, default_value_t, value_name = "ROLE", conflicts_with = "example")]
        role: Role,
    },
    /// Say whether the configuration can be used; needs no database
    Validate {
        /// For a process with this role
        #[arg(long, value_enum, default_value_t, value_name = "ROLE")]
        role: Role,
    },
}

/// Shows or validates.
///
/// # Errors
/// When the configuration cannot be used, or standard output is closed.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    match args.action {
        Action::Show { example: true, .. } if common.json => {
            Err(Failure::Usage(anyhow::anyhow!("the example is TOML; leave --json out")))
        }
        Action::Show { example: true, .. } => print_line(EXAMPLE.trim_end()),
        Action::Show { example: false, role: Role::Worker } => show(&common.load_worker()?, common),
        Action::Show { example: false, role: Role::All | Role::Leader } => {
            show(&in_force(common.load_all()?), common)
        }
        Action::Validate { role } => {
            let valid = match role {
                Role::Worker => control::config::validate_worker(&common.load_worker()?),
                Role::All | Role::Leader => {
                    let config = common.load_all()?;
                    common.ensure_rules(&config)?;
                    control::config::validate(&config)
                }
            };
            if common.json {
                return print_json(&valid);
            }
            let path = common.path()?;
            let rules = match valid.rules {
                Some(rules) => format!("event rules: {rules}"),
                None => "for a worker".to_owned(),
            };
            print_line(&format!("{}: valid, {rules}", path.display()))
        }
    }
}

/// With what stands for a list that is left out.
fn in_force(mut config: Config) -> Config {
    config.endpoints.watch = config.rules().watched().map(str::to_owned).collect();
    config
}

fn show(config: &impl Serialize, common: &Common) -> CommandResult {
    if common.json {
        return print_json(config);
    }
    let text = toml::to_string(config).map_err(anyhow::Error::from)?;
    print_line(text.trim_end())
}
