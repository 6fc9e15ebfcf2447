//! The task that tells whoever runs walhook what happens to endpoints, at `notify.url`.
//!
//! One notice at a time, from the table, on a session of its own: neither deliveries nor a shutdown
//! wait for it. What is not told yet is told later, by this leader or the next.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::open_state;
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::{Metrics, NoticeResult};
use crate::server::trouble::Part;
use walhook_core::endpoint::{Endpoint, Secret};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::notice::{DueNotice, wait_after};
use walhook_http::sender::Sender;
use walhook_state::{StateError, StateStore};

/// How often the table is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Tells, until it is dropped. Where there is no `notify.url`, waits for that.
pub(super) async fn keep(
    config: &Config,
    epoch: i64,
    sender: &Sender,
    metrics: &Metrics,
    tell: &Teller,
) {
    let Some(to) = receiver(config) else { return std::future::pending().await };
    loop {
        let ended = async {
            let mut store = open_state(config).await?;
            store.write_as(epoch);
            let pipeline = &config.source.slot;
            let notifier = Notifier { to: &to, pipeline, sender, metrics, health: tell };
            notifier.tell(&mut store).await
        };
        let Err(error) = ended.await else { return };
        tell.fails(Part::Notices, Instant::now(), &error);
        tokio::time::sleep(EVERY).await;
    }
}

/// Whom notices are sent to, as an endpoint of no account.
fn receiver(config: &Config) -> Option<Endpoint> {
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

struct Notifier<'a> {
    to: &'a Endpoint,
    pipeline: &'a str,
    sender: &'a Sender,
    metrics: &'a Metrics,
    health: &'a Teller,
}

impl Notifier<'_> {
    /// One notice after the other, for as long as the table can be read.
    async fn tell(&self, store: &mut StateStore) -> Result<(), StateError> {
        // Beside each notice's own waits: many of them must not hammer a receiver that is down.
        let mut backoff = Backoff::new();
        loop {
            let next = store.next_notice().await?;
            self.health.works(Part::Notices);
            let Some(notice) = next else {
                tokio::time::sleep(EVERY).await;
                continue;
            };
            if self.tell_one(store, &notice).await? {
                backoff = Backoff::new();
            } else {
                backoff.wait().await;
            }
        }
    }

    /// Whether the receiver took it.
    async fn tell_one(
        &self,
        store: &mut StateStore,
        notice: &DueNotice,
    ) -> Result<bool, StateError> {
        let outcome = self.sender.send_notice(self.to, notice, self.pipeline).await;
        let DueNotice { kind, endpoint, count, .. } = notice;
        if outcome.delivered() {
            self.metrics.count_notice(NoticeResult::Sent);
            tracing::info!(r#type = kind, endpoint, count, "notify.url took a notice");
            store.end_notice(notice).await?;
            return Ok(true);
        }
        self.metrics.count_notice(NoticeResult::Failed);
        let (attempts, problem) = (notice.attempts.saturating_add(1), outcome.record.text);
        if let Some(wait) = wait_after(attempts) {
            tracing::warn!(
                r#type = kind, endpoint, count, %problem, ?wait,
                "notify.url did not take a notice; trying again"
            );
            store.put_notice_off(notice, attempts, wait).await?;
        } else {
            self.metrics.count_notice(NoticeResult::Lapsed);
            tracing::error!(
                r#type = kind, endpoint, count, %problem,
                "notify.url did not take a notice for a day: giving it up; correct notify.url"
            );
            store.end_notice(notice).await?;
        }
        Ok(false)
    }
}
