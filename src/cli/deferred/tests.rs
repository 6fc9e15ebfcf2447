//! Against a real PostgreSQL.

use super::*;
use crate::cli::filter::Shared;
use crate::cli::state_fixture::{Fixture, defer, event};
use std::sync::Arc;
use walhook_core::event::{AccountId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Defer, DeferReason, PersistBatch, Tried, UnroutedAccount};
use walhook_state::{DeferredFilter, JobState};

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

fn filters(endpoint: Option<&str>, account: Option<&str>, reason: Option<&str>) -> Filters {
    let shared = Shared {
        endpoint: endpoint.map(str::to_owned),
        account: account.map(str::to_owned),
        ..Shared::default()
    };
    Filters { shared, reason: reason.map(str::to_owned) }
}

#[tokio::test]
async fn list_filters_and_pages() {
    let fixture = Fixture::start().await;
    let (store, one) = with_rows(&fixture).await;
    let count = async |filters: Filters| {
        page(&store, &List { filters, limit: 9, ..List::default() }).await.unwrap().deferred.len()
    };
    assert_eq!(count(Filters::default()).await, 3);
    assert_eq!(count(filters(Some("7"), None, None)).await, 2);
    assert_eq!(count(filters(Some("7"), Some("1"), None)).await, 1);
    assert_eq!(count(filters(None, None, Some("overflow"))).await, 1);
    let of = |shared| Filters { shared, reason: None };
    let of_type = |name: &str| of(Shared { event_type: Some(name.into()), ..Shared::default() });
    assert_eq!((count(of_type("a.b")).await, count(of_type("a.c")).await), (3, 0));
    let now = walhook_process::clock::unix_us();
    let since = |at| of(Shared { since: Some(at), ..Shared::default() });
    let until = |at| of(Shared { until: Some(at), ..Shared::default() });
    assert_eq!(count(since(now - 60_000_000)).await, 3);
    assert_eq!(count(since(now + 60_000_000)).await, 0);
    assert_eq!(count(until(now - 60_000_000)).await, 0);
    let of_event = List { event: Some(one.id.to_string()), limit: 9, ..List::default() };
    assert_eq!(page(&store, &of_event).await.unwrap().deferred.len(), 2);

    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = page(&store, &List { limit: 1, after, ..List::default() }).await.unwrap();
        seen.extend(page.deferred.iter().map(|row| (row.event_id.clone(), row.endpoint.clone())));
        let Some(next) = &page.next_after else { break };
        assert!(page.to_text().ends_with(&format!("--after {next}")), "{}", page.to_text());
        after = Some(cursor(next).unwrap());
    }
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(cursor("evt_x").is_err());
}

#[tokio::test]
async fn list_says_what_was_tried_and_when_next() {
    let fixture = Fixture::start().await;
    let (store, one) = with_rows(&fixture).await;
    let list = List { event: Some(one.id.to_string()), limit: 9, ..List::default() };
    let page = page(&store, &list).await.unwrap();
    let text = page.to_text();
    for part in ["failed", "status 503", "2025-11-23T17:46:10.000001Z", &one.id.to_string()] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert!(!text.contains('\0'));
    let json = serde_json::to_value(&page).unwrap();
    let row = &json["deferred"][0];
    assert_eq!((&row["attempts"], &row["last_status"]), (&1.into(), &503.into()));
    assert_eq!(row["next_attempt_at"], "2025-11-23T17:46:10.000001Z");
    assert_eq!(row["history"][0]["latency_ms"], 12);
    assert_eq!((&row["account_id"], &row["type"]), (&"1".into(), &"a.b".into()));
    assert_eq!(json["next_after"], serde_json::Value::Null);
}

