//! One attempt: what the transport is asked to do, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::event::Event;
use super::id::{DeadLetterId, JobId, ReplayId};

/// A delivery's handle while it is in memory: unique within one process.
///
/// Invariant: along one endpoint, ids grow in stream order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct DeliveryId(pub u64);

/// A request to send: one event to one endpoint, or several.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Attempt {
    /// Where to, as it stood at this moment.
    pub endpoint: Arc<Endpoint>,
    /// What. The dispatcher makes requests of one.
    pub deliveries: Deliveries,
}

impl Attempt {
    /// The first of its deliveries; where it has one, that one.
    #[must_use]
    pub fn first(&self) -> &Delivery {
        self.deliveries.first()
    }
}

/// What an attempt sends of one delivery.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Delivery {
    /// Which delivery this is an attempt of; the outcome names it again.
    pub id: DeliveryId,
    /// What.
    pub event: Arc<Event>,
    /// Counts from 1.
    pub number: u32,
    /// The operator's wish on which it is sent again (the header `<prefix>-replay`); none: it is the stream's. Boxed,
    /// for it is rare, and an attempt is moved often.
    pub asked: Option<Box<Asked>>,
}

/// On which wish of an operator's something is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub enum Asked {
    /// That a dead letter is sent again.
    Retry {
        /// The dead letter's id.
        dead_letter: DeadLetterId,
        /// The job that asked.
        job: JobId,
    },
    /// A replay.
    Replay(ReplayId),
}

/// The deliveries of an attempt, in stream order.
///
/// Invariant: there is one. One alone stands in place, without an allocation.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
pub struct Deliveries(Several);

#[derive(Debug, Clone)]
#[cfg_attr(feature = "record", derive(serde::Serialize))]
enum Several {
    One(Delivery),
    More(Box<[Delivery]>),
}

impl Deliveries {
    /// These; `None` where there is none.
    #[must_use]
    pub fn new(mut all: Vec<Delivery>) -> Option<Self> {
        let several = match all.len() {
            1 => Several::One(all.pop()?),
            0 => return None,
            _ => Several::More(all.into()),
        };
        Some(Self(several))
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[Delivery] {
        match &self.0 {
            Several::One(delivery) => std::slice::from_ref(delivery),
            Several::More(all) => all,
        }
    }

    /// The first.
    #[must_use]
    pub fn first(&self) -> &Delivery {
        match self.as_slice() {
            [first, ..] => first,
            [] => unreachable!("an attempt has a delivery"),
        }
    }
}

impl From<Delivery> for Deliveries {
    fn from(delivery: Delivery) -> Self {
        Self(Several::One(delivery))
    }
}

/// What came of one attempt. Nothing else follows from it here: settling decides.
///
/// By its meaning alone: how a request is carried, and what an answer looks like, is known where it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Outcome {
    /// What it means for the delivery, and for its endpoint.
    pub meaning: Meaning,
    /// What was seen. Nothing is decided by it.
    pub record: Record,
    /// From the call to the end of the answer.
    pub elapsed: Duration,
    /// How often the request was sent again on another connection within the attempt, because the
    /// one before it surely did not answer it.
    pub resends: u32,
    /// How many of these say something of the endpoint: no other account had used the connection before.
    pub own_resends: u32,
}

/// What an outcome means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum Meaning {
    /// The endpoint took the event.
    Delivered,
    /// The endpoint said that it wants no more.
    Gone,
    /// The endpoint answered, and did not take it.
    Refused {
        /// The wait that it asked for, from now.
        retry_after: Option<Duration>,
        /// It has too much to do, and is to be sent fewer at once.
        overloaded: bool,
    },
    /// There was no whole answer within the time for the request.
    TimedOut,
    /// There was no whole answer, for another reason.
    Failed,
    /// The endpoint's row cannot be used.
    Invalid,
    /// walhook gave it up: it says nothing of the endpoint, which may have received it.
    Aborted,
    /// It is too large for whoever is to carry it: it was not sent, and says nothing of the endpoint.
    Oversize,
    /// Whoever carried it was lost: it says nothing of the endpoint, which may have received it.
    Lost,
    /// It was not sent for want of something of our own: it says nothing of the endpoint, and is no attempt.
    Local,
}

/// What was seen of an attempt: for histories, dead letters, logs and metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Record {
    /// The status of the answer, where there was one.
    pub status: Option<u16>,
    /// What failed, where there was no answer.
    pub failure: Option<FailureKind>,
    /// For a person: what failed, with the answer's first bytes; lowercase, without secrets, at most some
    /// 1 KiB. Empty where the endpoint took the event.
    #[cfg_attr(feature = "record", serde(with = "crate::record::text"))]
    pub text: String,
}

