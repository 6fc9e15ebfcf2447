//! What came of a request, in the words of HTTP, and what that means to who decides.

use std::time::Duration;

use walhook_core::attempt::{FailureKind, Meaning, Outcome, Record};

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The answer, or why there was none.
    pub result: Result<Answer, Failure>,
    /// From the call to the end of the answer.
    pub elapsed: Duration,
    /// How often it was sent again: see [`Outcome::resends`].
    pub resends: u32,
    /// How many of these count: see [`Outcome::own_resends`].
    pub own_resends: u32,
}

/// The endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The wait that `Retry-After` asked for, from now, where it did so legibly.
    pub retry_after: Option<Duration>,
    /// The first bytes of the body, at most 1 KiB, made printable; of a 2xx empty, unless a person asked.
    pub excerpt: String,
}

/// There was no (whole) answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// For a person: lowercase, without secrets, at most 1 KiB.
    pub detail: String,
}

impl Exchange {
    /// What came of a request that was sent once.
    #[must_use]
    pub const fn new(result: Result<Answer, Failure>, elapsed: Duration) -> Self {
        Self { result, elapsed, resends: 0, own_resends: 0 }
    }

    /// Whether it was not sent, or not again, since whoever carried it might not begin it any more.
    #[must_use]
    pub fn was_held_back(&self) -> bool {
        matches!(&self.result, Err(failure) if failure.kind == FailureKind::Aborted)
    }

    /// Whether the endpoint took the event.
    #[must_use]
    pub fn delivered(&self) -> bool {
        matches!(&self.result, Ok(answer) if answer.meaning() == Meaning::Delivered)
    }
}

impl Answer {
    /// What it means: the one place that knows what a status is.
    ///
    /// ```text
    /// 2xx        the endpoint took the event
    /// 410        it wants no more
    /// 429, 503   it has too much to do
    /// all else   it did not take the event; a redirect too, which is never followed, since the address
    ///            that it names was not the customer's choice
    /// ```
    #[must_use]
    pub const fn meaning(&self) -> Meaning {
        match self.status {
            200..=299 => Meaning::Delivered,
            410 => Meaning::Gone,
            status => Meaning::Refused {
                retry_after: self.retry_after,
                overloaded: matches!(status, 429 | 503),
            },
        }
    }
}

impl From<Exchange> for Outcome {
    fn from(Exchange { result, elapsed, resends, own_resends }: Exchange) -> Self {
        match result {
            Ok(answer) => {
                let meaning = answer.meaning();
                let Answer { status, excerpt, .. } = answer;
                let text = match excerpt.as_str() {
                    _ if meaning == Meaning::Delivered => String::new(),
                    "" => format!("status {status}"),
                    excerpt => format!("status {status}: {excerpt}"),
                };
                let record = Record { status: Some(status), failure: None, text };
                Self { meaning, record, elapsed, resends, own_resends }
            }
            Err(Failure { kind, detail }) => {
                Self { resends, own_resends, ..Self::failed(kind, &detail, elapsed) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, excerpt: &str) -> Outcome {
        let retry_after = Some(Duration::from_secs(9));
        let answer = Answer { status, retry_after, excerpt: excerpt.to_owned() };
        Exchange::new(Ok(answer), Duration::from_millis(1)).into()
    }

    #[test]
    fn each_status_has_one_meaning() {
        let retry_after = Some(Duration::from_secs(9));
        for status in 100..1_000 {
            let refused = |overloaded| Meaning::Refused { retry_after, overloaded };
            let expected = match status {
                200..=299 => Meaning::Delivered,
                410 => Meaning::Gone,
                429 | 503 => refused(true),
                _ => refused(false),
            };
            let outcome = outcome(status, "");
            assert_eq!((outcome.meaning, outcome.record.status), (expected, Some(status)));
        }
    }

    #[test]
    fn record_of_an_outcome_says_what_a_person_is_to_read() {
        assert_eq!(outcome(200, "kept for who asked").record.text, "");
        assert_eq!(outcome(500, "").record.text, "status 500");
        assert_eq!(outcome(410, "bye").record.text, "status 410: bye");
        let failure = Failure { kind: FailureKind::Tls, detail: "expired".to_owned() };
        let exchange =
            Exchange { resends: 2, own_resends: 1, ..Exchange::new(Err(failure), Duration::ZERO) };
        let outcome = Outcome::from(exchange);
        assert_eq!(
            (outcome.meaning, outcome.resends, outcome.own_resends),
            (Meaning::Failed, 2, 1)
        );
        let Record { status, failure, text } = outcome.record;
        assert_eq!((status, failure, &*text), (None, Some(FailureKind::Tls), "tls: expired"));
    }
}
