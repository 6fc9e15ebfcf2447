//! What the anchor slot still has of what a slot that is gone, lost or made anew has not.

use anyhow::Result;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::{Begin, NAME, Sessions};
use crate::config::Config;
use crate::server::range::{Batch, Range, RangeError};
use walhook_core::halt::{Halt, Lost};
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::fix::Failure;
use walhook_postgres::op::{EQ, LE};
use walhook_postgres::slot;
use walhook_postgres::sql::Connection;
use walhook_postgres::wire::WireError;

/// From the anchor nothing, or less, is given up: where it can be read, the slot is made of it; where the WAL ends
/// before what was `read` of it, the positions do not say what was sent.
pub(super) async fn better(
    config: &Config,
    sessions: &Sessions,
    begin: Begin,
    (from, read): (Lsn, Lsn),
    is_damaged: bool,
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
    // Where the slot's WAL is damaged, the anchor's is mostly the same.
    let in_doubt = is_damaged || publication_is_young(config, client).await?;
    if in_doubt && unreadable(config, &anchor::name(name), at, wal_end).await?.is_some() {
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

/// Reads what a slot has from `from` to `to`, and returns what the publication or the WAL lacks for that.
async fn unreadable(
    config: &Config,
    slot: &str,
    from: Lsn,
    to: Lsn,
) -> Result<Option<RangeError>, RangeError> {
    let client = Connection::open(&config.source.url, NAME).await?;
    let range = match Range::open_copy(config, client, slot, from, to, "recover").await {
        Ok(range) => range,
        Err(error) if error.unreadable_wal().is_some() => return Ok(Some(error)),
        Err(error) => return Err(error),
    };
    let (out, mut batches) = mpsc::channel::<Batch>(2);
    let discard = async { while batches.recv().await.is_some() {} };
    let (read, ()) = tokio::join!(range.read(out), discard);
    // What else ends a stream early, `run` says, and nothing is lost by it.
    let lacks = |error: &RangeError| {
        error.without_publication().is_some() || error.unreadable_wal().is_some()
    };
    Ok(read.err().filter(lacks))
}

/// That the slot is lost, where the server cannot read WAL that it keeps for it all the same: nothing in the slot's row
/// tells.
pub(super) async fn damaged(
    config: &Config,
    sessions: &Sessions,
    from: Lsn,
) -> Result<Option<Halt>> {
    let slot = &config.source.slot;
    let wal_end = slot::wal_end(&sessions.source).await?;
    let why = match unreadable(config, slot, from, wal_end).await {
        Ok(why) => why,
        // It must be known before it is said that nothing is wrong.
        Err(error @ RangeError::NotCopied { .. }) => return Err(error.into()),
        // What else keeps it from being read, `run` says.
        Err(_) => return Ok(None),
    };
    let error = why.as_ref().and_then(RangeError::unreadable_wal).map(WireError::line);
    let lost = |error| Halt::SlotLost { slot: slot.clone(), why: Lost::Unreadable(error), from };
    Ok(error.map(lost))
}
