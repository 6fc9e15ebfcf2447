//! Deferred rows: stored, read back, retimed, resolved, dead, purged.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::super::fixture::{Fixture, SCHEMA, dead, defer, event, queue, row_id, tried};
use super::batch;
use crate::persist::Led;
use crate::persist::new_pages::Split;
use crate::{DeadLetterFilter, StateError, StateStore, persist};
use walhook_core::event::Event;
use walhook_core::id::Epoch;
use walhook_core::persist::{
    BacklogRow, Blocked, Defer, GapChange, PersistBatch, Purge, Refill, RowKey, Tried,
};
use walhook_postgres::fix::Failure;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::sql::Connection;

fn all(endpoint: &str) -> Refill {
    Refill { queue: queue(endpoint), from: None, rows: 100, bytes: u64::MAX }
}

/// The commit LSNs of the rows of an endpoint's queue, and whether these are all.
async fn page(store: &StateStore, refill: Refill) -> (Vec<u64>, bool) {
    let answer = store.refill(&[refill]).await.unwrap().remove(0);
    let commits = answer.rows.iter().map(|row| row.event.position.commit_lsn().0).collect();
    (commits, answer.end)
}

pub(super) async fn leader(fixture: &Fixture) -> StateStore {
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store
}

pub(super) fn deferring(rows: impl IntoIterator<Item = Defer>) -> PersistBatch {
    PersistBatch { deferred: rows.into_iter().collect(), ..batch(0x100) }
}

#[tokio::test]
async fn deferred_row_comes_back_as_it_was_also_when_it_was_stored_twice() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let one = event(0x210, "1");
    let untried = Defer { tried: Tried::default(), ..defer(&event(0x220, "1"), "7") };
    let stored = deferring([defer(&one, "7"), untried, defer(&one, "8")]);
    store.persist(&stored).await.unwrap();
    store.persist(&stored).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (3, 2));

    let answer = store.refill(&[all("7"), all("none"), all("8")]).await.unwrap();
    let [seven, none, eight] = &answer[..] else { panic!("{answer:?}") };
    assert!(none.rows.is_empty() && none.end && seven.end && eight.rows.len() == 1);
    let [first, second] = &seven.rows[..] else { panic!("{seven:?}") };
    assert_eq!((&*first.event, &first.key), (&*one, &row_id(&one, "7").key));
    assert_eq!((first.attempts, first.first_attempt_us), (1, tried(1).first_attempt_us));
    assert_eq!(first.due_us, tried(1).due_us);
    assert_eq!((second.attempts, second.first_attempt_us, second.due_us), (0, None, None));
    assert!(store.refill(&[]).await.unwrap().is_empty());
}

/// Lets each COMMIT wait for a standby that is not there, or lets those that wait go on.
async fn wait_for_standby(fixture: &Fixture, wait: bool) {
    let names = if wait { "nobody" } else { "" };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
    fixture.admin.batch_execute(&set).await.unwrap();
    fixture.admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    while commits_wait(fixture).await != wait {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a COMMIT waits now. What sessions show of the setting does not tell: the checkpointer decides, and reads
/// it in its own time.
async fn commits_wait(fixture: &Fixture) -> bool {
    let probe = Connection::open(&fixture.url, "probe").await.unwrap();
    let mut commit = pin!(probe.batch_execute("SELECT pg_logical_emit_message(true, 'probe', '')"));
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE application_name LIKE '%probe' AND wait_event = 'SyncRep'";
    loop {
        tokio::select! {
            biased;
            committed = &mut commit => return committed.is_err(),
            ended = fixture.admin.query(end, &[]) => assert!(ended.unwrap().len() <= 1),
        }
    }
}

/// Stores a batch that commits, and whose session ends before that is answered.
async fn persist_unanswered(fixture: &Fixture, store: &mut StateStore, batch: &PersistBatch) {
    wait_for_standby(fixture, true).await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let kill = async {
        while fixture.admin.query(end, &[]).await.unwrap().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let (stored, ()) = tokio::join!(store.persist(batch), kill);
    assert!(stored.unwrap_err().fixed_by().is_waiting());
    wait_for_standby(fixture, false).await;
    store.reconnect().await.unwrap();
}

#[tokio::test]
async fn batch_whose_commit_was_not_answered_brings_nothing_back_that_was_removed_since() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let (one, two) = (event(0x210, "1"), event(0x220, "1"));
    let stored = PersistBatch {
        deferred: vec![defer(&one, "7"), defer(&two, "7")],
        dead_letters: vec![dead(&one, "8"), dead(&two, "8")],
        number: 3,
        ..batch(0x200)
    };
    persist_unanswered(&fixture, &mut store, &stored).await;
    // An operator discards some of it.
    let s = quote_ident(SCHEMA);
    for table in ["deferred", "dead_letters"] {
        let discard = format!("DELETE FROM {s}.{table} WHERE event_id = $1");
        fixture.admin.execute(&discard, &[&one.id.to_string()]).await.unwrap();
    }
    // Nor when the answer is lost once more.
    persist_unanswered(&fixture, &mut store, &stored).await;
    store.persist(&stored).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("dead_letters").await), (1, 1));
    assert_eq!(page(&store, all("7")).await, (vec![0x220], true));

    // What follows is stored.
    let next = PersistBatch { deferred: vec![defer(&one, "9")], number: 4, ..batch(0x300) };
    store.persist(&next).await.unwrap();
    assert_eq!(fixture.count("deferred").await, 2);
}

