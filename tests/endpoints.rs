//! The endpoint table: each event goes by the state that was committed before it, or by a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::Result;
use axum::http::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;
use walhook_core::endpoint::Secret;
use walhook_sign as sign;
use walhook_testkit::receiver::{Behaviour, Received};

use crate::support::{PATIENCE, RULES, SCHEMA, SECRET, World, bodies, taken};

/// The ids of the rows that a path took, in order.
fn rows(received: &[Received], path: &str) -> Vec<i64> {
    let taken = taken(received).remove(path).unwrap_or_default();
    taken.into_iter().map(|(_, id)| id).collect()
}

/// Subscribers of one account, inserted one after the other for as long as this lives.
struct Stream {
    /// The id of the last insert that was begun.
    begun: Arc<AtomicI64>,
    _task: JoinSet<Result<()>>,
}

impl Stream {
    async fn start(world: &World, account: i64, first: i64) -> Result<Self> {
        let begun = Arc::new(AtomicI64::new(first));
        let (sql, next) = (world.connect().await?, Arc::clone(&begun));
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let id = next.fetch_add(1, SeqCst) + 1;
                let insert = "INSERT INTO subscribers (id, account_id) VALUES ($1, $2)";
                sql.execute(insert, &[&id, &account]).await?;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        });
        Ok(Self { begun, _task: task })
    }

    /// Whatever has a greater id than this was, or will be, committed after now.
    fn mark(&self) -> i64 {
        self.begun.load(SeqCst)
    }

    /// Waits until some more are committed, and returns the ids that began after now.
    async fn some(&self) -> std::ops::RangeInclusive<i64> {
        let first = self.mark() + 1;
        while self.mark() <= first + 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        first..=first + 19
    }

    /// Everything that begins after now arrives at the path.
    async fn arrives(&self, world: &World, path: &str) -> Result<()> {
        let ids = self.some().await;
        let what = format!("{ids:?} at {path}");
        let all = |received: Vec<Received>| {
            let there: BTreeSet<i64> = rows(&received, path).into_iter().collect();
            ids.clone().all(|id| there.contains(&id))
        };
        world.mock.wait_until(&what, PATIENCE, |_| all(world.mock.received())).await
    }

    /// Nothing that begins after now arrives at the path.
    async fn avoids(&self, world: &World, path: &str) -> Result<()> {
        let ids = self.some().await;
        world.settled().await?;
        let wrong: Vec<i64> =
            rows(&world.mock.received(), path).into_iter().filter(|id| ids.contains(id)).collect();
        assert!(wrong.is_empty(), "{path} took {wrong:?} of {ids:?}");
        Ok(())
    }
}

#[tokio::test]
async fn changes_of_an_endpoint_count_for_every_event_after_them() -> Result<()> {
    let mut world = World::new().await?;
    let _running = world.run().await?;
    let stream = Stream::start(&world, 42, 1_000_000).await?;
    let other = Stream::start(&world, 43, 2_000_000).await?;
    stream.some().await;

    world.hook(1, 42, "").await?;
    stream.arrives(&world, "/1").await?;
    let change = async |set: String| -> Result<()> {
        let update = format!("UPDATE webhooks SET {set} WHERE id = 1");
        Ok(world.sql.batch_execute(&update).await?)
    };
    change(format!("url = '{}'", world.mock.url("/new"))).await?;
    let (first, second) = tokio::join!(stream.arrives(&world, "/new"), stream.avoids(&world, "/1"));
    first.and(second)?;
    change("event_types = '{subscriber.deleted,other.*}'".to_owned()).await?;
    stream.avoids(&world, "/new").await?;
    change("event_types = '{subscriber.*}'".to_owned()).await?;
    stream.arrives(&world, "/new").await?;
    change("enabled = false".to_owned()).await?;
    stream.avoids(&world, "/new").await?;
    change("enabled = true".to_owned()).await?;
    stream.arrives(&world, "/new").await?;

    // The default replica identity does not log the account that the endpoint leaves.
    change("account_id = 43".to_owned()).await?;
    let (first, second) =
        tokio::join!(other.arrives(&world, "/new"), stream.avoids(&world, "/new"));
    first.and(second)?;
    change("id = 2, account_id = 42".to_owned()).await?;
    let (first, second) =
        tokio::join!(stream.arrives(&world, "/new"), other.avoids(&world, "/new"));
    first.and(second)?;

    world.sql.batch_execute("DELETE FROM webhooks").await?;
    stream.avoids(&world, "/new").await?;
    world.hook(3, 42, "").await?;
    stream.arrives(&world, "/3").await?;
    world.sql.batch_execute("TRUNCATE webhooks").await?;
    stream.avoids(&world, "/3").await?;
    world.hook(4, 43, "").await?;
    other.arrives(&world, "/4").await?;
    // A change and its event in one transaction.
    world
        .sql
        .batch_execute(
            "BEGIN; UPDATE webhooks SET account_id = 44; INSERT INTO subscribers VALUES (5, 44); COMMIT",
        )
        .await?;
    world
        .mock
        .wait_until("row 5", PATIENCE, |_| rows(&world.mock.received(), "/4").contains(&5))
        .await?;
    // What waited for the endpoint while it was switched off is a dead letter, and nothing else is.
    let others = "SELECT count(*) FROM walhook.dead_letters WHERE reason <> 'endpoint_disabled'";
    assert_eq!(world.value(others).await?, "0");
    Ok(())
}

