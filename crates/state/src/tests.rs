//! Against a real PostgreSQL.

mod deferred;
mod discards;
mod gaps;
mod jobs;
mod letters;
mod load;
mod maintenance;
mod open_transactions;
mod pages;
mod plans;
mod reached;
mod replays;
mod text;
mod unrouted;
mod went_back;
mod workers;

use std::time::Duration;

use super::fixture::{Fixture, SCHEMA, dead, event, range};
use super::schema::NEWEST_TABLE;
use super::store::IDLE_IN_TRANSACTION;
use super::*;
use walhook_core::endpoint::Secret;
use walhook_core::event::EndpointId;
use walhook_core::id::{DeadLetterId, Epoch, JobId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    DeadReason, DisableEndpoint, JobDone, PauseEndpoint, PersistBatch, Retried,
};
use walhook_postgres::fix::Failure;
use walhook_postgres::ident::quote_ident;

fn batch(frontier: u64) -> PersistBatch {
    PersistBatch { frontier: Lsn(frontier), ..PersistBatch::default() }
}

fn disable(endpoint: &str) -> DisableEndpoint {
    DisableEndpoint { endpoint: EndpointId::new(endpoint), reason: "answered 410".into() }
}

/// Until the server shows a session that waits for a lock.
async fn until_somebody_waits(fixture: &Fixture) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    let wait = async {
        while fixture.admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("nobody waits for a lock");
}

#[tokio::test]
async fn state_opens_only_what_was_set_up_for_this_program() {
    let fixture = Fixture::start().await;
    let open = async |schema: &str, pipeline: &str| {
        StateStore::open(&fixture.url, schema, pipeline).await.unwrap_err()
    };
    for error in [open("elsewhere", "p").await, open(SCHEMA, "other").await] {
        assert!(matches!(error, StateError::NotSetUp { .. }), "{error}");
        assert!(
            !error.fixed_by().is_waiting() && error.to_string().contains("walhook setup"),
            "{error}"
        );
    }
    let error = open(SCHEMA, "other").await;
    let (says, fix) = (error.to_string(), error.fix());
    for text in [says.as_str(), &fix] {
        assert!(text.contains("set `source.slot` back to p if"), "{text}");
    }
    let store = fixture.open().await;
    let identity = store.source_identity().await.unwrap();
    assert_eq!(identity.system_identifier, u64::MAX);
    assert_eq!((identity.timeline, identity.host.as_str()), (3, "db.example"));
    assert_eq!(store.frontier().await.unwrap(), Lsn(0x100));

    let s = quote_ident(SCHEMA);
    fixture.admin.batch_execute(&schema_sql(SCHEMA)).await.expect("the schema applies twice");
    let older = format!("DROP TABLE {s}.{NEWEST_TABLE} CASCADE");
    fixture.admin.batch_execute(&older).await.unwrap();
    let error = open(SCHEMA, "p").await;
    let told = error.to_string();
    assert!(told.contains(NEWEST_TABLE) && told.contains("walhook setup"), "{told}");
    let newer = format!("UPDATE {s}.meta SET schema_version = {}", SCHEMA_VERSION + 1);
    fixture.admin.batch_execute(&newer).await.unwrap();
    let too_new = open(SCHEMA, "p").await;
    assert!(matches!(too_new, StateError::SchemaTooNew { found } if found > SCHEMA_VERSION));

    let gone = StateStore::open(&Secret::new("postgres://x@127.0.0.1:1/x"), SCHEMA, "p").await;
    let gone = gone.unwrap_err();
    assert!(matches!(gone, StateError::Connection(_)) && gone.fixed_by().is_waiting(), "{gone}");
    let unknown = Secret::new(fixture.cluster.url("nowhere"));
    let unknown = StateStore::open(&unknown, SCHEMA, "p").await.unwrap_err();
    assert!(!unknown.fixed_by().is_waiting(), "{unknown}");
}

