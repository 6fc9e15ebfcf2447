//! `walhook events`: the support desk's question, answered for each way that a delivery can go.

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;
use walhook_testkit::cluster::{Cluster, StopMode};
use walhook_testkit::receiver::{Behaviour, Received};

use crate::kills::until_standing_by;
use crate::support::{PATIENCE, RULES, Running, World, text};

/// A failed delivery is deferred at once, and tried again in an hour.
const PATIENT: &str = "[delivery]\nquick_attempts = 1\nretry_base = \"1h\"\nretry_cap = \"1h\"";

/// The event of a subscriber, as its requests have it.
async fn event_of(world: &World, subscriber: i64) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let is_it = |request: &&Received| request.json()["data"]["id"] == subscriber;
        if let Some(request) = world.mock.received().iter().find(is_it) {
            return Ok(request.id.clone());
        }
        ensure!(Instant::now() < deadline, "no request has the event of subscriber {subscriber}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Runs, and waits until the replay window has begun: what is committed from then on can be sent again.
async fn run_with_window(world: &mut World) -> Result<Running> {
    let running = world.run().await?;
    let anchor = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walhook_anchor'";
    world.until(anchor, "1").await?;
    Ok(running)
}

async fn show(world: &World, event: &str) -> Result<Value> {
    world.walhook_json(&["events", "show", event]).await
}

/// What `events show` says once its first delivery is in this state.
async fn show_until(world: &World, event: &str, state: &str) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let shown = show(world, event).await?;
        if shown["deliveries"][0]["state"] == state {
            return Ok(shown);
        }
        ensure!(Instant::now() < deadline, "{event} is not {state}: {shown}");
    }
}

#[tokio::test]
async fn event_that_waits_in_memory_is_shown_with_what_it_waits_for() -> Result<()> {
    let sections = "[delivery]\ntimeout = \"60s\"\n[wal]\nmax_hold = \"10m\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 43, "").await?;
    world.mock.set_behaviour("/7", Behaviour::hang());
    let running = run_with_window(&mut world).await?;
    world.subscribe(1, 42).await?;
    world.subscribe(2, 43).await?;
    world.delivered(1).await?;
    // The receiver tells of no request that hangs; the leader does.
    let deadline = Instant::now() + PATIENCE;
    let event = loop {
        let status = world.walhook_json(&["status"]).await?;
        if let Some(event) = status["work"]["oldest"]["event_id"].as_str() {
            break event.to_owned();
        }
        ensure!(Instant::now() < deadline, "nothing is pending: {status}");
    };
    let shown = show_until(&world, &event, "pending").await?;
    ensure!(
        shown["deliveries"][0]["endpoint"] == "7" && shown["memory_error"].is_null(),
        "{shown}"
    );
    let shown = loop {
        let shown = show(&world, &event).await?;
        if shown["deliveries"][0]["attempts"] == 1 {
            break shown;
        }
        ensure!(Instant::now() < deadline, "it is not tried: {shown}");
    };
    ensure!(shown["deliveries"][0]["cause"] == "attempt", "{shown}");
    let plain = text(&world.walhook(&["events", "show", &event]).await?.stdout);
    ensure!(plain.contains("pending, 1 attempt; waits for attempt: the request"), "{plain}");
    ensure!(shown["account_id"] == "42", "the leader says whose it is: {shown}");
    not_yet_to_be_sent_again(&world, &event).await?;
    running.kill().await?;

    // Killed in the middle: nothing is in anyone's memory, and the next leader sends it again.
    let shown = show(&world, &event).await?;
    ensure!(shown["deliveries"] == serde_json::json!([]), "{shown}");
    ensure!(shown["note"].is_string(), "{shown}");
    world.mock.set_behaviour("/7", Behaviour::ok());
    let running = world.run().await?;
    world.delivered(2).await?;
    running.kill().await?;
    Ok(())
}

