//! The ways back after a halt.
//!
//! A halt says that changes cannot be read any more, or that another database answers. Only the
//! operator can know that this is acceptable; what is given up is shown first and recorded.
//!
//! The slot comes before the state: interrupted between the two, the new slot begins after the
//! checkpoint, which is again a halt that this command resolves.

mod cause;
pub(crate) mod skip;
#[cfg(test)]
mod tests;
mod window;

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tokio_postgres::Client;

use super::branch::left_timeline;
use super::gaps::{self, ReplayableGap};
use super::holder::refuse_while_active;
use super::setup::{FAILOVER_SLOTS, create_slot_within};
use super::{Databases, Failure, Tell, bytes};
use crate::config::Config;
use crate::server::{prepared, published::other_publication};
use walhook_core::halt::{self, Halt, SourceIdentity};
use walhook_core::lsn::Lsn;
use walhook_postgres::anchor;
use walhook_postgres::pg::Conninfo;
use walhook_postgres::slot::{self, Slot};
use walhook_postgres::source;
use walhook_postgres::sql::Connection;
use walhook_postgres::wire;
use walhook_state::StateStore;

use cause::cause;
pub(crate) use skip::plan as plan_skip;

const NAME: &str = "walhook recover";

/// What was found.
#[derive(Debug)]
pub(crate) enum Found<P> {
    /// Nothing is to be done.
    Nothing(NothingView),
    /// This is.
    Plan(Box<P>),
}

impl<P> Found<P> {
    fn nothing(detail: String) -> Self {
        Self::Nothing(NothingView { detail, recovered: None })
    }
}

/// That there is nothing to recover.
#[derive(Debug, Serialize)]
pub(crate) struct NothingView {
    /// Why.
    pub(crate) detail: String,
    /// Null.
    pub(crate) recovered: Option<()>,
}

/// What was done.
#[derive(Debug, Serialize)]
pub(crate) struct Recovered<R> {
    /// It.
    pub(crate) recovered: R,
}

/// How a halt is resolved, with what that gives up.
#[derive(Debug)]
pub(crate) struct RecoverPlan {
    sessions: Sessions,
    plan: Plan,
    /// What it is about to give up, for whoever is to confirm it.
    pub(crate) text: String,
}

/// Finds out what the halt is, and how to resolve it: by giving up what cannot be read, or, with `adopt`, by
/// going on at the database that answers now. Changes nothing.
///
/// # Errors
/// [`Failure::Halted`] when the halt is not of that kind; else when the slot is in use, the publication is
/// missing, or a database does not answer.
pub(crate) async fn plan(config: &Config, adopt: bool) -> Result<Found<RecoverPlan>, Failure> {
    let sessions = Sessions::open(config).await?;
    Ok(match find(config, &sessions, adopt).await? {
        Found::Nothing(nothing) => Found::Nothing(nothing),
        Found::Plan(plan) => {
            let text = plan.to_text(config, &sessions);
            Found::Plan(Box::new(RecoverPlan { sessions, plan: *plan, text }))
        }
    })
}

impl RecoverPlan {
    /// Carries it out; tries for `wait` to create a slot.
    ///
    /// # Errors
    /// When a step fails; it can be tried again.
    pub(crate) async fn carry_out(
        mut self,
        config: &Config,
        wait: Duration,
        tell: Tell<'_>,
    ) -> Result<Recovered<RecoveredView>, Failure> {
        let recovered = recover(config, &mut self.sessions, self.plan, wait, tell).await?;
        Ok(Recovered { recovered })
    }
}

#[derive(Debug)]
struct Sessions {
    source: Connection,
    state: StateStore,
    /// Whom source.url leads to.
    found: SourceIdentity,
    /// Whom it led to at set-up.
    stored: SourceIdentity,
    /// Where source.url leads to a later timeline of the same cluster: at which position that left the stored one.
    left: Option<Lsn>,
    /// Whether `walhook upgrade prepare` was the last to be here.
    prepared: bool,
}

