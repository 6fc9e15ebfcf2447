//! Rates of endpoints' rows that change while deliveries wait for them.
//!
//! A lane asks for its account's routes when it is its turn, and one whose endpoints all rest has none. So a change
//! that may concern an endpoint which rests for long has them looked up at once, and the answer says how long it rests.

use std::time::Duration;

use super::super::schedule::LaneId;
use super::Dispatcher;
use super::queues::QueueNo;
use super::sending::Wake;
use walhook_core::endpoint::Routes;
use walhook_core::event::Scope;
use walhook_core::tick::Tick;

/// Who rests no longer has its turn soon enough, whatever its row says.
const LONG: Duration = Duration::from_secs(5);

/// The same where a change may concern every endpoint: all that rest would have their routes looked up, and others
/// would wait for that.
const LONG_FOR_ALL: Duration = Duration::from_secs(60);

impl Dispatcher {
    /// Rows have changed: the routes of endpoints that rest for long among them are asked for.
    pub(super) fn ask_for_rates(&mut self, scope: &Scope, now: Tick) {
        let (changed, long): (Vec<QueueNo>, Duration) = match scope {
            // A look-up that sees the transaction sees all that it changed.
            Scope::All if !self.is_news_of_all() => return,
            Scope::All => (self.sending.resting().collect(), LONG_FOR_ALL),
            Scope::Endpoint { endpoints, .. } => {
                let of_ids = endpoints.iter().flat_map(|id| self.queues.of_endpoint(id)).copied();
                (of_ids.collect(), LONG)
            }
        };
        for queue in changed {
            if self.queues.is_resting(queue, now + long) {
                self.routing.router.want(&self.queues.id(queue).account);
            }
        }
    }

    /// Whether a change that may concern everything is the first one of its transaction, or of none.
    fn is_news_of_all(&mut self) -> bool {
        let txn = self.progress.reading_or_between();
        txn.is_none_or(|txn| self.routing.unseen.change_all(txn))
    }

    /// The lane's endpoints rest as their rows say now. One that the account has no more does not rest: what waits
    /// for it ends when it is its turn.
    pub(super) fn take_rates(&mut self, lane: LaneId, routes: &Routes, now: Tick) {
        for queue in self.queues.resting_of(lane, now) {
            let endpoint = routes.endpoint(&self.queues.id(queue).endpoint);
            let in_memory = self.queues.in_use(queue);
            let before = in_memory.resting_until(now);
            in_memory.space_anew(endpoint.and_then(|endpoint| endpoint.rate_per_second));
            let until = in_memory.resting_until(now);
            if until != before
                && let Some(until) = until
            {
                self.sending.wake_at(until, Wake::RateLimit(queue));
            }
        }
    }
}

#[cfg(test)]
mod tests;