#[tokio::test]
async fn list_ends_with_what_waits_without_an_endpoint_by_the_filter() {
    let fixture = Fixture::start().await;
    let (mut store, _) = with_rows(&fixture).await;
    let page_of = async |store: &StateStore, shared, reason: Option<&str>| {
        let filters = Filters { shared, reason: reason.map(str::to_owned) };
        page(store, &List { filters, limit: 9, ..List::default() }).await.unwrap()
    };
    let page = page_of(&store, Shared::default(), None).await;
    assert!(page.without_endpoint.is_none() && !page.to_text().contains("without an endpoint"));

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

    let text = page_of(&store, Shared::default(), None).await.to_text();
    let last = text.lines().last().unwrap();
    let begins = "without an endpoint: 14 events wait (by account: 40: 2, 50: 1, ";
    assert!(last.starts_with(begins) && last.contains("others: "), "{text}");
    assert!(last.contains("of 13 accounts cannot") && last.contains("`walhook check`"), "{text}");
    assert!(text.contains("evt_"), "the deliveries are listed too:\n{text}");

    let account = |account: &str| Shared { account: Some(account.into()), ..Shared::default() };
    let page = page_of(&store, account("40"), None).await;
    assert!(page.to_text().starts_with("no deferred delivery fits\nwithout"), "{page:?}");
    let json = serde_json::to_value(&page).unwrap();
    let waiting = &json["without_endpoint"];
    assert_eq!((&waiting["events"], &waiting["accounts"]), (&2.into(), &1.into()));
    assert_eq!(waiting["most"], serde_json::json!([{ "account_id": "40", "events": 2 }]));
    assert!(waiting["since"].as_str().unwrap().ends_with('Z') && waiting["fix"].is_string());

    let of_type = |name: &str| Shared { event_type: Some(name.into()), ..Shared::default() };
    let of = |endpoint: &str| Shared { endpoint: Some(endpoint.into()), ..Shared::default() };
    let soon = walhook_process::clock::unix_us() + 60_000_000;
    for (shared, reason, shown) in [
        (account("41"), None, false),
        (of_type("a.b"), None, true),
        (of_type("a.c"), None, false),
        (Shared::default(), Some("unrouted"), true),
        (Shared::default(), Some("failed"), false),
        // They may be for this endpoint: nobody knows.
        (of("7"), None, true),
        (Shared { replay: Some(3), ..Shared::default() }, None, false),
        (Shared { since: Some(soon), ..Shared::default() }, None, false),
        (Shared { until: Some(soon), ..Shared::default() }, None, true),
    ] {
        let case = format!("{shared:?} {reason:?}");
        let json = serde_json::to_value(page_of(&store, shared, reason).await).unwrap();
        assert_eq!(!json["without_endpoint"].is_null(), shown, "{case}");
    }
}

/// Does what the leader does with the next job.
async fn carry_out_next(leader: &mut StateStore, kind: &str) -> JobState {
    let job = loop {
        match leader.next_job().await.unwrap() {
            Some(job) => break job,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(job.ask.kind(), kind);
    match &job.ask {
        Ask::RetryDeferred(filter) => {
            let mut at = DeferredCursor::default();
            while let Some(changed) = leader.hurry_deferred(job.id, filter, &at).await.unwrap() {
                at = changed.next;
            }
        }
        Ask::DiscardDeferred(filter) => {
            let mut at = DeferredCursor::default();
            while let Some(changed) = leader.discard_deferred(job.id, filter, &at).await.unwrap() {
                at = changed.next;
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
    let (_file, common) = fixture.common(false);
    let wait = Duration::from_secs(60);
    let retry = |selection, wait| Args { command: Command::Retry(Retry { selection, wait }) };
    let of = |endpoint| Selection {
        filters: filters(Some(endpoint), None, None),
        ..Selection::default()
    };
    let nothing = run(retry(of("99"), wait), &common).await.unwrap_err();
    assert!(format!("{nothing:?}").contains("no deferred delivery fits"), "{nothing:?}");
    let (end, job) = futures_util::join!(
        run(retry(of("7"), wait), &common),
        carry_out_next(&mut leader, "deferred.retry")
    );
    end.unwrap();
    // Of the two, one has not been tried yet and so waits for nothing.
    assert_eq!((job.total, job.done, job.failed), (2, 1, 0));
    let due: Vec<bool> = leader
        .deferred(&DeferredFilter::default(), &DeferredCursor::default(), 9)
        .await
        .unwrap()
        .iter()
        .map(|row| row.next_attempt_at_us.is_none())
        .collect();
    assert_eq!(due.iter().filter(|due| **due).count(), 2, "that of endpoint 8 still waits");

    let discard =
        |selection, yes| Args { command: Command::Discard(Discard { selection, yes, wait }) };
    assert!(matches!(
        run(discard(Selection::default(), true), &common).await,
        Err(Failure::Usage(_))
    ));
    let event = Selection { events: vec![one.id], ..Selection::default() };
    let (end, job) = futures_util::join!(
        run(discard(event, true), &common),
        carry_out_next(&mut leader, "deferred.discard")
    );
    end.unwrap();
    assert_eq!(job.done, 2);
    assert_eq!((fixture.count("deferred").await, fixture.count("bodies").await), (1, 1));

    // Nobody carries this one out.
    let late = run(retry(of("7"), Duration::from_millis(300)), &common).await.unwrap_err();
    assert!(format!("{late:?}").contains("not finished"), "{late:?}");
}