impl Sessions {
    async fn open(config: &Config) -> Result<Self, Failure> {
        let url = &config.source.url;
        let source = Connection::open(url, NAME).await.context("source.url")?;
        refuse_while_active(Databases::of(config), &source).await?;
        let found = source::identity(&source, &Conninfo::parse(url).context("source.url")?).await?;
        let state = Databases::of(config).open_state().await?;
        let stored = state.source_identity().await?;
        let left =
            left_timeline(config, NAME, &found, &stored).await.map_err(anyhow::Error::from)?;
        let prepared = state.prepared().await?.is_some_and(|prepared| prepared.holds);
        Ok(Self { source, state, found, stored, left, prepared })
    }

    /// Whether positions in the WAL, then and now, are positions in the same WAL.
    fn same_wal(&self) -> bool {
        let of = |id: &SourceIdentity| (id.system_identifier, id.timeline);
        of(&self.found) == of(&self.stored)
    }

    /// Whether what was read tells where to go on: the WAL is the same, or was up to a known position.
    fn compare(&self) -> bool {
        self.same_wal() || self.left.is_some()
    }

    /// Whether the same cluster answers, with a database of another name: the same one, renamed, if it has the slot.
    fn has_other_name(&self) -> bool {
        self.same_wal() && self.found.database != self.stored.database
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The checkpoint.
    checkpoint: Lsn,
    /// From where on nothing may be missing: the checkpoint, or where the timelines parted before that.
    from: Lsn,
    /// Up to where anything was settled or received.
    read: Lsn,
    /// Whether an older copy of the cluster was put in its place.
    older: bool,
    begin: Begin,
    /// What happened.
    reason: String,
    /// Whether the stored identity is replaced.
    adopt: bool,
    /// Where the WAL ended when we looked.
    wal_end: Lsn,
}

/// Where the stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// At the checkpoint: nothing is missing.
    Checkpoint,
    /// Where the slot begins that is there.
    Slot(Lsn),
    /// Where a new slot will begin.
    NewSlot { drop: bool },
    /// Where the anchor slot stands, of which the slot is made anew; at the checkpoint where it reaches back
    /// to that.
    Anchor { at: Lsn, drop: bool },
}

