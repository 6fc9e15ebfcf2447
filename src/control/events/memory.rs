//! What of an event is in the leader's memory, as it says itself.

use url::Url;

use super::super::instance::Instance;
use super::super::{Databases, leader_runs};
use crate::config::Config;
use crate::server::work::{EventWork, PendingWork};
use walhook_core::position::EventId;

/// Its deliveries there; `Err`: why that is unknown.
///
/// # Errors
/// When the address is none.
pub(super) async fn read(
    config: &Config,
    id: EventId,
    admin: Option<Url>,
) -> anyhow::Result<Result<Vec<PendingWork>, String>> {
    let asked = match admin {
        Some(url) => Instance::at(url),
        None => Instance::here(&config.admin)?,
    };
    let address = asked.address();
    let why = match asked.get(&format!("/events/{id}")).await {
        Ok(answer) if answer.is_ok => match serde_json::from_str::<EventWork>(&answer.text) {
            Ok(work) if work.pipeline == config.source.slot => return Ok(Ok(work.pending)),
            Ok(work) => format!("at {address} answers an instance of pipeline {}", work.pipeline),
            Err(error) => format!("what the instance at {address} says cannot be read: {error}"),
        },
        Ok(answer) => format!("the instance at {address} says: {}", answer.text),
        Err(error) => format!("no admin server answers at {address}: {error:#}"),
    };
    // Where nobody leads, nothing is in anyone's memory.
    match leader_runs(Databases::of(config)).await {
        Ok(false) => Ok(Ok(Vec::new())),
        Ok(true) | Err(_) => {
            Ok(Err(format!("{why}; name the leader's admin server with --admin http://HOST:PORT")))
        }
    }
}
