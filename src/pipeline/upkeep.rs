//! The task that keeps the state tables small while this instance leads.

use std::convert::Infallible;
use std::time::Duration;

use super::open_state;
use crate::config::Config;
use crate::io::metrics::Metrics;
use crate::io::state::{StateError, StateStore};

/// How often. A round removes a thousand rows that are too old: many times what a day can add.
const EVERY: Duration = Duration::from_secs(5);

/// Measures and cleans, until it is dropped. What fails is tried again.
pub(super) async fn keep(config: &Config, epoch: i64, metrics: &Metrics) {
    // Apart from each other: to vacuum may take minutes, and sizes are wanted meanwhile.
    let measure = async {
        loop {
            report(measure(config, epoch, metrics).await);
            tokio::time::sleep(EVERY).await;
        }
    };
    let vacuum = async {
        loop {
            report(vacuum(config, epoch).await);
            tokio::time::sleep(EVERY).await;
        }
    };
    futures_util::join!(measure, vacuum);
}

fn report(ended: Result<Infallible, StateError>) {
    let Err(error) = ended;
    tracing::debug!(%error, "cannot keep the state tables");
}

/// Over and over, on the same session until something fails.
async fn measure(config: &Config, epoch: i64, metrics: &Metrics) -> Result<Infallible, StateError> {
    let mut store = open(config, epoch).await?;
    loop {
        let sizes = store.sizes().await?;
        metrics.state_bytes.set(i64::try_from(sizes.total_bytes).unwrap_or(i64::MAX));
        let removed = store.expire(config.state.retention).await?;
        if removed > 0 {
            tracing::info!(rows = removed, "removed what state.retention no longer keeps");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Likewise.
async fn vacuum(config: &Config, epoch: i64) -> Result<Infallible, StateError> {
    let store = open(config, epoch).await?;
    loop {
        let vacuumed = store.vacuum().await?;
        if !vacuumed.is_empty() {
            tracing::debug!(tables = vacuumed.join(", "), "vacuumed");
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn open(config: &Config, epoch: i64) -> Result<StateStore, StateError> {
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    Ok(store)
}
