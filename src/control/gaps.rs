//! Gaps: what was not delivered, and what became of it.

use anyhow::anyhow;
use serde::Serialize;

use super::{Databases, Failure};
use crate::config::Config;
use crate::server::range;
use walhook_core::event::rfc3339;
use walhook_core::lsn::Lsn;
use walhook_postgres::coverage::Coverage;
use walhook_postgres::source;
use walhook_state::Gap;

/// A range of WAL whose changes were not delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct GapView {
    /// Its id.
    pub(crate) id: i64,
    /// Where it begins.
    pub(crate) from_lsn: String,
    /// Where it ends.
    pub(crate) to_lsn: String,
    /// The endpoint whose deliveries these are; null: of all of them. Empty: of no endpoint.
    pub(crate) endpoint: Option<String>,
    /// Of an endpoint: the account whose events these are.
    pub(crate) account: Option<String>,
    /// The table of the source whose changes were not in the stream; null: it is not about one.
    pub(crate) table: Option<String>,
    /// Of such a table: the query that finds the rows, where they can be found.
    pub(crate) find: Option<String>,
    /// Of an endpoint: deliveries that were deferred, and removed from that table.
    pub(crate) removed: i64,
    /// Of an endpoint: deliveries that came while it was suspended.
    pub(crate) skipped: i64,
    /// The endpoint is suspended: more is counted in it.
    pub(crate) growing: bool,
    /// It counts dead letters. It grows until it is closed. Without an endpoint's id these are unroutable
    /// changes.
    pub(crate) dead_letters: bool,
    /// Of dead letters: when the last one was counted.
    pub(crate) last_at: Option<String>,
    /// It is what could not be read of one transaction.
    pub(crate) unreadable: bool,
    /// Its positions are of the WAL of an earlier cluster.
    pub(crate) other_wal: bool,
    /// It counts events of an account that could not be routed.
    pub(crate) unrouted: bool,
    /// Why there is one.
    pub(crate) reason: String,
    /// When it was recorded.
    pub(crate) recorded_at: String,
    /// When it was closed; null while it is open.
    pub(crate) closed_at: Option<String>,
    /// What the operator said when closing it.
    pub(crate) note: Option<String>,
}

impl From<Gap> for GapView {
    fn from(gap: Gap) -> Self {
        Self {
            id: gap.id,
            from_lsn: gap.from_lsn,
            to_lsn: gap.to_lsn,
            endpoint: gap.endpoint,
            account: gap.account,
            table: gap.table,
            find: gap.find,
            removed: gap.removed,
            skipped: gap.skipped,
            growing: gap.growing,
            dead_letters: gap.dead_letters,
            last_at: gap.last_at_us.map(rfc3339),
            unreadable: gap.unreadable,
            other_wal: gap.other_wal,
            unrouted: gap.unrouted,
            reason: gap.reason,
            recorded_at: rfc3339(gap.recorded_at_us),
            closed_at: gap.closed_at_us.map(rfc3339),
            note: gap.note,
        }
    }
}

/// A gap, with what sends it again.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ReplayableGap {
    /// The gap.
    #[serde(flatten)]
    pub(crate) gap: GapView,
    /// The command that sends it again; null where there is none now.
    pub(crate) replay: Option<String>,
    /// Why there is none, where it is open.
    pub(crate) no_replay: Option<String>,
}

/// The list.
#[derive(Debug, Serialize)]
pub(crate) struct GapList {
    /// The oldest first.
    pub(crate) gaps: Vec<ReplayableGap>,
}

/// What came of closing one.
#[derive(Debug, Serialize)]
pub(crate) struct ClosedGap {
    /// As it is now.
    pub(crate) closed: GapView,
}

/// Lists the open gaps, the closed ones too with `all`.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn list(config: &Config, all: bool) -> Result<GapList, Failure> {
    let gaps = Databases::of(config).open_state().await?.gaps(all).await?;
    Ok(GapList { gaps: replayable(config, gaps).await })
}

/// Closes a gap: what was missed is dealt with, or accepted.
///
/// # Errors
/// When there is no open gap of this id that has come to its end, or the state database does not answer.
pub(crate) async fn close(
    databases: Databases<'_>,
    id: i64,
    note: Option<&str>,
) -> Result<ClosedGap, Failure> {
    let gap = databases.open_state().await?.close_gap(id, note).await?.ok_or_else(|| {
        anyhow!(
            "there is no open gap {id} that has come to its end; `walhook gaps list --all` shows all"
        )
    })?;
    Ok(ClosedGap { closed: gap.into() })
}

