//! The commands: one file each, each with its `Args` and its `run`.
//!
//! To add one: a `mod`, a variant of [`Command`], an arm in [`Cli::run`].

mod ago;
pub mod check;
pub mod checkpoint;
pub mod completions;
pub mod config;
mod confirm;
pub mod dead_letters;
pub mod deferred;
pub mod demo;
pub mod endpoints;
pub mod events;
mod filter;
pub mod gaps;
pub mod health;
mod job;
pub mod mock_endpoint;
pub mod recover;
pub mod replay;
pub mod run;
pub mod setup;
pub mod status;
mod table;
pub mod teardown;
mod terminal;
pub mod upgrade;
pub mod workers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::config::{Admin, Config, ConfigError, WorkerConfig};
pub use crate::control::Failure;
use walhook_core::endpoint::Secret;
use walhook_core::escape;

/// Turn committed PostgreSQL row changes into signed webhooks
///
/// walhook tails a logical replication slot, makes events of row changes as the rules in
/// walhook.toml say, and POSTs them to the URLs that each account has registered. What is
/// committed is delivered, kept as a dead letter or recorded as a gap, never lost.
#[derive(Debug, Parser)]
#[command(name = "walhook", version, verbatim_doc_comment, after_help = EXAMPLES)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How often the file of a database URL is looked at that holds none.
const URL_FILE_AGAIN: Duration = Duration::from_secs(1);

/// After this time the process ends, and whoever starts it again may hand it a new copy of the file.
const URL_FILE_WITHIN: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Begin with:
  walhook config show --example > walhook.toml   a commented configuration to fill in
  walhook setup                                  publication, slot and state tables
  walhook check                                  is everything in place?

Every key of the configuration can be set by the environment too, as WALHOOK_<SECTION>__<KEY>,
and with _FILE appended be read from a file:
  WALHOOK_SOURCE__URL_FILE=/run/secrets/walhook-url walhook check
The files of database URLs are read again at each connection, so that a password can be rotated.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 halted to protect data";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it all against a throw-away PostgreSQL, and account for every delivery
    Demo(demo::Args),
    /// Create what is missing of state schema, publication, slot and checkpoint
    Setup(setup::Args),
    /// Is everything in place? One line a finding, each with its fix
    Check(check::Args),
    /// Stream changes and deliver them
    Run(run::Args),
    /// Show the leader, slot, checkpoint and what is in trouble
    Status(status::Args),
    /// Ask the instance that runs here whether it is ready
    Health(health::Args),
    /// Show the checkpoint, or reset it
    Checkpoint(checkpoint::Args),
    /// Show what became of an event, or send it again
    Events(events::Args),
    /// List, retry or discard deliveries that wait for their next attempt
    Deferred(deferred::Args),
    /// Send a past range again, beside the live stream
    Replay(replay::Args),
    /// List, show, retry or discard dead letters
    DeadLetters(dead_letters::Args),
    /// List endpoints with how they stand, test, pause or resume one
    Endpoints(endpoints::Args),
    /// List the workers that send for the leader, as it saw them last
    Workers(workers::Args),
    /// List what was not delivered, and close what is dealt with
    Gaps(gaps::Args),
    /// Resolve a halt: accept a gap, adopt another cluster, or skip what cannot be read
    Recover(recover::Args),
    /// Prepare a major upgrade of PostgreSQL, and go on after it
    Upgrade(upgrade::Args),
    /// Drop slot, publication and state, after asking
    Teardown(teardown::Args),
    /// Receive webhooks, for tests: verify signatures, delay and fail as scripted
    MockEndpoint(mock_endpoint::Args),
    /// Show or validate the configuration
    Config(config::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// The command's own; see [`Failure`].
    pub async fn run(self) -> CommandResult {
        let common = &self.common;
        match self.command {
            Command::Demo(args) => demo::run(args, common).await,
            Command::Setup(args) => setup::run(args, common).await,
            Command::Check(args) => check::run(args, common).await,
            Command::Run(args) => run::run(args, common).await,
            Command::Status(args) => status::run(args, common).await,
            Command::Health(args) => health::run(args, common).await,
            Command::Checkpoint(args) => checkpoint::run(args, common).await,
            Command::Deferred(args) => deferred::run(args, common).await,
            Command::Endpoints(args) => endpoints::run(args, common).await,
            Command::Events(args) => events::run(args, common).await,
            Command::Replay(args) => replay::run(args, common).await,
            Command::DeadLetters(args) => dead_letters::run(args, common).await,
            Command::Workers(args) => workers::run(args, common).await,
            Command::Gaps(args) => gaps::run(args, common).await,
            Command::Recover(args) => recover::run(args, common).await,
            Command::Upgrade(args) => upgrade::run(args, common).await,
            Command::Teardown(args) => teardown::run(args, common).await,
            Command::MockEndpoint(args) => mock_endpoint::run(args, common).await,
            Command::Config(args) => config::run(args, common).await,
            Command::Completions(args) => completions::run(args, common).await,
        }
    }
}

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The configuration file [default: walhook.toml, or else /etc/walhook/walhook.toml]
    #[arg(long, global = true, value_name = "FILE", env = "WALHOOK_CONFIG")]
    pub config: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    pub json: bool,
}