#[tokio::test]
async fn secrets_are_rotated_while_events_flow() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    let _running = world.run().await?;
    let signed_by = |request: &Received, secret: &str| {
        let header = |name: &str| request.headers[name].to_str().unwrap().to_owned();
        let (timestamp, signature) = (header("webhook-timestamp"), header("webhook-signature"));
        let secret = Secret::new(secret);
        sign::verify(&request.id, timestamp.parse().unwrap(), &request.body, &signature, &secret)
    };
    let other = "words without the prefix";
    let update = |secrets: &str| format!("UPDATE webhooks SET secret = {secrets}");
    let both = update(&format!("ARRAY['{other}', '{SECRET}']"));
    let steps = [
        (String::new(), [true, false]),
        (update(&format!("'{other}'")), [false, true]),
        (
            "ALTER TABLE webhooks ALTER secret TYPE text[] USING ARRAY[secret]".to_owned(),
            [false, true],
        ),
        (both, [true, true]),
        (update(&format!("'{{{SECRET}}}'")), [true, false]),
    ];
    for (id, (sql, expected)) in (1..).zip(steps) {
        world.sql.batch_execute(&sql).await?;
        world.subscribe(id, 42).await?;
        let received = world.delivered(id.unsigned_abs()).await?;
        let last = received.last().unwrap();
        assert_eq!([signed_by(last, SECRET), signed_by(last, other)], expected, "{sql}");
        let signatures = last.headers["webhook-signature"].to_str()?.split(' ').count();
        assert_eq!(signatures, expected.iter().filter(|signed| **signed).count(), "{sql}");
    }
    Ok(())
}

#[tokio::test]
async fn pending_deliveries_are_dropped_or_die_with_their_endpoint() -> Result<()> {
    let mut world = World::new().await?;
    // The rows' order makes the later ones wait for the first.
    for (id, account) in [(1, 41), (2, 42), (3, 43)] {
        world.hook(id, account, "?delay=8s").await?;
    }
    let _running = world.run().await?;
    for account in [41, 42, 43] {
        world.subscribe(account, account).await?;
    }
    for n in 1..=4 {
        world.sql.batch_execute(&format!("UPDATE subscribers SET status = '{n}'")).await?;
    }
    world.mock.wait_until("three requests", PATIENCE, |stats| stats.in_flight == 3).await?;
    world
        .sql
        .batch_execute(
            "DELETE FROM webhooks WHERE id = 1; UPDATE webhooks SET enabled = false WHERE id = 2;
             UPDATE webhooks SET account_id = 44 WHERE id = 3",
        )
        .await?;
    world.settled().await?;
    let taken = taken(&world.mock.received());
    let counts: Vec<usize> = ["/1", "/2", "/3"].iter().map(|path| taken[*path].len()).collect();
    assert_eq!(counts, [1, 1, 1], "what was in flight may end; {taken:?}");
    world.until_metric("walhook_deliveries_total{result=\"dropped\"}", "8").await?;
    world.until_metric("walhook_deliveries_total{result=\"dead\"}", "4").await?;
    let dead = "SELECT string_agg(DISTINCT concat_ws('|', endpoint, reason, detail, attempts), ';')
         FROM walhook.dead_letters";
    let expected = "2|endpoint_disabled|the endpoint's row is not enabled|0";
    assert_eq!(world.value(dead).await?, expected);
    Ok(())
}

#[tokio::test]
async fn endpoint_without_secret_gets_dead_letters_that_say_so() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    world.hook(2, 42, "").await?;
    world.sql.batch_execute("UPDATE webhooks SET secret = NULL WHERE id = 1").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.settled().await?;
    let taken = taken(&world.delivered(1).await?);
    assert_eq!(taken.keys().collect::<Vec<_>>(), ["/2"], "its neighbour has it");
    let letters = world.walhook_json(&["dead-letters", "list"]).await?;
    let text = letters.to_string();
    assert!(text.contains("endpoint_invalid") && text.contains("the secret is null"), "{text}");
    assert_eq!(world.value("SELECT count(*) FROM walhook.dead_letters").await?, "1");
    Ok(())
}

