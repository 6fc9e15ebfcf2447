//! What comes to a leader from the bus and from its packers, and in which order it is taken.

use tokio::sync::mpsc;

use super::pack::Report;
use walhook_bus::{BusEvent, Received, Subscription, Watch};

/// What has come from the bus, or from a packer.
pub(in crate::server) enum Came {
    Bus(BusEvent),
    Heard(Received),
    Report(Report),
}

/// Hellos are before all else that workers say: they are few, and a lease is renewed by nothing else.
pub(super) struct Arrivals {
    pub(super) watch: Watch,
    pub(super) reports: mpsc::Receiver<Report>,
    pub(super) hellos: Subscription,
    pub(super) inbox: Subscription,
}

impl Arrivals {
    /// Waits until something comes. Loses none when it is dropped.
    pub(super) async fn next(&mut self) -> Came {
        let came = tokio::select! {
            biased;
            event = self.watch.next() => event.map(Came::Bus),
            Some(report) = self.reports.recv() => Some(Came::Report(report)),
            received = self.hellos.next() => received.map(Came::Heard),
            received = self.inbox.next() => received.map(Came::Heard),
        };
        match came {
            Some(came) => came,
            // The bus is gone only with its last handle, of which the leader holds one.
            None => std::future::pending().await,
        }
    }

    /// What has come already.
    pub(super) fn try_next(&mut self) -> Option<Came> {
        if let Ok(report) = self.reports.try_recv() {
            return Some(Came::Report(report));
        }
        self.hellos.try_next().or_else(|| self.inbox.try_next()).map(Came::Heard)
    }
}
