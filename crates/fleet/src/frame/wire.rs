//! Bodies as protobuf messages. Numbers of fields, of kinds and of words are contract: a number is never used again.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;

use super::body::{
    Abort, Attempts, Body, Bye, Digest, Grant, Hello, HelloState, Lead, Outcomes, Refused, Request,
};
use super::numbers::{bye_number, bye_reason, refusal, refusal_number};
use super::outcome::OutcomeBody;
use super::scan::fields;
use super::{
    ABORTS_MAX, ATTEMPTS_MAX, FORMER_MAX, FrameError, HEADERS_BYTES_MAX, HEADERS_MAX, NAME_MAX,
    OUTCOMES_MAX, PIPELINE_FIELD, PipelineId, SessionId, Versions, WorkerId, read,
};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::endpoint::URL_BYTES_MAX;
use walhook_core::event::{AccountId, EndpointId, ID_MAX_BYTES};
use walhook_core::tick::micros;

/// A body, as it goes over the wire.
pub(super) enum Kind {
    Lead(LeadBody),
    Hello(HelloBody),
    Attempts(AttemptsBody),
    Grant(GrantBody),
    Abort(AbortBody),
    Refused(RefusedBody),
    Outcomes(OutcomesBody),
    Bye(ByeBody),
}

const LEAD: u8 = 1;
const HELLO: u8 = 2;
const ATTEMPTS: u8 = 3;
const GRANT: u8 = 4;
const ABORT: u8 = 5;
const REFUSED: u8 = 6;
const OUTCOMES: u8 = 7;
const BYE: u8 = 8;

impl Kind {
    pub(super) fn of(body: &Body) -> Self {
        match body {
            Body::Lead(lead) => Self::Lead(lead.into()),
            Body::Hello(hello) => Self::Hello(hello.into()),
            Body::Attempts(attempts) => Self::Attempts(AttemptsBody {
                requests: attempts.requests.iter().map(Into::into).collect(),
            }),
            Body::Grant(grant) => Self::Grant(GrantBody {
                stamp_us: grant.stamp_us,
                lease_us: micros(grant.lease),
                outcomes_upto: grant.outcomes_upto,
                closed: grant.closed,
            }),
            Body::Abort(abort) => Self::Abort(AbortBody { keys: abort.keys.clone() }),
            Body::Refused(refused) => {
                Self::Refused(RefusedBody { why: refusal_number(refused.why) })
            }
            Body::Outcomes(outcomes) => Self::Outcomes(OutcomesBody {
                first: outcomes.first,
                outcomes: outcomes.outcomes.iter().map(Into::into).collect(),
            }),
            Body::Bye(bye) => {
                Self::Bye(ByeBody { received_upto: bye.received_upto, why: bye_number(bye.why) })
            }
        }
    }

    pub(super) const fn number(&self) -> u8 {
        match self {
            Self::Lead(_) => LEAD,
            Self::Hello(_) => HELLO,
            Self::Attempts(_) => ATTEMPTS,
            Self::Grant(_) => GRANT,
            Self::Abort(_) => ABORT,
            Self::Refused(_) => REFUSED,
            Self::Outcomes(_) => OUTCOMES,
            Self::Bye(_) => BYE,
        }
    }

    fn message(&self) -> &dyn DynMessage {
        match self {
            Self::Lead(body) => body,
            Self::Hello(body) => body,
            Self::Attempts(body) => body,
            Self::Grant(body) => body,
            Self::Abort(body) => body,
            Self::Refused(body) => body,
            Self::Outcomes(body) => body,
            Self::Bye(body) => body,
        }
    }

    pub(super) fn encoded_len(&self) -> usize {
        self.message().len()
    }

    pub(super) fn encode(&self, bytes: &mut BytesMut) {
        self.message().put(bytes);
    }

