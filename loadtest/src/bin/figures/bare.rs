//! The bare loop: one reqwest client that posts, and nothing else, in a process of its own.
//!
//! It has what walhook has: the version of the libraries, the allocator, the TLS provider, as many threads
//! as there are cores, HTTP/1, and bodies of the same shape. It does not sign. What walhook costs is a
//! multiple of this.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::sink::{Came, Sink};
use walhook_loadtest::cpu::cpu_seconds;

/// Requests at a time: as many as walhook has by default for endpoints that answer at once.
const IN_FLIGHT: usize = 256;

/// A process of our own program that says when it is done, and ends when its standard input does.
pub(crate) struct Own(Child);

impl Own {
    /// Starts it with these arguments.
    pub(crate) fn start(args: &[String], env: &[(String, String)]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(Self(command.spawn()?))
    }

    /// Waits until it says that it is done, or ready.
    pub(crate) async fn said(&mut self, what: &str) -> Result<()> {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().context("no output")?;
        BufReader::new(output).read_line(&mut line).await?;
        ensure!(line.trim_end() == what, "a process of ours failed: {line:?}, not {what:?}");
        Ok(())
    }

    /// Its CPU time so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.0.id().context("it has ended")?)
    }
}

/// Says so to whoever started us, and waits for the end of standard input.
pub(crate) async fn say(what: &str) -> Result<()> {
    println!("{what}");
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many requests
    deliveries: u64,
    /// To each in turn
    urls: Vec<String>,
}

/// One run, against these of the sink's hosts: what came, and the CPU seconds.
pub(crate) async fn run(sink: &Sink, deliveries: u64, hosts: u8) -> Result<(Came, f64)> {
    sink.reset();
    let mut args = vec!["bare".to_owned(), deliveries.to_string()];
    args.extend((0..hosts).map(|host| sink.url(host)));
    let mut child = Own::start(&args, &sink.environment())?;
    let came = sink.until(deliveries).await?;
    child.said("done").await?;
    Ok((came, child.cpu_seconds()?))
}

/// The process.
pub(crate) async fn post(Args { deliveries, urls }: Args) -> Result<()> {
    let client = client()?;
    let urls: Vec<reqwest::Url> = urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
    let urls: Arc<[reqwest::Url]> = urls.into();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (client, urls, next) = (client.clone(), Arc::clone(&urls), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= deliveries {
                    return anyhow::Ok(());
                }
                let url = usize::try_from(n).ok().and_then(|n| urls.get(n % urls.len()));
                let url = url.context("no URL")?.clone();
                let id = i64::try_from(n)?;
                send(&client, url, "subscriber.created", "1", id, id).await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    say("done").await
}

/// As walhook's: HTTP/1, no proxy, rustls with ring.
pub(crate) fn client() -> Result<reqwest::Client> {
    // Fails where one is installed already, which is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().no_proxy().http1_only().tcp_nodelay(true).build()?)
}

/// Posts a body of the shape that walhook's have.
pub(crate) async fn send(
    client: &reqwest::Client,
    url: reqwest::Url,
    event_type: &str,
    account: &str,
    id: i64,
    version: i64,
) -> Result<()> {
    let body = format!(
        "{{\"id\":\"evt_01M85RH0YWZA1NWYMWREKE545X\",\"type\":\"{event_type}\",\
         \"operation\":\"insert\",\"timestamp\":\"2026-11-24T03:10:25.756862Z\",\
         \"account_id\":\"{account}\",\"data\":{{\"id\":{id},\"version\":{version}}}}}"
    );
    let request = client.post(url).header("content-type", "application/json").body(body);
    request.send().await?.error_for_status()?.bytes().await?;
    Ok(())
}
