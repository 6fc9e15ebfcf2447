//! Look-ups that fail for long: what cannot be routed is stored, and arrives later as it is owed.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use walhook_testkit::receiver::Received;

use crate::support::{RULES, SCHEMA, World, text};

/// Accounts that nobody has looked up before the outage; each has an endpoint of the same id.
const UNKNOWN: std::ops::Range<i64> = 100..140;

/// Rows of theirs in each transaction: all of them take twice the memory.
const ROWS: i64 = 1_600;

/// A world in which walhook is a role without rights but those that `setup` gives it.
async fn world() -> Result<World> {
    let sections = "[memory]\nlimit = \"4MiB\"\n[wal]\nmax_hold = \"2s\"\nmax_retained = \"16MiB\"";
    let world = World::bare(sections, RULES, &[("max_slot_wal_keep_size", "1GB")]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("CREATE ROLE sender LOGIN REPLICATION").await?;
    let admin = world.cluster.url("postgres");
    world.edit_config("postgres://postgres@", "postgres://sender@")?;
    let output = world.walhook(&["setup", "--admin-url", &admin]).await?;
    ensure!(output.status.success(), "setup: {}", text(&output.stderr));
    world.sql.batch_execute("GRANT SELECT ON webhooks, subscribers TO sender").await?;
    world.hook(1, 1, "").await?;
    for account in UNKNOWN {
        world.hook(account, account, "").await?;
    }
    Ok(world)
}

/// What each endpoint took of each row, in order and without repeats: the states.
fn taken(received: &[Received]) -> BTreeMap<(String, i64), Vec<String>> {
    let mut taken: BTreeMap<(String, i64), Vec<String>> = BTreeMap::new();
    let mut seen = std::collections::HashSet::new();
    for request in received {
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        if seen.insert((request.path.clone(), body["id"].to_string())) {
            let row = (request.path.clone(), body["data"]["id"].as_i64().unwrap());
            taken.entry(row).or_default().push(body["data"]["status"].as_str().unwrap().to_owned());
        }
    }
    taken
}

#[tokio::test]
async fn events_that_cannot_be_routed_are_stored_and_arrive_as_owed_after_crashes_in_the_outage()
-> Result<()> {
    let mut world = world().await?;
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.delivered(1).await?;

    world.sql.batch_execute("REVOKE SELECT ON webhooks FROM sender").await?;
    let (first, accounts) = (UNKNOWN.start, UNKNOWN.end - UNKNOWN.start);
    let insert = format!(
        "INSERT INTO subscribers SELECT 1000 + g, {first} + g % {accounts}, repeat('x', 1500), 'a'
         FROM generate_series(0, {ROWS} - 1) g"
    );
    for change in [
        insert.as_str(),
        "UPDATE subscribers SET status = 'b' WHERE id >= 1000",
        "UPDATE subscribers SET status = 'c' WHERE id >= 1000",
    ] {
        world.sql.batch_execute(change).await?;
    }
    // A known account notices nothing.
    for id in 2..=20 {
        world.subscribe(id, 1).await?;
    }
    world.delivered(20).await?;
    // The checkpoint passes all of it, as rows, and a change of the endpoint table behind it.
    let count = "SELECT count(*)::text FROM walhook.unrouted WHERE account <> '-1'";
    world.until(count, &(3 * ROWS).to_string()).await?;
    world.hook(900, first, "").await?;
    world.settled().await?;
    ensure!(world.mock.received().len() == 20, "only what is known was sent");
    let pending = "SELECT count(*)::text FROM walhook.deliveries_pending WHERE account <> '-1'
                   AND reason = 'unrouted' AND endpoint = ''";
    world.until(pending, &(3 * ROWS).to_string()).await?;
    running.kill().await?;

    // Look-ups work for a moment, while the next leader begins, and fail again; and that one crashes too.
    world.sql.batch_execute("GRANT SELECT ON webhooks TO sender").await?;
    let running = world.run().await?;
    world.sql.batch_execute("REVOKE SELECT ON webhooks FROM sender").await?;
    world.sql.batch_execute("UPDATE subscribers SET status = 'd' WHERE id >= 1000").await?;
    world.settled().await?;
    running.kill().await?;
    world.sql.batch_execute("GRANT SELECT ON webhooks TO sender").await?;
    let running = world.run().await?;

    world.delivered(20 + u64::try_from(4 * ROWS + ROWS / accounts)?).await?;
    world.until("SELECT count(*)::text FROM walhook.unrouted", "0").await?;
    world.until("SELECT count(*)::text FROM walhook.unrouted_accounts", "0").await?;
    let received = world.mock.received();
    for ((path, row), states) in taken(&received) {
        match path.as_str() {
            "/1" => ensure!(states == ["active"], "{path} {row}: {states:?}"),
            // It joined behind the third change.
            "/900" => ensure!(states == ["d"], "{path} {row}: {states:?}"),
            _ => ensure!(states == ["a", "b", "c", "d"], "{path} {row}: {states:?}"),
        }
    }
    ensure!(running.terminate().await?.success());
    Ok(())
}
