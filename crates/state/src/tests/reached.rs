//! The source goes back in time, and what is stored does not.

use std::sync::Arc;

use super::super::fixture::{Fixture, SCHEMA, defer, range};
use super::batch;
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Joined, PersistBatch, UnroutedAccount};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_postgres::ident::quote_ident;
use walhook_postgres::timelines::Primary;

/// The first change at its place, as most are.
fn event(commit: u64, time: i64) -> Arc<Event> {
    let before = super::super::fixture::event(commit, "1");
    let (change_lsn, relation, n) = (Lsn(commit - 1), 7, 0);
    let position = Position::Wal(WalPosition { commit_lsn: Lsn(commit), change_lsn, relation, n });
    // An id holds milliseconds.
    let time = time * 1_000;
    let id = EventId::derive(1, &position, "a.b", time);
    let mut event = Arc::into_inner(before).unwrap();
    (event.id, event.position, event.commit_time_us) = (id, position, time);
    Arc::new(event)
}

#[tokio::test]
async fn what_was_read_reaches_to_the_last_that_is_settled_or_was_received() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    assert_eq!(store.reached().await.unwrap(), Lsn(0x100));
    store.take_lease("one").await.unwrap();
    let settled = vec![range(0x210, 0x220), range(0x230, 0x240)];
    store.persist(&PersistBatch { settled, ..batch(0x200) }).await.unwrap();
    assert_eq!(store.reached().await.unwrap(), Lsn(0x241));

    let identity = store.source_identity().await.unwrap();
    let primary = |timeline| Primary { system_identifier: identity.system_identifier, timeline };
    // Somebody has gone on with another one.
    store.note_reached(primary(identity.timeline - 1), Lsn(0x300)).await.unwrap();
    assert_eq!(store.reached().await.unwrap(), Lsn(0x241));
    store.note_reached(primary(identity.timeline), Lsn(0x300)).await.unwrap();
    assert_eq!(store.reached().await.unwrap(), Lsn(0x300));
    let start = store.take_lease("two").await.unwrap().start;
    assert_eq!(start.settled.len(), 2);
    store.persist(&PersistBatch { number: 2, ..batch(0x310) }).await.unwrap();
    assert_eq!((store.reached().await.unwrap(), fixture.count("settled").await), (Lsn(0x310), 0));
}

#[tokio::test]
async fn branch_of_the_wal_is_adopted_without_what_was_settled_beyond_it() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let account = AccountId::new("1");
    let settled = vec![range(0x201, 0x210), range(0x220, 0x230)];
    let unrouted = UnroutedAccount { account, rows: 1, settled: settled.clone() };
    let joined = Joined { endpoint: EndpointId::new("9"), at: Lsn(0x260) };
    let first = PersistBatch {
        settled: vec![settled[0].clone()],
        unrouted: vec![event(0x225, 1)],
        unrouted_accounts: vec![unrouted],
        joined: vec![joined],
        unseen: vec![5],
        ..batch(0x200)
    };
    store.persist(&first).await.unwrap();
    let second = PersistBatch {
        settled: vec![settled[1].clone()],
        deferred: vec![defer(&event(0x208, 1), "7"), defer(&event(0x228, 1), "7")],
        number: 2,
        ..batch(0x200)
    };
    store.persist(&second).await.unwrap();

    let mut identity = store.source_identity().await.unwrap();
    identity.timeline += 1;
    store.adopt_branch(Lsn(0x200), Lsn(0x218), &identity).await.unwrap();
    assert_eq!(store.reached().await.unwrap(), Lsn(0x211));
    assert_eq!(store.source_identity().await.unwrap(), identity);
    let start = store.take_lease("two").await.unwrap().start;
    assert_eq!((start.frontier, &start.settled[..]), (Lsn(0x200), &settled[..1]));
    assert_eq!(start.unrouted[0].settled, settled[..1]);
    assert_eq!((start.joined[0].at, &start.unseen[..]), (Lsn(0x218), &[5][..]));

    // Other events come to the same places: both are there.
    let third = PersistBatch {
        deferred: vec![defer(&event(0x228, 2), "7")],
        unrouted: vec![event(0x225, 2)],
        ..batch(0x200)
    };
    store.persist(&third).await.unwrap();
    assert_eq!((fixture.count("deferred").await, fixture.count("unrouted").await), (3, 2));
    store.adopt_branch(Lsn(0x200), Lsn(0x218), &identity).await.unwrap();
    let s = quote_ident(SCHEMA);
    let sql = format!(
        "SELECT string_agg(d.n::text, ' ' ORDER BY d.n) FROM {s}.deferred d
         JOIN {s}.bodies b USING (pipeline, event_id, commit_lsn, n)"
    );
    let found: String = fixture.admin.query_one(&sql, &[]).await.unwrap().get(0);
    assert_eq!(found, "0 33554432 50331648");

    // Parted before the checkpoint: it goes on where they parted, and no look-up shows what came after.
    store.adopt_branch(Lsn(0x200), Lsn(0x180), &identity).await.unwrap();
    let start = store.take_lease("three").await.unwrap().start;
    assert_eq!((start.frontier, start.settled.len(), start.unseen.len()), (Lsn(0x180), 0, 0));
}
