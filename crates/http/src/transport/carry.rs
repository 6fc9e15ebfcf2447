//! An attempt in two halves: the leader prepares what is to be sent, and a worker carries it there.
//!
//! ```text
//! leader: Attempt ─► prepare ─► Prepared ··· bus ··· Prepared ─► carry ─► Carried: worker
//!         secrets, signature     all headers          egress, connection, may it begin?
//! ```

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tracing::Instrument;
use walhook_core::attempt::Attempt;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::EventId;

use super::content::Content;
use super::course::Course;
use super::target::Address;
use super::{Transport, request, within};
use crate::exchange::Exchange;

/// A request that is signed and only has to be sent. It holds no secret, but the URL and the headers of
/// an endpoint, and its event: what is the customer's alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The account that owns the endpoint.
    pub account: AccountId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The event, whose id `webhook-id` says.
    pub event: EventId,
    /// Which attempt of the delivery it is; counts from 1.
    pub number: u32,
    /// Where it goes, as the endpoint's row says.
    pub url: String,
    /// All headers, the signature included, but those that depend on the connection: `host` and
    /// `content-length`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// For the whole request.
    pub timeout: Duration,
}

/// Names what it is, and shows nothing of what is sent.
impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, endpoint, event, number, .. } = self;
        f.debug_struct("Prepared")
            .field("account", account)
            .field("endpoint", endpoint)
            .field("event", event)
            .field("number", number)
            .finish_non_exhaustive()
    }
}

/// What came of carrying a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The answer, or why there was none.
    pub exchange: Exchange,
    /// Whether it was handed to a connection, so that the endpoint may have received it.
    pub begun: bool,
}

impl Transport {
    /// Signs an attempt, and says all that is to be sent. The timeout is this transport's.
    ///
    /// # Errors
    /// What comes of the attempt, where it cannot be sent: its endpoint's row cannot be used, or the URL
    /// is one that `egress` forbids.
    pub async fn prepare(&self, attempt: &Attempt) -> Result<Prepared, Exchange> {
        let ended = |failure| Exchange::new(Err(failure), Duration::ZERO);
        let post = self.post_of(attempt).map_err(ended)?;
        let signed = self.sign(&post).await.map_err(ended)?;
        let headers = self.headers(&post, &signed);
        Ok(Prepared {
            account: post.account.clone(),
            endpoint: attempt.endpoint.id.clone(),
            event: post.id,
            number: post.number,
            url: attempt.endpoint.url.clone(),
            headers,
            body: post.body.to_bytes(),
            timeout: self.timeout,
        })
    }

    /// Sends what was prepared, where this transport's `egress` allows it.
    ///
    /// `may_begin` is asked whenever a connection waits for the request, before its first byte is handed
    /// over: where it says no, the request is not sent, and the exchange's failure is `Aborted`.
    ///
    /// Takes the request's timeout at most, the answer's body included. Dropping it abandons the request.
    pub async fn carry(
        &self,
        prepared: &Prepared,
        may_begin: impl Fn() -> bool + Send + Sync,
    ) -> Carried {
        let Prepared { account, endpoint, event, number, .. } = prepared;
        let span = tracing::trace_span!("delivery", %event, %account, %endpoint, attempt = number);
        self.carry_within(prepared, may_begin).instrument(span).await
    }

    async fn carry_within(
        &self,
        prepared: &Prepared,
        may_begin: impl Fn() -> bool + Send + Sync,
    ) -> Carried {
        let address = match Address::new(&prepared.url, &self.policy) {
            Ok(address) => address,
            Err(failure) => {
                let exchange = Exchange::new(Err(failure), Duration::ZERO);
                return Carried { exchange, begun: false };
            }
        };
        let (course, begun) = (Course::default(), AtomicBool::new(false));
        let make = |http2| {
            if !may_begin() {
                return None;
            }
            begun.store(true, Ordering::Relaxed);
            let body = Content::whole(prepared.body.clone());
            Some(request(&address, prepared.headers.clone(), body, http2))
        };
        let sending = pin!(self.exchange(&address, &prepared.account, make, false, &course));
        let exchange = within(prepared.timeout, sending, &course).await;
        Carried { exchange, begun: begun.load(Ordering::Relaxed) }
    }
}
