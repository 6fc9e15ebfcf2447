//! The task that tells whoever runs walhook what happens to endpoints, at `notify.url`.
//!
//! One notice at a time, from the table: neither deliveries nor a shutdown wait for it. What is not told yet is told later, by this leader or the next.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::backoff::Backoff;
use super::error::TaskError;
use super::sessions::{Sessions, in_turn};
use super::tasks::{Until, Work};
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::{Metrics, NoticeResult};
use crate::server::trouble::Part;
use walhook_core::endpoint::{Endpoint, Secret};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::notice::{DueNotice, wait_after};
use walhook_http::sender::Sender;

/// How often the table is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Tells, where there is a `notify.url`.
pub(super) struct Notices {
    pub(super) sessions: Arc<Sessions>,
    pub(super) to: Endpoint,
    pub(super) sender: Sender,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tell: Teller,
}

/// Whom notices are sent to, as an endpoint of no account.
pub(super) fn receiver(config: &Config) -> Option<Endpoint> {
    let url = config.notify.url.as_ref()?;
    Some(Endpoint {
        id: EndpointId::new("notify.url"),
        account: AccountId::new(""),
        url: url.expose().to_owned(),
        event_types: Vec::new(),
        secrets: config.notify.secret.iter().map(Secret::clone).collect(),
        enabled: true,
        headers: Vec::new(),
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    })
}

/// What became of a notice.
enum Told {
    /// It was taken, or is given up.
    Ended,
    /// It is told again.
    PutOff {
        /// How often it was told.
        attempts: u32,
        /// When.
        wait: Duration,
    },
}

impl Work for Notices {
    const NAME: &'static str = "notices";
    const PART: Part = Part::Notices;
    const UNTIL: Until = Until::Drain;
    const PAUSE: Duration = EVERY;

    /// One notice after the other, for as long as the table can be read.
    async fn work(&mut self) -> Result<Infallible, TaskError> {
        // Beside each notice's own waits: many of them must not hammer a receiver that is down.
        let mut backoff = Backoff::new();
        loop {
            let next = in_turn(self.next()).await?;
            self.tell.works(Self::PART);
            let Some(notice) = next else {
                tokio::time::sleep(EVERY).await;
                continue;
            };
            // Nobody waits for the session while the receiver is waited for.
            let (told, was_taken) = self.send(&notice).await;
            in_turn(self.store(&notice, told)).await?;
            if was_taken {
                backoff = Backoff::new();
            } else {
                backoff.wait().await;
            }
        }
    }
}

impl Notices {
    async fn next(&self) -> Result<Option<DueNotice>, TaskError> {
        let mut store = self.sessions.state().await?;
        let next = store.next_notice().await;
        store.end();
        Ok(next?)
    }

    async fn store(&self, notice: &DueNotice, told: Told) -> Result<(), TaskError> {
        let mut store = self.sessions.state().await?;
        let stored = match told {
            Told::Ended => store.end_notice(notice).await,
            Told::PutOff { attempts, wait } => store.put_notice_off(notice, attempts, wait).await,
        };
        store.end();
        Ok(stored?)
    }

    /// What becomes of it, and whether the receiver took it.
    async fn send(&self, notice: &DueNotice) -> (Told, bool) {
        let pipeline = &self.sessions.config.source.slot;
        let outcome = self.sender.send_notice(&self.to, notice, pipeline).await;
        let DueNotice { kind, endpoint, count, .. } = notice;
        if outcome.delivered() {
            self.metrics.count_notice(NoticeResult::Sent);
            tracing::debug!(r#type = kind, endpoint, count, "notify.url took a notice");
            return (Told::Ended, true);
        }
        if outcome.is_local() {
            // It was not sent, for want of something of our own, which is told elsewhere.
            let attempts = notice.attempts;
            return (Told::PutOff { attempts, wait: EVERY }, false);
        }
        self.metrics.count_notice(NoticeResult::Failed);
        let (attempts, problem) = (notice.attempts.saturating_add(1), outcome.record.text);
        if let Some(wait) = wait_after(attempts) {
            tracing::warn!(
                r#type = kind, endpoint, count, %problem, ?wait,
                "notify.url did not take a notice; trying again"
            );
            return (Told::PutOff { attempts, wait }, false);
        }
        self.metrics.count_notice(NoticeResult::Lapsed);
        tracing::error!(
            r#type = kind, endpoint, count, %problem,
            "notify.url did not take a notice for a day: giving it up; correct notify.url"
        );
        (Told::Ended, false)
    }
}
