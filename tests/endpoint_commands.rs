//! `walhook endpoints` and `walhook deferred`, as operators and scripts call them.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use walhook_testkit::receiver::Behaviour;

use crate::support::{RULES, World, text};

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn endpoint_is_tested_by_a_signed_event_whether_a_leader_runs_or_not() -> Result<()> {
    let world = World::with("", RULES, &[]).await?;
    world.hook(1, 7, "").await?;
    let tested = world.walhook_json(&["endpoints", "test", "1"]).await?;
    ensure!(tested["delivered"] == true && tested["status"] == 200, "{tested}");
    ensure!(tested["latency_ms"].is_u64() && tested["account_id"] == "7", "{tested}");
    ensure!(tested["host"] == world.mock.address().to_string(), "{tested}");
    let received = world.mock.received();
    let event = received.first().context("nothing came")?;
    ensure!(event.verified && tested["event_id"] == *event.id, "{event:?}");
    let body = event.json();
    ensure!(body["type"] == "webhook.test" && body["account_id"] == "7", "{body}");
    ensure!(body["data"]["test"] == true, "{body}");

    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::IM_A_TEAPOT));
    let refused = world.walhook(&["endpoints", "test", "1"]).await?;
    ensure!(refused.status.code() == Some(1), "{}", said(&refused));
    ensure!(said(&refused).contains("status     418"), "{}", said(&refused));
    ensure!(!said(&refused).contains("sent from"), "{}", said(&refused));
    ensure!(world.mock.received().len() == 2, "each test is one request");

    // It goes from here, also where only workers send.
    world.edit_config(
        "[log]",
        "[workers]\nurl = \"nats://127.0.0.1:1\"\nlocal = \"never\"\n[log]",
    )?;
    let from_here = world.walhook(&["endpoints", "test", "1"]).await?;
    let text = said(&from_here);
    ensure!(text.contains("sent from  this machine, not from a worker"), "{text}");
    ensure!(world.mock.received().len() == 3, "{text}");

    // Where walhook may not go, a test does not go either.
    world.sql.batch_execute("UPDATE webhooks SET url = 'http://10.0.0.1/x?token=hush'").await?;
    let forbidden = world.walhook_json(&["endpoints", "test", "1"]).await?;
    ensure!(forbidden["delivered"] == false && forbidden["status"].is_null(), "{forbidden}");
    ensure!(forbidden["error"].to_string().contains("forbidden"), "{forbidden}");

    let unknown = world.walhook(&["endpoints", "test", "99"]).await?;
    ensure!(unknown.status.code() == Some(1), "{}", said(&unknown));
    ensure!(said(&unknown).contains("has no endpoint 99"), "{}", said(&unknown));
    world.edit_config("[log]", "[delivery]\nmode = \"log\"\n[log]")?;
    let logged = world.walhook(&["endpoints", "test", "1"]).await?;
    ensure!(said(&logged).contains("nothing is sent"), "{}", said(&logged));
    Ok(())
}

