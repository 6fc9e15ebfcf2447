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
