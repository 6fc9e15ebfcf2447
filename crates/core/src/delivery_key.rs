//! What tells one delivery from all others beyond the process that decided it.

use std::fmt;

use sha2::{Digest as _, Sha256};

use super::attempt::{Asked, Attempt};

/// Bytes of a key.
pub const DELIVERY_KEY_BYTES: usize = 16;

/// One event to one endpoint at one URL, for the stream or on one wish of an operator's: all attempts of it have the
/// same key, under whichever leader, and no other delivery's has it.
///
/// Shape: the first 16 bytes of SHA-256 over what it is of, each text with its length before it. Contract between
/// leaders of neighbouring versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryKey(pub [u8; DELIVERY_KEY_BYTES]);

/// Of what follows; another way to make keys has another number.
const MADE_BY: u8 = 1;

impl DeliveryKey {
    /// Of the first delivery of an attempt.
    #[must_use]
    pub fn of(attempt: &Attempt) -> Self {
        let (endpoint, delivery) = (&attempt.endpoint, attempt.first());
        let mut hash = Sha256::new();
        hash.update([MADE_BY]);
        for text in [&*delivery.event.id.to_string(), endpoint.id.as_str(), &*endpoint.url] {
            hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(text);
        }
        let (kind, ids) = match delivery.asked.as_deref() {
            None => (0, [0, 0]),
            Some(Asked::Retry { dead_letter, job }) => (1, [dead_letter.0, job.0]),
            Some(Asked::Replay(replay)) => (2, [replay.0, 0]),
        };
        hash.update([kind]);
        ids.iter().for_each(|id| hash.update(id.to_be_bytes()));
        let mut key = [0; DELIVERY_KEY_BYTES];
        key.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Self(key)
    }
}

impl fmt::Debug for DeliveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::{Deliveries, Delivery, DeliveryId};
    use crate::endpoint::Endpoint;
    use crate::event::{AccountId, EndpointId, Event, Operation, RowKeys};
    use crate::id::{DeadLetterId, JobId, ReplayId};
    use crate::position::{EventId, Position};
    use std::sync::Arc;

    fn attempt(event_type: &str, endpoint: &str, url: &str, asked: Option<Asked>) -> Attempt {
        let event = Event {
            id: EventId::derive(1, &Position::FIRST, event_type, 0),
            position: Position::FIRST,
            event_type: event_type.into(),
            account: AccountId::new("1"),
            operation: Operation::Insert,
            commit_time_us: 0,
            keys: RowKeys::new(),
            row: bytes::Bytes::new(),
        };
        let endpoint = Endpoint {
            id: EndpointId::new(endpoint),
            account: AccountId::new("1"),
            url: url.into(),
            event_types: vec![],
            secrets: vec![],
            enabled: true,
            headers: vec![],
            max_in_flight: None,
            rate_per_second: None,
            invalid: None,
        };
        let asked = asked.map(Box::new);
        let delivery = Delivery { id: DeliveryId(1), event: Arc::new(event), number: 1, asked };
        Attempt { endpoint: Arc::new(endpoint), deliveries: Deliveries::from(delivery) }
    }

    #[test]
    fn key_is_of_event_endpoint_url_and_wish_and_of_nothing_else() {
        let retry = |dead_letter, job| {
            Some(Asked::Retry { dead_letter: DeadLetterId(dead_letter), job: JobId(job) })
        };
        let attempts = [
            attempt("a", "1", "https://a.example/", None),
            attempt("b", "1", "https://a.example/", None),
            attempt("a", "2", "https://a.example/", None),
            attempt("a", "1h", "ttps://a.example/", None),
            attempt("a", "1", "https://a.example/x", None),
            attempt("a", "1", "https://a.example/", retry(1, 2)),
            attempt("a", "1", "https://a.example/", retry(2, 1)),
            attempt("a", "1", "https://a.example/", retry(1, 0)),
            attempt("a", "1", "https://a.example/", Some(Asked::Replay(ReplayId(1)))),
            attempt("a", "1", "https://a.example/", Some(Asked::Replay(ReplayId(2)))),
        ];
        let keys: std::collections::BTreeSet<_> = attempts.iter().map(DeliveryKey::of).collect();
        assert_eq!(keys.len(), attempts.len());
        for mut attempt in attempts {
            let key = DeliveryKey::of(&attempt);
            let later = Delivery { id: DeliveryId(9), number: 7, ..attempt.first().clone() };
            attempt.deliveries = later.into();
            assert_eq!(DeliveryKey::of(&attempt), key, "the number of an attempt is no part of it");
        }
    }

    #[test]
    fn key_is_the_same_in_every_version() {
        let key = DeliveryKey::of(&attempt("a", "1", "https://a.example/", None));
        assert_eq!(format!("{key:?}"), "67049988783362a3a3a84934c4d6aa99");
    }
}
