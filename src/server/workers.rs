//! Sending by workers: over the bus, which only a leader with `[workers]` and its workers use.
//!
//! ```text
//! leader: dispatcher ─► fleet ─► packers ─► bus ─► worker: serve ─► requests
//! ```

mod apart;
mod arrivals;
pub(super) mod lead;
mod looks;
mod pack;
pub(super) mod rows;
pub(super) mod serve;
mod troubles;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::admin;
use super::health::{Role, Teller};
use super::metrics::Metrics;
use super::settings::slots;
use super::stop::{Fatal, Stop, Unfit};
use crate::config::{Config, Egress, LocalSending, Memory, Scheduler, WorkerConfig, Workers};
use serve::{Serves, serve};
use walhook_bus::{Bus, BusEvent, Subscription};
use walhook_core::halt::SourceIdentity;
use walhook_core::redact::redact;
use walhook_fleet::BYTE_BUDGET;
use walhook_fleet::frame::{Digest, PipelineId};
use walhook_fleet::leader::{largest_data, max_payload_for};
use walhook_fleet::subjects::Subjects;
use walhook_http::sender::Sender;

/// The least that a worker may hold of requests, whatever its `memory.limit`: a large event and some others.
const BYTE_BUDGET_MIN: u64 = 2 << 20;

/// For the bus to say how large its messages may be.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bus, and the names of a pipeline's subjects on it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) bus: Bus,
    pub(super) subjects: Subjects,
}

impl Link {
    /// Connects in the background, as a process that the bus's operator sees under this name.
    pub(super) async fn open(workers: &Workers, pipeline: &str, name: &str) -> Result<Self, Stop> {
        let unfit = Unfit::Workers;
        let options = workers.bus(name).map_err(|error| unfit(format!("workers.url {error}")))?;
        let subjects = Subjects::new(&workers.subject, pipeline);
        let subjects = subjects.map_err(|error| unfit(format!("workers.subject {error}")))?;
        let bus = Bus::connect(&options).await.map_err(|error| unfit(error.to_string()))?;
        Ok(Self { bus, subjects })
    }
}

/// The leader's way to its workers, and a standby's to the leader; `None` without `[workers]`.
///
/// # Errors
/// [`Stop`]
pub(super) async fn link(
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<Option<Link>, Stop> {
    let Some(workers) = &config.workers else { return Ok(None) };
    let link = Link::open(workers, &config.source.slot, "walhook").await?;
    if workers.local == LocalSending::Never {
        shutdown.run_until_cancelled(refuse_small(config, &link)).await.transpose()?;
    }
    Ok(Some(link))
}

/// The largest event that a bus takes whose messages are at most so large, and the largest one that the rules allow,
/// in bytes.
pub(crate) fn bounds(config: &Config, max_payload: usize) -> (u64, u64) {
    (largest_data(u64::try_from(max_payload).unwrap_or(u64::MAX)), largest_event(config))
}

fn largest_event(config: &Config) -> u64 {
    config.events.iter().map(|rule| rule.max_bytes.0).max().unwrap_or_default()
}

/// What makes the bus take the largest event that the rules allow, and a request of so many bytes.
pub(crate) fn enlarge(largest_event: u64, request: u64) -> String {
    format!(
        "set max_payload = {} or more in the configuration of nats-server",
        max_payload_for(largest_event, request)
    )
}

/// Refuses a bus that cannot carry what only workers may send. Of one that is away nothing is known: should it turn
/// out too small, what is too large is deferred.
async fn refuse_small(config: &Config, link: &Link) -> Result<(), Stop> {
    let up = timeout(PATIENCE, link.bus.watch().next()).await;
    let Ok(Some(BusEvent::Up { max_payload })) = up else { return Ok(()) };
    let (takes, largest) = bounds(config, max_payload);
    if largest <= takes {
        return Ok(());
    }
    Err(Unfit::Workers(format!(
        "the bus takes events of {takes} bytes at most, and the rules allow {largest}, which nobody could send with \
         workers.local = \"never\"; {}, or lower max_bytes of the rules",
        enlarge(largest, 0)
    ))
    .into())
}

/// Hears a subject.
pub(super) async fn subscribe(link: &Link, subject: &str) -> Result<Subscription, Stop> {
    let subscribed = link.bus.subscribe(subject).await;
    Ok(subscribed.map_err(|error| Unfit::Workers(error.to_string()))?)
}

/// What tells the pipeline of this configuration at this source from all others: the same for each of its leaders.
pub(crate) fn pipeline_id(config: &Config, source: &SourceIdentity) -> PipelineId {
    let SourceIdentity { system_identifier, database, timeline: _, host: _ } = source;
    let mut hash = Sha256::new();
    hash.update(system_identifier.to_be_bytes());
    for text in [database, &config.source.slot, &config.state.schema] {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text);
    }
    let mut id = [0; 16];
    id.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    PipelineId(id)
}

