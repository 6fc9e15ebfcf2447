//! Is the publication younger than what the slot has still to read? Then the slot can never be read:
//! up to PostgreSQL 17 the stream ends with an error, and 18 would leave rows out.

use anyhow::Result;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Report;
use crate::config::Config;
use walhook_decode::pgoutput::Protocol;
use walhook_postgres::op::{EQ, LE};
use walhook_postgres::source::server_version;

/// From this version on a peek does not tell: there is a warning where there was an error.
const ONLY_WARNS: i32 = 180_000;

/// What a peek may take; a slot with much to read needs longer.
const PEEK: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'";

pub(super) async fn check(config: &Config, client: &Client, report: &mut Report) -> Result<()> {
    let (slot, publication) = (&config.source.slot, &config.source.publication);
    // Catalog rows older than `catalog_xmin` are seen by all that the slot has still to read. The row
    // is also young when the publication's options were changed, which does no harm.
    let sql = format!(
        "SELECT pg_catalog.age(p.xmin) {LE} pg_catalog.age(s.catalog_xmin), s.active
               FROM pg_catalog.pg_publication p, pg_catalog.pg_replication_slots s
               WHERE p.pubname {EQ} $1 AND s.slot_name {EQ} $2 AND s.catalog_xmin IS NOT NULL"
    );
    let Some(row) = client.query_opt(&sql, &[publication, slot]).await? else { return Ok(()) };
    let (is_young, is_active): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    if !is_young {
        return Ok(());
    }
    let fix = "if it was made again, drop the slot; `walhook recover --accept-gap` makes a new one";
    if !is_active && server_version(client).await? < ONLY_WARNS {
        match peek(client, slot, publication).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                let finding = format!("{publication} is younger than the slot {slot}");
                report.fail("publication", finding, fix);
                return Ok(());
            }
            // Too much to read, or no right to: `run` will tell.
            Err(_) => {}
        }
    }
    let finding = format!("{publication} was made or altered after where the slot {slot} reads");
    report.warn("publication", finding, fix);
    Ok(())
}

/// Reads the slot's first change without taking it.
async fn peek(client: &Client, slot: &str, publication: &str) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_logical_slot_peek_binary_changes(
                   $1, NULL, 1, 'proto_version', $3, 'publication_names',
                       pg_catalog.quote_ident($2))";
    let version = Protocol::V1.version().to_string();
    client.batch_execute(PEEK).await?;
    let peeked = client.query_one(sql, &[&slot, &publication, &version]).await;
    client.batch_execute("ROLLBACK").await?;
    peeked.map(|_| ())
}
