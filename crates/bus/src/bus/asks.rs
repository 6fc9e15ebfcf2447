//! Why the bus is away.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Seen;
use crate::options::Options;

/// How often it is asked why no server takes us.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// Asks, while the bus is away, why that is so: the client names only the kind of an error.
pub(super) struct Asks {
    options: Arc<Options>,
    under_way: JoinSet<Option<String>>,
    at: Instant,
    /// What came of it; `None` inside: a server took us.
    pub(super) answer: Option<Option<Arc<str>>>,
}

impl Asks {
    pub(super) fn new(options: Arc<Options>) -> Self {
        Self { options, under_way: JoinSet::new(), at: Instant::now(), answer: None }
    }

    /// Begins where it is time to, once the client has failed to connect.
    pub(super) fn look(&mut self, seen: &Seen) {
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
    pub(super) async fn next(&mut self, away: bool) {
        match self.under_way.join_next().await {
            Some(Ok(why)) => self.answer = Some(why.map(Into::into)),
            Some(Err(_given_up)) => {}
            None if away => sleep_until(self.at).await,
            None => pending().await,
        }
    }
}
