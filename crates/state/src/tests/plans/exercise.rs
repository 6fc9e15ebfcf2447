//! Everything that the store does, each time to other rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::super::fixture::{dead, defer, event, range, tried};
use super::Reads::{self, Few, Once};
use crate::deliveries::tests::busy;
use crate::{
    Ask, DeadLetterFilter, DeferredCursor, DeferredFilter, DeliveryCursor, DeliveryFilter,
    EndpointStop, OpenTransaction, SCHEMA_VERSION, StateStore, Told, WorkerRow,
};
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::notice::{Notice, NoticeKind};
use walhook_core::persist::{
    BacklogRow, Blocked, DeadLetter, Defer, DeferReason, DisableEndpoint, EndpointError, EventKey,
    GapChange, JobDone, Joined, PauseEndpoint, PersistBatch, Purge, QueueId, Refill, ReplayCounts,
    Retried, Routed, RowId, RowKey, Tried, UnroutedAccount, UnroutedKey, UnroutedPurge,
    UnroutedRefill,
};
use walhook_core::position::{Position, WalPosition};
use walhook_core::replay::{ReplayFilter, ReplayRange};
use walhook_postgres::coverage::{Coverage, Loss, Moment, Publication};
use walhook_postgres::timelines::Primary;

/// Rows in each part of a batch.
const SOME: u64 = 8;

/// What was used up of the rows that were filled in, and of numbers beyond them.
static USED: AtomicU64 = AtomicU64::new(0);

fn some() -> Vec<u64> {
    let from = USED.fetch_add(SOME, Ordering::Relaxed);
    (from..from + SOME).collect()
}

/// From this number on rows are new ones, of a type of their own.
const NEW: u64 = 1_000_000;

const NEW_TYPE: &str = "a.new";

/// The event of the row with this number.
fn filled(number: u64) -> Arc<Event> {
    let like = event(0x100, "1");
    let position = Position::Wal(WalPosition {
        commit_lsn: Lsn(number),
        change_lsn: Lsn(number),
        relation: 1,
        n: 0,
    });
    Arc::new(Event {
        id: format!("evt_{number:026}").parse().unwrap(),
        position,
        event_type: if number < NEW { Arc::clone(&like.event_type) } else { NEW_TYPE.into() },
        account: AccountId::new("1"),
        operation: like.operation,
        commit_time_us: like.commit_time_us,
        keys: like.keys.clone(),
        row: like.row.clone(),
    })
}

fn queue(endpoint: &str) -> QueueId {
    QueueId { account: AccountId::new("1"), endpoint: EndpointId::new(endpoint) }
}

fn row(number: u64) -> RowId {
    let event = filled(number);
    let key = RowKey { event: EventKey::of(&event), replay: None };
    RowId { queue: queue("7"), key, event: event.id }
}

/// The same delivery for the endpoint whose deliveries stand in pages.
fn paged(number: u64) -> RowId {
    RowId { queue: queue("8"), ..row(number) }
}

/// Names of rows, and of deliveries in pages.
fn named() -> impl Iterator<Item = RowId> {
    some().into_iter().flat_map(|number| [row(number), paged(number)])
}

/// Some rows of the queue tables.
fn queues() -> Vec<QueueId> {
    some().iter().map(|n| queue(&format!("e{n}"))).collect()
}

fn worker(session: &str) -> WorkerRow {
    WorkerRow {
        session: session.into(),
        host: "h".into(),
        build: "x".into(),
        state: "serving".into(),
        slots: 8,
        in_flight: 0,
        lost: 0,
        since_us: 0,
        seen_us: 0,
    }
}

fn open_transaction(xid: u32) -> OpenTransaction {
    OpenTransaction {
        xid,
        state: "open".into(),
        since_us: 0,
        rows: 1,
        bytes: 1,
        kept_in: "memory".into(),
    }
}

fn unrouted(number: u64, to: Option<&str>) -> Routed {
    let row = UnroutedKey { account: AccountId::new("1"), event: EventKey::of(&filled(number)) };
    Routed { row, to: to.map(EndpointId::new) }
}