#[tokio::test]
async fn batch_of_the_next_leader_is_stored_although_one_of_its_number_was_not_answered() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    persist_unanswered(&fixture, &mut store, &PersistBatch { number: 1, ..batch(0x100) }).await;
    store.take_lease("host:2").await.unwrap();
    let first = PersistBatch { number: 1, ..deferring([defer(&event(0x210, "1"), "7")]) };
    store.persist(&first).await.unwrap();
    assert_eq!(fixture.count("deferred").await, 1);
}

#[tokio::test]
async fn batch_that_did_not_commit_is_stored_whole_when_it_is_tried_again() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let stored = PersistBatch { number: 3, ..deferring([defer(&event(0x210, "1"), "7")]) };
    // Another one's COMMIT is what was not answered.
    let before = PersistBatch { number: 2, ..batch(0x100) };
    persist_unanswered(&fixture, &mut store, &before).await;
    store.persist(&before).await.unwrap();
    let s = quote_ident(SCHEMA);
    let lock = format!("BEGIN; LOCK {s}.deferred IN ACCESS EXCLUSIVE MODE");
    fixture.admin.batch_execute(&lock).await.unwrap();
    let timed_out = timeout(Duration::from_millis(300), store.persist(&stored)).await;
    assert!(timed_out.is_err(), "it waits for the lock");
    store.reconnect().await.unwrap();
    fixture.admin.batch_execute("ROLLBACK").await.unwrap();
    store.persist(&stored).await.unwrap();
    assert_eq!(fixture.count("deferred").await, 1);
}

#[tokio::test]
async fn refill_pages_through_each_queue_in_stream_order() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    // By commit, in an order in which they were not inserted; beyond 2^63 too.
    let last = u64::MAX - 1;
    let rows = [0x500, 0x90, last, 0x210, 0x1000].map(|commit| defer(&event(commit, "1"), "7"));
    let other = Defer { ..defer(&event(0x100, "2"), "7") };
    store.persist(&deferring(rows.into_iter().chain([other]))).await.unwrap();
    assert_eq!(page(&store, all("7")).await, (vec![0x90, 0x210, 0x500, 0x1000, last], true));

    let two = Refill { rows: 2, ..all("7") };
    assert_eq!(page(&store, two.clone()).await, (vec![0x90, 0x210], false));
    let key = |commit: u64| row_id(&event(commit, "1"), "7").key;
    let from = |key: RowKey| Refill { from: Some(key), ..two.clone() };
    assert_eq!(page(&store, from(key(0x210))).await, (vec![0x210, 0x500], false), "from is in it");
    assert_eq!(page(&store, from(key(0x210).successor())).await, (vec![0x500, 0x1000], false));
    assert_eq!(page(&store, from(key(0x1000).successor())).await, (vec![last], true));
    assert_eq!(page(&store, from(key(last).successor())).await, (vec![], true));

    // By bytes, but never nothing.
    let size = u64::try_from(event(1, "1").row.len()).unwrap();
    for (bytes, rows) in [(0, 1), (2 * size - 1, 1), (2 * size, 2), (5 * size, 5)] {
        let (commits, end) = page(&store, Refill { bytes, ..all("7") }).await;
        assert_eq!((commits.len(), end), (rows, rows == 5), "{bytes} bytes");
    }
    let both = store.refill(&[Refill { rows: 1, ..all("7") }, all("7")]).await.unwrap();
    assert_eq!((both[0].rows.len(), both[1].rows.len()), (1, 5), "each has its own limit");
}

