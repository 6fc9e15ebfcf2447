//! The connection, and what is published and heard over it.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinSet, unconstrained};
use tokio::time::{Instant, sleep_until, timeout};

use crate::options::{BusError, Options};
use crate::seen::{Seen, TOLD_FOR};
use crate::state::{State, Watch};
use crate::subscription::{Subscription, Subscriptions};

/// A connection to the bus, made again whenever it breaks. Cheap to clone; it ends with its last clone
/// and its last subscription.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Client,
    state: watch::Receiver<State>,
    options: Arc<Options>,
    subscriptions: Subscriptions,
    /// Ends with the last clone.
    _monitor: Arc<JoinSet<()>>,
}

/// What came of a look for larger messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// No server that answered takes them.
    NoLarger,
    /// The connection was made anew, and takes them.
    Larger,
    /// It was made anew and takes them no more than before: of several servers only some do.
    InVain,
}

/// For a connection to be made anew: beyond that it has not helped.
const ANEW_WITHIN: Duration = Duration::from_secs(10);

/// What is not published, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPublished {
    /// There is no connection.
    #[error("the bus is away")]
    Away,
    /// So much is on its way already that it would have to wait.
    #[error("the bus takes no more at the moment")]
    Full,
    /// The server takes no message of this size.
    #[error("it is larger than the bus takes")]
    TooLarge,
    /// The subject is none.
    #[error("it has no subject")]
    Subject,
}

impl Bus {
    /// Connects in the background, and again whenever the connection breaks: 0.1 to 5 s after, with
    /// jitter. How that goes is told by [`Bus::watch`] and in the log.
    ///
    /// # Errors
    /// [`BusError`] where the options cannot be used; not when the bus is away.
    pub async fn connect(options: &Options) -> Result<Self, BusError> {
        Self::open(options, true).await
    }

    /// Connects now; and again whenever it breaks later.
    ///
    /// # Errors
    /// [`BusError`], also when no server takes us.
    pub async fn connect_now(options: &Options) -> Result<Self, BusError> {
        Self::open(options, false).await
    }

    async fn open(options: &Options, later: bool) -> Result<Self, BusError> {
        let (seen, seen_by_monitor) = watch::channel(Seen::default());
        let mut client = options.of_client()?.event_callback(move |event| {
            seen.send_if_modified(|seen| seen.note(event, Instant::now()));
            std::future::ready(())
        });
        if later {
            client = client.retry_on_initial_connect();
        }
        let client = match client.connect(options.addresses()).await {
            Ok(client) => client,
            Err(error) => return Err(options.unreached(&error).await),
        };
        let (state_sender, state) = watch::channel(State::new(Instant::now()));
        let mut monitor = JoinSet::new();
        let options = Arc::new(options.clone());
        let asks = Asks::new(Arc::clone(&options));
        let subscriptions = Subscriptions::default();
        let again = Again { subscriptions: subscriptions.clone(), asked: Instant::now() };
        monitor.spawn(observe(client.clone(), (asks, again), seen_by_monitor, state_sender));
        Ok(Self { client, state, options, subscriptions, _monitor: Arc::new(monitor) })
    }

    /// Publishes, if that can be done at once; that it arrives is not known.
    ///
    /// With `reply`, where nobody is subscribed to `subject`, the subscription to `reply` hears
    /// [`Received::NoResponders`](crate::Received::NoResponders).
    ///
    /// # Errors
    /// [`NotPublished`]
    pub fn publish(
        &self,
        subject: &str,
        reply: Option<&str>,
        payload: Bytes,
    ) -> Result<(), NotPublished> {
        let state = self.state.borrow();
        if !state.connected {
            return Err(NotPublished::Away);
        }
        if payload.len() > state.max_payload {
            return Err(NotPublished::TooLarge);
        }
        drop(state);
        // Its future ends at once unless the client's own queue is full. tokio's budget would make it
        // wait now and then where there is room.
        let subject = subject.to_owned();
        let published = match reply {
            None => unconstrained(self.client.publish(subject, payload)).now_or_never(),
            Some(reply) => {
                let reply = reply.to_owned();
                unconstrained(self.client.publish_with_reply(subject, reply, payload))
                    .now_or_never()
            }
        };
        match published {
            None => Err(NotPublished::Full),
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(match error.kind() {
                async_nats::PublishErrorKind::MaxPayloadExceeded => NotPublished::TooLarge,
                async_nats::PublishErrorKind::InvalidSubject => NotPublished::Subject,
                async_nats::PublishErrorKind::Send => NotPublished::Away,
            }),
        }
    }

