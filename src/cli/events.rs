//! `walhook events`: what happened to one, which happened lately, sending one again.

mod print;

use std::time::Duration;

use anyhow::anyhow;
use url::Url;

use super::replay::{Wait, carry_out};
use super::{CommandResult, Common, print_json, print_line};
use crate::control::{Databases, events};
use walhook_core::position::EventId;

/// Show what happened to an event, or send it again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An event's id is what its requests have as webhook-id, and their bodies as `id`.

Examples:
  walhook events show evt_01M89HY61Z3KDGFQWS3TGAXFGY
  walhook events show evt_01M89HY61Z3KDGFQWS3TGAXFGY --body --json
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY --endpoint 7")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what happened to one: its deliveries, where each stands now, and the body where it is still held
    Show(Show),
    /// Send one again, to all of its account's endpoints of now that want it, or to one
    Resend(Resend),
}

#[derive(Debug, clap::Args)]
struct Show {
    /// Its id
    id: EventId,
    /// Make the body anew of what the replay window has, where no row holds it; that may take a while
    #[arg(long)]
    body: bool,
    /// Where the leader's admin server answers, where that is not on this machine
    #[arg(long, value_name = "URL")]
    admin: Option<Url>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It is a replay of this one event: same id, same body, marked as a replay. It reaches as far back as
source.replay_window; where it does not reach, the command exits with 1 and says how far that is. What an
endpoint does not take is deferred under the replay's id, as with `walhook replay start`.

Examples:
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY --endpoint 7 --wait 5m")]
struct Resend {
    /// Its id
    id: EventId,
    /// To this endpoint only
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// Wait at most so long until each delivery is taken or dead; 0s does not wait at all
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Failed`](super::Failure::Failed) when a database does not answer, or when nothing was sent again.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::Show(Show { id, body, admin }) => {
            let event = events::show(&config, id, admin, body).await?;
            if common.json { print_json(&event) } else { print_line(&print::event(&event)) }
        }
        Command::Resend(Resend { id, endpoint, wait }) => {
            let range = events::resend::range(&config, id, endpoint).await?;
            let wait = Wait::for_everything(wait);
            let sent = carry_out(Databases::of(&config), &range, wait, common.json).await?;
            if sent.finished && sent.is_of_nothing() {
                return Err(anyhow!(
                    "nothing was sent: no endpoint of its account wants it now, it was committed before {from}, \
                     where what can be sent again begins, or {id} is no event of this pipeline",
                    from = sent.from
                )
                .into());
            }
            Ok(())
        }
    }
}
