//! The replication connection against a real PostgreSQL.

mod status;
mod stream;
mod streamed;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::fix::Failure;
use crate::fixture::{cluster, session as sql, url};
use crate::sql::Connection;
use walhook_core::endpoint::Secret;
use walhook_core::lsn::Lsn;
use walhook_core::position::WalPosition;
use walhook_decode::change::{Changes, MessageContent, Rows, Step};
use walhook_decode::pgoutput::{Datum, OldTuple, Tuple, decode, decode_head};
use walhook_testkit::cluster::Cluster;

/// What no step of a test needs even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest message that is read here.
const MAX_MESSAGE: usize = 1 << 20;

/// Two tables, published, and a slot.
async fn source(sql: &Connection) {
    sql.batch_execute(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text);
         CREATE TABLE full_t (id bigint, v text);
         ALTER TABLE full_t REPLICA IDENTITY FULL;
         CREATE PUBLICATION p FOR TABLE t, full_t",
    )
    .await
    .unwrap();
    create_slot(sql, "s").await;
}

async fn create_slot(sql: &Connection, slot: &str) {
    let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
    sql.query_one(create, &[&slot]).await.unwrap();
}

async fn flushed_of(sql: &Connection, slot: &str) -> Lsn {
    let query =
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1::text";
    sql.query_one(query, &[&slot]).await.unwrap().get::<_, String>(0).parse().unwrap()
}

async fn start(cluster: &Cluster, slot: &str, publication: &str, at: Lsn) -> Stream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replication = connect(&url(cluster), "test").await.unwrap();
        let replication = replication.with_messages(true);
        match replication.start(slot, publication, at, MAX_MESSAGE).await {
            Ok(stream) => return stream,
            // The connection just dropped is noticed within milliseconds.
            Err(error) if classify(&error) == Class::SlotInUse && Instant::now() < deadline => {
                sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn values(tuple: &Tuple<'_>) -> String {
    let text = |datum: &Datum<'_>| match *datum {
        Datum::Null => "null".to_owned(),
        Datum::Unchanged => "unchanged".to_owned(),
        Datum::Text(text) => text.to_owned(),
    };
    tuple.0.iter().map(text).collect::<Vec<_>>().join(",")
}

fn old_values(old: &OldTuple<'_>) -> String {
    match old {
        OldTuple::Key(tuple) => format!("key {}", values(tuple)),
        OldTuple::Full(tuple) => format!("full {}", values(tuple)),
    }
}

/// A step for comparison: what it says, and where it stands if it is a change.
type Told = (String, Option<WalPosition>);

fn tell(step: &Step<'_>) -> Told {
    let change = match step {
        Step::Begin(_) => return ("begin".to_owned(), None),
        Step::Commit { .. } => return ("commit".to_owned(), None),
        Step::Relation(relation) => {
            let columns: Vec<_> = relation.columns.iter().map(|c| c.name.as_str()).collect();
            return (format!("relation {}({})", relation.name, columns.join(",")), None);
        }
        Step::Message(message) => {
            let content = match message.content {
                MessageContent::Read(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                MessageContent::TooLarge { .. } => "too large".to_owned(),
            };
            return (format!("message {}: {content}", message.prefix), Some(message.position));
        }
        Step::Change(change) => change,
    };
    let what = match &change.rows {
        Rows::Insert { new } => format!("insert {}", values(new)),
        Rows::Update { old, new } => {
            let old = old.as_ref().map_or("none".to_owned(), old_values);
            format!("update {old} to {}", values(new))
        }
        Rows::Delete { old } => format!("delete {}", old_values(old)),
        Rows::Truncate => "truncate".to_owned(),
        Rows::Oversize { operation, .. } => format!("oversize {}", operation.as_str()),
    };
    (format!("{}: {what}", change.relation.name), Some(change.position))
}

/// Reads until `enough` says so of the steps read by this call.
async fn read(
    stream: &mut Stream,
    changes: &mut Changes,
    enough: impl Fn(&[Told]) -> bool,
) -> Vec<Told> {
    let mut told = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while !enough(&told) {
        let next = timeout(deadline - Instant::now(), stream.next()).await;
        match next.unwrap_or_else(|_| panic!("only {told:#?}")).unwrap() {
            Frame::XLogData { wal_start, payload, .. } => {
                let steps = changes
                    .handle(wal_start, decode(stream.protocol(), &payload).unwrap())
                    .unwrap();
                told.extend(steps.iter().map(tell));
            }
            Frame::Oversize { wal_start, head, bytes, .. } => {
                let message = decode_head(stream.protocol(), &head, bytes).unwrap();
                told.extend(changes.handle(wal_start, message).unwrap().iter().map(tell));
            }
            Frame::Keepalive { .. } => {}
        }
    }
    told
}

fn commits(count: usize) -> impl Fn(&[Told]) -> bool {
    move |told| told.iter().filter(|(what, _)| what == "commit").count() == count
}

fn texts(told: &[Told]) -> Vec<&str> {
    told.iter().map(|(what, _)| what.as_str()).collect()
}

#[tokio::test]
async fn connect_works_by_tcp_and_by_unix_socket() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    let row = sql
        .query_one("SELECT system_identifier::text FROM pg_control_system()", &[])
        .await
        .unwrap();
    let dir = cluster.socket_dir().display();
    let port = cluster.port();
    let unix = format!("postgres://postgres@/postgres?host={dir}&port={port}");
    // A dead host before the live one, too.
    let second = format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/postgres");
    for url in [cluster.url("postgres"), unix, second] {
        let mut replication = connect(&Secret::new(url), "test").await.unwrap();
        let system = replication.identify_system().await.unwrap();
        assert_eq!(system.system_identifier.to_string(), row.get::<_, String>(0));
        assert_eq!((system.timeline, system.database.as_str()), (1, "postgres"));
        assert!(system.xlog_pos > Lsn::ZERO);
        let timeout = replication.wal_sender_timeout().await.unwrap();
        assert_eq!(timeout, Duration::from_secs(60));
    }
}

#[tokio::test]
async fn connect_honours_options_and_target_session_attrs_of_the_url() {
    let cluster = cluster().await;
    let base = cluster.url("postgres");
    let url =
        format!("{base}?options=-c%20wal_sender_timeout%3D7s&target_session_attrs=read-write");
    let mut replication = connect(&Secret::new(url), "test").await.unwrap();
    assert_eq!(replication.wal_sender_timeout().await.unwrap(), Duration::from_secs(7));
    let url = Secret::new(format!("{base}?target_session_attrs=read-only"));
    assert!(matches!(connect(&url, "test").await, Err(WireError::WrongHost { .. })));
}

#[tokio::test]
async fn connect_authenticates_by_scram_md5_and_password_and_refuses_wrong_ones() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    sql.batch_execute(
        "SET password_encryption = 'scram-sha-256';
         CREATE ROLE by_scram LOGIN REPLICATION PASSWORD 'hush:/é';
         CREATE ROLE by_password LOGIN REPLICATION PASSWORD 'hush:/é';
         SET password_encryption = 'md5';
         CREATE ROLE by_md5 LOGIN REPLICATION PASSWORD 'hush:/é'",
    )
    .await
    .unwrap();
    let hba = cluster.data().join("pg_hba.conf");
    let trust = std::fs::read_to_string(&hba).unwrap();
    let rules = "host all by_scram 127.0.0.1/32 scram-sha-256\n\
                 host all by_password 127.0.0.1/32 password\n\
                 host all by_md5 127.0.0.1/32 md5\n";
    std::fs::write(&hba, format!("{rules}{trust}")).unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();

    let at = format!("127.0.0.1:{}/postgres", cluster.port());
    let deadline = Instant::now() + PATIENCE;
    for user in ["by_scram", "by_password", "by_md5"] {
        let without = Secret::new(format!("postgres://{user}@{at}"));
        while connect(&without, "test").await.is_ok() {
            assert!(Instant::now() < deadline, "the new pg_hba.conf was not loaded");
            sleep(Duration::from_millis(10)).await;
        }
        let missing = connect(&without, "test").await.unwrap_err();
        assert!(matches!(missing, WireError::PasswordMissing { .. }), "{missing:?}");

        let right = Secret::new(format!("postgres://{user}:hush%3A%2F%C3%A9@{at}"));
        connect(&right, "test").await.unwrap().identify_system().await.unwrap();

        // A second host, which nobody listens on, must not hide the first one's answer.
        let wrong = format!("postgres://{user}:wr0ng@127.0.0.1:{},127.0.0.1:1/", cluster.port());
        let wrong = Secret::new(wrong + "postgres");
        let error = connect(&wrong, "test").await.unwrap_err();
        let WireError::Session(server) = &error else { panic!("{error:?}") };
        assert_eq!(server.sqlstate, "28P01");
        assert_eq!(classify(&error), Class::Access);
        assert!(!format!("{error:?}").contains("wr0ng"));
    }
}

