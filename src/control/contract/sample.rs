//! A view of each kind, for the tests of its JSON and of its text.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::config::DeliveryMode;
use crate::control::check::{CheckView, Finding, Verdict};
use crate::control::checkpoint::{PositionsView, RangeView, SkippedView};
use crate::control::config::ValidView;
use crate::control::dead_letters::{
    AttemptView, DeadLetterPage, DeadLetterView, RetryView, WholeDeadLetter,
};
use crate::control::deferred::{
    DeferredPage, DeferredView, Discarded, OfAccountView, WithoutEndpointView,
};
use crate::control::endpoints::{EndpointPage, EndpointView, ProbeView, StopView};
use crate::control::events::log::{ErasedView, LinePage};
use crate::control::events::{DeliveryView, EventView, LineView};
use crate::control::gaps::{ClosedGap, GapList, GapView, ReplayableGap};
use crate::control::health::HealthView;
use crate::control::jobs::JobView;
use crate::control::recover::skip::SkippedChange;
use crate::control::recover::{NothingView, Recovered, RecoveredView};
use crate::control::replay::{CancelledView, CountsView, FilterView, ReplayList, ReplayView};
use crate::control::setup::{Did, ScriptView, SetupView, StepView};
use crate::control::status::invalid::UnusableView;
use crate::control::status::work::{AccountWorkView, OldestView, WorkView};
use crate::control::status::{
    CheckpointView, DisabledView, HaltView, InvalidView, LeaderView, OpenTransactionView,
    PausedView, PreparedView, SlotView, StatusView, TroubleView, UnansweredView,
};
use crate::control::teardown::TornDown;
use crate::control::upgrade::finish::{Finished, FinishedView};
use crate::control::upgrade::prepare::{self, Prepared};
use crate::control::workers::{WorkerList, WorkerView};

const EVENT: &str = "evt_01KB4ZD2G0ABCDEFGHJKMNPQRS";

