//! The program under test: its real commands, as child processes.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::address::free_address;
use crate::admin::{answers, get, without_pipeline};
use crate::memory::memory_bytes;
use crate::scratch::Scratch;

/// Far beyond what anything here takes, also where much else runs: a wait that reaches it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks at a log, or at whether it leads.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Between two looks at what takes it work to say.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// `walhook` with one configuration, in a directory of its own that is gone when this is dropped.
#[derive(Debug)]
pub struct Program {
    binary: PathBuf,
    dir: Scratch,
    runs: u32,
    /// Where the configuration says that it listens.
    pub admin: SocketAddr,
    /// Variables in the environment of every command, such as another address of the server. Of our own
    /// environment it has none that configures it.
    pub env: Vec<(String, String)>,
    /// Whether a Ctrl-C at the terminal is for us alone.
    pub own_group: bool,
}

impl Program {
    /// Writes the configuration, which is given the address to listen on; starts nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(
        binary: impl Into<PathBuf>,
        configuration: impl FnOnce(SocketAddr) -> String,
    ) -> Result<Self> {
        let (dir, admin) = (Scratch::new()?, free_address()?);
        let program =
            Self { binary: binary.into(), dir, runs: 0, admin, env: vec![], own_group: false };
        program.write_config(&configuration(admin))?;
        Ok(program)
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration's file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir().join("walhook.toml")
    }

    /// Another configuration in the place of the one before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        Ok(fs::write(self.config(), toml)?)
    }

    /// Changes the first place of the configuration where this stands.
    ///
    /// # Errors
    /// When it stands nowhere.
    pub fn edit_config(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        ensure!(text.contains(from), "the configuration does not hold {from:?}");
        self.write_config(&text.replacen(from, to, 1))
    }

    /// As [`Program::edit_config`], in every such place.
    ///
    /// # Errors
    /// Likewise.
    pub fn reconfigure(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.config())?;
        ensure!(text.contains(from), "the configuration does not hold {from:?}");
        self.write_config(&text.replace(from, to))
    }

    /// Runs `walhook setup`.
    ///
    /// # Errors
    /// When it fails.
    pub async fn set_up(&self) -> Result<()> {
        self.beside(&["setup"]).await
    }

    /// Runs a command that has to succeed, such as `["replay", "list"]`.
    ///
    /// # Errors
    /// When it fails; the message holds what it printed to standard error.
    pub async fn beside(&self, args: &[&str]) -> Result<()> {
        let output = self.walhook(args).await?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "walhook {}: {problem}", args.join(" "));
        Ok(())
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it cannot be run, or does not end.
    pub async fn walhook(&self, args: &[&str]) -> Result<Output> {
        self.walhook_with(args, &[]).await
    }

    /// As [`Program::walhook`], with variables in its environment.
    ///
    /// # Errors
    /// Likewise.
    pub async fn walhook_with(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
        Ok(timeout(PATIENCE, self.command(args).envs(env.iter().copied()).output()).await??)
    }

    /// As [`Program::walhook`], by a process that may have so many files open.
    ///
    /// # Errors
    /// Likewise.
    pub async fn walhook_limited(&self, args: &[&str], files: u32) -> Result<Output> {
        Ok(timeout(PATIENCE, self.limited(args, files).output()).await??)
    }

    /// Runs a command with `--json` and reads what it prints.
    ///
    /// # Errors
    /// When that is no JSON.
    pub async fn walhook_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let Output { stdout, stderr, .. } = self.walhook(&[args, &["--json"]].concat()).await?;
        let said = || [&stdout, &stderr].map(|said| String::from_utf8_lossy(said)).concat();
        serde_json::from_slice(&stdout).with_context(|| format!("{args:?}: {}", said()))
    }

    /// Runs a command whose standard output nobody reads.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn walhook_into_closed_pipe(&self, args: &[&str]) -> Result<Output> {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = self.command(args);
        let child = command.stdout(Stdio::from(writer)).stderr(Stdio::piped()).spawn()?;
        drop(command);
        Ok(child.wait_with_output().await?)
    }

    /// Starts a command whose output nobody reads; killed when dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, args: &[&str]) -> Result<Child> {
        Ok(self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// As [`Program::start`], with variables in its environment, and standard error in this pipe.
    ///
    /// # Errors
    /// Likewise.
    pub fn start_logging_to(
        &self,
        args: &[&str],
        env: &[(&str, &str)],
        pipe: std::io::PipeWriter,
    ) -> Result<Child> {
        let mut command = self.command(args);
        command.envs(env.iter().copied()).stdout(Stdio::null()).stderr(Stdio::from(pipe));
        Ok(command.spawn()?)
    }

    /// Starts `walhook run` without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> Result<Running> {
        self.spawn_with(&[])
    }

    /// As [`Program::spawn`], with variables in its environment.
    ///
    /// # Errors
    /// Likewise.
    pub fn spawn_with(&mut self, env: &[(&str, &str)]) -> Result<Running> {
        let mut command = self.command(&["run"]);
        command.envs(env.iter().copied());
        self.spawn_as(command)
    }

    /// As [`Program::spawn`], for a process that may have so many files open.
    ///
    /// # Errors
    /// Likewise.
    pub fn spawn_limited(&mut self, files: u32) -> Result<Running> {
        let command = self.limited(&["run"], files);
        self.spawn_as(command)
    }

    /// Starts `walhook run` and waits until it leads.
    ///
    /// # Errors
    /// When it ends before, or does not lead; the message holds its log.
    pub async fn run(&mut self) -> Result<Running> {
        let mut running = self.spawn()?;
        running.until_leading(self.admin).await?;
        Ok(running)
    }

    /// As [`Program::run`], with further arguments.
    ///
    /// # Errors
    /// Likewise.
    pub async fn run_with(&mut self, args: &[&str]) -> Result<Running> {
        let command = self.command(&[&["run"], args].concat());
        let mut running = self.spawn_as(command)?;
        running.until_leading(self.admin).await?;
        Ok(running)
    }

    /// Starts `walhook run --role`, without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_role(&mut self, role: &str) -> Result<Running> {
        let command = self.command(&["run", "--role", role]);
        self.spawn_as(command)
    }

    fn spawn_as(&mut self, mut command: Command) -> Result<Running> {
        self.runs += 1;
        let log = self.dir().join(format!("run-{}.log", self.runs));
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let child = command.spawn().with_context(|| format!("cannot run {:?}", self.binary))?;
        Ok(Running { child, log })
    }

    fn command(&self, args: &[&str]) -> Command {
        self.complete(Command::new(&self.binary), args)
    }

    fn limited(&self, args: &[&str], files: u32) -> Command {
        let mut command = Command::new("sh");
        let limit = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        command.arg("-c").arg(limit).arg(&self.binary);
        self.complete(command, args)
    }

    fn complete(&self, mut command: Command, args: &[&str]) -> Command {
        command.args(args).arg("--config").arg(self.config());
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("WALHOOK_") {
                command.env_remove(variable);
            }
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.own_group {
            command.process_group(0);
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Whether it says that it leads: it streams and delivers. (`/readyz` also wants a checkpoint
    /// written, for which an idle source gives no cause yet.)
    pub async fn is_leading(&self) -> bool {
        answers(self.admin, "/leaderz").await
    }

    /// Its metrics, in Prometheus' text format, without the label that tells it from other pipelines.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        Ok(without_pipeline(&get(self.admin, "/metrics").await?.1))
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

    /// Waits until a metric, named with its labels as [`Program::metrics`] has it, has this value.
    ///
    /// # Errors
    /// When it has not.
    pub async fn until_metric(&self, series: &str, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics().await?;
            let line = metrics.lines().find(|line| line.starts_with(series));
            if line.is_some_and(|line| line.ends_with(&format!(" {wanted}"))) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{line:?} is not {wanted}");
            sleep(ASK_EVERY).await;
        }
    }

    /// Waits until `/readyz` is not 200 and says this, and returns all that it says. Before, it may not be 200 for another
    /// reason: a leader's is not until its first checkpoint is written.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn until_unready(&self, says: &str) -> Result<String> {
        self.until_said(|status, said| status != 200 && said.contains(says)).await
    }

    /// Waits until `/readyz` is 200, or is not, and returns what it says.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn until_ready(&self, wanted: bool) -> Result<String> {
        self.until_said(|status, _| (status == 200) == wanted).await
    }

    async fn until_said(&self, wanted: impl Fn(u16, &str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = get(self.admin, "/readyz").await;
            if let Ok((status, body)) = &said
                && wanted(*status, body)
            {
                return Ok(body.clone());
            }
            ensure!(Instant::now() < deadline, "/readyz says {said:?}");
            sleep(ASK_EVERY).await;
        }
    }
}

