//! Where the deliveries of one event stand in memory.
//!
//! There is no index of them by event, for whoever asks is a person: queue after queue is looked through, some
//! deliveries at a time, and between the looks the dispatcher goes on. What comes or moves meanwhile may be missed.

use super::super::queues::QueueNo;
use super::{Dispatcher, Ready};
use walhook_core::attempt::{Asked, DeliveryId};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::EventId;
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// So many are told: an event may be for very many endpoints.
const FOUND_MAX: usize = 10_000;

/// A delivery in memory; of an event whose deliveries are not known yet, that event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub account: AccountId,
    /// To whom; none: not known yet.
    pub endpoint: Option<EndpointId>,
    /// Attempts made.
    pub attempts: u32,
    /// What it waits for now.
    pub cause: Cause,
    /// The operator's wish on which it is sent; none: it is the stream's.
    pub asked: Option<Asked>,
}

/// A look that is under way.
#[derive(Debug)]
pub struct Find {
    event: EventId,
    /// The queue that is looked through next, and behind which of its deliveries.
    at: usize,
    behind: Option<DeliveryId>,
    found: Vec<Found>,
}

impl Find {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(event: EventId) -> Self {
        Self { event, at: 0, behind: None, found: Vec::new() }
    }

    /// What was found.
    #[must_use]
    pub fn into_found(self) -> Vec<Found> {
        self.found
    }
}

impl Dispatcher {
    /// Looks at `most` more deliveries, or a few above that. Says whether that was all.
    pub fn find(&self, find: &mut Find, most: usize, now: Tick) -> bool {
        let mut left = most;
        let mut ready = None;
        while let Some(queue) = self.queues.nth(find.at) {
            left = left.saturating_sub(1);
            let behind = find.behind.take();
            if let Some(no) = queue {
                for pending in self.queues.pending(no).into_iter().flat_map(|of| of.behind(behind))
                {
                    if pending.held.event.id == find.event && find.found.len() < FOUND_MAX {
                        let ready = ready.get_or_insert_with(|| self.ready_lanes());
                        find.found.push(self.found(no, pending, ready, now));
                    }
                    left = left.saturating_sub(1);
                    if left == 0 {
                        find.behind = Some(pending.id);
                        return false;
                    }
                }
            }
            find.at += 1;
            if left == 0 {
                return false;
            }
        }
        for (account, parked) in self.routing.waiting.of_event(find.event) {
            find.found.push(Found {
                account: account.clone(),
                endpoint: parked.endpoint().cloned(),
                attempts: 0,
                cause: self.parked_cause(account),
                asked: parked.asked(),
            });
        }
        true
    }

    fn found(&self, no: QueueNo, pending: &super::Pending, ready: &Ready, now: Tick) -> Found {
        let queue = self.queues.id(no);
        Found {
            account: queue.account.clone(),
            endpoint: Some(queue.endpoint.clone()),
            attempts: pending.attempts,
            cause: self.delivery_cause(no, pending, ready, now),
            asked: pending.origin.asked(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::rig::{Rig, settings};
    use super::*;

    fn found(rig: &Rig, event: EventId, most: usize) -> (Vec<Found>, usize) {
        let (mut find, mut looks) = (Find::new(event), 1);
        while !rig.dispatcher.find(&mut find, most, rig.now) {
            looks += 1;
        }
        (find.into_found(), looks)
    }

    #[test]
    fn delivery_is_found_wherever_it_stands_in_however_many_looks() {
        let mut rig = Rig::new(settings());
        let mut events = Vec::new();
        for n in 0..30 {
            events.push(rig.commit(["a", "b", "c"][n % 3]));
        }
        let parked = rig.commit_unrouted("d");
        rig.send();
        for most in [1, 2, 7, 1_000] {
            for event in &events {
                let (found, looks) = found(&rig, event.id, most);
                assert!(looks > 1 || most == 1_000, "{most}: {looks}");
                let [one] = &found[..] else { panic!("{found:?}") };
                assert_eq!(one.account, event.account);
                assert_eq!(one.endpoint.as_deref(), Some(&*event.account));
                assert_eq!((one.asked, one.attempts > 0), (None, one.cause == Cause::Attempt));
            }
            let (found, _) = found(&rig, parked.id, most);
            assert_eq!((found.len(), found[0].cause), (1, Cause::Lookup));
        }
        let elsewhere = "evt_01KB4ZD2G0ABCDEFGHJKMNPQRS".parse().unwrap();
        assert_eq!(found(&rig, elsewhere, 5).0, []);
    }
}
