use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::*;
use crate::dispatcher::{LookUpAnswer, OperatorInput, Ordering, Replay, ReplayInput, Retry};
use crate::retry::RetryPolicy;
use crate::route::LookUpLine;
use crate::settle::SettlePolicy;
use walhook_core::attempt::{DeliveryId, FailureKind, Meaning, Outcome, Record};
use walhook_core::delivery_log::Keep;
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{
    AccountId, EndpointId, Event, Invalidation, Item, Operation, Scope, Unroutable,
    UnroutableReason,
};
use walhook_core::id::{DeadLetterId, JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, Blocked, Deferred, DisableEndpoint, EndpointError, EventKey, GapChange, Joined,
    PauseEndpoint, Persisted, Purged, QueueId, Refilled, ReplayCounts, RowKey, SettledRange,
    Unrouted, UnroutedAccount, UnroutedPage, UnroutedPurged,
};
use walhook_core::position::{EventId, Position, WalPosition};
use walhook_core::room::{Holder, Measured, StateSize};

const KEY: fn() -> Key = || Key::new([7; 32]);

fn event() -> Arc<Event> {
    let position =
        WalPosition { commit_lsn: Lsn(900), change_lsn: Lsn(800), relation: 16_384, n: 1 };
    let position = Position::Wal(position);
    Arc::new(Event {
        id: EventId::derive(1, &position, "subscriber.created", 5),
        position,
        event_type: "subscriber.created".into(),
        account: AccountId::new("42"),
        operation: Operation::Insert,
        commit_time_us: 5,
        keys: smallvec![u64::MAX, 1],
        row: Bytes::from_static(b"\"data\":{\"email\":\"hush@example.com\"}"),
    })
}

fn queue() -> QueueId {
    QueueId { account: AccountId::new("42"), endpoint: EndpointId::new("7") }
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: EndpointId::new("7"),
        account: AccountId::new("42"),
        url: "https://a.example/hush?hush".to_owned(),
        event_types: vec!["*".to_owned()],
        secrets: vec![Secret::new("hush")],
        enabled: true,
        headers: vec![("x-token".to_owned(), "hush".to_owned())],
        max_in_flight: Some(1),
        rate_per_second: Some(1.0 / 3.0),
        invalid: None,
    }
}

fn items() -> Vec<Item> {
    let one = Scope::Endpoint {
        endpoints: smallvec![EndpointId::new("7")],
        accounts: smallvec![AccountId::new("42")],
    };
    let unroutable =
        Unroutable { event: event(), reason: UnroutableReason::Value, detail: "hush".to_owned() };
    vec![
        Item::Begin { commit_lsn: Lsn(900) },
        Item::Event(event()),
        Item::Unroutable(unroutable),
        Item::Invalidate(Invalidation {
            joined: smallvec![EndpointId::new("8")],
            ..Invalidation::new(3, one)
        }),
        Item::Invalidate(Invalidation::new(4, Scope::All)),
        Item::Commit { end_lsn: Lsn(901) },
        Item::Pause,
        Item::Resume { commit_lsn: Lsn(900) },
        Item::Progress { wal_end: Lsn(902) },
    ]
}

fn outcome(meaning: Meaning) -> Input {
    let record =
        Record { status: Some(500), failure: Some(FailureKind::Tls), text: "500: hush".to_owned() };
    let elapsed = Duration::new(3, 141_592_653);
    let outcome = Outcome { record, resends: 2, ..Outcome::new(meaning, elapsed) };
    Input::Outcome { delivery: DeliveryId(u64::MAX), outcome }
}

fn refused(retry_after: Option<Duration>) -> Meaning {
    Meaning::Refused { retry_after, overloaded: true }
}

fn persisted() -> Persisted {
    Persisted {
        purged: vec![Purged { queue: queue(), rows: 5, all: true }],
        letters_purged: vec![Purged { queue: queue(), rows: 6, all: false }],
        unrouted_purged: vec![UnroutedPurged { account: AccountId::new("42"), rows: 7, all: true }],
        beyond: vec![queue()],
        log_dropped: 4,
    }
}

