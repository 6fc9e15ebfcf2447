//! Against a real PostgreSQL.

use super::*;
use crate::control::state_fixture::{Fixture, dead, event};
use walhook_core::endpoint::Secret;
use walhook_core::event::EndpointId;
use walhook_core::halt::SourceIdentity;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{DisableEndpoint, PersistBatch};
use walhook_postgres::ident::quote_ident;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::source;

async fn status(config: &Config) -> StatusView {
    read(config, None).await.unwrap()
}

#[tokio::test]
async fn status_says_what_is_locked_and_waits_no_longer() {
    let fixture = Fixture::start().await;
    let config = fixture.config();
    let lock = format!("BEGIN; LOCK TABLE {}.checkpoint", quote_ident(&config.state.schema));
    let slot = "SELECT pg_create_logical_replication_slot('p', 'pgoutput')";
    fixture.admin.query_one(slot, &[]).await.unwrap();
    fixture.admin.batch_execute(&lock).await.unwrap();
    let patience = 2 * LOCK_TIMEOUT;
    let Err(unanswered) = tokio::time::timeout(patience, read(&config, None)).await.unwrap() else {
        panic!("what is locked was read")
    };
    let why = unanswered.failure.to_string();
    assert!(why.contains("lock timeout; let the transaction end that holds the lock"), "{why}");
    // What there is time for is told all the same.
    assert_eq!(unanswered.view.slot.as_ref().unwrap().wal_status, "reserved", "{unanswered:?}");
}

#[tokio::test]
async fn status_shows_the_pipeline_and_why_it_has_halted() {
    let fixture = Fixture::start().await;
    let config = fixture.config();
    let found = status(&config).await;
    assert!(found.slot.is_none() && found.source_error.is_none(), "{found:?}");
    // The state's source is another: what to do is said once.
    let problem = found.slot_problem.unwrap();
    assert!(problem.contains("upgrade finish") && !problem.contains("--accept-gap"), "{problem}");
    let source = Conninfo::parse(&config.source.url).unwrap();
    let ours = source::identity(&fixture.admin, &source).await.unwrap();
    let SourceIdentity { system_identifier, timeline, host, database } = ours;
    let meta = format!(
        "UPDATE {}.meta SET system_identifier = {system_identifier}, timeline = {timeline},
                host = '{host}', database = '{database}'",
        quote_ident(&config.state.schema)
    );
    fixture.admin.batch_execute(&meta).await.unwrap();
    let problem = status(&config).await.slot_problem.unwrap();
    assert!(problem.contains("`walhook recover --accept-gap`"), "{problem}");

    let slot = "SELECT pg_create_logical_replication_slot('p', 'pgoutput')";
    fixture.admin.query_one(slot, &[]).await.unwrap();
    let mut store = fixture.open().await;
    store.take_lease("host:1").await.unwrap();
    let batch = PersistBatch {
        frontier: Lsn(0x200),
        dead_letters: vec![dead(&event(0x300, "1"), "7")],
        disabled: vec![DisableEndpoint {
            endpoint: EndpointId::new("7"),
            reason: "answered 410".into(),
        }],
        ..PersistBatch::default()
    };
    store.persist(&batch).await.unwrap();
    let found = status(&config).await;
    let LeaderView { running, answers, holder, epoch, since } = &found.leader;
    assert!(!answers);
    assert_eq!((*running, holder.as_deref(), *epoch), (Some(false), Some("host:1"), 1));
    assert!(since.is_some());
    let slot = found.slot.unwrap();
    assert_eq!((slot.active, slot.wal_status, slot.safe_bytes), (false, "reserved", None));
    let problem = found.slot_problem.unwrap();
    assert!(problem.contains("replication slot \"p\" begins at "), "{problem}");
    let CheckpointView { frontier, written_at, lag_bytes } = &found.checkpoint;
    assert!(frontier == "0/200" && written_at.starts_with('2') && lag_bytes.unwrap() > 0);
    assert_eq!(found.dead_letters["exhausted"], 1);
    assert_eq!((found.endpoints["disabled"], found.deferred), (1, 0));
    assert!(found.invalid_endpoints.error.is_some() && found.state_bytes > 0);
    let [disabled] = &found.disabled_endpoints[..] else { panic!() };
    assert_eq!((&*disabled.endpoint, &*disabled.reason), ("7", "answered 410"));
    let since = &disabled.disabled_at;
    assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
    assert!(found.halted.is_none());

    store.store_halt("the slot is lost").await.unwrap();
    assert_eq!(status(&config).await.halted.unwrap().reason, "the slot is lost");
}

#[tokio::test]
async fn status_says_what_the_state_holds_when_the_source_is_down() {
    let fixture = Fixture::start().await;
    let mut config = fixture.config();
    config.state.url = Some(fixture.url.clone().into());
    config.source.url = Secret::new("postgres://x:hush@127.0.0.1:1/x").into();
    let found = status(&config).await;
    assert!(found.source_error.is_some() && found.slot_problem.is_none(), "{found:?}");
    assert_eq!((&*found.checkpoint.frontier, found.checkpoint.lag_bytes), ("0/100", None));
    let json = serde_json::to_string(&found).unwrap();
    assert!(!json.contains("hush"), "{json}");
    config.state.url = None;
    let unanswered = read(&config, None).await.unwrap_err();
    assert!(matches!(unanswered.failure, Failure::Failed(_)), "{unanswered:?}");
}