#[expect(clippy::too_many_lines, reason = "a list")]
/// A batch in which no part is empty; a part that is new does not compile here.
fn batch(number: u64, frontier: Lsn, letters: &[i64], jobs: &[i64]) -> PersistBatch {
    let new = |n: &u64| filled(NEW + n);
    let backlog = |queue: QueueId| BacklogRow {
        queue,
        blocked: Blocked::All,
        rows: 1,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    };
    let error = |queue: QueueId| EndpointError {
        queue,
        since_us: 0,
        failed: 1,
        last_us: 0,
        error: "status 500".to_owned(),
    };
    let counts = |job: &i64| {
        let counts = ReplayCounts { done: 0, failed: 0, deferred: 0, dropped: 0, in_gaps: 0 };
        (ReplayId(*job), counts)
    };
    let retried = |at: usize, error: Option<DeadLetter>| Retried {
        dead_letter: DeadLetterId(letters.get(at).copied().unwrap_or(1)),
        job: JobId(jobs[0]),
        error,
    };
    let gap = |endpoint: String, opens: Option<&str>, growing: bool| GapChange {
        queue: queue(&endpoint),
        opens: opens.map(str::to_owned),
        skipped: 0,
        span: None,
        growing,
    };
    let notice = |endpoint: String| Notice {
        kind: NoticeKind::DeliveryExhausted,
        endpoint: EndpointId::new(endpoint),
        account: None,
        detail: "status 500".to_owned(),
        count: 1,
    };
    let accounts = |rows: u64| {
        some().into_iter().map(move |n| UnroutedAccount {
            account: AccountId::new(format!("a{n}")),
            rows,
            settled: Vec::new(),
        })
    };
    let endpoints = || some().into_iter().map(|n| EndpointId::new(format!("e{n}")));
    let ids = || some().into_iter().map(|n| u32::try_from(n).unwrap());
    PersistBatch {
        number,
        frontier,
        settled: vec![range(0x10_0000_0000, 0x10_0000_0001)],
        dead_letters: some().iter().map(|n| dead(&new(n), "9")).collect(),
        retried: vec![retried(0, None), retried(1, Some(dead(&filled(1), "7")))],
        replayed: vec![counts(&jobs[1])],
        disabled: endpoints()
            .map(|endpoint| DisableEndpoint { endpoint, reason: "answered 410".into() })
            .collect(),
        enabled: endpoints().collect(),
        paused: endpoints()
            .map(|endpoint| PauseEndpoint { endpoint, reason: "asked for".into(), since_us: 0 })
            .collect(),
        jobs_done: vec![JobDone { job: JobId(jobs[0]), done: 1 }],
        unrouted: some().iter().map(new).collect(),
        routed: (some().iter().map(|n| unrouted(*n, None)))
            .chain(some().iter().map(|n| unrouted(*n, Some("7"))))
            .collect(),
        unrouted_accounts: accounts(0).chain(accounts(1)).collect(),
        unrouted_purges: vec![UnroutedPurge { account: AccountId::new("1"), rows: 8 }],
        unseen: ids().collect(),
        seen: ids().collect(),
        joined: endpoints().map(|endpoint| Joined { endpoint, at: Lsn(1) }).collect(),
        joined_passed: false,
        deferred: (some().iter())
            .map(|n| Defer { id: row(NEW + n), ..defer(&new(n), "7") })
            .chain(some().iter().map(|n| Defer {
                id: paged(NEW + n),
                reason: DeferReason::Overflow,
                tried: Tried::default(),
                ..defer(&new(n), "8")
            }))
            .collect(),
        resolved: named().collect(),
        dropped: named().collect(),
        retimed: named().map(|id| (id, tried(2))).collect(),
        died: (some().into_iter())
            .flat_map(|n| [(row(n), dead(&filled(n), "7")), (paged(n), dead(&filled(n), "8"))])
            .collect(),
        backlog: queues().into_iter().map(backlog).collect(),
        backlog_gone: queues(),
        errors: queues().into_iter().map(error).collect(),
        errors_gone: queues(),
        notices: some().iter().map(|n| notice(format!("e{n}"))).collect(),
        gaps: (some().iter())
            .map(|n| gap(format!("g{n}"), None, n % 2 == 0))
            .chain(["7", "8"].map(|endpoint| gap(endpoint.to_owned(), Some("full"), true)))
            .collect(),
        purges: ["7", "8"].map(|endpoint| Purge { queue: queue(endpoint), rows: 8 }).into(),
        letter_purges: vec![Purge { queue: queue("7"), rows: 8 }],
        log: some().into_iter().map(busy).collect(),
    }
}

