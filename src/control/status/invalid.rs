//! The endpoints whose rows cannot be used, as the endpoint table has them now.

use anyhow::{Context, Result};
use serde::Serialize;
use tokio::time::{Duration, Instant, timeout_at};

use crate::config::Config;
use walhook_postgres::lookup::{self, Listed, Lookups, Which};

/// Rows that are read by one statement.
const PAGE: usize = 500;

/// Rows that are looked at, by their ids.
const LOOKED_AT: usize = 10_000;

/// For how long.
const TIME: Duration = Duration::from_secs(3);

/// Endpoints that are named.
const NAMED: usize = 10;

/// What is known of invalid endpoints.
#[derive(Debug, Default, Serialize)]
pub(crate) struct InvalidView {
    /// How many of those looked at are switched on and cannot be used; null when the table cannot be read.
    pub(crate) count: Option<usize>,
    /// How many rows were looked at, in the order of their ids.
    pub(crate) looked_at: usize,
    /// Whether these are not all.
    pub(crate) more: bool,
    /// The first ten.
    pub(crate) first: Vec<UnusableView>,
    /// Why the table could not be read (to its end).
    pub(crate) error: Option<String>,
}

/// An endpoint that is switched on and whose row cannot be used.
#[derive(Debug, Serialize)]
pub(crate) struct UnusableView {
    /// Its id.
    pub(crate) endpoint: String,
    /// Why.
    pub(crate) reason: String,
}

impl InvalidView {
    /// Looks through the table, for a bounded time. Never fails: it says what it could not read.
    pub(super) async fn gather(config: &Config) -> Self {
        let mut invalid = Self::default();
        let until = Instant::now() + TIME;
        match timeout_at(until, invalid.read(config)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => invalid.error = Some(format!("{error:#}")),
            // What was read by then is told, as of a table with more rows than are looked at.
            Err(_) if invalid.count.is_some() => {}
            Err(_) => invalid.error = Some(format!("no answer within {} s", TIME.as_secs())),
        }
        invalid
    }

    /// Says that nothing was asked.
    pub(super) fn unknown() -> Self {
        Self { error: Some("the source did not answer".to_owned()), ..Self::default() }
    }

    async fn read(&mut self, config: &Config) -> Result<()> {
        let client = lookup::connect(config.lookups(), "walhook status").await?;
        // The server must not go on with what nobody waits for.
        let bound = format!("SET statement_timeout = {}", TIME.as_millis());
        client.batch_execute(&bound).await.context("cannot bound the statement")?;
        let lookups = Lookups::of(config.lookups());
        let mut after = String::new();
        loop {
            let which = Which { after: &after, limit: PAGE.try_into()?, ..Which::default() };
            let page = lookups.list(&client, which).await?;
            self.add(&page);
            self.more = page.len() >= PAGE;
            match page.last() {
                Some(last) if self.more && self.looked_at < LOOKED_AT => after.clone_from(&last.id),
                _ => return Ok(()),
            }
        }
    }

    fn add(&mut self, page: &[Listed]) {
        self.looked_at += page.len();
        let mut count = self.count.unwrap_or_default();
        for row in page.iter().filter(|row| row.enabled) {
            let Some(reason) = &row.invalid else { continue };
            count += 1;
            if self.first.len() < NAMED {
                let (endpoint, reason) = (row.id.clone(), reason.clone());
                self.first.push(UnusableView { endpoint, reason });
            }
        }
        self.count = Some(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fixture::Fixture;

    #[tokio::test]
    async fn status_counts_invalid_endpoints_and_never_fails_for_their_table() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        let none = InvalidView::gather(&config).await;
        assert_eq!((none.count, none.more), (Some(0), false), "{none:?}");

        // On both sides of a page's end; the last one is switched off.
        fixture
            .run(
                "INSERT INTO webhooks (account_id, url, event_types, secret)
                     SELECT n, 'https://a.example', '{*}', CASE WHEN n % 40 = 0 THEN 'whsec_?' ELSE
                         'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' END
                     FROM generate_series(1, 520) n;
                 UPDATE webhooks SET enabled = account_id <> 520",
            )
            .await;
        let invalid = InvalidView::gather(&config).await;
        let InvalidView { count, looked_at, more, first, error } = &invalid;
        assert_eq!((*count, *looked_at, *more, first.len()), (Some(12), 520, false, 10));
        assert!(first[0].reason.contains("not base64") && error.is_none(), "{invalid:?}");

        // Whoever locks the table keeps `status` waiting for a bounded time.
        let locker = fixture.connect().await;
        locker.batch_execute("BEGIN; LOCK TABLE webhooks").await.unwrap();
        let locked = InvalidView::gather(&config).await;
        assert!(locked.count.is_none() && locked.error.is_some(), "{locked:?}");
        locker.batch_execute("DROP TABLE webhooks; COMMIT").await.unwrap();
        let gone = InvalidView::gather(&config).await;
        assert!(gone.count.is_none() && gone.error.is_some(), "{gone:?}");
    }
}
