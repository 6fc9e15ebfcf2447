//! The replication connection against a real PostgreSQL.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::*;
use crate::demo::cluster::{Cluster, StopMode};
use crate::engine::change::{Changes, Rows, Step};
use crate::engine::endpoint::Secret;
use crate::engine::feedback::Feedback;
use crate::engine::lsn::Lsn;
use crate::engine::pgoutput::{Datum, OldTuple, Tuple, decode};
use crate::engine::position::WalPosition;
use crate::io::clock::Clock;
use crate::io::sql::Connection;

/// What no step of a test needs even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn cluster() -> Cluster {
    Cluster::start(&std::env::temp_dir(), &[]).await.unwrap()
}

async fn sql(cluster: &Cluster) -> Connection {
    Connection::open(&url(cluster), "test").await.unwrap()
}

fn url(cluster: &Cluster) -> Secret {
    Secret::new(cluster.url("postgres"))
}

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
        match replication.start(slot, publication, at).await {
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
                let steps = changes.handle(wal_start, decode(&payload).unwrap()).unwrap();
                told.extend(steps.iter().map(tell));
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
        assert!(matches!(missing, WireError::PasswordMissing), "{missing:?}");

        let right = Secret::new(format!("postgres://{user}:hush%3A%2F%C3%A9@{at}"));
        connect(&right, "test").await.unwrap().identify_system().await.unwrap();

        // A second host, which nobody listens on, must not hide the first one's answer.
        let wrong = format!("postgres://{user}:wr0ng@127.0.0.1:{},127.0.0.1:1/", cluster.port());
        let wrong = Secret::new(wrong + "postgres");
        let error = connect(&wrong, "test").await.unwrap_err();
        let WireError::Session(server) = &error else { panic!("{error:?}") };
        assert_eq!(server.sqlstate, "28P01");
        assert_eq!(classify(&error), Class::Fatal);
        assert!(!format!("{error:?}").contains("wr0ng"));
    }
}

#[tokio::test]
async fn stream_gives_the_committed_changes_in_commit_order() {
    let cluster = cluster().await;
    let (one, two) = (sql(&cluster).await, sql(&cluster).await);
    source(&one).await;
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let mut changes = Changes::new(Lsn::ZERO);

    one.batch_execute("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    one.batch_execute("UPDATE t SET v = null WHERE id = 1").await.unwrap();
    one.batch_execute("UPDATE t SET id = 2").await.unwrap();
    one.batch_execute("BEGIN; INSERT INTO t VALUES (9, 'never'); ROLLBACK").await.unwrap();
    one.batch_execute("DELETE FROM t").await.unwrap();
    let told = read(&mut stream, &mut changes, commits(4)).await;
    let expected = [
        ("begin", "relation t(id,v)", "t: insert 1,a"),
        ("begin", "", "t: update none to 1,null"),
        ("begin", "", "t: update key 1,null to 2,null"),
        ("begin", "", "t: delete key 2,null"),
    ];
    let expected: Vec<_> = expected.iter().flat_map(|(a, b, c)| [*a, *b, *c, "commit"]).collect();
    let expected: Vec<_> = expected.into_iter().filter(|text| !text.is_empty()).collect();
    assert_eq!(texts(&told), expected);

    one.batch_execute(
        "BEGIN; INSERT INTO t VALUES (10, 'a'); SAVEPOINT s; INSERT INTO t VALUES (11, 'no');
         ROLLBACK TO s; INSERT INTO t VALUES (12, 'b'); COMMIT",
    )
    .await
    .unwrap();
    let told = read(&mut stream, &mut changes, commits(1)).await;
    assert_eq!(texts(&told), ["begin", "t: insert 10,a", "t: insert 12,b", "commit"]);

    // The one that began first commits last.
    one.batch_execute("BEGIN; INSERT INTO full_t VALUES (1, 'one')").await.unwrap();
    two.batch_execute("BEGIN; INSERT INTO t VALUES (20, 'two')").await.unwrap();
    one.batch_execute("UPDATE full_t SET v = 'uno'").await.unwrap();
    two.batch_execute("COMMIT").await.unwrap();
    one.batch_execute("COMMIT").await.unwrap();
    let told = read(&mut stream, &mut changes, commits(2)).await;
    let expected = [
        "begin",
        "t: insert 20,two",
        "commit",
        "begin",
        "relation full_t(id,v)",
        "full_t: insert 1,one",
        "full_t: update full 1,one to 1,uno",
        "commit",
    ];
    assert_eq!(texts(&told), expected);
    let position = |i: usize| told[i].1.unwrap();
    assert!(position(1) < position(5), "positions follow the commits");
    assert!(position(1).change_lsn > position(5).change_lsn, "LSNs of changes do not");
}

#[tokio::test]
async fn stream_tells_apart_the_rows_of_a_copy_and_the_tables_of_a_truncate() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let mut changes = Changes::new(Lsn::ZERO);
    sql.batch_execute("COPY t FROM PROGRAM 'printf \"1\\ta\\n2\\tb\\n3\\tc\\n\"'").await.unwrap();
    sql.batch_execute("TRUNCATE full_t, t").await.unwrap();
    let told = read(&mut stream, &mut changes, commits(2)).await;
    let expected = [
        "begin",
        "relation t(id,v)",
        "t: insert 1,a",
        "t: insert 2,b",
        "t: insert 3,c",
        "commit",
        "begin",
        "t: truncate",
        "relation full_t(id,v)",
        "full_t: truncate",
        "commit",
    ];
    assert_eq!(texts(&told), expected);
    let positions: Vec<_> = told.iter().filter_map(|(_, position)| *position).collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    assert_eq!(positions.iter().map(|p| p.n).collect::<Vec<_>>(), [0, 1, 2, 0, 0]);
    assert_eq!(positions[0].change_lsn, positions[2].change_lsn, "the rows share an LSN");
    assert_eq!(positions[3].change_lsn, positions[4].change_lsn, "the tables share an LSN");
}