impl Common {
    /// Loads the configuration that the command line names, with this process's environment.
    ///
    /// # Errors
    /// [`Failure::Usage`], with what is wrong and where.
    pub fn load(&self) -> Result<Config, Failure> {
        Ok(crate::config::load(&self.path()?, environment()?)?)
    }

    /// As [`Common::load`], for a process that nobody watches as it starts: waits a minute while the file of a database
    /// URL holds none, and says so. `None` on `shutdown`.
    ///
    /// # Errors
    /// Likewise; [`Failure::Failed`] after the minute.
    async fn load_in_the_end(
        &self,
        shutdown: &CancellationToken,
    ) -> Result<Option<Config>, Failure> {
        let (path, env) = (self.path()?, environment()?);
        let (began, mut said) = (Instant::now(), String::new());
        loop {
            match crate::config::load(&path, env.clone()) {
                Err(error) if error.may_pass() => {
                    if began.elapsed() >= URL_FILE_WITHIN {
                        return Err(Failure::Failed(error.into()));
                    }
                    let problem = error.to_string();
                    if problem != said {
                        print_remark(&format!("warning: {problem}; waiting for it"));
                        said = problem;
                    }
                }
                loaded => return Ok(Some(loaded?)),
            }
            if shutdown.run_until_cancelled(sleep(URL_FILE_AGAIN)).await.is_none() {
                return Ok(None);
            }
        }
    }

    /// As [`Common::load`], for a command that takes a role: says so where a worker's configuration was meant.
    ///
    /// # Errors
    /// Likewise.
    pub fn load_all(&self) -> Result<Config, Failure> {
        let (path, env) = (self.path()?, environment()?);
        crate::config::load(&path, env.clone()).map_err(|error| {
            match crate::config::load_worker(&path, env) {
                Ok(_) => Failure::Usage(anyhow::anyhow!(
                    "{error}; for a worker's configuration say --role worker"
                )),
                Err(_) => error.into(),
            }
        })
    }

    /// Refuses a configuration by which nothing would be sent.
    ///
    /// # Errors
    /// Likewise.
    pub fn ensure_rules(&self, config: &Config) -> Result<(), Failure> {
        if config.events.is_empty() {
            return Err(Failure::Usage(anyhow::anyhow!(
                "{}: no [[events]] rule: nothing would be sent; add at least one",
                self.path()?.display()
            )));
        }
        Ok(())
    }

    /// As [`Common::load`], for a worker.
    ///
    /// # Errors
    /// Likewise.
    pub fn load_worker(&self) -> Result<WorkerConfig, Failure> {
        Ok(crate::config::load_worker(&self.path()?, environment()?)?)
    }

    /// Where the instance of this configuration answers: one of any role.
    ///
    /// # Errors
    /// Likewise.
    pub fn load_admin(&self) -> Result<Admin, Failure> {
        let (path, env) = (self.path()?, environment()?);
        match crate::config::load(&path, env.clone()) {
            Ok(config) => Ok(config.admin),
            // A worker's has no database: then what that one lacks is no problem.
            Err(error) => match crate::config::load_worker(&path, env) {
                Ok(config) => Ok(config.admin),
                Err(_) => Err(error.into()),
            },
        }
    }

    /// The configuration file: the one that is named, or the first that exists where it is looked for.
    ///
    /// # Errors
    /// [`Failure::Usage`] where there is none.
    pub fn path(&self) -> Result<PathBuf, Failure> {
        if let Some(path) = &self.config {
            return Ok(path.clone());
        }
        // One that may not be looked at is there for all we know, and reading it says why not.
        Ok(default_path(|path| path.try_exists().unwrap_or(true))?)
    }
}

/// This process's environment. Variables of it that look like keys and are none are remarked upon.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let env = crate::config::environment(std::env::vars_os())?;
    for near_miss in crate::config::near_misses(env.iter().map(|(name, _)| name.clone())) {
        print_remark(&format!("warning: environment variable {near_miss}"));
    }
    Ok(env)
}

/// Where the configuration is looked for, the first that is there.
fn default_path(is_there: impl Fn(&Path) -> bool) -> Result<PathBuf, ConfigError> {
    let found = crate::config::DEFAULT_PATHS.iter().map(Path::new).find(|path| is_there(path));
    found.map(Path::to_owned).ok_or(ConfigError::NoFile)
}

/// Reads a database URL from the command line, so that it is never printed.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Reads where an admin server answers.
fn admin_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        // `localhost:9723` would be a URL of the scheme `localhost`.
        Ok(_) | Err(_) => {
            Err("write it as http://HOST:PORT, such as http://10.0.0.5:9723".to_owned())
        }
    }
}

impl Failure {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Halted(_) => 3,
        }
    }
}

/// What a command's `run` returns.
pub type CommandResult = Result<(), Failure>;