    pub(super) fn decode(kind: u8, body: Bytes) -> Result<Body, FrameError> {
        Ok(match kind {
            LEAD => Body::Lead(read::<LeadBody>(kind, body)?.try_into()?),
            HELLO => {
                fields("former sessions of a worker", &body, 13, FORMER_MAX)?;
                Body::Hello(read::<HelloBody>(kind, body)?.try_into()?)
            }
            ATTEMPTS => {
                // A header takes 2 bytes at least, and many times as much once it is read.
                for request in fields("requests of a frame", &body, 1, ATTEMPTS_MAX)? {
                    fields("headers of a request", request, 9, HEADERS_MAX)?;
                }
                let body: AttemptsBody = read(kind, body)?;
                let requests = body.requests.into_iter().map(TryInto::try_into);
                Body::Attempts(Attempts { requests: requests.collect::<Result<_, _>>()? })
            }
            GRANT => {
                let body: GrantBody = read(kind, body)?;
                Body::Grant(Grant {
                    stamp_us: body.stamp_us,
                    lease: Duration::from_micros(body.lease_us),
                    outcomes_upto: body.outcomes_upto,
                    closed: body.closed,
                })
            }
            ABORT => {
                // Packed numbers take a byte at least, and eight once they are read.
                bound("bytes of given up requests", body.len(), ABORTS_MAX * 10 + 64)?;
                let AbortBody { keys } = read(kind, body)?;
                bound("given up requests of a frame", keys.len(), ABORTS_MAX)?;
                Body::Abort(Abort { keys })
            }
            REFUSED => {
                let body: RefusedBody = read(kind, body)?;
                Body::Refused(Refused { why: refusal(body.why) })
            }
            OUTCOMES => {
                fields("outcomes of a frame", &body, 2, OUTCOMES_MAX)?;
                let body: OutcomesBody = read(kind, body)?;
                let outcomes = body.outcomes.into_iter().map(TryInto::try_into);
                let outcomes = outcomes.collect::<Result<_, _>>()?;
                Body::Outcomes(Outcomes { first: body.first, outcomes })
            }
            BYE => {
                let body: ByeBody = read(kind, body)?;
                Body::Bye(Bye { received_upto: body.received_upto, why: bye_reason(body.why) })
            }
            kind => return Err(FrameError::Kind(kind)),
        })
    }
}

/// What follows every kind's own fields. A message that is written behind another is read as one with it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PipelineBody {
    #[prost(bytes = "bytes", optional, tag = "100")]
    pipeline: Option<Bytes>,
}

impl From<Option<PipelineId>> for PipelineBody {
    fn from(pipeline: Option<PipelineId>) -> Self {
        Self { pipeline: pipeline.map(|PipelineId(id)| Bytes::copy_from_slice(&id)) }
    }
}

/// The pipeline that a body names.
pub(super) fn pipeline(body: &[u8]) -> Result<Option<PipelineId>, FrameError> {
    let named = fields("names of a pipeline", body, PIPELINE_FIELD.into(), 1)?;
    let id = |bytes: &&[u8]| <[u8; 16]>::try_from(*bytes).map(PipelineId);
    named.first().map(id).transpose().map_err(|_| FrameError::Field("pipeline"))
}

/// What of [`Message`] is the same for all kinds.
trait DynMessage {
    fn len(&self) -> usize;
    fn put(&self, bytes: &mut BytesMut);
}

impl<M: Message> DynMessage for M {
    fn len(&self) -> usize {
        self.encoded_len()
    }