#[tokio::test]
async fn endpoints_are_listed_with_how_they_stand_and_without_their_secrets() -> Result<()> {
    let world = World::with("", RULES, &[]).await?;
    for (id, account) in [(1, 1), (2, 1), (3, 2)] {
        world.hook(id, account, "?token=hush").await?;
    }
    world
        .sql
        .batch_execute(
            "UPDATE webhooks SET enabled = false WHERE id = 3;
             INSERT INTO walhook.endpoint_state (pipeline, endpoint, reason) VALUES ('walhook', '2', 'answered 410');
             INSERT INTO walhook.backlog (pipeline, endpoint, account, deferred, stopped_us, failing_since)
                 VALUES ('walhook', '1', '1', 5, 0, '2026-01-02T03:04:05Z');
             INSERT INTO walhook.dead_letters (pipeline, event_id, endpoint, reason, detail, attempts)
                 VALUES ('walhook', 'evt_x', '9', 'exhausted', 'x', 1)",
        )
        .await?;
    let all = world.walhook_json(&["endpoints", "list"]).await?;
    let of = |list: &serde_json::Value, n: usize| list["endpoints"][n].clone();
    let (one, two, three) = (of(&all, 0), of(&all, 1), of(&all, 2));
    ensure!(one["state"] == "failing" && one["deferred"] == 5, "{one}");
    ensure!(one["since"] == "2026-01-02T03:04:05.000000Z" && one["account_id"] == "1", "{one}");
    ensure!(two["state"] == "disabled" && two["reason"] == "answered 410", "{two}");
    ensure!(three["state"] == "ok" && three["enabled"] == false, "{three}");
    ensure!(three["reason"] == "its row is not enabled", "{three}");
    ensure!(of(&all, 3).is_null(), "{all}");

    let trouble = world.walhook_json(&["endpoints", "list", "--trouble"]).await?;
    let (first, last) = (of(&trouble, 0), of(&trouble, 2));
    ensure!(first["id"] == "1" && of(&trouble, 1)["id"] == "2", "{trouble}");
    ensure!(last["state"] == "removed" && last["dead_letters"] == 1, "{trouble}");
    let account = world.walhook_json(&["endpoints", "list", "--account", "2"]).await?;
    ensure!(of(&account, 0)["id"] == "3" && of(&account, 1).is_null(), "{account}");
    let paged = world.walhook_json(&["endpoints", "list", "--limit", "2"]).await?;
    ensure!(paged["next_after"] == "2", "{paged}");
    let rest = world.walhook_json(&["endpoints", "list", "--after", "2"]).await?;
    ensure!(of(&rest, 0)["id"] == "3" && rest["next_after"].is_null(), "{rest}");

    let plain = world.walhook(&["endpoints", "list"]).await?;
    let host = world.mock.address().to_string();
    ensure!(said(&plain).contains(&host) && said(&plain).contains("answered 410"));
    ensure!(!said(&plain).contains("hush") && !said(&plain).contains("token"));
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["deferred"] == 5 && status["endpoints"]["disabled"] == 1, "{status}");
    ensure!(status["state_bytes"].as_u64() > Some(0), "{status}");
    Ok(())
}

/// Item 19: what rows and answers hold must not end a line, move a cursor or turn the direction.
#[tokio::test]
async fn text_from_outside_reaches_the_terminal_escaped_and_json_unchanged() -> Result<()> {
    let world = World::with("", RULES, &[]).await?;
    world.hook(2, 1, "").await?;
    let hostile = "gone\u{1b}[2J\nforged  line\r\u{9b}1A\u{202e}\u{7f}";
    for (insert, values) in [
        ("endpoint_state (pipeline, endpoint, reason)", "'walhook', '2', $1"),
        (
            "dead_letters (pipeline, event_id, endpoint, reason, detail, attempts)",
            "'walhook', 'evt_x', $1, 'exhausted', $1, 1",
        ),
    ] {
        let insert = format!("INSERT INTO walhook.{insert} VALUES ({values})");
        world.sql.execute(&insert, &[&hostile]).await?;
    }
    for command in [&["status"][..], &["endpoints", "list"], &["endpoints", "list", "--trouble"]] {
        let plain = said(&world.walhook(command).await?);
        ensure!(
            plain.contains("gone\\u001b[2J\\nforged  line\\r\\u009b1A\\u202e\\u007f"),
            "{plain}"
        );
        let json = said(&world.walhook(&[command, &["--json"]].concat()).await?);
        for text in [&plain, &json] {
            ensure!(!text.contains(|c: char| c != '\n' && c.is_control()), "{text:?}");
            ensure!(!text.contains('\u{202e}'), "{text:?}");
        }
        let read: serde_json::Value = serde_json::from_str(&json)?;
        let same = serde_json::to_string(hostile)?;
        ensure!(read.to_string().contains(&same), "{read}");
    }
    let forged = said(&world.walhook(&["endpoints", "resume", "x\u{1b}[2J\ny"]).await?);
    ensure!(!forged.contains('\u{1b}') && !forged.contains("\ny"), "{forged:?}");
    Ok(())
}