/// While one delivery holds the checkpoint back, what can be sent again ends there, and the commands say so: of that
/// delivery's event, and of one that was committed later and has been taken.
async fn not_yet_to_be_sent_again(world: &World, holding: &str) -> Result<()> {
    let taken = event_of(world, 2).await?;
    show_until(world, &taken, "delivered").await?;
    for (event, why) in [
        (holding, "has not passed it, for it is still being delivered for the first time"),
        (&taken, "has not passed it, although nothing of it is on its way any more"),
    ] {
        let refused = world.walhook(&["events", "resend", event]).await?;
        let said = text(&refused.stderr);
        ensure!(refused.status.code() == Some(1) && said.contains(why), "{said}");
        ensure!(said.contains(" behind the WAL)") && said.contains("max_hold (10m)"), "{said}");
    }
    let dry_run = ["replay", "start", "--from", "oldest", "--account", "43", "--dry-run"];
    let said = text(&world.walhook(&dry_run).await?.stdout);
    ensure!(said.contains("0 deliveries of 0 events"), "{said}");
    ensure!(said.contains("is not in this range, which ends at the checkpoint"), "{said}");
    let counts = world.walhook_json(&dry_run).await?;
    ensure!(counts["left_out_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{counts}");
    ensure!(counts["left_out_events"] == 1, "{counts}");
    Ok(())
}

/// An event that its endpoint refuses.
async fn refused_event() -> Result<(World, Running, String)> {
    let mut world = World::with(PATIENT, RULES, &[]).await?;
    world.hook(7, 42, "").await?;
    world.mock.set_behaviour("/7", Behaviour::status(StatusCode::IM_A_TEAPOT));
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    let event = event_of(&world, 1).await?;
    Ok((world, running, event))
}

#[tokio::test]
async fn event_that_is_deferred_or_dead_is_shown_with_its_body_while_nothing_runs() -> Result<()> {
    let (mut world, running, event) = refused_event().await?;
    let shown = show_until(&world, &event, "deferred").await?;
    let delivery = &shown["deliveries"][0];
    ensure!(delivery["reason"] == "failed" && delivery["attempts"] == 1, "{shown}");
    ensure!(!delivery["next_attempt_at"].is_null(), "{shown}");
    ensure!(delivery["detail"].as_str().is_some_and(|it| it.contains("418")), "{shown}");
    ensure!(running.terminate().await?.success());
    let shown = show(&world, &event).await?;
    ensure!(shown["deliveries"][0]["state"] == "deferred", "{shown}");
    let first = world.mock.received().into_iter().next().context("nothing was tried")?;
    ensure!(shown["body"] == first.json() && shown["body_from"] == "state", "{shown}");
    ensure!(shown["account_id"] == "42" && shown["type"] == "subscriber.created", "{shown}");

    // It dies: the same question, another answer.
    world.edit_config("retry_cap = \"1h\"", "retry_cap = \"1h\"\nretry_for = \"0s\"")?;
    let running = world.run().await?;
    let retried = world.walhook(&["deferred", "retry", "--all"]).await?;
    ensure!(retried.status.success(), "{}", text(&retried.stderr));
    let shown = show_until(&world, &event, "dead_letter").await?;
    let delivery = &shown["deliveries"][0];
    let letter = delivery["dead_letter"].as_i64().context("it has no id")?.to_string();
    ensure!(delivery["reason"] == "exhausted", "{shown}");
    ensure!(shown["body"] == first.json(), "{shown}");
    let plain = text(&world.walhook(&["events", "show", &event]).await?.stdout);
    ensure!(plain.contains(&format!("walhook dead-letters retry {letter}")), "{plain}");
    running.kill().await?;
    Ok(())
}

#[tokio::test]
async fn event_is_sent_again_to_whoever_is_named_as_far_back_as_the_window_reaches() -> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 42, "").await?;
    let running = run_with_window(&mut world).await?;
    // Two of one transaction: one is meant.
    world
        .sql
        .batch_execute(
            "INSERT INTO subscribers VALUES (1, 42, 'a@example.com', 'active'), (2, 42, 'b@example.com', 'active')",
        )
        .await?;
    world.delivered(4).await?;
    world.settled().await?;
    let event = event_of(&world, 1).await?;
    let again = |received: &[Received]| {
        let is_it = |request: &&Received| {
            request.headers.get("walhook-replay").is_some_and(|value| value == "true")
        };
        let again = received.iter().filter(is_it);
        let mut to: Vec<(String, String)> =
            again.map(|request| (request.id.clone(), request.path.clone())).collect();
        to.sort();
        to
    };
    let sent = world.walhook_json(&["events", "resend", &event, "--endpoint", "8"]).await?;
    ensure!(sent["delivered"] == 1 && sent["finished"] == true, "{sent}");
    ensure!(again(&world.mock.received()) == [(event.clone(), "/8".to_owned())]);
    let sent = world.walhook_json(&["events", "resend", &event]).await?;
    ensure!(sent["delivered"] == 2 && sent["filter"]["events"][0] == event.as_str(), "{sent}");
    let all = again(&world.mock.received());
    let to = |path: &str| (event.clone(), path.to_owned());
    ensure!(all == [to("/7"), to("/8"), to("/8")], "{all:?}");

    // Nobody is there, nobody wants it, or it was committed before all that can be read.
    let nowhere = world.walhook(&["events", "resend", &event, "--endpoint", "9"]).await?;
    ensure!(nowhere.status.code() == Some(1), "{}", text(&nowhere.stderr));
    world.sql.batch_execute("UPDATE webhooks SET event_types = '{else}'").await?;
    world.settled().await?;
    let unwanted = world.walhook(&["events", "resend", &event]).await?;
    let said = text(&unwanted.stderr);
    ensure!(unwanted.status.code() == Some(1) && said.contains("nothing was sent"), "{said}");
    ensure!(said.contains("no endpoint of account 42 wants subscriber.created now"), "{said}");
    ensure!(!said.contains("the rules of now"), "{said}");
    let one = world.walhook(&["events", "resend", &event, "--endpoint", "8"]).await?;
    let said = text(&one.stderr);
    ensure!(said.contains("endpoint 8 takes no subscriber.created of account 42 now"), "{said}");
    world.edit_config("subscriber.created", "subscriber.made")?;
    let unmade = world.walhook(&["events", "resend", &event]).await?;
    let said = text(&unmade.stderr);
    ensure!(unmade.status.code() == Some(1), "{said}");
    ensure!(said.contains("nothing was sent: the rules of now do not make"), "{said}");
    world.edit_config("subscriber.made", "subscriber.created")?;
    let old = world.walhook(&["events", "resend", "evt_00000000000000000000000001"]).await?;
    let said = text(&old.stderr);
    ensure!(
        old.status.code() == Some(1) && said.contains("what can be sent again begins"),
        "{said}"
    );
    ensure!(world.walhook(&["events", "resend", "evt_1"]).await?.status.code() == Some(2));
    running.kill().await?;
    Ok(())
}

