//! Replays as text.

use std::time::Duration;

use crate::cli::table::one_line;
use crate::control::bytes;
use crate::control::replay::{CountsView, ReplayRange, ReplayView};
use walhook_core::lsn::Lsn;

const BAR_CHARS: usize = 30;

/// A line for one replay.
pub(super) fn line(replay: &ReplayView) -> String {
    let ReplayView { from, to, filter, .. } = replay;
    let state = match (&replay.error, replay.finished, replay.waiting) {
        (Some(error), ..) => error.clone(),
        (None, true, 0) => "done".to_owned(),
        (None, true, _) => "waiting".to_owned(),
        (None, false, _) => match replay.waits_for {
            Some(before) => format!("waits for replay {before}"),
            None => format!("{:.0} %", 100.0 * replay.fraction),
        },
    };
    let mut text = format!("replay {}  {from} to {to}  {state}  {}", replay.id, counts(replay));
    for (name, value) in [("account", &filter.account), ("endpoint", &filter.endpoint)] {
        if let Some(value) = value {
            text.push_str(&format!("  {name} {value}"));
        }
    }
    if !filter.types.is_empty() {
        text.push_str(&format!("  type {}", filter.types.join(", ")));
    }
    one_line(&text)
}

/// What has become of its deliveries so far.
fn counts(replay: &ReplayView) -> String {
    let ReplayView { delivered, waiting, dead, dropped, in_gaps, .. } = replay;
    let mut text = format!("delivered {delivered}, waiting {waiting}, dead {dead}");
    for (name, count) in [("dropped", dropped), ("in gaps", in_gaps)] {
        if *count > 0 {
            text.push_str(&format!(", {name} {count}"));
        }
    }
    text
}

/// What is to be known of deliveries that were not taken, and where they are.
pub(super) fn remarks(replay: &ReplayView) -> Vec<String> {
    let ReplayView { id, waiting, dropped, in_gaps, .. } = replay;
    let mut remarks = Vec::new();
    if *waiting > 0 {
        remarks.push(format!(
            "{waiting} wait, deferred under the replay's id, until their endpoints take them: `walhook \
             deferred list --replay {id}` shows them and why, `walhook replay list` how many are left"
        ));
    }
    if *dropped > 0 {
        remarks.push(format!(
            "{dropped} were dropped: their accounts have these endpoints no more, or an operator discarded them"
        ));
    }
    if *in_gaps > 0 {
        remarks.push(format!(
            "{in_gaps} were not sent, since their endpoints are suspended: `walhook gaps list` shows the \
             replay that sends them"
        ));
    }
    remarks
}

/// A line for each, or that there is none.
pub(super) fn list(replays: &[ReplayView]) -> String {
    if replays.is_empty() {
        return "no replays".to_owned();
    }
    replays.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A progress bar.
pub(in crate::cli) fn bar(replay: &ReplayView) -> String {
    let fraction = replay.fraction;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and the bar's length"
    )]
    let full = (fraction * BAR_CHARS as f64) as usize;
    format!(
        "replay {}  [{}{}] {:3.0} %  {}",
        replay.id,
        "#".repeat(full),
        "-".repeat(BAR_CHARS.saturating_sub(full)),
        100.0 * fraction,
        counts(replay)
    )
}

/// What a dry run counted.
pub(super) fn counts_text(counts: &CountsView, range: &ReplayRange, max_hold: Duration) -> String {
    let CountsView { events, deliveries, by_type, unroutable, left_out_bytes, .. } = counts;
    let ReplayRange { from, to, .. } = range;
    let some = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let deliveries = some(*deliveries, "delivery", "deliveries");
    let of = some(*events, "event", "events");
    let mut lines = vec![format!("{from} to {to} would send {deliveries} of {of}")];
    for (event_type, count) in by_type {
        let nobody = if *count == 0 { ": no endpoint that is switched on wants it" } else { "" };
        lines.push(format!("  {event_type}  {count}{nobody}"));
    }
    let left_out = left_out(*to, *left_out_bytes, max_hold);
    if *events == 0 {
        lines.extend(why_nothing(counts, left_out));
    } else {
        lines.extend(left_out);
    }
    if *unroutable > 0 {
        lines.push(format!(
            "{unroutable} changes could not be turned into an event and are not sent again"
        ));
    }
    lines.join("\n")
}

/// Why a dry run found none: what it knows, or else the likelier cause first.
fn why_nothing(counts: &CountsView, left_out: Option<String>) -> Vec<String> {
    let CountsView { other_events, left_out_events, .. } = counts;
    let in_range = match other_events {
        0 => "no change of the range becomes an event: no rule names its table and operation, or the rule's `when` \
              is false for it"
            .to_owned(),
        1 => "the range has 1 event, which is of another account or type".to_owned(),
        n => format!("the range has {n} events, which are of other accounts or types"),
    };
    match (left_out, left_out_events) {
        (None, _) | (Some(_), Some(0)) => vec![in_range],
        (Some(left_out), Some(n)) => {
            let are = if *n == 1 { "1 such event is" } else { &format!("{n} such events are") };
            vec![format!("{are} in what is left out: {left_out}; try again then")]
        }
        // It was not looked at.
        (Some(left_out), None) => vec![left_out, in_range],
    }
}

