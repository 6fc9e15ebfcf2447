//! What an outcome means for its delivery.
//!
//! ```text
//! delivered                        delivered
//! gone                             the endpoint wants no more: it is switched off
//! lost with its worker             at its first attempt, tried again at once; else as below
//! too large for every worker       deferred: no quick attempts
//! all else, quick attempts left    tried again from memory, after a wait with full jitter, or as
//!                                  the endpoint asks where that is short
//! all else, and time left          deferred: tried again from the table, after such a wait
//! all else, no time left           a dead letter
//! ```

use std::time::Duration;

use rand::Rng;

use super::retry::{QUICK_RETRY_MAX, RetryPolicy};
use walhook_core::attempt::{Meaning, Outcome};
use walhook_core::persist::DeadReason;

/// The longest wait of what the bus does not take: how long it failed says nothing of when an operator lets the bus take
/// more. Not shorter, since each attempt reads its large body from the state database.
const OVERSIZE_RETRY_MAX: Duration = Duration::from_secs(300);

/// What becomes of the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The endpoint has it.
    Delivered,
    /// It is tried again, and stays in memory until then.
    Retry {
        /// The wait until then, from the end of this attempt.
        after: Duration,
    },
    /// It is tried again, and stands in the table `deferred` until then.
    Defer {
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

/// How often, when, and for how long a delivery is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct SettlePolicy {
    /// The attempts that a delivery has in memory; 0 counts as 1.
    pub quick_attempts: u32,
    /// The waits between attempts.
    pub retry: RetryPolicy,
    /// A failure so long after the first one is the last.
    pub retry_for: Duration,
}

/// Where a delivery stands between its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory, until its quick attempts have failed.
    Memory,
    /// In the table `deferred`.
    Table,
    /// Among the dead letters: an operator's retry has its quick attempts and no more.
    DeadLetters,
}

/// What was tried before the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Where the delivery stands.
    pub place: Place,
    /// Attempts, this one included.
    pub attempts: u32,
    /// How long ago the first one failed, not counting the time for which its queue was stopped.
    pub tried_for: Duration,
}