/// Finds out which of the gaps a replay can send again.
pub(super) async fn replayable(config: &Config, gaps: Vec<Gap>) -> Vec<ReplayableGap> {
    let may_be = |gap: &Gap| gap.closed_at_us.is_none() && gap.table.is_none();
    let window = if gaps.iter().any(may_be) { window(config).await } else { Err(String::new()) };
    let show = |gap: Gap| {
        let way = match &gap.table {
            Some(_) if gap.closed_at_us.is_none() => Err(not_in_any_stream(&gap)),
            _ => may_be(&gap).then(|| command(&gap, &window)).transpose(),
        };
        let (replay, no_replay) = match way {
            Ok(replay) => (replay, None),
            Err(why) => (None, Some(why)),
        };
        ReplayableGap { gap: gap.into(), replay, no_replay }
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

/// What can be sent again.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    /// From where on the WAL is kept.
    oldest: Lsn,
    /// From where on the publication can be read under, where it took the place of another.
    published: Lsn,
}

/// What can be sent again, or why nothing can.
async fn window(config: &Config) -> Result<Window, String> {
    let asked = async {
        let source = Databases::of(config).open_source("walhook gaps").await?;
        let oldest = range::oldest(config, &source).await?;
        let last = Databases::of(config).open_state().await?.last_look().await?;
        let published = match last {
            None => Lsn::ZERO,
            Some((_, Coverage { publication: then, .. })) => {
                let name = &config.source.publication;
                let is_same = source::publication_oid(&source, name).await? == Some(then.oid);
                // Nobody has looked yet since it is another.
                if is_same { then.since.unwrap_or(Lsn::ZERO) } else { Lsn(u64::MAX) }
            }
        };
        Ok(Window { oldest, published })
    };
    asked.await.map_err(|error: anyhow::Error| format!("{error:#}"))
}

/// The command that sends a gap again, or why there is none.
fn command(gap: &Gap, window: &Result<Window, String>) -> Result<String, String> {
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
    let window = window.as_ref().map_err(|why| format!("{why}. {by_hand}"))?;
    let Window { oldest, published } = *window;
    let unreadable = |_| format!("its range cannot be read. {by_hand}");
    let (from, to): (Lsn, Lsn) =
        (from_lsn.parse().map_err(unreadable)?, to_lsn.parse().map_err(unreadable)?);
    if from < published {
        return Err(format!(
            "the publication is younger than what was written from {from} on, so that no slot can read \
             that. {by_hand}"
        ));
    }
    if from < oldest {
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
    let mut replay = format!("walhook replay start --from {from} --to {behind}");
    let known = |id: &Option<String>| id.as_ref().is_some_and(|id| !id.is_empty());
    if !known(endpoint) && !known(account) {
        return Err(format!("whose changes these are could not be told. {by_hand}"));
    }
    for (flag, value) in [("--endpoint", endpoint), ("--account", account)] {
        // Without an endpoint these are unroutable changes.
        if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
            replay.push_str(&format!(" {flag} {}", quoted(value)));
        }
    }
    Ok(replay)
}

/// A word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an endpoint that was suspended.
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
    fn endpoints_gap_has_the_replay_that_sends_it_or_why_there_is_none() {
        let shown = |gap: &Gap, oldest: Result<Lsn, &str>| {
            let window = oldest.map(|oldest| Window { oldest, ..Window::default() });
            command(gap, &window.map_err(str::to_owned))
        };
        let replay =
            r"walhook replay start --from 0/10 --to 0/100 --endpoint 'it'\''s' --account 42";
        assert_eq!(shown(&gap(), Ok(Lsn(0x10))).as_deref(), Ok(replay));
        let gone = shown(&gap(), Ok(Lsn(0x11))).unwrap_err();
        assert!(gone.contains("begins at 0/11") && gone.contains("gaps close 3"), "{gone}");
        assert!(shown(&gap(), Err("no window")).unwrap_err().starts_with("no window. "));
        let growing = Gap { growing: true, ..gap() };
        assert!(shown(&growing, Ok(Lsn(0))).unwrap_err().contains("still grows"));
        let unrouted = Gap { unrouted: true, endpoint: Some(String::new()), ..gap() };
        let replay = "walhook replay start --from 0/10 --to 0/100 --account 42";
        assert_eq!(shown(&unrouted, Ok(Lsn(0x10))).as_deref(), Ok(replay));
    }

    #[test]
    fn gap_of_the_whole_stream_has_the_replay_that_sends_it_or_why_there_is_none() {
        let whole = Gap { endpoint: None, account: None, ..gap() };
        let window = |published| Ok(Window { oldest: Lsn(0x10), published: Lsn(published) });
        let shown = |gap: &Gap| command(gap, &window(0));
        let replay = "walhook replay start --from 0/10 --to 0/FF";
        assert_eq!(shown(&whole).as_deref(), Ok(replay));
        let text = command(&whole, &window(0x11)).unwrap_err();
        assert!(text.contains("publication is younger") && text.contains("gaps close 3"), "{text}");
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
    fn record_of_dead_letters_has_the_replay_that_sends_them_or_why_there_is_none() {
        let letters = Gap { dead_letters: true, last_at_us: Some(0), ..gap() };
        let unroutable = Gap { endpoint: Some(String::new()), ..letters };
        let replay = "walhook replay start --from 0/10 --to 0/100 --account 42";
        assert_eq!(command(&unroutable, &Ok(Window::default())).as_deref(), Ok(replay));
        let nobodys = Gap { account: Some(String::new()), ..unroutable };
        assert!(
            command(&nobodys, &Ok(Window::default())).unwrap_err().contains("could not be told")
        );
    }
}
