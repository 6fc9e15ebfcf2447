//! What of `[workers]` does not fit.

#[cfg(feature = "workers")]
use std::time::Duration;

use super::{Problem, problem};
use crate::config::Workers;
#[cfg(feature = "workers")]
use walhook_bus::BusError;
#[cfg(feature = "workers")]
use walhook_fleet::subjects::Subjects;

/// A worker says how it is eight times a lease, and may be late on a busy machine.
#[cfg(feature = "workers")]
const LEAST_LEASE: Duration = Duration::from_secs(1);

/// For so long nobody knows what became of a worker's requests.
#[cfg(feature = "workers")]
const LONGEST_LEASE: Duration = Duration::from_secs(60);

#[cfg(not(feature = "workers"))]
pub(super) fn workers(_: &Workers) -> Result<(), Problem> {
    problem("workers", "needs a build with the feature `workers`, which this one is without")
}

#[cfg(feature = "workers")]
pub(super) fn workers(workers: &Workers) -> Result<(), Problem> {
    let Workers { url, subject, lease, insecure, user, password, nkey, creds, tls_ca, .. } =
        workers;
    let servers = walhook_bus::Servers::parse(url.iter().map(String::as_str))
        .or_else(|error| problem("workers.url", error.to_string()))?;
    let beyond = servers.beyond_loopback().filter(|_| !servers.tls() && !insecure);
    if let Some(server) = beyond {
        let problem_text = format!(
            "sends events in the clear to {server}; write tls://, or workers.insecure = true where \
             nobody else is on that network"
        );
        return problem("workers.url", problem_text);
    }
    if tls_ca.is_some() && !servers.tls() {
        return problem(
            "workers.tls_ca",
            "judges nothing without TLS; write tls:// in workers.url",
        );
    }
    if let Err(error) = Subjects::new(subject, "") {
        return problem("workers.subject", error.to_string());
    }
    if *lease < LEAST_LEASE {
        return problem(
            "workers.lease",
            format!("is below {LEAST_LEASE:?}: busy workers would be taken for lost"),
        );
    }
    if *lease > LONGEST_LEASE {
        return problem(
            "workers.lease",
            format!(
                "is above {LONGEST_LEASE:?}: for so long nobody would know what became of a lost worker's requests"
            ),
        );
    }
    match (user, password) {
        (Some(_), None) => return problem("workers.password", "is missing beside workers.user"),
        (None, Some(_)) => return problem("workers.user", "is missing beside workers.password"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let ways = [user.is_some(), nkey.is_some(), creds.is_some()];
    if ways.iter().filter(|way| **way).count() > 1 {
        let key = if creds.is_some() { "workers.creds" } else { "workers.nkey" };
        return problem(
            key,
            "is one of three ways to say who we are: user and password, nkey, or creds",
        );
    }
    match workers.credentials().verify() {
        Ok(()) => Ok(()),
        // Its text begins with the key, as a problem's does.
        Err(BusError::Credentials { key, what }) => {
            problem(&format!("workers.{key}"), format!("is not {what}"))
        }
        Err(error) => problem("workers", error.to_string()),
    }
}
