use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use walhook_core::attempt::{FailureKind, Meaning, Outcome, Record};
use walhook_core::delivery_key::DeliveryKey;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::{EventId, Position};

/// A second version, for tests: what the next build will speak.
const BOTH: Versions = Versions { oldest: 1, newest: 2 };

fn versions() -> impl Strategy<Value = Versions> {
    (1u8..9, 0u8..9).prop_map(|(oldest, more)| Versions { oldest, newest: oldest + more })
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn bye() -> impl Strategy<Value = ByeReason> {
    prop::sample::select(vec![
        ByeReason::Gap,
        ByeReason::Disconnected,
        ByeReason::Lease,
        ByeReason::Leaving,
        ByeReason::Unreadable,
    ])
}

fn hello() -> impl Strategy<Value = Hello> {
    let state = prop_oneof![Just(HelloState::Serving), bye().prop_map(HelloState::Closing)];
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>());
    let worker = proptest::option::of(any::<u128>().prop_map(WorkerId));
    let former = vec(any::<u128>().prop_map(SessionId), 0..=FORMER_MAX);
    let earlier = (any::<u64>(), former, worker);
    (versions(), numbers, state, "\\PC{0,40}", "\\PC{0,40}", digest(), earlier).prop_map(
        |(
            versions,
            (fast_slots, slow_slots, byte_budget, stamp_us, received_upto),
            state,
            host,
            build,
            egress,
            (kept, former, worker),
        )| {
            Hello {
                versions,
                fast_slots,
                slow_slots,
                byte_budget,
                stamp_us,
                received_upto,
                state,
                host,
                build,
                egress,
                kept,
                former,
                worker,
            }
        },
    )
}

