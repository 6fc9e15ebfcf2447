//! Events without an endpoint: stored, read back, routed, given up.

use std::sync::Arc;

use super::super::fixture::{Fixture, SCHEMA, defer, event, range, row_id};
use super::batch;
use crate::StateStore;
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    EventKey, Joined, PersistBatch, Routed, UnroutedAccount, UnroutedKey, UnroutedPurge,
    UnroutedPurged, UnroutedRefill,
};
use walhook_core::replay::{ReplayFilter, ReplayRange};
use walhook_postgres::ident::quote_ident;

fn account(rows: u64) -> UnroutedAccount {
    UnroutedAccount { account: AccountId::new("1"), rows, settled: vec![range(0x230, 0x240)] }
}

fn storing(events: &[Arc<Event>]) -> PersistBatch {
    let unrouted_accounts = vec![account(events.len() as u64)];
    PersistBatch { unrouted: events.to_vec(), unrouted_accounts, ..batch(0x100) }
}

fn routed(event: &Event, to: Option<&str>) -> Routed {
    let row = UnroutedKey { account: event.account.clone(), event: EventKey::of(event) };
    Routed { row, to: to.map(EndpointId::new) }
}

fn all(account: &str) -> UnroutedRefill {
    UnroutedRefill { account: AccountId::new(account), after: None, rows: 100, bytes: u64::MAX }
}

async fn leader(fixture: &Fixture) -> StateStore {
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store
}

/// The commit LSNs of an account's rows, how far each was routed, and whether these are all.
async fn page(store: &StateStore, refill: UnroutedRefill) -> (Vec<(u64, Option<String>)>, bool) {
    let answer = store.unrouted(&[refill]).await.unwrap().remove(0);
    let row = |row: &walhook_core::persist::Unrouted| {
        (row.event.position.commit_lsn().0, row.routed_to.as_ref().map(ToString::to_string))
    };
    (answer.rows.iter().map(row).collect(), answer.end)
}

#[tokio::test]
async fn unrouted_event_comes_back_as_it_was_also_when_it_was_stored_twice() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let last = u64::MAX - 1;
    let events = [0x500, 0x90, last, 0x210].map(|commit| event(commit, "1"));
    let other = event(0x100, "2");
    let stored = [&events[..], &[Arc::clone(&other)]].concat();
    store.persist(&storing(&stored)).await.unwrap();
    store.persist(&storing(&stored)).await.unwrap();
    assert_eq!((fixture.count("unrouted").await, fixture.count("bodies").await), (5, 0));

    let pages = store.unrouted(&[all("1"), all("none"), all("2")]).await.unwrap();
    let [one, none, two] = &pages[..] else { panic!("{pages:?}") };
    assert!(none.rows.is_empty() && none.end && one.end && two.end);
    assert_eq!((&*two.rows[0].event, &two.rows[0].routed_to), (&*other, &None));
    assert_eq!(&*one.rows[0].event, &*events[1]);
    let commits = |page: Vec<(u64, Option<String>)>| {
        page.into_iter().map(|(commit, _)| commit).collect::<Vec<_>>()
    };
    let (rows, end) = page(&store, UnroutedRefill { rows: 2, ..all("1") }).await;
    assert_eq!((commits(rows), end), (vec![0x90, 0x210], false));
    let after = Some(EventKey::of(&event(0x210, "1")));
    let (rows, end) = page(&store, UnroutedRefill { after, ..all("1") }).await;
    assert_eq!((commits(rows), end), (vec![0x500, last], true));
    let (rows, end) = page(&store, UnroutedRefill { bytes: 0, ..all("1") }).await;
    assert_eq!((commits(rows), end), (vec![0x90], false), "never nothing");

    // People see it among what is pending, and the next leader knows of it.
    let sql = format!(
        "SELECT count(*) FROM {}.deliveries_pending WHERE endpoint = '' AND reason = 'unrouted'",
        quote_ident(SCHEMA)
    );
    assert_eq!(fixture.admin.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0), 5);
    let recovery = fixture.open().await.take_lease("two").await.unwrap();
    assert_eq!(recovery.start.unrouted, [account(5)]);
}