#[tokio::test]
async fn retimed_row_keeps_its_last_ten_attempts_and_counts_each_once() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let one = event(0x210, "1");
    store.persist(&deferring([defer(&one, "7")])).await.unwrap();
    for attempts in 2..=12 {
        let retimed = vec![(row_id(&one, "7"), tried(attempts))];
        let retimed = PersistBatch { retimed, ..batch(0x100) };
        store.persist(&retimed).await.unwrap();
        store.persist(&retimed).await.unwrap();
    }
    let row = store.refill(&[all("7")]).await.unwrap().remove(0).rows.remove(0);
    assert_eq!((row.attempts, row.due_us), (12, tried(12).due_us));

    let letter = walhook_core::persist::DeadLetter {
        attempts: 13,
        history: tried(13).history,
        ..dead(&one, "7")
    };
    let died = PersistBatch { died: vec![(row_id(&one, "7"), letter)], ..batch(0x100) };
    store.persist(&died).await.unwrap();
    store.persist(&died).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (0, 1));
    let letters = store.dead_letters(&DeadLetterFilter::default(), 0, 9).await.unwrap();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.attempts, letter.event.id), (13, one.id));
    let told: Vec<&str> = letter.history.iter().map(|attempt| attempt.error.as_str()).collect();
    let expected: Vec<String> = (4..=13).map(|n| format!("attempt {n}\u{fffd}")).collect();
    assert_eq!(told, expected);
    assert_eq!((letter.history[9].status, letter.history[9].latency_ms), (Some(503), 12));
    assert_eq!(letter.history[9].at, "2025-11-23T17:46:00.000013Z");
}

#[tokio::test]
async fn body_lives_as_long_as_a_row_or_a_dead_letter_needs_it() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let events: Vec<Arc<Event>> = (1..=4).map(|n| event(0x100 * n, "1")).collect();
    let [one, two, three, four] = &events[..] else { panic!() };
    let rows = [(one, "7"), (one, "8"), (two, "7"), (three, "7"), (four, "7")];
    let stored = PersistBatch {
        dead_letters: vec![dead(two, "9")],
        ..deferring(rows.map(|(event, endpoint)| defer(event, endpoint)))
    };
    store.persist(&stored).await.unwrap();
    let resolve = |rows: &[(&Arc<Event>, &str)]| PersistBatch {
        resolved: rows.iter().map(|(event, endpoint)| row_id(event, endpoint)).collect(),
        ..batch(0x100)
    };
    // One is needed by 8, two by a letter, and three by a letter that arrives in the same batch.
    let first = PersistBatch {
        dead_letters: vec![dead(three, "9")],
        ..resolve(&[(one, "7"), (two, "7"), (three, "7"), (four, "7")])
    };
    store.persist(&first).await.unwrap();
    store.persist(&first).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (1, 3));
    let letters = DeadLetterFilter::default();
    assert_eq!(fixture.open().await.discard_dead_letters(&letters).await.unwrap(), 2);
    assert_eq!(fixture.count("bodies").await, 1, "the row's body stays when letters go");
    store.persist(&resolve(&[(one, "8")])).await.unwrap();
    assert_eq!(fixture.count("bodies").await, 0);

    // In one batch: inserted and resolved.
    let at_once = PersistBatch { resolved: vec![row_id(one, "7")], ..deferring([defer(one, "7")]) };
    store.persist(&at_once).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (0, 0));
}

#[tokio::test]
async fn backlog_is_there_for_the_next_leader() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let keys = BacklogRow {
        queue: queue("7"),
        blocked: Blocked::Keys(vec![1, u64::MAX]),
        rows: 2,
        failing_since_us: Some(1_763_919_960_000_001),
        stopped_us: 5,
        open_until_us: None,
    };
    let all = BacklogRow {
        queue: queue("8"),
        blocked: Blocked::All,
        open_until_us: Some(1_763_919_960_000_002),
        ..keys.clone()
    };
    let stored = PersistBatch { backlog: vec![keys.clone(), all.clone()], ..batch(0x100) };
    store.persist(&stored).await.unwrap();
    store.persist(&stored).await.unwrap();
    let start = fixture.open().await.take_lease("two").await.unwrap().start;
    assert_eq!(start.backlog, [keys.clone(), all]);
    // And since when nobody has sent anything.
    let stood_us = start.unix_us_at_zero - start.written_us.unwrap();
    assert!((1..60_000_000).contains(&stood_us), "{stood_us}");

    store.take_lease("three").await.unwrap();
    let fewer = BacklogRow { rows: 1, blocked: Blocked::Keys(vec![]), ..keys };
    let next = PersistBatch {
        backlog: vec![fewer.clone()],
        backlog_gone: vec![queue("8"), queue("none")],
        ..batch(0x100)
    };
    store.persist(&next).await.unwrap();
    assert_eq!(store.take_lease("three").await.unwrap().start.backlog, [fewer]);
}

