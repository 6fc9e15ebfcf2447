//! What stands for `workers` in a build that has none.

/// See `workers/lead.rs`.
pub(super) mod lead {
    use tokio::time::Instant;

    use crate::server::dispatch::{Back, Sends};
    use walhook_core::attempt::{Attempt, DeliveryId, Outcome};
    use walhook_core::tick::Tick;

    /// Nothing comes.
    pub(in crate::server) enum Came {}

    /// There are none.
    pub(in crate::server) enum LeaderWorkers {}

    impl LeaderWorkers {
        pub(in crate::server) fn place(&mut self, _: Tick, _: &Attempt) -> Sends {
            match *self {}
        }

        pub(in crate::server) fn abort(&mut self, _: Tick, _: DeliveryId) {
            match *self {}
        }

        pub(in crate::server) fn ended_here(
            &mut self,
            _: Tick,
            _: DeliveryId,
            _: Outcome,
        ) -> Option<Outcome> {
            match *self {}
        }

        pub(in crate::server) fn stop(&mut self, _: Tick) {
            match *self {}
        }

        pub(in crate::server) fn in_flight(&self, _: usize) -> usize {
            match *self {}
        }

        pub(in crate::server) fn deadline(&self) -> Tick {
            match *self {}
        }

        pub(in crate::server) async fn next(&mut self) -> Came {
            match *self {}
        }

        pub(in crate::server) fn take(&mut self, _: Tick, _: Came) {
            match *self {}
        }

        pub(in crate::server) fn poll(&mut self, _: Tick, _: usize) -> Option<Back> {
            match *self {}
        }

        pub(in crate::server) fn proxy_trouble(&self, _: Tick) -> Option<(Instant, String)> {
            match *self {}
        }

        pub(in crate::server) fn report(&mut self, _: Tick) {
            match *self {}
        }
    }
}