#[tokio::test]
async fn refusal_for_want_of_a_sender_names_the_setting_of_senders() {
    let settings = [("max_wal_senders", "1"), ("max_replication_slots", "1")];
    let cluster = Cluster::start_copied(&std::env::temp_dir(), &settings).await.unwrap();
    let _only = connect(&url(&cluster), "test").await.unwrap();
    let error = connect(&url(&cluster), "test").await.unwrap_err();
    assert_eq!(classify(&error), Class::Retry, "{error:?}");
    let fix = error.fix();
    assert!(fix.starts_with("raise max_wal_senders") && !fix.contains("max_connections"), "{fix}");
    // Limits of a role or a database have the same code.
    let WireError::Session(mut server) = error else { panic!("{error:?}") };
    server.file = "miscinit.c".into();
    let fix = WireError::Session(server).fix();
    assert!(fix.contains("CONNECTION LIMIT of our role"), "{fix}");
}

#[tokio::test]
async fn start_refuses_a_slot_in_use_and_a_missing_one() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let _stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    for (slot, class) in [("s", Class::SlotInUse), ("nowhere", Class::SlotMissing)] {
        let replication = connect(&url(&cluster), "test").await.unwrap();
        let error = replication.start(slot, "p", Lsn::ZERO, MAX_MESSAGE).await.unwrap_err();
        assert_eq!(classify(&error), class, "{error:?}");
    }
}
