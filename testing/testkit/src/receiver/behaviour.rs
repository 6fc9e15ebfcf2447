//! How a receiver answers.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::http::StatusCode;

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Behaviour {
    /// The time before the answer.
    pub delay: Duration,
    /// The answer's status.
    pub status: StatusCode,
    /// The share of attempts that fail with `failure` instead; decided by id and attempt, so that the
    /// same run fails the same.
    pub fail_rate: f64,
    /// The status of those.
    pub failure: StatusCode,
    /// The header `Retry-After` of every answer but a 2xx.
    pub retry_after: Option<u32>,
    /// Never answers.
    pub hang: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            status: StatusCode::OK,
            fail_rate: 0.0,
            failure: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: None,
            hang: false,
        }
    }
}

/// What one request gets.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    After { delay: Duration, status: StatusCode, retry_after: Option<u32> },
    Never,
}

impl Behaviour {
    /// Answers 200 at once.
    #[must_use]
    pub fn ok() -> Self {
        Self::default()
    }

    /// Answers with this status at once.
    #[must_use]
    pub fn status(status: StatusCode) -> Self {
        Self { status, ..Self::default() }
    }

    /// Answers 200 after this time.
    #[must_use]
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Never answers.
    #[must_use]
    pub fn hang() -> Self {
        Self { hang: true, ..Self::default() }
    }

    /// Fails this share of attempts with 503.
    #[must_use]
    pub fn flaky(fail_rate: f64) -> Self {
        Self { fail_rate, ..Self::default() }
    }

    /// Reads a query string: `delay=500ms`, `status=500`, `fail=0.3`, `retry_after=2`, `hang`, joined
    /// by `&`. Empty: answers 200 at once.
    ///
    /// # Errors
    /// Names the part that cannot be read.
    pub fn from_query(query: &str) -> Result<Self> {
        let mut behaviour = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = || format!("{part:?} in the query cannot be read");
            match key {
                "delay" => {
                    behaviour.delay = humantime::parse_duration(value).with_context(wrong)?
                }
                "status" => behaviour.status = value.parse().with_context(wrong)?,
                "fail" => behaviour.fail_rate = value.parse().with_context(wrong)?,
                "retry_after" => behaviour.retry_after = Some(value.parse().with_context(wrong)?),
                "hang" => behaviour.hang = true,
                _ => {
                    bail!("{key:?} in the query is none of delay, status, fail, retry_after, hang")
                }
            }
        }
        ensure!((0.0..=1.0).contains(&behaviour.fail_rate), "fail is a share from 0 to 1");
        Ok(behaviour)
    }

    pub(super) fn answer(&self, id: &str, attempt: u32) -> Answer {
        if self.hang {
            return Answer::Never;
        }
        let mut hasher = DefaultHasher::new();
        (id, attempt).hash(&mut hasher);
        // 32 bits are exact in a double.
        let share = f64::from((hasher.finish() >> 32) as u32) / f64::from(u32::MAX);
        let status = if share < self.fail_rate { self.failure } else { self.status };
        let retry_after = self.retry_after.filter(|_| !status.is_success());
        Answer::After { delay: self.delay, status, retry_after }
    }
}
