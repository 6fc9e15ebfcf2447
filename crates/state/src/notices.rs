//! Notices on their way out: which is due, and what came of it.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Param, Scope, StateError, StateStore, fence, key, text, unreadable};
use walhook_core::notice::{DueNotice, PAUSE};
use walhook_core::tick::micros;
use walhook_postgres::op::{EQ, GT, LE, MINUS, PLUS, TIMES, interval};

/// Of so many that are due at the same time, the one that happened first goes first.
const COMPARED: u32 = 100;

impl StateStore {
    /// The notice that is due for the longest time. Removes what was sent so long ago that it holds
    /// back none any more.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`], [`StateError::Unreadable`].
    pub async fn next_notice(&mut self) -> Result<Option<DueNotice>, StateError> {
        let epoch = self.led_epoch()?;
        let Scope { s, pipeline, .. } = &self.scope;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let told = format!(
            "DELETE FROM {s}.notices WHERE ctid {EQ} ANY (ARRAY (
                 SELECT ctid FROM {s}.notices
                 WHERE pipeline {EQ} $1 AND due_at {LE} pg_catalog.now() AND count {EQ} 0
                 ORDER BY due_at))"
        );
        tx.execute_typed(&told, &[(pipeline, Type::TEXT)]).await?;
        let sql = format!(
            "SELECT type, endpoint, account, detail, count,
                    (extract(epoch FROM first_at) {TIMES} 1000000)::bigint,
                    (extract(epoch FROM last_at) {TIMES} 1000000)::bigint, attempts
             FROM (SELECT * FROM {s}.notices
                   WHERE pipeline {EQ} $1 AND due_at {LE} pg_catalog.now() AND count {GT} 0
                   ORDER BY due_at LIMIT {COMPARED}) n
             ORDER BY due_at, last_at LIMIT 1"
        );
        let row = tx.query_typed_opt(&sql, &[(pipeline, Type::TEXT)]).await?;
        tx.commit().await?;
        let Some(row) = row else { return Ok(None) };
        let attempts: i32 = row.try_get(7)?;
        Ok(Some(DueNotice {
            kind: row.try_get(0)?,
            endpoint: text::get(&row, 1)?,
            account: text::get_opt(&row, 2)?,
            detail: text::get(&row, 3)?,
            count: row.try_get(4)?,
            first_us: row.try_get(5)?,
            last_us: row.try_get(6)?,
            attempts: u32::try_from(attempts).map_err(unreadable("notices.attempts"))?,
        }))
    }

    /// The notice was taken, or is given up: what it told is taken off its count. What happened since
    /// is told after [`PAUSE`].
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn end_notice(&mut self, notice: &DueNotice) -> Result<(), StateError> {
        self.set_notice(notice, Turn { told: notice.count, attempts: 0, wait: PAUSE }).await
    }

    /// The notice was not taken in so many attempts: it is due again after `wait`.
    ///
    /// # Errors
    /// [`StateError::Fenced`], [`StateError::Sql`].
    pub async fn put_notice_off(
        &mut self,
        notice: &DueNotice,
        attempts: u32,
        wait: Duration,
    ) -> Result<(), StateError> {
        self.set_notice(notice, Turn { told: 0, attempts, wait }).await
    }

    async fn set_notice(&mut self, notice: &DueNotice, turn: Turn) -> Result<(), StateError> {
        let epoch = self.led_epoch()?;
        let Scope { s, pipeline, .. } = &self.scope;
        let tx = self.connection.transaction().await?;
        fence(&tx, &self.scope, epoch).await?;
        let sql = format!(
            "UPDATE {s}.notices SET count = count {MINUS} $4, attempts = $5,
                    first_at = CASE WHEN $4 {GT} 0 THEN last_at ELSE first_at END,
                    due_at = pg_catalog.now() {PLUS} {}
             WHERE ctid {EQ} {}",
            interval("$6"),
            key::row(s, "notices", "ctid", "endpoint, type", "$2, $3")
        );
        let attempts = i32::try_from(turn.attempts).unwrap_or(i32::MAX);
        let wait_us = i64::try_from(micros(turn.wait)).unwrap_or(i64::MAX);
        let params: [Param<'_>; 6] = [
            (pipeline, Type::TEXT),
            (&notice.endpoint, Type::TEXT),
            (&notice.kind, Type::TEXT),
            (&turn.told, Type::INT8),
            (&attempts, Type::INT4),
            (&wait_us, Type::INT8),
        ];
        tx.execute_typed(&sql, &params).await?;
        Ok(tx.commit().await?)
    }
}

