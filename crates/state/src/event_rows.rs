//! What the state tables hold of one event: its dead letters, and its body wherever it stands.

use std::sync::Arc;

use tokio_postgres::types::Type;

use super::dead_letters::{self, StoredDeadLetter};
use super::event::{event_columns, read_event};
use super::page::{Page, page_columns};
use super::{Param, Scope, StateError, StateStore, key, place};
use walhook_core::event::Event;
use walhook_core::position::EventId;
use walhook_postgres::op::{EQ, to_us};

/// Of one event so many are read: an event may be for very many endpoints.
const LETTERS_MAX: i64 = 10_000;

impl StateStore {
    /// The dead letters of an event, by their endpoints: at most 10,000.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn letters_of_event(
        &self,
        event: EventId,
    ) -> Result<Vec<StoredDeadLetter>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {}, {} FROM (
                 SELECT * FROM {s}.dead_letters WHERE pipeline {EQ} $1 AND {}
                 ORDER BY event_id LIMIT {LETTERS_MAX}) d
             CROSS JOIN LATERAL (
                 SELECT * FROM {s}.bodies WHERE pipeline {EQ} $1 AND event_id {EQ} d.event_id LIMIT 1) b
             ORDER BY d.endpoint, d.replay_id",
            dead_letters::COLUMNS,
            event_columns(),
            key::range("event_id", "$2")
        );
        let id = event.to_string();
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&id, Type::TEXT)];
        let rows = self.connection.query_typed(&sql, &params).await?;
        rows.iter().map(dead_letters::read).collect()
    }

    /// The event with its body, where a deferred delivery or a dead letter of it holds one.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn event_of_rows(&self, event: EventId) -> Result<Option<Arc<Event>>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {} FROM {s}.bodies b WHERE pipeline {EQ} $1 AND event_id {EQ} $2",
            event_columns()
        );
        let id = event.to_string();
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&id, Type::TEXT)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        Ok(row.as_ref().map(read_event).transpose()?.map(Arc::new))
    }

    /// The event with its body, where it is deferred in a page. Reads the ids of all pages once.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn event_of_page(&self, event: EventId) -> Result<Option<Arc<Event>>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {} FROM {s}.pages p WHERE p.pipeline {EQ} $1
                 AND p.event_ids OPERATOR(pg_catalog.&&) $2
             ORDER BY p.endpoint, p.account, {} LIMIT 1",
            page_columns(s),
            place::columns("p.")
        );
        let ids = [event.to_string()];
        let ids = &ids[..];
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&ids, Type::TEXT_ARRAY)];
        let Some(row) = self.connection.query_typed_opt(&sql, &params).await? else {
            return Ok(None);
        };
        let rows = Page::read(&row)?.rows.into_iter().flatten();
        Ok(rows.map(|row| row.event).find(|of_page| of_page.id == event))
    }

    /// The event with its body and since when, in microseconds since 1970-01-01 UTC, where it waits without an
    /// endpoint. Reads that table once.
    ///
    /// # Errors
    /// [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn unrouted_event(
        &self,
        event: EventId,
    ) -> Result<Option<(Arc<Event>, i64)>, StateError> {
        let Scope { s, pipeline, .. } = &self.scope;
        let sql = format!(
            "SELECT {}, {} AS stored FROM {s}.unrouted b WHERE b.pipeline {EQ} $1 AND b.event_id {EQ} $2
             ORDER BY b.account, {} LIMIT 1",
            event_columns(),
            to_us("b.stored_at"),
            place::columns("b.")
        );
        let id = event.to_string();
        let params: [Param<'_>; 2] = [(pipeline, Type::TEXT), (&id, Type::TEXT)];
        let row = self.connection.query_typed_opt(&sql, &params).await?;
        row.map(|row| Ok((Arc::new(read_event(&row)?), row.try_get("stored")?))).transpose()
    }
}
