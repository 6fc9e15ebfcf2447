//! What an outcome means for its delivery.
//!
//! ```text
//! 2xx                              delivered
//! 410                              the endpoint wants no more: it is switched off
//! all else, attempts left          tried again, after a wait with full jitter or as Retry-After asks
//! all else, no attempt left        a dead letter
//! ```
//!
//! A redirect is a failure like any other: it is never followed, since the address it names was not
//! the customer's choice.

use std::time::Duration;

use rand::Rng;

use super::attempt::{Answer, Failure, FailureKind, Outcome};
use super::persist::DeadReason;
use super::retry::{RetryPolicy, bounded};

/// What becomes of the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The endpoint has it.
    Delivered,
    /// It is tried again.
    Retry {
        /// The wait until then, from the end of this attempt.
        after: Duration,
    },
    /// It becomes a dead letter.
    Dead {
        /// Why.
        reason: DeadReason,
        /// The last error, for a person.
        detail: String,
    },
    /// The endpoint is switched off; the delivery, like all that wait for the endpoint, becomes a dead
    /// letter.
    Disable {
        /// Why, for a person.
        detail: String,
    },
}

/// How often and when a delivery is tried again in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettlePolicy {
    /// The attempts a delivery has; 0 counts as 1.
    pub quick_attempts: u32,
    /// The waits between them.
    pub retry: RetryPolicy,
}

/// Decides what becomes of a delivery after `attempts` attempts, of which `outcome` is the last.
#[must_use]
pub fn settle(
    outcome: &Outcome,
    attempts: u32,
    policy: &SettlePolicy,
    rng: &mut impl Rng,
) -> Settlement {
    let (reason, retry_after, detail) = match &outcome.result {
        Ok(Answer { status: 200..=299, .. }) => return Settlement::Delivered,
        Ok(answer @ Answer { status: 410, .. }) => {
            return Settlement::Disable { detail: answer_detail(answer) };
        }
        Ok(answer) => (DeadReason::Exhausted, answer.retry_after, answer_detail(answer)),
        Err(failure) => (failure_reason(failure.kind), None, failure_detail(failure)),
    };
    if attempts >= policy.quick_attempts {
        return Settlement::Dead { reason, detail };
    }
    let backoff = policy.retry.delay(attempts.saturating_sub(1), rng);
    Settlement::Retry { after: bounded(backoff.max(retry_after.unwrap_or_default())) }
}

/// A row that cannot be used is tried again like all else, since each attempt reads it anew and its
/// owner may have mended it; only the reason differs in the end.
fn failure_reason(kind: FailureKind) -> DeadReason {
    match kind {
        FailureKind::Invalid => DeadReason::EndpointInvalid,
        FailureKind::Forbidden
        | FailureKind::Dns
        | FailureKind::Connect
        | FailureKind::Proxy
        | FailureKind::Tls
        | FailureKind::Timeout
        | FailureKind::Protocol => DeadReason::Exhausted,
    }
}

fn answer_detail(answer: &Answer) -> String {
    match answer.excerpt.as_str() {
        "" => format!("status {}", answer.status),
        excerpt => format!("status {}: {excerpt}", answer.status),
    }
}

fn failure_detail(failure: &Failure) -> String {
    format!("{}: {}", failure.kind.as_str(), failure.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::retry::QUICK_RETRY_MAX;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn policy(quick_attempts: u32) -> SettlePolicy {
        let retry = RetryPolicy::new(Duration::from_secs(10), Duration::from_secs(3_600)).unwrap();
        SettlePolicy { quick_attempts, retry }
    }

    fn answered(status: u16, retry_after_s: Option<u64>, excerpt: &str) -> Outcome {
        let retry_after = retry_after_s.map(Duration::from_secs);
        let answer = Answer { status, retry_after, excerpt: excerpt.to_owned() };
        Outcome { result: Ok(answer), elapsed: Duration::from_millis(1) }
    }

    fn failed(kind: FailureKind) -> Outcome {
        let failure = Failure { kind, detail: "of a kind".to_owned() };
        Outcome { result: Err(failure), elapsed: Duration::from_millis(1) }
    }

    fn settle_seeded(outcome: &Outcome, attempts: u32, quick_attempts: u32) -> Settlement {
        settle(outcome, attempts, &policy(quick_attempts), &mut SmallRng::seed_from_u64(1))
    }

    #[test]
    fn settle_dead_letters_the_last_failure_with_its_error() {
        let exhausted = |detail: &str| Settlement::Dead {
            reason: DeadReason::Exhausted,
            detail: detail.into(),
        };
        let settled = settle_seeded(&answered(500, None, "oh no"), 2, 2);
        assert_eq!(settled, exhausted("status 500: oh no"));
        assert_eq!(settle_seeded(&answered(302, Some(9), ""), 2, 2), exhausted("status 302"));
        let settled = settle_seeded(&failed(FailureKind::Timeout), 1, 0);
        assert_eq!(settled, exhausted("timeout: of a kind"));
    }

    #[test]
    fn settle_names_a_row_that_cannot_be_used() {
        let (reason, detail) = (DeadReason::EndpointInvalid, "invalid: of a kind".to_owned());
        let settled = settle_seeded(&failed(FailureKind::Invalid), 2, 2);
        assert_eq!(settled, Settlement::Dead { reason, detail });
    }

    #[test]
    fn settle_disables_an_endpoint_that_is_gone() {
        let detail = "status 410: bye".to_owned();
        let settled = settle_seeded(&answered(410, None, "bye"), 1, 2);
        assert_eq!(settled, Settlement::Disable { detail });
    }

    #[test]
    fn settle_waits_as_long_as_retry_after_asks_within_bounds() {
        let waits = |retry_after| settle_seeded(&answered(503, Some(retry_after), ""), 1, 2);
        let after = Duration::from_secs(12); // longer than any first backoff
        assert_eq!(waits(12), Settlement::Retry { after });
        assert_eq!(waits(86_400), Settlement::Retry { after: QUICK_RETRY_MAX });
        let without = settle_seeded(&answered(503, None, ""), 1, 2);
        assert_eq!(waits(0), without, "a backoff that is longer wins");
    }

    proptest! {
        #[test]
        fn settle_gives_each_status_one_meaning(
            status in 100u16..600, attempts in 1u32..20, quick_attempts in 0u32..20, seed: u64,
        ) {
            let outcome = answered(status, None, "");
            let settled =
                settle(&outcome, attempts, &policy(quick_attempts), &mut SmallRng::seed_from_u64(seed));
            match settled {
                Settlement::Delivered => prop_assert!(outcome.delivered()),
                Settlement::Disable { .. } => prop_assert_eq!(status, 410),
                Settlement::Retry { after } => {
                    prop_assert!(!outcome.delivered() && status != 410);
                    prop_assert!(attempts < quick_attempts);
                    let ceiling = policy(0).retry.ceiling(attempts - 1);
                    prop_assert!(after <= ceiling && after <= QUICK_RETRY_MAX);
                }
                Settlement::Dead { reason, .. } => {
                    prop_assert!(!outcome.delivered() && status != 410);
                    prop_assert!(attempts >= quick_attempts);
                    prop_assert_eq!(reason, DeadReason::Exhausted);
                }
            }
        }
    }
}
