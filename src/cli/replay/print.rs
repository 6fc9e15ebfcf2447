//! Replays as text.

use crate::cli::table::one_line;
use walhook_core::replay::ReplayRange;
use walhook_state::StoredReplay;

const BAR_CHARS: usize = 30;

/// A line for one replay.
pub(super) fn line(replay: &StoredReplay) -> String {
    let ReplayRange { from, to, filter, .. } = &replay.range;
    let state = match (&replay.error, replay.finished, replay.waiting) {
        (Some(error), ..) => error.clone(),
        (None, true, 0) => "done".to_owned(),
        (None, true, _) => "waiting".to_owned(),
        (None, false, _) => format!("{:.0} %", 100.0 * replay.fraction()),
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
fn counts(replay: &StoredReplay) -> String {
    let StoredReplay { delivered, waiting, dead, dropped, in_gaps, .. } = replay;
    let mut text = format!("delivered {delivered}, waiting {waiting}, dead {dead}");
    for (name, count) in [("dropped", dropped), ("in gaps", in_gaps)] {
        if *count > 0 {
            text.push_str(&format!(", {name} {count}"));
        }
    }
    text
}

/// What is to be known of deliveries that were not taken, and where they are.
pub(super) fn remarks(replay: &StoredReplay) -> Vec<String> {
    let StoredReplay { id, waiting, dropped, in_gaps, .. } = replay;
    let mut remarks = Vec::new();
    if *waiting > 0 {
        remarks.push(format!(
            "{waiting} wait, deferred under the replay's id, until their endpoints take them: `walhook \
             deferred list --replay {id}` shows them and why, `walhook replay list` how many are left"
        ));
    }
    if *dropped > 0 {
        remarks.push(format!("{dropped} were dropped: their endpoints were removed meanwhile"));
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
pub(super) fn list(replays: &[StoredReplay]) -> String {
    if replays.is_empty() {
        return "no replays".to_owned();
    }
    replays.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A progress bar.
pub(super) fn bar(replay: &StoredReplay) -> String {
    let fraction = replay.fraction();
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

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::lsn::Lsn;
    use walhook_core::persist::ReplayCounts;
    use walhook_core::replay::ReplayFilter;

    fn replay(position: u64) -> StoredReplay {
        let filter = ReplayFilter { account: Some("42".into()), ..ReplayFilter::default() };
        StoredReplay {
            id: 3,
            range: ReplayRange { from: Lsn(100), to: Lsn(200), from_oldest: false, filter },
            position: Lsn(position),
            delivered: 5,
            waiting: 2,
            dead: 1,
            dropped: 0,
            in_gaps: 0,
            done: 5,
            failed: 1,
            counts: ReplayCounts::default(),
            created_at_us: 0,
            finished: false,
            error: None,
        }
    }

    #[test]
    fn bar_fills_with_the_range() {
        assert!(bar(&replay(100)).contains("[------------------------------]   0 %"));
        assert!(bar(&replay(150)).contains("[###############---------------]  50 %"));
        assert!(bar(&replay(250)).contains("[##############################] 100 %"));
    }

    #[test]
    fn line_names_range_filter_and_end() {
        let text = line(&replay(150));
        assert_eq!(
            text,
            "replay 3  0/64 to 0/C8  50 %  delivered 5, waiting 2, dead 1  account 42"
        );
        let read = StoredReplay { finished: true, in_gaps: 4, ..replay(200) };
        assert!(line(&read).contains("  waiting  delivered 5, waiting 2, dead 1, in gaps 4"));
        assert!(remarks(&read)[0].contains("deferred list --replay 3"));
        let cancelled =
            StoredReplay { finished: true, error: Some("cancelled".into()), ..replay(150) };
        assert!(line(&cancelled).contains("  cancelled  "));
    }
}
