//! `walhook endpoints` and `walhook deferred`, as operators and scripts call them.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use walhook::mock::Behaviour;

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
    ensure!(world.mock.received().len() == 2, "each test is one request");

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
