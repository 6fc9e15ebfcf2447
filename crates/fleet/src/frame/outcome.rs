//! What came of a request, as a protobuf message.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::body::{Earlier, WireOutcome};
use super::numbers::{failure_kind, failure_number, meaning, meaning_number};
use super::wire::{bound, cut, delivery_key, key_bytes, millis};
use super::{FrameError, TEXT_MAX};
use walhook_core::attempt::{Meaning, Outcome, Record};
use walhook_core::tick::micros;

#[derive(Clone, PartialEq, Message)]
pub(super) struct OutcomeBody {
    #[prost(fixed64, tag = "1")]
    key: u64,
    #[prost(bool, tag = "2")]
    begun: bool,
    #[prost(uint64, tag = "3")]
    elapsed_us: u64,
    #[prost(uint32, tag = "4")]
    meaning: u32,
    #[prost(uint32, optional, tag = "5")]
    status: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    failure: Option<u32>,
    #[prost(uint64, optional, tag = "7")]
    retry_after_ms: Option<u64>,
    #[prost(bool, tag = "8")]
    overloaded: bool,
    #[prost(uint32, tag = "9")]
    resends: u32,
    #[prost(string, tag = "10")]
    text: String,
    #[prost(bytes = "bytes", optional, tag = "11")]
    delivery: Option<Bytes>,
    #[prost(bool, tag = "12")]
    runs: bool,
    /// Of a worker that does not say it: none.
    #[prost(uint32, tag = "13")]
    own_resends: u32,
}

impl From<&WireOutcome> for OutcomeBody {
    fn from(WireOutcome { key, outcome, earlier }: &WireOutcome) -> Self {
        let (delivery, runs) = match *earlier {
            None => (None, false),
            Some(Earlier::Runs(delivery)) => (Some(key_bytes(delivery)), true),
            Some(Earlier::Delivered(delivery)) => (Some(key_bytes(delivery)), false),
        };
        let Some(outcome) = outcome else {
            return Self { key: *key, delivery, runs, ..Self::default() };
        };
        let (retry_after, overloaded) = match outcome.meaning {
            Meaning::Refused { retry_after, overloaded } => (retry_after, overloaded),
            Meaning::Delivered
            | Meaning::Gone
            | Meaning::TimedOut
            | Meaning::Failed
            | Meaning::Invalid
            | Meaning::Aborted
            | Meaning::Oversize
            | Meaning::Lost
            | Meaning::Local => (None, false),
        };
        Self {
            key: *key,
            begun: true,
            elapsed_us: micros(outcome.elapsed),
            meaning: meaning_number(outcome.meaning),
            status: outcome.record.status.map(Into::into),
            failure: outcome.record.failure.map(failure_number),
            retry_after_ms: retry_after.map(millis),
            overloaded,
            resends: outcome.resends,
            text: cut(&outcome.record.text, TEXT_MAX).to_owned(),
            delivery,
            runs,
            own_resends: outcome.own_resends,
        }
    }
}

impl TryFrom<OutcomeBody> for WireOutcome {
    type Error = FrameError;

    fn try_from(body: OutcomeBody) -> Result<Self, FrameError> {
        let OutcomeBody {
            key, begun, elapsed_us, status, failure, resends, own_resends, text, ..
        } = body;
        let delivery = body.delivery.map(|bytes| delivery_key(&bytes)).transpose()?;
        let earlier = match delivery {
            Some(delivery) if body.runs => Some(Earlier::Runs(delivery)),
            delivery => delivery.map(Earlier::Delivered),
        };
        if !begun {
            return Ok(Self { key, outcome: None, earlier });
        }
        bound("bytes of an outcome's text", text.len(), TEXT_MAX)?;
        let retry_after = body.retry_after_ms.map(Duration::from_millis);
        let meaning = meaning(body.meaning, retry_after, body.overloaded)?;
        let status =
            status.map(u16::try_from).transpose().map_err(|_| FrameError::Field("status"))?;
        let record = Record { status, failure: failure.map(failure_kind), text };
        let elapsed = Duration::from_micros(elapsed_us);
        let outcome = Some(Outcome { meaning, record, elapsed, resends, own_resends });
        Ok(Self { key, outcome, earlier })
    }
}
