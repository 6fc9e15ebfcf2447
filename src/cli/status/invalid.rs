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
pub(super) struct Invalid {
    /// How many of those looked at are switched on and cannot be used; null when the table cannot be read.
    count: Option<usize>,
    /// How many rows were looked at, in the order of their ids.
    looked_at: usize,
    /// Whether these are not all.
    more: bool,
    /// The first ten.
    first: Vec<Unusable>,
    /// Why the table could not be read (to its end).
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Unusable {
    endpoint: String,
    reason: String,
}

impl Invalid {
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
                self.first.push(Unusable { endpoint, reason });
            }
        }
        self.count = Some(count);
    }

    /// One line for each thing to say.
    pub(super) fn to_text(&self) -> Vec<String> {
        let error = self.error.as_deref().unwrap_or("it was not read");
        let Some(count) = self.count else { return vec![format!("unknown: {error}")] };
        let among = if self.more { "the first " } else { "" };
        let mut lines = match (count, self.more) {
            (0, false) => vec!["none".to_owned()],
            _ => vec![format!("{count} of {among}{} endpoints", self.looked_at)],
        };
        lines.extend(self.first.iter().map(|it| format!("{}: {}", it.endpoint, it.reason)));
        if count > self.first.len() {
            lines.push("`walhook endpoints list` shows all".to_owned());
        }
        lines.extend(self.error.iter().map(|error| format!("the others are unknown: {error}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::fixture::Fixture;

    #[tokio::test]
    async fn status_counts_invalid_endpoints_and_never_fails_for_their_table() {
        let fixture = Fixture::start().await;
        let config = fixture.config("");
        assert_eq!(Invalid::gather(&config).await.to_text(), ["none"]);

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
        let invalid = Invalid::gather(&config).await;
        let lines = invalid.to_text();
        assert_eq!((&*lines[0], lines.len()), ("12 of 520 endpoints", 12), "{lines:?}");
        assert!(lines[1].contains("not base64"), "{lines:?}");
        let json = serde_json::to_value(&invalid).unwrap();
        assert_eq!((&json["count"], &json["error"]), (&12.into(), &serde_json::Value::Null));
        assert_eq!(json["first"].as_array().unwrap().len(), 10);

        // Whoever locks the table keeps `status` waiting for a bounded time.
        let locker = fixture.connect().await;
        locker.batch_execute("BEGIN; LOCK TABLE webhooks").await.unwrap();
        let lines = Invalid::gather(&config).await.to_text();
        assert!(lines.len() == 1 && lines[0].starts_with("unknown: "), "{lines:?}");
        locker.batch_execute("DROP TABLE webhooks; COMMIT").await.unwrap();
        let lines = Invalid::gather(&config).await.to_text();
        assert!(lines.len() == 1 && lines[0].starts_with("unknown: "), "{lines:?}");
    }
}
