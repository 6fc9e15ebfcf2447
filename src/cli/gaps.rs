//! `walhook gaps`: what was not delivered, and what became of it.

use serde_json::json;

use super::status::open_state;
use super::{CommandResult, Common, print_json, print_line};
use crate::engine::event::rfc3339;
use crate::io::state::Gap;

/// List what was not delivered; close a gap that is dealt with
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A gap is recorded by `walhook recover`, which gives up what cannot be read. Open gaps stand in
`walhook status` and in the metric walhook_gaps until somebody closes them.

Examples:
  walhook gaps list
  walhook gaps close 3 --note 'sent by hand, ticket 4711'")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the open gaps
    List {
        /// The closed ones too
        #[arg(long)]
        all: bool,
    },
    /// Close a gap: what was missed is dealt with, or accepted
    Close {
        /// Its id, as `list` prints it
        id: i64,
        /// What became of it, for whoever asks later
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
}

/// Lists or closes.
///
/// # Errors
/// When the state database cannot be reached, or there is no open gap of that id.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let state = open_state(&common.load()?).await?;
    match args.command {
        Command::List { all } => {
            let gaps = state.gaps(all).await?;
            if common.json {
                return print_json(&json!({ "gaps": gaps }));
            }
            if gaps.is_empty() {
                return print_line("no gaps");
            }
            gaps.iter().try_for_each(|gap| print_line(&to_text(gap)))
        }
        Command::Close { id, note } => {
            let gap = state.close_gap(id, note.as_deref()).await?.ok_or_else(|| {
                anyhow::anyhow!("there is no open gap {id} that has come to its end; `walhook gaps list --all` shows all")
            })?;
            if common.json {
                print_json(&json!({ "closed": gap }))
            } else {
                print_line(&to_text(&gap))
            }
        }
    }
}

fn to_text(gap: &Gap) -> String {
    let Gap { id, from_lsn, to_lsn, endpoint, reason, recorded_at_us, closed_at_us, note } = gap;
    let mut text = format!("{id:<6} {from_lsn} to {to_lsn}  recorded {}", rfc3339(*recorded_at_us));
    if let Some(endpoint) = endpoint {
        text.push_str(&format!(", endpoint {endpoint} only"));
    }
    if let Some(closed_at_us) = closed_at_us {
        text.push_str(&format!(", closed {}", rfc3339(*closed_at_us)));
    }
    text.push_str(&format!("\n       {reason}"));
    if let Some(note) = note {
        text.push_str(&format!("\n       note: {note}"));
    }
    text
}