/// Finds out what the halt is, and how to resolve it.
async fn find(config: &Config, sessions: &Sessions, adopt: bool) -> Result<Found<Plan>, Failure> {
    let name = &config.source.slot;
    // The slot first: what a leader confirms is never ahead of the checkpoint at that moment.
    let slot = slot::read(&sessions.source, name).await.map_err(anyhow::Error::from)?;
    let checkpoint =
        prepared::checkpoint(&sessions.state, &sessions.source, name, slot.as_ref()).await?;
    let read = sessions.state.reached().await?.max(checkpoint);
    let from = sessions.left.map_or(checkpoint, |left| left.min(checkpoint));
    let diverged = sessions.left.map_or(Ok(()), |left| {
        halt::check_promotion(&sessions.found, &sessions.stored, Some(left), read)
    });
    let other_source = diverged.and(halt::check_source(&sessions.found, &sessions.stored)).err();
    let bad_slot = halt::check_slot(name, slot.as_ref().map(Slot::state).as_ref(), from).err();
    // In another WAL the two positions do not compare.
    let older = slot.as_ref().filter(|_| sessions.same_wal());
    let older = older.and_then(|slot| halt::check_wal_end(slot.wal_end, read).err());
    let is_older = older.is_some();
    let bad_slot = bad_slot.or(older);
    if let Some(of) = slot.as_ref().filter(|slot| !slot.here).and_then(|it| it.database.as_ref())
        && sessions.has_other_name()
    {
        return Err(Failure::Usage(anyhow::anyhow!(
            "the database {} is not {} under another name: the slot {name}, which stays with its database when that is \
             renamed, belongs to {of}. Let source.url lead to {of}; for a pipeline of this database, choose another \
             source.slot and run `walhook setup`",
            sessions.found.database,
            sessions.stored.database
        )));
    }
    let looks_well = other_source.is_none() && bad_slot.is_none() && !adopt;
    let bad_slot =
        if looks_well { window::damaged(config, sessions, from).await? } else { bad_slot };
    let reason = match (&other_source, &bad_slot, adopt) {
        (None, None, true) => {
            let why = format!("this is the database that was set up ({})", sessions.stored);
            return Ok(Found::nothing(why));
        }
        (None, None, false) => {
            let why = format!("the slot {name} reaches back to the checkpoint {from}");
            let halted = sessions.state.overview().await?.halt_reason;
            let halted = halted
                .map(|reason| format!("; what walhook halted for is another matter: {reason}"));
            return Ok(Found::nothing(why + &halted.unwrap_or_default()));
        }
        // Each names the option that resolves it.
        (Some(halt), _, false) | (None, Some(halt), true) => return Err(halt.clone().into()),
        (Some(halt), _, true) | (None, Some(halt), false) => cause(halt),
    };
    let begin = match bad_slot {
        Some(Halt::SlotMissing { .. }) => Begin::NewSlot { drop: false },
        Some(Halt::SlotLost { .. } | Halt::SlotTwoPhase { .. }) => Begin::NewSlot { drop: true },
        Some(Halt::Gap { to, .. }) => Begin::Slot(to),
        Some(Halt::OlderCopy { .. }) => Begin::Slot(begin_of(name, slot)?),
        Some(
            halt @ (Halt::SlotForeign { .. }
            | Halt::OtherSource { .. }
            | Halt::Diverged { .. }
            | Halt::PublicationMissing { .. }
            | Halt::OtherPublication { .. }
            | Halt::Unpublished { .. }
            | Halt::RowsHidden { .. }
            | Halt::Unreadable { .. }
            | Halt::RuleBroken(_)),
        ) => return Err(halt.into()),
        None if sessions.compare() => Begin::Checkpoint,
        None => Begin::Slot(begin_of(name, slot)?),
    };
    // Of an older copy of the cluster the positions do not say what was sent.
    let begin = if is_older || !sessions.compare() {
        begin
    } else {
        let known = if sessions.left.is_some() { from } else { read };
        window::better(config, sessions, begin, (from, known), looks_well).await?
    };
    readable(config, sessions, begin).await?;
    let wal_end = slot::wal_end(&sessions.source).await.map_err(anyhow::Error::from)?;
    let older = is_older || sessions.same_wal() && wal_end < read;
    Ok(Found::Plan(Box::new(Plan { checkpoint, from, read, older, begin, reason, adopt, wal_end })))
}

/// Where the slot begins.
fn begin_of(name: &str, slot: Option<Slot>) -> Result<Lsn> {
    slot.and_then(|slot| slot.confirmed_flush).with_context(|| {
        format!("the slot {name} is being created by another session; try again later")
    })
}

/// Refuses to go on without the publication: a slot can never be read that is older.
async fn readable(config: &Config, sessions: &Sessions, begin: Begin) -> Result<(), Failure> {
    let (name, client) = (&config.source.publication, &sessions.source);
    if source::publication(client, name).await?.is_some() {
        return Ok(());
    }
    let last = sessions.state.last_look().await?;
    if let Some(other) = other_publication(config, client, last).await? {
        return Err(Failure::Usage(other.into()));
    }
    let slot = &config.source.slot;
    let drop = match begin {
        Begin::NewSlot { .. } => String::new(),
        Begin::Anchor { .. } => {
            format!("drop the slot {}, which is older, then ", anchor::name(slot))
        }
        Begin::Checkpoint | Begin::Slot(_) => {
            format!("drop the slot {slot}, which is older and could not be read, then ")
        }
    };
    Err(anyhow::anyhow!(
        "the publication {name} does not exist: {drop}create it with the statement that \
         `walhook setup --print-sql` shows, and recover again"
    )
    .into())
}

