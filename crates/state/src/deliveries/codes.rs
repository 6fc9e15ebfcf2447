//! The numbers of what a line can say. They are contract with the pages that are stored: what is new has a new one.

use walhook_core::attempt::FailureKind;
use walhook_core::delivery_log::What;
use walhook_core::persist::{DeadReason, DeferReason};
use walhook_core::waits::Cause;

/// Of what happened.
pub(super) const fn of_what(what: What) -> u8 {
    match what {
        What::Delivered => 0,
        What::Failed => 1,
        What::Gap => 2,
        What::Dropped => 3,
        What::Discarded => 4,
        What::Probed => 5,
        What::Dead(DeadReason::Exhausted) => 16,
        What::Dead(DeadReason::EndpointDisabled) => 17,
        What::Dead(DeadReason::EndpointInvalid) => 18,
        What::Dead(DeadReason::Unroutable) => 19,
        What::Deferred(DeferReason::Failed) => 32,
        What::Deferred(DeferReason::Overflow) => 33,
        What::Deferred(DeferReason::Breaker) => 34,
        What::Deferred(DeferReason::Paused) => 35,
        What::Deferred(DeferReason::Held) => 36,
        What::Deferred(DeferReason::Behind) => 37,
        What::Deferred(DeferReason::Unrouted) => 38,
    }
}

/// What has this number.
pub(super) fn what(code: u8) -> Option<What> {
    What::all().find(|what| of_what(*what) == code)
}

/// Of a failure; 0: there was none.
pub(super) const fn of_failure(failure: Option<FailureKind>) -> u8 {
    match failure {
        None => 0,
        Some(FailureKind::Invalid) => 1,
        Some(FailureKind::Forbidden) => 2,
        Some(FailureKind::Dns) => 3,
        Some(FailureKind::Connect) => 4,
        Some(FailureKind::Proxy) => 5,
        Some(FailureKind::Tls) => 6,
        Some(FailureKind::Timeout) => 7,
        Some(FailureKind::Protocol) => 8,
        Some(FailureKind::Aborted) => 9,
        Some(FailureKind::Lost) => 10,
        Some(FailureKind::Oversize) => 11,
        Some(FailureKind::Local) => 12,
    }
}

/// The failure that has this number, which may be none; `None`: nothing has it.
pub(super) fn failure(code: u8) -> Option<Option<FailureKind>> {
    let failures = FailureKind::ALL.into_iter().map(Some);
    failures.chain([None]).find(|failure| of_failure(*failure) == code)
}

/// Of a cause; below 63.
pub(super) const fn of_cause(cause: Cause) -> u32 {
    match cause {
        Cause::Read => 0,
        Cause::Lookup => 1,
        Cause::Memory => 2,
        Cause::Refill => 3,
        Cause::Stopped => 4,
        Cause::Breaker => 5,
        Cause::Retry => 6,
        Cause::Order => 7,
        Cause::EndpointLimit => 8,
        Cause::RateLimit => 9,
        Cause::State => 10,
        Cause::Unpersisted => 11,
        Cause::Pool => 12,
        Cause::Turn => 13,
        Cause::Bus => 14,
        Cause::Attempt => 15,
    }
}

/// All causes in the order of their numbers, in which pages have them.
pub(super) fn causes() -> impl Iterator<Item = Cause> {
    let mut causes = Cause::ALL;
    causes.sort_unstable_by_key(|cause| of_cause(*cause));
    causes.into_iter()
}

/// Of the words of [`What::word`] a bit each, as the column `outcomes` has them.
pub(super) fn outcome_bit(word: &str) -> Option<i32> {
    Some(match word {
        "delivered" => 1,
        "failed" => 2,
        "deferred" => 4,
        "dead" => 8,
        "unroutable" => 16,
        "gap" => 32,
        "dropped" => 64,
        "logged" => 128,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_has_a_number_of_its_own_that_is_read_back() {
        for of in What::all() {
            assert_eq!(what(of_what(of)), Some(of));
        }
        for of in FailureKind::ALL.map(Some).into_iter().chain([None]) {
            assert_eq!(failure(of_failure(of)), Some(of));
        }
        assert_eq!((what(15), failure(200)), (None, None));
        let causes: BTreeSet<u32> = causes().map(of_cause).collect();
        assert_eq!(causes.len(), Cause::ALL.len());
        assert!(causes.into_iter().all(|code| code < 63));
        let bits: BTreeSet<_> = What::WORDS.iter().map(|word| outcome_bit(word).unwrap()).collect();
        assert_eq!(bits.len(), What::WORDS.len());
    }
}