#[tokio::test]
async fn state_recovers_what_was_persisted_also_when_it_was_persisted_twice() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    let first = store.take_lease("one").await.unwrap();
    assert_eq!((first.epoch, first.start.frontier), (Epoch(1), Lsn(0x100)));
    let (one, two) = (event(0x210, "1"), event(0x220, "1"));
    let full = PersistBatch {
        frontier: Lsn(0x200),
        settled: vec![range(0x230, 0x240), range(0x200, 0x300)],
        dead_letters: vec![dead(&one, "7"), dead(&one, "8"), dead(&two, "7"), dead(&one, "7")],
        disabled: vec![disable("7"), disable("8")],
        ..PersistBatch::default()
    };
    store.persist(&full).await.unwrap();
    store.reconnect().await.unwrap();
    store.persist(&full).await.unwrap();
    assert_eq!(fixture.count("dead_letters").await, 3, "one a delivery");
    assert_eq!(fixture.count("bodies").await, 2, "one an event");

    let mut next = fixture.open().await;
    let recovery = next.take_lease("two").await.unwrap();
    assert_eq!((recovery.epoch, recovery.start.frontier), (Epoch(2), Lsn(0x200)));
    assert_eq!(recovery.start.settled, [full.settled.clone(), full.settled].concat());
    assert_eq!(recovery.start.disabled, full.disabled);

    // A range that commits at the frontier is not passed by it.
    let on = PersistBatch { enabled: vec![EndpointId::new("7")], ..batch(0x300) };
    next.persist(&on).await.unwrap();
    assert_eq!(fixture.count("settled").await, 2);
    next.persist(&batch(0x301)).await.unwrap();
    let recovery = next.take_lease("two").await.unwrap();
    assert_eq!((recovery.start.settled, recovery.start.disabled), (vec![], vec![disable("8")]));
}

#[tokio::test]
async fn state_refuses_a_frontier_that_decreases_and_writes_nothing() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    let unleased = store.persist(&batch(0x200)).await.unwrap_err();
    assert!(matches!(unleased, StateError::Fenced { .. }), "{unleased}");
    store.take_lease("one").await.unwrap();
    store.persist(&batch(0x200)).await.unwrap();
    let back = PersistBatch { dead_letters: vec![dead(&event(0x10, "1"), "7")], ..batch(0x1ff) };
    let error = store.persist(&back).await.unwrap_err();
    assert!(
        matches!(error, StateError::FrontierDecreases { stored: Lsn(0x200), asked: Lsn(0x1ff) }),
        "{error}"
    );
    assert!(!error.fixed_by().is_waiting());
    assert_eq!(fixture.count("dead_letters").await, 0);
    store.persist(&batch(0x200)).await.expect("the session is fit for use, and equal is not lower");
}

#[tokio::test]
async fn state_bump_waits_for_the_old_leaders_transaction_and_fences_its_next() {
    let fixture = Fixture::start().await;
    let mut old = fixture.open().await;
    old.take_lease("old").await.unwrap();
    let mut new = fixture.open().await;

    // The old leader is past the fence and has written, but has not committed.
    let tx = old.connection.transaction().await.unwrap();
    fence(&tx, &old.scope, Epoch(1)).await.unwrap();
    let s = quote_ident(SCHEMA);
    let advance = format!("UPDATE {s}.checkpoint SET frontier = '0/150'");
    tx.batch_execute(&advance).await.unwrap();

    let bump = new.take_lease("new");
    let let_go = async {
        until_somebody_waits(&fixture).await;
        tx.commit().await.unwrap();
    };
    let (recovery, ()) = futures_util::join!(bump, let_go);
    let recovery = recovery.unwrap();
    assert_eq!(
        (recovery.epoch, recovery.start.frontier),
        (Epoch(2), Lsn(0x150)),
        "what it wrote is seen"
    );

    let late = PersistBatch { dead_letters: vec![dead(&event(0x10, "1"), "7")], ..batch(0x900) };
    let error = old.persist(&late).await.unwrap_err();
    assert!(
        matches!(error, StateError::Fenced { epoch: Some(Epoch(1)) })
            && !error.fixed_by().is_waiting(),
        "{error}"
    );
    assert!(matches!(old.store_halt("x").await, Err(StateError::Fenced { .. })));
    assert!(matches!(old.finish_job(JobId(1), None).await, Err(StateError::Fenced { .. })));
    assert_eq!(fixture.count("dead_letters").await, 0);
    assert_eq!(new.frontier().await.unwrap(), Lsn(0x150));
}

