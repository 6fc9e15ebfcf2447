//! What of a replay a leader passes over that goes on with it.

use std::collections::HashSet;

use super::super::fixture::{Fixture, dead, defer, event};
use super::batch;
use crate::{DeadLetterFilter, DeferredCursor, DeferredFilter, StateStore};
use walhook_core::id::ReplayId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DeadLetter, Defer, PersistBatch};
use walhook_core::replay::{ReplayFilter, ReplayRange};

async fn replay(store: &mut StateStore) -> ReplayId {
    let (from, to, filter) = (Lsn(0x100), Lsn(0x900), ReplayFilter::default());
    let range = ReplayRange { from, to, from_oldest: false, filter };
    store.create_replay(&range).await.unwrap().id
}

/// Rows of a replay, and a dead letter to endpoint 9: of events that commit here.
fn stored(id: ReplayId, commits: &[u64]) -> PersistBatch {
    let row = |commit: &u64| {
        let mut row = defer(&event(*commit, "1"), "7");
        row.id.key.replay = Some(id);
        row
    };
    let rows: Vec<Defer> = commits.iter().map(row).collect();
    let letter = DeadLetter { replay: Some(id), ..dead(&event(commits[0], "1"), "9") };
    PersistBatch { deferred: rows, dead_letters: vec![letter], ..batch(0x100) }
}

async fn discard(store: &mut StateStore, replay: Option<ReplayId>) -> usize {
    let filter = DeferredFilter { replay: replay.map(|id| id.0), ..DeferredFilter::default() };
    let at = DeferredCursor::default();
    let Some(gone) = store.discard_deferred(None, &filter, &at, None).await.unwrap() else {
        return 0;
    };
    gone.commit().await.unwrap().rows.len()
}

/// Which deliveries of the events that commit here are passed over.
async fn passed(store: &StateStore, id: ReplayId, commits: &[u64]) -> Vec<(u64, String)> {
    let ids: Vec<String> = commits.iter().map(|c| event(*c, "1").id.to_string()).collect();
    let passed: HashSet<(String, String)> = store.replayed_before(id, &ids).await.unwrap();
    let commit = |id: &str| commits[ids.iter().position(|of| of == id).unwrap()];
    let mut passed: Vec<_> = passed.into_iter().map(|(id, to)| (commit(&id), to)).collect();
    passed.sort_unstable();
    passed
}

#[tokio::test]
async fn what_was_discarded_of_a_replay_is_passed_over_until_its_position_has_passed_it() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let (first, second) = (replay(&mut store).await, replay(&mut store).await);
    let commits = [0x200, 0x300, 0x400];
    store.persist(&stored(first, &commits)).await.unwrap();
    let of_stream = PersistBatch { deferred: vec![defer(&event(0x300, "1"), "7")], ..batch(0x100) };
    store.persist(&of_stream).await.unwrap();
    // What commits at the position itself is read again; what did before it is not.
    store.set_replay_position(first, Lsn(0x300)).await.unwrap();
    assert_eq!(discard(&mut store, None).await, 4);
    let letters = DeadLetterFilter::default();
    assert_eq!(fixture.open().await.discard_dead_letters(&letters).await.unwrap(), 1);
    assert_eq!(fixture.count("deferred").await + fixture.count("dead_letters").await, 0);
    // The next leader.
    let mut store = fixture.open().await;
    store.take_lease("two").await.unwrap();
    let of = |n: u64, to: &str| (n, to.to_owned());
    let expected = [of(0x200, "9"), of(0x300, "7"), of(0x400, "7")];
    assert_eq!(passed(&store, first, &commits).await, expected);
    assert!(passed(&store, second, &commits).await.is_empty(), "each by itself");
    assert_eq!(fixture.count("replay_discards").await, 3, "nothing of the stream");
    // Another job's end takes nothing.
    store.finish_job(second.into(), None).await.unwrap();
    assert_eq!(fixture.count("replay_discards").await, 3);
    store.set_replay_position(first, Lsn(0x500)).await.unwrap();
    assert_eq!(fixture.count("replay_discards").await, 0);
    store.persist(&stored(first, &[0x600])).await.unwrap();
    assert_eq!(discard(&mut store, Some(first)).await, 1);
    assert_eq!(passed(&store, first, &[0x600]).await, [of(0x600, "7"), of(0x600, "9")]);
    store.finish_job(first.into(), Some("cancelled")).await.unwrap();
    assert_eq!(fixture.count("replay_discards").await, 0);
    // Nor does one that is at its end leave anything.
    store.persist(&stored(first, &[0x700])).await.unwrap();
    assert_eq!(discard(&mut store, Some(first)).await, 1);
    assert_eq!(fixture.open().await.discard_dead_letters(&letters).await.unwrap(), 2);
    assert_eq!(fixture.count("replay_discards").await, 0);
}
