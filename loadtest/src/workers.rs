//! Processes that send for a leader, over a nats-server of their own.

use std::time::Duration;

use anyhow::{Result, ensure};
use walhook_testkit::nats::Nats;
use walhook_testkit::program::{Program, Running};

use crate::program;
use crate::world::World;

/// For workers to join.
const PATIENCE: Duration = Duration::from_secs(60);

/// Workers, and what they are reached over; killed when dropped.
#[derive(Debug)]
pub struct Workers {
    nats: Nats,
    /// Requests that each sends at once.
    slots: u32,
    env: Vec<(String, String)>,
    running: Vec<(Program, Running)>,
}

impl Workers {
    /// Starts the bus, and no worker yet. Each is to send so many requests at once.
    ///
    /// # Errors
    /// When no nats-server is found, or it does not start.
    pub async fn start(slots: u32) -> Result<Self> {
        // Only workers send: then the bus has to take the largest event.
        let nats = Nats::start("max_payload: 2MB").await?;
        Ok(Self { nats, slots, env: Vec::new(), running: Vec::new() })
    }

    /// What workers that are started from now on have in their environment.
    pub fn set_environment(&mut self, env: Vec<(String, String)>) {
        self.env = env;
    }

    /// The leader's section, for whom only workers send.
    #[must_use]
    pub fn section(&self) -> String {
        format!("[workers]\nurl = \"{}\"\nlocal = \"never\"\n", self.nats.url())
    }

    /// Starts workers until there are so many.
    ///
    /// # Errors
    /// When one does not start.
    pub async fn grow(&mut self, workers: usize) -> Result<()> {
        let started = self.running.len();
        for _ in started..workers {
            let (url, slots) = (self.nats.url(), self.slots);
            let mut worker = Program::new(program()?, |_| {
                // Nobody asks them, and of a hundred ports that were free one may be taken meanwhile.
                format!(
                    "[workers]\nurl = \"{url}\"\n[egress]\nallow = [\"127.0.0.0/8\"]\n\
                     [scheduler]\nfast_slots = {slots}\n[admin]\nlisten = \"127.0.0.1:0\"\n"
                )
            })?;
            worker.own_group = true;
            worker.env.clone_from(&self.env);
            let running = worker.spawn_role("worker")?;
            self.running.push((worker, running));
        }
        for (_, running) in self.running.iter().skip(started) {
            running.until_logged("walhook starts as a worker").await?;
        }
        Ok(())
    }

    /// Waits until the leader gives work to all of them.
    ///
    /// # Errors
    /// When it does not.
    pub async fn serve(&self, world: &World) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "a hundred")]
        let all = self.running.len() as f64;
        let serving = "walhook_workers{state=\"serving\"}";
        let serve = async || Ok(world.metrics().await?.get(serving) >= all);
        world.until("all workers serve", PATIENCE, serve).await?;
        Ok(())
    }

    /// Ends them, as a service manager does.
    ///
    /// # Errors
    /// When one does not end well.
    pub async fn stop(&mut self) -> Result<()> {
        for (_, running) in &self.running {
            running.signal("TERM")?;
        }
        for (_program, running) in self.running.drain(..) {
            let (ended, log) = running.ended_with_log().await?;
            ensure!(ended.success(), "a worker ended with {ended}:\n{log}");
        }
        Ok(())
    }
}