#[tokio::test]
async fn state_write_that_meets_an_uncommitted_bump_waits_and_is_fenced() {
    let fixture = Fixture::start().await;
    let mut old = fixture.open().await;
    old.take_lease("old").await.unwrap();
    let mut new = fixture.open().await;
    let tx = new.connection.transaction().await.unwrap();
    let bump = format!("UPDATE {}.lease SET epoch = epoch + 1", quote_ident(SCHEMA));
    tx.batch_execute(&bump).await.unwrap();
    let late = batch(0x900);
    let write = old.persist(&late);
    let let_go = async {
        until_somebody_waits(&fixture).await;
        tx.commit().await.unwrap();
    };
    let (result, ()) = futures_util::join!(write, let_go);
    assert!(matches!(result, Err(StateError::Fenced { epoch: Some(Epoch(1)) })));
    assert_eq!(old.frontier().await.unwrap(), Lsn(0x100));
}

#[tokio::test]
async fn lease_is_not_taken_once_a_later_setup_has_raised_the_version_of_the_tables() {
    let fixture = Fixture::start().await;
    let (mut leader, mut standby) = (fixture.open().await, fixture.open().await);
    leader.take_lease("one").await.unwrap();
    let later = SCHEMA_VERSION + 1;
    let raise = format!("UPDATE {}.meta SET schema_version = {later}", quote_ident(SCHEMA));
    fixture.admin.batch_execute(&raise).await.unwrap();
    let refused = standby.take_lease("two").await.unwrap_err();
    assert!(matches!(refused, StateError::SchemaTooNew { found } if found == later), "{refused}");
    assert!(!refused.fixed_by().is_waiting(), "{refused}");
    let refused = standby.go_on(Lsn(0x100)).await.unwrap_err();
    assert!(matches!(refused, StateError::SchemaTooNew { found } if found == later), "{refused}");
    assert_eq!((standby.epoch(), standby.current_epoch().await.unwrap()), (None, Epoch(1)));
    leader.persist(&batch(0x200)).await.expect("who leads already goes on as before");
}

#[tokio::test]
async fn state_survives_a_lost_session_and_frees_a_frozen_leaders_lock() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let row =
        store.connection.query_typed_one("SHOW idle_in_transaction_session_timeout", &[]).await;
    assert_eq!(row.unwrap().get::<_, &str>(0), IDLE_IN_TRANSACTION);

    // A leader that stands still inside a transaction, with less patience than is usual.
    let frozen = fixture.open().await;
    // One message: between two it might be ended already.
    let hold = format!(
        "SET idle_in_transaction_session_timeout = '300ms'; BEGIN; SELECT FROM {}.lease FOR SHARE",
        quote_ident(SCHEMA)
    );
    frozen.connection.batch_execute(&hold).await.unwrap();
    let wait = tokio::time::timeout(Duration::from_secs(20), store.take_lease("two"));
    assert_eq!(wait.await.expect("the lock is let go").unwrap().epoch, Epoch(2));

    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
    fixture.admin.query(kill, &[&SessionSettings::default().application_name]).await.unwrap();
    assert!(store.closed().await.is_some(), "the end of the session is noticed");
    let error = store.persist(&batch(0x200)).await.unwrap_err();
    assert!(error.fixed_by().is_waiting(), "{error}");
    store.reconnect().await.unwrap();
    store.persist(&batch(0x200)).await.unwrap();
}

