//! The receivers of `examples/receivers`, each against real deliveries: what walhook sends they take, also while a
//! secret is replaced; what is tampered with, old or signed by nobody they refuse; what repeats they drop.
//!
//! A language that is not installed is left out, and said so.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};
use walhook_core::endpoint::Secret;
use walhook_testkit::address::free_address;

use crate::support::{PATIENCE, RULES, SCHEMA, SECRET, World};

/// What comes in place of [`SECRET`], in the other alphabet and without padding.
const NEXT: &str = "whsec_3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

const LANGUAGES: [Language; 5] = [
    Language { name: "Python", program: "python3", file: "receiver.py" },
    Language { name: "Node", program: "node", file: "receiver.mjs" },
    Language { name: "Go", program: "go", file: "receiver.go" },
    Language { name: "Ruby", program: "ruby", file: "receiver.rb" },
    Language { name: "PHP", program: "php", file: "receiver.php" },
];

#[derive(Clone, Copy)]
pub struct Language {
    name: &'static str,
    program: &'static str,
    file: &'static str,
}

/// Where PHP's keeps the ids, in its directory.
const SEEN: &str = "seen";

/// With these anybody could sign, or nobody meant them.
const NO_KEYS: [&str; 2] = ["whsec_***************************************", "whsec_c2hvcnQ="];

/// Python is there wherever the tests run.
pub const PYTHON: Language = LANGUAGES[0];

/// One of the receivers, until it is dropped.
pub struct Receiver {
    _process: Child,
    dir: tempfile::TempDir,
    out: Lines<BufReader<ChildStdout>>,
    pub port: u16,
}

impl Language {
    fn is_installed(self) -> Result<bool> {
        let version = if self.program == "go" { "version" } else { "--version" };
        match std::process::Command::new(self.program).arg(version).output() {
            Ok(output) => Ok(output.status.success()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(self.program),
        }
    }

    /// Starts the receiver with this secret.
    pub async fn start(self, secret: &str) -> Result<Receiver> {
        let dir = tempfile::tempdir()?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/receivers").join(self.file);
        // PHP's server neither chooses a port nor prints one.
        let address = free_address()?;
        let mut command = match self.program {
            "go" => {
                // `go run` would leave the receiver behind, once it is killed itself.
                let program = dir.path().join("receiver");
                let mut build = Command::new("go");
                build.args(["build", "-o"]).arg(&program).arg(&file).env("GO111MODULE", "off");
                ensure!(build.status().await?.success(), "go build");
                Command::new(program)
            }
            "php" => {
                let mut command = Command::new("php");
                command.args(["-S", &address.to_string()]).arg(&file);
                command.env("WEBHOOK_SEEN", dir.path().join(SEEN));
                command
            }
            program => {
                let mut command = Command::new(program);
                command.arg(&file);
                command
            }
        };
        if self.program != "php" {
            command.arg("0");
        }
        command.env("WEBHOOK_SECRET", secret).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.kill_on_drop(true).spawn().context(self.program)?;
        let mut out = BufReader::new(process.stdout.take().context("no stdout")?).lines();
        let port = if self.program == "php" {
            until_open(address.port()).await?;
            address.port()
        } else {
            let line = timeout(PATIENCE, out.next_line()).await.context("it says no port")??;
            line.context("it ended")?.parse()?
        };
        Ok(Receiver { _process: process, dir, out, port })
    }
}

async fn until_open(port: u16) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        ensure!(Instant::now() < deadline, "nothing listens at {port}");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl Receiver {
    /// The next event that it has printed, but for the one of which nothing can be said.
    pub async fn event(&mut self) -> Result<Value> {
        loop {
            let line = timeout(PATIENCE, self.out.next_line()).await.context("no event came")??;
            let line = line.context("it ended")?;
            if !line.contains(DEEP) {
                return Ok(serde_json::from_str(&line)?);
            }
        }
    }

    /// The status that a request is answered with.
    async fn status(&self, headers: &str, body: &[u8]) -> Result<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\
             content-type: application/json\r\n{headers}\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
        let status = answer.split(' ').nth(1).context("no status")?;
        Ok(status.parse()?)
    }
}

/// An event that is nested as deep as no parser need go.
const DEEP: &str = "evt_deep";

fn headers(id: &str, at: i64, signatures: &str) -> String {
    format!("webhook-id: {id}\r\nwebhook-timestamp: {at}\r\nwebhook-signature: {signatures}\r\n")
}

fn signed(id: &str, at: i64, body: &[u8], secret: &str) -> Result<String> {
    let secrets = [Secret::new(secret.to_owned())];
    Ok(headers(id, at, &walhook_sign::sign(id, at, body, &secrets)?))
}

