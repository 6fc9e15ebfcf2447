//! `walhook gaps`: what was not delivered, and what became of it.

use serde::Serialize;
use serde_json::json;

use super::status::open_state;
use super::table::one_line;
use super::{CommandResult, Common, print_json, print_line};
use crate::config::Config;
use crate::server::range;
use walhook_core::event::rfc3339;
use walhook_core::lsn::Lsn;
use walhook_postgres::sql::Connection;
use walhook_state::Gap;

/// List what was not delivered; close a gap that is dealt with
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A gap is recorded by `walhook recover`, which gives up what cannot be read, by `checkpoint reset --skip`,
by a leader that suspends an endpoint at state.max_size, and by one that finds that a table was not
published for a time. Dead letters of an endpoint beyond the first 1,000 are one gap too. Open gaps stand
in `walhook status` and in the metric walhook_gaps until somebody closes them, or until a replay has sent
an endpoint all of its gap: `list` prints the command that sends one again, where its WAL is still kept.

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

/// A gap as it is shown, with what closes it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    #[serde(flatten)]
    pub(super) gap: Gap,
    /// The command that sends it again, where there is one now.
    pub(super) replay: Option<String>,
    /// Why there is none, where it is open.
    pub(super) no_replay: Option<String>,
}

/// Lists or closes.
///
/// # Errors
/// When the state database cannot be reached, or there is no open gap of that id.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let config = common.load()?;
    let state = open_state(&config).await?;
    match args.command {
        Command::List { all } => {
            let gaps = shown(&config, state.gaps(all).await?).await;
            if common.json {
                return print_json(&json!({ "gaps": gaps }));
            }
            if gaps.is_empty() {
                return print_line("no gaps");
            }
            gaps.iter().try_for_each(|gap| print_line(&gap.to_text()))
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

/// Finds out which of the gaps a replay can send again.
pub(super) async fn shown(config: &Config, gaps: Vec<Gap>) -> Vec<Shown> {
    let may_be = |gap: &Gap| gap.closed_at_us.is_none() && gap.table.is_none();
    let oldest = if gaps.iter().any(may_be) { oldest(config).await } else { Ok(Lsn::ZERO) };
    let show = |gap: Gap| {
        let way = match &gap.table {
            Some(_) if gap.closed_at_us.is_none() => Err(not_in_any_stream(&gap)),
            _ => may_be(&gap).then(|| way(&gap, &oldest)).transpose(),
        };
        let (replay, no_replay) = match way {
            Ok(replay) => (replay, None),
            Err(why) => (None, Some(why)),
        };
        Shown { gap, replay, no_replay }
    };
    gaps.into_iter().map(show).collect()
}

/// What was not published when it was committed is sent by no slot.
fn not_in_any_stream(Gap { id, find, .. }: &Gap) -> String {
    let rows = if find.is_some() {
        "The query finds the rows that were written then and not since (deleted ones it cannot); send"
    } else {
        "Its rows cannot be found any more; send"
    };
    format!(
        "what was committed while the table was not published is in no slot's stream. {rows} what is \
         missing by hand, then `walhook gaps close {id} --note ...`"
    )
}

/// The oldest position that can be sent again, or why nothing can.
async fn oldest(config: &Config) -> Result<Lsn, String> {
    let asked = async {
        let source = Connection::open(&config.source.url, "walhook gaps").await?;
        range::oldest(config, &source).await
    };
    asked.await.map_err(|error: anyhow::Error| format!("{error:#}"))
}

/// The command that sends a gap again, or why there is none.
fn way(gap: &Gap, oldest: &Result<Lsn, String>) -> Result<String, String> {
    let Gap { id, from_lsn, to_lsn, endpoint, account, growing, .. } = gap;
    if *growing {
        return Err(
            "it still grows: when the state tables have room again, a replay can send it".into()
        );
    }
    let by_hand =
        format!("Send what is missing by hand, then `walhook gaps close {id} --note ...`");
    if gap.unreadable {
        return Err(format!("the rest of the transaction cannot be read, now as then. {by_hand}"));
    }
    if gap.other_wal {
        return Err(format!("its positions are of the WAL of an earlier cluster. {by_hand}"));
    }
    let oldest = oldest.as_ref().map_err(|why| format!("{why}. {by_hand}"))?;
    let unreadable = |_| format!("its range cannot be read. {by_hand}");
    let (from, to): (Lsn, Lsn) =
        (from_lsn.parse().map_err(unreadable)?, to_lsn.parse().map_err(unreadable)?);
    if from < *oldest {
        return Err(format!(
            "the WAL from {from} on is no longer kept: what can be sent again begins at {oldest} \
             (source.replay_window). {by_hand}"
        ));
    }
    if endpoint.is_none() {
        if to <= from {
            return Err(format!("its positions do not make a range. {by_hand}"));
        }
        return Ok(format!("walhook replay start --from {from} --to {to}"));
    }
    // Its last commit record begins at `to`, and a replay ends before the one it is told.
    let behind = Lsn(to.0.saturating_add(1));
    let mut command = format!("walhook replay start --from {from} --to {behind}");
    let known = |id: &Option<String>| id.as_ref().is_some_and(|id| !id.is_empty());
    if !known(endpoint) && !known(account) {
        return Err(format!("whose changes these are could not be told. {by_hand}"));
    }
    for (flag, value) in [("--endpoint", endpoint), ("--account", account)] {
        // Without an endpoint these are unroutable changes.
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            command.push_str(&format!(" {flag} {}", quoted(value)));
        }
    }
    Ok(command)
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

impl Shown {
    pub(super) fn to_text(&self) -> String {
        let mut text = to_text(&self.gap);
        if let Some(replay) = &self.replay {
            text.push_str(&format!("\n       send it again: {}", one_line(replay)));
        }
        if let Some(why) = &self.no_replay {
            text.push_str(&format!("\n       no replay: {}", one_line(why)));
        }
        if let (Some(_), Some(find)) = (&self.no_replay, &self.gap.find) {
            text.push_str(&format!("\n       find the rows: {find}"));
        }
        text
    }
}

fn to_text(gap: &Gap) -> String {
    let mut text = format!(
        "{:<6} {} to {}  recorded {}",
        gap.id,
        gap.from_lsn,
        gap.to_lsn,
        rfc3339(gap.recorded_at_us)
    );
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
    if let Some(last_at_us) = gap.last_at_us.filter(|_| gap.closed_at_us.is_none()) {
        text.push_str(&format!(" so far, the last at {}", rfc3339(last_at_us)));
    }
    if let Some(table) = &gap.table {
        text.push_str(&format!(", table {table} only"));
    }
    if gap.growing {
        text.push_str(" so far");
    }
    if let Some(closed_at_us) = gap.closed_at_us {
        text.push_str(&format!(", closed {}", rfc3339(closed_at_us)));
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

    fn gap() -> Gap {
        Gap {
            id: 3,
            from_lsn: "0/10".into(),
            to_lsn: "0/FF".into(),
            endpoint: Some("it's".into()),
            table: None,
            find: None,
            account: Some("42".into()),
            removed: 5,
            skipped: 2,
            growing: false,
            dead_letters: false,
            unrouted: false,
            last_at_us: None,
            unreadable: false,
            other_wal: false,
            reason: "suspended".into(),
            recorded_at_us: 0,
            closed_at_us: None,
            note: None,
        }
    }

    #[test]
    fn endpoints_gap_is_shown_with_the_replay_that_sends_it_or_why_there_is_none() {
        let shown = |gap: &Gap, oldest| way(gap, &oldest);
        let replay =
            r"walhook replay start --from 0/10 --to 0/100 --endpoint 'it'\''s' --account 42";
        assert_eq!(shown(&gap(), Ok(Lsn(0x10))).as_deref(), Ok(replay));
        let gone = shown(&gap(), Ok(Lsn(0x11))).unwrap_err();
        assert!(gone.contains("begins at 0/11") && gone.contains("gaps close 3"), "{gone}");
        assert!(shown(&gap(), Err("no window".into())).unwrap_err().starts_with("no window. "));
        let growing = Gap { growing: true, ..gap() };
        assert!(shown(&growing, Ok(Lsn(0))).unwrap_err().contains("still grows"));
        assert!(to_text(&growing).contains("7 deliveries so far"), "{}", to_text(&growing));
        let unrouted = Gap { unrouted: true, endpoint: Some(String::new()), ..gap() };
        let replay = "walhook replay start --from 0/10 --to 0/100 --account 42";
        assert_eq!(shown(&unrouted, Ok(Lsn(0x10))).as_deref(), Ok(replay));
        let text = to_text(&unrouted);
        assert!(text.contains("account 42: 7 events that could not be routed"), "{text}");
    }

    #[test]
    fn gap_of_the_whole_stream_is_shown_with_the_replay_that_sends_it_or_why_there_is_none() {
        let whole = Gap { endpoint: None, account: None, ..gap() };
        let shown = |gap: &Gap| way(gap, &Ok(Lsn(0x10)));
        let replay = "walhook replay start --from 0/10 --to 0/FF";
        assert_eq!(shown(&whole).as_deref(), Ok(replay));
        for (gap, why) in [
            (Gap { unreadable: true, ..whole.clone() }, "cannot be read"),
            (Gap { other_wal: true, ..whole.clone() }, "earlier cluster"),
            (Gap { to_lsn: "0/F".into(), ..whole.clone() }, "do not make a range"),
            (Gap { from_lsn: "0/F".into(), ..whole.clone() }, "no longer kept"),
        ] {
            let text = shown(&gap).unwrap_err();
            assert!(text.contains(why) && text.contains("gaps close 3"), "{text}");
        }
    }

    #[test]
    fn record_of_dead_letters_is_shown_with_the_replay_that_sends_them_or_why_there_is_none() {
        let letters = Gap { dead_letters: true, last_at_us: Some(0), ..gap() };
        let text = to_text(&letters);
        assert!(text.contains("endpoint it's: 7 dead letters so far, the last at 1970"), "{text}");
        let unroutable = Gap { endpoint: Some(String::new()), ..letters };
        let text = to_text(&unroutable);
        assert!(text.contains("account 42: 7 unroutable changes so far"), "{text}");
        let replay = "walhook replay start --from 0/10 --to 0/100 --account 42";
        assert_eq!(way(&unroutable, &Ok(Lsn(0))).as_deref(), Ok(replay));
        let nobodys = Gap { account: Some(String::new()), ..unroutable };
        assert!(way(&nobodys, &Ok(Lsn(0))).unwrap_err().contains("could not be told"));
    }
}
