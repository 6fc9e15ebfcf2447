//! `walhook config`: what the configuration says, and whether it can be used.

use clap::Subcommand;

use super::{CommandResult, Common, print_json, print_line};
use crate::config::EXAMPLE;
use crate::control;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook config show --example > walhook.toml
  walhook config show                            what is in force, without secrets
  walhook config validate --config new.toml")]
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
    },
    /// Say whether the configuration can be used; needs no database
    Validate,
}

/// Shows or validates.
///
/// # Errors
/// When the configuration cannot be used, or standard output is closed.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    match args.action {
        Action::Show { example: true } => print_line(EXAMPLE.trim_end()),
        Action::Show { example: false } => {
            let config = common.load()?;
            if common.json {
                return print_json(&config);
            }
            let text = toml::to_string(&config).map_err(anyhow::Error::from)?;
            print_line(text.trim_end())
        }
        Action::Validate => {
            let valid = control::config::validate(&common.load()?);
            if common.json {
                return print_json(&valid);
            }
            let path = common.path()?;
            print_line(&format!("{}: valid, event rules: {}", path.display(), valid.rules))
        }
    }
}