/// Names each step in its session, and remembers what it may read.
macro_rules! step {
    ($done:ident, $store:ident, $name:ident, $reads:expr, $call:expr) => {{
        let name = stringify!($name);
        let set = format!("SET application_name = '{name}'");
        $store.connection.batch_execute(&set).await.unwrap();
        $done.insert(name, $reads);
        $call.await.unwrap_or_else(|error| panic!("{name}: {error}"))
    }};
}

mod operator;

/// Every method of the store, and what it may read. There are so many rows.
pub(super) async fn run(store: &mut StateStore, rows: u64) -> BTreeMap<&'static str, Reads> {
    let mut done = BTreeMap::new();
    let recovery = step!(done, store, take_lease, Once, store.take_lease("one"));
    let frontier = recovery.start.frontier;
    leading(store, &mut done, frontier, rows).await;
    listing(store, &mut done).await;
    operator::changing(store, &mut done).await;

    step!(done, store, source_identity, Few, store.source_identity());
    step!(done, store, current_epoch, Few, store.current_epoch());
    step!(done, store, holder, Few, store.holder());
    step!(done, store, store_halt, Few, store.store_halt("x"));
    step!(done, store, clear_halt, Few, store.clear_halt());
    step!(done, store, set_timeline, Few, store.set_timeline(3));
    let identity = store.source_identity().await.unwrap();
    let primary =
        Primary { system_identifier: identity.system_identifier, timeline: identity.timeline };
    step!(done, store, note_reached, Few, store.note_reached(primary, Lsn(u64::MAX)));
    operator::discarding(store, &mut done).await;
    recovering(store, &mut done, rows).await;

    step!(done, store, sizes, Once, store.sizes());
    step!(done, store, worth_a_vacuum, Once, store.worth_a_vacuum(false));
    if rows == 1 {
        step!(done, store, vacuum, Once, store.vacuum("slots"));
        step!(done, store, count_rows, Once, store.count_rows());
    }
    if rows >= 10_000 {
        step!(done, store, lower_version, Once, store.lower_version(SCHEMA_VERSION));
    }
    step!(done, store, reconnect, Few, store.reconnect());
    done.extend(["open", "open_with", "open_to_lead", "closed"].map(|name| (name, Few)));
    done
}

