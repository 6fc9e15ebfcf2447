//! The task that keeps the state tables small while this instance leads.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::open_state;
use crate::config::Config;
use crate::server::health::Teller;
use crate::server::metrics::Metrics;
use crate::server::trouble::Part;
use walhook_core::room::{Measured, Room};
use walhook_state::{StateError, StateStore};

/// How often the tables are measured: they exceed `state.max_size` by what comes in between.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How often rows that are too old are removed, a thousand in each round: many times what a day can
/// add. And how often tables are looked at for dead rows.
const CLEAN_EVERY: Duration = Duration::from_secs(5);

/// After a failure: it is logged, and a new session opened.
const PAUSE: Duration = Duration::from_secs(5);

/// Measures and cleans, until it is dropped. What fails is tried again. Tells the sizes to `measured`.
pub(super) async fn keep(
    config: &Config,
    epoch: i64,
    metrics: &Metrics,
    tell: &Teller,
    measured: &watch::Sender<Measured>,
) {
    // Apart from each other: to vacuum may take minutes, and sizes are wanted meanwhile.
    let measure = async {
        loop {
            report(tell, Part::Sizes, measure(config, epoch, metrics, tell, measured).await);
            tokio::time::sleep(PAUSE).await;
        }
    };
    let expire = async {
        loop {
            report(tell, Part::Retention, expire(config, epoch, tell).await);
            tokio::time::sleep(PAUSE).await;
        }
    };
    let vacuum = async {
        loop {
            report(tell, Part::Vacuum, vacuum(config, epoch, tell, measured).await);
            tokio::time::sleep(PAUSE).await;
        }
    };
    futures_util::join!(measure, expire, vacuum);
}

fn report(tell: &Teller, part: Part, ended: Result<Infallible, StateError>) {
    let Err(error) = ended;
    tell.fails(part, Instant::now(), &error);
}

/// Over and over, on the same session until something fails.
async fn measure(
    config: &Config,
    epoch: i64,
    metrics: &Metrics,
    tell: &Teller,
    measured: &watch::Sender<Measured>,
) -> Result<Infallible, StateError> {
    let store = open(config, epoch).await?;
    // Where the session before was lost, the server may have crashed.
    store.count_rows().await?;
    loop {
        let size = store.sizes().await?;
        metrics.state_bytes.set(i64::try_from(size.total_bytes).unwrap_or(i64::MAX));
        let holders = match size.room(config.state.max_size.0) {
            Room::None | Room::Little => store.holders().await?,
            Room::Enough => Vec::new(),
        };
        measured.send_replace(Measured { size, holders });
        tell.works(Part::Sizes);
        tokio::time::sleep(MEASURE_EVERY).await;
    }
}

/// Likewise.
async fn expire(config: &Config, epoch: i64, tell: &Teller) -> Result<Infallible, StateError> {
    let mut store = open(config, epoch).await?;
    loop {
        let removed = store.expire(config.state.retention).await?;
        if removed > 0 {
            tracing::info!(rows = removed, "removed what state.retention no longer keeps");
        }
        tell.works(Part::Retention);
        tokio::time::sleep(CLEAN_EVERY).await;
    }
}

/// Likewise.
async fn vacuum(
    config: &Config,
    epoch: i64,
    tell: &Teller,
    measured: &watch::Sender<Measured>,
) -> Result<Infallible, StateError> {
    let store = open(config, epoch).await?;
    loop {
        // Near the bound the room of removed rows is wanted soon.
        let is_near = measured.borrow().size.is_near(config.state.max_size.0);
        let vacuumed = store.vacuum(is_near).await?;
        if !vacuumed.is_empty() {
            tracing::debug!(tables = vacuumed.join(", "), "vacuumed");
        }
        tell.works(Part::Vacuum);
        tokio::time::sleep(if is_near { MEASURE_EVERY } else { CLEAN_EVERY }).await;
    }
}

async fn open(config: &Config, epoch: i64) -> Result<StateStore, StateError> {
    let mut store = open_state(config).await?;
    store.write_as(epoch);
    Ok(store)
}
