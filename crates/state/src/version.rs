//! Going back to tables that the version before can lead on.

use tokio_postgres::types::Type;

use super::persist::bodies;
use super::persist::pages::take_some_apart;
use super::schema::WITH_PAGES;
use super::{Param, Scope, StateError, StateStore, hold_off_leader};
use walhook_postgres::op::{EQ, PLUS};

/// Pages that are taken apart by one statement.
const CHUNK: i64 = 4;

impl StateStore {
    /// Makes the tables those of an earlier version, from which on a walhook of that version may lead again, and
    /// leaders of this one write what it knows. Of a version without pages their deliveries become rows, which
    /// take some nine times the room: how many is returned. All of it or nothing.
    ///
    /// A leader that runs is fenced off, writes nothing meanwhile, and takes the lease anew.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`], [`StateError::NotSetUp`].
    pub async fn lower_version(&mut self, version: i32) -> Result<u64, StateError> {
        let tx = self.connection.transaction().await?;
        hold_off_leader(&tx, &self.scope).await?;
        let Scope { s, pipeline, .. } = &self.scope;
        let fence = format!(
            "UPDATE {s}.lease SET epoch = epoch {PLUS} 1::bigint WHERE pipeline {EQ} $1 AND partition {EQ} $2"
        );
        tx.execute_typed(&fence, &self.scope.led()).await?;
        let mut rows = 0;
        if version < WITH_PAGES {
            loop {
                let events = take_some_apart(&tx, &self.scope, CHUNK).await?;
                if events.is_empty() {
                    break;
                }
                rows += events.len() as u64;
                bodies::insert(&tx, &self.scope, &[], &[], &events).await?;
            }
        }
        let lower = format!("UPDATE {s}.meta SET schema_version = $2 WHERE pipeline {EQ} $1");
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&version, Type::INT4)];
        tx.execute_typed(&lower, &params).await?;
        tx.commit().await?;
        Ok(rows)
    }
}
