//! Opening the source: the stream, and a SQL session to the same server, which must be the one that we know.
//!
//! Every opening, the first and each after a lost connection, makes the same checks, because
//! START_REPLICATION makes none: it clamps a position that the slot has passed, without a word.

use std::time::Duration;

use super::OpenError;
use crate::config::Config;
use crate::server::known::{self, Known};
use crate::server::sessions::{LEASE, SENTINEL, STREAM, open_source, open_state};
use crate::server::{Stop, published};
use walhook_core::halt::{self, SourceIdentity};
use walhook_core::id::Epoch;
use walhook_core::lsn::Lsn;
use walhook_postgres::error::SourceError;
use walhook_postgres::pg::{Conninfo, DatabaseUrl};
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source;
use walhook_postgres::sql::{ConnectError, Connection};
use walhook_postgres::timelines::Primary;
use walhook_postgres::wire::{self, Replication, WireError};
use walhook_state::StateStore;

/// What is told when the slot that was ours is not free.
pub(in crate::server) const IN_USE: &str = "the slot is in use by another session";

/// And what to do about it.
pub(in crate::server) const IN_USE_FIX: &str = "find out in pg_stat_replication whose it is, and end that where it is no walhook; what is dead the server \
     frees after wal_sender_timeout";

/// An open source: the stream, and a SQL session to the same server.
#[derive(Debug)]
pub(in crate::server) struct Session {
    pub(in crate::server) stream: wire::Stream,
    /// Ends at once when the server shuts down, also while nobody reads the stream.
    pub(in crate::server) sentinel: Connection,
    /// The server.
    pub(in crate::server) primary: Primary,
    /// The session's `wal_sender_timeout`.
    pub(in crate::server) sender_timeout: Duration,
    /// Set when this is a standby that was promoted since we last looked, or a cluster that was restored.
    pub(super) promoted: Option<Promoted>,
}

/// A later timeline than the one that is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promoted {
    /// Which.
    timeline: u32,
    /// Where it left the stored one.
    left: Lsn,
}

/// How far a leader is.
#[derive(Debug, Clone, Copy)]
pub(in crate::server) struct Place {
    /// It has received everything up to here.
    pub(in crate::server) at: Lsn,
    /// It has acknowledged everything up to here, and stored that before.
    pub(in crate::server) flushed: Lsn,
}

/// Opens the source again for a leader that is so far; where it `streams`, large transactions come while they are open.
pub(in crate::server) async fn reopen(
    config: &Config,
    known: &Known,
    epoch: Epoch,
    Place { at, flushed }: Place,
    streams: bool,
) -> Result<Session, OpenError> {
    let mut store = open_state(config, &known.timelines, LEASE).await?;
    store.write_as(epoch);
    let expected = store.source_identity().await?;
    // Without the checkpoint, which somebody may have locked: a halt is found all the same.
    let session = open(config, known, &expected, (at, at), streams).await?;
    // The slot was free for a while: has another led meanwhile? Asked first, for that one has moved the
    // slot on, which would look like a gap.
    if store.current_epoch().await? != epoch {
        return Err(OpenError::Stop(Stop::Fenced));
    }
    // Before anything is acknowledged to a slot that may have gone back with the tables.
    if store.frontier().await? < flushed {
        return Err(OpenError::Stop(Stop::WentBack));
    }
    let read = at.max(store.reached().await?);
    store_promotion(&mut store, session.promoted, read).await?;
    check_slot(config, &session.sentinel, at, read).await?;
    let publication = source::publication(&session.sentinel, &config.source.publication).await;
    let publication = publication.map_err(|error| OpenError::passing(SourceError::from(error)))?;
    let published = published::check(config, &session.sentinel, publication.as_ref()).await;
    published.map_err(OpenError::passing)??;
    Ok(session)
}

/// The positions are those of the new primary from now on, also where its slot lacks some. Up to `read` anything was
/// settled or received: by now that is known for good, for nobody else stores any more.
pub(super) async fn store_promotion(
    store: &mut StateStore,
    promoted: Option<Promoted>,
    read: Lsn,
) -> Result<(), OpenError> {
    let Some(Promoted { timeline, left }) = promoted else { return Ok(()) };
    halt::check_left(timeline, left, read)?;
    store.set_timeline(timeline).await?;
    tracing::warn!(
        timeline,
        "going on from a standby that was promoted: it has all that was received"
    );
    Ok(())
}

