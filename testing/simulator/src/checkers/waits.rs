//! What a delivery is said to have waited for adds up to the time from its commit to its outcome, to the microsecond.

use super::{Checker, Scene, Seen};
use crate::postgres::UNIX_US;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Waits;

impl Checker for Waits {
    fn name(&self) -> &'static str {
        "waits"
    }

    fn see(&mut self, scene: &Scene<'_>, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::Measured { event, waits } = seen else { return Ok(()) };
        let now_us = UNIX_US.saturating_add_unsigned(scene.now.0);
        let took_us = now_us.saturating_sub(event.commit_time_us);
        if i64::try_from(waits.total_us()) == Ok(took_us) {
            return Ok(());
        }
        Err(format!("event {} took {took_us} us, of which {waits:?} is told", event.id))
    }
}
