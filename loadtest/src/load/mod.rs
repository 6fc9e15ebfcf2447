//! Load tests by scenario: what small accounts feel of something that disturbs.
//!
//! ```text
//!  users ── commit at times drawn beforehand ──► PostgreSQL ──► walhook ──► quick receiver ──► users
//!  background accounts ──────────────────────►                        └──► the disturbance's receivers
//!  the disturbance (whales, dead endpoints …) ►
//! ```
//!
//! Some small accounts are watched ([`users`]). Each commits at times that were drawn before the test from a seed,
//! whatever became of its webhooks so far (an open loop), and what is measured is the time from when a commit was
//! due until its webhook was answered. All else is driven beside them. A run is calm, then disturbed, then the
//! disturbance ebbs away, which is watched and not counted, then it is calm again: disturbed and calm are compared
//! within one run, so that a slow or busy machine slows both.
//!
//! goose's users are these accounts where `make loadtest` runs the whole; a plain task drives each in the tests
//! ([`drive`]). Scenarios that differ by numbers alone are lines of one table ([`scenario`]).

use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;

mod disturbance;
mod explained;
pub mod figures;
pub mod outcome;
mod page;
mod run;
pub mod scenario;
mod stage;
mod tables;
#[cfg(test)]
mod tests;
pub mod users;
mod watch;
mod writing;

pub use run::run;

use users::User;

/// What can be chosen for each scenario.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a disturbance lasts that has no end of its own. The calm before and behind it is half as long each.
    pub disturbed: Duration,
    /// How long the soak takes.
    pub soak: Duration,
    /// Rows, accounts and endpoints are multiplied by it.
    pub scale: f64,
    /// Of the times of commits.
    pub seed: u64,
}

impl Options {
    /// A number of the table at this run's scale.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a count of rows or accounts")]
    #[expect(clippy::cast_precision_loss, reason = "likewise")]
    pub fn scaled(&self, count: i64) -> i64 {
        ((count as f64 * self.scale).round() as i64).max(1)
    }
}

/// Drives users by a plain task each, until they end.
///
/// # Errors
/// When one cannot go on.
pub async fn drive(users: Vec<User>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for mut user in users {
        tasks.spawn(async move { while user.next().await.is_some() {} });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