/// What a leader does all the time.
async fn leading(
    store: &mut StateStore,
    done: &mut BTreeMap<&'static str, Reads>,
    frontier: Lsn,
    rows: u64,
) {
    step!(done, store, frontier, Few, store.frontier());
    let replay = ReplayRange {
        from: Lsn(1),
        to: Lsn(9),
        from_oldest: false,
        filter: ReplayFilter { endpoint: Some("7".into()), ..ReplayFilter::default() },
    };
    let first = step!(done, store, create_replay, Few, store.create_replay(&replay));
    let second = store.create_replay(&replay).await.unwrap();
    let pause = Ask::PauseEndpoint(EndpointStop { endpoint: "7".into(), reason: "x".into() });
    let job = step!(done, store, create_job, Few, store.create_job(&pause)).unwrap();
    step!(done, store, asked, Few, store.asked());
    step!(done, store, next_job_beside, Few, store.next_job_beside(&[job.id], false));
    step!(done, store, job_before, Few, store.job_before(job.id));
    step!(done, store, next_replay, Few, store.next_replay());
    step!(done, store, set_replay_position, Few, store.set_replay_position(first.id, Lsn(9)));
    step!(done, store, job, Few, store.job(job.id));
    step!(done, store, unfinished_jobs, Few, store.unfinished_jobs());
    let letters: Vec<_> = some().iter().map(|n| n.cast_signed() + 1).collect();
    let batch = batch(USED.load(Ordering::Relaxed), frontier, &letters, &[job.id.0, first.id.0]);
    step!(done, store, persist, Few, store.persist(&batch));
    step!(done, store, check_last, Few, store.check_last());
    step!(done, store, finish_job, Few, store.finish_job(job.id, None));
    step!(done, store, close_replayed_gaps, Once, store.close_replayed_gaps(first.id, &replay));
    step!(done, store, replay, Few, store.replay(first.id));
    step!(done, store, cancel_replay, Few, store.cancel_replay(second.id));
    store.cancel_replay(first.id).await.unwrap();
    step!(done, store, cancelled_replay, Few, store.cancelled_replay());
    let events: Vec<String> = some().iter().map(|n| filled(*n).id.to_string()).collect();
    step!(done, store, replayed_before, Few, store.replayed_before(first.id, &events));
    let refills: Vec<Refill> = named()
        .map(|id| Refill { queue: id.queue, from: Some(id.key), rows: 8, bytes: 1 << 20 })
        .collect();
    step!(done, store, refill, Few, store.refill(&refills));
    let refill = UnroutedRefill {
        account: AccountId::new("1"),
        after: Some(EventKey::of(&filled(rows / 2))),
        rows: 8,
        bytes: 1 << 20,
    };
    step!(done, store, unrouted, Few, store.unrouted(&[refill]));
    let notice = step!(done, store, next_notice, Few, store.next_notice());
    if let Some(notice) = notice {
        let later = Duration::from_secs(3_600);
        step!(done, store, put_notice_off, Few, store.put_notice_off(&notice, 1, later));
        step!(done, store, end_notice, Few, store.end_notice(&notice));
    }
    let told = Told {
        part: format!("p{rows}"),
        says: "x".into(),
        since: "x".into(),
        error: "x".into(),
        fix: "x".into(),
    };
    step!(done, store, store_troubles, Few, store.store_troubles(&[told]));
    step!(done, store, troubles, Few, store.troubles());
    let workers: Vec<_> = some().iter().map(|n| worker(&format!("{n:032x}"))).collect();
    step!(done, store, store_workers, Few, store.store_workers(&workers));
    step!(done, store, workers, Few, store.workers());
    let minute = Duration::from_secs(60);
    step!(done, store, sessions_of_workers, Few, store.sessions_of_workers(minute));
    let open: Vec<_> =
        some().iter().map(|n| open_transaction(u32::try_from(*n).unwrap())).collect();
    step!(done, store, store_open_transactions, Few, store.store_open_transactions(&open));
    step!(done, store, open_transactions, Few, store.open_transactions());
    let at_us = i64::try_from(rows + 100_000).unwrap() * 60_000_000;
    let end = Lsn(0xf_0000_0000);
    step!(done, store, record_history, Once, store.record_history(at_us, end, Lsn(0)));
    step!(done, store, position_before, Few, store.position_before(3_600_000_000));
    step!(done, store, position_after, Few, store.position_after(3_600_000_000));
    step!(done, store, time_of, Once, store.time_of(Lsn(100)));
    step!(done, store, expire, Once, store.expire(Duration::from_secs(86_400)));
    step!(done, store, holders, Once, store.holders());
    logging(store, done).await;
    looking(store, done).await;
}

/// The delivery log.
async fn logging(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>) {
    let any = DeliveryFilter::default();
    let (page, last) = (busy(7), DeliveryCursor(50));
    let of = DeliveryFilter {
        account: Some(page.account.to_string()),
        endpoint: Some(page.endpoint.to_string()),
        event_type: Some("none".into()),
        outcome: Some("dead".into()),
        ..any.clone()
    };
    // Rows of pages are looked at, without their data.
    step!(done, store, deliveries, Once, store.deliveries(&any, 8, Some(last)));
    step!(done, store, deliveries_of, Once, store.deliveries(&of, 8, None));
    step!(done, store, count_deliveries, Once, store.count_deliveries(&of));
    step!(done, store, story, Once, store.story(page.event, 8));
    step!(done, store, merge_deliveries, Once, store.merge_deliveries(DeliveryCursor(0)));
    step!(done, store, deliveries_size, Once, store.deliveries_size());
    let century = Duration::from_secs(1_000 * 365 * 86_400);
    step!(done, store, expire_deliveries, Few, store.expire_deliveries(century, 1));
    step!(done, store, yield_deliveries, Once, store.yield_deliveries());
    step!(done, store, erase_deliveries, Once, store.erase_deliveries("nobody", "x"));
    step!(done, store, erasures, Few, store.erasures(8));
}

/// The last look at the publication.
async fn looking(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>) {
    let publication = Publication {
        oid: 1,
        name: "x".into(),
        owner: 1,
        version: "1".into(),
        owned_since: None,
        options: BTreeMap::new(),
        alterations: 0,
        schemas: std::collections::BTreeSet::new(),
        since: None,
    };
    let seen = Coverage { cluster: "x".into(), publication, tables: BTreeMap::new() };
    let at = Moment { lsn: Lsn(1), xid: 1 };
    let loss = Loss {
        table: "t".into(),
        under: Default::default(),
        from: at,
        to: at,
        reason: "x".into(),
        find: None,
    };
    step!(done, store, store_look, Few, store.store_look(at, &seen, &[loss], &["x".into()]));
    step!(done, store, last_look, Few, store.last_look());
    step!(done, store, coverage_alarms, Few, store.coverage_alarms());
}