fn delivery_key() -> impl Strategy<Value = DeliveryKey> {
    any::<[u8; 16]>().prop_map(DeliveryKey)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn request() -> impl Strategy<Value = Request> {
    let headers = vec(("[a-z-]{1,20}", bytes()), 0..6);
    let event = any::<i64>().prop_map(|time| EventId::derive(1, &Position::FIRST, "t", time));
    let ids = (any::<u64>(), any::<u32>(), 0u64..1 << 40, "\\PC{0,30}", "\\PC{0,30}");
    (ids, event, option::of(delivery_key()), "\\PC{0,60}", headers, bytes()).prop_map(
        |((key, number, timeout, account, endpoint), event, delivery, url, headers, body)| {
            Request {
                key,
                number,
                timeout: Duration::from_millis(timeout),
                account: AccountId::new(account),
                endpoint: EndpointId::new(endpoint),
                event,
                delivery,
                url,
                headers,
                body,
            }
        },
    )
}

fn meaning() -> impl Strategy<Value = Meaning> {
    let refused = (option::of(0u64..1 << 40), any::<bool>()).prop_map(|(wait, overloaded)| {
        Meaning::Refused { retry_after: wait.map(Duration::from_millis), overloaded }
    });
    let plain = [
        Meaning::Delivered,
        Meaning::Gone,
        Meaning::TimedOut,
        Meaning::Failed,
        Meaning::Invalid,
        Meaning::Aborted,
        Meaning::Oversize,
        Meaning::Lost,
        Meaning::Local,
    ];
    prop_oneof![refused, prop::sample::select(plain.to_vec())]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let failure = prop::sample::select(FailureKind::ALL.to_vec());
    (
        meaning(),
        option::of(any::<u16>()),
        option::of(failure),
        "\\PC{0,100}",
        0u64..1 << 50,
        any::<[u32; 2]>(),
    )
        .prop_map(|(meaning, status, failure, text, elapsed, [resends, own_resends])| {
            Outcome {
                meaning,
                record: Record { status, failure, text },
                elapsed: Duration::from_micros(elapsed),
                resends,
                own_resends,
            }
        })
}

fn body() -> impl Strategy<Value = Body> {
    let lease = (0u64..1 << 50).prop_map(Duration::from_micros);
    let lead = (versions(), lease.clone(), option::of(digest()), any::<bool>()).prop_map(
        |(versions, lease, egress, asks)| Body::Lead(Lead { versions, lease, egress, asks }),
    );
    let grant = (any::<u64>(), lease, any::<u64>(), any::<bool>()).prop_map(
        |(stamp_us, lease, outcomes_upto, closed)| {
            Body::Grant(Grant { stamp_us, lease, outcomes_upto, closed })
        },
    );
    let why =
        prop::sample::select(vec![Refusal::Version, Refusal::Egress, Refusal::Full, Refusal::Lost]);
    let earlier = option::of(prop_oneof![
        delivery_key().prop_map(Earlier::Runs),
        delivery_key().prop_map(Earlier::Delivered),
    ]);
    let outcomes = vec((any::<u64>(), option::of(outcome()), earlier), 0..8);
    prop_oneof![
        lead,
        hello().prop_map(Body::Hello),
        vec(request(), 0..8).prop_map(|requests| Body::Attempts(Attempts { requests })),
        grant,
        vec(any::<u64>(), 0..50).prop_map(|keys| Body::Abort(Abort { keys })),
        why.prop_map(|why| Body::Refused(Refused { why })),
        (any::<u64>(), outcomes).prop_map(|(first, outcomes)| {
            let outcomes = outcomes.into_iter().map(|(key, outcome, earlier)| WireOutcome {
                key,
                outcome,
                earlier,
            });
            Body::Outcomes(Outcomes { first, outcomes: outcomes.collect() })
        }),
        (any::<u64>(), bye())
            .prop_map(|(received_upto, why)| Body::Bye(Bye { received_upto, why })),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let pipeline = option::of(any::<[u8; 16]>().prop_map(PipelineId));
    (1u8..=2, any::<i64>(), pipeline, any::<u128>(), any::<u64>(), body()).prop_map(
        |(version, epoch, pipeline, session, seq, body)| Frame {
            version,
            epoch: Epoch(epoch),
            pipeline,
            session: SessionId(session),
            seq,
            body,
        },
    )
}

proptest! {
    #[test]
    fn frame_is_read_back_as_it_was_written(frame in frame()) {
        let bytes = frame.encode();
        let header = Header::read(&bytes).unwrap();
        prop_assert_eq!((header.epoch, header.session, header.seq), (frame.epoch, frame.session, frame.seq));
        prop_assert_eq!(Frame::decode(bytes, BOTH).unwrap(), frame);
    }

    #[test]
    fn frame_cut_or_changed_anywhere_is_an_error_or_another_frame(
        frame in frame(), at: prop::sample::Index, bit in 0u8..8, cut: bool,
    ) {
        let mut bytes = frame.encode().to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        if let Ok(read) = Frame::decode(bytes.into(), BOTH) {
            prop_assert_eq!(Frame::decode(read.encode(), BOTH), Ok(read));
        }
    }

    #[test]
    fn rubbish_behind_a_header_never_panics(kind in 0u8..10, rest in vec(any::<u8>(), 0..300)) {
        let mut bytes = Frame {
            version: 1, epoch: Epoch(1), pipeline: None, session: SessionId(1), seq: 1, body: Body::Abort(Abort { keys: vec![] }),
        }.encode().to_vec();
        bytes[3] = kind;
        bytes.extend(rest);
        let _ = Frame::decode(bytes.into(), SPOKEN);
    }

    #[test]
    fn versions_in_common_are_spoken_by_both(a in versions(), b in versions()) {
        let common = a.common(b);
        prop_assert_eq!(common, b.common(a));
        let spoken = |v: u8| (a.oldest..=a.newest).contains(&v) && (b.oldest..=b.newest).contains(&v);
        prop_assert_eq!(common, (1..=20).rev().find(|v| spoken(*v)));
    }
}

fn of(body: Body) -> Frame {
    Frame { version: 1, epoch: Epoch(1), pipeline: None, session: SessionId(1), seq: 1, body }
}

#[test]
fn frame_of_another_version_kind_or_beginning_is_refused_by_name() {
    let bytes = of(Body::Abort(Abort { keys: vec![1] })).encode();
    let changed = |at: usize, to: u8| {
        let mut changed = bytes.to_vec();
        changed[at] = to;
        Frame::decode(changed.into(), SPOKEN)
    };
    assert_eq!(changed(0, b'X'), Err(FrameError::Magic));
    assert_eq!(changed(2, 2), Err(FrameError::Version(2)));
    assert_eq!(changed(2, 0), Err(FrameError::Version(0)));
    assert_eq!(changed(3, 200), Err(FrameError::Kind(200)));
    assert_eq!(Frame::decode(Bytes::from_static(b"WH"), SPOKEN), Err(FrameError::Length(2)));
}

#[test]
fn frame_that_holds_more_than_it_may_is_refused_before_it_is_kept() {
    // Empty requests, headers and outcomes: two bytes each, and much more once they are read.
    let many = |kind: u8, tag: u8, count: usize| {
        let mut bytes = of(Body::Abort(Abort { keys: vec![] })).encode().to_vec();
        bytes[3] = kind;
        bytes.extend([tag << 3 | 2, 0].repeat(count));
        Frame::decode(bytes.into(), SPOKEN)
    };
    let requests = many(3, 1, ATTEMPTS_MAX + 1).unwrap_err();
    assert!(
        matches!(requests, FrameError::TooMuch { what: "requests of a frame", .. }),
        "{requests}"
    );
    let outcomes = many(7, 2, OUTCOMES_MAX + 1).unwrap_err();
    assert!(
        matches!(outcomes, FrameError::TooMuch { what: "outcomes of a frame", .. }),
        "{outcomes}"
    );
    let keys = of(Body::Abort(Abort { keys: vec![1; ABORTS_MAX + 1] })).encode();
    let keys = Frame::decode(keys, SPOKEN).unwrap_err();
    assert!(matches!(keys, FrameError::TooMuch { .. }), "{keys}");
}

#[test]
fn text_of_an_outcome_is_cut_to_what_a_frame_may_hold() {
    let outcome = Outcome::failed(FailureKind::Connect, &"é".repeat(TEXT_MAX), Duration::ZERO);
    let outcomes = vec![WireOutcome { key: 1, outcome: Some(outcome), earlier: None }];
    let read = Frame::decode(of(Body::Outcomes(Outcomes { first: 0, outcomes })).encode(), SPOKEN)
        .unwrap();
    let Body::Outcomes(read) = read.body else { panic!("outcomes") };
    let text = &read.outcomes[0].outcome.as_ref().unwrap().record.text;
    assert!(text.len() <= TEXT_MAX && text.len() > TEXT_MAX - 4, "{} bytes", text.len());
}

#[test]
fn debug_of_a_request_shows_no_url_header_or_body() {
    let request = Request {
        key: 1,
        number: 1,
        timeout: Duration::from_secs(1),
        account: AccountId::new("a"),
        endpoint: EndpointId::new("e"),
        event: EventId::derive(1, &Position::FIRST, "t", 0),
        delivery: None,
        url: "http://hush".into(),
        headers: vec![("hush".into(), Bytes::from_static(b"hush"))],
        body: Bytes::from_static(b"hush"),
    };
    let shown = format!("{:?}", of(Body::Attempts(Attempts { requests: vec![request] })));
    assert!(!shown.contains("hush"), "{shown}");
}

/// A frame of each kind, with a value in each field.
fn samples() -> Vec<(&'static str, Body)> {
    let versions = Versions { oldest: 1, newest: 2 };
    let egress = Digest([0xAB; 32]);
    let request = Request {
        key: 77,
        number: 3,
        timeout: Duration::from_millis(15_000),
        account: AccountId::new("42"),
        endpoint: EndpointId::new("e-7"),
        event: EventId::derive(1, &Position::FIRST, "subscriber.updated", 1_700_000_000_000_000),
        delivery: None,
        url: "https://hooks.example.com/walhook?x=1".into(),
        headers: vec![("webhook-id".into(), Bytes::from_static(b"evt_1"))],
        body: Bytes::from_static(b"{\"id\":\"evt_1\"}"),
    };
    let outcome = Outcome {
        meaning: Meaning::Refused { retry_after: Some(Duration::from_secs(9)), overloaded: true },
        record: Record {
            status: Some(429),
            failure: Some(FailureKind::Protocol),
            text: "429: slow down".into(),
        },
        elapsed: Duration::from_micros(12_345),
        resends: 1,
        own_resends: 0,
    };
    let outcomes = vec![
        WireOutcome { key: 77, outcome: Some(outcome), earlier: None },
        WireOutcome { key: 78, outcome: None, earlier: None },
    ];
    let delivered = Outcome::new(Meaning::Delivered, Duration::from_micros(12_345));
    let key = EARLIER_KEYS;
    let (running, ended) = (DeliveryKey([0xCD; 16]), DeliveryKey([0xEF; 16]));
    let earlier = vec![
        WireOutcome { key, outcome: None, earlier: Some(Earlier::Runs(running)) },
        WireOutcome {
            key: key + 1,
            outcome: Some(delivered),
            earlier: Some(Earlier::Delivered(ended)),
        },
    ];
    let named = Request { delivery: Some(running), ..request.clone() };
    let hello = Hello {
        versions,
        fast_slots: 256,
        slow_slots: 1_024,
        byte_budget: 16 << 20,
        stamp_us: 123_456_789,
        received_upto: 4,
        state: HelloState::Closing(ByeReason::Leaving),
        host: "worker-1".into(),
        build: "0.1.0".into(),
        egress,
        kept: 0,
        former: vec![],
        worker: None,
    };
    let former = vec![SessionId(0xFEED), SessionId(u128::MAX)];
    let keeps = Hello { kept: 2, former, ..hello.clone() };
    let lease = Duration::from_secs(2);
    vec![
        ("lead", Body::Lead(Lead { versions, lease, egress: Some(egress), asks: false })),
        ("lead-asks", Body::Lead(Lead { versions, lease, egress: None, asks: true })),
        ("hello", Body::Hello(hello)),
        ("hello-keeps", Body::Hello(keeps)),
        ("attempts", Body::Attempts(Attempts { requests: vec![request] })),
        ("attempts-named", Body::Attempts(Attempts { requests: vec![named] })),
        (
            "grant",
            Body::Grant(Grant { stamp_us: 123_456_789, lease, outcomes_upto: 5, closed: true }),
        ),
        ("abort", Body::Abort(Abort { keys: vec![77, 1 << 40] })),
        ("refused", Body::Refused(Refused { why: Refusal::Egress })),
        ("outcomes", Body::Outcomes(Outcomes { first: 6, outcomes })),
        ("outcomes-earlier", Body::Outcomes(Outcomes { first: 0, outcomes: earlier })),
        ("bye", Body::Bye(Bye { received_upto: 4, why: ByeReason::Gap })),
    ]
}

fn sample(body: Body) -> Frame {
    let session = SessionId(0xFEED);
    Frame { version: 1, epoch: Epoch(12), pipeline: None, session, seq: 3, body }
}

/// One of each kind as this build writes it, named as `<kind>-of-pipeline`.
fn samples_of_pipeline() -> Vec<(String, Frame)> {
    let pipeline = Some(PipelineId([0x5A; 16]));
    let named = |(name, body)| (format!("{name}-of-pipeline"), Frame { pipeline, ..sample(body) });
    samples().into_iter().map(named).collect()
}

fn all_samples() -> Vec<(String, Frame)> {
    let plain = samples().into_iter().map(|(name, body)| (name.to_owned(), sample(body)));
    plain.chain(samples_of_pipeline()).collect()
}

fn from_hex(text: &str) -> Bytes {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect::<Vec<_>>().into()
}

/// What a worker or leader of version 1 wrote is read for as long as that version is spoken: the file is not changed,
/// but for kinds and fields that are added. What was written before a field was is read without it.
#[test]
fn frames_of_version_1_are_read_as_they_were_written() {
    let file = include_str!("version1.txt");
    let kept: Vec<(&str, &str)> = file.lines().filter_map(|line| line.split_once(' ')).collect();
    for (name, frame) in all_samples() {
        let written = frame.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let Some((_, hex)) = kept.iter().find(|(kept, _)| *kept == name) else {
            panic!("no frame of kind {name} is kept; today's is: {name} {written}");
        };
        for spoken in [SPOKEN, BOTH] {
            let read = Frame::decode(from_hex(hex), spoken).unwrap();
            assert_eq!(read, frame, "{name}");
        }
    }
    assert_eq!(kept.len(), all_samples().len());
}

/// The next version adds fields: a reader of this one passes over them, in each kind.
#[test]
fn field_of_a_later_version_is_passed_over() {
    for (name, frame) in all_samples() {
        let mut bytes = frame.encode().to_vec();
        // Field 99, once as text and once as a number.
        bytes.extend([0x9A, 0x06, 3, b'n', b'e', b'w', 0x98, 0x06, 1]);
        let read = Frame::decode(bytes.into(), SPOKEN).unwrap();
        assert_eq!(read, frame, "{name}");
    }
}
