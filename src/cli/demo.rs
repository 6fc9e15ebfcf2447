//! `walhook demo`

use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CommandResult, Common, Failure, print_remark};
use crate::demo::keep::{Ended, Kept};
use crate::demo::{self, Options};

/// The demo's arguments.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
Examples:
  walhook demo
  walhook demo --for 10s --workers 2
  walhook demo --for 10s --keep          and then look around")]
pub struct Args {
    /// How long the traffic runs, such as 60s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = run_for)]
    pub run_for: Duration,
    /// Decides what the writers do; the same seed, the same choices
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// The whale's events a second, at most; it also pauses while its backlog is long
    #[arg(long, value_name = "RATE", default_value_t = 1000)]
    pub whale_rate: u32,
    /// Start a nats-server and so many workers that send for the pipeline, and kill one of them too
    ///
    /// nats-server comes from NATS_SERVER, from PATH, or from where `sh scripts/nats-server` has put it.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub workers: u32,
    /// Leave database, receivers and pipeline running afterwards, and name commands to try; Ctrl-C ends them
    #[arg(long, conflicts_with = "workers")]
    pub keep: bool,
}

/// Reads `--for`.
fn run_for(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(2)..=Duration::from_secs(3600)).contains(&time) {
        Ok(time)
    } else {
        Err("must be between 2s and 1h".to_owned())
    }
}

/// Runs the demo. A first Ctrl-C ends the traffic, drains and sums up; a second one only cleans up.
///
/// # Errors
/// When something cannot be started, when a delivery is lost or invented, or when a signature is
/// bad.
pub async fn run(args: Args, common: &Common) -> CommandResult {
    let options = Options {
        run_for: args.run_for,
        seed: args.seed,
        whale_rate: args.whale_rate,
        workers: args.workers,
        json: common.json,
        keep: args.keep,
    };
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let second = async {
        signals.next().await;
        stop.cancel();
        signals.next().await;
    };
    // The second signal drops the demo, and with it the processes and directories it owns.
    let Ended { summary, kept } = tokio::select! {
        ended = demo::run(options, stop.clone()) => ended?,
        () = second => return Err(Failure::Failed(anyhow!("stopped; everything is cleaned up"))),
    };
    if common.json {
        // On one line, so that it is the last one also where standard error is mixed in.
        super::print_line(&serde_json::to_string(&summary).map_err(anyhow::Error::from)?)?;
    } else {
        super::print_line(&format!("\n{summary}"))?;
    }
    if let Some(mut kept) = kept {
        name_commands(&kept);
        tokio::select! {
            () = signals.next() => {}
            error = kept.failed() => return Err(error.into()),
        }
    }
    match summary.fault() {
        None => Ok(()),
        Some(fault) => Err(Failure::Failed(anyhow!(fault))),
    }
}

/// On standard error, which is nobody's result.
fn name_commands(kept: &Kept) {
    print_remark("\nTo try, in another terminal:");
    for (command, shows) in &kept.commands {
        print_remark(&format!("\n  # {shows}\n  {command}"));
    }
    print_remark("\nCtrl-C ends it and cleans up.");
}

/// What asks a program at a terminal or under a service manager to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("cannot handle signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_for_refuses_what_cannot_hold_a_kill_in_the_middle() {
        assert_eq!(run_for("90s"), Ok(Duration::from_secs(90)));
        assert!(run_for("1s").is_err() && run_for("1d").is_err() && run_for("soon").is_err());
    }
}
