//! The workers that the leader knows.

use serde::Serialize;

use super::{Databases, Failure};
use crate::config::Config;
use walhook_core::event::rfc3339;
use walhook_postgres::slot::Slot;
use walhook_state::SeenWorker;

/// The workers that the leader has stored.
#[derive(Debug, Serialize)]
pub(crate) struct WorkerList {
    /// The slot's name.
    pub(crate) pipeline: String,
    /// Whether somebody leads; null when the source did not answer. Where nobody does, this is how the workers
    /// were for the last leader.
    pub(crate) leader_running: Option<bool>,
    /// Those that have been in their state for longest first; null where the state database cannot say, for it
    /// is a standby.
    pub(crate) workers: Option<Vec<WorkerView>>,
}

/// A worker, as the leader saw it last.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkerView {
    /// Of the session that it has with the leader.
    pub(crate) session: String,
    /// Where it runs, as it says.
    pub(crate) host: String,
    /// Its version.
    pub(crate) build: String,
    /// `joining` (it has not shown yet that it hears the leader), `serving`, `draining`, `quarantined` (it failed what others carried out), `mute` (it is heard, and what
    /// becomes of its requests is not), or `silent` (nothing is heard of it).
    pub(crate) state: String,
    /// Since when it is in this state.
    pub(crate) since: String,
    /// The requests that it may have in flight.
    pub(crate) slots: u64,
    /// Those that it has.
    pub(crate) in_flight: u64,
    /// The attempts of this worker that were lost since the leader began, in earlier sessions of the same process.
    pub(crate) lost: u64,
    /// When the leader heard from it last.
    pub(crate) seen_at: String,
    /// How long ago that is, in seconds.
    pub(crate) seen_seconds: f64,
}

impl From<SeenWorker> for WorkerView {
    fn from(SeenWorker { worker, seen_seconds }: SeenWorker) -> Self {
        let since = rfc3339(worker.since_us);
        let seen_at = rfc3339(worker.seen_us);
        Self {
            session: worker.session,
            host: worker.host,
            build: worker.build,
            state: worker.state,
            since,
            slots: worker.slots,
            in_flight: worker.in_flight,
            lost: worker.lost,
            seen_at,
            seen_seconds,
        }
    }
}

/// Lists the workers that the leader has stored.
///
/// # Errors
/// When the state database does not answer.
pub(crate) async fn list(config: &Config) -> Result<WorkerList, Failure> {
    let databases = Databases::of(config);
    let state = databases.open_state().await?;
    let slot = databases.read_slot().await.ok();
    let is_active = |slot: Option<Slot>| slot.is_some_and(|slot| slot.active_pid.is_some());
    let workers = state.workers().await?;
    Ok(WorkerList {
        pipeline: config.source.slot.clone(),
        leader_running: slot.map(is_active),
        workers: workers.map(|workers| workers.into_iter().map(WorkerView::from).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state_fixture::Fixture;
    use walhook_state::WorkerRow;

    #[tokio::test]
    async fn workers_are_listed_with_their_age_until_another_leads() {
        let fixture = Fixture::start().await;
        let config = fixture.config();
        let of = async || {
            let listed = list(&config).await.unwrap();
            assert_eq!(listed.leader_running, Some(false), "there is no slot");
            listed.workers.unwrap()
        };
        assert!(of().await.is_empty());
        let mut store = fixture.open().await;
        store.take_lease("one").await.unwrap();
        let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let now_us: i64 = fixture.admin.query_one(sql, &[]).await.unwrap().get(0);
        let row = |session: &str, seen_us| WorkerRow {
            session: session.into(),
            host: "worker-1 pid 7".into(),
            build: "0.1.0".into(),
            state: "serving".into(),
            slots: 1_280,
            in_flight: 3,
            lost: 0,
            since_us: seen_us,
            seen_us,
        };
        let rows = [row("old", now_us - 60_000_000), row("new", now_us)];
        store.store_workers(&rows).await.unwrap();
        let listed = of().await;
        let [old, new] = &listed[..] else { panic!("{listed:?}") };
        assert!(old.seen_seconds >= 60.0 && old.session == "old", "{old:?}");
        assert!(
            new.seen_seconds < 60.0 && new.slots == 1_280 && new.seen_at.ends_with('Z'),
            "{new:?}"
        );
        fixture.open().await.take_lease("two").await.unwrap();
        assert!(of().await.is_empty(), "what an earlier leader saw is not shown");
    }
}
