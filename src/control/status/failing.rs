//! What fails now: as the leader has stored it, as an instance on this machine says, and as the age of the
//! checkpoint shows.

use std::time::Duration;

use super::super::instance;
use crate::config::Config;
use crate::server::health::CHECKPOINT_OLD;
use crate::server::trouble::{Instance, Part};
use walhook_core::event::rfc3339;
use walhook_state::Overview;
use walhook_state::Told;

/// What the instance of this pipeline says that is asked, if one does and answers.
pub(super) async fn instance(config: &Config, asked: &instance::Instance) -> Option<Instance> {
    let answer = asked.get("/troubles").await.ok().filter(|answer| answer.is_ok)?;
    let instance: Instance = serde_json::from_str(&answer.text).ok()?;
    (instance.pipeline == config.source.slot).then_some(instance)
}

/// What fails now. `running`: whether a leader streams, where that is known.
pub(super) fn troubles(
    overview: &Overview,
    instance: Option<Instance>,
    running: Option<bool>,
) -> Vec<Told> {
    let (is_leader, here) =
        instance.map_or((false, Vec::new()), |here| (here.role == "leader", here.troubles));
    let stored = if is_leader || running == Some(false) { &[][..] } else { &overview.troubles };
    let mut all = here;
    for told in stored {
        if all.iter().all(|known| known.part != told.part) {
            all.push(told.clone());
        }
    }
    let state = Part::State.as_str();
    // A leader that has just begun has written none yet, however long nobody led before.
    let since_us = overview.frontier_at_us.max(overview.taken_at_us.unwrap_or(i64::MIN));
    let nobody_led = Duration::from_micros(since_us.abs_diff(overview.frontier_at_us));
    let unwritten = overview.frontier_age_seconds - nobody_led.as_secs_f64();
    if running == Some(true)
        && !is_leader
        && unwritten >= CHECKPOINT_OLD.as_secs_f64()
        && all.iter().all(|known| known.part != state)
    {
        let holder = overview.holder.as_deref().unwrap_or("the leader");
        all.push(Told {
            part: state.to_owned(),
            says: Part::State.says().to_owned(),
            since: rfc3339(since_us),
            error: "a leader runs, and the checkpoint was not written for 30 s or more".to_owned(),
            fix: format!("see the log or /readyz of {holder}"),
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_core::id::Epoch;
    use walhook_core::lsn::Lsn;

    /// A leader took its lease so many seconds after the checkpoint, which is so many old.
    fn overview(taken_after: i64, age: f64) -> Overview {
        Overview {
            epoch: Epoch(2),
            holder: Some("one".to_owned()),
            taken_at_us: Some(1_000_000 * (100 + taken_after)),
            frontier: Lsn(1),
            frontier_at_us: 100_000_000,
            frontier_age_seconds: age,
            halt_reason: None,
            halted_at_us: None,
            settled_rows: 0,
            deferred: 0,
            unrouted: 0,
            dead_letters: Vec::new(),
            gaps: Vec::new(),
            troubles: Vec::new(),
            uncovered: Vec::new(),
            disabled: Vec::new(),
            paused: Vec::new(),
        }
    }

    #[test]
    fn checkpoint_that_nobody_led_to_write_is_no_trouble() {
        let says = |taken_after, age, running| {
            let troubles = troubles(&overview(taken_after, age), None, running);
            troubles.first().map(|told| (told.part.clone(), told.since.clone()))
        };
        let late = |since_us| Some(("state".to_owned(), rfc3339(since_us)));
        assert_eq!(says(-50, 29.0, Some(true)), None);
        assert_eq!(says(-50, 31.0, Some(true)), late(100_000_000));
        assert_eq!(says(600, 605.0, Some(true)), None, "it leads for 5 s");
        assert_eq!(says(600, 631.0, Some(true)), late(700_000_000));
        assert_eq!(says(600, 631.0, Some(false)), None, "nobody leads");
    }
}
