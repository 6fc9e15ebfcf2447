//! What the anchor slot still has of what a slot that is gone, lost or made anew has not.

use anyhow::Result;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::{Begin, NAME, Sessions};
use crate::config::Config;
use crate::server::range::{Batch, Range};
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::op::{EQ, LE};
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;

/// From the anchor nothing, or less, is given up: where it can be read, the slot is made of it; where the WAL ends
/// before what was `read` of it, the positions do not say what was sent.
pub(super) async fn better(
    config: &Config,
    sessions: &Sessions,
    begin: Begin,
    (from, read): (Lsn, Lsn),
) -> Result<Begin> {
    let (drop, otherwise) = match begin {
        Begin::NewSlot { drop } => (drop, None),
        Begin::Slot(to) => (true, Some(to)),
        Begin::Checkpoint | Begin::Anchor { .. } => return Ok(begin),
    };
    let (client, name) = (&sessions.source, &config.source.slot);
    let wal_end = slot::wal_end(client).await?;
    if wal_end < read {
        return Ok(begin);
    }
    let anchor = anchor::read(client, name).await?;
    let anchor = anchor.filter(|anchor| anchor.is_ours() && !anchor.is_lost());
    let Some(at) = anchor.and_then(|anchor| anchor.confirmed_flush) else { return Ok(begin) };
    let at = at.max(from);
    if otherwise.is_some_and(|to| to <= at) {
        return Ok(begin);
    }
    if publication_is_young(config, client).await? && !is_readable(config, at, wal_end).await? {
        return Ok(begin);
    }
    Ok(Begin::Anchor { at, drop })
}

/// Whether the publication may be younger than what the anchor has: a slot cannot be read past a row that
/// was written without it.
async fn publication_is_young(config: &Config, client: &Client) -> Result<bool> {
    let sql = format!(
        "SELECT pg_catalog.age(p.xmin) {LE} pg_catalog.age(s.catalog_xmin)
         FROM pg_catalog.pg_publication p, pg_catalog.pg_replication_slots s
         WHERE p.pubname {EQ} $1 AND s.slot_name {EQ} $2 AND s.catalog_xmin IS NOT NULL"
    );
    let anchor = anchor::name(&config.source.slot);
    let row = client.query_opt(&sql, &[&config.source.publication, &anchor]).await?;
    row.map_or(Ok(false), |row| Ok(row.try_get(0)?))
}

/// Reads what the anchor has from `from` to `to`, to see whether the publication was there all the time.
async fn is_readable(config: &Config, from: Lsn, to: Lsn) -> Result<bool> {
    let client = Connection::open(&config.source.url, NAME).await?;
    let anchor = anchor::name(&config.source.slot);
    let range = Range::open_copy(config, client, &anchor, from, to, "recover").await?;
    let (out, mut batches) = mpsc::channel::<Batch>(2);
    let discard = async { while batches.recv().await.is_some() {} };
    let (read, ()) = tokio::join!(range.read(out), discard);
    // What else ends a stream early, `run` says, and nothing is lost by it.
    Ok(!read.is_err_and(|error| error.without_publication().is_some()))
}
