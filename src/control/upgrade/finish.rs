//! The second half: adopts the upgraded cluster, and goes on where the old one ended.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::CARRIED;
use crate::config::Config;
use crate::control::gaps::{self, ReplayableGap};
use crate::control::holder::refuse_while_active;
use crate::control::setup::create_slot_within;
use crate::control::{Databases, Failure, Tell};
use walhook_core::halt::{self, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_state::{Prepared, StateStore};

const NAME: &str = "walhook upgrade";

/// pg_upgrade makes the slots one after the other on a server that does nothing else, some 60 bytes of WAL
/// apart, those of others in between. A commit that made an event is longer than that.
const TOGETHER_BYTES: u64 = 64 * 64;

/// What was done on the new server.
#[derive(Debug, Serialize)]
pub(crate) struct FinishedView {
    /// It.
    pub(crate) finished: Finished,
}

/// What was done.
#[derive(Debug, Serialize)]
pub(crate) struct Finished {
    /// Where the stream goes on, in the new cluster's WAL.
    pub(crate) from: String,
    /// Whether the slot came along, so that nothing is missing.
    pub(crate) slot_carried: bool,
    /// Deliveries that wait in the state tables.
    pub(crate) deferred: i64,
    /// Dead letters.
    pub(crate) dead_letters: i64,
    /// What may be missing, where the slot did not come along.
    pub(crate) gap: Option<ReplayableGap>,
    /// The lease's epoch now.
    pub(crate) epoch: i64,
}

/// How the upgrade is finished, with what that gives up.
#[derive(Debug)]
pub(crate) struct FinishPlan {
    sessions: Sessions,
    plan: Plan,
    /// What it is about to do, for whoever is to confirm it.
    pub(crate) text: String,
    /// Whether it need not be confirmed: the prepare was the operator's word. What is given up, or an
    /// address that a copy would have, it did not speak of.
    pub(crate) known: bool,
}

/// Looks whether this is the cluster that the prepared one has become, and how to go on. Changes nothing.
///
/// # Errors
/// [`Failure::Halted`] when it is not; else when the slot is in use, the publication is missing, or a database
/// does not answer.
pub(crate) async fn plan(config: &Config) -> Result<FinishPlan, Failure> {
    let (sessions, plan) = find(config).await?;
    let text = sessions.to_text(config, &plan);
    let known = matches!(plan, Plan::Carried(_)) && sessions.found.host == sessions.stored.host;
    Ok(FinishPlan { sessions, plan, text, known })
}

impl FinishPlan {
    /// Carries it out; tries for `wait` to create a slot that did not come along.
    ///
    /// # Errors
    /// When a step fails; it can be tried again.
    pub(crate) async fn carry_out(
        self,
        config: &Config,
        wait: Duration,
        tell: Tell<'_>,
    ) -> Result<FinishedView, Failure> {
        let finished = finish(config, self.sessions, self.plan, wait, tell).await?;
        Ok(FinishedView { finished })
    }
}

/// What was found on the new cluster.
#[derive(Debug)]
pub(super) struct Sessions {
    client: Connection,
    state: StateStore,
    stored: SourceIdentity,
    found: SourceIdentity,
    checkpoint: Lsn,
}

/// How to go on.
#[derive(Debug)]
pub(super) enum Plan {
    /// The slot came along and begins here.
    Carried(Lsn),
    /// What came along says nothing, or nothing did; the reason.
    Gap { slot: Option<Lsn>, drop: bool, reason: String },
}

/// Looks whether this is the cluster that the prepared one has become.
pub(super) async fn find(config: &Config) -> Result<(Sessions, Plan), Failure> {
    let name = &config.source.slot;
    let info = Conninfo::parse(&config.source.url).context("source.url")?;
    let client = Connection::open(&config.source.url, NAME).await.context("source.url")?;
    refuse_while_active(Databases::of(config), &client).await?;
    let state = Databases::of(config).open_state().await?;
    let stored = state.source_identity().await?;
    let found = source::identity(&client, &info).await?;
    let recorded = state.prepared().await?;
    if halt::check_source(&found, &stored).is_ok() {
        let prepared = recorded.is_some_and(|prepared| prepared.holds);
        return Err(anyhow!(
            "this is the cluster that walhook was set up for ({found}){}",
            if prepared {
                ", which was prepared: upgrade it first, or go on here with `walhook run`"
            } else {
                ": there is nothing to finish; `walhook upgrade prepare` comes before pg_upgrade"
            }
        )
        .into());
    }
    let prepared = match recorded {
        Some(prepared) if prepared.holds => prepared,
        Some(_) => {
            return Err(not_prepared(
                "an instance has led since `walhook upgrade prepare`, and what it left is not known",
            ));
        }
        None => return Err(not_prepared("no `walhook upgrade prepare` is recorded")),
    };
    let version = source::server_version(&client).await?;
    if found.database != stored.database
        || found.system_identifier == stored.system_identifier
        || version / 10_000 < prepared.server_version / 10_000
    {
        return Err(not_prepared(&format!(
            "this is no upgrade of the cluster that was prepared ({stored}), but {found}"
        )));
    }
    let publication = &config.source.publication;
    if source::publication(&client, publication).await?.is_none() {
        return Err(anyhow!(
            "the publication {publication} did not come along: create it with the statement that \
             `walhook setup --print-sql` shows, drop the slot {name}, and finish again"
        )
        .into());
    }
    let slot = slot::read(&client, name).await.map_err(anyhow::Error::from)?;
    let anchor = anchor::read(&client, name).await.map_err(anyhow::Error::from)?;
    let checkpoint = state.frontier().await?;
    let plan = judge(name, &prepared, slot.as_ref(), anchor.as_ref())?;
    Ok((Sessions { client, state, stored, found, checkpoint }, plan))
}

fn not_prepared(why: &str) -> Failure {
    Failure::Halted(format!(
        "{why}. If this is a copy, do not run walhook on it: it would send to your customers. If it is the \
         right database, `walhook recover --adopt-cluster` goes on here and records the gap"
    ))
}

/// Whether the slot is the one that pg_upgrade made of the prepared one.
fn judge(
    name: &str,
    prepared: &Prepared,
    slot: Option<&Slot>,
    anchor: Option<&Slot>,
) -> Result<Plan, Failure> {
    let before = "what was committed after `walhook upgrade prepare` and before the slot began, if writers \
                  were let in, was not sent";
    let Some(slot) = slot else {
        let reason = if prepared.server_version < CARRIED {
            format!(
                "PostgreSQL {} takes no slots along: {before}",
                prepared.server_version / 10_000
            )
        } else {
            format!("the slot {name} did not come along: {before}")
        };
        return Ok(Plan::Gap { slot: None, drop: false, reason });
    };
    let at = slot.confirmed_flush.unwrap_or_default();
    let lost = slot.lost.is_some();
    match halt::check_slot(name, Some(&slot.state()), at) {
        Err(halt::Halt::SlotLost { .. }) | Ok(()) => {}
        Err(halt) => return Err(halt.into()),
    }
    let together =
        anchor.filter(|anchor| !anchor.is_lost()).and_then(|anchor| anchor.confirmed_flush);
    let together = together.is_some_and(|anchor| at.0.abs_diff(anchor.0) <= TOGETHER_BYTES);
    if prepared.server_version >= CARRIED && together && !lost && at > prepared.lsn {
        return Ok(Plan::Carried(at));
    }
    let reason = format!("the slot {name} is not the one that pg_upgrade took along: {before}");
    Ok(Plan::Gap { slot: Some(at).filter(|_| !lost), drop: lost, reason })
}

impl Sessions {
    fn to_text(&self, config: &Config, plan: &Plan) -> String {
        let slot = &config.source.slot;
        let how = match plan {
            Plan::Carried(at) => format!(
                "Nothing is given up: pg_upgrade took the slot {slot} along, which it does only when that \
                 has read everything. The stream goes on at {at}."
            ),
            Plan::Gap { slot: Some(at), reason, .. } => {
                format!("The stream goes on at {at}, and this is recorded as a gap: {reason}.")
            }
            Plan::Gap { slot: None, reason, .. } => {
                format!("It creates the slot {slot}, and this is recorded as a gap: {reason}.")
            }
        };
        format!(
            "It was prepared on  {}\nIt is to adopt      {}\nIf that is a copy, do not go on: walhook would \
             send to your customers.\n{how}",
            self.stored, self.found
        )
    }
}

pub(super) async fn finish(
    config: &Config,
    sessions: Sessions,
    plan: Plan,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<Finished, Failure> {
    let name = &config.source.slot;
    let Sessions { client, mut state, found, checkpoint, .. } = sessions;
    let (to, reason) = match plan {
        Plan::Carried(at) => (at, None),
        Plan::Gap { slot: Some(at), reason, .. } => (at, Some(reason)),
        Plan::Gap { slot: None, drop, reason } => {
            if drop {
                slot::drop(&client, name)
                    .await
                    .with_context(|| format!("cannot drop the slot {name}"))?;
            }
            (create_slot_within(&client, name, wait, tell).await?, Some(reason))
        }
    };
    let epoch = state.finish_upgrade(checkpoint, to, &found, reason.as_deref()).await?;
    let overview = state.overview().await?;
    let gap = match reason {
        None => None,
        Some(_) => {
            let last = overview.gaps.last().cloned();
            gaps::replayable(config, last.into_iter().collect()).await.pop()
        }
    };
    Ok(Finished {
        from: to.to_string(),
        slot_carried: gap.is_none(),
        deferred: overview.deferred,
        dead_letters: overview.dead_letters.iter().map(|(_, n)| n).sum(),
        gap,
        epoch: epoch.0,
    })
}
