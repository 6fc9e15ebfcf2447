//! A change that is made, and that nobody sees until it is committed.

use super::{StateError, Transaction};

/// What a transaction has done so far; dropped, it has done nothing.
///
/// While it is there the leader's batches wait for it. What is told before [`Uncommitted::commit`] is told before
/// anything that can follow from the change.
#[derive(Debug)]
pub struct Uncommitted<'a, T> {
    /// None: there was nothing to change.
    tx: Option<Transaction<'a>>,
    change: T,
}

impl<'a, T> Uncommitted<'a, T> {
    pub(super) fn new(tx: Option<Transaction<'a>>, change: T) -> Self {
        Self { tx, change }
    }

    /// What is changed.
    #[must_use]
    pub fn change(&self) -> &T {
        &self.change
    }

    /// Makes it so.
    ///
    /// # Errors
    /// [`StateError::Sql`]: where the connection is lost, nobody knows whether it is so.
    pub async fn commit(self) -> Result<T, StateError> {
        if let Some(tx) = self.tx {
            tx.commit().await?;
        }
        Ok(self.change)
    }
}
