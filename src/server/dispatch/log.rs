//! What of the dispatcher's reports is said in the log.

use crate::server::pace::LinePace;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{EndpointChange, EndpointChanged};

/// Lines about endpoints, at a bounded rate for each kind.
#[derive(Default)]
pub(super) struct ChangeLog {
    paces: [LinePace; EndpointChange::ALL.len()],
}

impl ChangeLog {
    pub(super) fn change(&mut self, changed: &EndpointChanged, now: Tick) {
        let place = EndpointChange::ALL.iter().position(|change| *change == changed.change);
        let pace = place.and_then(|place| self.paces.get_mut(place));
        if pace.is_none_or(|pace| pace.admits(now)) {
            log_change(changed);
        }
    }

    pub(super) fn say_withheld(&mut self, now: Tick) {
        for (pace, change) in self.paces.iter_mut().zip(EndpointChange::ALL) {
            if let Some(more) = pace.take_withheld(now) {
                tracing::warn!(
                    change = change.as_str(),
                    more,
                    "and so many more endpoints; `walhook endpoints list --trouble` shows how they stand"
                );
            }
        }
    }
}

/// Each change of an endpoint's state is a line.
fn log_change(EndpointChanged { endpoint, account, change, detail }: &EndpointChanged) {
    let account = account.as_deref().unwrap_or("unknown");
    match change {
        EndpointChange::Disabled => tracing::warn!(
            %endpoint, account, reason = %detail,
            "switched the endpoint off; a change of its row, or `walhook endpoints resume`, switches it on again"
        ),
        EndpointChange::Enabled => {
            tracing::info!(%endpoint, account, reason = %detail, "switched the endpoint on again");
        }
        EndpointChange::BreakerOpened => tracing::warn!(
            %endpoint, account, reason = %detail,
            "the endpoint fails too often: its breaker opened, and its deliveries are deferred"
        ),
        EndpointChange::BreakerClosed => tracing::info!(
            %endpoint, account, reason = %detail,
            "the endpoint's breaker closed, and what was deferred comes back"
        ),
        EndpointChange::Paused => tracing::warn!(
            %endpoint, account, reason = %detail,
            "an operator paused the endpoint: its deliveries are deferred until it is resumed"
        ),
        EndpointChange::Resumed => tracing::info!(
            %endpoint, account, reason = %detail,
            "an operator resumed the endpoint: what was deferred comes back"
        ),
        EndpointChange::Suspended => tracing::error!(
            %endpoint, account, reason = %detail,
            "state.max_size is reached: suspended the endpoint. What was deferred for it becomes a gap, and so \
             does what comes until there is room; then `walhook gaps list` shows the replay that sends it"
        ),
        EndpointChange::Failing => tracing::warn!(
            %endpoint, account, error = %detail,
            "a request to the endpoint failed; it is tried again, and further failures are not logged \
             one by one"
        ),
        EndpointChange::Recovered => {
            tracing::info!(%endpoint, account, "the endpoint is well again: {detail}");
        }
        EndpointChange::Removed => tracing::warn!(
            %endpoint, account,
            "the account has this endpoint no more: {detail}"
        ),
        EndpointChange::Unsuspended => tracing::warn!(
            %endpoint, account, reason = %detail,
            "the endpoint is no longer suspended; `walhook gaps list` shows the replay that sends what it missed"
        ),
    }
}
