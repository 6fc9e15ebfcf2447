//! Deferred rows that somebody discards: told in the log, and counted no more.

use super::super::fixture::{Fixture, SCHEMA, defer, event, queue};
use super::deferred::{deferring, leader};
use crate::{Changed, DeferredCursor, DeferredFilter, DeliveryFilter, Logged, StateStore};
use walhook_core::attempt::Asked;
use walhook_core::delivery_log::What;
use walhook_core::id::ReplayId;
use walhook_core::persist::{BacklogRow, Blocked, Defer, PersistBatch, RowId, RowKey};
use walhook_postgres::ident::quote_ident;

/// Discards all that is deferred, and logs it at `log_at_us`, where that is given.
async fn discard_all(store: &mut StateStore, log_at_us: Option<i64>) -> Changed {
    let (any, begin) = (DeferredFilter::default(), DeferredCursor::default());
    let gone = store.discard_deferred(None, &any, &begin, log_at_us).await.unwrap();
    gone.expect("something is deferred").commit().await.unwrap()
}

#[tokio::test]
async fn discarded_row_is_a_line_of_the_log_unless_that_takes_none() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let (one, two) = (event(0x210, "1"), event(0x220, "2"));
    let replayed = defer(&one, "8");
    let key = RowKey { replay: Some(ReplayId(4)), ..replayed.id.key.clone() };
    let replayed = Defer { id: RowId { key, ..replayed.id.clone() }, ..replayed };
    let rows = [defer(&one, "7"), defer(&two, "7"), replayed];
    store.persist(&deferring(rows.clone())).await.unwrap();
    let gone = discard_all(&mut store, Some(9)).await;
    assert_eq!((gone.rows.len(), gone.logged), (3, Logged { stored: 3, dropped: 0 }));
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (0, 0));
    let lines = store.story(one.id, 9).await.unwrap();
    let [stream, replay] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((stream.what, &*stream.endpoint, stream.at_us), (What::Discarded, "7", 9));
    assert_eq!((&*stream.account, &*stream.event_type), ("1", &*one.event_type));
    let commit = (stream.commit_lsn, stream.committed_us);
    assert_eq!(commit, (one.position.commit_lsn(), one.commit_time_us));
    assert_eq!((stream.asked, replay.asked), (None, Some(Asked::Replay(ReplayId(4)))));
    let dropped = DeliveryFilter { outcome: Some("dropped".into()), ..DeliveryFilter::default() };
    let counts = store.count_deliveries(&dropped).await.unwrap();
    assert_eq!(counts.values().map(|count| count.lines).sum::<u64>(), 3);

    // Nobody wants lines, or nobody takes them: the rows go all the same.
    store.persist(&PersistBatch { number: 2, ..deferring(rows.clone()) }).await.unwrap();
    let gone = discard_all(&mut store, None).await;
    assert_eq!((gone.rows.len(), gone.logged), (3, Logged::default()));
    store.persist(&PersistBatch { number: 3, ..deferring(rows) }).await.unwrap();
    let s = quote_ident(SCHEMA);
    fixture
        .admin
        .batch_execute(&format!("ALTER TABLE {s}.delivery_log RENAME TO x"))
        .await
        .unwrap();
    let gone = discard_all(&mut store, Some(9)).await;
    assert_eq!((gone.rows.len(), gone.logged), (3, Logged { stored: 0, dropped: 3 }));
    assert_eq!(fixture.count("deferred").await, 0);
}

#[tokio::test]
async fn discarded_rows_are_counted_no_more_by_the_transaction_that_removes_them() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let backlog = |endpoint: &str, rows| BacklogRow {
        queue: queue(endpoint),
        blocked: Blocked::All,
        rows,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    };
    let (one, two) = (event(0x210, "1"), event(0x220, "1"));
    let rows = [defer(&one, "7"), defer(&two, "7"), defer(&one, "8")];
    // Of one queue more is counted than there is: no other leader makes the number negative.
    let counted = vec![backlog("7", 2), backlog("8", 0), backlog("9", 5)];
    let batch = PersistBatch { backlog: counted, ..deferring(rows) };
    store.persist(&batch).await.unwrap();
    let holds = async |store: &StateStore| -> Vec<String> {
        let held = store.holders().await.unwrap();
        held.into_iter().map(|holder| holder.queue.endpoint.to_string()).collect()
    };
    assert_eq!(holds(&store).await, ["7"], "of 9 there is a count, and no row");
    let filter =
        DeferredFilter { ids: Some(vec![two.id.to_string()]), ..DeferredFilter::default() };
    let begin = DeferredCursor::default();
    let gone = store.discard_deferred(None, &filter, &begin, None).await.unwrap().unwrap();
    let gone = gone.commit().await.unwrap();
    assert_eq!(gone.rows.len(), 1);
    // The leader is lost before it hears of it.
    let counts = async |store: &mut StateStore, holder: &str| -> Vec<(String, u64)> {
        let start = store.take_lease(holder).await.unwrap().start;
        let rows = start.backlog.into_iter();
        rows.map(|row| (row.queue.endpoint.to_string(), row.rows)).collect()
    };
    let expected = |rows: [(&str, u64); 3]| rows.map(|(name, n)| (name.to_owned(), n)).to_vec();
    assert_eq!(counts(&mut store, "two").await, expected([("7", 1), ("8", 0), ("9", 5)]));
    let any = DeferredFilter::default();
    let gone = store.discard_deferred(None, &any, &begin, None).await.unwrap().unwrap();
    gone.commit().await.unwrap();
    assert_eq!(counts(&mut store, "three").await, expected([("7", 0), ("8", 0), ("9", 5)]));
    assert_eq!(holds(&store).await, [""; 0]);
}

#[tokio::test]
async fn rows_whose_discard_is_not_committed_stay_and_are_counted() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    store.persist(&deferring([defer(&event(0x210, "1"), "7")])).await.unwrap();
    let (any, begin) = (DeferredFilter::default(), DeferredCursor::default());
    let gone = store.discard_deferred(None, &any, &begin, None).await.unwrap().unwrap();
    assert_eq!(gone.change().rows.len(), 1);
    drop(gone);
    assert_eq!(store.count_deferred(&any).await.unwrap(), 1);
}
