//! The first half: nothing is owed, and the slots have read everything.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::CARRIED;
use crate::config::Config;
use crate::control::holder::refuse_while_active;
use crate::control::{Databases, Failure};
use crate::server::prepared;
use crate::server::range::{Batch, Range};
use walhook_core::event::Item;
use walhook_core::halt;
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::{REPLAY_JOB, StateStore};

const NAME: &str = "walhook upgrade";

/// Between two looks whether the server has flushed.
const POLL: Duration = Duration::from_millis(20);

/// What was done on the old server.
#[derive(Debug, Serialize)]
pub(crate) struct PreparedView {
    /// It.
    pub(crate) prepared: Prepared,
}

/// What was found, and what comes next.
#[derive(Debug, Serialize)]
pub(crate) struct Prepared {
    /// Where both slots stand: nothing is owed before.
    pub(crate) lsn: String,
    /// As `server_version_num` has it.
    pub(crate) server_version: i32,
    /// Whether pg_upgrade takes the slots along.
    pub(crate) slots_carried: bool,
    /// Deliveries that wait in the state tables, which go along.
    pub(crate) deferred: i64,
    /// Dead letters, likewise.
    pub(crate) dead_letters: i64,
    /// Open gaps: what of them a replay could send, it cannot after the upgrade.
    pub(crate) open_gaps: usize,
    /// The other logical slots of the cluster, at which pg_upgrade looks too.
    pub(crate) other_slots: Vec<String>,
    /// What is to be done next, in this order.
    pub(crate) next: Vec<String>,
    /// The two slots.
    #[serde(skip)]
    pub(crate) slots: [String; 2],
}

/// Sees that nothing is owed, reading for at most `wait` what the slot has not acknowledged yet, and moves the
/// slots to the end of the WAL.
///
/// # Errors
/// When something is owed, the slot is in use, or a database does not answer.
pub(crate) async fn prepare(config: &Config, wait: Duration) -> Result<PreparedView, Failure> {
    let name = &config.source.slot;
    let info = Conninfo::parse(&config.source.url).context("source.url")?;
    let client = Connection::open(&config.source.url, NAME).await.context("source.url")?;
    refuse_while_active(Databases::of(config), &client).await?;
    let mut state = Databases::of(config).open_state().await?;
    halt::check_source(&source::identity(&client, &info).await?, &state.source_identity().await?)?;
    let epoch = state.current_epoch().await?;
    let slot = slot::read(&client, name).await.map_err(anyhow::Error::from)?;
    let from = prepared::checkpoint(&state, &client, name, slot.as_ref()).await?;
    halt::check_slot(name, slot.as_ref().map(Slot::state).as_ref(), from)?;
    let publication = &config.source.publication;
    if source::publication(&client, publication).await?.is_none() {
        return Err(
            anyhow!("the publication {publication} does not exist; see `walhook check`").into()
        );
    }
    let jobs = state.unfinished_jobs().await?;
    if let Some(replay) = jobs.iter().find(|job| job.kind == REPLAY_JOB) {
        return Err(anyhow!(
            "replay {} has not ended, and its WAL does not go along: let it end, or `walhook replay cancel {}`",
            replay.id,
            replay.id
        )
        .into());
    }
    let version = source::server_version(&client).await?;
    // First, for the slots are to be moved behind it. It stands where it is when this is run again, so that
    // several pipelines of one database can all be brought to the end of the WAL.
    state.prepare_upgrade(from, version).await?;
    let end = flushed(&client).await?;
    let verified = tokio::time::timeout(wait, nothing_owed(config, name, from, end)).await;
    let verified = verified.unwrap_or_else(|_| {
        Err(anyhow!("the WAL up to {end} was not read in time; try longer with --wait 1h"))
    });
    if let Err(error) = verified {
        // What would seem to say that all is well goes again.
        if from == state.frontier().await? {
            state.forget_prepared().await?;
        }
        return Err(error.into());
    }
    if state.current_epoch().await? != epoch {
        return Err(anyhow!("an instance has led meanwhile; stop it, and prepare again").into());
    }
    let stored = state.frontier().await?;
    move_slots(&client, name, end).await?;
    let prepared = report(config, &client, &state, end.max(stored), version).await?;
    Ok(PreparedView { prepared })
}

/// The end of the WAL, once that is on disk: a slot cannot stand behind it.
async fn flushed(client: &Connection) -> Result<Lsn> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let end = slot::wal_end(client).await?;
    loop {
        let flushed = slot::wal_flushed(client).await?;
        if flushed >= end {
            return Ok(flushed);
        }
        // The end may lie behind a record that nobody waits for: what is committed is flushed.
        if Instant::now() >= deadline {
            return Ok(flushed);
        }
        sleep(POLL).await;
    }
}

