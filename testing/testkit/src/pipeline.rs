//! A program of which one `run` runs at a time, for whoever starts and stops it again and again.

use std::ops::Deref;
use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};

use crate::program::{Program, Running};

/// See the module's documentation. The process is killed when this is dropped.
#[derive(Debug)]
pub struct Pipeline {
    running: Option<Running>,
    last_log: String,
    program: Program,
}

impl Deref for Pipeline {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl Pipeline {
    /// Starts nothing yet.
    #[must_use]
    pub fn new(program: Program) -> Self {
        Self { running: None, last_log: String::new(), program }
    }

    /// `walhook run`
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.running = Some(self.program.spawn()?);
        Ok(())
    }

    /// The process that `start` made, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().and_then(|running| running.pid().ok())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.take().context("the pipeline is not running")?.kill().await
    }

    /// Waits until it ends by itself. Cancel-safe. Never returns while it is not running.
    ///
    /// # Errors
    /// When the operating system cannot say how it ended.
    pub async fn exited(&mut self) -> Result<ExitStatus> {
        match &mut self.running {
            Some(running) => running.wait().await,
            None => std::future::pending().await,
        }
    }

    /// SIGTERM, as a service manager sends it, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time, or not well.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(running) = self.take() else { return Ok(()) };
        // Of one that has ended already, the status is wanted all the same.
        let _ = running.signal("TERM");
        let (status, log) = running.ended_with_log().await?;
        ensure!(status.success(), "walhook run stopped with {status}\n{log}");
        Ok(())
    }

    /// The last lines of what it printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.running.as_ref().map_or_else(|| self.last_log.clone(), Running::log_tail)
    }

    fn take(&mut self) -> Option<Running> {
        self.last_log = self.log_tail();
        self.running.take()
    }
}
