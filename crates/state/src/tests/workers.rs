//! The table of workers: who writes it, and what is left of it after a crash and on a standby.

use super::*;
use crate::fixture::StopMode;

fn worker(session: &str, state: &str, since_us: i64) -> WorkerRow {
    WorkerRow {
        session: session.to_owned(),
        host: "worker-1 pid 7".to_owned(),
        build: "0.1.0".to_owned(),
        state: state.to_owned(),
        slots: 1_280,
        in_flight: 3,
        lost: 1,
        since_us,
        seen_us: 1_700_000_000_000_000,
    }
}

/// The workers, without their age.
async fn known(store: &StateStore) -> Vec<WorkerRow> {
    let seen = store.workers().await.unwrap().expect("no standby");
    assert!(seen.iter().all(|seen| seen.seen_seconds > 0.0), "{seen:?}");
    seen.into_iter().map(|seen| seen.worker).collect()
}

#[tokio::test]
async fn workers_are_those_that_the_last_leader_has_stored() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    let refused = store.store_workers(&[]).await.unwrap_err();
    assert!(matches!(refused, StateError::Fenced { epoch: None }), "{refused}");
    store.take_lease("one").await.unwrap();
    let (old, new) = (worker("b", "serving", 1), worker("a", "quarantined", 2));
    store.store_workers(&[new.clone(), old.clone()]).await.unwrap();
    assert_eq!(known(&store).await, [old.clone(), new], "the longest in its state first");
    store.store_workers(&[old.clone(), old.clone()]).await.unwrap();
    assert_eq!(
        known(&store).await,
        std::slice::from_ref(&old),
        "in the place of those before, each once"
    );

    // Who was overtaken writes nothing, and what he left is not shown.
    let mut next = fixture.open().await;
    let (minute, past) = (Duration::from_secs(60), Duration::from_secs(1 << 31));
    next.take_lease("two").await.unwrap();
    assert_eq!(known(&next).await, []);
    assert_eq!(next.sessions_of_workers(past).await.unwrap(), ["b"], "whoever leads next asks it");
    assert_eq!(next.sessions_of_workers(minute).await.unwrap(), [""; 0], "but not after long");
    let late = store.store_workers(&[]).await.unwrap_err();
    assert!(matches!(late, StateError::Fenced { epoch: Some(Epoch(1)) }), "{late}");
    next.store_workers(std::slice::from_ref(&old)).await.unwrap();
    assert_eq!((known(&store).await, fixture.count("workers").await), (vec![old], 1));
}

#[tokio::test]
async fn workers_say_of_themselves_no_more_than_a_row_may_hold() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let loud = WorkerRow {
        host: format!("\0{}", "é".repeat(100_000)),
        slots: u64::MAX,
        ..worker("a", "serving", 1)
    };
    let many: Vec<_> = (0..2_000).map(|n| worker(&format!("b{n:04}"), "serving", 2)).collect();
    store.store_workers(&[&[loud][..], &many].concat()).await.unwrap();
    let stored = known(&store).await;
    assert_eq!((stored.len(), stored[0].host.chars().count()), (1_024, 256));
    assert!(stored[0].host.starts_with("\u{fffd}é") && stored[0].slots == i64::MAX.cast_unsigned());
}

/// What it says then is not true anyway; and what must not be lost is not.
#[tokio::test]
async fn workers_are_forgotten_by_a_crash_of_the_server_and_stored_again_in_the_next_session() {
    let mut fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.persist(&batch(0x200)).await.unwrap();
    let workers = [worker("a", "serving", 1)];
    store.store_workers(&workers).await.unwrap();
    fixture.cluster.stop(StopMode::Immediate).await.unwrap();
    fixture.cluster.start_again().await.unwrap();
    assert!(store.store_workers(&workers).await.is_err(), "the session went with the server");
    store.reconnect().await.unwrap();
    assert_eq!(known(&store).await, []);
    assert_eq!(store.frontier().await.unwrap(), Lsn(0x200));
    store.store_workers(&workers).await.unwrap();
    assert_eq!(known(&store).await, workers);
}

#[tokio::test]
async fn workers_are_not_known_on_a_standby_and_the_rest_is() {
    let mut fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.store_workers(&[worker("a", "serving", 1)]).await.unwrap();
    fixture.cluster.stop(StopMode::Fast).await.unwrap();
    // Without anybody to follow, but in recovery.
    std::fs::write(fixture.cluster.data().join("standby.signal"), "").unwrap();
    fixture.cluster.start_again().await.unwrap();
    let reader = fixture.open().await;
    assert_eq!(reader.workers().await.unwrap(), None);
    assert_eq!(reader.overview().await.unwrap().holder.as_deref(), Some("one"));
    // A server that is a primary again has begun with an empty table.
    fixture.admin = reopened(&fixture.url).await;
    fixture.admin.query_one("SELECT pg_promote()", &[]).await.unwrap();
    store.reconnect().await.unwrap();
    assert_eq!(known(&store).await, []);
}

async fn reopened(url: &Secret) -> walhook_postgres::sql::Connection {
    walhook_postgres::sql::Connection::open(url, "test").await.unwrap()
}
