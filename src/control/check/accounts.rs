//! What the account table says of shares: can it be used, and is more reserved than can be?

use anyhow::Result;
use tokio_postgres::Client;

use super::Report;
use super::look_up::{LOOKED_AT, named};
use crate::config::Config;
use walhook_core::escape;
use walhook_dispatch::schedule::divided;
use walhook_postgres::ident::{quote_ident, quote_table};
use walhook_postgres::lookup;
use walhook_postgres::sql::error_text;

/// Never fails: an account whose row cannot be used weighs 1, has no reserved slots, and works.
pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let Some(accounts) = &config.accounts else { return Ok(()) };
    let text =
        |column: &str| format!("pg_catalog.left(w.{}::pg_catalog.text, 64)", quote_ident(column));
    let reserved = accounts.reserved.as_deref().map_or_else(|| "NULL".to_owned(), text);
    let sql = format!(
        "SELECT {}, {}, {reserved} FROM {} w LIMIT {LOOKED_AT}",
        text(&accounts.id),
        text(&accounts.weight),
        quote_table(&accounts.table),
    );
    let rows = match client.query(&sql, &[]).await {
        Ok(rows) => rows,
        // Each look-up asks for one account alone, and takes the default where that fails.
        Err(error) => {
            let finding = format!("the weights cannot be read: {}", error_text(&error));
            let fix = format!("correct what {} holds or calls", accounts.table);
            report.warn("accounts", finding, fix);
            return Ok(());
        }
    };
    let (mut unweighted, mut unreserved, mut sum) = (Vec::new(), Vec::new(), 0);
    for row in &rows {
        let id = || -> Result<String> {
            let id: Option<&str> = row.try_get(0)?;
            Ok(escape::one_line(id.unwrap_or("null")).into_owned())
        };
        if row.try_get::<_, Option<&str>>(1)?.and_then(lookup::weight).is_none() {
            unweighted.push(id()?);
        }
        match row.try_get::<_, Option<&str>>(2)?.map(lookup::reserved) {
            None => {}
            Some(Some(reserved)) => sum += u64::from(reserved),
            Some(None) => unreserved.push(id()?),
        }
    }
    let mut tell = |ids: &[String], finding: &str, column: &str| {
        if let Some(named) = named(ids) {
            let finding = format!("{} of {} accounts {finding}: {named}", ids.len(), rows.len());
            report.warn("accounts", finding, format!("correct {column} of their rows"));
        }
    };
    tell(&unweighted, "have no weight above 0, so that it counts as 1", &accounts.weight);
    if let Some(column) = &accounts.reserved {
        tell(&unreserved, "reserve no whole number of slots, so that they have none", column);
    }
    let scheduler = &config.scheduler;
    beyond_half(sum, (scheduler.fast_slots, scheduler.slow_slots), report);
    Ok(())
}

/// Where all that is reserved is more than half of the fast slots, or of the slow ones.
fn beyond_half(reserved: u64, (fast, slow): (u32, u32), report: &mut Report) {
    let half = u64::from(fast.min(divided(slow).0) / 2);
    if reserved > half {
        let finding = format!(
            "{reserved} slots are reserved for accounts; of {fast} fast and {slow} slow ones {half} can be, so \
             that each gets less, in proportion, while all of them are busy"
        );
        let fix = "reserve less, or give more scheduler.fast_slots and scheduler.slow_slots";
        report.warn("accounts", finding, fix);
    }
}