#[tokio::test]
async fn status_names_the_first_ten_of_many_endpoints_that_are_off_and_says_how_many_more()
-> Result<()> {
    let world = World::with("", RULES, &[]).await?;
    let insert = "INSERT INTO walhook.endpoint_state (pipeline, endpoint, reason, kind)
                  SELECT 'walhook', of.kind || n, 'because', of.kind
                  FROM (VALUES ('disabled', 13), ('paused', 11)) AS of(kind, count), generate_series(1, of.count) n";
    world.sql.batch_execute(insert).await?;
    let status = text(&world.walhook(&["status"]).await?.stdout);
    for (kind, more) in [("disabled", 3), ("paused", 1)] {
        let named = status
            .lines()
            .filter(|line| line.contains(&format!(" {kind}")) && line.contains("because"));
        ensure!(named.count() == 10, "{kind}: {status}");
        let rest = format!("and {more} more: walhook endpoints list --trouble");
        ensure!(status.contains(&rest), "{rest}: {status}");
    }
    let counted = world.walhook_json(&["status"]).await?["endpoints"].clone();
    ensure!(counted["disabled"] == 13 && counted["paused"] == 11, "{counted}");
    Ok(())
}

/// Item 17: whoever is woken sees at once what fails, since when and by what; and when it is well again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_failure_recovery_and_dead_letters_are_logged_and_the_list_shows_the_last_error()
-> Result<()> {
    let mut world = World::with("", RULES, &[]).await?;
    world.hook(1, 1, "?token=hush").await?;
    // Refused by [egress], which allows no private addresses.
    world.sql.batch_execute("UPDATE webhooks SET url = 'http://10.0.0.1/x?token=hush'").await?;
    let running = world.run().await?;
    running.until_logged("walhook starts").await?;
    running.until_logged("rules=").await?;
    world.subscribe(1, 1).await?;
    running.until_logged("a request to the endpoint failed").await?;
    world.until("SELECT count(*) FROM walhook.endpoint_errors", "1").await?;
    let listed = world.walhook_json(&["endpoints", "list"]).await?;
    let one = &listed["endpoints"][0];
    ensure!(one["state"] == "failing" && one["failed"].as_i64() >= Some(1), "{listed}");
    ensure!(one["last_error"].to_string().contains("forbidden"), "{listed}");
    ensure!(one["last_error_at"].is_string() && one["reason"].is_string(), "{listed}");
    let plain = said(&world.walhook(&["endpoints", "list", "--trouble"]).await?);
    ensure!(plain.contains("LAST ERROR") && plain.contains("forbidden"), "{plain}");

    // Well again: a line, and nothing in the list.
    let well = format!("UPDATE webhooks SET url = 'http://{}/1'", world.mock.address());
    world.sql.batch_execute(&well).await?;
    world.subscribe(2, 1).await?;
    let hurry = ["deferred", "retry", "--all", "--wait", "0s"];
    while world.mock.received().is_empty() {
        world.walhook(&hurry).await?;
    }
    running.until_logged("the endpoint is well again").await?;
    world.until("SELECT count(*) FROM walhook.endpoint_errors", "0").await?;

    // Each dead letter is a line with its id; a retry in vain says by what.
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    world.subscribe(3, 1).await?;
    running.until_logged("a delivery is a dead letter").await?;
    running.until_logged("dead_letter=1 endpoint=1").await?;
    let off = world.walhook_json(&["endpoints", "list"]).await?;
    ensure!(off["endpoints"][0]["last_error"].to_string().contains("status 410"), "{off}");
    ensure!(world.walhook(&["endpoints", "resume", "1"]).await?.status.success());
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::IM_A_TEAPOT));
    let retried = world.walhook(&["dead-letters", "retry", "1"]).await?;
    ensure!(retried.status.code() == Some(1), "{}", said(&retried));
    ensure!(said(&retried).contains("status 418"), "{}", said(&retried));
    let json = world.walhook_json(&["dead-letters", "retry", "1"]).await?;
    ensure!(json["errors"][0]["detail"].to_string().contains("status 418"), "{json}");

    let (ended, log) = {
        running.signal("TERM")?;
        running.ended_with_log().await?
    };
    ensure!(ended.success(), "{log}");
    ensure!(log.contains("stopped by SIGTERM") && log.contains("sent_again=0"), "{log}");
    ensure!(!log.contains("hush"), "{log}");
    Ok(())
}