/// What it is to refuse and to drop, made of what it took.
async fn refuses_and_drops(receiver: &mut Receiver, body: &[u8], id: &str) -> Result<()> {
    let now = walhook_process::clock::unix_us() / 1_000_000;
    let good = signed(id, now, body, SECRET)?;
    let mut tampered = body.to_vec();
    tampered.push(b' ');
    let none = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (what, headers, body) in [
        ("tampered body", good.clone(), &*tampered),
        ("another event's id", good.replace(id, "evt_other"), body),
        ("old", signed(id, now - 330, body, SECRET)?, body),
        ("from the future", signed(id, now + 330, body, SECRET)?, body),
        ("another's secret", signed(id, now, body, NEXT)?, body),
        ("no signature that fits", headers(id, now, none), body),
        ("no signature", headers(id, now, ""), body),
        ("no headers", String::new(), body),
        ("no time", signed(id, now, body, SECRET)?.replace(&now.to_string(), "soon"), body),
    ] {
        let status = receiver.status(&headers, body).await?;
        ensure!(status == 401, "{what}: {status}");
    }
    // One event that cannot be worked on does not end the work on what follows.
    let (open, close) = ("[".repeat(5_000), "]".repeat(5_000));
    let deep = format!("{{\"id\":\"{DEEP}\",\"type\":\"deep\",\"data\":{open}{close}}}");
    let headers = signed(DEEP, now, deep.as_bytes(), SECRET)?;
    ensure!(receiver.status(&headers, deep.as_bytes()).await? == 204, "it is nested deep");
    // A repeat is taken, for its first answer may have been lost, and is no second event: what comes next is.
    ensure!(receiver.status(&good, body).await? == 204, "a repeat is taken");
    let next = br#"{"id":"evt_next","type":"next","data":{}}"#;
    let several = signed("evt_next", now, next, SECRET)?.replace("v1,", &format!("{none} v1,"));
    ensure!(receiver.status(&several, next).await? == 204, "one of several signatures fits");
    let event = receiver.event().await?;
    ensure!(event["type"] == "next", "a repeat is no second event: {event}");
    Ok(())
}

#[tokio::test]
async fn receivers_take_what_is_sent_through_a_rotation_and_refuse_all_else() -> Result<()> {
    let mut world = World::bare("", RULES, &[]).await?;
    world.sql.batch_execute(SCHEMA).await?;
    let several = "ALTER TABLE webhooks ALTER secret TYPE text[] USING ARRAY[secret]";
    world.sql.batch_execute(several).await?;
    world.set_up().await?;
    let running = world.run().await?;
    let mut tried = 0;
    for (account, language) in (1..).zip(LANGUAGES) {
        if !language.is_installed()? {
            eprintln!("SKIPPED {}: {} is not installed", language.name, language.program);
            continue;
        }
        tried += 1;
        let done = one(&world, language, account).await;
        done.with_context(|| format!("{}\n{}", language.name, running.log_tail()))?;
    }
    ensure!(tried >= 2, "python3 and node are there wherever the tests run");
    world.settled().await?;
    ensure!(world.value("SELECT count(*) FROM walhook.dead_letters").await? == "0");
    running.kill().await
}

/// It does not start with a secret that is no key, or answers that it cannot be used.
async fn refuses_to_use_what_is_no_key(language: Language) -> Result<()> {
    for secret in NO_KEYS {
        if language.program != "php" {
            ensure!(language.start(secret).await.is_err(), "it starts with {secret}");
            continue;
        }
        let now = walhook_process::clock::unix_us() / 1_000_000;
        let unsigned = headers("evt_forged", now, "v1,");
        let status = language.start(secret).await?.status(&unsigned, b"{}").await?;
        ensure!(status == 500, "{secret}: {status}");
    }
    Ok(())
}

/// PHP's has nothing but files to remember ids by: where it cannot, it takes no event, and takes it later.
async fn takes_nothing_that_it_cannot_keep(receiver: &Receiver, now: i64) -> Result<()> {
    let seen = receiver.dir.path().join(SEEN);
    std::fs::write(&seen, "no directory")?;
    let headers = signed("evt_kept", now, b"{}", SECRET)?;
    ensure!(receiver.status(&headers, b"{}").await? == 500, "an event that is lost is taken");
    std::fs::remove_file(&seen)?;
    Ok(())
}

/// Its deliveries under the secret of before, under both and under the next one.
async fn one(world: &World, language: Language, account: i64) -> Result<()> {
    refuses_to_use_what_is_no_key(language).await?;
    let mut before = language.start(SECRET).await?;
    if language.program == "php" {
        let now = walhook_process::clock::unix_us() / 1_000_000;
        takes_nothing_that_it_cannot_keep(&before, now).await?;
    }
    let url = |receiver: &Receiver| format!("http://127.0.0.1:{}/", receiver.port);
    let hook = "INSERT INTO webhooks (id, account_id, url, secret) VALUES ($1, $1, $2, ARRAY[$3])";
    world.sql.execute(hook, &[&account, &url(&before), &SECRET]).await?;
    world.subscribe(account * 10, account).await?;
    let event = before.event().await?;
    ensure!(event["data"]["id"] == account * 10, "{event}");
    let Some(id) = event["id"].as_str() else { bail!("{event} has no id") };
    refuses_and_drops(&mut before, event.to_string().as_bytes(), id).await?;

    // The row gets the next secret beside the one of before; the receiver is still the one of before.
    let both = "UPDATE webhooks SET secret = ARRAY[$2, $3] WHERE id = $1";
    world.sql.execute(both, &[&account, &NEXT, &SECRET]).await?;
    world.subscribe(account * 10 + 1, account).await?;
    let event = before.event().await?;
    ensure!(event["data"]["id"] == account * 10 + 1, "{event}");
    // Now the receiver has the next one, and then the row has it alone.
    let mut after = language.start(NEXT).await?;
    let moved = "UPDATE webhooks SET url = $2 WHERE id = $1";
    world.sql.execute(moved, &[&account, &url(&after)]).await?;
    for (row, secrets) in
        [(2, None), (3, Some("UPDATE webhooks SET secret = ARRAY[$2] WHERE id = $1"))]
    {
        if let Some(secrets) = secrets {
            world.sql.execute(secrets, &[&account, &NEXT]).await?;
        }
        world.subscribe(account * 10 + row, account).await?;
        let event = after.event().await?;
        ensure!(event["data"]["id"] == account * 10 + row, "{event}");
    }
    Ok(())
}
