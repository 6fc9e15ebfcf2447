//! Tables that are older than what was stored in them.

use super::super::fixture::{Fixture, SCHEMA, defer, event};
use super::batch;
use crate::{Class, StateError, StateStore};
use walhook_core::lsn::Lsn;
use walhook_core::persist::PersistBatch;
use walhook_postgres::error::SourceError;
use walhook_postgres::ident::quote_ident;
use walhook_postgres::source;
use walhook_postgres::timelines::{Primary, Timelines};

/// The checkpoint's row as a standby has it that follows no more.
async fn remember(fixture: &Fixture) {
    let s = quote_ident(SCHEMA);
    let sql = format!("CREATE TABLE old AS SELECT frontier, updated_at FROM {s}.checkpoint");
    fixture.admin.batch_execute(&sql).await.unwrap();
}

/// That standby is promoted.
async fn go_back(fixture: &Fixture) {
    let s = quote_ident(SCHEMA);
    let sql = format!(
        "DELETE FROM {s}.deferred;
         UPDATE {s}.checkpoint SET frontier = old.frontier, updated_at = old.updated_at FROM old"
    );
    fixture.admin.batch_execute(&sql).await.unwrap();
}

fn deferring(frontier: u64, commit: u64, number: u64) -> PersistBatch {
    let deferred = vec![defer(&event(commit, "1"), "7")];
    PersistBatch { deferred, number, ..batch(frontier) }
}

#[tokio::test]
async fn leader_stores_nothing_in_tables_that_lack_what_it_stored_last() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.persist(&batch(0x200)).await.unwrap();
    remember(&fixture).await;
    // It defers, and the frontier stays where it is.
    store.persist(&deferring(0x200, 0x210, 2)).await.unwrap();
    store.check_last().await.unwrap();
    go_back(&fixture).await;

    store.reconnect().await.unwrap();
    for refused in [
        store.check_last().await.unwrap_err(),
        store.persist(&deferring(0x300, 0x220, 3)).await.unwrap_err(),
        store.persist(&deferring(0x300, 0x220, 3)).await.unwrap_err(),
    ] {
        assert_eq!(refused.class(), Class::WentBack, "{refused}");
    }
    assert_eq!((fixture.count("deferred").await, store.frontier().await.unwrap()), (0, Lsn(0x200)));

    // What begins anew goes on from what is there.
    let recovery = store.take_lease("two").await.unwrap();
    assert_eq!(recovery.start.frontier, Lsn(0x200));
    store.persist(&deferring(0x200, 0x210, 1)).await.unwrap();
    assert_eq!(fixture.count("deferred").await, 1);
}

#[tokio::test]
async fn leader_that_has_stored_nothing_yet_notices_tables_from_before_its_lease() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.persist(&batch(0x100)).await.unwrap();
    remember(&fixture).await;
    store.persist(&batch(0x200)).await.unwrap();
    store.take_lease("two").await.unwrap();
    store.check_last().await.unwrap();
    go_back(&fixture).await;
    assert_eq!(store.check_last().await.unwrap_err().class(), Class::WentBack);
}

#[tokio::test]
async fn session_to_lead_with_is_not_opened_on_an_earlier_timeline_than_was_led_on() {
    let fixture = Fixture::start().await;
    let timelines = Timelines::default();
    let open = async || {
        let url = fixture.url.clone();
        StateStore::open_to_lead(&url, SCHEMA, "p", Default::default(), &timelines).await
    };
    let mut store = open().await.unwrap();
    let here = source::primary(&fixture.admin).await.unwrap();
    assert_eq!(here.timeline, 1);
    store.take_lease("one").await.unwrap();
    assert!(timelines.check(Primary { timeline: 0, ..here }).is_err(), "it is led on");
    store.reconnect().await.unwrap();

    timelines.accept(Primary { timeline: 2, ..here });
    let (reconnected, opened) = (store.reconnect().await, open().await.map(drop));
    for refused in [reconnected.unwrap_err(), opened.unwrap_err()] {
        let StateError::Server(why) = &refused else { panic!("{refused}") };
        assert!(matches!(why, SourceError::OldPrimary { timeline: 1, newest: 2 }), "{why}");
        assert_eq!(refused.class(), Class::Fixable);
    }
}
