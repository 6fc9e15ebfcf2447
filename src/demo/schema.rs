//! The demo's database: its tables, accounts, subscribers and webhooks.

use anyhow::{Context, Result};

use super::plan::{Account, Class, Endpoint};
use walhook_postgres::sql::Connection;

/// Subscribers before the traffic begins.
const WHALE_SUBSCRIBERS: i64 = 2_000;
const SMALL_SUBSCRIBERS: i64 = 5;

/// Creates everything; `urls` say where each endpoint's webhooks go, in the same order.
///
/// # Errors
/// When a statement fails.
pub async fn create(
    connection: &Connection,
    accounts: &[Account],
    endpoints: &[Endpoint],
    urls: &[String],
) -> Result<()> {
    connection
        .batch_execute(include_str!("../../sql/demo.sql"))
        .await
        .context("cannot create the demo's tables")?;
    for account in accounts {
        let (name, subscribers) = match account.class {
            Class::Whale => ("Whale".to_owned(), WHALE_SUBSCRIBERS),
            Class::Small | Class::Slow | Class::Flaky | Class::Dead => {
                (format!("Small {}", account.id), SMALL_SUBSCRIBERS)
            }
        };
        let sql = "INSERT INTO accounts VALUES ($1, $2)";
        connection.execute(sql, &[&account.id, &name]).await?;
        let sql = "INSERT INTO subscribers (account_id, email)
                   SELECT $1::bigint, 'early-' || i || '@account-' || $1::bigint || '.example'
                   FROM generate_series(1, $2::bigint) i";
        connection.execute(sql, &[&account.id, &subscribers]).await?;
    }
    for (endpoint, url) in endpoints.iter().zip(urls) {
        let types: Vec<&str> = endpoint.wants.iter().map(|kind| kind.event_type()).collect();
        let sql = "INSERT INTO webhooks (id, account_id, url, event_types, secret)
                   VALUES ($1, $2, $3, $4, $5)";
        let secret = endpoint.secret();
        connection.execute(sql, &[&endpoint.id, &endpoint.account, url, &types, &secret]).await?;
    }
    Ok(())
}