/// What a range does not have since it ends at the checkpoint.
pub(super) fn left_out(to: Lsn, bytes_left_out: u64, max_hold: Duration) -> Option<String> {
    (bytes_left_out > 0).then(|| {
        format!(
            "what was committed from {to} on is not in this range, which ends at the checkpoint: {} of WAL, be it of \
             events or of none. A delivery in flight holds the checkpoint back for at most wal.max_hold ({})",
            bytes(bytes_left_out),
            humantime::format_duration(max_hold)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::contract::sample;

    fn replay(fraction: f64) -> ReplayView {
        ReplayView { fraction, ..sample::replay() }
    }

    #[test]
    fn bar_fills_with_the_range() {
        assert!(bar(&replay(0.0)).contains("[------------------------------]   0 %"));
        assert!(bar(&replay(0.5)).contains("[###############---------------]  50 %"));
        assert!(bar(&replay(1.0)).contains("[##############################] 100 %"));
    }

    #[test]
    fn dry_run_says_why_nothing_would_be_sent() {
        let range = ReplayRange {
            from: walhook_core::lsn::Lsn(100),
            to: walhook_core::lsn::Lsn(200),
            from_oldest: false,
            filter: walhook_core::replay::ReplayFilter::default(),
        };
        let hold = Duration::from_secs(30);
        let why = |counts: CountsView| {
            let text = counts_text(&counts, &range, hold);
            text.split_once("0 deliveries of 0 events\n")
                .unwrap_or_else(|| panic!("{text}"))
                .1
                .to_owned()
        };
        let of_rules = "no change of the range becomes an event: no rule names";
        let (none, left_out_bytes) = (CountsView::default, 100);
        assert!(why(none()).starts_with(of_rules));
        let others = CountsView { other_events: 3, ..none() };
        assert_eq!(why(others), "the range has 3 events, which are of other accounts or types");
        // What was committed a moment ago is known to be it, or not, or it is the likelier cause.
        let later = CountsView { left_out_bytes, left_out_events: Some(1), ..none() };
        let later = why(later);
        assert!(later.starts_with("1 such event is in what is left out: what was committed from"));
        assert!(later.ends_with("wal.max_hold (30s); try again then") && !later.contains("rule"));
        let known = CountsView { left_out_bytes, left_out_events: Some(0), ..none() };
        assert!(why(known).starts_with(of_rules));
        let unknown = why(CountsView { left_out_bytes, ..none() });
        assert!(unknown.starts_with("what was committed from 0/C8 on is not in this range"));
        assert!(unknown.contains(&format!("\n{of_rules}")), "{unknown}");
        let by_type = [("a.b".to_owned(), 0), ("a.c".to_owned(), 2)].into();
        let unwanted = CountsView { events: 3, deliveries: 2, by_type, ..CountsView::default() };
        let text = counts_text(&unwanted, &range, hold);
        assert!(
            text.ends_with("\n  a.b  0: no endpoint that is switched on wants it\n  a.c  2"),
            "{text}"
        );
    }

    #[test]
    fn range_that_ends_at_the_checkpoint_says_what_it_leaves_out() {
        let hold = Duration::from_secs(30);
        assert_eq!(left_out(Lsn(200), 0, hold), None);
        let said = left_out(Lsn(200), 5_222, hold).unwrap();
        assert!(said.starts_with("what was committed from 0/C8 on is not in"), "{said}");
        assert!(said.contains("5.0 KiB of WAL"), "{said}");
        assert!(said.ends_with("wal.max_hold (30s)"), "{said}");
    }

    #[test]
    fn line_names_range_filter_and_end() {
        let text = line(&replay(0.5));
        assert_eq!(
            text,
            "replay 3  0/64 to 0/C8  50 %  delivered 5, waiting 2, dead 1  account 42"
        );
        let behind = ReplayView { waits_for: Some(2), ..replay(0.0) };
        assert!(line(&behind).contains(" to 0/C8  waits for replay 2  delivered"));
        let read = ReplayView { finished: true, in_gaps: 4, ..replay(1.0) };
        assert!(line(&read).contains("  waiting  delivered 5, waiting 2, dead 1, in gaps 4"));
        assert!(remarks(&read)[0].contains("deferred list --replay 3"));
        let dropped = remarks(&ReplayView { waiting: 0, dropped: 4, ..replay(1.0) });
        assert!(dropped[0].starts_with("4 were dropped: ") && dropped[0].contains("discarded"));
        let cancelled =
            ReplayView { finished: true, error: Some("cancelled".into()), ..replay(0.5) };
        assert!(line(&cancelled).contains("  cancelled  "));
    }
}