/// Decides what becomes of a delivery with this outcome.
#[must_use]
pub fn settle(
    outcome: &Outcome,
    progress: Progress,
    policy: &SettlePolicy,
    rng: &mut impl Rng,
) -> Settlement {
    let text = || outcome.record.text.clone();
    let (reason, retry_after) = match outcome.meaning {
        Meaning::Delivered => return Settlement::Delivered,
        Meaning::Gone => return Settlement::Disable { detail: text() },
        Meaning::Refused { retry_after, .. } => (DeadReason::Exhausted, retry_after),
        // Tried again like all else, since each attempt reads the row anew and its owner may have fixed
        // it; only the reason differs in the end.
        Meaning::Invalid => (DeadReason::EndpointInvalid, None),
        Meaning::TimedOut
        | Meaning::Failed
        | Meaning::Aborted
        | Meaning::Oversize
        | Meaning::Lost
        | Meaning::Local => (DeadReason::Exhausted, None),
    };
    let drawn = policy.retry.delay(progress.attempts.saturating_sub(1), rng);
    let backoff =
        if outcome.meaning == Meaning::Oversize { drawn.min(OVERSIZE_RETRY_MAX) } else { drawn };
    // Once: a request that kills its workers does not go through all of them.
    let at_once = outcome.meaning == Meaning::Lost && progress.attempts <= 1;
    let after = if at_once {
        Duration::ZERO
    } else {
        backoff.max(policy.retry.bounded(retry_after.unwrap_or_default()))
    };
    // What nobody can carry is not held in memory for it.
    let quick = progress.attempts < policy.quick_attempts && outcome.meaning != Meaning::Oversize;
    match progress.place {
        Place::Memory if quick && after <= QUICK_RETRY_MAX => Settlement::Retry { after },
        Place::DeadLetters if quick => Settlement::Retry { after: after.min(QUICK_RETRY_MAX) },
        // An attempt that ended by us is not the last one.
        Place::Memory | Place::Table
            if progress.tried_for < policy.retry_for || outcome.says_nothing_of_the_endpoint() =>
        {
            Settlement::Defer { after }
        }
        Place::Memory | Place::Table | Place::DeadLetters => {
            Settlement::Dead { reason, detail: text() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use walhook_core::attempt::FailureKind;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn policy(quick_attempts: u32) -> SettlePolicy {
        let retry = RetryPolicy::new(Duration::from_secs(10), HOUR).unwrap();
        SettlePolicy { quick_attempts, retry, retry_for: 72 * HOUR }
    }

    fn answered(status: u16, retry_after_s: Option<u64>, excerpt: &str) -> Outcome {
        fixture::answer(status, retry_after_s.map(Duration::from_secs), excerpt)
    }

    fn failed(kind: FailureKind) -> Outcome {
        Outcome::failed(kind, "of a kind", Duration::from_millis(1))
    }

    fn settle_at(outcome: &Outcome, place: Place, attempts: u32, hours: u32) -> Settlement {
        let progress = Progress { place, attempts, tried_for: hours * HOUR };
        settle(outcome, progress, &policy(2), &mut SmallRng::seed_from_u64(1))
    }

    #[test]
    fn settle_defers_what_its_quick_attempts_did_not_bring_through() {
        let outcome = answered(500, None, "oh no");
        let settled = |place, attempts, hours| settle_at(&outcome, place, attempts, hours);
        assert!(matches!(settled(Place::Memory, 1, 0), Settlement::Retry { .. }));
        assert!(matches!(settled(Place::Memory, 2, 0), Settlement::Defer { .. }));
        assert!(matches!(settled(Place::Table, 1, 0), Settlement::Defer { .. }));
        assert!(matches!(settled(Place::Table, 30, 71), Settlement::Defer { .. }));
    }

    #[test]
    fn settle_dead_letters_a_failure_when_the_time_for_retries_is_over() {
        let exhausted = |detail: &str| Settlement::Dead {
            reason: DeadReason::Exhausted,
            detail: detail.into(),
        };
        let settled = settle_at(&answered(500, None, "oh no"), Place::Table, 30, 72);
        assert_eq!(settled, exhausted("status 500: oh no"));
        let settled = settle_at(&answered(302, Some(9), ""), Place::Table, 30, 99);
        assert_eq!(settled, exhausted("status 302"));
        let settled = settle_at(&failed(FailureKind::Timeout), Place::DeadLetters, 2, 0);
        assert_eq!(settled, exhausted("timeout: of a kind"), "an operator's retry is not deferred");
    }

    #[test]
    fn settle_names_a_row_that_cannot_be_used() {
        let (reason, detail) = (DeadReason::EndpointInvalid, "invalid: of a kind".to_owned());
        let settled = settle_at(&failed(FailureKind::Invalid), Place::Table, 2, 72);
        assert_eq!(settled, Settlement::Dead { reason, detail });
    }

    #[test]
    fn settle_does_not_give_a_delivery_up_for_an_attempt_that_was_aborted() {
        let settled = settle_at(&failed(FailureKind::Aborted), Place::Table, 30, 99);
        assert!(matches!(settled, Settlement::Defer { .. }), "{settled:?}");
    }

    #[test]
    fn settle_tries_what_was_lost_with_its_worker_again_at_once_and_then_waits() {
        let lost = failed(FailureKind::Lost);
        let first = settle_at(&lost, Place::Memory, 1, 0);
        assert_eq!(first, Settlement::Retry { after: Duration::ZERO });
        for attempts in 2..20 {
            let Settlement::Defer { after } = settle_at(&lost, Place::Table, attempts, 99) else {
                panic!("it is not given up for that")
            };
            assert!(!after.is_zero(), "attempt {attempts}");
        }
    }

    #[test]
    fn settle_defers_what_no_worker_can_carry_without_holding_it_in_memory() {
        let oversize = failed(FailureKind::Oversize);
        for place in [Place::Memory, Place::Table] {
            let settled = settle_at(&oversize, place, 1, 99);
            assert!(matches!(settled, Settlement::Defer { .. }), "{settled:?}");
        }
    }

    #[test]
    fn settle_tries_what_the_bus_does_not_take_again_within_minutes_however_long_it_has_failed() {
        let oversize = failed(FailureKind::Oversize);
        for attempts in 1..40 {
            let settled = settle_at(&oversize, Place::Table, attempts, 99);
            let Settlement::Defer { after } = settled else { panic!("{settled:?}") };
            assert!(after <= OVERSIZE_RETRY_MAX, "attempt {attempts}: {after:?}");
        }
    }

    #[test]
    fn settle_disables_an_endpoint_that_is_gone() {
        let detail = "status 410: bye".to_owned();
        let settled = settle_at(&answered(410, None, "bye"), Place::Memory, 1, 0);
        assert_eq!(settled, Settlement::Disable { detail });
    }

    #[test]
    fn settle_waits_as_long_as_retry_after_asks_within_bounds() {
        let waits = |after| settle_at(&answered(503, Some(after), ""), Place::Memory, 1, 0);
        // Longer than any first backoff.
        assert_eq!(waits(12), Settlement::Retry { after: Duration::from_secs(12) });
        // Too long for memory, which holds the checkpoint back.
        assert_eq!(waits(31), Settlement::Defer { after: Duration::from_secs(31) });
        assert_eq!(waits(86_400), Settlement::Defer { after: HOUR });
        let without = settle_at(&answered(503, None, ""), Place::Memory, 1, 0);
        assert_eq!(waits(0), without, "a backoff that is longer wins");
    }

    proptest! {
        #[test]
        fn settle_gives_each_status_one_meaning(
            status in 100u16..600, attempts in 1u32..20, quick_attempts in 0u32..20,
            place in prop_oneof![Just(Place::Memory), Just(Place::Table), Just(Place::DeadLetters)],
            hours in 0u32..100, seed: u64,
        ) {
            let outcome = answered(status, None, "");
            let progress = Progress { place, attempts, tried_for: hours * HOUR };
            let policy = policy(quick_attempts);
            let settled = settle(&outcome, progress, &policy, &mut SmallRng::seed_from_u64(seed));
            let failed = !outcome.delivered() && status != 410;
            let ceiling = policy.retry.ceiling(attempts - 1);
            match settled {
                Settlement::Delivered => prop_assert!(outcome.delivered()),
                Settlement::Disable { .. } => prop_assert_eq!(status, 410),
                Settlement::Retry { after } => {
                    prop_assert!(failed && attempts < quick_attempts && place != Place::Table);
                    prop_assert!(after <= ceiling && after <= QUICK_RETRY_MAX);
                }
                Settlement::Defer { after } => {
                    prop_assert!(failed && hours < 72 && place != Place::DeadLetters);
                    prop_assert!(after <= ceiling);
                }
                Settlement::Dead { reason, .. } => {
                    prop_assert!(failed && (hours >= 72 || place == Place::DeadLetters));
                    prop_assert_eq!(reason, DeadReason::Exhausted);
                }
            }
        }
    }
}
