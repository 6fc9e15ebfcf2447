//! Is the publication younger than what the slot has still to read? Then the slot can never be read:
//! up to PostgreSQL 17 the stream ends with an error, and 18 would leave rows out.

use anyhow::Result;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Report, last_look};
use crate::config::Config;
use walhook_core::lsn::Lsn;
use walhook_decode::pgoutput::Protocol;
use walhook_postgres::coverage::Coverage;
use walhook_postgres::op::{EQ, LE};
use walhook_postgres::source::server_version;

/// From this version on a peek does not tell: there is a warning where there was an error.
const ONLY_WARNS: i32 = 180_000;

/// What a peek may take; a slot with much to read needs longer.
const PEEK: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'";

/// Of the slot that is read from `frontier` on.
pub(super) async fn check(
    config: &Config,
    client: &Client,
    frontier: Option<Lsn>,
    report: &mut Report,
) -> Result<()> {
    let (slot, publication) = (&config.source.slot, &config.source.publication);
    // Catalog rows older than `catalog_xmin` are seen by all that the slot has still to read. One that is
    // young need not be younger than where that begins: `catalog_xmin` lies before it, where another slot
    // was there earlier, and a row is young too when the publication's options were changed.
    let sql = format!(
        "SELECT pg_catalog.age(p.xmin) {LE} pg_catalog.age(s.catalog_xmin), p.oid
               FROM pg_catalog.pg_publication p, pg_catalog.pg_replication_slots s
               WHERE p.pubname {EQ} $1 AND s.slot_name {EQ} $2 AND s.catalog_xmin IS NOT NULL
                   AND NOT s.active"
    );
    let Some(row) = client.query_opt(&sql, &[publication, slot]).await? else { return Ok(()) };
    let (is_young, oid): (bool, u32) = (row.try_get(0)?, row.try_get(1)?);
    // Of a slot in use the leader tells.
    if !is_young {
        return Ok(());
    }
    if server_version(client).await? < ONLY_WARNS {
        match peek(client, slot, publication).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                let finding = format!("{publication} is younger than the slot {slot}");
                let fix = "if source.publication was changed, set it back; if it was made again, drop the \
                           slot; `walhook recover --accept-gap` makes a new one";
                report.fail("publication", finding, fix);
                return Ok(());
            }
            // Too much to read, or no right to: `run` will tell.
            Err(_) => {}
        }
    }
    // `setup` makes the publication before the slot, and from then on each look knows which one it was.
    let Some((_, Coverage { publication: then, .. })) = last_look(config).await else {
        return Ok(());
    };
    let is_other =
        then.oid != oid || frontier.is_some_and(|at| then.since.is_some_and(|since| at < since));
    if is_other {
        let finding = format!("{publication} may be younger than where the slot {slot} reads");
        let fix = "start `walhook run`: if a row was written before the publication was made, it halts and \
                   says what to do";
        report.warn("publication", finding, fix);
    }
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