#[tokio::test]
async fn endpoint_that_is_gone_is_off_until_its_row_changes() -> Result<()> {
    let mut world = World::new().await?;
    world.hook(1, 42, "").await?;
    world.hook(2, 42, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.settled().await?;
    world.subscribe(2, 42).await?;
    world.settled().await?;
    let dead = "SELECT string_agg(concat_ws('|', endpoint, reason, attempts, last_status), ' '
         ORDER BY id) FROM walhook.dead_letters";
    let expected = "1|endpoint_disabled|1|410 1|endpoint_disabled|0";
    assert_eq!(world.value(dead).await?, expected);
    let off =
        "SELECT string_agg(concat_ws('|', endpoint, reason), ' ') FROM walhook.endpoint_state";
    assert_eq!(world.value(off).await?, "1|status 410");
    let status = world.walhook_json(&["status"]).await?;
    assert_eq!(status["disabled_endpoints"][0]["endpoint"], "1", "{status}");
    world.until_metric("walhook_deliveries_total{result=\"dead\"}", "2").await?;

    // A retry sends nothing while it is off, says so, and leaves the letters what they were.
    let first = world.walhook_json(&["dead-letters", "show", "1"]).await?;
    let retry = world.walhook(&["dead-letters", "retry", "1"]).await?;
    let told = crate::support::text(&retry.stdout);
    let why = "not sent: the endpoint is switched off; `walhook endpoints resume` switches it on (status 410)";
    assert!(told.contains(why), "{told}");
    let shown = world.walhook_json(&["dead-letters", "show", "1"]).await?;
    assert_eq!(
        (&shown["reason"], &shown["last_status"], &shown["tried_at"]),
        (&first["reason"], &first["last_status"], &first["tried_at"])
    );
    assert_eq!(world.value(dead).await?, expected);

    // It stays off in the next process.
    running.kill().await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let _running = world.run().await?;
    world.subscribe(3, 42).await?;
    world.settled().await?;
    assert_eq!(world.value(dead).await?, format!("{expected} 1|endpoint_disabled|0"));

    world.sql.batch_execute("UPDATE webhooks SET enabled = true WHERE id = 1").await?;
    world.subscribe(4, 42).await?;
    world.until(off, "").await?;
    world.delivered(5).await?;
    let received = world.mock.received();
    assert_eq!(rows(&received, "/1"), [4]);
    assert_eq!(rows(&received, "/2").into_iter().collect::<BTreeSet<_>>(), (1..=4).collect());
    Ok(())
}

#[tokio::test]
async fn account_with_more_weight_gets_more_of_the_slots() -> Result<()> {
    let sections =
        "[accounts]\ntable = \"public.accounts\"\n[scheduler]\nfast_slots = 1\nslow_slots = 1";
    let mut world = World::bare(sections, RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world
        .sql
        .batch_execute(
            "CREATE TABLE accounts (id bigint PRIMARY KEY, weight numeric);
             INSERT INTO accounts VALUES (1, 1), (2, 4)",
        )
        .await?;
    world.set_up().await?;
    world.hook(1, 1, "?delay=5ms").await?;
    world.hook(2, 2, "?delay=5ms").await?;
    let _running = world.run().await?;
    // Both are known by then: neither is ahead while the other one is looked up.
    world.subscribe(1_001, 1).await?;
    world.subscribe(1_002, 2).await?;
    let known = world.delivered(2).await?.len();
    let insert = "INSERT INTO subscribers SELECT n, 1 + n % 2 FROM generate_series(1, 400) n";
    world.sql.batch_execute(insert).await?;
    let received = world.delivered(402).await?.split_off(known);
    let heavy_ends = received.iter().rposition(|request| request.path == "/2").unwrap();
    let light = received[..heavy_ends].iter().filter(|request| request.path == "/1").count();
    // 200 of the heavy one leave room for 50 of the light one.
    assert!((30..=80).contains(&light), "{light}");
    Ok(())
}

#[tokio::test]
async fn view_of_endpoints_follows_the_tables_that_it_stands_on() -> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world
        .sql
        .batch_execute(&format!(
            "CREATE TABLE places (account_id bigint PRIMARY KEY, url text NOT NULL);
             CREATE TABLE consents (account_id bigint PRIMARY KEY, given boolean NOT NULL);
             CREATE VIEW hooks AS SELECT 'hook-' || account_id AS id, account_id, url,
                 ARRAY['subscriber.created'] AS event_types, '{SECRET}' AS secret, given AS enabled
                 FROM places JOIN consents USING (account_id)"
        ))
        .await?;
    world.reconfigure(
        "\"public.webhooks\"",
        "\"public.hooks\"\nwatch = [\"public.places\", \"public.consents\"]",
    )?;
    world.set_up().await?;
    let _running = world.run().await?;
    let next = async |sql: String, id: i64| -> Result<()> {
        world.sql.batch_execute(&sql).await?;
        world.subscribe(id, 42).await?;
        world.settled().await
    };
    next(format!("INSERT INTO places VALUES (42, '{}')", world.mock.url("/a")), 1).await?;
    next("INSERT INTO consents VALUES (42, true)".to_owned(), 2).await?;
    next("UPDATE consents SET given = false".to_owned(), 3).await?;
    next("UPDATE consents SET given = true".to_owned(), 4).await?;
    next(format!("UPDATE places SET url = '{}'", world.mock.url("/b")), 5).await?;
    next("TRUNCATE consents".to_owned(), 6).await?;
    let received = world.mock.received();
    assert_eq!((rows(&received, "/a"), rows(&received, "/b")), (vec![2, 4], vec![5]));
    Ok(())
}

