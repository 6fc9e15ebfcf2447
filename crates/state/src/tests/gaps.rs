//! Gaps of suspended queues: rows removed into them, what came later, and what closes them.

use super::super::fixture::{Fixture, defer, event, queue};
use super::batch;
use crate::{Gap, StateStore};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{GapChange, PersistBatch, Purge, Purged, ReplayCounts};
use walhook_core::replay::{ReplayFilter, ReplayRange};

fn change(endpoint: &str, skipped: u64, span: Option<(u64, u64)>, growing: bool) -> GapChange {
    let span = span.map(|(first, last)| (Lsn(first), Lsn(last)));
    GapChange { queue: queue(endpoint), opens: None, skipped, span, growing }
}

fn opening(endpoint: &str) -> GapChange {
    GapChange { opens: Some("full".into()), ..change(endpoint, 0, None, true) }
}

fn purging(endpoint: &str, rows: u32) -> PersistBatch {
    PersistBatch { purges: vec![Purge { queue: queue(endpoint), rows }], ..batch(0x100) }
}

fn purged(endpoint: &str, rows: u64, all: bool) -> Vec<Purged> {
    vec![Purged { queue: queue(endpoint), rows, all }]
}

async fn only_gap(store: &StateStore) -> Gap {
    let gaps = store.gaps(true).await.unwrap();
    let [gap] = &gaps[..] else { panic!("{gaps:?}") };
    gap.clone()
}

fn told(gap: &Gap) -> (&str, &str, i64, i64, bool) {
    (&gap.from_lsn, &gap.to_lsn, gap.removed, gap.skipped, gap.growing)
}

#[tokio::test]
async fn purge_takes_the_oldest_rows_into_the_growing_gap_of_their_queue_and_nothing_without_one() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let rows = (1..=5).map(|n| defer(&event(0x100 * n, "1"), "7"));
    let others = [defer(&event(0x100, "1"), "8"), defer(&event(0x600, "2"), "7")];
    let deferred = rows.chain(others).collect();
    store.persist(&PersistBatch { deferred, ..batch(0x100) }).await.unwrap();
    assert_eq!(store.persist(&purging("7", 2)).await.unwrap().purged, purged("7", 0, true));
    assert_eq!(fixture.count("deferred").await, 7, "no gap would tell of them");

    let first = PersistBatch { gaps: vec![opening("7")], ..purging("7", 2) };
    assert_eq!(store.persist(&first).await.unwrap().purged, purged("7", 2, false));
    assert_eq!(told(&only_gap(&store).await), ("0/100", "0/200", 2, 0, true));
    // The commit's answer was lost: what is removed once more is counted too, and there is one gap.
    assert_eq!(store.persist(&first).await.unwrap().purged, purged("7", 2, false));
    assert_eq!(told(&only_gap(&store).await), ("0/100", "0/400", 4, 0, true));
    let skip =
        PersistBatch { gaps: vec![change("7", 3, Some((0x80, 0x700)), true)], ..purging("7", 2) };
    assert_eq!(store.persist(&skip).await.unwrap().purged, purged("7", 1, true));
    assert_eq!(store.persist(&skip).await.unwrap().purged, purged("7", 0, true));
    assert_eq!(told(&only_gap(&store).await), ("0/80", "0/700", 5, 3, true));
    assert_eq!(fixture.count("deferred").await, 2, "other queues keep theirs");
    assert_eq!(fixture.count("bodies").await, 2);

    // The next leader goes on with it.
    let suspended = store.take_lease("two").await.unwrap().start.suspended;
    assert_eq!(suspended, [change("7", 3, None, true)]);
    let standing = store.standings(None, "", 9).await.unwrap().remove(0);
    assert_eq!((&*standing.state, standing.reason.as_deref()), ("suspended", Some("full")));
    assert!(store.close_gap(1, None).await.unwrap().is_none(), "it still grows");

    let end =
        PersistBatch { gaps: vec![change("7", 4, Some((0x90, 0x800)), false)], ..batch(0x100) };
    store.persist(&end).await.unwrap();
    store.persist(&end).await.unwrap();
    assert_eq!(told(&only_gap(&store).await), ("0/80", "0/800", 5, 4, false));
    assert!(store.take_lease("three").await.unwrap().start.suspended.is_empty());
    // Suspended once more: another gap.
    let again = PersistBatch { gaps: vec![opening("7"), opening("9")], ..batch(0x100) };
    store.persist(&again).await.unwrap();
    assert_eq!(fixture.count("gaps").await, 3);
    let empty = PersistBatch { gaps: vec![change("9", 0, None, false)], ..batch(0x100) };
    store.persist(&empty).await.unwrap();
    assert_eq!(fixture.count("gaps").await, 2, "one that counts nothing is none");
}

