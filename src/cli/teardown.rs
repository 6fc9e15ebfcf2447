//! `walhook teardown`: drops what `walhook setup` made for this pipeline.

use super::confirm::confirm;
use super::table::one_line;
use super::terminal::Terminal;
use super::{CommandResult, Common, print_json, print_line, secret};
use crate::control::{Progress, teardown};
use walhook_core::endpoint::Secret;

/// What the command takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Refuses while an instance runs, and before anything is dropped where a right is missing. A slot or
a publication that walhook did not make stays, and a publication that another pipeline reads. What
has not been delivered is forgotten, dead letters too.

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
/// When it is not confirmed, the slot is in use, or our role may not drop something: nothing is dropped
/// then.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let terminal = Terminal::unless(common.json);
    let mut tell = |progress: Progress<'_>| terminal.tell(progress);
    let plan = teardown::plan(&config, args.admin_url.as_ref(), &mut tell).await?;
    let is_empty = plan.text.is_none();
    if let Some(text) = plan.text.as_ref().filter(|_| !args.yes) {
        confirm("teardown", text, &config.source.slot)?;
    }
    let done = plan.carry_out(&config).await?;
    if common.json {
        return print_json(&done);
    }
    let lines = |word: &'static str, items: Vec<String>| {
        items.into_iter().map(move |what| one_line(&format!("{word}  {what}")))
    };
    lines("dropped", done.dropped)
        .chain(lines("kept   ", done.kept))
        .try_for_each(|line| print_line(&line))?;
    if is_empty { print_line("there was nothing to drop") } else { Ok(()) }
}