impl Plan {
    /// Which database is adopted in place of which.
    fn adopted(&self, config: &Config, sessions: &Sessions) -> Vec<String> {
        let mut lines = vec![
            format!("It was set up for  {}", sessions.stored),
            format!("It is to adopt     {}", sessions.found),
        ];
        if sessions.same_wal() && sessions.found.database == sessions.stored.database {
            lines.push("Only the hosts in source.url differ.".to_owned());
        }
        let is_renamed = sessions.has_other_name() && self.begin == Begin::Checkpoint;
        if is_renamed {
            lines.push(format!(
                "The slot {} is this database's own: it is the same one, which was renamed.",
                config.source.slot
            ));
        }
        if let Some(left) = sessions.left {
            lines.push(self.parted(left));
        }
        let copy = if is_renamed { "a copy of the server" } else { "a copy" };
        lines.push(format!(
            "If that is {copy}, do not go on: walhook would send to your customers."
        ));
        if sessions.prepared {
            lines.push(
                "An upgrade was prepared: after pg_upgrade, `walhook upgrade finish` gives up nothing."
                    .to_owned(),
            );
        }
        lines
    }

    /// What is the same of the two timelines, and what is not.
    fn parted(&self, left: Lsn) -> String {
        let Self { read, .. } = self;
        if *read <= left {
            return format!(
                "Its WAL goes on from the other one's at {left}. walhook has read up to {read}, so all of that is in it."
            );
        }
        format!(
            "Its WAL is the other one's up to {left}; walhook has read that up to {read}. What was committed there in \
             between is not in it: what was delivered of that stays delivered, what is deferred is still sent, and \
             nothing of it hides what is committed here."
        )
    }

    fn to_text(&self, config: &Config, sessions: &Sessions) -> String {
        let mut lines = if self.adopt { self.adopted(config, sessions) } else { vec![] };
        let slot = &config.source.slot;
        let from = self.from;
        let to = match self.begin {
            Begin::Checkpoint => {
                lines.push(format!(
                    "Nothing is given up: the slot {slot} reaches back to the checkpoint {from}."
                ));
                return lines.join("\n");
            }
            Begin::Anchor { at, drop } if at == from => {
                let anchor = anchor::name(slot);
                lines.push(format!(
                    "Nothing is given up: the slot {anchor} still has what was committed from the \
                     checkpoint {from} on. It {} the slot {slot} of it.",
                    if drop { "makes anew" } else { "makes" }
                ));
                return lines.join("\n");
            }
            Begin::Slot(to) | Begin::Anchor { at: to, .. } => to.to_string(),
            Begin::NewSlot { .. } => format!("the present, {} or later", self.wal_end),
        };
        lines.push(if self.older {
            format!(
                "The WAL ends at {}, and was read up to {}: this is an older copy of the cluster. \
                 This gives up every change that was not delivered at the checkpoint {from}, and goes on at \
                 {to}. What the copy committed from there on is sent, or sent again with the same ids.",
                self.wal_end, self.read
            )
        } else if sessions.compare() {
            let end = match self.begin {
                Begin::Slot(to) | Begin::Anchor { at: to, .. } => to,
                Begin::Checkpoint | Begin::NewSlot { .. } => self.wal_end,
            };
            let size = end.bytes_since(from);
            format!(
                "This gives up every change from {} to {to}: {size} bytes of WAL ({}).",
                if from == self.checkpoint {
                    format!("the checkpoint {from}")
                } else {
                    from.to_string()
                },
                bytes(size)
            )
        } else {
            format!(
                "This gives up every change that was not delivered at the checkpoint {from} of the \
                 other WAL, and goes on in this one at {to}. The two positions do not compare."
            )
        });
        match self.begin {
            Begin::NewSlot { drop: true } => {
                lines.push(format!("It drops the slot {slot} and creates it anew."));
            }
            Begin::NewSlot { drop: false } => lines.push(format!("It creates the slot {slot}.")),
            Begin::Anchor { .. } => lines.push(format!(
                "It makes the slot {slot} of {}, which has what came after that.",
                anchor::name(slot)
            )),
            Begin::Checkpoint | Begin::Slot(_) => {}
        }
        lines.push("The gap is recorded; dead letters stay.".to_owned());
        lines.join("\n")
    }
}