#[tokio::test]
async fn retry_job_hands_out_each_dead_letter_once_and_counts_results_once() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let (one, two) = (event(0x210, "1"), event(0x220, "2"));
    let unroutable = walhook_core::persist::DeadLetter {
        endpoint: None,
        reason: DeadReason::Unroutable,
        ..dead(&event(0x230, ""), "")
    };
    let letters = vec![dead(&one, "7"), dead(&one, "8"), dead(&two, "7"), unroutable];
    store.persist(&PersistBatch { dead_letters: letters, ..batch(0x200) }).await.unwrap();
    assert_eq!(store.next_job_beside(&[], true).await.unwrap(), None);

    let asked = store
        .create_job(&Ask::RetryDeadLetters(DeadLetterFilter::default()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!((asked.total, asked.finished), (3, false), "the unroutable one cannot be sent");
    let later = dead(&event(0x240, "1"), "9");
    store.persist(&PersistBatch { dead_letters: vec![later], ..batch(0x200) }).await.unwrap();

    let job = store.next_job_beside(&[], true).await.unwrap().unwrap();
    assert_eq!(job.id, asked.id);
    let first =
        store.dead_letters_to_retry(job.id, &DeadLetterFilter::default(), 0, 2).await.unwrap();
    let rest = store
        .dead_letters_to_retry(job.id, &DeadLetterFilter::default(), first[1].id, 10)
        .await
        .unwrap();
    let found: Vec<_> = first.iter().chain(&rest).collect();
    let pairs: Vec<_> =
        found.iter().map(|l| (l.event.id, l.endpoint.clone().unwrap().to_string())).collect();
    assert_eq!(pairs, [(one.id, "7".into()), (one.id, "8".into()), (two.id, "7".into())]);
    let back = &found[0].event;
    assert_eq!(
        (back.position, &back.account, back.operation),
        (one.position, &one.account, one.operation)
    );
    assert_eq!(
        (back.commit_time_us, &back.row, back.body()),
        (one.commit_time_us, &one.row, one.body())
    );
    assert_eq!(back.keys, one.keys);
    assert_eq!((found[0].attempts, found[0].last_status), (2, Some(500)));
    assert_eq!(found[0].detail, "status 500\u{fffd}", "PostgreSQL's text holds no NUL");

    let error = Some(walhook_core::persist::DeadLetter {
        attempts: 1,
        last_status: None,
        history: Vec::new(),
        replay: None,
        detail: "refused".into(),
        ..dead(&one, "8")
    });
    let result =
        |at: usize, error| Retried { dead_letter: DeadLetterId(found[at].id), job: job.id, error };
    let results = PersistBatch { retried: vec![result(0, None), result(1, error)], ..batch(0x200) };
    store.persist(&results).await.unwrap();
    store.persist(&results).await.unwrap();
    let state = store.job(job.id).await.unwrap().unwrap();
    assert_eq!((state.done, state.failed), (1, 1), "a batch that is stored twice counts once");
    assert_eq!(fixture.count("bodies").await, 4, "the other endpoint still needs the body");
    let again =
        store.dead_letters_to_retry(job.id, &DeadLetterFilter::default(), 0, 10).await.unwrap();
    assert_eq!(again.iter().map(|l| l.event.id).collect::<Vec<_>>(), [two.id]);
    let failed = DeadLetterFilter { endpoint: Some("8".into()), ..DeadLetterFilter::default() };
    let failed = store.dead_letters(&failed, 0, 10).await.unwrap();
    assert_eq!((failed[0].attempts, failed[0].detail.as_str()), (3, "refused"));

    store.finish_job(job.id, None).await.unwrap();
    assert_eq!(store.next_job_beside(&[], true).await.unwrap(), None);
    assert!(store.job(job.id).await.unwrap().unwrap().finished);
}

#[tokio::test]
async fn unreadable_job_is_finished_with_an_error() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let insert = format!(
        "INSERT INTO {}.jobs (pipeline, kind, args) VALUES ('p', 'dead_letters.retry', '{{\"colour\": 1}}')",
        quote_ident(SCHEMA)
    );
    fixture.admin.batch_execute(&insert).await.unwrap();
    let none = store.create_job(&Ask::RetryDeadLetters(DeadLetterFilter::default())).await.unwrap();
    assert_eq!(none, None, "nothing to retry is no job");
    let letters = vec![dead(&event(0x210, "1"), "7")];
    store.persist(&PersistBatch { dead_letters: letters, ..batch(0x200) }).await.unwrap();
    let asked = store
        .create_job(&Ask::RetryDeadLetters(DeadLetterFilter::default()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(store.next_job_beside(&[], true).await.unwrap().unwrap().id, asked.id);
    let first = JobId(asked.id.0 - 1);
    let error = store.job(first).await.unwrap().unwrap().error.unwrap();
    assert!(error.contains("colour"), "{error}");
}

#[tokio::test]
async fn discard_keeps_a_body_that_another_dead_letter_needs() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    let (one, two) = (event(0x210, "1"), event(0x220, "2"));
    let letters = vec![dead(&one, "7"), dead(&one, "8"), dead(&two, "7")];
    store.persist(&PersistBatch { dead_letters: letters, ..batch(0x200) }).await.unwrap();
    let of = |endpoint: &str| DeadLetterFilter {
        endpoint: Some(endpoint.into()),
        ..DeadLetterFilter::default()
    };
    assert_eq!(store.discard_dead_letters(&of("7")).await.unwrap(), 2);
    assert_eq!(fixture.count("bodies").await, 1);
    assert_eq!(store.dead_letters(&of("8"), 0, 9).await.unwrap()[0].event.id, one.id);
    assert_eq!(store.discard_dead_letters(&of("8")).await.unwrap(), 1);
    assert_eq!(fixture.count("bodies").await, 0);
}

#[tokio::test]
async fn dead_letter_that_arrives_while_the_last_one_goes_has_its_body() {
    let fixture = Fixture::start().await;
    let mut leader = fixture.open().await;
    leader.take_lease("one").await.unwrap();
    let one = event(0x210, "1");
    let letter =
        |endpoint| PersistBatch { dead_letters: vec![dead(&one, endpoint)], ..batch(0x200) };
    leader.persist(&letter("7")).await.unwrap();

    // The operator's transaction has removed the letter and its body, but has not committed.
    let mut operator = fixture.open().await;
    let all = operator.dead_letters(&DeadLetterFilter::default(), 0, 9).await.unwrap();
    let tx = operator.connection.transaction().await.unwrap();
    hold_off_leader(&tx, &operator.scope).await.unwrap();
    let gone = persist::dead_letters::remove(&tx, &operator.scope, &[all[0].id], &[0]).await;
    assert_eq!(gone.unwrap(), 1);
    let arriving = letter("8");
    let let_go = async {
        until_somebody_waits(&fixture).await;
        tx.commit().await.unwrap();
    };
    let (stored, ()) = futures_util::join!(leader.persist(&arriving), let_go);
    stored.unwrap();
    let left = leader.dead_letters(&DeadLetterFilter::default(), 0, 9).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].endpoint.as_deref(), Some("8"));

    // And the other way round: the leader is about to add one, the operator removes the one before it.
    let mut waiting = fixture.open().await;
    let filter = DeadLetterFilter { ids: Some(vec![left[0].id]), ..DeadLetterFilter::default() };
    let tx = leader.connection.transaction().await.unwrap();
    fence(&tx, &leader.scope, Epoch(1)).await.unwrap();
    let copy =
        "INSERT INTO {s}.dead_letters (pipeline, event_id, endpoint, reason, detail, attempts)
                SELECT pipeline, event_id, '9', reason, detail, 1 FROM {s}.dead_letters";
    let copy = copy.replace("{s}", &quote_ident(SCHEMA));
    let let_go = async {
        until_somebody_waits(&fixture).await;
        tx.batch_execute(&copy).await.unwrap();
        tx.commit().await.unwrap();
    };
    let (removed, ()) = futures_util::join!(waiting.discard_dead_letters(&filter), let_go);
    assert_eq!(removed.unwrap(), 1);
    let left = leader.dead_letters(&DeadLetterFilter::default(), 0, 9).await.unwrap();
    assert_eq!(left[0].endpoint.as_deref(), Some("9"), "it has its body");
}

