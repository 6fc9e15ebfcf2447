//! Looks, every few seconds, at what the publication covers, and compares it with the look before:
//! children of the rules' tables that are not published are added, and what was lost is recorded.
//!
//! The look before is read from the state: it may be another process's, from before a stop. What sees the
//! same as the look before is stored now and then only, for on an idle server it would be most of the WAL;
//! since when nothing has changed is kept meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::TaskError;
use super::published::needed;
use super::sessions::Sessions;
use crate::server::metrics::Metrics;
use walhook_core::catalog::TableName;
use walhook_postgres::coverage::{
    self, Covered, Kind, Looked, Loss, Moment, Seen, begin, compare, moved,
};
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::line_of;
use walhook_postgres::sql::Connection;
use walhook_state::MAX_ALARMS;

/// So many tables are added to the publication after one look.
const ADD_AT_ONCE: usize = 64;

/// How often what goes on being wrong is logged again, and how many lines at most.
const SAY_AGAIN: Duration = Duration::from_secs(600);
const SAY_AT_ONCE: usize = 20;

/// How often a look that saw nothing new is stored: by so much earlier begins a gap that arises while
/// nobody looks.
const STORE_EVERY: Duration = Duration::from_secs(30);

/// The look that this process stored last, and the latest one that saw the same.
struct Kept {
    stored: Moment,
    stored_at: Instant,
    alarms: Vec<String>,
    latest: Moment,
}

impl Kept {
    fn is_fresh(&self) -> bool {
        self.stored_at.elapsed() < STORE_EVERY
    }
}