#[tokio::test]
async fn many_accounts_that_come_at_once_all_get_their_events() -> Result<()> {
    let mut world = World::new().await?;
    let _running = world.run().await?;
    // Accounts that are known to have no endpoints, before they get one.
    let insert = "INSERT INTO subscribers SELECT n, n FROM generate_series(1, 300) n";
    world.sql.batch_execute(insert).await?;
    world.settled().await?;
    let hooks = format!(
        "BEGIN; INSERT INTO webhooks SELECT n, n, '{}' || n, '{{*}}', '{SECRET}'
             FROM generate_series(1, 300) n;
         UPDATE subscribers SET status = 'x' WHERE id > 0; COMMIT",
        world.mock.url("/")
    );
    world.sql.batch_execute(&hooks).await?;
    let received = world.delivered(300).await?;
    for (path, events) in taken(&received) {
        let account: i64 = path[1..].parse()?;
        assert_eq!(events, [("subscriber.updated".to_owned(), account)], "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn failed_delivery_is_tried_again_and_keeps_its_rows_order() -> Result<()> {
    let sections = "[delivery]\nquick_attempts = 16\nretry_base = \"40ms\"\nretry_cap = \"100ms\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 42, "?fail=0.3").await?;
    world.hook(2, 42, "").await?;
    world.mock.set_behaviour("/2", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    let _running = world.run().await?;
    world.subscribe(1_000, 42).await?;
    world.mock.wait_until("two failures", PATIENCE, |stats| stats.received >= 4).await?;
    world.mock.set_behaviour("/2", Behaviour::ok());
    for id in 1..=10 {
        world.subscribe(id, 42).await?;
    }
    for n in 1..=9 {
        let update = format!("UPDATE subscribers SET status = '{n}' WHERE id BETWEEN 1 AND 10");
        world.sql.batch_execute(&update).await?;
    }
    let received = world.delivered(202).await?;
    assert!(received.iter().any(|r| r.path == "/2" && r.is_taken() && r.attempt > 1));
    for path in ["/1", "/2"] {
        let mut attempts: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        let of_path = received.iter().filter(|request| request.path == path);
        of_path.for_each(|r| attempts.entry(&r.id).or_default().push(r.attempt));
        for (id, numbers) in &attempts {
            let expected: Vec<u32> = (1..).take(numbers.len()).collect();
            assert_eq!(*numbers, expected, "{path} {id}");
        }
        let bodies = bodies(&received, path);
        for row in 1..=10 {
            let of_row = bodies.iter().filter(|body| body["data"]["id"] == row);
            let states: Vec<_> = of_row.map(|body| body["data"]["status"].clone()).collect();
            let expected: Vec<_> = (0..10)
                .map(|n| if n == 0 { json!("active") } else { json!(n.to_string()) })
                .collect();
            assert_eq!(states, expected, "row {row} at {path}");
        }
    }
    assert!(received.iter().all(|request| request.verified), "each attempt is signed anew");
    let failed = received.iter().filter(|request| !request.is_taken()).count();
    world.until_metric("walhook_attempts_total{outcome=\"5xx\"}", &failed.to_string()).await?;
    Ok(())
}

#[tokio::test]
async fn ordering_by_account_sends_one_after_the_other() -> Result<()> {
    let sections = "[delivery]\nordering = \"account\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 42, "?delay=5ms").await?;
    let _running = world.run().await?;
    for id in 1..=30 {
        world.subscribe(id, 42).await?;
    }
    assert_eq!(rows(&world.delivered(30).await?, "/1"), (1..=30).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn ordering_none_sends_one_rows_events_side_by_side() -> Result<()> {
    let mut world = World::with("[delivery]\nordering = \"none\"", RULES, &[]).await?;
    world.hook(1, 42, "?hang").await?;
    let _running = world.run().await?;
    world.subscribe(1, 42).await?;
    for n in 1..=3 {
        world.sql.batch_execute(&format!("UPDATE subscribers SET status = '{n}'")).await?;
    }
    world.mock.wait_until("four at once", PATIENCE, |stats| stats.in_flight == 4).await
}
