//! What the client tells of itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ClientError, Event, ServerError};
use tokio::time::Instant;

/// A permission that is missing is told for so long after the server has said so last: what it keeps from us is asked for
/// again within that time, and then it says so again. A worker says how it is every 7.5 s at the longest lease.
pub(crate) const TOLD_FOR: Duration = Duration::from_secs(10);

/// Subjects of subscriptions that were refused, at most; far more than a worker has sessions.
const DENIED_MAX: usize = 256;

/// How a server begins that misses a permission, and that of a subscription; the subject follows in quotes.
const VIOLATION: &str = "Permissions Violation for ";
const NO_SUBSCRIPTION: &str = "Permissions Violation for Subscription to \"";

/// What the client has told of itself.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) connected: bool,
    pub(crate) connections: u64,
    pub(crate) dropped: u64,
    pub(crate) trouble: Option<Arc<str>>,
    /// Whether that is the whole reason for which the bus is away.
    pub(crate) is_sure: bool,
    /// What the server refused of us on this connection.
    pub(crate) refused: Option<Arc<str>>,
    /// When it said so of a permission that is missing.
    pub(crate) violated_at: Option<Instant>,
    /// Subjects that it does not let us hear, and when it said so last.
    pub(crate) denied: BTreeMap<String, Instant>,
}

impl Seen {
    /// Whether it changes anything.
    pub(crate) fn note(&mut self, event: Event, now: Instant) -> bool {
        match event {
            Event::Connected => {
                self.connected = true;
                self.connections += 1;
                (self.trouble, self.refused, self.violated_at) = (None, None, None);
                // The client subscribes to everything again.
                self.denied.clear();
            }
            Event::Disconnected | Event::Closed => {
                self.connected = false;
                // A connection does not end for a permission that is missing.
                self.trouble.take_if(|trouble| self.refused.as_ref() == Some(trouble));
            }
            Event::SlowConsumer(_) => self.dropped += 1,
            Event::ServerError(error) => {
                let what = server_error(&error);
                if let ServerError::Other(said) = &error {
                    self.refused = Some(what.as_str().into());
                    self.note_violation(said, now);
                    self.went_wrong(&what);
                    return true;
                }
                return self.went_wrong(&what);
            }
            Event::ClientError(error) => return self.went_wrong(&client_error(&error)),
            Event::LameDuckMode | Event::Draining => return false,
        }
        true
    }

    fn note_violation(&mut self, said: &str, now: Instant) {
        self.violated_at = said.starts_with(VIOLATION).then_some(now);
        let subject = said.strip_prefix(NO_SUBSCRIPTION).and_then(|rest| rest.split('"').next());
        let Some(subject) = subject else { return };
        self.denied.insert(subject.to_owned(), now);
        if self.denied.len() > DENIED_MAX
            && let Some((oldest, _)) = self.denied.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = oldest.clone();
            self.denied.remove(&oldest);
        }
    }

    fn went_wrong(&mut self, what: &str) -> bool {
        let is_new = self.trouble.as_deref() != Some(what);
        if is_new {
            self.trouble = Some(what.into());
        }
        is_new
    }

    /// Whether the server has said since then that it does not let us hear this.
    pub(crate) fn is_denied(&self, subject: &str, since: Instant) -> bool {
        self.denied.get(subject).is_some_and(|at| *at >= since)
    }

    /// When a refusal is over, unless it is said again.
    pub(crate) fn refused_until(&self) -> Option<Instant> {
        self.violated_at.map(|at| at + TOLD_FOR)
    }

    /// Tells no refusal any more that is over.
    pub(crate) fn without_old_refusal(mut self, now: Instant) -> Self {
        if self.refused_until().is_some_and(|until| now >= until) {
            let refused = self.refused.take();
            self.trouble.take_if(|trouble| refused.as_ref() == Some(trouble));
            self.violated_at = None;
        }
        self
    }
}

fn server_error(error: &ServerError) -> String {
    match error {
        ServerError::AuthorizationViolation => {
            "it refuses the credentials, or wants some".to_owned()
        }
        ServerError::SlowConsumer(_) => "the server finds us too slow".to_owned(),
        // Names the subject where a permission is missing.
        ServerError::Other(said) => format!("the server says {said}"),
    }
}

fn client_error(error: &ClientError) -> String {
    match error {
        ClientError::Other(said) if said.contains("authorization violation") => {
            server_error(&ServerError::AuthorizationViolation)
        }
        ClientError::Other(said) => said.clone(),
        ClientError::MaxReconnects | ClientError::ServerNotInPool => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(seen: &mut Seen, said: &str, now: Instant) -> bool {
        seen.note(Event::ServerError(ServerError::Other(said.to_owned())), now)
    }

    fn is_told(seen: &Seen, now: Instant) -> bool {
        let now = seen.clone().without_old_refusal(now);
        assert_eq!(now.refused, now.trouble);
        now.refused.is_some()
    }

    #[test]
    fn refusal_is_told_while_it_is_said_again_and_not_for_longer() {
        let mut seen = Seen { connected: true, ..Seen::default() };
        let mut now = Instant::now();
        let moment = Duration::from_millis(1);
        for (said, subject) in [
            ("Permissions Violation for Subscription to \"p.l.>\" (sid \"2\")", "p.l.>"),
            ("Permissions Violation for Subscription to \"p.lead\"", "p.lead"),
        ] {
            assert!(refused(&mut seen, said, now) && seen.is_denied(subject, now));
            assert!(!seen.is_denied("p.hello", now));
            now += TOLD_FOR / 2;
            assert!(!seen.is_denied(subject, now) && is_told(&seen, now));
            assert!(refused(&mut seen, said, now), "it is said again");
            assert!(seen.is_denied(subject, now));
            assert!(is_told(&seen, now + TOLD_FOR - moment) && !is_told(&seen, now + TOLD_FOR));
            now += TOLD_FOR;
        }
        seen.note(Event::Connected, now);
        assert!(!seen.is_denied("p.lead", now - 4 * TOLD_FOR));
        // What is no permission is not asked for again: it is told until the next connection.
        assert!(refused(&mut seen, "maximum subscriptions exceeded", now));
        assert!(is_told(&seen, now + TOLD_FOR));
    }

    #[test]
    fn subjects_that_are_refused_are_bounded() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let subject = |n: usize| format!("p.w.{n}");
        for n in 0..=DENIED_MAX {
            let said = format!("Permissions Violation for Subscription to \"{}\"", subject(n));
            refused(&mut seen, &said, now + Duration::from_millis(n as u64));
        }
        assert_eq!(seen.denied.len(), DENIED_MAX);
        assert!(seen.is_denied(&subject(DENIED_MAX), now) && !seen.is_denied(&subject(0), now));
    }
}
