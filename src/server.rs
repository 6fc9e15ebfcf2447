//! The roles of a process, one at a time: it stands by, or it leads (`pipeline`).
//!
//! One process leads at a time: the one that holds the slot. The others stand by here until the slot
//! is free. A leader goes on through a lost connection; when another has led meanwhile (the epoch has
//! changed) it forgets all it has in memory and stands by again.

pub mod admin;
mod backoff;
mod coverage;
mod deliveries;
mod dispatch;
mod error;
pub mod health;
mod held;
mod jobs;
mod known;
pub(crate) mod labels;
mod leadership;
pub mod log;
mod lookups;
mod maintenance;
pub mod metrics;
mod notify;
mod observe;
mod open_transactions;
mod pace;
mod pipeline;
pub(crate) mod prepared;
pub(crate) mod published;
pub(crate) mod range;
mod reader;
pub mod record;
mod refill;
mod replay;
mod replay_window;
mod responder;
mod rulebook;
pub(crate) mod sessions;
mod settings;
pub mod spool;
mod stop;
mod tasks;
pub mod trouble;
pub mod work;
#[cfg(feature = "workers")]
pub(crate) mod workers;
#[cfg(not(feature = "workers"))]
#[path = "server/without_workers.rs"]
mod workers;
mod writer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, DeliveryMode};
use crate::server::health::{Role, Teller};
use crate::server::metrics::Metrics;
use known::Known;
use leadership::{Attempt, become_leader};
use pipeline::{Ways, lead};
use record::Recording;
use sessions::{LEASE, open_state};
pub use stop::{Fatal, Stop, Unfit};
use walhook_core::halt::Halt;
use walhook_http::sender::Sender;
use walhook_postgres::pg::Conninfo;
#[cfg(feature = "workers")]
pub use workers::run_worker;

/// Event types that the first line names.
const TYPES_SAID: usize = 20;

/// Runs until `shutdown`: stands by while another instance leads, leads when the slot is free.
///
/// `shutdown` drains: no new request is sent, those in flight may end, their outcomes are stored.
/// `serves`: whether it sends for the leader while it stands by. `recording`: where what comes in is written.
///
/// # Errors
/// [`Stop`], except [`Stop::Fenced`] and [`Stop::WentBack`], which lead back to standing by.
pub async fn run(
    config: Config,
    serves: bool,
    shutdown: CancellationToken,
    recording: Option<&Recording>,
) -> Result<(), Stop> {
    let types = config.events.iter().map(|rule| rule.event_type.as_str());
    let metrics = Arc::new(Metrics::new(&config.source.slot, types).map_err(Fatal::from)?);
    let (tell, watched) = Teller::new(&config.source.slot);
    let mut server = JoinSet::new();
    let listener = admin::bind(config.admin.listen).await?;
    say_who_starts(&config, listener.local_addr().ok());
    for doubt in walhook_rules::rule::doubts(config.rules()) {
        tracing::warn!("{doubt}");
    }
    let closed = CancellationToken::new();
    let work = tell.work();
    server.spawn(admin::serve(listener, Arc::clone(&metrics), watched, work, closed.clone()));
    let known = Known::default();
    let result =
        stand_by_and_lead(&config, serves, &metrics, &tell, &shutdown, recording, &known).await;
    if let Err(Stop::Halted(halt)) = &result {
        tell.set_role(Role::Halted(halt.to_string()));
        store_halt(&config, &known, halt).await;
    }
    closed.cancel();
    while server.join_next().await.is_some() {}
    result
}

/// The first line: what runs here, and on what.
fn say_who_starts(config: &Config, admin: Option<SocketAddr>) {
    let mut types: Vec<&str> = config.events.iter().map(|rule| rule.event_type.as_str()).collect();
    types.sort_unstable();
    types.dedup();
    let more = types.len().saturating_sub(TYPES_SAID);
    types.truncate(TYPES_SAID);
    let mut types = types.join(", ");
    if more > 0 {
        types.push_str(&format!(" and {more} more"));
    }
    let source = Conninfo::parse(&config.source.url).ok();
    let source = source.as_ref();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        admin = %admin.unwrap_or(config.admin.listen),
        rules = config.events.len(),
        types,
        role = source.map_or("unknown", Conninfo::user),
        database = source.map_or("unknown", Conninfo::database),
        slot = %config.source.slot,
        "walhook starts"
    );
}

