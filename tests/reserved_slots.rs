//! Reserved slots: lent while their account is idle, and its own when it has something to send.

use anyhow::{Context, Result, ensure};

use crate::support::{RULES, SCHEMA, World};
use crate::turns::until_counted;

/// Of the account that others delay.
const ROWS: usize = 200;

/// Eight slots; account 1 weighs a million times as much as account 2, which has these reserved.
async fn world(reserved: &str) -> Result<World> {
    let sections = "[accounts]\ntable = \"public.accounts\"\nreserved = \"slots\"\n\
                    [scheduler]\nfast_slots = 8\nslow_slots = 8";
    let world = World::bare(sections, RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world
        .sql
        .batch_execute(&format!(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, weight numeric, slots bigint);
             INSERT INTO accounts VALUES (1, 1000, NULL), (2, 0.001, {reserved})"
        ))
        .await?;
    world.set_up().await?;
    Ok(world)
}

/// Deliveries of the whale before the last of account 2, of which the whale has eight times as many.
async fn beside_a_whale(reserved: &str) -> Result<usize> {
    let mut world = world(reserved).await?;
    world.hook(1, 1, "?delay=40ms").await?;
    world.hook(2, 2, "?delay=40ms").await?;
    let insert = format!(
        "INSERT INTO subscribers SELECT n, CASE n % 9 WHEN 0 THEN 2 ELSE 1 END
         FROM generate_series(1, {}) n",
        9 * ROWS
    );
    let _running = world.run().await?;
    // Both are known by then: nothing goes to the whale while account 2 is looked up.
    world.subscribe(10_001, 1).await?;
    world.subscribe(10_002, 2).await?;
    let known = world.delivered(2).await?.len();
    world.sql.batch_execute(&insert).await?;
    let received = world.delivered(9 * ROWS as u64 + 2).await?.split_off(known);
    world.settled().await?;
    let last = received.iter().rposition(|request| request.path == "/2").context("account 2")?;
    Ok(received[..last].iter().filter(|request| request.path == "/1").count())
}

#[tokio::test]
async fn account_has_its_reserved_slots_beside_a_whale_of_any_weight() -> Result<()> {
    let before = beside_a_whale("4").await?;
    // Four slots for each of both.
    ensure!((ROWS / 2..3 * ROWS).contains(&before), "{before} of the whale's went before its last");
    Ok(())
}

#[tokio::test]
async fn account_without_reserved_slots_waits_for_a_whale_by_its_weight() -> Result<()> {
    let before = beside_a_whale("NULL").await?;
    ensure!(before > 5 * ROWS, "{before} of the whale's went before its last");
    Ok(())
}

#[tokio::test]
async fn requests_on_reserved_slots_are_counted() -> Result<()> {
    let mut world = world("4").await?;
    world.hook(2, 2, "?hang").await?;
    let insert = "INSERT INTO subscribers SELECT n, 2 FROM generate_series(1, 8) n";
    world.sql.batch_execute(insert).await?;
    let _running = world.run().await?;
    until_counted(&world, "walhook_reserved_slots", 4).await?;
    Ok(())
}