/// What becomes of a notice after an attempt.
struct Turn {
    /// How much of its count is told.
    told: i64,
    /// Attempts at what is not.
    attempts: u32,
    /// Until it is due.
    wait: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;
    use walhook_core::event::{AccountId, EndpointId};
    use walhook_core::lsn::Lsn;
    use walhook_core::notice::{Notice, NoticeKind};
    use walhook_core::persist::PersistBatch;
    use walhook_postgres::ident::quote_ident;

    fn batch(kind: NoticeKind, detail: &str, count: u64) -> PersistBatch {
        let (endpoint, account) = (EndpointId::new("7"), Some(AccountId::new("42")));
        let notice = Notice { kind, endpoint, account, detail: detail.to_owned(), count };
        PersistBatch { frontier: Lsn(0x100), notices: vec![notice], ..PersistBatch::default() }
    }

    #[tokio::test]
    async fn notice_counts_what_happens_until_it_is_told_and_pauses_then() {
        let fixture = Fixture::start().await;
        let mut store = fixture.open().await;
        assert!(matches!(store.next_notice().await, Err(StateError::Fenced { .. })));
        store.take_lease("one").await.unwrap();
        let kind = NoticeKind::DeliveryExhausted;
        assert_eq!(store.next_notice().await.unwrap(), None);
        store.persist(&batch(kind, "status 500\0", 3)).await.unwrap();
        let first = store.next_notice().await.unwrap().unwrap();
        assert_eq!((&*first.kind, &*first.endpoint, first.count), ("delivery.exhausted", "7", 3));
        assert_eq!(first.account.as_deref(), Some("42"));
        assert_eq!(first.first_us, first.last_us);

        // Not taken: it is due later, and what happens meanwhile is added.
        store.put_notice_off(&first, 1, Duration::from_secs(3_600)).await.unwrap();
        assert_eq!(store.next_notice().await.unwrap(), None);
        store.persist(&batch(kind, "status 502", 4)).await.unwrap();
        let s = quote_ident(crate::fixture::SCHEMA);
        let hurry = format!("UPDATE {s}.notices SET due_at = now()");
        fixture.admin.batch_execute(&hurry).await.unwrap();
        let more = store.next_notice().await.unwrap().unwrap();
        assert_eq!((more.count, &*more.detail, more.attempts), (7, "status 502", 1));
        assert!(more.first_us == first.first_us && more.last_us > first.last_us);

        // Taken, while it happened once more: that waits for the end of the pause.
        store.persist(&batch(kind, "status 503", 1)).await.unwrap();
        store.end_notice(&more).await.unwrap();
        assert_eq!(store.next_notice().await.unwrap(), None);
        fixture.admin.batch_execute(&hurry).await.unwrap();
        let rest = store.next_notice().await.unwrap().unwrap();
        assert_eq!((rest.count, rest.attempts), (1, 0));
        store.end_notice(&rest).await.unwrap();

        // Told, the row holds the next one back, and then goes.
        assert_eq!((store.next_notice().await.unwrap(), fixture.count("notices").await), (None, 1));
        fixture.admin.batch_execute(&hurry).await.unwrap();
        assert_eq!((store.next_notice().await.unwrap(), fixture.count("notices").await), (None, 0));

        fixture.open().await.take_lease("two").await.unwrap();
        assert!(matches!(
            store.end_notice(&rest).await,
            Err(StateError::Fenced { epoch: Some(walhook_core::id::Epoch(1)) })
        ));
    }
}
