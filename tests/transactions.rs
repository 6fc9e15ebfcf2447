//! Transactions as a whole: what is committed comes, in order and once, however large it is and whatever
//! became of the tables meanwhile.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;
use walhook_testkit::cluster::StopMode;

use crate::changes::{data_of, on_insert, rows};
use crate::support::World;

#[tokio::test]
async fn rolled_back_rows_never_arrive_and_their_transaction_does() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    world
        .sql
        .batch_execute(
            "BEGIN; INSERT INTO subscribers VALUES (1, 42); ROLLBACK;
             BEGIN; INSERT INTO subscribers VALUES (2, 42);
             SAVEPOINT a; INSERT INTO subscribers VALUES (3, 42);
             SAVEPOINT b; INSERT INTO subscribers VALUES (4, 42);
             RELEASE b; ROLLBACK TO a; INSERT INTO subscribers VALUES (5, 42); COMMIT;",
        )
        .await?;
    world.settled().await?;
    assert_eq!(
        rows(&world.delivered(2).await?).into_iter().collect::<BTreeSet<_>>(),
        [2, 5].into()
    );
    assert_eq!(world.mock.stats().received, 2);
    Ok(())
}

#[tokio::test]
async fn case_06_interleaved_transactions_arrive_in_the_order_of_their_commits_also_after_a_kill()
-> Result<()> {
    let mut world = World::new().await?;
    world.reconfigure("[admin]", "[delivery]\nordering = \"account\"\n[admin]")?;
    world.hook(1, 42, "").await?;
    let mut running = world.run().await?;
    let other = world.connect().await?;
    for round in 0..5 {
        let base = round * 10;
        let insert = |id| format!("INSERT INTO subscribers VALUES ({}, 42)", base + id);
        world.sql.batch_execute(&format!("BEGIN; {}", insert(1))).await?;
        other.batch_execute(&format!("BEGIN; {}", insert(2))).await?;
        world.sql.batch_execute(&insert(3)).await?;
        other.batch_execute(&format!("{}; COMMIT", insert(4))).await?;
        if round == 2 {
            running.kill().await?;
            running = world.run().await?;
        }
        world.sql.batch_execute("COMMIT").await?;
    }
    let expected: Vec<i64> = (0..5).flat_map(|r| [2, 4, 1, 3].map(|id| r * 10 + id)).collect();
    assert_eq!(rows(&world.delivered(20).await?), expected);
    Ok(())
}

#[tokio::test]
async fn case_01_transaction_open_across_checkpoint_and_kill_arrives_when_it_commits() -> Result<()>
{
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let running = world.run().await?;
    let (short, long) = (world.connect().await?, world.connect().await?);
    short.batch_execute("BEGIN; INSERT INTO subscribers VALUES (1, 42)").await?;
    long.batch_execute("BEGIN; INSERT INTO subscribers VALUES (2, 42)").await?;
    world.subscribe(3, 42).await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(1).await?), [3]);
    short.batch_execute("COMMIT").await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(2).await?), [3, 1]);
    running.kill().await?;
    let _running = world.run().await?;
    world.settled().await?;
    long.batch_execute("COMMIT").await?;
    world.settled().await?;
    assert_eq!(rows(&world.delivered(3).await?), [3, 1, 2]);
    assert_eq!(world.mock.stats().duplicates, 0, "the checkpoint was stored before the kill");
    Ok(())
}

#[tokio::test]
async fn copied_rows_that_share_an_lsn_have_ids_of_their_own() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let copy =
        r"COPY subscribers (id, account_id) FROM PROGRAM 'seq 1 500 | sed s/$/,42/' (FORMAT csv)";
    world.sql.batch_execute(copy).await?;
    world.settled().await?;
    let received = world.delivered(500).await?;
    let ids: BTreeSet<&str> = received.iter().map(|request| request.id.as_str()).collect();
    assert_eq!((received.len(), ids.len()), (500, 500));
    assert_eq!(rows(&received).into_iter().collect::<BTreeSet<_>>(), (1..=500).collect());
    Ok(())
}

#[tokio::test]
async fn large_transaction_arrives_whole() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let insert = "INSERT INTO subscribers SELECT n, 42 FROM generate_series(1, 10000) n";
    world.sql.batch_execute(insert).await?;
    world.delivered(5_000).await?;
    let received = world.delivered(10_000).await?;
    let distinct: BTreeSet<i64> = rows(&received).into_iter().collect();
    assert_eq!(distinct, (1..=10_000).collect());
    assert_eq!(world.mock.stats().verified, received.len() as u64);
    Ok(())
}