#[tokio::test]
async fn event_is_shown_where_state_is_in_another_cluster_also_while_the_source_is_away()
-> Result<()> {
    let state = Cluster::start_distinct(&[]).await?;
    let sections = format!("[state]\nurl = \"{}\"\n{PATIENT}", state.url("postgres"));
    let mut world = World::with(&sections, RULES, &[]).await?;
    world.hook(7, 42, "").await?;
    world.hook(8, 43, "").await?;
    world.mock.set_behaviour("/8", Behaviour::status(StatusCode::IM_A_TEAPOT));
    let running = world.run().await?;
    world.subscribe(1, 42).await?;
    world.subscribe(2, 43).await?;
    let (taken, refused) = (event_of(&world, 1).await?, event_of(&world, 2).await?);
    show_until(&world, &taken, "delivered").await?;
    show_until(&world, &refused, "deferred").await?;
    ensure!(running.terminate().await?.success());
    world.cluster.stop(StopMode::Fast).await?;
    let shown = show(&world, &taken).await?;
    ensure!(shown["deliveries"][0]["state"] == "delivered" && shown["settled"] == true, "{shown}");
    let shown = show(&world, &refused).await?;
    ensure!(shown["deliveries"][0]["reason"] == "failed" && !shown["body"].is_null(), "{shown}");
    // Only what is read from the WAL needs the source, and it is named.
    let shown = world.walhook_json(&["events", "show", &taken, "--body"]).await?;
    ensure!(shown["body"].is_null() && shown["no_body"].is_string(), "{shown}");
    Ok(())
}

