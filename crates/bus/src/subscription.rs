//! What is heard on a subject, also after a server has refused that for a while.
//!
//! A server that does not allow a subscription, or withdraws it when its permissions change, says so once and forgets it;
//! it does not come back with the permission, and the client does not ask for it again while the connection stands. So
//! [`Subscriptions`] asks again, and hands what comes of it to whoever holds the [`Subscription`].

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_nats::{Client, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::unconstrained;
use tokio::time::Instant;

use crate::seen::Seen;

/// What a subscription hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A frame.
    Frame {
        /// Where it was published.
        subject: Subject,
        /// It.
        payload: Bytes,
    },
    /// What was published with this reply subject has reached nobody: no connection is subscribed to it.
    NoResponders {
        /// The reply subject.
        reply: Subject,
    },
}

/// What is heard on a subject.
#[derive(Debug)]
pub struct Subscription {
    heard: Subscriber,
    /// What takes its place, each time it is asked for again.
    renewed: mpsc::Receiver<Subscriber>,
}

impl Subscription {
    /// The next message; `None` once the bus is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Received> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next message, for who waits for one of several subscriptions; `None` once the bus is gone.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        // The one before was refused: nothing comes by it any more.
        while let Poll::Ready(Some(renewed)) = self.renewed.poll_recv(cx) {
            self.heard = renewed;
        }
        self.heard.poll_next_unpin(cx).map(|message| message.map(received))
    }

    /// The next message, if it has come already.
    pub fn try_next(&mut self) -> Option<Received> {
        self.next().now_or_never().flatten()
    }
}

fn received(message: async_nats::Message) -> Received {
    let async_nats::Message { subject, payload, status, .. } = message;
    if status == Some(StatusCode::NO_RESPONDERS) {
        Received::NoResponders { reply: subject }
    } else {
        Received::Frame { subject, payload }
    }
}

/// Those of one connection that somebody holds. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subscriptions(Arc<Mutex<Vec<Held>>>);

#[derive(Debug)]
struct Held {
    subject: String,
    /// When the server was asked for it.
    asked: Instant,
    renew: mpsc::Sender<Subscriber>,
}

impl Held {
    fn is_refused(&self, seen: &Seen) -> bool {
        !self.renew.is_closed() && seen.is_denied(&self.subject, self.asked)
    }
}

impl Subscriptions {
    /// Subscribes. Known before the server is asked, so that no refusal comes too early.
    pub(crate) async fn subscribe(
        &self,
        client: &Client,
        subject: &str,
    ) -> Result<Subscription, async_nats::SubscribeError> {
        let (renew, renewed) = mpsc::channel(1);
        self.hold(subject, renew);
        let heard = client.subscribe(subject.to_owned()).await?;
        Ok(Subscription { heard, renewed })
    }

    fn hold(&self, subject: &str, renew: mpsc::Sender<Subscriber>) {
        let mut held = self.held();
        held.retain(|held| !held.renew.is_closed());
        held.push(Held { subject: subject.to_owned(), asked: Instant::now(), renew });
    }

    /// Whether the server refuses one of them.
    pub(crate) fn is_one_refused(&self, seen: &Seen) -> bool {
        self.held().iter().any(|held| held.is_refused(seen))
    }

    /// Subscribes again to those that the server refuses. No: the client's queue has no room for all of them now.
    pub(crate) fn ask_again(&self, client: &Client, seen: &Seen) -> bool {
        let now = Instant::now();
        let mut held = self.held();
        for held in held.iter_mut().filter(|held| held.is_refused(seen)) {
            // Its holder has not taken the one before yet; that may be refused too.
            let Ok(place) = held.renew.try_reserve() else { continue };
            match unconstrained(client.subscribe(held.subject.clone())).now_or_never() {
                Some(Ok(renewed)) => {
                    held.asked = now;
                    place.send(renewed);
                }
                Some(Err(_)) | None => return false,
            }
        }
        true
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