    /// Hears what is published on a subject from now on; a `*` stands for one part of it, `>` for all
    /// that follow. Subscribed to again after each new connection, and every few seconds while a server refuses it.
    ///
    /// # Errors
    /// [`BusError::Subscribe`]
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        let subscribed = self.subscriptions.subscribe(&self.client, subject).await;
        subscribed.map_err(|_| BusError::Subscribe { subject: subject.to_owned() })
    }

    /// Waits until all that was published and subscribed to before is written to the connection, for so
    /// long at most; whether it was.
    pub async fn flush(&self, within: Duration) -> bool {
        matches!(timeout(within, self.client.flush()).await, Ok(Ok(())))
    }

    /// Looks whether a new connection would take larger messages than this one, which knows only what it was told when
    /// it was made; then it is made anew. A server that is down, or refuses us, takes none.
    pub async fn look_again(&self) -> Looked {
        let Ok(fresh) = Self::connect_now(&self.options).await else { return Looked::NoLarger };
        let before = self.state();
        if fresh.client.max_payload() <= before.max_payload
            || self.client.force_reconnect().await.is_err()
        {
            return Looked::NoLarger;
        }
        // Which of several servers takes it the client decides.
        let is_new = |state: &State| state.connected && state.connections > before.connections;
        let mut state = self.state.clone();
        match timeout(ANEW_WITHIN, state.wait_for(is_new)).await {
            Ok(Ok(now)) if now.max_payload > before.max_payload => Looked::Larger,
            Ok(_) | Err(_) => Looked::InVain,
        }
    }

    /// How it is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Tells what becomes of it from now on.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::new(self.state.clone())
    }
}

/// How often it is asked why no server takes us.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// Asks, while the bus is away, why that is so: the client names only the kind of an error.
struct Asks {
    options: Arc<Options>,
    under_way: JoinSet<Option<String>>,
    at: Instant,
    /// What came of it; `None` inside: a server took us.
    answer: Option<Option<Arc<str>>>,
}

impl Asks {
    fn new(options: Arc<Options>) -> Self {
        Self { options, under_way: JoinSet::new(), at: Instant::now(), answer: None }
    }

    /// Begins where it is time to, once the client has failed to connect.
    fn look(&mut self, seen: &Seen) {
        if seen.connected {
            self.under_way.abort_all();
            (self.at, self.answer) = (Instant::now(), None);
        } else if seen.trouble.is_some() && self.under_way.is_empty() && Instant::now() >= self.at {
            self.at = Instant::now() + ASK_EVERY;
            let options = Arc::clone(&self.options);
            self.under_way.spawn(async move { options.why_unreached().await });
        }
    }

    /// Waits until one has ended, or another is due.
    async fn next(&mut self, away: bool) {
        match self.under_way.join_next().await {
            Some(Ok(why)) => self.answer = Some(why.map(Into::into)),
            Some(Err(_given_up)) => {}
            None if away => sleep_until(self.at).await,
            None => pending().await,
        }
    }
}

/// How often subscriptions are asked for again that a server refuses. More often than what it says is forgotten.
const ASK_AGAIN_EVERY: Duration = Duration::from_secs(3);

/// A queue that had no room is looked at again after this.
const FULL_FOR: Duration = Duration::from_millis(100);

/// Asks again for subscriptions that a server refuses: it does not say when it would take them.
struct Again {
    subscriptions: Subscriptions,
    /// When that was done last.
    asked: Instant,
}

impl Again {
    /// When it is time to.
    fn due(&self, seen: &Seen) -> Option<Instant> {
        let refused = seen.connected && self.subscriptions.is_one_refused(seen);
        refused.then(|| self.asked + ASK_AGAIN_EVERY)
    }

    fn ask(&mut self, seen: &Seen, client: &Client) {
        let now = Instant::now();
        if self.due(seen).is_some_and(|due| now >= due)
            && self.subscriptions.ask_again(client, seen)
        {
            self.asked = now;
        }
    }