fn inputs() -> Vec<Input> {
    let key = RowKey { event: EventKey::of(&event()), replay: Some(ReplayId(-1)) };
    let row = Deferred {
        key: key.clone(),
        event: event(),
        attempts: 3,
        first_attempt_us: Some(-1),
        due_us: None,
    };
    let routes = vec![
        (AccountId::new("42"), Routes::new(vec![Arc::new(endpoint())], 0.1)),
        (AccountId::new("43"), Routes::too_large(2.0)),
    ];
    let (reason, endpoint) = ("hush".to_owned(), EndpointId::new("7"));
    let counts = ReplayCounts { done: 1, ..ReplayCounts::default() };
    let measured = Measured {
        size: StateSize { total_bytes: 3, used_bytes: 2, unrouted_bytes: 1 },
        holders: vec![Holder { queue: queue(), letters: 4, letter_bytes: 5 }],
    };
    vec![
        Input::Items(items()),
        outcome(Meaning::Delivered),
        outcome(Meaning::Gone),
        outcome(refused(Some(Duration::from_millis(1)))),
        outcome(refused(None)),
        outcome(Meaning::TimedOut),
        outcome(Meaning::Failed),
        outcome(Meaning::Invalid),
        outcome(Meaning::Aborted),
        outcome(Meaning::Oversize),
        outcome(Meaning::Lost),
        outcome(Meaning::Local),
        Input::Unsent(DeliveryId(7)),
        Input::Slots { fast: 0, slow: u32::MAX },
        Input::Doubt { deliveries: vec![DeliveryId(7)], doubtful: true },
        Input::Routes(Box::new(LookUpAnswer {
            line: LookUpLine::Costly,
            snapshot: "8:10:9".parse().unwrap(),
            costly: vec![AccountId::new("45")],
            put_off: vec![(AccountId::new("44"), Duration::from_secs(5))],
            answers: routes,
        })),
        Input::DeferredPages(vec![Refilled { queue: queue(), rows: vec![row], end: true }]),
        Input::UnroutedPages(vec![UnroutedPage {
            account: AccountId::new("42"),
            rows: vec![Unrouted { event: event(), routed_to: Some(endpoint.clone()) }],
            end: false,
        }]),
        Input::Stored(Box::new(persisted())),
        Input::StateSize(Box::new(measured)),
        Input::ConnectionBytes(usize::MAX),
        Input::Command(Box::new(OperatorInput::Pause {
            job: JobId(1),
            endpoint: endpoint.clone(),
            reason,
        })),
        Input::Command(Box::new(OperatorInput::Resume {
            job: JobId(2),
            endpoint: endpoint.clone(),
        })),
        Input::Command(Box::new(OperatorInput::RowsChanged(vec![(queue(), key.clone())]))),
        Input::Command(Box::new(OperatorInput::RowsBeingRemoved(vec![(queue(), key.clone())]))),
        Input::Command(Box::new(OperatorInput::RowsRemoved(vec![(queue(), key)]))),
        Input::Command(Box::new(OperatorInput::Hurry(vec![queue()]))),
        Input::Retry(Box::new(Retry {
            dead_letter: DeadLetterId(1),
            job: JobId(2),
            event: event(),
            endpoint: endpoint.clone(),
        })),
        Input::Replay(Box::new(ReplayInput::Start(ReplayId(9), counts))),
        Input::Replay(Box::new(ReplayInput::Deliver(Replay {
            replay: ReplayId(9),
            event: event(),
            endpoint,
        }))),
        Input::Replay(Box::new(ReplayInput::End(ReplayId(9)))),
        Input::WindDown,
        Input::Stop,
    ]
}

/// A number for each kind: one that is added does not compile until it is here, and not pass until it is above.
fn kind(input: &Input) -> u32 {
    match input {
        Input::Items(_) => 0,
        Input::Outcome { .. } => 1,
        Input::Routes(_) => 2,
        Input::DeferredPages(_) => 3,
        Input::UnroutedPages(_) => 4,
        Input::Stored(_) => 5,
        Input::StateSize(_) => 6,
        Input::ConnectionBytes(_) => 7,
        Input::Command(_) => 8,
        Input::Retry(_) => 9,
        Input::Replay(_) => 10,
        Input::Stop => 11,
        Input::Unsent(_) => 12,
        Input::Slots { .. } => 13,
        Input::Doubt { .. } => 14,
        Input::WindDown => 15,
    }
}

fn settings() -> Settings {
    Settings {
        memory_limit: 1 << 20,
        slice: 4,
        lane_max: 8,
        fast_slots: 2,
        slow_slots: 1,
        ordering: Ordering::Row,
        settle: SettlePolicy {
            quick_attempts: 2,
            retry: RetryPolicy::new(Duration::from_millis(50), Duration::from_secs(1)).unwrap(),
            retry_for: Duration::from_secs(60),
        },
        disable_after: Duration::from_secs(600),
        max_hold: Duration::from_secs(30),
        max_retained: 1 << 30,
        notifies: true,
        state_max: 1 << 30,
        log: Keep::All,
        log_excerpts: true,
    }
}

fn start() -> Start {
    let (endpoint, hush) = (EndpointId::new("7"), || "hush".to_owned());
    let key = EventKey::of(&event());
    let range = SettledRange {
        account: AccountId::new("42"),
        endpoint: endpoint.clone(),
        from: key.clone(),
        to: key,
    };
    Start {
        frontier: Lsn(100),
        settled: vec![range.clone()],
        disabled: vec![DisableEndpoint { endpoint: endpoint.clone(), reason: hush() }],
        paused: vec![PauseEndpoint { endpoint: endpoint.clone(), reason: hush(), since_us: 4 }],
        backlog: vec![BacklogRow {
            queue: queue(),
            blocked: Blocked::Keys(vec![u64::MAX]),
            rows: 3,
            failing_since_us: Some(1),
            stopped_us: 2,
            open_until_us: None,
        }],
        suspended: vec![GapChange {
            queue: queue(),
            opens: Some(hush()),
            skipped: 1,
            span: Some((Lsn(1), Lsn(2))),
            growing: true,
        }],
        unrouted: vec![UnroutedAccount {
            account: AccountId::new("43"),
            rows: 1,
            settled: vec![range],
        }],
        joined: vec![Joined { endpoint, at: Lsn(50) }],
        unseen: vec![5],
        failing: vec![EndpointError {
            queue: queue(),
            since_us: 1,
            failed: 2,
            last_us: 3,
            error: hush(),
        }],
        unix_us_at_zero: -5,
        written_us: Some(-6),
    }
}

