//! Jobs: which is next, and which is before another.

use super::super::fixture::{Fixture, dead, event};
use super::batch;
use crate::{Ask, DeadLetterFilter, EndpointStop, RETRIES_AT_ONCE, StateStore};
use walhook_core::id::JobId;
use walhook_core::persist::PersistBatch;

fn to(endpoint: Option<&str>) -> Ask {
    let endpoint = endpoint.map(str::to_owned);
    Ask::RetryDeadLetters(DeadLetterFilter { endpoint, ..DeadLetterFilter::default() })
}

fn pause() -> Ask {
    Ask::PauseEndpoint(EndpointStop { endpoint: "7".into(), reason: String::new() })
}

async fn ask(store: &mut StateStore, ask: &Ask) -> JobId {
    store.create_job(ask).await.unwrap().unwrap().id
}

#[test]
fn job_waits_for_a_retry_of_dead_letters_only_where_it_may_send_the_same() {
    let of = |filter: DeadLetterFilter| Ask::RetryDeadLetters(filter);
    let ids = |ids: &[i64]| DeadLetterFilter { ids: Some(ids.into()), ..Default::default() };
    let account = |account: &str| DeadLetterFilter {
        account: Some(account.into()),
        ..DeadLetterFilter::default()
    };
    let seven = to(Some("7"));
    assert!(to(None).waits_for(&seven) && seven.waits_for(&to(None)) && seven.waits_for(&seven));
    assert!(seven.waits_for(&of(account("1"))) && of(ids(&[1, 2])).waits_for(&of(ids(&[2, 3]))));
    assert!(!seven.waits_for(&to(Some("8"))) && !of(ids(&[1])).waits_for(&of(ids(&[2]))));
    assert!(!of(account("1")).waits_for(&of(account("2"))));
    assert!(!pause().waits_for(&to(None)) && pause().waits_for(&pause()));
    assert!(seven.waits_for(&pause()), "it is done in no time");
}

#[tokio::test]
async fn job_that_is_before_another_is_named_and_what_need_not_wait_is_next() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let endpoints: Vec<String> = (0..=RETRIES_AT_ONCE).map(|n| n.to_string()).collect();
    let letters = endpoints.iter().map(|endpoint| dead(&event(0x210, "1"), endpoint)).collect();
    store.persist(&PersistBatch { dead_letters: letters, ..batch(0x200) }).await.unwrap();

    let first = ask(&mut store, &to(Some("0"))).await;
    let all = ask(&mut store, &to(None)).await;
    let other = ask(&mut store, &to(Some("1"))).await;
    let paused = ask(&mut store, &pause()).await;
    let before = async |store: &StateStore, id| store.job_before(id).await.unwrap().map(|j| j.id);
    assert_eq!(before(&store, first).await, None);
    assert_eq!(before(&store, all).await, Some(first));
    assert_eq!(before(&store, other).await, Some(all), "it may send the same");
    assert_eq!(before(&store, paused).await, None);
    let next = async |store: &mut StateStore, others: &[JobId], retries| {
        store.next_job_beside(others, retries).await.unwrap().map(|job| job.id)
    };
    assert_eq!(next(&mut store, &[], true).await, Some(first));
    assert_eq!(next(&mut store, &[first], true).await, Some(all));
    assert_eq!(next(&mut store, &[first, all, other], true).await, Some(paused));
    assert_eq!(next(&mut store, &[], false).await, Some(paused));
    assert_eq!(next(&mut store, &[paused], false).await, None);
    for job in [all, paused] {
        store.finish_job(job, None).await.unwrap();
    }
    assert_eq!(before(&store, paused).await, None, "it has ended");
    assert_eq!(before(&store, other).await, None);

    // As many as go on at once are before another, whomever it concerns.
    for endpoint in endpoints.iter().skip(2) {
        let last = ask(&mut store, &to(Some(endpoint))).await;
        let full = endpoint == endpoints.last().unwrap();
        assert_eq!(before(&store, last).await, full.then_some(first), "{endpoint}");
    }
}
