//! What an operator's commands change.

use std::collections::BTreeMap;

use super::super::Reads::{self, Few, Once, OnceAhead};
use super::{NEW_TYPE, filled, some};
use crate::{Ask, DeadLetterFilter, DeferredCursor, DeferredFilter, StateStore};
use walhook_core::id::JobId;

/// As jobs, which the leader carries out.
pub(super) async fn changing(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>) {
    let any = DeadLetterFilter::default();
    let asked = store.create_job(&Ask::RetryDeadLetters(any.clone())).await.unwrap();
    if let Some(job) = asked {
        step!(
            done,
            store,
            dead_letters_to_retry,
            Few,
            store.dead_letters_to_retry(job.id, &any, 1, 8)
        );
        step!(done, store, retried_in_vain, Once, store.retried_in_vain(job.id, 8));
        step!(done, store, retry_ends, Few, store.finish_job(job.id, None));
    }
    let ids = Some(some().iter().map(|n| filled(*n).id.to_string()).collect());
    let named = DeferredFilter { ids, ..DeferredFilter::default() };
    let begin = DeferredCursor::default();
    step!(done, store, begin_hurry, Once, store.begin_hurry(JobId(1), &named));
    let all_of = DeferredFilter { endpoint: Some("none".into()), ..DeferredFilter::default() };
    step!(done, store, begin_hurry_of, Once, store.begin_hurry(JobId(1), &all_of));
    step!(done, store, hurry_deferred, Few, store.hurry_deferred(JobId(1), &named, &begin));
    step!(done, store, discard_pages, Few, async {
        match store.discard_pages(JobId(1), &named, None, Some(1)).await? {
            Some(gone) => gone.commit().await.map(Some),
            None => Ok(None),
        }
    });
    step!(done, store, discard_deferred, Few, async {
        store.discard_deferred(Some(JobId(1)), &named, &begin, Some(1)).await.map(drop)
    });
    step!(done, store, commit, Few, async {
        match store.discard_deferred(Some(JobId(1)), &named, &begin, Some(1)).await? {
            Some(gone) => gone.commit().await.map(Some),
            None => Ok(None),
        }
    });
    let newest = Some(NEW_TYPE.to_owned());
    let newest = DeferredFilter { event_type: newest, ..DeferredFilter::default() };
    let hurried = step!(
        done,
        store,
        hurry_newest,
        OnceAhead,
        store.hurry_deferred(JobId(1), &newest, &begin)
    );
    let gone = step!(done, store, discard_newest_rows, OnceAhead, async {
        match store.discard_deferred(Some(JobId(1)), &newest, &begin, Some(1)).await? {
            Some(gone) => gone.commit().await.map(Some),
            None => Ok(None),
        }
    });
    assert!([hurried, gone].into_iter().all(|changed| changed.is_some_and(|c| !c.rows.is_empty())));
    step!(done, store, close_gap, Few, store.close_gap(3, Some("known")));
}

/// Without the leader.
pub(super) async fn discarding(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>) {
    let any = DeadLetterFilter::default();
    step!(done, store, discard_dead_letters, OnceAhead, async {
        let ids = Some(some().iter().map(|n| n.cast_signed() + 1).collect());
        store.discard_dead_letters(&DeadLetterFilter { ids, ..any.clone() }).await
    });
    let newest = Some(NEW_TYPE.to_owned());
    let newest = DeadLetterFilter { event_type: newest, ..any };
    let gone = step!(done, store, discard_newest, OnceAhead, store.discard_dead_letters(&newest));
    assert!(gone > 0);
}
