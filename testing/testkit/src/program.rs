//! The program under test: its real commands, as child processes.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// For a request to the admin server.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an orderly stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A directory that is gone when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one for our own user alone.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new() -> Result<Self> {
        let name = format!("walhook-demo-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `walhook setup` and `walhook run` with one configuration. Killed when dropped.
#[derive(Debug)]
pub struct Pipeline {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Pipeline {
    /// Writes the configuration, which is given the address to listen on, into `directory`; starts
    /// nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(
        program: PathBuf,
        directory: &Path,
        configuration: impl FnOnce(SocketAddr) -> String,
    ) -> Result<Self> {
        // Free at this moment; should somebody else take it, `run` says so and the demo fails.
        let admin = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let config = directory.join("walhook.toml");
        fs::write(&config, configuration(admin))?;
        Ok(Self { program, config, log: directory.join("log"), admin, child: None })
    }

    /// `walhook setup`
    ///
    /// # Errors
    /// When it fails; the message holds the end of its output.
    pub async fn setup(&self) -> Result<()> {
        let status =
            self.command(&["setup"])?.status().await.context("cannot run walhook setup")?;
        ensure!(status.success(), "walhook setup: {status}\n{}", self.log_tail());
        Ok(())
    }

    /// `walhook run`
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.child = Some(self.command(&["run"])?.spawn().context("cannot run walhook run")?);
        Ok(())
    }

    /// Another command beside it, such as `["replay", "list"]`.
    ///
    /// # Errors
    /// When it fails; the message holds what it printed to standard error.
    pub async fn beside(&self, args: &[&str]) -> Result<()> {
        let mut command = self.command(args)?;
        let output = command.stderr(Stdio::piped()).output().await?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "walhook {}: {problem}", args.join(" "));
        Ok(())
    }

    /// The process that `start` made, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its metrics, in Prometheus' text format, without the label that tells it from other pipelines.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        Ok(without_pipeline(&self.get("/metrics").await?.1))
    }

    /// Whether it says that it leads: it streams and delivers. (`/readyz` also wants a checkpoint
    /// written, for which an idle source gives no cause yet.)
    pub async fn is_leading(&self) -> bool {
        matches!(self.get("/leaderz").await, Ok((200, _)))
    }

    /// Requests in flight, as its metrics say.
    pub async fn in_flight(&self) -> Option<u64> {
        let metrics = self.metrics().await.ok()?;
        let value = |line: &str| -> Option<f64> {
            line.strip_prefix("walhook_in_flight")?.rsplit(' ').next()?.parse().ok()
        };
        let sum: f64 = metrics.lines().filter_map(value).sum();
        format!("{sum:.0}").parse().ok()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the pipeline is not running")?;
        child.kill().await.context("cannot kill the pipeline")
    }

    /// Waits until it ends by itself. Cancel-safe. Never returns while it is not running.
    ///
    /// # Errors
    /// When the operating system cannot say how it ended.
    pub async fn exited(&mut self) -> Result<ExitStatus> {
        match &mut self.child {
            Some(child) => Ok(child.wait().await?),
            None => std::future::pending().await,
        }
    }

    /// SIGTERM, as a service manager sends it, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id() {
            // The shell's own `kill`: no program of that name need be installed.
            let kill = format!("kill -TERM {pid}");
            Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().await?;
        }
        let Ok(status) = timeout(STOP_TIMEOUT, child.wait()).await else {
            child.kill().await?;
            bail!("walhook run did not stop within {STOP_TIMEOUT:?} of SIGTERM");
        };
        let status = status?;
        ensure!(status.success(), "walhook run stopped with {status}\n{}", self.log_tail());
        Ok(())
    }

    /// The last lines of what it printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(args).arg("--config").arg(&self.config);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("WALHOOK_") {
                command.env_remove(variable);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // A Ctrl-C at the terminal is for the demo, which then stops the pipeline itself.
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }

    /// A GET to the admin server: status and body.
    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n\r\n", self.admin);
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = timeout(ADMIN_TIMEOUT, exchange).await??;
        let (head, body) =
            answer.split_once("\r\n\r\n").context("the answer has no end of head")?;
        let status = head.split(' ').nth(1).context("the answer has no status")?.parse()?;
        Ok((status, body.to_owned()))
    }
}

/// Metrics as they would be without the label `pipeline`, for whoever knows which one it asked.
#[must_use]
pub fn without_pipeline(metrics: &str) -> String {
    const LABEL: &str = "pipeline=\"";
    let without = |line: &str| -> Option<String> {
        let (before, rest) = line.split_once(LABEL)?;
        let (_, after) = rest.split_once('"')?;
        Some(match (before.strip_suffix(','), after.strip_prefix(',')) {
            (Some(before), _) => format!("{before}{after}\n"),
            (None, Some(after)) => format!("{before}{after}\n"),
            (None, None) => {
                format!("{}{}\n", before.trim_end_matches('{'), after.trim_start_matches('}'))
            }
        })
    };
    metrics.lines().map(|line| without(line).unwrap_or_else(|| format!("{line}\n"))).collect()
}
