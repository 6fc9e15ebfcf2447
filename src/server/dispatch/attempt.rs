//! One attempt that is made here, as a future.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_http::sender::Sender;
use walhook_process::failpoint::Failpoint;

/// What an attempt begins with: itself, and the word to give it up.
pub(super) type Job = (Attempt, oneshot::Receiver<()>);

/// What it came to.
pub(super) type Ended = (DeliveryId, Outcome);

/// One attempt, whose outcome comes even if it panics, or is given up.
pub(super) async fn attempt(sender: Sender, (attempt, given_up): Job) -> Ended {
    Failpoint::Sending.pass();
    let started = Instant::now();
    let delivery = attempt.first().id;
    let outcome = tokio::select! {
        biased;
        outcome = AssertUnwindSafe(sender.send(&attempt)).catch_unwind() => outcome,
        Ok(()) = given_up => {
            let detail = "given up by walhook: a probe that took too long, too many endpoints hang at once, or others wait for its room";
            Ok(Outcome::failed(FailureKind::Aborted, detail, started.elapsed()))
        }
    };
    let outcome = outcome.unwrap_or_else(|_| {
        tracing::error!(event = %attempt.first().event.id, "an attempt panicked; this is a bug in walhook");
        let detail = "walhook panicked while sending it";
        Outcome::failed(FailureKind::Protocol, detail, started.elapsed())
    });
    if outcome.record.failure.is_none() {
        Failpoint::Answered.pass();
    }
    (delivery, outcome)
}
