//! What the servers refuse of us for want of a permission, until they no longer do.
//!
//! A server that is told of fewer permissions takes subscriptions away from a connection that stands, and does not give
//! them back when it is told of more again: the client would wait for ever for what nobody sends it. So a connection
//! of its own tries from time to time whether what was refused is allowed.

use std::collections::BTreeSet;
use std::future::{pending, ready};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Event, ServerError};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::Seen;
use crate::options::Options;

/// It is tried so soon, and after each try twice as late, for each worker of many does so.
const TRY_AFTER: Duration = Duration::from_secs(5);
const TRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A server says within this time what it refuses: it says nothing of what it takes.
const SAYS_WITHIN: Duration = Duration::from_secs(1);

/// A subject that we may not use so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refused {
    Publish(String),
    Subscribe(String),
}

impl Refused {
    /// From the server's own words; `None` where it speaks of something else.
    pub(super) fn read(said: &str) -> Option<Self> {
        let subject = |rest: &str| Some(rest.split_once('"')?.0.to_owned());
        if let Some((_, rest)) = said.split_once("Permissions Violation for Publish to \"") {
            return subject(rest).map(Self::Publish);
        }
        let (_, rest) = said.split_once("Permissions Violation for Subscription to \"")?;
        subject(rest).map(Self::Subscribe)
    }
}

/// See the module's documentation.
pub(super) struct Refusals {
    options: Arc<Options>,
    client: Client,
    seen: watch::Sender<Seen>,
    /// Whether all is allowed that was refused on the connection of this number.
    under_way: JoinSet<(u64, bool)>,
    after: Duration,
    /// When it is tried next; `None`: nothing is refused.
    at: Option<Instant>,
    /// When something was refused last, as far as it was looked.
    last: Instant,
}

impl Refusals {
    pub(super) fn new(options: Arc<Options>, client: Client, seen: watch::Sender<Seen>) -> Self {
        let (under_way, after, last) = (JoinSet::new(), TRY_AFTER, Instant::now());
        Self { options, client, seen, under_way, after, at: None, last }
    }

    /// Begins to try where it is time to.
    pub(super) fn look(&mut self, seen: &Seen) {
        if seen.refusals.is_empty() || !seen.connected {
            self.under_way.abort_all();
            self.at = None;
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.last) >= TRY_AFTER_MAX {
            self.after = TRY_AFTER;
        }
        self.last = now;
        let at = *self.at.get_or_insert(now + self.after);
        if now >= at && self.under_way.is_empty() {
            self.after = (self.after * 2).min(TRY_AFTER_MAX);
            self.at = Some(now + self.after);
            let (options, connection) = (Arc::clone(&self.options), seen.connections);
            let refused = seen.refusals.clone();
            self.under_way.spawn(async move { (connection, are_allowed(&options, refused).await) });
        }
    }

    /// Waits until a try is due, or one has ended; the connection's number, where all is allowed that was refused on
    /// it. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<u64> {
        match (self.under_way.join_next().await, self.at) {
            (Some(Ok((connection, allowed))), _) => allowed.then_some(connection),
            // It was given up, for the connection is another.
            (Some(Err(_)), _) => None,
            (None, Some(at)) => {
                sleep_until(at).await;
                None
            }
            (None, None) => pending().await,
        }
    }

    /// All is allowed that was refused on this connection.
    pub(super) async fn end(&mut self, connection: u64) {
        let takes_it_away = |refused: &Refused| matches!(refused, Refused::Subscribe(_));
        let seen = self.seen.borrow().clone();
        if seen.connections != connection {
            return;
        }
        if seen.refusals.iter().any(takes_it_away) {
            tracing::info!(
                "the bus allows what it refused; connecting again, for it has dropped subscriptions"
            );
            // Another of several servers may not know of it yet: then it is refused again, and tried later.
            // Where this cannot be said the client has ended.
            let _ended = self.client.force_reconnect().await;
        } else {
            tracing::info!("the bus allows what it refused");
        }
        self.seen.send_modify(Seen::forget_refusals);
    }
}

/// Whether a server takes all of this now. An empty message says nothing to whoever hears it.
async fn are_allowed(options: &Options, refused: BTreeSet<Refused>) -> bool {
    let Ok(client) = options.of_client() else { return false };
    let (refuses, mut refusal) = watch::channel(false);
    let client = client.event_callback(move |event| {
        if matches!(event, Event::ServerError(ServerError::Other(_))) {
            refuses.send_replace(true);
        }
        ready(())
    });
    let Ok(client) = client.connect(options.addresses()).await else { return false };
    let mut subscriptions = Vec::new();
    for refused in refused {
        let taken = match refused {
            Refused::Publish(subject) => client.publish(subject, Bytes::new()).await.is_ok(),
            Refused::Subscribe(subject) => {
                client.subscribe(subject).await.map(|it| subscriptions.push(it)).is_ok()
            }
        };
        if !taken {
            return false;
        }
    }
    client.flush().await.is_ok() && timeout(SAYS_WITHIN, refusal.wait_for(|it| *it)).await.is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_words_name_the_subject() {
        let read = |said| Refused::read(said);
        assert_eq!(
            read("Permissions Violation for Publish to \"p.lead\""),
            Some(Refused::Publish("p.lead".to_owned()))
        );
        for said in [
            "Permissions Violation for Subscription to \"p.w.*\"",
            "Permissions Violation for Subscription to \"p.w.*\" (sid \"3\")",
            "Permissions Violation for Subscription to \"p.w.*\" using queue \"q\"",
        ] {
            assert_eq!(read(said), Some(Refused::Subscribe("p.w.*".to_owned())), "{said}");
        }
        assert_eq!(read("maximum connections exceeded"), None);
    }
}
