//! `walhook gaps`: what was not delivered, and what became of it.

use super::table::one_line;
use super::{CommandResult, Common, print_json, print_line};
use crate::control::Databases;
use crate::control::gaps::{self, GapView, ReplayableGap};

/// List what was not delivered; close a gap that is dealt with
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A gap is recorded by `walhook recover`, which gives up what cannot be read, by `checkpoint reset
--skip`, by a leader that suspends an endpoint at state.max_size, and by one that finds that a
table was not published for a time. Dead letters of an endpoint beyond the first 1,000 are one gap
too. Open gaps stand in `walhook status` and in the metric walhook_gaps until somebody closes them,
or until a replay has sent an endpoint all of its gap: `list` prints the command that sends one
again, where its WAL is still kept.

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
    let config = common.load()?;
    match args.command {
        Command::List { all } => {
            let list = gaps::list(&config, all).await?;
            if common.json {
                return print_json(&list);
            }
            if list.gaps.is_empty() {
                return print_line("no gaps");
            }
            list.gaps.iter().try_for_each(|gap| print_line(&text(gap)))
        }
        Command::Close { id, note } => {
            let closed = gaps::close(Databases::of(&config), id, note.as_deref()).await?;
            if common.json { print_json(&closed) } else { print_line(&head(&closed.closed)) }
        }
    }
}

/// A gap, and what sends it again.
pub(super) fn text(ReplayableGap { gap, replay, no_replay }: &ReplayableGap) -> String {
    let mut text = head(gap);
    if let Some(replay) = replay {
        text.push_str(&format!("\n       send it again: {}", one_line(replay)));
    }
    if let Some(why) = no_replay {
        text.push_str(&format!("\n       no replay: {}", one_line(why)));
    }
    if let (Some(_), Some(find)) = (no_replay, &gap.find) {
        text.push_str(&format!("\n       find the rows: {find}"));
    }
    text
}

fn head(gap: &GapView) -> String {
    let mut text =
        format!("{:<6} {} to {}  recorded {}", gap.id, gap.from_lsn, gap.to_lsn, gap.recorded_at);
    if let Some(endpoint) = &gap.endpoint {
        let deliveries = gap.removed + gap.skipped;
        let endpoint = one_line(endpoint);
        let account = one_line(gap.account.as_deref().unwrap_or_default());
        text.push_str(&match (gap.dead_letters, &*endpoint) {
            _ if gap.unrouted => {
                format!(", account {account}: {deliveries} events that could not be routed")
            }
            (false, _) => format!(", endpoint {endpoint} only: {deliveries} deliveries"),
            (true, "") => format!(", account {account}: {deliveries} unroutable changes"),
            (true, _) => format!(", endpoint {endpoint}: {deliveries} dead letters"),
        });
    }
    if let Some(last_at) = gap.last_at.as_ref().filter(|_| gap.closed_at.is_none()) {
        text.push_str(&format!(" so far, the last at {last_at}"));
    }
    if let Some(table) = &gap.table {
        text.push_str(&format!(", table {table} only"));
    }
    if gap.growing {
        text.push_str(" so far");
    }
    if let Some(closed_at) = &gap.closed_at {
        text.push_str(&format!(", closed {closed_at}"));
    }
    text.push_str(&format!("\n       {}", one_line(&gap.reason)));
    if let Some(note) = &gap.note {
        text.push_str(&format!("\n       note: {}", one_line(note)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap() -> GapView {
        GapView {
            id: 3,
            from_lsn: "0/10".into(),
            to_lsn: "0/FF".into(),
            endpoint: Some("it's".into()),
            account: Some("42".into()),
            table: None,
            find: None,
            removed: 5,
            skipped: 2,
            growing: false,
            dead_letters: false,
            last_at: None,
            unreadable: false,
            other_wal: false,
            unrouted: false,
            reason: "suspended".into(),
            recorded_at: "1970-01-01T00:00:00.000000Z".into(),
            closed_at: None,
            note: None,
        }
    }

    #[test]
    fn gap_is_shown_by_what_it_counts() {
        let growing = head(&GapView { growing: true, ..gap() });
        assert!(growing.contains("7 deliveries so far"), "{growing}");
        let unrouted = GapView { unrouted: true, endpoint: Some(String::new()), ..gap() };
        let text = head(&unrouted);
        assert!(text.contains("account 42: 7 events that could not be routed"), "{text}");
        let last_at = Some("1970-01-01T00:00:00.000000Z".to_owned());
        let letters = GapView { dead_letters: true, last_at, ..gap() };
        let text = head(&letters);
        assert!(text.contains("endpoint it's: 7 dead letters so far, the last at 1970"), "{text}");
        let text = head(&GapView { endpoint: Some(String::new()), ..letters });
        assert!(text.contains("account 42: 7 unroutable changes so far"), "{text}");
    }
}
