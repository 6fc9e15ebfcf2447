//! Bodies and signatures.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::Result;
use walhook_core::endpoint::Secret;
use walhook_core::event::Event;
use walhook_core::lsn::Lsn;
use walhook_sign::Keys;

use crate::events::event;

pub(crate) struct Work {
    events: Vec<Arc<Event>>,
    /// Read once for an endpoint, as for its requests.
    keys: Keys,
}

impl Work {
    pub(crate) fn of(count: u64) -> Result<Self> {
        let events = (0..count).map(|n| event(n, 1, Lsn(1_000 + n * 100))).collect();
        let keys = Keys::parse(&[Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")])?;
        Ok(Self { events, keys })
    }

    pub(crate) fn run(self) -> Result<()> {
        for event in &self.events {
            let body = event.body();
            black_box(self.keys.sign(&event.id.to_string(), 1_763_919_961, &body));
        }
        Ok(())
    }
}