#[tokio::test]
async fn fenced_leader_defers_nothing() {
    let fixture = Fixture::start().await;
    let mut old = leader(&fixture).await;
    let mut new = fixture.open().await;
    // The bump is under way when the old leader writes.
    let tx = new.connection.transaction().await.unwrap();
    let bump = format!("UPDATE {}.lease SET epoch = epoch + 1", quote_ident(SCHEMA));
    tx.batch_execute(&bump).await.unwrap();
    let late = PersistBatch {
        backlog: vec![BacklogRow {
            queue: queue("7"),
            blocked: Blocked::All,
            rows: 1,
            failing_since_us: None,
            stopped_us: 0,
            open_until_us: None,
        }],
        ..deferring([defer(&event(0x210, "1"), "7")])
    };
    let let_go = async {
        super::until_somebody_waits(&fixture).await;
        tx.commit().await.unwrap();
    };
    let (result, ()) = futures_util::join!(old.persist(&late), let_go);
    assert!(matches!(result, Err(StateError::Fenced { epoch: Some(Epoch(1)) })));
    for table in ["deferred", "bodies", "backlog"] {
        assert_eq!(fixture.count(table).await, 0, "{table}");
    }
}

#[tokio::test]
async fn event_with_many_endpoints_costs_each_delivery_no_more_than_one_with_few() {
    const ENDPOINTS: u64 = 2_000;
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let one = event(0x210, "1");
    let rows = (0..ENDPOINTS).map(|n| defer(&one, &n.to_string()));
    store.persist(&deferring(rows)).await.unwrap();
    let resolved = (0..40).map(|n| row_id(&one, &n.to_string())).collect();
    let changes = PersistBatch { resolved, ..batch(0x100) };
    let tx = store.connection.transaction().await.unwrap();
    let split = Split::rows(&changes);
    let led = Led { epoch: Epoch(1), last: None };
    persist::write(&tx, &store.scope, led, &changes, &split, None).await.unwrap();
    let read: i64 = tx.query_typed_one(ROWS_READ, &[]).await.unwrap().get(0);
    assert!((80..500).contains(&read), "40 rows of {ENDPOINTS} of one event took {read}");
    tx.commit().await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (1_960, 1));
}

/// Rows and index entries that this session's transaction has looked at.
const ROWS_READ: &str = "SELECT sum(pg_stat_get_xact_tuples_returned(c.oid)
           + pg_stat_get_xact_tuples_fetched(c.oid))::int8
    FROM pg_class c WHERE relname ~ '^(deferred|bodies|dead_letters)'";

#[tokio::test]
async fn work_is_proportional_to_the_batch_also_by_statistics_of_an_empty_table() {
    const ROWS: u64 = 2_000;
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let s = quote_ident(SCHEMA);
    let fill = |from| deferring((from..from + ROWS).map(|n| defer(&event(0x100 + n, "1"), "7")));
    store.persist(&fill(0)).await.unwrap();
    // Pages without rows: a table that was drained. To the planner, any walk over it is short.
    fixture
        .admin
        .batch_execute(&format!("DELETE FROM {s}.deferred; DELETE FROM {s}.bodies"))
        .await
        .unwrap();
    for table in ["deferred", "bodies", "dead_letters"] {
        let vacuum = format!("VACUUM (ANALYZE, TRUNCATE off) {s}.{table}");
        fixture.admin.batch_execute(&vacuum).await.unwrap();
    }
    store.persist(&fill(ROWS)).await.unwrap();

    // Statements of the test's own transaction, as `persist` sends them.
    store.connection.batch_execute("BEGIN").await.unwrap();
    let (commits, end) = page(&store, Refill { rows: 10, ..all("7") }).await;
    assert_eq!((commits.len(), end), (10, false));
    let read = store.connection.query_typed_one(ROWS_READ, &[]).await;
    let read: i64 = read.unwrap().get(0);
    assert!((10..100).contains(&read), "10 rows of {ROWS} took {read}");
    store.connection.batch_execute("ROLLBACK").await.unwrap();

    let some: Vec<Arc<Event>> = (0..100).map(|n| event(0x100 + ROWS + 10 * n, "1")).collect();
    let id = |event: &Arc<Event>| row_id(event, "7");
    let changes = PersistBatch {
        resolved: some.iter().take(40).map(id).collect(),
        retimed: some.iter().skip(40).take(30).map(|e| (id(e), tried(2))).collect(),
        died: some.iter().skip(70).map(|e| (id(e), dead(e, "7"))).collect(),
        gaps: vec![GapChange {
            queue: queue("7"),
            opens: Some("full".into()),
            skipped: 0,
            span: None,
            growing: true,
        }],
        purges: vec![Purge { queue: queue("7"), rows: 100 }],
        ..batch(0x100)
    };
    let tx = store.connection.transaction().await.unwrap();
    let split = Split::rows(&changes);
    let led = Led { epoch: Epoch(1), last: None };
    persist::write(&tx, &store.scope, led, &changes, &split, None).await.unwrap();
    let read = tx.query_typed_one(ROWS_READ, &[]).await;
    let read: i64 = read.unwrap().get(0);
    assert!((200..3_000).contains(&read), "200 rows of {ROWS} took {read}");
}
