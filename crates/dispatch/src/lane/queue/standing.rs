//! What a delivery of the queue waits for now, as far as the queue knows.

use super::{Queue, Stage};
use crate::lane::{Origin, Pending};
use walhook_core::attempt::DeliveryId;
use walhook_core::waits::Cause;

impl Queue {
    /// The oldest of the stream's deliveries, in whatever stage.
    #[must_use]
    pub fn first_of_stream(&self) -> Option<&Pending> {
        let mut pending = self.entries.values().map(|entry| &entry.pending);
        pending.find(|pending| matches!(pending.origin, Origin::Stream { .. }))
    }

    /// The deliveries behind this one, in whatever stage, oldest first; `None`: all of them.
    pub fn behind(&self, id: Option<DeliveryId>) -> impl Iterator<Item = &Pending> {
        let from = id.map_or(DeliveryId(0), |id| DeliveryId(id.0.saturating_add(1)));
        self.entries.range(from..).map(|(_, entry)| &entry.pending)
    }

    /// The oldest delivery, in whatever stage.
    #[must_use]
    pub fn oldest(&self) -> Option<&Pending> {
        self.entries.values().next().map(|entry| &entry.pending)
    }

    /// The oldest delivery that is not in flight.
    #[must_use]
    pub fn first_waiting(&self) -> Option<&Pending> {
        let mut waiting = self.entries.values().filter(|entry| entry.stage != Stage::InFlight);
        waiting.next().map(|entry| &entry.pending)
    }

    /// What the delivery itself waits for; `None`: what its queue waits for.
    #[must_use]
    pub fn own_cause(&self, id: DeliveryId) -> Option<Cause> {
        match self.entries.get(id)?.stage {
            Stage::InFlight => Some(Cause::Attempt),
            Stage::BackingOff(_, cause) => Some(cause),
            Stage::Behind(_) => Some(Cause::Order),
            Stage::Dying => Some(Cause::State),
            Stage::Ready => None,
        }
    }
}
