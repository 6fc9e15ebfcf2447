//! The demo after its summary: database, receivers and pipeline run on, for whoever wants to look around.

use anyhow::{Context, Result};

use super::{Demo, Summary};
use crate::control::gaps::quoted;
use crate::demo::view::View;

/// What runs on, until it is dropped.
#[expect(missing_debug_implementations, reason = "processes and sockets have nothing to show")]
pub struct Kept {
    demo: Demo,
    /// Commands to try, each with what it shows.
    pub commands: Vec<(String, &'static str)>,
}

impl Demo {
    /// Starts the pipeline again, which was stopped for the summary.
    pub(super) async fn keep(mut self, view: &mut View) -> Result<Kept> {
        self.pipeline.start()?;
        self.wait_until_leading().await?;
        view.say("everything runs on, without traffic")?;
        let commands = self.commands().await?;
        Ok(Kept { demo: self, commands })
    }

    async fn commands(&self) -> Result<Vec<(String, &'static str)>> {
        let program = std::env::args().next().unwrap_or_else(|| "walhook".to_owned());
        let program = quoted(&program);
        let config = quoted(&self.pipeline.config().to_string_lossy());
        let walhook = |command: &str| format!("{program} --config {config} {command}");
        let url = quoted(self.url.expose());
        let account = "(SELECT min(account_id) FROM webhooks)";
        let change = format!(
            "psql {url} -c \"INSERT INTO subscribers (account_id, email) VALUES ({account}, 'you@example.com')\""
        );
        Ok(vec![
            (walhook("status"), "who leads, what waits and for what"),
            (walhook("endpoints list"), "how each endpoint stands"),
            (
                walhook("events list --outcome failed --limit 5"),
                "what failed last, with the answers",
            ),
            (change, "a commit of your own, which becomes an event"),
            (walhook("replay start --from oldest --dry-run"), "what could be sent again"),
        ])
    }
}

impl Kept {
    /// Waits until something of it ends by itself.
    pub async fn failed(&mut self) -> anyhow::Error {
        let Demo { pipeline, receivers, .. } = &mut self.demo;
        tokio::select! {
            status = pipeline.exited() => match status.context("the pipeline is gone") {
                Ok(status) => self.demo.died(status),
                Err(error) => error,
            },
            error = receivers.failed() => error,
        }
    }
}

/// How a demo ended, and what of it runs on.
#[expect(missing_debug_implementations, reason = "as of what it holds")]
pub struct Ended {
    /// What it came to.
    pub summary: Summary,
    /// None, unless that was asked for.
    pub kept: Option<Kept>,
}