#[tokio::test]
async fn overview_shows_halt_gaps_and_dead_letters() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("host:1").await.unwrap();
    let full = PersistBatch {
        settled: vec![range(0x230, 0x240)],
        dead_letters: vec![dead(&event(0x210, "1"), "7")],
        disabled: vec![disable("7")],
        ..batch(0x200)
    };
    store.persist(&full).await.unwrap();
    store.store_halt("the slot is lost").await.unwrap();
    let gap = format!(
        "INSERT INTO {}.gaps (pipeline, from_lsn, to_lsn, reason) VALUES ('p', '0/1', '0/2', 'slot lost')",
        quote_ident(SCHEMA)
    );
    fixture.admin.batch_execute(&gap).await.unwrap();
    let seen = store.overview().await.unwrap();
    assert_eq!((seen.epoch, seen.holder.as_deref()), (Epoch(1), Some("host:1")));
    assert_eq!((seen.frontier, seen.settled_rows), (Lsn(0x200), 1));
    assert_eq!(seen.halt_reason.as_deref(), Some("the slot is lost"));
    assert!(seen.halted_at_us.is_some() && seen.taken_at_us.is_some());
    assert_eq!(seen.dead_letters, [("exhausted".to_owned(), 1)]);
    assert_eq!(seen.gaps[0].from_lsn, "0/1");
    assert_eq!(seen.disabled[0].reason, "answered 410");
    store.clear_halt().await.unwrap();
    let seen = store.overview().await.unwrap();
    assert_eq!((seen.halt_reason, seen.halted_at_us), (None, None));

    // One that never led cannot know whether another leads. Who stores something has not halted.
    fixture.open().await.store_halt("another cluster").await.unwrap();
    store.persist(&batch(0x200)).await.unwrap();
    let seen = store.overview().await.unwrap();
    assert_eq!((seen.halt_reason, seen.halted_at_us), (None, None));
}