/// Reads what lies between the checkpoint and `to` as the rules see it. Nothing may be in it.
async fn nothing_owed(config: &Config, name: &str, from: Lsn, to: Lsn) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    let client = Connection::open(&config.source.url, NAME).await.context("source.url")?;
    let range = Range::open_copy(config, client, name, from, to, "upgrade").await?;
    let (out, mut batches) = mpsc::channel::<Batch>(2);
    let count = async {
        let (mut owed, mut first) = (0_u64, None);
        while let Some(batch) = batches.recv().await {
            for item in &batch.items {
                match item {
                    Item::Event(event) => {
                        owed += 1;
                        first.get_or_insert(event.position.commit_lsn());
                    }
                    Item::Unroutable(change) => {
                        owed += 1;
                        first.get_or_insert(change.event.position.commit_lsn());
                    }
                    Item::Begin { .. }
                    | Item::Commit { .. }
                    | Item::Pause
                    | Item::Resume { .. }
                    | Item::Progress { .. }
                    | Item::Invalidate(_) => {}
                }
            }
        }
        (owed, first)
    };
    let (read, (owed, first)) = tokio::join!(range.read(out), count);
    read?;
    if let Some(first) = first {
        bail!(
            "{owed} changes that rules cover were committed after the checkpoint {from} and are not \
             known to be delivered, the first at {first}. Stop what writes to the published tables, let `walhook run` \
             deliver them until `walhook checkpoint show` is past that, stop it, and prepare again"
        );
    }
    Ok(())
}

/// Moves both slots to `end`, ours last: where both stand at one place, all was done.
async fn move_slots(client: &Connection, name: &str, end: Lsn) -> Result<()> {
    let anchor_name = anchor::name(name);
    let found = anchor::read(client, name).await?;
    if found.as_ref().is_some_and(|found| !found.is_ours()) {
        bail!("the slot {anchor_name} is another program's; drop or rename it first");
    }
    // pg_upgrade refuses while there is a slot that cannot be read.
    let is_useless = |anchor: &Slot| anchor.is_lost() || anchor.confirmed_flush.is_none();
    let useless = found.as_ref().is_some_and(is_useless);
    if useless {
        let dropped = anchor::drop(client, name).await;
        dropped.with_context(|| format!("cannot drop the slot {anchor_name}, which is lost"))?;
    }
    if useless || found.is_none() {
        let made = anchor::create(client, name).await;
        made.with_context(|| format!("cannot create the slot {anchor_name}; see `walhook check`"))?;
    }
    for slot in [&anchor_name, name] {
        let moved = slot::advance(client, slot, end).await;
        moved.with_context(|| format!("cannot advance the slot {slot}"))?;
    }
    Ok(())
}

async fn report(
    config: &Config,
    client: &Connection,
    state: &StateStore,
    lsn: Lsn,
    version: i32,
) -> Result<Prepared, Failure> {
    let overview = state.overview().await?;
    let other_slots = slot::other_logical(client, &config.source.slot).await;
    let other_slots = other_slots.map_err(anyhow::Error::from)?;
    let slots_carried = version >= CARRIED;
    let mut next = vec![];
    if slots_carried {
        next.push(
            "stop the server now: what is committed from here on, by autovacuum too, makes pg_upgrade say \
             that a slot has not consumed all WAL. Then start the server again, `walhook upgrade prepare`"
                .to_owned(),
        );
        next.push(format!(
            "pg_upgrade, to a cluster with wal_level = logical and max_replication_slots = {} or more",
            other_slots.len() + 3
        ));
    } else {
        next.push(
            "stop the server: from this version pg_upgrade takes no slots along, so what is committed \
             from here on is not sent"
                .to_owned(),
        );
        next.push("pg_upgrade, to a cluster with wal_level = logical".to_owned());
    }
    next.push("start the new server, keep writers out, `walhook upgrade finish`".to_owned());
    next.push("`walhook run`, then let the writers in".to_owned());
    Ok(Prepared {
        lsn: lsn.to_string(),
        server_version: version,
        slots_carried,
        deferred: overview.deferred,
        dead_letters: overview.dead_letters.iter().map(|(_, n)| n).sum(),
        open_gaps: overview.gaps.len(),
        other_slots,
        next,
        slots: [config.source.slot.clone(), anchor::name(&config.source.slot)],
    })
}
