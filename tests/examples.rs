//! What stands in `examples/` works: an outbox is written, and a receiver verifies what it is sent.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::{PATIENCE, SCHEMA, SECRET, World};

const TABLE: &str = include_str!("../examples/outbox_table.sql");
const WRITER: &str = include_str!("../examples/outbox.sql");
const RULES: &str = include_str!("../examples/outbox.toml");

/// `examples/receiver.py`, until it is dropped.
struct Receiver {
    _process: Child,
    out: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl Receiver {
    async fn start() -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/receiver.py");
        let mut process = Command::new("python3")
            .args([script, "0"])
            .env("WEBHOOK_SECRET", SECRET)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("python3 (scripts/prerequisites pip installs it)")?;
        let mut out = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let port = out.next_line().await?.context("it ended")?.parse()?;
        Ok(Self { _process: process, out, port })
    }

    async fn event(&mut self) -> Result<Value> {
        let line = timeout(PATIENCE, self.out.next_line()).await.context("no event came")??;
        Ok(serde_json::from_str(&line.context("it ended")?)?)
    }

    /// The status that a request is answered with.
    async fn status(&self, headers: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        timeout(Duration::from_secs(30), stream.read_to_string(&mut answer)).await??;
        Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
    }
}

#[tokio::test]
async fn examples_write_an_outbox_and_receive_what_becomes_of_it_verified() -> Result<()> {
    let mut receiver = Receiver::start().await?;
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    world.sql.batch_execute(TABLE).await?;
    world.set_up().await?;
    let url = format!("http://127.0.0.1:{}/", receiver.port);
    let hook = "INSERT INTO webhooks (id, account_id, url, secret) VALUES (1, 42, $1, $2)";
    world.sql.execute(hook, &[&url, &SECRET]).await?;
    let running = world.run().await?;
    // In pieces, as psql sends it: each of its transactions is one.
    for statement in WRITER.split_inclusive(';') {
        world.sql.batch_execute(statement).await?;
    }
    let mut events = [receiver.event().await?, receiver.event().await?];
    events.sort_by_key(|event| event["type"].to_string());
    let [note, paid] = &events;
    ensure!(note["type"] == "order.note" && note["account_id"] == "42", "{note}");
    ensure!(note["data"]["text"] == "left at the door", "{note}");
    ensure!(paid["type"] == "order.paid" && paid["data"]["total"] == "19.90", "{paid}");
    world.settled().await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    ensure!(world.value("SELECT count(*) FROM outbox").await? == "0", "the table stays empty");
    running.kill().await?;

    // What nobody signed, what was signed long ago, and what was changed on the way.
    let now = walhook_process::clock::unix_us() / 1_000_000;
    for (at, signature) in [
        (now, "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (now, ""),
        (0, "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    ] {
        let headers = format!(
            "webhook-id: evt_1\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n"
        );
        ensure!(receiver.status(&headers, "{}").await? == "401", "{headers}");
    }
    ensure!(receiver.status("", "{}").await? == "401");
    Ok(())
}
