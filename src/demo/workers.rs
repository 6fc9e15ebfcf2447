//! The workers of `walhook demo --workers`, with a nats-server of their own.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use walhook_testkit::nats::Nats;
use walhook_testkit::program::{Program, Running};

/// For the leader to see all of them serve.
const SERVING_TIMEOUT: Duration = Duration::from_secs(30);

/// What a worker counts: see `docs/operations/health-and-metrics.md`.
const CARRIED: &str = "walhook_worker_requests_total";

/// What the leader counts.
const SERVING: &str = "walhook_workers{state=\"serving\"}";

/// nats-server and the workers. Dropped, all of them end.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    nats: Nats,
}

#[derive(Debug)]
struct Worker {
    program: Program,
    running: Option<Running>,
    carried: u64,
    killed_after_seconds: Option<f64>,
}

/// What a worker did.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerSummary {
    /// Requests that it began.
    pub carried: u64,
    /// When it was killed, if it was: seconds of the traffic.
    pub killed_after_seconds: Option<f64>,
}

impl Workers {
    /// Starts nats-server, and so many workers.
    ///
    /// # Errors
    /// When there is no nats-server (the message says where one comes from), or something does not start.
    pub(super) async fn start(program: &Path, count: u32) -> Result<Self> {
        let nats = Nats::start("max_payload: 2MB").await?;
        let mut workers = Vec::new();
        for _ in 0..count {
            let toml = |admin: SocketAddr| {
                format!(
                    "{}\n[egress]\nallow = [\"127.0.0.0/8\"]\n[admin]\nlisten = \"{admin}\"\n",
                    section(&nats)
                )
            };
            let mut program = Program::new(program, toml)?;
            program.own_group = true;
            let running = Some(program.spawn_role("worker")?);
            workers.push(Worker { program, running, carried: 0, killed_after_seconds: None });
        }
        Ok(Self { workers, nats })
    }

    /// The section that the leader has too.
    pub(super) fn section(&self) -> String {
        section(&self.nats)
    }

    /// Waits until the leader sees all that run serve.
    ///
    /// # Errors
    /// When it does not.
    pub(super) async fn until_serving(&self, leader: SocketAddr) -> Result<()> {
        let running = self.workers.iter().filter(|worker| worker.running.is_some()).count();
        let deadline = Instant::now() + SERVING_TIMEOUT;
        while metric(leader, SERVING).await != u64::try_from(running).ok() {
            if Instant::now() > deadline {
                let log = self.workers.iter().filter_map(|worker| worker.running.as_ref());
                let log = log.map(Running::log_tail).collect::<Vec<_>>().join("\n");
                bail!(
                    "the leader does not see {running} workers serve; their logs end with:\n{log}"
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Asks each how much it did.
    pub(super) async fn look(&mut self) {
        for worker in self.workers.iter_mut().filter(|worker| worker.running.is_some()) {
            if let Some(carried) = metric(worker.program.admin, CARRIED).await {
                worker.carried = carried;
            }
        }
    }

    /// Kills the first one; says so, unless it is dead already.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(super) async fn kill(&mut self, elapsed: Duration) -> Result<Option<String>> {
        self.look().await;
        let count = self.workers.len();
        let Some(worker) = self.workers.first_mut() else { return Ok(None) };
        let Some(running) = worker.running.take() else { return Ok(None) };
        running.kill().await?;
        worker.killed_after_seconds = Some((elapsed.as_secs_f64() * 10.0).round() / 10.0);
        Ok(Some(format!(
            "killed worker 1 of {count} (SIGKILL): what it carried is sent again when its lease has run out"
        )))
    }

    /// What each did.
    pub(super) fn summaries(&self) -> Vec<WorkerSummary> {
        let of = |worker: &Worker| WorkerSummary {
            carried: worker.carried,
            killed_after_seconds: worker.killed_after_seconds,
        };
        self.workers.iter().map(of).collect()
    }

    /// Ends them as an operator would.
    ///
    /// # Errors
    /// When one does not end well.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.look().await;
        for worker in &mut self.workers {
            if let Some(running) = worker.running.take() {
                let ended = running.terminate().await?;
                anyhow::ensure!(ended.success(), "a worker ended with {ended}");
            }
        }
        Ok(())
    }
}

fn section(nats: &Nats) -> String {
    format!("[workers]\nurl = \"{}\"\n", nats.url())
}

/// A metric of whole numbers.
async fn metric(admin: SocketAddr, series: &str) -> Option<u64> {
    let (_, metrics) = walhook_testkit::admin::get(admin, "/metrics").await.ok()?;
    let metrics = walhook_testkit::admin::without_pipeline(&metrics);
    let line = metrics.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}