#[tokio::test]
async fn stream_describes_a_table_anew_when_it_changes_in_mid_transaction() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let mut changes = Changes::new(Lsn::ZERO);
    sql.batch_execute(
        "BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD COLUMN w int DEFAULT 7;
         INSERT INTO t VALUES (2, 'b'); COMMIT; ALTER TABLE t DROP COLUMN v;
         INSERT INTO t VALUES (3, 8); DROP TABLE t",
    )
    .await
    .unwrap();
    let told =
        read(&mut stream, &mut changes, |told| texts(told).ends_with(&["t: insert 3,8", "commit"]))
            .await;
    let expected = [
        "relation t(id,v)",
        "t: insert 1,a",
        "relation t(id,v,w)",
        "t: insert 2,b,7",
        "relation t(id,w)",
        "t: insert 3,8",
    ];
    let found: Vec<_> =
        texts(&told).into_iter().filter(|text| *text != "begin" && *text != "commit").collect();
    assert_eq!(found, expected);
}

/// Writes transactions of all kinds; the middle one is large and changes its table on the way.
async fn write_all_kinds(sql: &Connection) -> usize {
    sql.batch_execute("INSERT INTO full_t VALUES (1, 'a')").await.unwrap();
    sql.batch_execute("COPY t FROM PROGRAM 'seq 1 40 | sed \"s/$/\\tx/\"'").await.unwrap();
    sql.batch_execute(
        "BEGIN; UPDATE full_t SET v = 'b'; SAVEPOINT s; UPDATE t SET v = 'y' WHERE id < 5;
         RELEASE s; ALTER TABLE t ADD COLUMN w int; UPDATE t SET w = 1 WHERE id < 5;
         TRUNCATE full_t, t; INSERT INTO t VALUES (1, 'z', 0); COMMIT",
    )
    .await
    .unwrap();
    sql.batch_execute("DELETE FROM t").await.unwrap();
    4
}

#[tokio::test]
async fn stream_cut_anywhere_and_resumed_gives_the_same_steps() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    create_slot(&sql, "uncut").await;
    let count = write_all_kinds(&sql).await;
    let mut stream = start(&cluster, "uncut", "p", Lsn::ZERO).await;
    let whole = read(&mut stream, &mut Changes::new(Lsn::ZERO), commits(count)).await;
    drop(stream);

    // Deterministic lengths: 1, 2, 3, … steps a connection.
    let mut changes = Changes::new(Lsn::ZERO);
    let mut pieces = Vec::new();
    for length in 1.. {
        let mut stream = start(&cluster, "s", "p", changes.resume_lsn()).await;
        let left = whole.len() - pieces.len();
        pieces.extend(read(&mut stream, &mut changes, |told| told.len() >= length.min(left)).await);
        changes.handle_reconnected();
        if pieces.len() >= whole.len() {
            break;
        }
    }
    assert_eq!(pieces, whole);
}