#[tokio::test]
async fn endpoint_that_moved_or_was_switched_off_in_its_row_is_not_told_as_failing() -> Result<()> {
    let sections = "[delivery]\nretry_base = \"1s\"\nretry_cap = \"2s\"";
    let mut world = World::with(sections, RULES, &[]).await?;
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::GONE));
    world.mock.set_behaviour("/2", Behaviour::status(StatusCode::INTERNAL_SERVER_ERROR));
    let running = world.run().await?;
    world.subscribe(1, 1).await?;
    world.subscribe(2, 2).await?;
    world.until("SELECT count(*) FROM walhook.endpoint_errors", "2").await?;
    world.until("SELECT count(*) FROM walhook.dead_letters WHERE endpoint = '1'", "1").await?;
    world
        .sql
        .batch_execute(
            "UPDATE webhooks SET account_id = 5 WHERE id = 1;
             UPDATE webhooks SET enabled = false WHERE id = 2",
        )
        .await?;
    world.until("SELECT count(*) FROM walhook.endpoint_errors", "0").await?;
    world.until("SELECT count(*) FROM walhook.endpoints WHERE state <> 'ok'", "0").await?;
    let listed = world.walhook_json(&["endpoints", "list"]).await?;
    let (one, two) = (&listed["endpoints"][0], &listed["endpoints"][1]);
    ensure!(one["state"] == "ok" && one["account_id"] == "5" && one["failed"] == 0, "{listed}");
    ensure!(two["state"] == "ok" && two["reason"] == "its row is not enabled", "{listed}");
    let resumed = world.walhook(&["endpoints", "resume", "2"]).await?;
    let told = text(&resumed.stdout);
    ensure!(told.contains("switched off by walhook. Nothing is sent to it all the same"), "{told}");
    let status = world.walhook_json(&["status"]).await?;
    ensure!(status["endpoints"] == serde_json::json!({}), "{status}");
    ensure!(running.terminate().await?.success());
    Ok(())
}

/// Item 18: discarding nothing is done, and whoever reads no further is told nothing.
#[tokio::test]
async fn discarding_nothing_succeeds_and_a_closed_pipe_is_quiet() -> Result<()> {
    let world = World::with("", RULES, &[]).await?;
    for command in ["dead-letters", "deferred"] {
        let nothing = world.walhook(&[command, "discard", "--all"]).await?;
        ensure!(nothing.status.success(), "{command}: {}", said(&nothing));
        ensure!(said(&nothing).contains("discarded 0"), "{command}: {}", said(&nothing));
        let json = world.walhook_json(&[command, "discard", "--all"]).await?;
        ensure!(json["discarded"] == 0, "{json}");
    }
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["endpoints", "list"],
        &["gaps", "list"],
        &["replay", "list"],
        &["dead-letters", "list", "--json"],
        &["deferred", "list"],
        &["config", "show", "--example"],
        &["completions", "bash"],
        &["--help"],
    ] {
        let open = world.walhook(command).await?;
        // Whoever reads has gone before the first word.
        let closed = world.walhook_into_closed_pipe(command).await?;
        let stderr = text(&closed.stderr);
        ensure!(
            !stderr.contains("panicked") && !stderr.contains("roken pipe"),
            "{command:?}: {stderr}"
        );
        ensure!(closed.status.code() == open.status.code(), "{command:?}: {:?}", closed.status);
    }
    Ok(())
}