/// What an operator's commands show.
async fn listing(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>) {
    let (any, letters) = (DeferredFilter::default(), DeadLetterFilter::default());
    let begin = DeferredCursor::default();
    let middle = DeferredCursor { event: filled(some()[0]).id.to_string(), ..begin.clone() };
    let ids = Some(some().iter().map(|n| filled(*n).id.to_string()).collect());
    let named = DeferredFilter { ids, ..any.clone() };
    // Pages have no index by event.
    step!(done, store, deferred, Once, store.deferred(&any, &middle, 8));
    step!(done, store, deferred_named, Once, store.deferred(&named, &begin, 8));
    let of =
        DeferredFilter { endpoint: Some("none".into()), account: Some("1".into()), ..any.clone() };
    step!(done, store, deferred_of, Once, store.deferred(&of, &begin, 8));
    step!(done, store, count_deferred, Once, store.count_deferred(&of));
    let of_types = DeferredFilter { event_type: Some("a.*".into()), ..any.clone() };
    step!(done, store, count_of_types, Once, store.count_deferred(&of_types));
    step!(done, store, count_named, Once, store.count_deferred(&named));
    step!(done, store, without_endpoint, Once, store.without_endpoint(&any));
    step!(done, store, dead_letters, Few, store.dead_letters(&letters, 1, 8));
    let of = DeadLetterFilter {
        endpoint: Some("none".into()),
        account: Some("1".into()),
        ..letters.clone()
    };
    step!(done, store, letters_of, Once, store.dead_letters(&of, 0, 8));
    let ids = Some(some().iter().map(|n| n.cast_signed() + 1).collect());
    let named = DeadLetterFilter { ids, ..letters.clone() };
    step!(done, store, letters_named, Few, store.dead_letters(&named, 0, 8));
    step!(done, store, count_dead_letters, Once, store.count_dead_letters(&of));
    let own = some().iter().map(|n| dead(&filled(*n), "7")).collect::<Vec<_>>();
    let own: Vec<&DeadLetter> = own.iter().collect();
    step!(done, store, letter_ids, Few, store.letter_ids(&own));
    let event = filled(*some().first().unwrap()).id;
    step!(done, store, letters_of_event, Few, store.letters_of_event(event));
    step!(done, store, event_of_rows, Few, store.event_of_rows(event));
    step!(done, store, event_of_page, Once, store.event_of_page(event));
    step!(done, store, unrouted_event, Once, store.unrouted_event(event));
    step!(done, store, standings, Once, store.standings(None, "", 8));
    step!(done, store, troubled, Once, store.troubled());
    step!(done, store, overview, Once, store.overview());
    step!(done, store, gaps, Once, store.gaps(true));
    step!(done, store, replays, Once, store.replays(8));
    step!(done, store, left_out, Once, store.left_out(Lsn(1)));
}

/// What resolves a halt.
async fn recovering(store: &mut StateStore, done: &mut BTreeMap<&'static str, Reads>, rows: u64) {
    let identity = store.source_identity().await.unwrap();
    let at = store.frontier().await.unwrap();
    let version = i32::try_from(150_000 + rows).unwrap();
    step!(done, store, prepare_upgrade, Few, store.prepare_upgrade(at, version));
    step!(done, store, prepared, Few, store.prepared());
    step!(done, store, resume_prepared, Once, store.resume_prepared(at, at));
    step!(done, store, forget_prepared, Few, store.forget_prepared());
    step!(done, store, go_on, Once, store.go_on(at));
    step!(done, store, adopt, Once, store.adopt(at, &identity));
    step!(done, store, reached, Few, store.reached());
    step!(done, store, adopt_branch, Once, store.adopt_branch(at, at, &identity));
    step!(done, store, leave_out, Once, store.leave_out(at, Lsn(5), "x"));
    step!(done, store, accept_gap, Once, store.accept_gap(at, at, "x", None));
    step!(done, store, finish_upgrade, Once, store.finish_upgrade(at, at, &identity, None));
}
