//! What an operator does to endpoints and deferred deliveries, while a leader runs and while none does.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, World, bodies, taken, text};

const DEFERRED: &str = "SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''";
const DEAD: &str = "SELECT count(*) FROM walhook.dead_letters";
const BACKLOG: &str = "SELECT count(*) FROM walhook.backlog";

/// What failed once waits for hours.
const HOURS: &str = "[delivery]\nquick_attempts = 1\nretry_base = \"8h\"\n";

fn down() -> Behaviour {
    Behaviour::status(StatusCode::SERVICE_UNAVAILABLE)
}

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

/// Sets the row's status in as many transactions.
async fn statuses(world: &World, id: i64, statuses: &[&str]) -> Result<()> {
    for status in statuses {
        let update = "UPDATE subscribers SET status = $2 WHERE id = $1";
        world.sql.execute(update, &[&id, status]).await?;
    }
    Ok(())
}

/// The statuses of a row that an endpoint took, in order, without repeats.
fn taken_of(world: &World, path: &str, id: i64) -> Vec<String> {
    let bodies = bodies(&world.mock.received(), path);
    let of_row = bodies.iter().filter(|body| body["data"]["id"] == id);
    of_row.map(|body| body["data"]["status"].as_str().unwrap_or_default().to_owned()).collect()
}

fn requests(world: &World, path: &str) -> usize {
    world.mock.received().iter().filter(|request| request.path == path).count()
}

