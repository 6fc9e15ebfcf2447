//! Against a real PostgreSQL.

use std::sync::Arc;

use super::*;
use crate::control::Progress;
use crate::control::state_fixture::{Fixture, defer, event};
use walhook_core::event::{AccountId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Defer, DeferReason, PersistBatch, Tried, UnroutedAccount};
use walhook_state::JobState;

/// A leader's store with three deferred rows: endpoint 7 (accounts 1, 2), endpoint 8 (account 1).
async fn with_rows(fixture: &Fixture) -> (StateStore, Arc<Event>) {
    let mut store = fixture.open().await;
    store.take_lease("host:1").await.unwrap();
    let one = event(0x210, "1");
    let untried = Defer {
        reason: DeferReason::Overflow,
        tried: Tried::default(),
        ..defer(&event(0x220, "2"), "7")
    };
    let deferred = vec![defer(&one, "7"), defer(&one, "8"), untried];
    let batch = PersistBatch { frontier: Lsn(0x100), deferred, ..PersistBatch::default() };
    store.persist(&batch).await.unwrap();
    (store, one)
}

async fn page_of(store: &StateStore, filter: Filter) -> DeferredPage {
    page(store, &Query { filter, limit: 9, ..Query::default() }).await.unwrap()
}

fn of(endpoint: Option<&str>, account: Option<&str>, reason: Option<&str>) -> Filter {
    Filter {
        endpoint: endpoint.map(str::to_owned),
        account: account.map(str::to_owned),
        reason: reason.map(str::to_owned),
        ..Filter::default()
    }
}

