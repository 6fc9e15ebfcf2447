//! What is, now: `status`, `health`, and who works.

use std::collections::BTreeMap;

use crate::config::DeliveryMode;
use crate::control::health::HealthView;
use crate::control::idle_pipelines::IdlePipeline;
use crate::control::jobs::JobView;
use crate::control::status::invalid::UnusableView;
use crate::control::status::work::{AccountWorkView, OldestView, WorkView};
use crate::control::status::{
    CheckpointView, DisabledView, HaltView, InvalidView, LeaderView, OpenTransactionView,
    PausedView, PreparedView, SlotView, StatusView, TroubleView, UnansweredView,
};
use crate::control::workers::{WorkerList, WorkerView};

use super::{EVENT, at, job, replayable_gap, text};

pub(crate) fn health() -> HealthView {
    HealthView { healthy: true, answer: "ready".into() }
}

fn trouble() -> TroubleView {
    TroubleView {
        part: "look-ups".into(),
        says: "endpoints cannot be looked up".into(),
        since: at(0),
        error: "permission denied".into(),
        fix: "GRANT SELECT".into(),
    }
}

pub(crate) fn status() -> StatusView {
    let unusable = UnusableView { endpoint: "9".into(), reason: "its secret is not base64".into() };
    StatusView {
        pipeline: "walhook".into(),
        mode: DeliveryMode::Live,
        leader: LeaderView {
            running: Some(true),
            answers: true,
            holder: text("host pid 1"),
            epoch: 3,
            since: Some(at(0)),
        },
        slot: Some(SlotView {
            active: true,
            wal_status: "reserved",
            retained_bytes: 16 << 20,
            safe_bytes: Some(1 << 30),
        }),
        source_error: None,
        slot_problem: text("the slot begins after the checkpoint"),
        idle_pipelines: vec![IdlePipeline { pipeline: "hooks".into(), retained_bytes: 32 << 20 }],
        checkpoint: CheckpointView {
            frontier: "0/200".into(),
            written_at: at(1),
            lag_bytes: Some(512),
        },
        settled_rows: 1,
        deferred: 5,
        unrouted: 2,
        endpoints: BTreeMap::from([("disabled".into(), 1)]),
        state_bytes: 64 << 10,
        invalid_endpoints: InvalidView {
            count: Some(1),
            looked_at: 3,
            more: false,
            first: vec![unusable],
            error: None,
        },
        dead_letters: BTreeMap::from([("exhausted".into(), 1)]),
        gaps: vec![replayable_gap()],
        prepared: Some(PreparedView {
            lsn: "0/100".into(),
            server_version: 170_002,
            prepared_at: at(2),
            holds: true,
        }),
        uncovered: vec!["public.parts_2 is not published".into()],
        disabled_endpoints: vec![DisabledView {
            endpoint: "7".into(),
            reason: "answered 410".into(),
            disabled_at: at(3),
        }],
        paused_endpoints: vec![PausedView {
            endpoint: "8".into(),
            reason: "by an operator".into(),
            since: at(4),
        }],
        jobs: vec![JobView { finished: false, ..job() }],
        halted: Some(HaltView { reason: "the slot is lost".into(), since: Some(at(5)) }),
        troubles: vec![trouble()],
        workers: workers().workers,
        open_transactions: Some(vec![OpenTransactionView {
            xid: 7_341,
            state: "open".into(),
            since: at(0),
            rows: 400_000,
            bytes: 52_428_800,
            kept_in: "spool".into(),
        }]),
        work: Some(work()),
        work_error: None,
    }
}

fn work() -> WorkView {
    WorkView {
        at: at(9),
        pending: 3_000,
        in_flight: 64,
        unrouted_in_memory: 2,
        delivered_per_second: 412.5,
        over_seconds: 60.0,
        p50_ms: Some(12.0),
        p99_ms: Some(340.0),
        oldest: Some(OldestView {
            account_id: "42".into(),
            endpoint: text("7"),
            event_id: EVENT.into(),
            event_type: "subscriber.updated".into(),
            committed_at: at(0),
            attempts: 2,
            cause: "retry".into(),
        }),
        waiting_accounts: 3,
        accounts: vec![AccountWorkView {
            account_id: "42".into(),
            waiting: 2_936,
            in_flight: 64,
            deferred: 5,
            endpoint: text("7"),
            oldest_committed_at: Some(at(0)),
            cause: "endpoint_limit".into(),
        }],
    }
}

pub(crate) fn status_of_little() -> StatusView {
    StatusView {
        mode: DeliveryMode::Log,
        leader: LeaderView { running: None, answers: false, holder: None, epoch: 0, since: None },
        slot: None,
        source_error: text("cannot connect"),
        slot_problem: None,
        idle_pipelines: vec![],
        checkpoint: CheckpointView { lag_bytes: None, ..status().checkpoint },
        settled_rows: 0,
        deferred: 0,
        unrouted: 0,
        endpoints: BTreeMap::new(),
        invalid_endpoints: InvalidView {
            error: text("the source did not answer"),
            ..InvalidView::default()
        },
        dead_letters: BTreeMap::new(),
        gaps: vec![],
        prepared: None,
        uncovered: vec![],
        disabled_endpoints: vec![],
        paused_endpoints: vec![],
        jobs: vec![],
        halted: None,
        troubles: vec![],
        workers: None,
        open_transactions: None,
        work: None,
        work_error: text("no leader runs"),
        ..status()
    }
}

pub(crate) fn unanswered() -> UnansweredView {
    UnansweredView { pipeline: "walhook".into(), slot: status().slot, troubles: vec![trouble()] }
}

pub(crate) fn workers() -> WorkerList {
    let serving = WorkerView {
        session: "0af1b2c3d4e5f60718293a4b5c6d7e8f".into(),
        host: "worker-1 pid 7".into(),
        build: "0.1.0".into(),
        state: "serving".into(),
        since: at(0),
        slots: 1_280,
        in_flight: 12,
        lost: 0,
        seen_at: at(9),
        seen_seconds: 0.5,
    };
    let quarantined = WorkerView {
        session: "1af1b2c3d4e5f60718293a4b5c6d7e8f".into(),
        state: "quarantined".into(),
        lost: 3,
        seen_seconds: 31.5,
        ..serving.clone()
    };
    WorkerList {
        pipeline: "walhook".into(),
        leader_running: Some(true),
        workers: Some(vec![serving, quarantined]),
    }
}

pub(crate) fn unknown_workers() -> WorkerList {
    WorkerList { leader_running: None, workers: None, ..workers() }
}