#[tokio::test]
async fn paused_endpoints_are_recovered_with_their_job_ended_also_when_stored_twice() {
    let fixture = Fixture::start().await;
    let mut store = fixture.open().await;
    store.take_lease("one").await.unwrap();
    store.persist(&PersistBatch { disabled: vec![disable("7")], ..batch(0x200) }).await.unwrap();
    let stop = EndpointStop { endpoint: "7".into(), reason: "migration".into() };
    let asked = store.create_job(&Ask::PauseEndpoint(stop)).await.unwrap().unwrap();
    let job = store.next_job_beside(&[], true).await.unwrap().unwrap();
    assert_eq!((job.id, job.ask.kind()), (asked.id, "endpoints.pause"));
    let pause = PauseEndpoint {
        endpoint: EndpointId::new("7"),
        reason: "migration".into(),
        since_us: 1_700_000_000_000_000,
    };
    let jobs_done = vec![JobDone { job: job.id, done: 1 }];
    let paused = PersistBatch { paused: vec![pause.clone()], jobs_done, ..batch(0x200) };
    store.persist(&paused).await.unwrap();
    store.persist(&paused).await.unwrap();
    let ended = store.job(job.id).await.unwrap().unwrap();
    assert!(
        ended.finished
            && ended.done == 1
            && store.next_job_beside(&[], true).await.unwrap().is_none()
    );
    let seen = store.overview().await.unwrap();
    assert_eq!((seen.disabled.len(), seen.paused[0].reason.as_str()), (0, "migration"));
    let recovery = store.take_lease("two").await.unwrap();
    assert_eq!((recovery.start.disabled, recovery.start.paused), (vec![], vec![pause]));
    let on = PersistBatch { enabled: vec![EndpointId::new("7")], ..batch(0x300) };
    store.persist(&on).await.unwrap();
    assert_eq!(store.take_lease("three").await.unwrap().start.paused, []);
}