/// A running `walhook run`; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Waits until it says that it leads.
    ///
    /// # Errors
    /// When it ends before, or does not lead; the message holds its log.
    pub async fn until_leading(&mut self, admin: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !answers(admin, "/leaderz").await {
            if let Some(status) = self.has_ended()? {
                bail!("walhook ended with {status}:\n{}", self.log());
            }
            ensure!(Instant::now() < deadline, "walhook does not lead:\n{}", self.log());
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("it has ended")
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(mut self) -> Result<()> {
        self.kill_and_wait().await
    }

    /// As [`Running::kill`], for one that is to be replaced.
    ///
    /// # Errors
    /// Likewise.
    pub async fn kill_and_wait(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Errors
    /// When it has ended, or there is no such signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        // The shell's own `kill`: no program of that name need be installed.
        let kill = format!("kill -s {signal} {}", self.pid()?);
        let sent =
            std::process::Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status()?;
        ensure!(sent.success(), "cannot send {signal}");
        Ok(())
    }

    /// Asks it to shut down, as a service manager does, and waits until it has.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(self) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.ended().await
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(mut self) -> Result<ExitStatus> {
        match timeout(PATIENCE, self.wait()).await {
            Ok(status) => status,
            Err(_) => bail!("walhook does not end:\n{}", self.log()),
        }
    }

    /// As [`Running::ended`], with what it has logged.
    ///
    /// # Errors
    /// Likewise.
    pub async fn ended_with_log(self) -> Result<(ExitStatus, String)> {
        let log = self.log.clone();
        Ok((self.ended().await?, fs::read_to_string(log)?))
    }

    /// Waits until it ends, however long that takes. Cancel-safe.
    ///
    /// # Errors
    /// When the operating system cannot say how it ended.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Waits until it has logged something.
    ///
    /// # Errors
    /// When it does not.
    pub async fn until_logged(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            ensure!(Instant::now() < deadline, "nothing says {text:?}:\n{}", self.log());
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of it.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// The memory that it has resident.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        memory_bytes(self.pid()?, "VmRSS:")
    }

    /// The most memory that it has had resident, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_peak_bytes(&self) -> Result<u64> {
        memory_bytes(self.pid()?, "VmHWM:")
    }
}
