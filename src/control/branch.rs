//! A source on a later timeline than the one that is stored: a standby was promoted, or the cluster was restored to a
//! point in time.

use crate::config::Config;
use walhook_core::halt::SourceIdentity;
use walhook_core::lsn::Lsn;
use walhook_postgres::wire::{self, WireError};

/// Where the timeline that was `found` left the stored one; `None` where it does not descend from it, or is not of the
/// same cluster, or not a later one.
///
/// # Errors
/// When the source does not take a replication connection.
pub(super) async fn left_timeline(
    config: &Config,
    name: &'static str,
    found: &SourceIdentity,
    stored: &SourceIdentity,
) -> Result<Option<Lsn>, WireError> {
    if found.system_identifier != stored.system_identifier || found.timeline <= stored.timeline {
        return Ok(None);
    }
    let url = config.source.replication_url.as_ref().unwrap_or(&config.source.url);
    let mut replication = wire::connect(url, name).await?;
    replication.left_timeline(stored.timeline, found.timeline).await
}