#[tokio::test]
async fn paused_endpoint_gets_nothing_and_loses_nothing_until_it_is_resumed() -> Result<()> {
    // Shorter than the pause: neither may come to its end in it.
    let sections = "[delivery]\nretry_base = \"200ms\"\nretry_cap = \"400ms\"\nretry_for = \"12s\"\n\
                    disable_after = \"12s\"\n";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.until(DEFERRED, "1").await?;
    let paused = world.walhook_json(&["endpoints", "pause", "1", "--reason", "moving"]).await?;
    ensure!(paused["changed"] == true && paused["finished"] == true, "{paused}");
    running.until_logged("an operator paused the endpoint").await?;
    let again = world.walhook(&["endpoints", "pause", "1"]).await?;
    ensure!(again.status.success() && said(&again).contains("is paused already"), "{again:?}");
    let unknown = world.walhook(&["endpoints", "pause", "99"]).await?;
    ensure!(unknown.status.code() == Some(1), "{}", said(&unknown));
    ensure!(said(&unknown).contains("has no endpoint 99"), "{}", said(&unknown));
    let before = requests(&world, "/1");

    statuses(&world, 1, &["a", "b"]).await?;
    world.subscribe(2, 2).await?;
    world.settled().await?;
    ensure!(taken(&world.mock.received())["/2"].len() == 1, "the other account waits");
    let reasons = "SELECT string_agg(DISTINCT reason, ',') FROM walhook.deliveries_pending WHERE endpoint <> ''";
    ensure!(world.value(reasons).await?.contains("paused"), "{}", world.value(reasons).await?);
    running.kill().await?;

    let running = world.run().await?;
    world.until_metric("walhook_endpoints_stopped{state=\"paused\"}", "1").await?;
    statuses(&world, 1, &["c"]).await?;
    world.until(DEFERRED, "4").await?;
    let over =
        "SELECT clock_timestamp() - disabled_at > interval '14 s' FROM walhook.endpoint_state";
    world.until(over, "t").await?;
    ensure!(requests(&world, "/1") == before, "something was sent to a paused endpoint");
    ensure!(world.value(DEAD).await? == "0");
    let list = world.walhook_json(&["endpoints", "list"]).await?;
    let one = &list["endpoints"][0];
    ensure!(one["state"] == "paused" && one["reason"] == "moving", "{list}");
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["endpoints"]["paused"] == 1, "{status}");
    ensure!(status["paused_endpoints"][0]["reason"] == "moving", "{status}");

    // Its clock has stood still: the first failure after the pause is not the last one.
    let resumed = world.walhook(&["endpoints", "resume", "1"]).await?;
    ensure!(said(&resumed).contains("resumed endpoint 1"), "{}", said(&resumed));
    running.until_logged("an operator resumed the endpoint").await?;
    let what = "an attempt after the pause";
    let patience = crate::support::PATIENCE;
    let received = world.mock.stats().received;
    world.mock.wait_until(what, patience, |stats| stats.received > received).await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let retry = world.walhook_json(&["deferred", "retry", "--endpoint", "1"]).await;
    world.until(DEFERRED, "0").await.with_context(|| format!("{retry:?}"))?;
    ensure!(
        taken_of(&world, "/1", 1) == ["active", "a", "b", "c"],
        "{:?}",
        taken_of(&world, "/1", 1)
    );
    ensure!(world.value(DEAD).await? == "0");
    ensure!(world.value("SELECT count(*) FROM walhook.endpoint_state").await? == "0");
    let again = world.walhook_json(&["endpoints", "resume", "1"]).await?;
    ensure!(again["changed"] == false, "{again}");
    world.subscribe(3, 1).await?;
    world.until_metric("walhook_deferred", "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn resume_switches_on_what_walhook_switched_off_and_pause_waits_for_a_leader() -> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.until("SELECT kind FROM walhook.endpoint_state", "disabled").await?;
    world.until(DEAD, "1").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    let resumed = world.walhook_json(&["endpoints", "resume", "1"]).await?;
    ensure!(resumed["changed"] == true, "{resumed}");
    running.until_logged("switched the endpoint on again").await?;
    world.subscribe(2, 1).await?;
    world.delivered(1).await?;
    ensure!(running.terminate().await?.success());

    let pause = world.walhook(&["endpoints", "pause", "1", "--wait", "0s"]).await?;
    ensure!(pause.status.success() && said(&pause).contains("no leader runs now"), "{pause:?}");
    ensure!(world.value("SELECT count(*) FROM walhook.endpoint_state").await? == "0");
    let running = world.run().await?;
    world.until("SELECT kind FROM walhook.endpoint_state", "paused").await?;
    world.subscribe(3, 1).await?;
    world
        .until("SELECT reason FROM walhook.deliveries_pending WHERE endpoint <> ''", "paused")
        .await?;
    // What is not deferred says why it is not sent.
    let retry = world.walhook(&["dead-letters", "retry", "--endpoint", "1"]).await?;
    ensure!(retry.status.code() == Some(1), "{}", said(&retry));
    ensure!(world.value("SELECT detail FROM walhook.dead_letters").await?.contains("is paused"));
    ensure!(world.walhook(&["endpoints", "resume", "1"]).await?.status.success());
    world.delivered(2).await?;
    world.until(DEFERRED, "0").await?;
    let retry = world.walhook(&["dead-letters", "retry", "--endpoint", "1"]).await?;
    ensure!(retry.status.success(), "{}", said(&retry));
    world.until(BACKLOG, "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn deferred_retry_sends_at_once_what_would_wait_for_hours() -> Result<()> {
    let mut world = World::with(HOURS, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", down());
    let mut running = world.run().await?;
    for (id, restart) in [(1, false), (2, true)] {
        world.mock.set_behaviour("/1", down());
        world.subscribe(id, 1).await?;
        // Known in memory with its time, and the next version stands behind it.
        world
            .until("SELECT count(*) FROM walhook.deliveries_pending WHERE attempts = 1", "1")
            .await?;
        statuses(&world, id, &["later"]).await?;
        world.until(DEFERRED, "2").await?;
        world.mock.set_behaviour("/1", Behaviour::ok());
        if restart {
            running.kill().await?;
            running = world.run().await?;
            // The leader has read its rows when it has told how many there are.
            world.until_metric("walhook_deferred", "2").await?;
        }
        let retried = world.walhook_json(&["deferred", "retry", "--endpoint", "1"]).await?;
        ensure!(retried["done"] == 2 && retried["finished"] == true, "{retried}");
        world.until(DEFERRED, "0").await?;
        ensure!(taken_of(&world, "/1", id) == ["active", "later"]);
    }
    world.until(BACKLOG, "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn deferred_discard_lets_go_what_stood_behind_in_its_order() -> Result<()> {
    let mut world = World::with(HOURS, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.until("SELECT count(*) FROM walhook.deliveries_pending WHERE attempts = 1", "1").await?;
    statuses(&world, 1, &["a", "b", "c"]).await?;
    world.until(DEFERRED, "4").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    // In the order of their commits: ids of one millisecond have none.
    let events = "SELECT string_agg(event_id, ' ' ORDER BY committed_at)
                  FROM walhook.deliveries_pending WHERE endpoint <> ''";
    let events = world.value(events).await?;
    let events: Vec<&str> = events.split(' ').collect();
    // One from the middle, which nobody knows of but the table, then the one that holds the others up.
    for n in [2, 0] {
        let discard = world.walhook(&["deferred", "discard", events[n], "--yes"]).await?;
        ensure!(discard.status.success(), "{}", said(&discard));
    }
    world.until(DEFERRED, "0").await?;
    world.until(BACKLOG, "0").await?;
    ensure!(taken_of(&world, "/1", 1) == ["a", "c"], "{:?}", taken_of(&world, "/1", 1));
    // Nothing is counted that is not there, and what comes next goes directly.
    world.until_metric("walhook_deferred", "0").await?;

    world.mock.set_behaviour("/1", down());
    for id in 2..=20 {
        world.subscribe(id, 1).await?;
    }
    world.until(DEFERRED, "19").await?;
    let all = world.walhook(&["deferred", "discard", "--endpoint", "1", "--yes"]).await?;
    ensure!(all.status.success(), "{}", said(&all));
    world.until(DEFERRED, "0").await?;
    world.until_metric("walhook_deferred", "0").await?;
    world.until(BACKLOG, "0").await?;
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.subscribe(21, 1).await?;
    world.delivered(3).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn retry_to_an_endpoint_that_hangs_holds_up_only_another_of_the_same_dead_letters()
-> Result<()> {
    let sections = "[delivery]\nquick_attempts = 1\nretry_for = \"0s\"\ntimeout = \"30s\"\n";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", down());
    world.mock.set_behaviour("/2", down());
    let running = world.run().await?;
    for id in 0..3 {
        world.subscribe(id, 1).await?;
    }
    world.subscribe(9, 2).await?;
    world.until(DEAD, "4").await?;
    world.mock.set_behaviour("/1", Behaviour { hang: true, ..Behaviour::ok() });
    world.mock.set_behaviour("/2", Behaviour::ok());
    let hangs =
        world.walhook(&["dead-letters", "retry", "--endpoint", "1", "--wait", "1s"]).await?;
    ensure!(said(&hangs).contains("is not finished"), "{}", said(&hangs));

    // Commands of all kinds, of others and of the same endpoint.
    for command in [
        &["endpoints", "pause", "2"][..],
        &["endpoints", "resume", "2"],
        &["dead-letters", "retry", "--endpoint", "2"],
        &["endpoints", "pause", "1"],
        &["endpoints", "resume", "1"],
    ] {
        let done = world.walhook(&[command, &["--wait", "8s"]].concat()).await?;
        ensure!(done.status.success(), "{command:?}: {}", said(&done));
    }
    let waits = world.walhook(&["dead-letters", "retry", "--all", "--wait", "4s"]).await?;
    let before = said(&waits);
    // The pause has ended what was not in flight.
    let is_named =
        before.contains("job 1 (dead-letters retry, ") && before.contains("is before it");
    ensure!(is_named, "{before}");

    // What it waited for fails; then it has its turn, and sends what was not tried since it was asked for.
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.until("SELECT count(*) FROM walhook.jobs WHERE finished_at IS NULL", "0").await?;
    let last = world.walhook(&["dead-letters", "retry", "--all"]).await?;
    ensure!(last.status.success(), "{}", said(&last));
    world.until(DEAD, "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn retry_goes_on_where_it_was_when_its_session_is_lost() -> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    let running = world.run().await?;
    let insert = "INSERT INTO subscribers SELECT n, 1, 'a@example.com', 'active'
                  FROM generate_series(1, 200) n";
    world.sql.batch_execute(insert).await?;
    world.until(DEAD, "200").await?;
    let resumed = world.walhook(&["endpoints", "resume", "1"]).await?;
    ensure!(resumed.status.success(), "{}", said(&resumed));
    let slow = Behaviour { delay: Duration::from_millis(500), ..Behaviour::ok() };
    world.mock.set_behaviour("/1", slow);
    let before = requests(&world, "/1");
    let asked = world.walhook(&["dead-letters", "retry", "--all", "--wait", "0s"]).await?;
    ensure!(said(&asked).contains("not finished"), "{}", said(&asked));
    let sent = before as u64 + 5;
    world.mock.wait_until("some sent again", PATIENCE, |s| s.received >= sent).await?;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                 WHERE application_name = 'walhook jobs'";
    ensure!(world.value(ended).await? == "1", "the retry is under way, on its session");
    world.until("SELECT count(*) FROM walhook.jobs WHERE finished_at IS NULL", "0").await?;
    world.until(DEAD, "0").await?;
    let sent = requests(&world, "/1") - before;
    ensure!(sent == 200, "{sent} were sent");
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn what_is_discarded_for_a_paused_endpoint_is_counted_no_more_also_after_a_crash()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let mut running = world.run().await?;
    let paused = world.walhook(&["endpoints", "pause", "1"]).await?;
    ensure!(paused.status.success(), "{}", said(&paused));
    let insert = "INSERT INTO subscribers SELECT n, 1, 'a@example.com', 'active'
                  FROM generate_series(1, 3000) n";
    world.sql.batch_execute(insert).await?;
    world.until(DEFERRED, "3000").await?;
    world.settled().await?;
    let some = "SELECT event_id FROM walhook.deliveries_pending LIMIT 1";
    let one = world.value(some).await?;
    let gone = world.walhook(&["deferred", "discard", &one, "--yes"]).await?;
    ensure!(gone.status.success(), "{}", said(&gone));
    world.until_metric("walhook_deferred", "2999").await?;
    let gone = world.walhook(&["deferred", "discard", "--endpoint", "1", "--yes"]).await?;
    ensure!(gone.status.success(), "{}", said(&gone));
    // A batch that was under way meanwhile says once more what was counted before.
    world.until("SELECT coalesce(sum(deferred), 0) FROM walhook.backlog", "0").await?;
    running.kill_and_wait().await?;

    let running = world.run().await?;
    world.until_metric("walhook_deferred", "0").await?;
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["deferred"] == 0, "{status}");
    // It is paused as before, and takes what comes.
    world.subscribe(9_000, 1).await?;
    world.until(DEFERRED, "1").await?;
    world.until_metric("walhook_deferred", "1").await?;
    ensure!(requests(&world, "/1") == 0);
    let resumed = world.walhook(&["endpoints", "resume", "1"]).await?;
    ensure!(resumed.status.success(), "{}", said(&resumed));
    world.delivered(1).await?;
    world.until(BACKLOG, "0").await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn pause_holds_what_waits_for_an_endpoint_that_is_gone_and_resume_says_that_it_is_dropped()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    let running = world.run().await?;
    ensure!(world.walhook(&["endpoints", "pause", "1"]).await?.status.success());
    for id in 0..5 {
        world.subscribe(id, 1).await?;
    }
    world.until(DEFERRED, "5").await?;
    world.sql.batch_execute("DELETE FROM webhooks").await?;
    world.settled().await?;
    let listed = world.walhook_json(&["endpoints", "list", "--trouble"]).await?;
    let gone = &listed["endpoints"][0];
    ensure!(gone["state"] == "removed" && gone["deferred"] == 5, "{listed}");
    let resumed = world.walhook(&["endpoints", "resume", "1"]).await?;
    ensure!(resumed.status.success(), "{}", said(&resumed));
    ensure!(
        said(&resumed).contains("whose row is gone: 5 deferred deliveries are dropped"),
        "{}",
        said(&resumed)
    );
    world.until(DEFERRED, "0").await?;
    let dropped = ["events", "list", "--outcome", "dropped", "--endpoint", "1"];
    let dropped = world.walhook_json(&dropped).await?;
    ensure!(dropped["lines"].as_array().map(Vec::len) == Some(5), "{dropped}");
    ensure!(requests(&world, "/1") == 0);
    ensure!(running.terminate().await?.success());
    Ok(())
}

#[tokio::test]
async fn endpoint_that_is_gone_with_deferred_deliveries_is_told_with_the_replay_that_sends_them()
-> Result<()> {
    let sections = "[delivery]\nquick_attempts = 1\nretry_base = \"1s\"\nretry_cap = \"2s\"\n";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.mock.set_behaviour("/1", down());
    let running = world.run().await?;
    for id in 0..20 {
        world.subscribe(id, 1).await?;
    }
    world.until(DEFERRED, "20").await?;
    world.sql.batch_execute("DELETE FROM webhooks").await?;
    running.until_logged("the account has this endpoint no more").await?;
    world.until(DEFERRED, "0").await?;
    let log = running.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("endpoint no more")).collect();
    let [line] = lines[..] else { anyhow::bail!("{lines:?}") };
    ensure!(line.contains("WARN") && line.contains("20 deferred deliveries"), "{line}");
    world.until_metric("walhook_endpoint_changes_total{change=\"removed\"}", "1").await?;
    let listed = world.walhook(&["events", "list", "--outcome", "dropped"]).await?;
    ensure!(said(&listed).lines().filter(|line| line.contains("dropped")).count() >= 20);

    world.mock.set_behaviour("/1", Behaviour::ok());
    world.hook(1, 1, "").await?;
    let (_, command) = line.split_once("`walhook ").context("no command")?;
    let (command, _) = command.split_once('`').context("no end")?;
    let words: Vec<&str> = command.split(' ').collect();
    let sent = world.walhook(&[&words[..], &["--wait"]].concat()).await?;
    ensure!(sent.status.success(), "{}", said(&sent));
    world.delivered(20).await?;
    ensure!(running.terminate().await?.success());
    Ok(())
}
