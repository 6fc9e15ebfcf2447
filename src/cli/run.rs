//! `walhook run`: the pipeline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{CommandResult, Common, Failure};
use crate::config::WorkerConfig;
use crate::server::record::Recording;
use crate::server::{self, Stop, log};

/// Signals within this time are one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Stream changes and deliver them, until SIGTERM, SIGHUP or Ctrl-C
///
/// Does not start, and exits with 2, where something is wrong that waiting does not fix: configuration,
/// rules, rights, columns. It waits for what may pass, such as a server that is away, and says why.
///
/// Only one instance streams from a slot; every further one stands by and takes over by itself.
/// The first signal drains: requests in flight may end and their outcomes are stored. A second one,
/// a second later or more, exits at once, which loses nothing either: what was not stored is sent again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walhook run
  walhook run --config /etc/walhook/walhook.toml
  walhook run --role worker      sends for a leader, with [workers], and needs no database")]
pub struct Args {
    /// What this process does
    #[arg(long, value_enum, default_value_t, value_name = "ROLE")]
    role: Role,
    /// Write what comes in at the dispatcher to this new file, to replay an incident with
    ///
    /// Rows, secrets, header values, URLs' paths and queries, and error texts stand in it by their lengths and
    /// a hash. It ends at 256 MiB, and where the disk does not keep up; the pipeline goes on.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
}

/// What a process of `run` does, and whose part of the configuration other commands look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Role {
    /// Leads when the slot is free. While it stands by, and [workers] is set, it serves as a worker: equal
    /// instances use all their cores
    #[default]
    All,
    /// Leads or stands by, and never serves as a worker
    Leader,
    /// Sends for the leader, and never leads. Needs [workers], and NATS; no database, no secret, no rule. On the
    /// first signal it takes no new requests, ends those that it has, and exits when the leader has heard of
    /// each: nothing is sent twice
    Worker,
}

/// Runs the command.
///
/// # Errors
/// [`Failure::Usage`] when the configuration does not fit the database, [`Failure::Halted`] when going
/// on would lose data, [`Failure::Failed`] for the rest.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    if args.role == Role::Worker {
        return run_worker(&args, common).await;
    }
    until_signalled(async |shutdown| {
        let mut recording = None;
        let ended = serve_all(&args, common, &shutdown, &mut recording).await;
        if let Some(recording) = recording {
            tokio::task::spawn_blocking(|| recording.finish())
                .await
                .map_err(anyhow::Error::from)?;
        }
        ended
    })
    .await
}

/// Begins anew where the configuration that it began with was that of a file which was just being written.
async fn serve_all(
    args: &Args,
    common: &Common,
    shutdown: &CancellationToken,
    recording: &mut Option<Recording>,
) -> CommandResult {
    while let Some(config) = common.load_in_the_end(shutdown).await? {
        log::init(&config.log).map_err(Failure::Usage)?;
        common.ensure_rules(&config)?;
        if let (Some(file), None) = (&args.record, &recording) {
            *recording = Some(record(file)?);
        }
        let slots = (config.scheduler.fast_slots, config.scheduler.slow_slots);
        walhook_process::descriptors::raise();
        walhook_process::descriptors::tell(slots);
        let serves = args.role == Role::All;
        match server::run(config, serves, shutdown.clone(), recording.as_ref()).await {
            Err(stop @ Stop::UrlChanged) => tracing::info!("{stop}: starting anew with that"),
            ended => return result(ended),
        }
    }
    Ok(())
}

/// Runs a worker.
async fn run_worker(args: &Args, common: &Common) -> CommandResult {
    if args.record.is_some() {
        return Err(Failure::Usage(anyhow::anyhow!(
            "--record: a worker has no dispatcher; record at the leader"
        )));
    }
    let config = common.load_worker()?;
    serve(config).await
}

/// A configuration with `[workers]` is refused before.
#[cfg(not(feature = "workers"))]
async fn serve(_: WorkerConfig) -> CommandResult {
    Err(Failure::Usage(anyhow::anyhow!("this build has no workers")))
}

#[cfg(feature = "workers")]
async fn serve(config: WorkerConfig) -> CommandResult {
    log::init(&config.log).map_err(Failure::Usage)?;
    walhook_process::descriptors::raise();
    walhook_process::descriptors::tell((config.scheduler.fast_slots, config.scheduler.slow_slots));
    result(until_signalled(async |shutdown| server::run_worker(config, shutdown).await).await)
}

/// Runs until it ends, which the first signal asks for.
async fn until_signalled<T>(run: impl AsyncFnOnce(CancellationToken) -> T) -> T {
    let shutdown = CancellationToken::new();
    let mut signals = tokio::task::JoinSet::new();
    signals.spawn(watch_signals(shutdown.clone()));
    let ended = run(shutdown).await;
    signals.abort_all();
    ended
}

fn result(ended: Result<(), Stop>) -> CommandResult {
    match ended {
        Ok(()) | Err(Stop::Fenced | Stop::WentBack | Stop::NotReadBack(_) | Stop::UrlChanged) => {
            Ok(())
        }
        Err(Stop::Halted(halt)) => Err(Failure::Halted(halt.to_string())),
        Err(Stop::Config(unfit)) => Err(Failure::Usage(unfit.into())),
        Err(Stop::Failed(fatal)) => Err(Failure::Failed(fatal.into())),
    }
}

fn record(file: &Path) -> Result<Recording, Failure> {
    let recording = Recording::create(file).map_err(|error| {
        Failure::Usage(anyhow::anyhow!("--record {}: {error}; name a new file", file.display()))
    })?;
    tracing::info!(file = %file.display(), "recording what comes in at the dispatcher");
    Ok(recording)
}

/// Waits for SIGTERM or Ctrl-C; says which.
pub(super) async fn until_signal() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// The first signal starts the shutdown, the second ends the process. A terminal that is gone may say so several
/// times: it counts as a first signal only.
async fn watch_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut hangup = if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) };
    let first = tokio::select! {
        signal = until_signal() => signal?,
        Some(_) = async { hangup.as_mut()?.recv().await } => "SIGHUP",
    };
    // Before anything is logged.
    shutdown.cancel();
    tracing::info!(
        "shutting down, stopped by {first}: waiting for requests in flight; a second signal exits at once"
    );
    // Sent to a process and to its group, as `timeout` does, one signal comes twice.
    sleep(ONE_SIGNAL).await;
    until_signal().await?;
    tracing::warn!("second signal: exiting at once");
    log::finish();
    std::process::exit(1);
}

/// Whether the process was started such that it outlives its terminal, as `nohup` does. Where that is not known it is
/// left as it is.
fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").map_or(true, |status| is_hangup_ignored(&status))
}

/// As `SigIgn` says, where SIGHUP is the lowest bit.
fn is_hangup_ignored(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    ignored.is_none_or(|bits| bits & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hangup_is_left_alone_where_the_process_was_told_to_outlive_its_terminal() {
        assert!(is_hangup_ignored("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!is_hangup_ignored("SigBlk:\t1\nSigIgn:\t0000000000001000\n"));
        assert!(is_hangup_ignored(""), "nobody knows");
    }
}