#[tokio::test]
async fn unrouted_event_becomes_its_deliveries_in_one_transaction() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let (one, two) = (event(0x210, "1"), event(0x220, "1"));
    store.persist(&storing(&[Arc::clone(&one), Arc::clone(&two)])).await.unwrap();
    let part = PersistBatch {
        deferred: vec![defer(&one, "7")],
        routed: vec![routed(&one, Some("7"))],
        ..batch(0x100)
    };
    store.persist(&part).await.unwrap();
    store.persist(&part).await.unwrap();
    let (rows, _) = page(&store, all("1")).await;
    assert_eq!(rows, [(0x210, Some("7".into())), (0x220, None)]);
    let rest = PersistBatch {
        deferred: vec![defer(&one, "8")],
        routed: vec![routed(&one, None), routed(&two, None)],
        unrouted_accounts: vec![account(0)],
        ..batch(0x100)
    };
    store.persist(&rest).await.unwrap();
    store.persist(&rest).await.unwrap();
    store.persist(&part).await.unwrap();
    assert_eq!((fixture.count("unrouted").await, fixture.count("deferred").await), (0, 2));
    assert_eq!(fixture.count("bodies").await, 1, "nobody wanted the second");
    assert_eq!(fixture.count("unrouted_accounts").await, 0);
    let resolved = vec![row_id(&one, "7"), row_id(&one, "8")];
    store.persist(&PersistBatch { resolved, ..batch(0x100) }).await.unwrap();
    assert_eq!(fixture.count("bodies").await, 0);
}

#[tokio::test]
async fn joined_endpoints_are_remembered_while_there_are_unrouted_events() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let joined = |endpoint: &str, at| Joined { endpoint: EndpointId::new(endpoint), at: Lsn(at) };
    let first = vec![joined("a", 5), joined("b", 6), joined("a", 9)];
    store.persist(&PersistBatch { joined: first, ..batch(0x100) }).await.unwrap();
    store.persist(&PersistBatch { joined: vec![joined("b", 7)], ..batch(0x100) }).await.unwrap();
    let recovery = store.take_lease("two").await.unwrap();
    assert_eq!(recovery.start.joined, [joined("a", 9), joined("b", 7)]);
    store.persist(&PersistBatch { joined_passed: true, ..batch(0x100) }).await.unwrap();
    assert_eq!(store.take_lease("three").await.unwrap().start.joined, []);
}

#[tokio::test]
async fn unrouted_events_that_are_given_up_are_one_record_that_grows_until_it_is_closed() {
    let fixture = Fixture::start().await;
    let mut store = leader(&fixture).await;
    let events: Vec<_> = [0x210, 0x220, 0x230].map(|commit| event(commit, "1")).into();
    store.persist(&storing(&events)).await.unwrap();
    let purge = |rows| {
        let unrouted_purges = vec![UnroutedPurge { account: AccountId::new("1"), rows }];
        PersistBatch { unrouted_purges, ..batch(0x100) }
    };
    let purged = |rows, all| vec![UnroutedPurged { account: AccountId::new("1"), rows, all }];
    assert_eq!(store.persist(&purge(2)).await.unwrap().unrouted_purged, purged(2, false));
    let [left] = &store.take_lease("two").await.unwrap().start.unrouted[..] else { panic!() };
    assert_eq!(left.rows, 1);
    assert_eq!(store.persist(&purge(2)).await.unwrap().unrouted_purged, purged(1, true));
    assert_eq!(store.persist(&purge(2)).await.unwrap().unrouted_purged, purged(0, true));
    let [gap] = &store.gaps(false).await.unwrap()[..] else { panic!("one record") };
    assert_eq!((gap.endpoint.as_deref(), gap.account.as_deref()), (Some(""), Some("1")));
    assert_eq!((&*gap.from_lsn, &*gap.to_lsn, gap.removed), ("0/210", "0/230", 3));
    assert!(!gap.growing && gap.reason.contains("looked up"), "{gap:?}");
    let sql = format!("SELECT count(*) FROM {}.endpoints", quote_ident(SCHEMA));
    assert_eq!(fixture.admin.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0), 0);

    // A replay to all of the account's endpoints closes it; one to a single endpoint does not.
    let mut closes = async |endpoint: Option<&str>| {
        let (from, to) = (Lsn(0x100), Lsn(0x301));
        let (account, endpoint) = (Some("1".to_owned()), endpoint.map(str::to_owned));
        let filter = ReplayFilter { account, endpoint, ..ReplayFilter::default() };
        let range = ReplayRange { from_oldest: false, from, to, filter };
        let job = store.create_replay(&range).await.unwrap().id;
        store.set_replay_position(job, to).await.unwrap();
        let closed = store.close_replayed_gaps(job, &range).await.unwrap().len();
        store.finish_job(job.into(), None).await.unwrap();
        closed
    };
    assert_eq!((closes(Some("")).await, closes(None).await), (0, 1));
    store.persist(&storing(&[event(0x300, "1")])).await.unwrap();
    store.persist(&purge(9)).await.unwrap();
    let [gap] = &store.gaps(false).await.unwrap()[..] else { panic!("another record") };
    assert_eq!((&*gap.from_lsn, gap.removed), ("0/300", 1));
}