#[tokio::test]
async fn replay_closes_the_gaps_that_it_covered_when_every_delivery_was_taken() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let gap = [
        GapChange { opens: Some("full".into()), ..change("7", 3, Some((0x200, 0x300)), true) },
        GapChange { opens: Some("full".into()), ..change("8", 1, Some((0x200, 0x300)), true) },
    ];
    store.persist(&PersistBatch { gaps: gap.to_vec(), ..batch(0x100) }).await.unwrap();
    let whole = |endpoint: &str| ReplayRange {
        from_oldest: false,
        from: Lsn(0x100),
        to: Lsn(0x301),
        filter: ReplayFilter { endpoint: Some(endpoint.into()), ..ReplayFilter::default() },
    };
    // What a replay of the range came to, and how many gaps that closes.
    let closes = async |store: &mut StateStore,
                        range: ReplayRange,
                        done: i64,
                        failed: i64,
                        position: u64| {
        let job = store.create_replay(&range).await.unwrap().id;
        let replayed = vec![(job, ReplayCounts { done, failed, ..ReplayCounts::default() })];
        store.persist(&PersistBatch { replayed, ..batch(0x100) }).await.unwrap();
        store.set_replay_position(job, Lsn(position)).await.unwrap();
        let closed = store.close_replayed_gaps(job, &range).await.unwrap().len();
        store.finish_job(job.into(), None).await.unwrap();
        closed
    };
    assert_eq!(closes(&mut store, whole("7"), 3, 0, 0x301).await, 0, "it still grows");
    let end = |endpoint, skipped| change(endpoint, skipped, None, false);
    let ended = PersistBatch { gaps: vec![end("7", 3), end("8", 1)], ..batch(0x100) };
    store.persist(&ended).await.unwrap();
    assert_eq!(closes(&mut store, whole("7"), 2, 1, 0x301).await, 0, "one failed");
    assert_eq!(
        closes(&mut store, whole("7"), 2, 0, 0x301).await,
        0,
        "fewer were sent than are missing"
    );
    assert_eq!(closes(&mut store, whole("7"), 3, 0, 0x300).await, 0, "it has not come to its end");
    assert_eq!(
        closes(&mut store, ReplayRange { from: Lsn(0x201), ..whole("7") }, 3, 0, 0x301).await,
        0
    );
    assert_eq!(
        closes(&mut store, ReplayRange { to: Lsn(0x300), ..whole("7") }, 3, 0, 0x301).await,
        0
    );
    assert_eq!(closes(&mut store, whole("9"), 3, 0, 0x301).await, 0);
    let typed = ReplayFilter { types: vec!["a.*".into()], ..whole("7").filter };
    assert_eq!(
        closes(&mut store, ReplayRange { filter: typed, ..whole("7") }, 3, 0, 0x301).await,
        0
    );
    assert_eq!(closes(&mut store, whole("7"), 3, 0, 0x301).await, 1);
    assert_eq!(closes(&mut store, whole("7"), 3, 0, 0x301).await, 0, "it is closed");
    let open = fixture.open().await.gaps(false).await.unwrap();
    assert_eq!(open.iter().map(|gap| gap.endpoint.as_deref()).collect::<Vec<_>>(), [Some("8")]);
}
