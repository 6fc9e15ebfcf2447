//! The driver's dealings with those who send beside it.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::Driver;
use crate::server::workers::lead::{Came, LeaderWorkers};
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::Input;

/// Who sends an attempt.
#[cfg_attr(not(feature = "workers"), expect(dead_code, reason = "nobody says it there"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Sends {
    /// The leader.
    Leader,
    /// A worker: what comes of it is [`Back`].
    Worker,
    /// Nobody: it is larger than the bus takes, and the leader sends nothing.
    Nobody,
}

/// What the fleet has for the driver.
#[cfg_attr(not(feature = "workers"), expect(dead_code, reason = "nobody says it there"))]
#[derive(Debug)]
pub(in crate::server) enum Back {
    /// What came of an attempt.
    Outcome(DeliveryId, Outcome),
    /// An attempt was surely not begun.
    Unsent(DeliveryId),
    /// Nothing is heard of those who carry these, or something again.
    Doubt(Vec<DeliveryId>, bool),
    /// The driver is to carry this one itself.
    Carry(Attempt),
    /// So many requests may be in flight, wherever they are.
    Slots {
        /// Fast ones.
        fast: u32,
        /// Slow ones.
        slow: u32,
    },
}

/// What comes of the workers; nothing, where there are none.
pub(super) async fn come(workers: &mut Option<LeaderWorkers>) -> Came {
    match workers {
        Some(workers) => workers.next().await,
        None => std::future::pending().await,
    }
}

impl Driver {
    /// Only workers send, and the bus does not take so much.
    pub(super) fn refuse(&mut self, now: Tick, attempt: &Attempt) {
        let detail = "larger than a message of the bus may be, and workers.local is \"never\": raise the \
                      bus's max_payload, or let the leader send what is too large";
        let outcome = Outcome::failed(FailureKind::Oversize, detail, Duration::ZERO);
        self.tools.metrics.count_attempt(&outcome);
        self.handle_at(now, Input::Outcome { delivery: attempt.first().id, outcome });
    }

    /// Does what the fleet wants done; whether the dispatcher heard something of it.
    pub(super) fn carry_out_fleet(&mut self, now: Tick) -> bool {
        let mut heard = false;
        while let Some(back) = self.next_of_fleet(now) {
            let input = match back {
                Back::Carry(attempt) => {
                    self.send(attempt);
                    continue;
                }
                Back::Outcome(delivery, outcome) => {
                    self.tools.metrics.count_attempt(&outcome);
                    Input::Outcome { delivery, outcome }
                }
                Back::Unsent(delivery) => Input::Unsent(delivery),
                Back::Doubt(deliveries, doubtful) => Input::Doubt { deliveries, doubtful },
                Back::Slots { fast, slow } => {
                    self.slots = fast.saturating_add(slow);
                    Input::Slots { fast, slow }
                }
            };
            self.handle_at(now, input);
            heard = true;
        }
        heard
    }

    fn next_of_fleet(&mut self, now: Tick) -> Option<Back> {
        let here = self.under_way.len();
        self.tools.workers.as_mut().and_then(|workers| workers.poll(now, here))
    }

    /// What has come of the workers by now: a lease is over soon where nobody is heard.
    pub(super) fn take_waiting_from_workers(&mut self) {
        if let Some(came) = come(&mut self.tools.workers).now_or_never() {
            self.take_from_workers(came);
        }
    }

    pub(super) fn take_from_workers(&mut self, came: Came) {
        let now = self.tools.clock.now();
        if let Some(workers) = &mut self.tools.workers {
            workers.take(now, came);
        }
    }
}