/// Writes a result to standard output as one JSON object.
///
/// # Errors
/// When it cannot be written, or the value is not representable.
pub fn print_json(value: &impl Serialize) -> CommandResult {
    let text = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    print_line(&text)
}

/// Writes a remark beside the result to standard error, escaped as [`print_line`] does.
pub(crate) fn print_remark(text: &str) {
    use std::io::Write;
    let _nobody_reads_it = writeln!(std::io::stderr(), "{}", escape::lines(text));
}

/// Writes a line, or several, to standard output. What does more than to be seen is escaped: in JSON it
/// stays the same JSON.
///
/// # Errors
/// When it cannot be written: the disk is full, say. A reader that has gone is none.
pub fn print_line(line: &str) -> CommandResult {
    write_out(format!("{}\n", escape::lines(line)).as_bytes())
}

/// Writes to standard output as it is. A reader that has seen enough (`walhook status | head -1`) is no
/// failure: the command goes on to its end, and its exit code says how that was.
///
/// # Errors
/// When it cannot be written for another reason: the disk is full, say.
fn write_out(bytes: &[u8]) -> CommandResult {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let error = anyhow::Error::new(error).context("cannot write to standard output");
            Err(Failure::Failed(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_of_each_command_has_an_example() {
        let mut all = Cli::command();
        for command in all.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let name = command.get_name().to_owned();
            let mut helps = vec![command.render_long_help().to_string()];
            let below = command.get_subcommands_mut().map(|it| it.render_long_help().to_string());
            helps.extend(below);
            let is_example = |help: &String| {
                let examples = help.split_once("Examples:").or_else(|| help.split_once("Example:"));
                examples.is_some_and(|(_, examples)| examples.contains(&format!("walhook {name}")))
            };
            assert!(helps.iter().any(is_example), "walhook {name} --help shows no example");
        }
    }

    fn each(command: &clap::Command, look: &mut impl FnMut(&clap::Command)) {
        look(command);
        command.get_subcommands().for_each(|below| each(below, look));
    }

    #[test]
    fn epilogue_of_each_help_is_printed_as_it_is_written() {
        // Of a longer line the parser makes two, and of the first one it takes the indentation.
        const WIDTH: usize = 100;
        each(&Cli::command(), &mut |command| {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let too_long = text.lines().find(|line| line.chars().count() > WIDTH);
            let name = command.get_name();
            assert_eq!(too_long, None, "{name}");
            assert!(!text.starts_with(' '), "{name}: {text}");
        });
    }

    #[test]
    fn id_may_be_a_negative_number() {
        for args in [
            &["endpoints", "list", "--after", "-5"][..],
            &["endpoints", "resume", "-5"],
            &["events", "resend", "evt_01M89HY61Z3KDGFQWS3TGAXFGY", "--endpoint", "-5"],
            &["dead-letters", "list", "--endpoint", "-5", "--account", "-1"],
            &["replay", "start", "--from", "oldest", "--account", "-1"],
        ] {
            let parsed = Cli::try_parse_from([&["walhook"], args].concat());
            assert!(parsed.is_ok(), "{args:?}");
        }
        for args in [&["deferred", "list", "--event", "foo"][..], &["endpoints", "pause", "--json"]]
        {
            assert!(Cli::try_parse_from([&["walhook"], args].concat()).is_err(), "{args:?}");
        }
    }

    #[test]
    fn configuration_is_looked_for_here_then_in_etc_and_the_error_names_both() {
        let (here, etc) = (Path::new("walhook.toml"), Path::new("/etc/walhook/walhook.toml"));
        assert_eq!(default_path(|_| true).unwrap(), here);
        assert_eq!(default_path(|path| path == etc).unwrap(), etc);
        let failure = Failure::from(default_path(|_| false).unwrap_err());
        let said = failure.to_string();
        assert!(said.contains("neither walhook.toml nor /etc/walhook/walhook.toml"), "{said}");
        assert!(said.contains("--config") && said.contains("WALHOOK_CONFIG"), "{said}");
        assert_eq!(failure.exit_code(), 2);
    }

    #[test]
    fn failure_decides_the_exit_code() {
        assert_eq!(Failure::from(anyhow::anyhow!("no")).exit_code(), 1);
        assert_eq!(Failure::Usage(anyhow::anyhow!("no")).exit_code(), 2);
        assert_eq!(Failure::Halted("no".to_owned()).exit_code(), 3);
    }

    #[test]
    fn address_of_an_admin_server_is_a_url() {
        assert!(admin_url("http://10.0.0.5:9723").is_ok());
        for address in ["10.0.0.5:9723", "localhost:9723", "localhost", "", "postgres://h/d"] {
            assert!(admin_url(address).unwrap_err().contains("http://HOST:PORT"), "{address}");
        }
    }

    #[test]
    fn failure_prints_its_causes() {
        let error = anyhow::anyhow!("refused").context("cannot connect");
        assert_eq!(Failure::from(error).to_string(), "cannot connect: refused");
    }
}