fn at(seconds: u32) -> String {
    format!("2026-11-28T12:00:{seconds:02}.000000Z")
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn range(from: &str, to: &str) -> RangeView {
    RangeView { from: from.into(), to: to.into() }
}

pub(crate) fn check() -> CheckView {
    let finding = |verdict, what: &str, finding: &str, fix| Finding {
        verdict,
        what: what.into(),
        finding: finding.into(),
        fix,
    };
    let findings = vec![
        finding(Verdict::Pass, "server", "version 18.1", None),
        finding(Verdict::Warn, "max_slot_wal_keep_size", "-1", text("set it to 50GB")),
        finding(Verdict::Fail, "wal_level", "replica", text("set wal_level = logical")),
    ];
    CheckView { failures: 1, findings, warnings: 1 }
}

pub(crate) fn positions() -> PositionsView {
    PositionsView {
        frontier: "0/100".into(),
        written_at: at(0),
        confirmed_flush_lsn: text("0/200"),
        restart_lsn: text("0/80"),
        current_lsn: "0/300".into(),
        possible: Some(range("0/200", "0/300")),
        lost: None,
        lag_bytes: 512,
        missing_bytes: 256,
        replayable: Some(range("0/80", "0/100")),
        no_replay: None,
    }
}

pub(crate) fn positions_of_a_lost_slot() -> PositionsView {
    PositionsView {
        confirmed_flush_lsn: None,
        restart_lsn: None,
        possible: None,
        lost: text("max_slot_wal_keep_size was exceeded. Raise it"),
        missing_bytes: 0,
        replayable: None,
        no_replay: text("no window"),
        ..positions()
    }
}

pub(crate) fn skipped() -> SkippedView {
    SkippedView { skipped: range("0/100", "0/200") }
}

pub(crate) fn valid() -> ValidView {
    ValidView { rules: 2, valid: true }
}

fn dead_letter(id: i64) -> DeadLetterView {
    DeadLetterView {
        account_id: "42".into(),
        attempts: 12,
        detail: "status 500".into(),
        died_at: at(0),
        endpoint: text("7"),
        event_id: EVENT.into(),
        id,
        last_status: Some(500),
        reason: "exhausted".into(),
        tried_at: at(1),
        event_type: "subscriber.updated".into(),
    }
}

fn unroutable() -> DeadLetterView {
    DeadLetterView {
        account_id: String::new(),
        attempts: 0,
        endpoint: None,
        last_status: None,
        reason: "unroutable".into(),
        ..dead_letter(2)
    }
}

pub(crate) fn dead_letter_page() -> DeadLetterPage {
    DeadLetterPage {
        beyond: vec![GapView { dead_letters: true, last_at: Some(at(9)), ..gap() }],
        dead_letters: vec![dead_letter(1), unroutable()],
        next_after: Some(2),
    }
}

pub(crate) fn empty_dead_letter_page() -> DeadLetterPage {
    DeadLetterPage { beyond: vec![], dead_letters: vec![], next_after: None }
}

fn attempts() -> Vec<AttemptView> {
    vec![
        AttemptView { at: at(0), status: Some(503), latency_ms: 12, error: "status 503".into() },
        AttemptView { at: at(1), status: None, latency_ms: 15_000, error: "timeout".into() },
    ]
}

pub(crate) fn whole_dead_letter() -> WholeDeadLetter {
    let body = r#"{"id":"evt_1","data":{"id":1},"score":1.50}"#;
    WholeDeadLetter {
        letter: dead_letter(1),
        history: attempts(),
        commit_lsn: "0/210".into(),
        change_lsn: "0/20F".into(),
        body: RawValue::from_string(body.into()).unwrap(),
        committed_at: at(0),
    }
}

fn failed_line() -> LineView {
    LineView {
        at: at(1),
        what: "failed".into(),
        reason: None,
        event_id: EVENT.into(),
        event_type: "subscriber.updated".into(),
        account_id: "42".into(),
        endpoint: text("7"),
        attempt: Some(2),
        status: Some(503),
        failure: None,
        latency_ms: Some(12.0),
        waits_ms: BTreeMap::from([("retry".into(), 900.0)]),
        excerpt: text("status 503"),
        replay_id: None,
        dead_letter: None,
        committed_at: at(0),
        commit_lsn: "0/210".into(),
    }
}

fn deferred_line() -> LineView {
    LineView {
        at: at(2),
        what: "deferred".into(),
        reason: text("failed"),
        attempt: None,
        status: None,
        latency_ms: None,
        waits_ms: BTreeMap::new(),
        excerpt: None,
        replay_id: Some(3),
        ..failed_line()
    }
}

pub(crate) fn line_page() -> LinePage {
    LinePage { lines: vec![deferred_line(), failed_line()], next_before: Some(17) }
}

pub(crate) fn erased() -> ErasedView {
    ErasedView {
        id: 1,
        account_id: "42".into(),
        erased_by: "support, ticket 5".into(),
        begun_at: at(0),
        finished_at: Some(at(1)),
        lines: 12,
        unreadable_pages: 0,
    }
}

pub(crate) fn event() -> EventView {
    let deferred = DeliveryView {
        endpoint: text("7"),
        replay_id: None,
        state: "deferred".into(),
        since: Some(at(2)),
        reason: text("failed"),
        detail: text("status 503"),
        cause: text("attempt"),
        attempts: 2,
        next_attempt_at: Some(at(10)),
        dead_letter: None,
        gap: None,
        lines: vec![failed_line(), deferred_line()],
    };
    let dead = DeliveryView {
        endpoint: text("8"),
        replay_id: Some(3),
        state: "dead_letter".into(),
        reason: text("exhausted"),
        cause: None,
        next_attempt_at: None,
        dead_letter: Some(1),
        gap: Some(3),
        lines: vec![],
        ..deferred.clone()
    };
    let whole = whole_dead_letter();
    EventView {
        event_id: EVENT.into(),
        event_type: text("subscriber.updated"),
        account_id: text("42"),
        committed_at: at(0),
        commit_lsn: text("0/210"),
        settled: Some(false),
        deliveries: vec![deferred, dead],
        memory_error: None,
        body: Some(whole.body),
        body_from: text("state"),
        no_body: None,
        note: None,
    }
}

pub(crate) fn unknown_event() -> EventView {
    EventView {
        event_type: None,
        account_id: None,
        commit_lsn: None,
        settled: None,
        deliveries: vec![],
        memory_error: text("no admin server answers at 127.0.0.1:9723: connection refused"),
        body: None,
        body_from: None,
        no_body: text("no row holds it; --body looks into the replay window"),
        note: text("no table has it"),
        ..event()
    }
}

pub(crate) fn retried() -> RetryView {
    let job = JobView { kind: "dead_letters.retry".into(), ..job() };
    RetryView { job, errors: vec![dead_letter(1)] }
}

pub(crate) fn discarded() -> Discarded {
    Discarded { discarded: 0 }
}

fn deferred() -> DeferredView {
    DeferredView {
        event_id: EVENT.into(),
        event_type: "subscriber.updated".into(),
        account_id: "42".into(),
        endpoint: "7".into(),
        replay_id: 0,
        reason: "failed".into(),
        attempts: 2,
        next_attempt_at: Some(at(10)),
        last_status: Some(503),
        detail: "status 503".into(),
        deferred_at: at(2),
        history: attempts(),
    }
}

pub(crate) fn deferred_page() -> DeferredPage {
    let untried = DeferredView {
        replay_id: 3,
        reason: "overflow".into(),
        attempts: 0,
        next_attempt_at: None,
        last_status: None,
        detail: String::new(),
        history: vec![],
        ..deferred()
    };
    let of = |account: &str, events| OfAccountView { account_id: account.into(), events };
    let without_endpoint = WithoutEndpointView {
        events: 14,
        accounts: 13,
        since: at(0),
        most: vec![of("40", 2), of("50", 1)],
        fix: "`walhook check` says why",
    };
    DeferredPage {
        deferred: vec![deferred(), untried],
        next_after: Some(format!("{EVENT}/3/7")),
        without_endpoint: Some(without_endpoint),
    }
}

pub(crate) fn empty_deferred_page() -> DeferredPage {
    DeferredPage { deferred: vec![], next_after: None, without_endpoint: None }
}

pub(crate) fn endpoint_page() -> EndpointPage {
    let failing = EndpointView {
        id: "7".into(),
        account_id: text("42"),
        host: text("hooks.example:8080"),
        enabled: Some(true),
        state: "failing".into(),
        reason: text("3 requests have failed in a row"),
        since: Some(at(0)),
        deferred: 5,
        dead_letters: 1,
        last_error: text("status 503"),
        last_error_at: Some(at(1)),
        failed: 3,
    };
    let removed = EndpointView {
        id: "8".into(),
        account_id: None,
        host: None,
        enabled: None,
        state: "removed".into(),
        reason: None,
        since: None,
        deferred: 0,
        dead_letters: 2,
        last_error: None,
        last_error_at: None,
        failed: 0,
    };
    EndpointPage { endpoints: vec![failing, removed], next_after: text("8") }
}

pub(crate) fn probe() -> ProbeView {
    ProbeView {
        account_id: "42".into(),
        answer: text("thanks"),
        delivered: true,
        endpoint: "7".into(),
        error: None,
        event_id: EVENT.into(),
        host: text("hooks.example"),
        latency_ms: 12,
        status: Some(200),
    }
}

pub(crate) fn failed_probe() -> ProbeView {
    let error = text("dns: no such host");
    ProbeView { answer: None, delivered: false, error, host: None, status: None, ..probe() }
}

pub(crate) fn stopped() -> StopView {
    let work = JobView { kind: "endpoints.pause".into(), ..job() };
    StopView { changed: true, endpoint: "7".into(), finished: true, job: 4, work }
}

fn gap() -> GapView {
    GapView {
        id: 3,
        from_lsn: "0/10".into(),
        to_lsn: "0/FF".into(),
        endpoint: text("7"),
        account: text("42"),
        table: None,
        find: None,
        removed: 5,
        skipped: 2,
        growing: false,
        dead_letters: false,
        last_at: None,
        unreadable: false,
        other_wal: false,
        unrouted: false,
        reason: "suspended".into(),
        recorded_at: at(0),
        closed_at: None,
        note: None,
    }
}

fn replayable_gap() -> ReplayableGap {
    let replay = text("walhook replay start --from 0/10 --to 0/100 --endpoint 7 --account 42");
    ReplayableGap { gap: gap(), replay, no_replay: None }
}

fn unpublished() -> ReplayableGap {
    let gap = GapView {
        endpoint: None,
        account: None,
        table: text("public.subscribers"),
        find: text("SELECT * FROM public.subscribers"),
        removed: 0,
        skipped: 0,
        ..gap()
    };
    ReplayableGap { gap, replay: None, no_replay: text("it is in no slot's stream") }
}

pub(crate) fn gap_list() -> GapList {
    GapList { gaps: vec![replayable_gap(), unpublished()] }
}

pub(crate) fn closed_gap() -> ClosedGap {
    ClosedGap { closed: GapView { closed_at: Some(at(5)), note: text("sent by hand"), ..gap() } }
}

pub(crate) fn health() -> HealthView {
    HealthView { healthy: true, answer: "ready".into() }
}

pub(crate) fn job() -> JobView {
    JobView {
        id: 4,
        kind: "deferred.retry".into(),
        total: 3,
        done: 1,
        failed: 1,
        created_at: at(0),
        finished: true,
        error: None,
    }
}

pub(crate) fn job_with_error() -> JobView {
    JobView { error: text("the arguments cannot be read"), ..job() }
}

pub(crate) fn recovered() -> Recovered<RecoveredView> {
    let recovered = RecoveredView {
        from: "0/100".into(),
        to: "0/200".into(),
        bytes: Some(256),
        reason: "the slot is lost".into(),
        epoch: 4,
        gap: Some(replayable_gap()),
    };
    Recovered { recovered }
}

pub(crate) fn nothing_to_recover() -> NothingView {
    NothingView { detail: "the slot reaches back to the checkpoint".into(), recovered: None }
}

pub(crate) fn skipped_change() -> Recovered<SkippedChange> {
    let recovered = SkippedChange {
        bytes: None,
        epoch: 4,
        from: "0/100".into(),
        reason: "the transaction cannot be read to its end".into(),
        to: "0/101".into(),
    };
    Recovered { recovered }
}

pub(crate) fn replay() -> ReplayView {
    let filter = FilterView { account: text("42"), ..FilterView::default() };
    ReplayView {
        id: 3,
        from: "0/64".into(),
        to: "0/C8".into(),
        from_oldest: false,
        filter,
        position: "0/96".into(),
        delivered: 5,
        waiting: 2,
        dead: 1,
        dropped: 0,
        in_gaps: 0,
        done: 5,
        failed: 1,
        created_at: at(0),
        finished: false,
        error: None,
        fraction: 0.5,
    }
}

pub(crate) fn plain_replay() -> ReplayView {
    let filter = FilterView::default();
    let (finished, error) = (true, text("cancelled"));
    ReplayView { from_oldest: true, filter, finished, error, ..replay() }
}

pub(crate) fn replay_list() -> ReplayList {
    let filter = FilterView {
        account: text("42"),
        endpoint: text("7"),
        types: vec!["subscriber.*".into()],
        since_us: Some(1_763_919_960_000_000),
        until_us: Some(1_763_919_970_000_000),
        events: vec![EVENT.into()],
    };
    ReplayList { replays: vec![ReplayView { filter, ..replay() }, plain_replay()] }
}

pub(crate) fn cancelled() -> CancelledView {
    CancelledView { cancelled: 3 }
}

pub(crate) fn counts() -> CountsView {
    let by_type = BTreeMap::from([("subscriber.updated".to_owned(), 8)]);
    CountsView { events: 4, deliveries: 8, by_type, unroutable: 1 }
}

pub(crate) fn setup() -> SetupView {
    let step =
        |step: &str, did, detail: &str| StepView { step: step.into(), did, detail: detail.into() };
    let steps = vec![
        step("state schema walhook", Did::Exists, "24 tables"),
        step("publication walhook", Did::Changed, "public.subscribers added"),
        step("slot walhook", Did::Created, "begins at 0/100"),
    ];
    SetupView { steps }
}

pub(crate) fn script() -> ScriptView {
    ScriptView { sql: "SET search_path = pg_catalog, pg_temp;\n".into() }
}

pub(crate) fn torn_down() -> TornDown {
    let kept = vec!["the schema walhook: it holds other pipelines".to_owned()];
    TornDown { dropped: vec!["slot walhook".to_owned()], kept }
}

pub(crate) fn finished() -> FinishedView {
    let finished = Finished {
        from: "0/100".into(),
        slot_carried: false,
        deferred: 2,
        dead_letters: 1,
        gap: Some(replayable_gap()),
        epoch: 4,
    };
    FinishedView { finished }
}

pub(crate) fn prepared() -> prepare::PreparedView {
    let prepared = Prepared {
        lsn: "0/100".into(),
        server_version: 170_002,
        slots_carried: true,
        deferred: 2,
        dead_letters: 1,
        open_gaps: 1,
        other_slots: vec!["reports".into()],
        next: vec!["stop the server now".into()],
        slots: ["walhook".into(), "walhook_anchor".into()],
    };
    prepare::PreparedView { prepared }
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
        leader: LeaderView { running: None, holder: None, epoch: 0, since: None },
        slot: None,
        source_error: text("cannot connect"),
        slot_problem: None,
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
    UnansweredView { pipeline: "walhook".into(), troubles: vec![trouble()] }
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
