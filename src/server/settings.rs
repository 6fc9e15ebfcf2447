//! What the dispatcher is told of the configuration.

use super::stop::Unfit;
use crate::config::{self, Config};
use walhook_dispatch::dispatcher::{Ordering, Settings};
use walhook_dispatch::retry::RetryPolicy;
use walhook_dispatch::settle::SettlePolicy;
use walhook_process::descriptors;

/// Endpoints that an event is routed to at once, and deliveries that leave memory together: some 2 ms at most.
const SLICE: usize = 256;

/// An account's lane with so many deliveries has enough to send: more than there are slots by default.
const LANE_MAX: usize = 2_048;

/// The dispatcher's settings.
///
/// # Errors
/// The times between attempts cannot be.
pub(super) fn settings(config: &Config) -> Result<Settings, Unfit> {
    let delivery = &config.delivery;
    let retry = RetryPolicy::new(delivery.retry_base, delivery.retry_cap).map_err(Unfit::Retry)?;
    let (fast_slots, slow_slots) = slots(&config.scheduler);
    Ok(Settings {
        memory_limit: usize::try_from(config.memory.limit.0).unwrap_or(usize::MAX),
        slice: SLICE,
        lane_max: LANE_MAX,
        fast_slots,
        slow_slots,
        ordering: match delivery.ordering {
            config::Ordering::Row => Ordering::Row,
            config::Ordering::Account => Ordering::Account,
            config::Ordering::None => Ordering::None,
        },
        settle: SettlePolicy {
            quick_attempts: delivery.quick_attempts,
            retry,
            retry_for: delivery.retry_for,
        },
        disable_after: delivery.disable_after,
        max_hold: config.wal.max_hold,
        max_retained: config.wal.max_retained.0,
        notifies: config.notify.url.is_some(),
        state_max: config.state.max_size.0,
        log: config.deliveries.keep,
        log_excerpts: config.deliveries.excerpts,
    })
}

/// The slots of the configuration, or fewer where the process may not have so many sockets: requests that
/// found none would be tried over and over, and sessions of ours might find none.
pub(super) fn slots(scheduler: &config::Scheduler) -> (u32, u32) {
    descriptors::fitting_slots(descriptors::limit(), (scheduler.fast_slots, scheduler.slow_slots))
}