fn text(line: &[u8]) -> &str {
    std::str::from_utf8(line).unwrap()
}

/// The whole kind: each input that there is.
#[test]
fn inputs_read_back_with_all_that_decides_and_nothing_that_is_somebodys() {
    let (recorder, _) = Recorder::begin(KEY(), "0", &settings(), &start(), 1).unwrap();
    let mut kinds = BTreeSet::new();
    for input in inputs() {
        kinds.insert(kind(&input));
        let line = recorder.input(Tick(3), &input).unwrap();
        assert!(!text(&line).contains("hush"), "{}", text(&line));
        let Line::Input { at: Tick(3), input: read } = parse(&line).unwrap() else {
            panic!("{}", text(&line));
        };
        // Without a key: all there is, and lengths.
        let plain = |input: &Input| serde_json::to_string(input).unwrap();
        assert_eq!(plain(&read), plain(&input));
    }
    assert_eq!(kinds.len(), 16, "a kind is missing");
}

#[test]
fn beginning_reads_back_with_settings_start_and_seed() {
    let (_, line) = Recorder::begin(KEY(), "0.1.0", &settings(), &start(), u64::MAX).unwrap();
    assert!(!text(&line).contains("hush"), "{}", text(&line));
    let Line::Begin(begin) = parse(&line).unwrap() else { panic!("{}", text(&line)) };
    assert_eq!((begin.version, begin.walhook.as_str(), begin.seed), (VERSION, "0.1.0", u64::MAX));
    assert_eq!(format!("{:?}", begin.settings), format!("{:?}", settings()));
    let plain = |start: &Start| serde_json::to_string(start).unwrap();
    assert_eq!(plain(&begin.start), plain(&start()));
}

/// One dispatcher with the inputs as they are, another with what was read back: the digests of what each asks
/// for are the same, round by round; and differ where an input does.
#[test]
fn dispatcher_asks_for_the_same_after_what_was_read_back() {
    let rounds = |drop_outcomes: bool| {
        let begin = Start { frontier: Lsn(100), ..Start::default() };
        let (mut recorder, line) = Recorder::begin(KEY(), "0", &settings(), &begin, 8).unwrap();
        let Line::Begin(read) = parse(&line).unwrap() else { panic!("{}", text(&line)) };
        let mut live = Dispatcher::new(settings(), begin, SmallRng::seed_from_u64(8));
        let mut again = read.dispatcher();
        let mut now = 0;
        let mut digests = Vec::new();
        let answer = LookUpAnswer {
            line: LookUpLine::Usual,
            snapshot: "8:10:".parse().unwrap(),
            costly: vec![],
            put_off: vec![],
            answers: vec![(AccountId::new("42"), Routes::new(vec![Arc::new(endpoint())], 1.0))],
        };
        let story = [
            Input::Items(vec![
                Item::Begin { commit_lsn: Lsn(900) },
                Item::Event(event()),
                Item::Commit { end_lsn: Lsn(901) },
            ]),
            Input::Routes(Box::new(answer)),
            Input::Outcome {
                delivery: DeliveryId(1),
                outcome: Outcome::failed(FailureKind::Tls, "hüsh", Duration::from_millis(5)),
            },
            Input::Stop,
        ];
        for input in story {
            now += 1_000_000;
            let line = recorder.input(Tick(now), &input).unwrap();
            let Line::Input { at, input: read } = parse(&line).unwrap() else { panic!() };
            live.handle(Tick(now), input);
            if !(drop_outcomes && matches!(read, Input::Routes(_))) {
                again.handle(at, read);
            }
            let mut digest = Digest::default();
            while let Some(effect) = live.poll(Tick(now)) {
                recorder.effect(&effect).unwrap();
            }
            while let Some(effect) = again.poll(at) {
                digest.add(&effect).unwrap();
            }
            let line = recorder.polled(Tick(now)).unwrap();
            let Line::Polled { effects, .. } = parse(&line).unwrap() else { panic!() };
            digests.push((effects, digest));
        }
        digests
    };
    let same = rounds(false);
    assert!(same.iter().all(|(live, again)| live == again), "{same:?}");
    assert!(same.iter().filter(|(live, _)| live.count > 0).count() >= 2, "{same:?}");
    assert!(rounds(true).iter().any(|(live, again)| live != again));
}
