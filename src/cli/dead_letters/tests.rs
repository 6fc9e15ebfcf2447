//! Against a real PostgreSQL.

use std::io::IsTerminal;

use tokio::time::sleep;

use super::*;
use crate::cli::filter::Shared;
use crate::cli::state_fixture::{Fixture, dead, event};
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
    let store = with_letters(&fixture).await;
    let ids = async |filters: Filters| -> Vec<i64> {
        let list = List { filters, limit: 10, after: 0 };
        page(&store, &list).await.unwrap().letters.iter().map(|letter| letter.id).collect()
    };
    assert_eq!(ids(Filters::default()).await, [1, 2, 3, 4]);
    assert_eq!(ids(filters(Some("7"), None, None)).await, [1, 2]);
    assert_eq!(ids(filters(Some("7"), Some("2"), None)).await, [2]);
    assert_eq!(ids(filters(None, None, Some("unroutable"))).await, [4]);
    let of = |shared| Filters { shared, reason: None };
    let of_type = |name: &str| of(Shared { event_type: Some(name.into()), ..Shared::default() });
    assert_eq!(ids(of_type("a.b")).await.len(), 4);
    assert_eq!(ids(of_type("a.c")).await.len(), 0);
    let now = walhook_process::clock::unix_us();
    let since = |at| of(Shared { since: Some(at), ..Shared::default() });
    let until = |at| of(Shared { until: Some(at), ..Shared::default() });
    assert_eq!(ids(since(now - 60_000_000)).await.len(), 4);
    assert_eq!(ids(since(now + 60_000_000)).await.len(), 0);
    assert_eq!(ids(until(now - 60_000_000)).await.len(), 0);

    let mut after = 0;
    let mut pages = Vec::new();
    loop {
        let list = List { filters: Filters::default(), limit: 3, after };
        let page = page(&store, &list).await.unwrap();
        pages.push(page.letters.len());
        let Some(next) = page.next_after else { break };
        assert!(page.to_text().ends_with("--after 3"), "{}", page.to_text());
        after = next;
    }
    assert_eq!(pages, [3, 1]);
    let exact = List { filters: Filters::default(), limit: 4, after: 0 };
    assert_eq!(page(&store, &exact).await.unwrap().next_after, None);
}

#[tokio::test]
async fn show_prints_the_body_as_it_was_sent() {
    let fixture = Fixture::start().await;
    let store = with_letters(&fixture).await;
    let letters = store.dead_letters(&DeadLetterFilter::default(), 0, 1).await.unwrap();
    let json = serde_json::to_value(print::whole(&letters[0]).unwrap()).unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&event(0x210, "1").body()).unwrap();
    assert_eq!(json["body"], sent);
    assert_eq!(json["endpoint"], "7");
    let text = print::whole_text(&letters[0]);
    assert!(text.contains("\"data\":{\"id\":1}") && text.contains("20F in 0/210"), "{text}");

    let (_file, common) = fixture.common(true);
    let show = |id| Args { command: Command::Show { id } };
    run(show(1), &common).await.unwrap();
    let error = run(show(99), &common).await.unwrap_err();
    assert!(matches!(error, Failure::Failed(_)), "{error:?}");
}

fn retry(selection: Selection, wait: Duration) -> Args {
    Args { command: Command::Retry(Retry { selection, wait }) }
}

fn of_endpoint(endpoint: &str) -> Selection {
    Selection { filters: filters(Some(endpoint), None, None), ..Selection::default() }
}

/// Does what the leader does with the next job; `fail` says whose retries fail.
async fn carry_out(leader: &mut StateStore, fail: i64) {
    let job = loop {
        match leader.next_job().await.unwrap() {
            Some(job) => break job,
            None => sleep(Duration::from_millis(10)).await,
        }
    };
    let Ask::RetryDeadLetters(filter) = &job.ask else { panic!("{job:?}") };
    let letters = leader.dead_letters_to_retry(job.id, filter, 0, 100).await.unwrap();
    let retried = letters
        .iter()
        .map(|letter| Retried {
            dead_letter: letter.id,
            job: job.id,
            error: (letter.id == fail).then(|| dead(&letter.event, "7")),
        })
        .collect();
    let batch = PersistBatch { frontier: Lsn(0x100), retried, ..PersistBatch::default() };
    leader.persist(&batch).await.unwrap();
    leader.finish_job(job.id, None).await.unwrap();
}

#[tokio::test]
async fn retry_waits_for_the_leader_and_fails_when_one_fails_again() {
    let fixture = Fixture::start().await;
    let mut leader = with_letters(&fixture).await;
    let (_file, common) = fixture.common(false);
    let minute = Duration::from_secs(60);
    let nothing = run(retry(of_endpoint("99"), minute), &common).await.unwrap_err();
    assert!(format!("{nothing:?}").contains("no dead letter"), "{nothing:?}");

    let (end, ()) = futures_util::join!(
        run(retry(of_endpoint("7"), minute), &common),
        carry_out(&mut leader, 2)
    );
    assert!(format!("{:?}", end.unwrap_err()).contains("1 of 2 failed again"));
    assert_eq!(fixture.count("dead_letters").await, 3);

    let two = Selection { ids: vec![2], ..Selection::default() };
    let (end, ()) =
        futures_util::join!(run(retry(two, minute), &common), carry_out(&mut leader, 0));
    end.unwrap();
    assert_eq!(fixture.count("dead_letters").await, 2);

    // Nobody carries this one out.
    let late = run(retry(of_endpoint("8"), Duration::from_millis(300)), &common).await;
    let late = late.unwrap_err();
    assert!(format!("{late:?}").contains("not finished"), "{late:?}");
    run(retry(of_endpoint("8"), Duration::ZERO), &common).await.unwrap();
}

#[tokio::test]
async fn discard_removes_what_is_selected_and_asks_before() {
    let fixture = Fixture::start().await;
    let _store = with_letters(&fixture).await;
    let (_file, common) = fixture.common(false);
    let discard = |selection, yes| Args { command: Command::Discard(Discard { selection, yes }) };
    let everything = run(discard(Selection::default(), true), &common).await.unwrap_err();
    assert!(matches!(everything, Failure::Usage(_)), "{everything:?}");
    if !std::io::stdin().is_terminal() {
        let unasked = run(discard(of_endpoint("7"), false), &common).await.unwrap_err();
        assert!(matches!(unasked, Failure::Usage(_)), "{unasked:?}");
    }
    assert_eq!(fixture.count("dead_letters").await, 4);
    run(discard(of_endpoint("7"), true), &common).await.unwrap();
    assert_eq!(fixture.count("dead_letters").await, 2);
    assert_eq!(fixture.count("bodies").await, 2, "one event is left with endpoint 8");
    let all = Selection { all: true, ..Selection::default() };
    run(discard(all, true), &common).await.unwrap();
    assert_eq!((fixture.count("dead_letters").await, fixture.count("bodies").await), (0, 0));
}

#[test]
fn command_line_is_consistent() {
    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    <Cli as clap::CommandFactory>::command().debug_assert();
    let parse = |line: &str| <Cli as clap::Parser>::try_parse_from(line.split(' '));
    parse("x list --type a.b --reason exhausted --since 2h --limit 5 --after 9").unwrap();
    parse("x retry 1 2 --wait 5s").unwrap();
    parse("x discard --account 7 --yes").unwrap();
    assert!(parse("x list --reason boredom").is_err());
    assert!(parse("x show").is_err());
}
