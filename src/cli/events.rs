//! `walhook events`: what happened lately and how often, what happened to one, sending one again, erasing an account's.

mod print;

use std::time::Duration;

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use url::Url;

use super::confirm::confirm_removal;
use super::filter::ensure_forward;
use super::replay::{Wait, carry_out};
use super::{CommandResult, Common, Failure, print_json, print_line};
use crate::control::event_type::type_or_pattern;
use crate::control::events::log::{self, Filter, OUTCOMES, Query};
use crate::control::time::time_us;
use crate::control::{Databases, ensure_live, events};
use walhook_core::position::EventId;

/// List or count what happened to events, show all of one, send one again, or erase an account's from the delivery log
#[derive(Debug, clap::Args)]
#[command(after_help = "\
An event's id is what its requests have as webhook-id, and their bodies as `id`.

Examples:
  walhook events list --account 42 --outcome failed --since 2h
  walhook events count --account 42 --since 1d
  walhook events show evt_01M89HY61Z3KDGFQWS3TGAXFGY
  walhook events show evt_01M89HY61Z3KDGFQWS3TGAXFGY --body --json
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY --endpoint 7")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the delivery log, the newest line first: each attempt, and each end without one
    List(List),
    /// Count the lines of the delivery log, by what happened and what was answered
    Count(Count),
    /// Show what happened to one: its deliveries, where each stands now, and the body where it is still held
    Show(Show),
    /// Send one again, to all of its account's endpoints of now that want it, or to one
    Resend(Resend),
    /// Erase all that the delivery log tells of an account; that it was is recorded
    Erase(Erase),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook events list --limit 20
  walhook events list --endpoint 7 --outcome dead --since 1d
  walhook events list --since 2026-11-23T17:00:00Z --until 2026-11-23T18:00:00Z")]
struct List {
    #[command(flatten)]
    which: Which,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Continues an earlier list, which printed this
    #[arg(long, value_name = "PLACE")]
    before: Option<i64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lines, not deliveries: each attempt is one, and what became of a delivery without one is another.
All that may fit is read, so without a filter it takes the longer the larger the log is.

Examples:
  walhook events count --account 42 --since 1d
  walhook events count --endpoint 7 --outcome failed --json")]
struct Count {
    #[command(flatten)]
    which: Which,
}

/// Which lines.
#[derive(Debug, clap::Args)]
struct Which {
    /// Of this account
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    account: Option<String>,
    /// Of this endpoint
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    endpoint: Option<String>,
    /// Of events of this type; also a pattern such as subscriber.*
    #[arg(long = "type", value_name = "TYPE", value_parser = type_or_pattern)]
    event_type: Option<String>,
    /// Of what came to this
    #[arg(long, value_parser = PossibleValuesParser::new(OUTCOMES))]
    outcome: Option<String>,
    /// At this time or later: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    since: Option<i64>,
    /// Before this time: RFC 3339, or an age such as 2h
    #[arg(long, value_name = "TIME", value_parser = time_us)]
    until: Option<i64>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Lines, not events: rows of deliveries that are deferred or dead are not touched, and what happens
to the account's deliveries from then on is logged again.

Example:
  walhook events erase --account 42 --by 'support, ticket 4711' --yes")]
struct Erase {
    /// The account
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    account: String,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    by: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 1 where nothing is known of it: no line of the log, no row, no delivery in memory; then
the note says what that may mean. An event that is not settled yet may only be to come, and is no
error.")]
struct Show {
    /// Its id
    id: EventId,
    /// Make the body anew of what the replay window has, where no row holds it; that may take a while
    #[arg(long)]
    body: bool,
    /// Where the leader's admin server answers, where that is not on this machine
    #[arg(long, value_name = "URL", value_parser = super::admin_url)]
    admin: Option<Url>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
It is a replay of this one event: same id, same body, marked as a replay. It reaches as far back as
source.replay_window; where it does not reach, the command exits with 1 and says how far that is.
What an endpoint does not take is deferred under the replay's id, as with `walhook replay start`.

Examples:
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY
  walhook events resend evt_01M89HY61Z3KDGFQWS3TGAXFGY --endpoint 7 --wait 5m")]
struct Resend {
    /// Its id
    id: EventId,
    /// To this endpoint only
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    endpoint: Option<String>,
    /// Wait at most so long until each delivery is taken or dead; 0s does not wait at all
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = humantime::parse_duration)]
    wait: Duration,
}

impl Which {
    fn filter(self) -> Result<Filter, Failure> {
        ensure_forward(self.since, self.until)?;
        Ok(Filter {
            event: None,
            account: self.account,
            endpoint: self.endpoint,
            event_type: self.event_type,
            outcome: self.outcome,
            from_us: self.since,
            to_us: self.until,
        })
    }
}

impl List {
    fn query(self) -> Result<Query, Failure> {
        Ok(Query {
            filter: self.which.filter()?,
            limit: usize::try_from(self.limit).unwrap_or(usize::MAX),
            before: self.before,
        })
    }
}

/// Runs the subcommand.
///
/// # Errors
/// [`Failure::Usage`] when the range of times ends before it begins; [`Failure::Failed`] when a database does not
/// answer, when nothing is known of the event that is to be shown, or when nothing was sent again.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    match args.command {
        Command::List(asked) => {
            let page = log::list(Databases::of(&config), &asked.query()?).await?;
            if common.json { print_json(&page) } else { print_line(&print::list(&page)) }
        }
        Command::Count(Count { which }) => {
            let counts = log::count(Databases::of(&config), &which.filter()?).await?;
            if common.json { print_json(&counts) } else { print_line(&print::counts(&counts)) }
        }
        Command::Erase(Erase { account, by, yes }) => {
            if !yes {
                confirm_removal(&format!(
                    "Erase all that the delivery log tells of account {account}?"
                ))?;
            }
            let erased = log::erase(Databases::of(&config), &account, &by).await?;
            if common.json { print_json(&erased) } else { print_line(&print::erased(&erased)) }
        }
        Command::Show(Show { id, body, admin }) => {
            let event = events::show(&config, id, admin, body).await?;
            if common.json {
                print_json(&event)?
            } else {
                print_line(&print::event(&event))?
            }
            event.unknown().map_or(Ok(()), |why| Err(anyhow!(why).into()))
        }
        Command::Resend(Resend { id, endpoint, wait }) => {
            // Before a range is looked for: whatever there is of it, nothing of it would be sent.
            ensure_live(&config)?;
            let range = events::resend::range(&config, id, endpoint).await?;
            let wait = Wait::for_everything(wait);
            let sent = carry_out(&config, &range, wait, common.json).await?;
            if sent.finished && sent.is_of_nothing() {
                let why = events::resend::why_nothing(&config, id, &sent).await?;
                return Err(anyhow!("nothing was sent: {why}").into());
            }
            Ok(())
        }
    }
}