    /// Waits until it is time to, or a refusal is over.
    async fn next(&self, seen: &Seen) {
        // Where the client's queue is full, it has room when it has written something.
        let due = self.due(seen).map(|due| due.max(Instant::now() + FULL_FOR));
        match [due, seen.refused_until()].into_iter().flatten().min() {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    }
}

/// Turns what the client tells into the state: connected is said only once the new connection has taken
/// the subscriptions.
async fn observe(
    client: Client,
    (mut asks, mut again): (Asks, Again),
    mut seen: watch::Receiver<Seen>,
    state: watch::Sender<State>,
) {
    let mut told = Told::default();
    let mut tell = |now: &Seen, max_payload: Option<usize>| {
        state.send_if_modified(|state| set(state, now, max_payload));
        told.tell(now, max_payload.is_some());
    };
    let mut carrying = None;
    loop {
        let mut now = seen.borrow_and_update().clone().without_old_refusal(Instant::now());
        asks.look(&now);
        if let Some(answer) = &asks.answer {
            now.is_sure = true;
            now.trouble = answer.clone().or(now.trouble);
        }
        if now.connected && carrying == Some(now.connections) {
            tell(&now, Some(client.max_payload()));
        } else {
            tell(&now, None);
            carrying = None;
        }
        if now.connected && carrying.is_none() {
            tokio::select! {
                biased;
                changed = seen.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                // The client answers once it has written the subscriptions.
                flushed = client.flush() => if flushed.is_err() { return },
            }
            carrying = Some(now.connections);
            tell(&now, Some(client.max_payload()));
        }
        again.ask(&now, &client);
        let away = !now.connected && now.trouble.is_some();
        tokio::select! {
            biased;
            changed = seen.changed() => if changed.is_err() { return },
            () = asks.next(away) => {}
            () = again.next(&now) => {}
        }
    }
}

/// Whether it changes anything.
fn set(state: &mut State, seen: &Seen, max_payload: Option<usize>) -> bool {
    let before = state.clone();
    let connected = max_payload.is_some();
    if connected != state.connected || seen.connections != state.connections {
        state.since = Instant::now();
    }
    state.connected = connected;
    state.connections = seen.connections;
    state.max_payload = max_payload.unwrap_or(state.max_payload);
    state.dropped = seen.dropped;
    state.trouble = seen.trouble.clone();
    state.refused = seen.refused.clone();
    before != *state
}

/// What the log knows.
#[derive(Debug, Default)]
struct Told {
    up: bool,
    away: bool,
    dropped: u64,
    trouble: Option<Arc<str>>,
    /// That something is refused.
    refuses: bool,
    /// When a line was written last of what was refused, by its kind: a session's subject is another each time.
    refused: BTreeMap<String, Instant>,
}

/// The log says so often that something of one kind is refused.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// Kinds of what is refused, at most: beyond that the log has no more of them.
const KINDS_MAX: usize = 32;

/// What a server refuses, without the names of sessions, epochs and numbers.
fn kind(said: &str) -> String {
    let is_name = |word: &str| word.bytes().any(|byte| byte.is_ascii_digit());
    let words = said.split_inclusive(['.', ' ', '"']);
    words.map(|word| if is_name(word) { "*" } else { word }).collect()
}

impl Told {
    /// Whether the log is to say that this is refused.
    fn is_due(&mut self, said: &str, now: Instant) -> bool {
        let kind = kind(said);
        if self.refused.len() >= KINDS_MAX && !self.refused.contains_key(&kind) {
            return false;
        }
        let last = self.refused.get(&kind);
        let due = last.is_none_or(|at| now.duration_since(*at) >= REFUSED_AGAIN);
        if due {
            self.refused.insert(kind, now);
        }
        due
    }

    /// One line when it goes, as soon as it is known why, one when it is back, and one for each trouble of another kind.
    fn tell(&mut self, seen: &Seen, up: bool) {
        let is_new = seen.trouble != self.trouble;
        match seen.trouble.as_deref() {
            _ if up && !self.up => {
                if self.away || seen.connections <= 1 {
                    tracing::info!("the bus is connected");
                } else {
                    tracing::info!(
                        "the bus is connected again: the connection was lost for a moment"
                    );
                }
                (self.away, self.refuses) = (false, false);
            }
            Some(why) if !up && !seen.connected && seen.is_sure && !self.away => {
                tracing::warn!(why, "the bus is away; connecting again and again");
                self.is_due(why, Instant::now());
                self.away = true;
            }
            Some(why) if up && is_new && self.is_due(why, Instant::now()) => {
                tracing::warn!(why, "the bus refused something");
                self.refuses = true;
            }
            None if up && std::mem::take(&mut self.refuses) => {
                let seconds = TOLD_FOR.as_secs();
                tracing::info!("for {seconds} s the bus has refused nothing any more");
            }
            Some(why) if self.away && is_new && self.is_due(why, Instant::now()) => {
                tracing::warn!(why, "the bus is still away");
            }
            Some(_) | None => {}
        }
        if seen.dropped != self.dropped {
            let dropped = seen.dropped - self.dropped;
            tracing::warn!(dropped, "messages of the bus came faster than they were taken");
        }
        (self.up, self.dropped) = (up, seen.dropped);
        self.trouble.clone_from(&seen.trouble);
    }
}

#[cfg(test)]
mod tests;