/// Torture case 10.
#[tokio::test]
async fn case_10_each_row_is_read_by_the_columns_that_its_table_had() -> Result<()> {
    let rules = on_insert("all", "subscribers", r#"["*"]"#)
        + &on_insert("listed", "subscribers", r#"["id", "email"]"#);
    let mut world = World::with("[delivery]\nordering = \"account\"", &rules, &[]).await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let sql = "
        INSERT INTO subscribers VALUES (1, 42, 'e', 's');
        ALTER TABLE subscribers ADD COLUMN city text;
        INSERT INTO subscribers VALUES (2, 42, 'e', 's', 'c');
        ALTER TABLE subscribers RENAME COLUMN status TO state;
        INSERT INTO subscribers VALUES (3, 42, 'e', 's', 'c');
        ALTER TABLE subscribers DROP COLUMN state;
        INSERT INTO subscribers VALUES (4, 42, 'e', 'c');
        BEGIN;
        INSERT INTO subscribers VALUES (5, 42, 'e', 'c');
        ALTER TABLE subscribers ADD COLUMN a integer;
        INSERT INTO subscribers VALUES (6, 42, 'e', 'c', 1);
        ALTER TABLE subscribers ADD COLUMN b integer DEFAULT 7;
        INSERT INTO subscribers VALUES (7, 42, 'e', 'c', 1);
        ALTER TABLE subscribers DROP COLUMN a;
        ALTER TABLE subscribers ALTER COLUMN b TYPE text USING 'was ' || b;
        INSERT INTO subscribers VALUES (8, 42, 'e', 'c', 'b');
        COMMIT;
        DROP TABLE IF EXISTS never_there;
        INSERT INTO subscribers VALUES (9, 42, NULL, NULL, NULL);";
    // Each statement its own transaction, but for those between BEGIN and COMMIT.
    for statement in sql.split_inclusive(';') {
        world.sql.batch_execute(statement).await?;
    }
    world.settled().await?;
    let received = world.delivered(18).await?;
    assert_eq!(
        data_of(&received, "all"),
        [
            json!({"id": 1, "account_id": 42, "email": "e", "status": "s"}),
            json!({"id": 2, "account_id": 42, "email": "e", "status": "s", "city": "c"}),
            json!({"id": 3, "account_id": 42, "email": "e", "state": "s", "city": "c"}),
            json!({"id": 4, "account_id": 42, "email": "e", "city": "c"}),
            json!({"id": 5, "account_id": 42, "email": "e", "city": "c"}),
            json!({"id": 6, "account_id": 42, "email": "e", "city": "c", "a": 1}),
            json!({"id": 7, "account_id": 42, "email": "e", "city": "c", "a": 1, "b": 7}),
            json!({"id": 8, "account_id": 42, "email": "e", "city": "c", "b": "b"}),
            json!({"id": 9, "account_id": 42, "email": null, "city": null, "b": null}),
        ]
    );
    let listed: Vec<Value> = (1..=9)
        .map(|id| json!({"id": id, "email": if id == 9 { Value::Null } else { json!("e") }}))
        .collect();
    assert_eq!(data_of(&received, "listed"), listed);
    Ok(())
}

/// Torture case 8.
#[tokio::test]
async fn case_08_none_of_a_rolled_back_savepoints_rows_comes_of_a_large_transaction() -> Result<()>
{
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    // One row in a hundred has an account that wants it.
    let insert = |from: i64, to: i64| {
        format!(
            "INSERT INTO subscribers SELECT n, CASE WHEN n % 100 = 0 THEN 42 ELSE 7 END
             FROM generate_series({from}, {to}) n;"
        )
    };
    let statements = [
        "BEGIN;".to_owned(),
        insert(1, 50_000),
        "SAVEPOINT a;".to_owned(),
        insert(100_001, 125_000),
        "SAVEPOINT b; UPDATE subscribers SET account_id = 42 WHERE id > 124000;".to_owned(),
        "ROLLBACK TO a;".to_owned(),
        insert(50_001, 100_000),
        "COMMIT".to_owned(),
    ];
    world.sql.batch_execute(&statements.concat()).await?;
    world.settled().await?;
    let received = world.delivered(1_000).await?;
    let ids: Vec<i64> = (1..=1_000).map(|n| n * 100).collect();
    assert_eq!(rows(&received).into_iter().collect::<BTreeSet<_>>(), ids.into_iter().collect());
    assert_eq!(received.len(), 1_000);
    Ok(())
}

/// Torture case 9.
#[tokio::test]
async fn case_09_server_stops_amid_a_huge_transaction_that_takes_bounded_memory() -> Result<()> {
    const ROWS: i64 = 250_000;
    /// Every thousandth.
    const OURS: u64 = 250;
    const RESIDENT_BYTES: u64 = 128 << 20;
    let limit = "[memory]\nlimit = \"16MiB\"";
    let mut world = World::with(limit, crate::support::RULES, &[]).await?;
    world.hook(1, 42, "").await?;
    let running = world.run().await?;
    let insert = format!(
        "INSERT INTO subscribers SELECT n, CASE WHEN n % 1000 = 0 THEN 42 ELSE 7 END, repeat('x', 100)
         FROM generate_series(1, {ROWS}) n"
    );
    world.sql.batch_execute(&insert).await?;
    world.delivered(10).await?;
    let begun = Instant::now();
    world.cluster.stop(StopMode::Fast).await?;
    println!("stopped after {:?}", begun.elapsed());
    world.cluster.start_again().await?;
    world.reconnect().await?;
    // Once more from its beginning: what was handed on is not handed on again. It takes minutes where
    // much else runs.
    for some in (50..=OURS).step_by(100) {
        world.delivered(some).await?;
    }
    world.settled().await?;
    let received = world.delivered(OURS).await?;
    let ids: BTreeSet<i64> = (1..=ROWS / 1_000).map(|n| n * 1_000).collect();
    assert_eq!(rows(&received).into_iter().collect::<BTreeSet<_>>(), ids);
    assert_eq!(world.mock.stats().duplicates, 0);
    let peak = running.resident_peak_bytes()?;
    println!("{} MiB resident at most", peak >> 20);
    ensure!(peak < RESIDENT_BYTES, "{peak} bytes were resident");
    Ok(())
}