/// What failed, as far as the operator cares: the label of `walhook_attempts_total{outcome}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub enum FailureKind {
    /// The URL cannot be used, or a header of the endpoint's row is not a header.
    Invalid,
    /// The address is one that must not be contacted.
    Forbidden,
    /// The name did not resolve.
    Dns,
    /// No connection: refused, unreachable, not within the time for connecting, or no tunnel to it where the proxy
    /// opens some to others.
    Connect,
    /// The proxy that all goes through could not be reached, or opens no tunnel to anybody: it was not sent, and is no
    /// attempt.
    Proxy,
    /// The TLS handshake or the certificate failed.
    Tls,
    /// No whole answer within the time for the request.
    Timeout,
    /// The connection broke, or what came was no HTTP.
    Protocol,
    /// walhook gave it up early, since too many endpoints hung at once: it says nothing of this one, which
    /// may have received it.
    Aborted,
    /// The worker that carried it was lost; or the connection, by nobody knows which of the accounts that shared it; or
    /// what came there may be another account's answer. It says nothing of the endpoint, which may have received it.
    Lost,
    /// It is larger than a message of the bus may be, and only workers send: it says nothing of the endpoint.
    Oversize,
    /// The process had no file, port or memory left for it, too much to sign, or too many names to look up: it was not
    /// sent, and is no attempt.
    Local,
}

impl FailureKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::Forbidden,
        Self::Dns,
        Self::Connect,
        Self::Proxy,
        Self::Tls,
        Self::Timeout,
        Self::Protocol,
        Self::Aborted,
        Self::Lost,
        Self::Oversize,
        Self::Local,
    ];

    /// The word in metrics and in the state tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Aborted => "aborted",
            Self::Lost => "lost",
            Self::Oversize => "oversize",
            Self::Local => "local",
        }
    }
}

impl FailureKind {
    /// What follows from it.
    #[must_use]
    pub const fn meaning(self) -> Meaning {
        match self {
            Self::Invalid => Meaning::Invalid,
            Self::Timeout => Meaning::TimedOut,
            Self::Aborted => Meaning::Aborted,
            Self::Oversize => Meaning::Oversize,
            Self::Lost => Meaning::Lost,
            Self::Local | Self::Proxy => Meaning::Local,
            Self::Forbidden | Self::Dns | Self::Connect | Self::Tls | Self::Protocol => {
                Meaning::Failed
            }
        }
    }
}

impl Outcome {
    /// What came of a request that was sent once, without a record.
    #[must_use]
    pub fn new(meaning: Meaning, elapsed: Duration) -> Self {
        Self { meaning, record: Record::default(), elapsed, resends: 0, own_resends: 0 }
    }

    /// That there was no (whole) answer. `detail` is for a person: lowercase, without secrets, at most 1 KiB.
    #[must_use]
    pub fn failed(kind: FailureKind, detail: &str, elapsed: Duration) -> Self {
        let text = format!("{}: {detail}", kind.as_str());
        let record = Record { status: None, failure: Some(kind), text };
        Self { record, ..Self::new(kind.meaning(), elapsed) }
    }

    /// Whether the endpoint took the event.
    #[must_use]
    pub const fn delivered(&self) -> bool {
        matches!(self.meaning, Meaning::Delivered)
    }

    /// Whether the endpoint lives, and says that it has too much: 429, or 503 with the time to wait. A bare 503 is what
    /// a proxy says in the stead of one that is dead.
    #[must_use]
    pub fn is_too_much(&self) -> bool {
        let Meaning::Refused { overloaded: true, retry_after } = self.meaning else { return false };
        retry_after.is_some() || self.record.status == Some(429)
    }

    /// Whether it ended by us, so that the endpoint is not to blame: given up, lost with a worker, or not
    /// carried by one.
    #[must_use]
    pub const fn says_nothing_of_the_endpoint(&self) -> bool {
        matches!(self.meaning, Meaning::Aborted | Meaning::Oversize | Meaning::Lost)
    }

    /// Whether it was not sent for want of something of our own: it says nothing of the endpoint.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self.meaning, Meaning::Local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{AccountId, Operation, RowKeys};
    use crate::position::{EventId, Position};

    fn delivery(id: u64) -> Delivery {
        let event = Event {
            id: EventId::derive(1, &Position::FIRST, "t", 0),
            position: Position::FIRST,
            event_type: "t".into(),
            account: AccountId::new("1"),
            operation: Operation::Insert,
            commit_time_us: 0,
            keys: RowKeys::new(),
            row: bytes::Bytes::new(),
        };
        Delivery { id: DeliveryId(id), event: Arc::new(event), number: 1, asked: None }
    }

    #[test]
    fn attempt_takes_several_deliveries_and_one_costs_no_more_than_itself() {
        assert_eq!(size_of::<Deliveries>(), size_of::<Delivery>());
        assert!(Deliveries::new(Vec::new()).is_none());
        for count in 1..4 {
            let all = Deliveries::new((0..count).map(delivery).collect()).unwrap();
            let ids = all.as_slice().iter().map(|delivery| delivery.id.0);
            assert!(ids.eq(0..count), "in their order");
            assert_eq!(all.first().id, DeliveryId(0));
        }
    }
}