/// What looks.
pub(super) struct Watcher {
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    system_identifier: u64,
    kept: Option<Kept>,
    said: Vec<String>,
    said_at: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        metrics: Arc<Metrics>,
        system_identifier: u64,
    ) -> Self {
        let (kept, said, said_at) = (None, Vec::new(), None);
        Self { sessions, metrics, system_identifier, kept, said, said_at }
    }

    /// Looks, and stores what it sees. `weak` is what the rules say of children.
    ///
    /// Returns a transaction that cached routes must not be older than, where changes were lost.
    ///
    /// # Errors
    /// When source or state do not answer.
    pub(super) async fn look(
        &mut self,
        client: &Connection,
        weak: Vec<String>,
    ) -> Result<Option<u32>, TaskError> {
        let sessions = Arc::clone(&self.sessions);
        let publication = &sessions.config.source.publication;
        let mut looked = self.once(client).await?;
        let refused = add_children(client, publication, &looked).await;
        if let Some(before) = refused.added.then_some(looked.before) {
            looked = Looked { before, ..self.once(client).await? };
        }
        let Looked { before, coverage, tables, after, .. } = looked;
        // What is named and lacks something halts elsewhere. Until then the look before stays.
        let is_good = |table: &Covered| table.kind != Kind::Named || table.lack.is_none();
        let Some(mut now) = coverage.filter(|now| now.tables.values().all(is_good)) else {
            return Ok(None);
        };
        let store = sessions.state().await?;
        let last = store.last_look().await;
        store.end();
        let last = last?;
        // Another leader's look is another's.
        let kept =
            self.kept.take().filter(|kept| last.as_ref().is_some_and(|l| l.0 == kept.stored));
        let watched = as_sql(sessions.config.rules().watched())?;
        let losses = match &last {
            Some((stored, then)) => {
                let at = kept.as_ref().map_or(*stored, |kept| kept.latest);
                let mut losses = compare(then, &mut now, at, after);
                losses.extend(moved(then, &now, &watched, at, after));
                losses
            }
            None => {
                begin(&mut now, before);
                Vec::new()
            }
        };
        let mut alarms: Vec<String> = tables
            .iter()
            .filter_map(|Seen { covered, .. }| Some(covered.lack?.describe(covered, publication)))
            .chain(refused.why)
            .chain(weak)
            .collect();
        self.metrics.uncovered.set(i64::try_from(alarms.len()).unwrap_or(i64::MAX));
        self.say(&alarms);
        if alarms.len() > MAX_ALARMS {
            let more = format!("and {} more tables", alarms.len() - MAX_ALARMS);
            alarms.truncate(MAX_ALARMS);
            alarms.push(more);
        }
        let is_same = losses.is_empty() && last.is_some_and(|(_, then)| then == now);
        self.kept = match kept.filter(|kept| is_same && kept.alarms == alarms && kept.is_fresh()) {
            Some(kept) => Some(Kept { latest: before, ..kept }),
            None => {
                let mut store = sessions.state().await?;
                let stored = store.store_look(before, &now, &losses, &alarms).await;
                store.end();
                stored?;
                let stored_at = Instant::now();
                Some(Kept { stored: before, stored_at, alarms, latest: before })
            }
        };
        let sent = as_sql(sessions.config.rule_tables())?;
        for loss in losses.iter().take(SAY_AT_ONCE) {
            say_loss(loss, &sent);
        }
        if losses.len() > SAY_AT_ONCE {
            tracing::error!(gaps = losses.len(), "and more gaps like these");
        }
        // Every look-up from now on sees the transactions before the oldest open one.
        let seen = u32::try_from(before.xid.wrapping_sub(1) % (1 << 32)).unwrap_or_default();
        Ok((!losses.is_empty()).then_some(seen))
    }

    async fn once(&self, client: &Connection) -> Result<Looked, SourceError> {
        let config = &self.sessions.config;
        let named = needed(config)?;
        let look =
            coverage::look(client, &config.source.publication, &named, self.system_identifier);
        client.in_one_transaction(look).await
    }

    /// Logs what is new at once, and the rest now and then.
    fn say(&mut self, alarms: &[String]) {
        let now = Instant::now();
        let is_due = self.said_at.is_none_or(|at| now.duration_since(at) >= SAY_AGAIN);
        let new: Vec<&String> =
            alarms.iter().filter(|alarm| is_due || !self.said.contains(alarm)).collect();
        for alarm in new.iter().take(SAY_AT_ONCE) {
            tracing::warn!(problem = %alarm, "changes of a table are missing");
        }
        if new.len() > SAY_AT_ONCE {
            tracing::warn!(tables = new.len(), "and more tables like these; see `walhook status`");
        }
        if is_due {
            self.said_at = Some(now);
        }
        self.said = alarms.to_vec();
    }
}

/// The tables as SQL writes them.
fn as_sql<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeSet<String>, SourceError> {
    names.map(|name| Ok(name.parse::<TableName>()?.to_string())).collect()
}

/// Says what a loss means: of a table that no rule is about nothing is sent.
fn say_loss(Loss { table, from, to, reason, under, .. }: &Loss, sent: &BTreeSet<String>) {
    let (from, to) = (from.lsn, to.lsn);
    if under.is_disjoint(sent) {
        tracing::error!(
            table, %from, %to, reason,
            "a gap: events of that time may have gone to endpoints as they were before, for changes of this table \
             were not seen; `walhook gaps list` shows how to find them"
        );
    } else {
        tracing::error!(
            table, %from, %to, reason,
            "a gap: what was committed to the table meanwhile is not sent; `walhook gaps list` shows how to find it"
        );
    }
}

/// What became of the children that could be added.
struct Refused {
    added: bool,
    why: Vec<String>,
}

async fn add_children(client: &Connection, publication: &str, looked: &Looked) -> Refused {
    let mut refused = Refused { added: false, why: Vec::new() };
    for Seen { name, .. } in looked.tables.iter().filter(|t| t.can_be_added).take(ADD_AT_ONCE) {
        match coverage::add(client, publication, name).await {
            Ok(()) => {
                refused.added = true;
                tracing::info!(table = %name, publication, "added a new child to the publication");
            }
            Err(error) => refused.why.push(format!("{}; it is tried again", line_of(&error))),
        }
    }
    refused
}
