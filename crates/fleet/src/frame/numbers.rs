//! The numbers of words. They are contract: a number is never used again.

use std::time::Duration;

use super::FrameError;
use super::body::{ByeReason, Refusal};
use walhook_core::attempt::{FailureKind, Meaning};

pub(super) const fn meaning_number(meaning: Meaning) -> u32 {
    match meaning {
        Meaning::Delivered => 1,
        Meaning::Gone => 2,
        Meaning::Refused { .. } => 3,
        Meaning::TimedOut => 4,
        Meaning::Failed => 5,
        Meaning::Invalid => 6,
        Meaning::Aborted => 7,
        Meaning::Local => 8,
        Meaning::Lost => 9,
        Meaning::Oversize => 10,
    }
}

/// A word of a later version counts as a failure, as what is not understood does.
pub(super) fn meaning(
    number: u32,
    retry_after: Option<Duration>,
    overloaded: bool,
) -> Result<Meaning, FrameError> {
    Ok(match number {
        0 => return Err(FrameError::Field("meaning")),
        1 => Meaning::Delivered,
        2 => Meaning::Gone,
        3 => Meaning::Refused { retry_after, overloaded },
        4 => Meaning::TimedOut,
        6 => Meaning::Invalid,
        7 => Meaning::Aborted,
        8 => Meaning::Local,
        9 => Meaning::Lost,
        10 => Meaning::Oversize,
        _ => Meaning::Failed,
    })
}

pub(super) const fn failure_number(kind: FailureKind) -> u32 {
    match kind {
        FailureKind::Invalid => 1,
        FailureKind::Forbidden => 2,
        FailureKind::Dns => 3,
        FailureKind::Connect => 4,
        FailureKind::Proxy => 5,
        FailureKind::Tls => 6,
        FailureKind::Timeout => 7,
        FailureKind::Protocol => 8,
        FailureKind::Aborted => 9,
        FailureKind::Local => 10,
        FailureKind::Lost => 11,
        FailureKind::Oversize => 12,
    }
}

/// A word of a later version is shown as the least specific one; its meaning decides.
pub(super) const fn failure_kind(number: u32) -> FailureKind {
    match number {
        1 => FailureKind::Invalid,
        2 => FailureKind::Forbidden,
        3 => FailureKind::Dns,
        4 => FailureKind::Connect,
        5 => FailureKind::Proxy,
        6 => FailureKind::Tls,
        7 => FailureKind::Timeout,
        9 => FailureKind::Aborted,
        10 => FailureKind::Local,
        11 => FailureKind::Lost,
        12 => FailureKind::Oversize,
        _ => FailureKind::Protocol,
    }
}

pub(super) const fn refusal_number(why: Refusal) -> u32 {
    match why {
        Refusal::Version => 1,
        Refusal::Egress => 2,
        Refusal::Full => 3,
        Refusal::Lost => 4,
    }
}

/// After a word of a later version the worker joins anew, as after its loss.
pub(super) const fn refusal(number: u32) -> Refusal {
    match number {
        1 => Refusal::Version,
        2 => Refusal::Egress,
        3 => Refusal::Full,
        _ => Refusal::Lost,
    }
}

pub(super) const fn bye_number(why: ByeReason) -> u32 {
    match why {
        ByeReason::Gap => 1,
        ByeReason::Disconnected => 2,
        ByeReason::Lease => 3,
        ByeReason::Leaving => 4,
        ByeReason::Unreadable => 5,
    }
}

pub(super) const fn bye_reason(number: u32) -> ByeReason {
    match number {
        2 => ByeReason::Disconnected,
        3 => ByeReason::Lease,
        4 => ByeReason::Leaving,
        5 => ByeReason::Unreadable,
        _ => ByeReason::Gap,
    }
}