/// What was done about a halt.
#[derive(Debug, Serialize)]
pub(crate) struct RecoveredView {
    /// The old checkpoint, or where the new primary's WAL left the old one's before that.
    pub(crate) from: String,
    /// The new one.
    pub(crate) to: String,
    /// The WAL between the two; null where they do not compare.
    pub(crate) bytes: Option<u64>,
    /// What happened.
    pub(crate) reason: String,
    /// The lease's epoch now.
    pub(crate) epoch: i64,
    /// What was given up, with the command that sends it again where there is one.
    pub(crate) gap: Option<ReplayableGap>,
}

async fn recover(
    config: &Config,
    sessions: &mut Sessions,
    plan: Plan,
    wait: Duration,
    tell: Tell<'_>,
) -> Result<RecoveredView, Failure> {
    let name = &config.source.slot;
    let compare = sessions.compare();
    let Sessions { source, state, found, left, .. } = sessions;
    let Plan { checkpoint, from, begin, reason, adopt, .. } = plan;
    let to = match begin {
        Begin::Checkpoint => from,
        Begin::Slot(to) => to,
        Begin::Anchor { at, drop } => {
            if drop {
                slot::drop(source, name)
                    .await
                    .with_context(|| format!("cannot drop the slot {name}"))?;
            }
            anchor::make_slot(source, name).await.with_context(|| {
                format!("cannot make the slot {name} of {}", anchor::name(name))
            })?;
            follow_failover(config, source, name).await?;
            at
        }
        Begin::NewSlot { drop } => {
            if drop {
                slot::drop(source, name)
                    .await
                    .with_context(|| format!("cannot drop the slot {name}"))?;
            }
            create_slot_within(source, name, wait, tell).await?
        }
    };
    // What `upgrade prepare` has found settled is not stored yet.
    let stored = state.frontier().await?;
    if stored < checkpoint {
        state.resume_prepared(stored, checkpoint).await?;
    }
    let branched = match left {
        Some(left) => Some(state.adopt_branch(checkpoint, *left, found).await?),
        None => None,
    };
    let gives_up = !matches!(begin, Begin::Checkpoint)
        && !matches!(begin, Begin::Anchor { at, .. } if at == from);
    let (epoch, gap) = if gives_up {
        let adopt = (adopt && branched.is_none()).then_some(&*found);
        let epoch = state.accept_gap(from, to, &reason, adopt).await?;
        let last = state.gaps(false).await?.pop();
        (epoch, gaps::replayable(config, last.into_iter().collect()).await.pop())
    } else if let Some(epoch) = branched {
        (epoch, None)
    } else if adopt {
        (state.adopt(from, found).await?, None)
    } else {
        (state.go_on(from).await?, None)
    };
    Ok(RecoveredView {
        from: from.to_string(),
        to: to.to_string(),
        bytes: (compare && from <= to).then(|| to.bytes_since(from)),
        reason,
        epoch: epoch.0,
        gap,
    })
}

/// A copy is not kept by standbys, as a slot that `setup` makes is from 17 on.
async fn follow_failover(config: &Config, source: &Client, name: &str) -> Result<()> {
    if source::server_version(source).await? < FAILOVER_SLOTS {
        return Ok(());
    }
    let url = config.source.replication_url.as_ref().unwrap_or(&config.source.url);
    let mut replication = wire::connect(url, NAME).await?;
    let set = replication.set_failover(name).await;
    set.with_context(|| format!("cannot let standbys keep the slot {name}"))
}
