//! Replays as text.

use crate::cli::table::one_line;
use crate::engine::replay::ReplayRange;
use crate::io::state::StoredReplay;

const BAR_CHARS: usize = 30;

/// A line for one replay.
pub(super) fn line(replay: &StoredReplay) -> String {
    let ReplayRange { from, to, filter, .. } = &replay.range;
    let state = match (&replay.error, replay.finished) {
        (Some(error), _) => error.clone(),
        (None, true) => "done".to_owned(),
        (None, false) => format!("{:.0} %", 100.0 * replay.fraction()),
    };
    let mut text = format!(
        "replay {}  {from} to {to}  {state}  delivered {}, failed {}",
        replay.id, replay.done, replay.failed
    );
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
        "replay {}  [{}{}] {:3.0} %  delivered {}, failed {}",
        replay.id,
        "#".repeat(full),
        "-".repeat(BAR_CHARS.saturating_sub(full)),
        100.0 * fraction,
        replay.done,
        replay.failed
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::lsn::Lsn;
    use crate::engine::replay::ReplayFilter;

    fn replay(position: u64) -> StoredReplay {
        let filter = ReplayFilter { account: Some("42".into()), ..ReplayFilter::default() };
        StoredReplay {
            id: 3,
            range: ReplayRange { from: Lsn(100), to: Lsn(200), from_oldest: false, filter },
            position: Lsn(position),
            done: 5,
            failed: 1,
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
        assert_eq!(text, "replay 3  0/64 to 0/C8  50 %  delivered 5, failed 1  account 42");
        let cancelled =
            StoredReplay { finished: true, error: Some("cancelled".into()), ..replay(150) };
        assert!(line(&cancelled).contains("  cancelled  "));
    }
}
