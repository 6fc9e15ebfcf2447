//! What comes through the stream.

use super::*;

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
async fn stream_passes_a_change_that_is_too_large_and_goes_on_behind_it_also_when_it_is_cut() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    sql.batch_execute(
        "BEGIN; INSERT INTO full_t VALUES (1, 'a');
         UPDATE full_t SET v = repeat('x', 5000000);
         INSERT INTO t VALUES (2, repeat('y', 5000000)); INSERT INTO t VALUES (3, 'z'); COMMIT;
         DELETE FROM full_t",
    )
    .await
    .unwrap();
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    let mut changes = Changes::new(Lsn::ZERO);
    let is_large = |(what, _): &Told| what == "full_t: oversize update";
    let head = read(&mut stream, &mut changes, |told| told.iter().any(is_large)).await;
    let expected =
        ["begin", "relation full_t(id,v)", "full_t: insert 1,a", "full_t: oversize update"];
    assert_eq!(texts(&head), expected);
    // In the middle of the large change.
    drop(stream);
    changes.handle_reconnected();
    let mut stream = start(&cluster, "s", "p", changes.resume_lsn()).await;
    let rest = read(&mut stream, &mut changes, commits(2)).await;
    let expected = [
        "relation t(id,v)",
        "t: oversize insert",
        "t: insert 3,z",
        "commit",
        "begin",
        "full_t: oversize delete",
        "commit",
    ];
    assert_eq!(texts(&rest), expected);
    let positions = head.iter().chain(&rest).filter_map(|(_, position)| *position);
    assert!(positions.is_sorted(), "{head:?} {rest:?}");
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

/// Fact 23: text output follows settings, which a role or a database can change.
#[tokio::test]
async fn stream_writes_values_alike_whatever_the_role_prefers() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    sql.batch_execute(
        "ALTER ROLE postgres SET datestyle = 'German';
         ALTER ROLE postgres SET intervalstyle = 'sql_standard';
         ALTER ROLE postgres SET timezone = 'Asia/Tokyo';
         ALTER ROLE postgres SET extra_float_digits = -5;
         ALTER ROLE postgres SET bytea_output = 'escape';
         ALTER ROLE postgres SET quote_all_identifiers = on;
         CREATE TABLE t (ts timestamptz, d date, i interval, f float8, b bytea, r regclass);
         CREATE PUBLICATION p FOR TABLE t",
    )
    .await
    .unwrap();
    create_slot(&sql, "s").await;
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    sql.batch_execute(
        "INSERT INTO t VALUES ('2026-02-03 04:05:06.789+00', '2026-02-03', '1 day 2 hours',
                               0.1::float8 + 0.2, '\\x00ff', 't')",
    )
    .await
    .unwrap();
    let told = read(&mut stream, &mut Changes::new(Lsn::ZERO), commits(1)).await;
    let expected = "t: insert 2026-02-03 04:05:06.789+00,2026-02-03,1 day 02:00:00,\
                    0.30000000000000004,\\x00ff,public.t";
    assert_eq!(told[2].0, expected);
}

/// Version 17 and later: the timeout also ends what decodes, which takes as long as we take to read.
#[tokio::test]
async fn stream_outlasts_the_transaction_timeout_of_our_role() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    let known = "SELECT count(*) FROM pg_settings WHERE name = 'transaction_timeout'";
    if sql.query_one(known, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        return;
    }
    sql.batch_execute("ALTER ROLE postgres SET transaction_timeout = '100ms'").await.unwrap();
    let mut stream = start(&cluster, "s", "p", Lsn::ZERO).await;
    // More than fits between the server and us.
    let insert =
        "INSERT INTO t SELECT n, repeat(md5(n::text), 300) FROM generate_series(1, 5000) n";
    sql.batch_execute(insert).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let told = read(&mut stream, &mut Changes::new(Lsn::ZERO), commits(1)).await;
    assert!(told.len() >= 5_000, "{}", told.len());
}

/// Fact 11: the publication must be older than the slot.
#[tokio::test]
async fn stream_reports_a_publication_that_is_missing_or_younger_than_the_slot() {
    let cluster = cluster().await;
    let sql = sql(&cluster).await;
    source(&sql).await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'a'); CREATE PUBLICATION late FOR TABLE t")
        .await
        .unwrap();
    sql.batch_execute("INSERT INTO t VALUES (2, 'b')").await.unwrap();
    for publication in [r#"no "such' one"#, "late"] {
        let mut stream = start(&cluster, "s", publication, Lsn::ZERO).await;
        let error = loop {
            match timeout(PATIENCE, stream.next()).await.unwrap() {
                Ok(Frame::Keepalive { .. }) => {}
                Ok(frame) => panic!("{frame:?}"),
                Err(error) => break error,
            }
        };
        // An error up to PostgreSQL 17; 18 warns and goes on without it.
        let (WireError::Stream(server) | WireError::PublicationSkipped(server)) = &error else {
            panic!("{error:?}")
        };
        assert!(server.message.contains(publication), "{server}");
        assert_eq!(classify(&error), Class::PublicationMissing);
    }
}
