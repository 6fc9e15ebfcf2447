//! Against a real PostgreSQL.

use tokio::time::sleep;

use super::*;
use crate::control::Progress;
use crate::control::state_fixture::{Fixture, dead, event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DeadLetter, DeadReason, PersistBatch, Retried};

/// A leader's store with dead letters 1 to 4: endpoint 7 (accounts 1, 2), 8, and none.
async fn with_letters(fixture: &Fixture) -> StateStore {
    let mut store = fixture.open().await;
    store.take_lease("host:1").await.unwrap();
    let (one, two) = (event(0x210, "1"), event(0x220, "2"));
    let unroutable = DeadLetter {
        endpoint: None,
        reason: DeadReason::Unroutable,
        ..dead(&event(0x230, ""), "")
    };
    let dead_letters = vec![dead(&one, "7"), dead(&two, "7"), dead(&one, "8"), unroutable];
    let batch = PersistBatch { frontier: Lsn(0x100), dead_letters, ..PersistBatch::default() };
    store.persist(&batch).await.unwrap();
    store
}

fn of(endpoint: Option<&str>, account: Option<&str>, reason: Option<&str>) -> Filter {
    Filter {
        endpoint: endpoint.map(str::to_owned),
        account: account.map(str::to_owned),
        reason: reason.map(str::to_owned),
        ..Filter::default()
    }
}

fn of_endpoint(endpoint: &str) -> Filter {
    of(Some(endpoint), None, None)
}

#[tokio::test]
async fn list_filters_and_pages() {
    let fixture = Fixture::start().await;
    let store = with_letters(&fixture).await;
    let ids = async |filter: Filter| -> Vec<i64> {
        let page = page(&store, &Query { filter, limit: 10, after: 0 }).await.unwrap();
        page.dead_letters.iter().map(|letter| letter.id).collect()
    };
    assert_eq!(ids(Filter::default()).await, [1, 2, 3, 4]);
    assert_eq!(ids(of_endpoint("7")).await, [1, 2]);
    assert_eq!(ids(of(Some("7"), Some("2"), None)).await, [2]);
    assert_eq!(ids(of(None, None, Some("unroutable"))).await, [4]);
    let of_type = |name: &str| Filter { event_type: Some(name.into()), ..Filter::default() };
    assert_eq!(ids(of_type("a.b")).await.len(), 4);
    assert_eq!(ids(of_type("a.c")).await.len(), 0);
    assert_eq!((ids(of_type("a.*")).await.len(), ids(of_type("c.*")).await.len()), (4, 0));
    let now = walhook_process::clock::unix_us();
    let since = |at| Filter { since_us: Some(at), ..Filter::default() };
    let until = |at| Filter { until_us: Some(at), ..Filter::default() };
    assert_eq!(ids(since(now - 60_000_000)).await.len(), 4);
    assert_eq!(ids(since(now + 60_000_000)).await.len(), 0);
    assert_eq!(ids(until(now - 60_000_000)).await.len(), 0);

    let mut after = 0;
    let mut pages = Vec::new();
    loop {
        let query = Query { filter: Filter::default(), limit: 3, after };
        let page = page(&store, &query).await.unwrap();
        pages.push(page.dead_letters.len());
        let Some(next) = page.next_after else { break };
        assert_eq!(next, 3);
        after = next;
    }
    assert_eq!(pages, [3, 1]);
    let exact = Query { filter: Filter::default(), limit: 4, after: 0 };
    assert_eq!(page(&store, &exact).await.unwrap().next_after, None);
}

#[tokio::test]
async fn show_has_the_body_as_it_was_sent() {
    let fixture = Fixture::start().await;
    let _store = with_letters(&fixture).await;
    let config = fixture.config();
    let databases = Databases::of(&config);
    let letter = show(databases, 1).await.unwrap();
    assert_eq!(letter.body.get().as_bytes(), &*event(0x210, "1").body());
    assert_eq!(letter.letter.endpoint.as_deref(), Some("7"));
    assert_eq!((&*letter.change_lsn, &*letter.commit_lsn), ("0/20F", "0/210"));
    let error = show(databases, 99).await.unwrap_err();
    assert!(matches!(error, Failure::Failed(_)), "{error:?}");
}

/// Does what the leader does with the next job; `fail` says whose retries fail.
async fn carry_out(leader: &mut StateStore, fail: i64) {
    let job = loop {
        match leader.next_job_beside(&[], true).await.unwrap() {
            Some(job) => break job,
            None => sleep(Duration::from_millis(10)).await,
        }
    };
    let Ask::RetryDeadLetters(filter) = &job.ask else { panic!("{job:?}") };
    let letters = leader.dead_letters_to_retry(job.id, filter, 0, 100).await.unwrap();
    let retried = letters
        .iter()
        .map(|letter| Retried {
            dead_letter: walhook_core::id::DeadLetterId(letter.id),
            job: job.id,
            error: (letter.id == fail).then(|| dead(&letter.event, "7")),
        })
        .collect();
    let batch = PersistBatch { frontier: Lsn(0x100), retried, ..PersistBatch::default() };
    leader.persist(&batch).await.unwrap();
    leader.finish_job(job.id, None).await.unwrap();
}

#[tokio::test]
async fn retry_waits_for_the_leader_and_names_what_failed_again() {
    let fixture = Fixture::start().await;
    let mut leader = with_letters(&fixture).await;
    let config = fixture.config();
    let minute = Duration::from_secs(60);
    let nothing = retry(&config, of_endpoint("99"), minute, &mut |_| {}).await.unwrap_err();
    assert!(format!("{nothing:?}").contains("no dead letter"), "{nothing:?}");

    let mut silent = |_: Progress<'_>| {};
    let (end, ()) = futures_util::join!(
        retry(&config, of_endpoint("7"), minute, &mut silent),
        carry_out(&mut leader, 2)
    );
    let RetryView { job, errors } = end.unwrap();
    assert_eq!((job.failed, job.total, job.finished), (1, 2, true));
    assert_eq!(errors.iter().map(|letter| letter.id).collect::<Vec<_>>(), [2]);
    assert_eq!(fixture.count("dead_letters").await, 3);

    let two = Filter { ids: Some(vec![2]), ..Filter::default() };
    let mut silent = |_: Progress<'_>| {};
    let (end, ()) =
        futures_util::join!(retry(&config, two, minute, &mut silent), carry_out(&mut leader, 0));
    assert_eq!(end.unwrap().job.done, 1);
    assert_eq!(fixture.count("dead_letters").await, 2);

    // Nobody carries this one out.
    for wait in [Duration::from_millis(300), Duration::ZERO] {
        let late = retry(&config, of_endpoint("8"), wait, &mut |_| {}).await.unwrap();
        assert!(!late.job.finished && late.errors.is_empty(), "{late:?}");
    }
}

#[tokio::test]
async fn discard_removes_what_is_selected() {
    let fixture = Fixture::start().await;
    let _store = with_letters(&fixture).await;
    let config = fixture.config();
    let databases = Databases::of(&config);
    assert_eq!(count(databases, &of_endpoint("7")).await.unwrap(), 2);
    assert_eq!(discard(databases, &of_endpoint("7")).await.unwrap().discarded, 2);
    assert_eq!(fixture.count("dead_letters").await, 2);
    assert_eq!(fixture.count("bodies").await, 2, "one event is left with endpoint 8");
    assert_eq!(discard(databases, &Filter::default()).await.unwrap().discarded, 2);
    assert_eq!((fixture.count("dead_letters").await, fixture.count("bodies").await), (0, 0));
}
