//! Whether the bus carries, and whether anything may have been lost since it was last asked.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

/// How the bus is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Whether it carries now: connected, and subscribed to all that was asked for.
    pub connected: bool,
    /// Since when that is so.
    pub since: Instant,
    /// The largest message that the server takes, in bytes; 0 before the first connection.
    pub max_payload: usize,
    /// Connections made so far. Another number means that messages may be gone.
    pub connections: u64,
    /// Messages that a full subscription did not take.
    pub dropped: u64,
    /// What went wrong last since it connected, or why it is away: in words, without secrets. A permission that is
    /// missing is told here while the bus is connected.
    pub trouble: Option<Arc<str>>,
    /// What the server has refused of us since it connected: names the subject where a permission is missing, and is
    /// told until it has not been said for some seconds.
    pub refused: Option<Arc<str>>,
}

impl State {
    pub(crate) fn new(since: Instant) -> Self {
        Self {
            connected: false,
            since,
            max_payload: 0,
            connections: 0,
            dropped: 0,
            trouble: None,
            refused: None,
        }
    }
}

/// What became of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusEvent {
    /// It carries.
    Up {
        /// The largest message that the server takes, in bytes.
        max_payload: usize,
    },
    /// It does not, or it did not for a moment, or it lost something: what was published or was to
    /// arrive since the last `Up` may be gone.
    Down,
}

/// Tells one listener what becomes of the bus.
///
/// Invariant: `Up` and `Down` alternate, `Up` first; no loss of the connection and no message that was
/// dropped goes by without a `Down`, however short it was.
#[derive(Debug)]
pub struct Watch {
    state: watch::Receiver<State>,
    /// Connections and dropped messages at the last `Up`, until `Down`.
    up: Option<(u64, u64)>,
}

impl Watch {
    pub(crate) fn new(state: watch::Receiver<State>) -> Self {
        Self { state, up: None }
    }

    /// How it is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The next event; `None` once the bus is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<BusEvent> {
        loop {
            if let Some(event) = self.changed() {
                return Some(event);
            }
            self.state.changed().await.ok()?;
        }
    }

    fn changed(&mut self) -> Option<BusEvent> {
        let state = self.state.borrow_and_update();
        let now = (state.connections, state.dropped);
        match self.up {
            Some(up) if state.connected && up == now => None,
            Some(_) => {
                self.up = None;
                Some(BusEvent::Down)
            }
            None if state.connected => {
                self.up = Some(now);
                Some(BusEvent::Up { max_payload: state.max_payload })
            }
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watch_says_down_for_each_loss_however_short() {
        let (sender, receiver) = watch::channel(State::new(Instant::now()));
        let mut watch = Watch::new(receiver);
        let set = |change: fn(&mut State)| sender.send_modify(change);
        let up = Some(BusEvent::Up { max_payload: 9 });

        assert_eq!(watch.changed(), None);
        set(|state| (state.connected, state.connections, state.max_payload) = (true, 1, 9));
        assert_eq!((watch.next().await, watch.changed()), (up, None));
        set(|state| state.trouble = Some("a permission".into()));
        assert_eq!(watch.changed(), None);
        set(|state| state.connected = false);
        set(|state| (state.connected, state.connections) = (true, 2));
        assert_eq!(watch.next().await, Some(BusEvent::Down));
        assert_eq!(watch.next().await, up);
        set(|state| state.dropped += 1);
        assert_eq!((watch.changed(), watch.changed()), (Some(BusEvent::Down), up));
        set(|state| state.connected = false);
        assert_eq!((watch.changed(), watch.changed()), (Some(BusEvent::Down), None));
        drop(sender);
        assert_eq!(watch.next().await, None);
    }
}
