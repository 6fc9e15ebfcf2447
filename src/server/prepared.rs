//! Where a pipeline goes on that was prepared for an upgrade: its slots tell, see [`Prepared::settled`].
//!
//! [`Prepared::settled`]: walhook_state::Prepared::settled

use tokio_postgres::Client;

use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::error::SourceError;
use walhook_postgres::slot::Slot;
use walhook_state::{StateError, StateStore};

/// Why it is not known where to go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreparedError {
    /// The state database.
    #[error(transparent)]
    State(#[from] StateError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The checkpoint: the stored one, or the position behind it up to which `walhook upgrade prepare` has
/// found nothing owed. `slot` was read before.
///
/// # Errors
/// When source or state do not answer.
pub(crate) async fn checkpoint(
    store: &StateStore,
    source: &Client,
    name: &str,
    slot: Option<&Slot>,
) -> Result<Lsn, PreparedError> {
    let stored = store.frontier().await?;
    let Some(prepared) = store.prepared().await?.filter(|prepared| prepared.holds) else {
        return Ok(stored);
    };
    let anchor = anchor::read(source, name).await?;
    Ok(prepared.settled(stored, slot, anchor.as_ref()).unwrap_or(stored))
}