#[tokio::test]
async fn delivery_that_an_operator_discarded_is_shown_and_counted_as_such() -> Result<()> {
    let (world, running, event) = refused_event().await?;
    show_until(&world, &event, "deferred").await?;
    let discard = world.walhook(&["deferred", "discard", &event, "--yes"]).await?;
    ensure!(discard.status.success(), "{}", text(&discard.stderr));
    let shown = show(&world, &event).await?;
    let delivery = &shown["deliveries"][0];
    ensure!(delivery["state"] == "dropped" && delivery["reason"] == "discarded", "{shown}");
    ensure!(
        delivery["detail"] == "an operator discarded it" && delivery["attempts"] == 1,
        "{shown}"
    );
    let counts = world.walhook_json(&["events", "count", "--outcome", "dropped"]).await?;
    ensure!(counts["lines"] == 1 && counts["by"][0]["reason"] == "discarded", "{counts}");
    let plain = text(&world.walhook(&["events", "show", &event]).await?.stdout);
    ensure!(plain.contains("dropped (discarded) since") && plain.contains("says"), "{plain}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

async fn listed(world: &World, args: &[&str]) -> Result<Value> {
    world.walhook_json(&[&["events", "list"], args].concat()).await
}

/// The delivery of `events show` to this endpoint, of the stream.
fn of_stream<'a>(shown: &'a Value, endpoint: &str) -> Result<&'a Value> {
    let mut all = shown["deliveries"].as_array().into_iter().flatten();
    let is_it = |it: &&Value| it["endpoint"] == endpoint && it["replay_id"].is_null();
    all.find(is_it).with_context(|| format!("no delivery of the stream to {endpoint}: {shown}"))
}

/// The list marks what a replay sent. What could not be routed has nobody to be sent to, and the commands say what helps.
async fn help_is_what_helps(world: &World, resent: &Value, unroutable: &str) -> Result<()> {
    let plain = text(&world.walhook(&["events", "list", "--account", "1"]).await?.stdout);
    let replay = resent["id"].as_i64().context("no id")?;
    ensure!(plain.contains(&format!("delivered (replay {replay})  ")), "{plain}");
    let shown = show(world, unroutable).await?;
    let letter = shown["deliveries"][0]["dead_letter"].as_i64().context("no letter")?;
    let letter = letter.to_string();
    let plain = text(&world.walhook(&["events", "show", unroutable]).await?.stdout);
    ensure!(plain.contains(&format!("; walhook dead-letters show {letter}")), "{plain}");
    ensure!(!plain.contains("dead-letters retry"), "{plain}");
    let retry = world.walhook(&["dead-letters", "retry", &letter]).await?;
    let said = text(&retry.stderr);
    ensure!(retry.status.code() == Some(1) && said.contains("could not be routed"), "{said}");
    ensure!(said.contains(&format!("walhook events resend {}", unroutable)), "{said}");
    let resend = world.walhook(&["events", "resend", unroutable]).await?;
    let said = text(&resend.stderr);
    ensure!(resend.status.code() == Some(1), "{said}");
    ensure!(said.contains("could not be turned into an event"), "{said}");
    ensure!(said.contains("size does not apply"), "it says why: {said}");
    Ok(())
}

