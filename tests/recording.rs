//! `run --record`: an incident that is replayed elsewhere, without what is the customers'.

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result, ensure};
use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use walhook_testkit::receiver::Behaviour;

use crate::support::{PATIENCE, RULES, SCHEMA, SECRET, World};

const QUICK: &str =
    "[delivery]\nretry_base = \"50ms\"\nretry_cap = \"200ms\"\nretry_for = \"10m\"\n";

/// Answers 500 with a text that is nobody else's.
async fn leaks(listener: TcpListener) {
    let mut answers = JoinSet::new();
    while let Ok((mut stream, _)) = listener.accept().await {
        answers.spawn(async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let body = "excerpt-hush ünd so wéiter";
            let answer = format!(
                "HTTP/1.1 500 Oops\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        });
    }
}

#[tokio::test]
async fn recording_holds_nothing_of_the_customers_and_replays_to_the_same_effects() -> Result<()> {
    let mut world = World::bare(QUICK, RULES, &[]).await?;
    world.edit_config("[egress]", "headers = \"headers\"\n[egress]")?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute("ALTER TABLE webhooks ADD headers jsonb").await?;
    world.set_up().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let failing = listener.local_addr()?;
    let mut servers = JoinSet::new();
    servers.spawn(leaks(listener));
    world.hook(1, 1, "").await?;
    world.hook(2, 2, "").await?;
    let urls = format!(
        "UPDATE webhooks SET headers = '{{\"x-token\": \"header-hush\"}}';
         UPDATE webhooks SET url = 'http://{failing}/path-hush?query-hush' WHERE id = 2"
    );
    world.sql.batch_execute(&urls).await?;
    let insert = |id: i64, account: i64| {
        format!(
            "INSERT INTO subscribers VALUES ({id}, {account}, 'row-hush@example.com', 'active')"
        )
    };

    // What a leader finds in the tables as it begins.
    let running = world.run().await?;
    world.sql.batch_execute(&insert(1, 2)).await?;
    world
        .until("SELECT count(*) FROM walhook.deliveries_pending WHERE endpoint <> ''", "1")
        .await?;
    ensure!(running.terminate().await?.success());

    let file = world.dir().join("incident.jsonl");
    let file_name = file.to_str().context("no UTF-8")?;
    let running = world.run_with(&["--record", file_name]).await?;
    world.sql.batch_execute(&insert(2, 2)).await?;
    for id in 3..20 {
        world.sql.batch_execute(&insert(id, 1)).await?;
    }
    world.mock.wait_until("taken", PATIENCE, |stats| stats.distinct >= 17).await?;
    world.mock.set_behaviour("/1", Behaviour::status(StatusCode::SERVICE_UNAVAILABLE));
    world
        .sql
        .batch_execute("UPDATE subscribers SET status = 'status-hush' WHERE account_id = 1")
        .await?;
    world
        .until("SELECT count(*) > 5 FROM walhook.deliveries_pending WHERE endpoint <> ''", "t")
        .await?;
    let pause = ["endpoints", "pause", "2", "--reason", "operator-hush"];
    let paused = world.walhook(&pause).await?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    world.mock.set_behaviour("/1", Behaviour::ok());
    world.settled().await?;
    ensure!(running.terminate().await?.success());

    let bytes = std::fs::read(&file)?;
    let text = String::from_utf8(bytes)?;
    for hidden in ["hush", &SECRET[6..20], "example.com", "path-", "wéiter", "\"active\""] {
        let at = text.find(hidden).map(|at| &text[at.saturating_sub(80)..at + hidden.len()]);
        ensure!(at.is_none(), "the recording holds {hidden:?}: {at:?}");
    }
    for kept in ["subscriber.created", "127.0.0.1", "x-token", "{\"ended\":"] {
        ensure!(text.contains(kept), "the recording lacks {kept:?}");
    }
    let replayed = walhook_simulator::replay(BufReader::new(File::open(&file)?));
    let replayed = replayed.map_err(anyhow::Error::msg)?;
    println!("{replayed:?}, {} bytes", text.len());
    ensure!(replayed.dispatchers == 1 && replayed.inputs > 20 && replayed.effects > 40);
    ensure!(replayed.ended.as_deref() == Some("walhook has ended"));

    // One answer of an endpoint fewer, and it is seen.
    let outcome = text.lines().position(|line| line.contains("{\"Outcome\":")).context("none")?;
    let lines = text.split_inclusive('\n').enumerate().filter(|(at, _)| *at != outcome);
    let fewer: String = lines.map(|(_, line)| line).collect();
    let differs = walhook_simulator::replay(fewer.as_bytes()).unwrap_err();
    ensure!(differs.contains("the recording has"), "{differs}");

    // The file is not replaced.
    let refused = world.walhook(&["run", "--record", file_name]).await?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("name a new file"));
    Ok(())
}
