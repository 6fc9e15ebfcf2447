//! A real state database for tests: of this crate, and of the commands, which include this file.
#![allow(dead_code, reason = "each of those that include it uses a part")]

use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use walhook_core::endpoint::Secret;
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    AttemptRecord, DeadLetter, DeadReason, Defer, DeferReason, EventKey, QueueId, RowId, RowKey,
    SettledRange, Tried,
};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_postgres::ident::{quote_ident, quote_literal};
use walhook_postgres::sql::{Connection, SERVER_SEARCH_PATH};
use walhook_state::{StateStore, schema_sql};
use walhook_testkit::cluster::Cluster;

/// A cluster whose database `postgres` holds the state of the pipeline `p`, at frontier 0/100.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) url: Secret,
    pub(crate) admin: Connection,
    pub(crate) cluster: Cluster,
}

pub(crate) const SCHEMA: &str = "wal\"hook";

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start_copied(&std::env::temp_dir(), settings).await.unwrap();
        let url = Secret::new(cluster.url("postgres"));
        let admin = Connection::open_with_path(&url, "test", SERVER_SEARCH_PATH).await.unwrap();
        set_up(&admin, "p").await;
        Self { url, admin, cluster }
    }

    pub(crate) async fn open(&self) -> StateStore {
        StateStore::open(&self.url, SCHEMA, "p").await.unwrap()
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {}.{table}", quote_ident(SCHEMA));
        self.admin.query_one(&sql, &[]).await.unwrap().get(0)
    }
}

pub(crate) async fn set_up(admin: &Client, pipeline: &str) {
    let s = quote_ident(SCHEMA);
    let p = quote_literal(pipeline);
    let sql = format!(
        "{}; INSERT INTO {s}.meta (pipeline, schema_version, system_identifier, timeline, host, database)
             VALUES ({p}, 1, 18446744073709551615, 3, 'db.example', 'app');
         INSERT INTO {s}.lease (pipeline, epoch) VALUES ({p}, 0);
         INSERT INTO {s}.checkpoint (pipeline, frontier) VALUES ({p}, '0/100');",
        schema_sql(SCHEMA)
    );
    admin.batch_execute(&sql).await.unwrap();
}

pub(crate) fn event(commit: u64, account: &str) -> Arc<Event> {
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(commit),
        change_lsn: Lsn(commit - 1),
        relation: u32::MAX,
        n: u32::MAX,
    });
    let commit_time_us = 1_763_919_960_123_456;
    Arc::new(Event {
        id: EventId::derive(1, &position, "a.b", commit_time_us),
        position,
        event_type: "a.b".into(),
        account: AccountId::new(account),
        operation: Operation::Update,
        commit_time_us,
        keys: RowKeys::from_slice(&[u64::MAX, 1]),
        row: Bytes::from_static(b"\"data\":{\"id\":1}"),
    })
}

pub(crate) fn dead(event: &Arc<Event>, endpoint: &str) -> DeadLetter {
    DeadLetter {
        event: Arc::clone(event),
        endpoint: Some(EndpointId::new(endpoint)),
        reason: DeadReason::Exhausted,
        detail: "status 500\0".into(),
        attempts: 2,
        last_status: Some(500),
        history: Vec::new(),
        replay: None,
    }
}

pub(crate) fn queue(endpoint: &str) -> QueueId {
    QueueId { account: AccountId::new("1"), endpoint: EndpointId::new(endpoint) }
}

pub(crate) fn row_id(event: &Event, endpoint: &str) -> RowId {
    RowId {
        queue: QueueId { account: event.account.clone(), endpoint: EndpointId::new(endpoint) },
        key: RowKey { event: EventKey::of(event), replay: None },
        event: event.id,
    }
}

/// A delivery that was tried once, in vain.
pub(crate) fn defer(event: &Arc<Event>, endpoint: &str) -> Defer {
    Defer {
        id: row_id(event, endpoint),
        event: Arc::clone(event),
        reason: DeferReason::Failed,
        tried: tried(1),
    }
}

/// What is known after that many attempts; tells of the last one.
pub(crate) fn tried(attempts: u32) -> Tried {
    Tried {
        attempts,
        first_attempt_us: Some(1_763_919_960_000_001),
        due_us: Some(1_763_919_970_000_000 + i64::from(attempts)),
        last_status: Some(503),
        detail: "status 503\0".into(),
        history: vec![AttemptRecord {
            at_us: 1_763_919_960_000_000 + i64::from(attempts),
            status: Some(503),
            latency: Duration::from_millis(12),
            error: format!("attempt {attempts}\0"),
        }],
    }
}

pub(crate) fn range(from: u64, to: u64) -> SettledRange {
    let key = |commit| EventKey::of(&event(commit, "1"));
    SettledRange {
        account: AccountId::new("1"),
        endpoint: EndpointId::new("7"),
        from: key(from),
        to: key(to),
    }
}