#[tokio::test]
async fn support_question_is_answered_for_each_way_that_a_delivery_can_go() {
    support_question_is_answered().await.unwrap();
}

async fn support_question_is_answered() -> Result<()> {
    // The condition fails where the address is null.
    let columns = "columns = [\"id\", \"email\", \"status\"]";
    let rules = RULES.replacen(columns, &format!("{columns}\nwhen = \"new.email.size() > 0\""), 1);
    let quick = "[delivery]\nretry_base = \"50ms\"\nretry_cap = \"400ms\"\n";
    let mut world = World::with(quick, &rules, &[]).await?;
    for account in 1..=5 {
        world.hook(account, account, "").await?;
    }
    world.mock.set_behaviour("/2", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    world.mock.set_behaviour("/3", Behaviour::status(StatusCode::GONE));
    let running = run_with_window(&mut world).await?;
    let pause = ["endpoints", "pause", "4", "--reason", "maintenance"];
    ensure!(world.walhook(&pause).await?.status.success());
    for account in 1..=4 {
        world.subscribe(account, account).await?;
    }
    world.sql.batch_execute("INSERT INTO subscribers VALUES (5, 5, NULL, 'x')").await?;
    let deadline = Instant::now() + PATIENCE;
    let mut ids = Vec::new();
    for account in ["1", "2", "3", "4", "5"] {
        let id = loop {
            let page = listed(&world, &["--account", account]).await?;
            if let Some(id) = page["lines"][0]["event_id"].as_str() {
                break id.to_owned();
            }
            ensure!(Instant::now() < deadline, "nothing is logged of account {account}");
        };
        ids.push(id);
    }
    show_until(&world, &ids[0], "delivered").await?;
    show_until(&world, &ids[1], "deferred").await?;
    show_until(&world, &ids[2], "dead_letter").await?;
    show_until(&world, &ids[3], "deferred").await?;
    show_until(&world, &ids[4], "unroutable").await?;

    // Killed, and a standby leads: the story goes on.
    let admin = walhook_testkit::address::free_address()?;
    let mut standby = world.spawn_with(&[("WALHOOK_ADMIN__LISTEN", &admin.to_string())])?;
    until_standing_by(admin).await?;
    world.mock.set_behaviour("/2", Behaviour::ok());
    running.kill().await?;
    standby.until_leading(admin).await?;
    let running = standby;
    let retried = show_until(&world, &ids[1], "delivered").await?;
    let delivery = of_stream(&retried, "2")?;
    let lines = delivery["lines"].as_array().context("it has no lines")?;
    ensure!(lines[0]["what"] == "failed" && lines[0]["status"] == 503, "{retried}");
    ensure!(lines.last().is_some_and(|line| line["what"] == "delivered"), "{retried}");
    ensure!(delivery["attempts"].as_i64() > Some(1), "{retried}");
    world.settled().await?;
    let resent = world.walhook_json(&["events", "resend", &ids[0]]).await?;
    ensure!(resent["delivered"] == 1, "{resent}");
    help_is_what_helps(&world, &resent, &ids[4]).await?;
    ensure!(running.terminate().await?.success());

    // Nothing runs: all of it is known.
    let delivered = show(&world, &ids[0]).await?;
    let first = of_stream(&delivered, "1")?;
    ensure!(first["state"] == "delivered" && first["attempts"] == 1, "{delivered}");
    ensure!(delivered["settled"] == true && delivered["account_id"] == "1", "{delivered}");
    let replayed = delivered["deliveries"].as_array().into_iter().flatten();
    let replayed: Vec<&Value> = replayed.filter(|it| !it["replay_id"].is_null()).collect();
    ensure!(replayed.len() == 1 && replayed[0]["state"] == "delivered", "{delivered}");
    let whole = world.walhook_json(&["events", "show", &ids[0], "--body"]).await?;
    let request = world.mock.received().into_iter().find(|it| it.id == ids[0]);
    let request = request.context("it was not received")?;
    ensure!(whole["body"] == request.json() && whole["body_from"] == "window", "{whole}");
    let dead = show(&world, &ids[2]).await?;
    let delivery = of_stream(&dead, "3")?;
    ensure!(
        delivery["reason"] == "endpoint_disabled" && !delivery["dead_letter"].is_null(),
        "{dead}"
    );
    let paused = show(&world, &ids[3]).await?;
    ensure!(
        of_stream(&paused, "4")?["reason"] == "paused" && !paused["body"].is_null(),
        "{paused}"
    );
    let plain = text(&world.walhook(&["events", "show", &ids[1]]).await?.stdout);
    ensure!(plain.contains("attempt 1 failed") && plain.contains("delivered since"), "{plain}");

    log_is_listed_and_erased(&world).await
}

async fn log_is_listed_and_erased(world: &World) -> Result<()> {
    // The list is filtered, and comes in pages.
    let of_two = listed(world, &["--account", "2"]).await?;
    let all = of_two["lines"].as_array().context("no list")?;
    let mut paged = Vec::new();
    let mut before: Option<String> = None;
    loop {
        let mut args = vec!["--account", "2", "--limit", "1"];
        args.extend(before.iter().flat_map(|place| ["--before", place.as_str()]));
        let page = listed(world, &args).await?;
        paged.extend(page["lines"].as_array().cloned().unwrap_or_default());
        let Some(next) = page["next_before"].as_i64() else { break };
        before = Some(next.to_string());
    }
    ensure!(paged == *all && all.len() > 2, "{paged:?} is not {all:?}");
    let failed =
        listed(world, &["--endpoint", "2", "--outcome", "failed", "--since", "1h"]).await?;
    let failed = failed["lines"].as_array().context("no list")?;
    ensure!(!failed.is_empty() && failed.iter().all(|line| line["what"] == "failed"), "{failed:?}");
    ensure!(listed(world, &["--type", "else"]).await?["lines"] == serde_json::json!([]));
    let plain = text(&world.walhook(&["events", "list", "--account", "2"]).await?.stdout);
    ensure!(plain.lines().count() == all.len() + 1 && plain.starts_with("AT "), "{plain}");

    // The count is that of the list, by what happened.
    let counts = world.walhook_json(&["events", "count", "--account", "2"]).await?;
    ensure!(counts["lines"] == all.len(), "{counts}");
    let by = counts["by"].as_array().context("no parts")?;
    let failed = by.iter().find(|part| part["what"] == "failed").context("nothing failed")?;
    let listed_as_failed = all.iter().filter(|line| line["what"] == "failed").count();
    ensure!(failed["lines"] == listed_as_failed && failed["status"] == 503, "{counts}");
    let plain = text(&world.walhook(&["events", "count", "--account", "2"]).await?.stdout);
    ensure!(plain.ends_with(&format!("\n{} in all\n", all.len())), "{plain}");

    // What it tells of an account is erased, and that it was is recorded.
    let unasked = world.walhook(&["events", "erase", "--account", "2"]).await?;
    ensure!(unasked.status.code() == Some(2), "{}", text(&unasked.stderr));
    let erase = ["events", "erase", "--account", "2", "--by", "support", "--yes"];
    let erased = world.walhook_json(&erase).await?;
    ensure!(erased["lines"] == all.len() && erased["erased_by"] == "support", "{erased}");
    ensure!(listed(world, &["--account", "2"]).await?["lines"] == serde_json::json!([]));
    ensure!(listed(world, &["--account", "1"]).await?["lines"] != serde_json::json!([]));
    let by = world.value("SELECT erased_by FROM walhook.delivery_erasures").await?;
    ensure!(by == "support", "{by}");
    Ok(())
}