    fn put(&self, bytes: &mut BytesMut) {
        // It grows as it needs: there is always room.
        let _ = self.encode(bytes);
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LeadBody {
    #[prost(uint32, tag = "1")]
    oldest: u32,
    #[prost(uint32, tag = "2")]
    newest: u32,
    #[prost(uint64, tag = "3")]
    lease_us: u64,
    #[prost(bytes = "bytes", optional, tag = "4")]
    egress: Option<Bytes>,
    #[prost(bool, tag = "5")]
    asks: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HelloBody {
    #[prost(uint32, tag = "1")]
    oldest: u32,
    #[prost(uint32, tag = "2")]
    newest: u32,
    #[prost(uint32, tag = "3")]
    fast_slots: u32,
    #[prost(uint32, tag = "4")]
    slow_slots: u32,
    #[prost(uint64, tag = "5")]
    byte_budget: u64,
    #[prost(uint64, tag = "6")]
    stamp_us: u64,
    #[prost(uint64, tag = "7")]
    received_upto: u64,
    /// 0: serving; otherwise why it closes.
    #[prost(uint32, tag = "8")]
    closing: u32,
    #[prost(string, tag = "9")]
    host: String,
    #[prost(string, tag = "10")]
    build: String,
    #[prost(bytes = "bytes", tag = "11")]
    egress: Bytes,
    #[prost(uint64, tag = "12")]
    kept: u64,
    #[prost(bytes = "bytes", repeated, tag = "13")]
    former: Vec<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "14")]
    worker: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttemptsBody {
    #[prost(message, repeated, tag = "1")]
    requests: Vec<RequestBody>,
}

#[derive(Clone, PartialEq, Message)]
struct RequestBody {
    #[prost(fixed64, tag = "1")]
    key: u64,
    #[prost(uint32, tag = "2")]
    number: u32,
    #[prost(uint64, tag = "3")]
    timeout_ms: u64,
    #[prost(string, tag = "4")]
    account: String,
    #[prost(string, tag = "5")]
    endpoint: String,
    #[prost(string, tag = "6")]
    event: String,
    #[prost(string, tag = "7")]
    url: String,
    #[prost(bytes = "bytes", tag = "8")]
    body: Bytes,
    #[prost(message, repeated, tag = "9")]
    headers: Vec<HeaderBody>,
    #[prost(bytes = "bytes", optional, tag = "10")]
    delivery: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderBody {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GrantBody {
    #[prost(uint64, tag = "1")]
    stamp_us: u64,
    #[prost(uint64, tag = "2")]
    lease_us: u64,
    #[prost(uint64, tag = "3")]
    outcomes_upto: u64,
    #[prost(bool, tag = "4")]
    closed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AbortBody {
    #[prost(uint64, repeated, tag = "1")]
    keys: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RefusedBody {
    #[prost(uint32, tag = "1")]
    why: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OutcomesBody {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(message, repeated, tag = "2")]
    outcomes: Vec<OutcomeBody>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ByeBody {
    #[prost(uint64, tag = "1")]
    received_upto: u64,
    #[prost(uint32, tag = "2")]
    why: u32,
}

pub(super) fn bound(what: &'static str, found: usize, max: usize) -> Result<(), FrameError> {
    if found > max { Err(FrameError::TooMuch { what, found, max }) } else { Ok(()) }
}

fn versions(oldest: u32, newest: u32) -> Result<Versions, FrameError> {
    let (Ok(oldest), Ok(newest)) = (u8::try_from(oldest), u8::try_from(newest)) else {
        return Err(FrameError::Field("versions"));
    };
    if oldest == 0 || newest < oldest {
        return Err(FrameError::Field("versions"));
    }
    Ok(Versions { oldest, newest })
}

fn digest(bytes: &[u8]) -> Result<Digest, FrameError> {
    bytes.try_into().map(Digest).map_err(|_| FrameError::Field("digest of [egress]"))
}

pub(super) fn delivery_key(bytes: &[u8]) -> Result<DeliveryKey, FrameError> {
    bytes.try_into().map(DeliveryKey).map_err(|_| FrameError::Field("delivery"))
}

pub(super) fn key_bytes(key: DeliveryKey) -> Bytes {
    Bytes::copy_from_slice(&key.0)
}

fn former_bytes(session: &SessionId) -> Bytes {
    Bytes::copy_from_slice(&session.0.to_be_bytes())
}

fn former(bytes: &Bytes) -> Result<SessionId, FrameError> {
    let bytes = bytes[..].try_into().map_err(|_| FrameError::Field("former session"))?;
    Ok(SessionId(u128::from_be_bytes(bytes)))
}

fn worker(bytes: &Bytes) -> Result<WorkerId, FrameError> {
    let bytes = bytes[..].try_into().map_err(|_| FrameError::Field("worker"))?;
    Ok(WorkerId(u128::from_be_bytes(bytes)))
}

pub(super) fn millis(duration: Duration) -> u64 {
    micros(duration) / 1_000
}

impl From<&Lead> for LeadBody {
    fn from(lead: &Lead) -> Self {
        Self {
            oldest: lead.versions.oldest.into(),
            newest: lead.versions.newest.into(),
            lease_us: micros(lead.lease),
            egress: lead.egress.map(|digest| Bytes::copy_from_slice(&digest.0)),
            asks: lead.asks,
        }
    }
}

impl TryFrom<LeadBody> for Lead {
    type Error = FrameError;

    fn try_from(body: LeadBody) -> Result<Self, FrameError> {
        Ok(Self {
            versions: versions(body.oldest, body.newest)?,
            lease: Duration::from_micros(body.lease_us),
            egress: body.egress.map(|bytes| digest(&bytes)).transpose()?,
            asks: body.asks,
        })
    }
}

impl From<&Hello> for HelloBody {
    fn from(hello: &Hello) -> Self {
        let closing = match hello.state {
            HelloState::Serving => 0,
            HelloState::Closing(why) => bye_number(why),
        };
        Self {
            oldest: hello.versions.oldest.into(),
            newest: hello.versions.newest.into(),
            fast_slots: hello.fast_slots,
            slow_slots: hello.slow_slots,
            byte_budget: hello.byte_budget,
            stamp_us: hello.stamp_us,
            received_upto: hello.received_upto,
            closing,
            host: cut(&hello.host, NAME_MAX).to_owned(),
            build: cut(&hello.build, NAME_MAX).to_owned(),
            egress: Bytes::copy_from_slice(&hello.egress.0),
            kept: hello.kept,
            former: hello.former.iter().map(former_bytes).collect(),
            worker: hello.worker.map(|worker| Bytes::copy_from_slice(&worker.0.to_be_bytes())),
        }
    }
}

impl TryFrom<HelloBody> for Hello {
    type Error = FrameError;

    fn try_from(body: HelloBody) -> Result<Self, FrameError> {
        bound("bytes of a worker's host", body.host.len(), NAME_MAX)?;
        bound("bytes of a worker's build", body.build.len(), NAME_MAX)?;
        let state = match body.closing {
            0 => HelloState::Serving,
            why => HelloState::Closing(bye_reason(why)),
        };
        Ok(Self {
            versions: versions(body.oldest, body.newest)?,
            fast_slots: body.fast_slots,
            slow_slots: body.slow_slots,
            byte_budget: body.byte_budget,
            stamp_us: body.stamp_us,
            received_upto: body.received_upto,
            state,
            host: body.host,
            build: body.build,
            egress: digest(&body.egress)?,
            kept: body.kept,
            former: body.former.iter().map(former).collect::<Result<_, _>>()?,
            worker: body.worker.map(|bytes| worker(&bytes)).transpose()?,
        })
    }
}

impl From<&Request> for RequestBody {
    fn from(request: &Request) -> Self {
        let header = |(name, value): &(String, Bytes)| HeaderBody {
            name: name.clone(),
            value: value.clone(),
        };
        Self {
            key: request.key,
            number: request.number,
            timeout_ms: millis(request.timeout),
            account: request.account.as_str().to_owned(),
            endpoint: request.endpoint.as_str().to_owned(),
            event: request.event.to_string(),
            url: request.url.clone(),
            body: request.body.clone(),
            headers: request.headers.iter().map(header).collect(),
            delivery: request.delivery.map(key_bytes),
        }
    }
}

impl TryFrom<RequestBody> for Request {
    type Error = FrameError;

    fn try_from(body: RequestBody) -> Result<Self, FrameError> {
        bound("bytes of an account's id", body.account.len(), ID_MAX_BYTES)?;
        bound("bytes of an endpoint's id", body.endpoint.len(), ID_MAX_BYTES)?;
        bound("bytes of a URL", body.url.len(), URL_BYTES_MAX)?;
        let headers: Vec<_> =
            body.headers.into_iter().map(|header| (header.name, header.value)).collect();
        let bytes = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        bound("bytes of a request's headers", bytes, HEADERS_BYTES_MAX)?;
        Ok(Self {
            key: body.key,
            number: body.number,
            timeout: Duration::from_millis(body.timeout_ms),
            account: AccountId::new(body.account),
            endpoint: EndpointId::new(body.endpoint),
            event: body.event.parse().map_err(|_| FrameError::Field("event"))?,
            delivery: body.delivery.map(|bytes| delivery_key(&bytes)).transpose()?,
            url: body.url,
            headers,
            body: body.body,
        })
    }
}

/// The longest beginning of `text` that has at most `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}