#[tokio::test]
async fn start_refuses_a_slot_in_use_and_a_missing_one() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let _stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    for (slot, class) in [("s", Class::SlotInUse), ("nowhere", Class::SlotMissing)] {
        let replication = connect(&url(&cluster), "test").await.unwrap();
        let error = replication.start(slot, "p", Lsn::ZERO).await.unwrap_err();
        assert_eq!(classify(&error), class, "{error:?}");
    }
}

#[tokio::test]
async fn stream_reports_a_missing_publication() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let mut stream = start(&cluster, "s", r#"no "such' one"#, Lsn::ZERO).await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'a')").await.unwrap();
    let error = loop {
        match timeout(PATIENCE, stream.next()).await.unwrap() {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let WireError::Stream(server) = &error else { panic!("{error:?}") };
    assert!(server.message.contains(r#"no "such' one"#), "{server}");
    assert_eq!(classify(&error), Class::PublicationMissing);
}

/// Drives a connection as the module's documentation says, with nothing settled but what `settle`
/// says of each commit, until it ends or `done` is reached.
async fn drive(
    mut stream: Stream,
    feedback: &mut Feedback,
    clock: Clock,
    settle: impl Fn(Lsn) -> bool,
) -> WireError {
    let mut changes = Changes::new(Lsn::ZERO);
    loop {
        while let Some(update) = feedback.poll(clock.now()) {
            if let Err(error) = stream.send_status(update).await {
                return error;
            }
        }
        if feedback.silent(clock.now()) {
            return WireError::Silent;
        }
        let frame = tokio::select! {
            () = sleep_until(clock.instant(feedback.deadline())) => continue,
            frame = stream.next() => frame,
        };
        match frame {
            Err(error) => return error,
            Ok(Frame::Keepalive { wal_end, reply_requested }) => {
                feedback.handle_keepalive(wal_end, reply_requested, clock.now());
            }
            Ok(Frame::XLogData { wal_start, wal_end, payload }) => {
                feedback.handle_received(wal_end, clock.now());
                let steps = changes.handle(wal_start, decode(&payload).unwrap()).unwrap();
                if let Some(Step::Commit { end_lsn }) = steps.last()
                    && settle(*end_lsn)
                {
                    feedback.handle_flushed(*end_lsn);
                }
            }
        }
    }
}

#[tokio::test]
async fn status_moves_the_slot_to_what_is_flushed_and_not_beyond() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let before = flushed_of(&sql, "s").await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'settled')").await.unwrap();
    let between = "SELECT pg_current_wal_insert_lsn()::text";
    let between: Lsn =
        sql.query_one(between, &[]).await.unwrap().get::<_, String>(0).parse().unwrap();
    sql.batch_execute("INSERT INTO t VALUES (2, 'pending')").await.unwrap();

    let clock = Clock::start();
    let mut feedback = Feedback::new(Lsn::ZERO, Lsn::ZERO, Duration::from_secs(60), clock.now());
    let stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    tokio::select! {
        error = drive(stream, &mut feedback, clock, |end_lsn| end_lsn <= between) => panic!("{error:?}"),
        () = async {
            let deadline = Instant::now() + PATIENCE;
            while flushed_of(&sql, "s").await <= before {
                assert!(Instant::now() < deadline, "the slot does not move");
                sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    assert!(flushed_of(&sql, "s").await <= between);
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let told = read(&mut stream, &mut Changes::new(Lsn::ZERO), commits(1)).await;
    assert_eq!(texts(&told), ["begin", "relation t(id,v)", "t: insert 2,pending", "commit"]);
}

#[tokio::test]
async fn status_lets_the_server_shut_down_while_everything_is_pending() {
    let mut cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'pending')").await.unwrap();
    let before = flushed_of(&sql, "s").await;
    let clock = Clock::start();
    let mut feedback = Feedback::new(Lsn::ZERO, before, Duration::from_secs(60), clock.now());
    let stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let stopping = Instant::now();
    let (error, stopped) = timeout(PATIENCE, async {
        tokio::join!(drive(stream, &mut feedback, clock, |_| false), cluster.stop(StopMode::Fast))
    })
    .await
    .expect("the shutdown waits for us");
    stopped.unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(2), "{:?}", stopping.elapsed());
    assert!(matches!(error, WireError::Ended), "{error:?}");
    assert_eq!(classify(&error), Class::Shutdown);

    cluster.start_again().await.unwrap();
    let sql = self::sql(&cluster).await;
    assert!(flushed_of(&sql, "s").await <= before, "the slot stays at what is settled");
}
