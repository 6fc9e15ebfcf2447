//! What is known of an attempt while it goes on, for its time may be over at any moment.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use walhook_core::attempt::FailureKind;
use walhook_core::event::AccountId;

use super::apart::Apart;
use super::error::failure;
use super::guard::Known;
use super::pool::Host;
use super::users::SILENT_FOR;
use crate::exchange::Failure;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Course {
    resends: AtomicU32,
    /// Of these, those from connections that no other account had used.
    own_resends: AtomicU32,
    wait: Mutex<Option<Arc<Wait>>>,
}

/// A request waits on a connection behind another account's.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) apart: Arc<Apart>,
    pub(super) host: Arc<Host>,
    pub(super) account: AccountId,
    pub(super) before: AccountId,
    pub(super) known: Arc<Known>,
    /// Answers that had begun there before.
    pub(super) answers: u64,
    pub(super) since: Instant,
}

impl Wait {
    /// Whether nothing was answered there for so long, while it waited. Over HTTP/1, where it waits alone: not one byte.
    fn is_silent(&self, length: Duration, now: Instant) -> bool {
        let is_long = |from| now.saturating_duration_since(from) >= length;
        is_long(self.since)
            && self.known.users().last_answer().is_none_or(is_long)
            && (self.known.is_http2() || self.known.answers() == self.answers)
    }

    /// Whether it is the account's, and so long that its next requests are better kept from the connections of others.
    pub(super) fn is_long(&self, account: &AccountId, now: Instant) -> bool {
        self.account == *account && self.is_silent(SILENT_FOR, now)
    }
}

impl Course {
    /// How often the request was sent again.
    pub(super) fn resends(&self) -> u32 {
        self.resends.load(Relaxed)
    }

    /// How often it was sent again for what no other account can have caused.
    pub(super) fn own_resends(&self) -> u32 {
        self.own_resends.load(Relaxed)
    }

    /// It is sent again, from a connection of its account alone or not.
    pub(super) fn count_resend(&self, is_own: bool) {
        self.resends.fetch_add(1, Relaxed);
        self.own_resends.fetch_add(u32::from(is_own), Relaxed);
    }

    /// It waits so; none: behind nobody.
    pub(super) fn set_wait(&self, wait: Option<Arc<Wait>>) {
        *self.wait.lock().unwrap_or_else(PoisonError::into_inner) = wait;
    }

    /// What it means that its time is over. Where nothing was answered for half of it on a connection that another
    /// account's request was on before, nobody knows by whose fault: its account and that one part.
    pub(super) fn time_is_over(&self, timeout: Duration) -> Failure {
        let wait = self.wait.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(wait) = wait.filter(|wait| wait.is_silent(timeout / 2, Instant::now())) else {
            return failure(FailureKind::Timeout, &format!("no whole answer within {timeout:?}"));
        };
        wait.apart.put(&wait.host, &wait.account);
        wait.apart.suspect(&wait.host, &wait.before);
        let detail = format!(
            "no answer within {timeout:?} on a connection that another account's request was on before, and \
             may hold up; the account has connections of its own there now"
        );
        failure(FailureKind::Lost, &detail)
    }
}