async fn stand_by_and_lead(
    config: &Config,
    serves: bool,
    metrics: &Arc<Metrics>,
    tell: &Teller,
    shutdown: &CancellationToken,
    recording: Option<&Recording>,
    known: &Known,
) -> Result<(), Stop> {
    let sender = match config.delivery.mode {
        DeliveryMode::Live => Sender::Live(Arc::new(config.transport().map_err(Unfit::Transport)?)),
        DeliveryMode::Log => Sender::Log,
    };
    if !sender.is_live() {
        tracing::warn!(
            "delivery.mode is \"log\": NOTHING IS SENT; each delivery is logged instead, and the checkpoint \
             passes it as if it had been delivered"
        );
    }
    #[cfg(feature = "workers")]
    let link = workers::link(config, shutdown).await?;
    #[cfg(feature = "workers")]
    let mut standby = link
        .as_ref()
        .filter(|_| serves)
        .and_then(|link| workers::Standby::new(config, link, &sender, metrics, tell, shutdown));
    #[cfg(not(feature = "workers"))]
    let _nothing_is_served = serves;
    let mut attempt = Attempt::first(config, known.clone());
    let ended = loop {
        let stands_by = || {
            #[cfg(feature = "workers")]
            if let Some(standby) = &mut standby {
                standby.serve();
            }
        };
        let leader = become_leader(config, tell, shutdown, &mut attempt, stands_by).await;
        #[cfg(feature = "workers")]
        if let Some(standby) = &mut standby {
            standby.stop();
        }
        let leader = match leader {
            Ok(Some(leader)) => leader,
            Ok(None) => break Ok(()),
            Err(stop) => break Err(stop),
        };
        tracing::info!(
            epoch = leader.epoch.0, frontier = %leader.start.frontier, slot = %config.source.slot,
            "leading: streaming from the slot"
        );
        tell.set_role(Role::Leader);
        metrics.set_leader(true);
        let ways = Ways {
            sender: sender.clone(),
            #[cfg(feature = "workers")]
            link: link.clone(),
        };
        let ended = lead(config, leader, ways, metrics, tell, shutdown, recording).await;
        metrics.set_leader(false);
        match ended {
            Err(Stop::Fenced) => tracing::warn!("another instance has taken over; standing by"),
            Err(stop @ Stop::WentBack) => {
                tracing::error!(problem = %stop, "leading anew, from what they hold");
            }
            Err(stop @ Stop::NotReadBack(_)) => {
                tracing::error!(problem = %stop, "leading anew, from the checkpoint and without streaming");
                attempt.streams = false;
            }
            ended => break ended,
        }
        tell.set_role(Role::Standby);
    };
    #[cfg(feature = "workers")]
    if let Some(standby) = standby {
        standby.ended().await;
    }
    ended
}

/// To store why we halt takes no longer, also where another session has locked the table: the process ends then, and the
/// log's last line says why.
const HALT_STORED_WITHIN: Duration = Duration::from_secs(5);

/// Stores why we halt, where `walhook status` shows it. The log has it in any case.
async fn store_halt(config: &Config, known: &Known, halt: &Halt) {
    let stored = async {
        let mut store = open_state(config, &known.timelines, LEASE).await?;
        // What was received and not settled no table tells: the next start would go on.
        if let Some((from, at)) = known.last_received().filter(|_| halt.is_of_lost_wal()) {
            store.note_reached(from, at).await?;
        }
        store.store_halt(&halt.to_string()).await
    };
    match timeout(HALT_STORED_WITHIN, stored).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot store the reason of the halt"),
        Err(_) => tracing::warn!(
            within = ?HALT_STORED_WITHIN,
            "cannot store the reason of the halt: the state database does not answer"
        ),
    }
}