/// Another pipeline was heard on the subjects of this one.
pub(crate) fn shared(subject: &str) -> String {
    format!("another pipeline uses the subject {subject} on this bus")
}

/// What to do about it.
pub(crate) const SHARED_FIX: &str =
    "give each pipeline its own workers.subject, at its leaders and its workers";

/// What stands for an `[egress]`: alike where the same requests may go the same way. A proxy's password is
/// no part of it.
pub(crate) fn egress_digest(egress: &Egress) -> Digest {
    let Egress { allow, deny, only_hosts, https_only, proxy } = egress;
    let sorted = |mut texts: Vec<String>| {
        texts.sort();
        texts.dedup();
        texts.join(" ")
    };
    let blocks = |blocks: &[ipnet::IpNet]| {
        sorted(blocks.iter().map(|block| block.trunc().to_string()).collect())
    };
    let hosts = sorted(only_hosts.iter().map(|host| String::from(host.clone())).collect());
    let proxy = proxy.as_ref().map_or(String::new(), |proxy| redact(proxy.expose()).into());
    let text = [blocks(allow), blocks(deny), hosts, https_only.to_string(), proxy].join("\n");
    Digest(Sha256::digest(text).into())
}

/// How many requests a process sends at once, and how many bytes of them it holds.
pub(super) fn capacity(scheduler: &Scheduler, memory: &Memory) -> ((u32, u32), u64) {
    let bytes = (memory.limit.0 / 16).clamp(BYTE_BUDGET_MIN, BYTE_BUDGET);
    (slots(scheduler), bytes)
}

/// Runs a worker until `shutdown`, and then until what it has begun has ended and the leader knows of it.
///
/// # Errors
/// [`Stop`]
pub async fn run_worker(config: WorkerConfig, shutdown: CancellationToken) -> Result<(), Stop> {
    let metrics = Arc::new(Metrics::new(config.pipeline(), []).map_err(Fatal::from)?);
    let (tell, watched) = Teller::new(config.pipeline());
    let listener = admin::bind(config.admin.listen).await?;
    let transport = Arc::new(config.transport().map_err(Unfit::Transport)?);
    let link = Link::open(&config.workers, config.pipeline(), "walhook worker").await?;
    let ((fast_slots, slow_slots), byte_budget) = capacity(&config.scheduler, &config.memory);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        admin = %listener.local_addr().unwrap_or(config.admin.listen),
        pipeline = config.pipeline(),
        bus = %config.workers.url.join(", "),
        fast_slots,
        slow_slots,
        "walhook starts as a worker"
    );
    let closed = CancellationToken::new();
    let mut server = JoinSet::new();
    let work = tell.work();
    server.spawn(admin::serve(listener, Arc::clone(&metrics), watched, work, closed.clone()));
    tell.set_role(Role::Worker);
    let serves = Serves {
        subject: config.workers.subject.clone(),
        link,
        transport,
        slots: (fast_slots, slow_slots),
        byte_budget,
        egress: egress_digest(&config.egress),
        metrics,
        tell,
    };
    let ended = serve(serves, shutdown).await;
    closed.cancel();
    while server.join_next().await.is_some() {}
    ended
}

/// A standby that serves the leader meanwhile: instances that are all alike use all their cores.
pub(super) struct Standby {
    serves: Serves,
    shutdown: CancellationToken,
    /// Of what serves now, where something does.
    drain: Option<CancellationToken>,
    tasks: JoinSet<Result<(), Stop>>,
}

impl Standby {
    /// One that serves nobody yet. `shutdown` drains.
    pub(super) fn new(
        config: &Config,
        link: &Link,
        sender: &Sender,
        metrics: &Arc<Metrics>,
        tell: &Teller,
        shutdown: &CancellationToken,
    ) -> Option<Self> {
        let Sender::Live(transport) = sender else { return None };
        let (slots, byte_budget) = capacity(&config.scheduler, &config.memory);
        let Some(workers) = &config.workers else { return None };
        let serves = Serves {
            subject: workers.subject.clone(),
            link: link.clone(),
            transport: Arc::clone(transport),
            slots,
            byte_budget,
            egress: egress_digest(&config.egress),
            metrics: Arc::clone(metrics),
            tell: tell.clone(),
        };
        Some(Self { serves, shutdown: shutdown.clone(), drain: None, tasks: JoinSet::new() })
    }

    /// Serves from now on, if it does not yet.
    pub(super) fn serve(&mut self) {
        if self.drain.is_some() {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        let drain = self.shutdown.child_token();
        self.tasks.spawn(serve(self.serves.clone(), drain.clone()));
        self.drain = Some(drain);
    }

    /// Takes no more, for this instance leads now. What it has begun ends meanwhile.
    pub(super) fn stop(&mut self) {
        self.drain.take().inspect(CancellationToken::cancel);
    }

    /// Waits until all that it has begun has ended.
    pub(super) async fn ended(mut self) {
        self.stop();
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests;