#[tokio::test]
async fn list_filters_and_pages() {
    let fixture = Fixture::start().await;
    let (store, one) = with_rows(&fixture).await;
    let count = async |filter: Filter| page_of(&store, filter).await.deferred.len();
    assert_eq!(count(Filter::default()).await, 3);
    assert_eq!(count(of(Some("7"), None, None)).await, 2);
    assert_eq!(count(of(Some("7"), Some("1"), None)).await, 1);
    assert_eq!(count(of(None, None, Some("overflow"))).await, 1);
    let of_type = |name: &str| Filter { event_type: Some(name.into()), ..Filter::default() };
    for (pattern, fitting) in [("a.b", 3), ("a.c", 0), ("a.*", 3), ("*", 3), ("b.*", 0), ("a", 0)] {
        assert_eq!(count(of_type(pattern)).await, fitting, "{pattern}");
    }
    let now = walhook_process::clock::unix_us();
    let since = |at| Filter { since_us: Some(at), ..Filter::default() };
    let until = |at| Filter { until_us: Some(at), ..Filter::default() };
    assert_eq!(count(since(now - 60_000_000)).await, 3);
    assert_eq!(count(since(now + 60_000_000)).await, 0);
    assert_eq!(count(until(now - 60_000_000)).await, 0);
    let of_event = Filter { ids: Some(vec![one.id.to_string()]), ..Filter::default() };
    assert_eq!(count(of_event).await, 2);

    let (mut after, mut seen) = (Cursor::default(), Vec::new());
    loop {
        let page = page(&store, &Query { limit: 1, after, ..Query::default() }).await.unwrap();
        seen.extend(page.deferred.iter().map(|row| (row.event_id.clone(), row.endpoint.clone())));
        let Some(next) = &page.next_after else { break };
        after = cursor(next).unwrap();
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(cursor("evt_x").is_err());
}

#[tokio::test]
async fn list_says_what_was_tried_and_when_next() {
    let fixture = Fixture::start().await;
    let (store, one) = with_rows(&fixture).await;
    let of_event = Filter { ids: Some(vec![one.id.to_string()]), ..Filter::default() };
    let page = page_of(&store, of_event).await;
    assert_eq!(page.next_after, None);
    let row = &page.deferred[0];
    assert_eq!((row.attempts, row.last_status, &*row.reason), (1, Some(503), "failed"));
    assert_eq!(row.next_attempt_at.as_deref(), Some("2025-11-23T17:46:10.000001Z"));
    assert_eq!((row.history[0].latency_ms, row.history[0].status), (12, Some(503)));
    assert_eq!((&*row.account_id, &*row.event_type), ("1", "a.b"));
    assert_eq!(row.event_id, one.id.to_string());
    assert!(row.detail.starts_with("status 503") && !row.detail.contains('\0'), "{row:?}");
}

#[tokio::test]
async fn list_ends_with_what_waits_without_an_endpoint_by_the_filter() {
    let fixture = Fixture::start().await;
    let (mut store, _) = with_rows(&fixture).await;
    assert!(page_of(&store, Filter::default()).await.without_endpoint.is_none());

    let mut unrouted = vec![event(0x300, "40"), event(0x310, "40")];
    unrouted.extend((0..12_u32).map(|n| event(0x320 + u64::from(n), &(50 + n).to_string())));
    let counted = |account: &str, rows| UnroutedAccount {
        account: AccountId::new(account),
        rows,
        settled: Vec::new(),
    };
    let mut unrouted_accounts = vec![counted("40", 2)];
    unrouted_accounts.extend((50..62).map(|n: u32| counted(&n.to_string(), 1)));
    let frontier = Lsn(0x100);
    let batch = PersistBatch { frontier, unrouted, unrouted_accounts, ..PersistBatch::default() };
    store.persist(&batch).await.unwrap();

    let page = page_of(&store, Filter::default()).await;
    assert_eq!(page.deferred.len(), 3, "the deliveries are listed too");
    let waiting = page.without_endpoint.unwrap();
    assert_eq!((waiting.events, waiting.accounts, waiting.most.len()), (14, 13, 10));
    assert_eq!((&*waiting.most[0].account_id, waiting.most[0].events), ("40", 2));
    assert!(waiting.fix.contains("`walhook check`") && waiting.since.ends_with('Z'), "{waiting:?}");

    let page = page_of(&store, of(None, Some("40"), None)).await;
    let waiting = page.without_endpoint.unwrap();
    assert_eq!((page.deferred.len(), waiting.events, waiting.accounts), (0, 2, 1));
    assert_eq!((&*waiting.most[0].account_id, waiting.most[0].events), ("40", 2));

    let of_type = |name: &str| Filter { event_type: Some(name.into()), ..Filter::default() };
    let soon = walhook_process::clock::unix_us() + 60_000_000;
    for (filter, shown) in [
        (of(None, Some("41"), None), false),
        (of_type("a.b"), true),
        (of_type("a.c"), false),
        (of_type("a.*"), true),
        (of_type("c.*"), false),
        (of(None, None, Some("unrouted")), true),
        (of(None, None, Some("failed")), false),
        // They may be for this endpoint: nobody knows.
        (of(Some("7"), None, None), true),
        (Filter { replay: Some(3), ..Filter::default() }, false),
        (Filter { since_us: Some(soon), ..Filter::default() }, false),
        (Filter { until_us: Some(soon), ..Filter::default() }, true),
    ] {
        let case = format!("{filter:?}");
        assert_eq!(page_of(&store, filter).await.without_endpoint.is_some(), shown, "{case}");
    }
}

/// Does what the leader does with the next job.
async fn carry_out_next(leader: &mut StateStore, kind: &str) -> JobState {
    let job = loop {
        match leader.next_job_beside(&[], true).await.unwrap() {
            Some(job) => break job,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(job.ask.kind(), kind);
    match &job.ask {
        Ask::RetryDeferred(filter) => {
            let queues = leader.begin_hurry(job.id, filter).await.unwrap();
            assert_eq!(queues.len(), 1, "those of account 1 have a time: {queues:?}");
            let mut at = Cursor::default();
            while let Some(changed) = leader.hurry_deferred(job.id, filter, &at).await.unwrap() {
                at = changed.next;
            }
        }
        Ask::DiscardDeferred(filter) => {
            let mut at = Cursor::default();
            while let Some(changed) =
                leader.discard_deferred(Some(job.id), filter, &at, None).await.unwrap()
            {
                at = changed.commit().await.unwrap().next;
            }
        }
        Ask::RetryDeadLetters(_) | Ask::PauseEndpoint(_) | Ask::ResumeEndpoint(_) => {
            panic!("nobody asked for that")
        }
    }
    leader.finish_job(job.id, None).await.unwrap();
    leader.job(job.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn retry_and_discard_are_the_leaders_to_carry_out() {
    let fixture = Fixture::start().await;
    let (mut leader, one) = with_rows(&fixture).await;
    let config = fixture.config();
    let databases = Databases::of(&config);
    let wait = Duration::from_secs(60);
    let endpoint = |endpoint| of(Some(endpoint), None, None);
    let nothing = retry(databases, endpoint("99"), wait, &mut |_| {}).await.unwrap_err();
    assert!(format!("{nothing:?}").contains("no deferred delivery fits"), "{nothing:?}");
    let mut silent = |_: Progress<'_>| {};
    let (end, job) = futures_util::join!(
        retry(databases, endpoint("7"), wait, &mut silent),
        carry_out_next(&mut leader, "deferred.retry")
    );
    assert!(end.unwrap().finished);
    // Of the two, one has not been tried yet and so has no time: it is counted all the same.
    assert_eq!((job.total, job.done, job.failed), (2, 2, 0));
    let due: Vec<bool> = leader
        .deferred(&Filter::default(), &Cursor::default(), 9)
        .await
        .unwrap()
        .iter()
        .map(|row| row.next_attempt_at_us.is_none())
        .collect();
    assert_eq!(due.iter().filter(|due| **due).count(), 2, "that of endpoint 8 still waits");

    let event = Filter { ids: Some(vec![one.id.to_string()]), ..Filter::default() };
    assert_eq!(count(databases, &event).await.unwrap(), 2);
    let mut silent = |_: Progress<'_>| {};
    let (end, job) = futures_util::join!(
        discard(databases, event.clone(), wait, &mut silent),
        carry_out_next(&mut leader, "deferred.discard")
    );
    assert!(end.unwrap().unwrap().finished);
    assert_eq!(job.done, 2);
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (1, 1));
    let nothing = discard(databases, event, wait, &mut |_| {}).await.unwrap();
    assert!(nothing.is_none(), "{nothing:?}");

    // Nobody carries this one out.
    let (mut notes, mut polls) = (Vec::new(), 0);
    let mut tell = |progress: Progress<'_>| match progress {
        Progress::Note(note) => notes.push(note.to_owned()),
        Progress::Job(_) => polls += 1,
        Progress::Step(_) | Progress::Replay(_) | Progress::Ended => {}
    };
    let wait = Duration::from_millis(300);
    let late = retry(databases, endpoint("7"), wait, &mut tell).await.unwrap();
    assert!(!late.finished && polls > 1, "{late:?}");
    assert!(notes.len() == 1 && notes[0].starts_with("no leader runs now: job "), "{notes:?}");
}