/// Whether the slot that is ours now sends everything from `at` on, and the WAL reaches to what was `read` of it. Returns
/// the end of the WAL.
pub(super) async fn check_slot(
    config: &Config,
    sentinel: &Connection,
    at: Lsn,
    read: Lsn,
) -> Result<Lsn, OpenError> {
    let name = &config.source.slot;
    let slot = slot::read(sentinel, name).await?;
    halt::check_slot(name, slot.as_ref().map(Slot::state).as_ref(), at)?;
    let wal_end = slot.map_or(read, |slot| slot.wal_end);
    halt::check_wal_end(wal_end, read)?;
    Ok(wal_end)
}

/// Where the server itself answers, and no connection pooler.
pub(super) fn direct_url(config: &Config) -> &DatabaseUrl {
    config.source.replication_url.as_ref().unwrap_or(&config.source.url)
}

/// Streams from `at` on; up to `read` anything is known to be settled or received.
pub(super) async fn open(
    config: &Config,
    known: &Known,
    expected: &SourceIdentity,
    (at, read): (Lsn, Lsn),
    streams: bool,
) -> Result<Session, OpenError> {
    let settings = &config.source;
    let url = direct_url(config);
    // Past a pooler, whose sessions outlive the server's shutdown.
    let sentinel = open_source::<OpenError>(url, SENTINEL).await?;
    let mut replication = wire::connect(url, STREAM.name).await?;
    // Whoever follows can be on any timeline, and says nothing of what there is to read.
    if replication.is_standby().await? {
        return Err(SourceError::Standby.into());
    }
    let system = replication.identify_system().await?;
    let found = SourceIdentity {
        system_identifier: system.system_identifier,
        timeline: system.timeline,
        host: source::hosts(&Conninfo::parse(&settings.url).map_err(ConnectError::from)?),
        database: system.database,
    };
    // The stored identity may be the old primary's own. The two sessions need not be with one server.
    let (primary, beside) = (known::primary(&found), source::primary(&sentinel).await?);
    for one in [primary, beside] {
        known.timelines.check(one)?;
    }
    if primary.system_identifier == beside.system_identifier {
        primary.check(beside.timeline)?;
        beside.check(primary.timeline)?;
    }
    let promoted = if halt::is_promoted(&found, expected) {
        let left = replication.left_timeline(expected.timeline, found.timeline).await?;
        halt::check_promotion(&found, expected, left, known.read_up_to(expected, read))?;
        left.map(|left| Promoted { timeline: found.timeline, left })
    } else {
        halt::check_source(&found, expected)?;
        None
    };
    let slot = slot::read(&sentinel, &settings.slot).await?;
    if promoted.is_some() && slot.is_none() {
        // The slot did not come with the standby: what helps is to adopt this cluster, which makes one.
        halt::check_source(&found, expected)?;
    }
    known.timelines.accept(primary);
    let state = slot.as_ref().map(Slot::state);
    if let Some(state) = &state {
        halt::check_ours(&settings.slot, state)?;
    }
    if slot.as_ref().is_some_and(|slot| slot.active_pid.is_some()) {
        return Err(OpenError::SlotInUse);
    }
    // Where it begins is asked when it is ours: until then another may lead, and move it on.
    halt::check_readable(&settings.slot, state.as_ref(), at)?;
    let sender_timeout = lease_timeout(&mut replication, settings.lease_timeout).await?;
    if streams {
        replication.stream_above(settings.stream_above.0).await?;
    }
    let replication = replication.with_messages(config.reads_messages());
    let stream = replication
        .start(&settings.slot, &settings.publication, at, config.memory.max_change_bytes())
        .await?;
    Ok(Session { stream, sentinel, primary, sender_timeout, promoted })
}

/// How long the server keeps the slot for us should we freeze: what it is set to, and at most `ours`.
async fn lease_timeout(
    replication: &mut Replication,
    ours: Duration,
) -> Result<Duration, WireError> {
    let server = replication.wal_sender_timeout().await?;
    if server.is_zero() {
        tracing::warn!(
            lease_timeout = ?ours,
            "wal_sender_timeout is 0, so that a frozen client would keep a slot for ever; ours is kept \
             for source.lease_timeout"
        );
    } else if server <= ours {
        return Ok(server);
    }
    replication.set_wal_sender_timeout(ours).await?;
    Ok(ours)
}
