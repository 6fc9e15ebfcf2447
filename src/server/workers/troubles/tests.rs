use super::*;
use walhook_fleet::frame::SessionId;

/// `max_bytes` of the rules.
const LARGEST: u64 = 1 << 20;

fn state(connected: bool) -> State {
    let trouble = (!connected).then(|| "connection refused".into());
    State {
        connected,
        since: Instant::now(),
        max_payload: 1,
        connections: 1,
        dropped: 0,
        trouble,
        refused: None,
    }
}

fn workers(local: LocalSending) -> Workers {
    let local = match local {
        LocalSending::Never => "never",
        LocalSending::Fallback => "fallback",
        LocalSending::Always => "always",
    };
    toml::from_str(&format!("url = \"nats://127.0.0.1:1\"\nlocal = \"{local}\"")).unwrap()
}

/// What is said after a while in which nothing else happened.
async fn said(
    local: LocalSending,
    gauges: FleetGauges,
    connected: bool,
    refused: bool,
    foreign: u64,
) -> Vec<(Part, String)> {
    let (tell, listen) = Teller::new("p");
    let subjects = Subjects::new("walhook", "p").unwrap();
    let mut troubles = Troubles::new(&tell, &workers(local), LARGEST, &subjects);
    troubles.mute_host = "w2".into();
    if refused {
        troubles.refused = Some((Tick(0), "w1".into(), "its [egress] differs"));
    }
    let counters = FleetCounters { foreign, ..FleetCounters::default() };
    troubles.report(Tick(0), &gauges, &counters, &state(connected));
    tokio::time::advance(PASSING).await;
    troubles.report(Tick(1), &gauges, &counters, &state(connected));
    let health = listen.borrow();
    let said =
        health.troubles.iter().map(|(part, it)| (*part, format!("{}; {}", it.error, it.fix)));
    said.collect()
}

#[tokio::test(start_paused = true)]
async fn nobody_sends_where_only_workers_may_and_none_serves_whatever_the_reason() {
    let none = FleetGauges::default();
    let one = async |gauges, connected, refused| {
        let said = said(LocalSending::Never, gauges, connected, refused, 0).await;
        let [(Part::Sending, text), ..] = &said[..] else { panic!("{said:?}") };
        assert!(text.contains("workers.local = \"fallback\""), "{text}");
        text.clone()
    };
    assert!(one(none, true, false).await.contains("start workers: `walhook run --role worker`"));
    assert!(one(none, false, true).await.contains("the bus is away: connection refused"));
    assert!(
        one(none, true, true).await.contains("the worker on w1 is refused: its [egress] differs")
    );
    let mute = FleetGauges { mute: 1, ..none };
    assert!(one(mute, true, false).await.contains("publish to walhook.p.l.>"));
    let slow = FleetGauges { silent: 2, slow: true, ..none };
    let text = one(slow, true, false).await;
    assert!(text.contains("the bus is too slow") && text.contains("more bandwidth"), "{text}");
    let silent = FleetGauges { silent: 2, ..none };
    assert!(one(silent, true, false).await.contains("2 silent"));
    for gauges in [FleetGauges { serving: 1, ..none }, FleetGauges { quarantined: 1, ..none }] {
        assert_eq!(said(LocalSending::Never, gauges, true, false, 0).await, []);
    }
    let away = said(LocalSending::Fallback, none, false, true, 0).await;
    let [(Part::Bus, text)] = &away[..] else { panic!("{away:?}") };
    assert!(text.contains("the bus is away: connection refused; the leader sends all"), "{text}");
    let one = FleetGauges { serving: 1, ..none };
    for (local, gauges) in [
        (LocalSending::Fallback, none),
        (LocalSending::Fallback, one),
        (LocalSending::Always, one),
        (LocalSending::Never, one),
    ] {
        let refused = said(local, gauges, true, true, 0).await;
        let [(Part::Bus, text)] = &refused[..] else { panic!("{local:?}: {refused:?}") };
        assert!(text.contains("the worker on w1 is refused: its [egress] differs"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_workers_lost_are_told_until_one_serves_and_those_that_left_are_not() {
    let (tell, listen) = Teller::new("p");
    let subjects = Subjects::new("walhook", "p").unwrap();
    let mut troubles = Troubles::new(&tell, &workers(LocalSending::Fallback), LARGEST, &subjects);
    let changed = |state, refused| WorkerChanged {
        session: SessionId(1),
        host: "w1".into(),
        build: "1".into(),
        state,
        refused,
        bye: None,
        lost: 0,
        quarantine: None,
    };
    let (none, counters) = (FleetGauges::default(), FleetCounters::default());
    let mut said = |change: WorkerChanged, serving| {
        troubles.note(Tick(0), &change);
        let gauges = FleetGauges { serving, ..none };
        troubles.report(Tick(0), &gauges, &counters, &state(true));
        listen.borrow().troubles.get(&Part::Bus).map(|it| it.error.clone())
    };
    assert_eq!(said(changed(WorkerState::Left, None), 0), None);
    assert_eq!(said(changed(WorkerState::Refused, Some(Refusal::Lost)), 0), None);
    assert_eq!(said(changed(WorkerState::Lost, None), 1), None);
    let lost = said(changed(WorkerState::Lost, None), 0).unwrap();
    assert!(lost.contains("all workers are lost, the last one on w1"), "{lost}");
    assert!(said(changed(WorkerState::Joining, None), 0).is_some());
    assert_eq!(said(changed(WorkerState::Serving, None), 1), None);
    assert_eq!(said(changed(WorkerState::Left, None), 0), None);
}

#[tokio::test(start_paused = true)]
async fn leader_to_whom_no_worker_has_come_says_so_until_one_serves() {
    for (local, parts) in [
        (LocalSending::Fallback, &[Part::Bus][..]),
        (LocalSending::Always, &[Part::Bus]),
        (LocalSending::Never, &[Part::Sending]),
    ] {
        let (tell, listen) = Teller::new("p");
        let subjects = Subjects::new("walhook", "p").unwrap();
        let mut troubles = Troubles::new(&tell, &workers(local), LARGEST, &subjects);
        let mut said = |serving, connected| {
            let gauges = FleetGauges { serving, ..FleetGauges::default() };
            let counters = FleetCounters::default();
            troubles.report(Tick(0), &gauges, &counters, &state(connected));
            listen.borrow().troubles.keys().copied().collect::<Vec<_>>()
        };
        said(0, false);
        tokio::time::advance(COME_WITHIN).await;
        // It counts from when the bus is there.
        assert!(!said(0, true).contains(&Part::Bus), "{local:?}");
        tokio::time::advance(COME_WITHIN).await;
        assert_eq!(said(0, true), parts, "{local:?}");
        assert_eq!(said(1, true), [], "{local:?}");
        // One that has left was told to.
        tokio::time::advance(COME_WITHIN).await;
        assert!(!said(0, true).contains(&Part::Bus), "{local:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn workers_that_follow_a_higher_epoch_are_told_whoever_sends() {
    for (local, parts) in [
        (LocalSending::Fallback, &[Part::Bus][..]),
        (LocalSending::Never, &[Part::Sending, Part::Bus]),
    ] {
        let (tell, listen) = Teller::new("p");
        let subjects = Subjects::new("walhook", "p").unwrap();
        let mut troubles = Troubles::new(&tell, &workers(local), LARGEST, &subjects);
        let mut said = |ahead, at| {
            let counters = FleetCounters { ahead, ..FleetCounters::default() };
            troubles.report(at, &FleetGauges::default(), &counters, &state(true));
            let health = listen.borrow();
            let said = health.troubles.iter();
            said.map(|(part, it)| (*part, format!("{}; {}", it.error, it.fix))).collect::<Vec<_>>()
        };
        said(0, Tick(0));
        tokio::time::advance(PASSING).await;
        let told = said(3, Tick(0));
        assert_eq!(told.iter().map(|(part, _)| *part).collect::<Vec<_>>(), parts);
        for (_, text) in told {
            assert!(text.contains("follow a leader of a higher epoch"), "{text}");
            assert!(text.contains("start these workers again"), "{text}");
        }
        let later = said(3, Tick(0) + AHEAD_WITHIN);
        assert!(!later.iter().any(|(part, _)| *part == Part::Bus), "{later:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn proxy_of_workers_fails_for_as_long_as_they_say_so() {
    let (tell, _listen) = Teller::new("p");
    let subjects = Subjects::new("walhook", "p").unwrap();
    let mut troubles = Troubles::new(&tell, &workers(LocalSending::Never), LARGEST, &subjects);
    let at = |seconds: u64| Tick(seconds * 1_000_000);
    let failed = |kind| Outcome::failed(kind, "refused", Duration::ZERO);
    let began = Instant::now();
    for (second, kind) in [(0, FailureKind::Local), (1, FailureKind::Connect)] {
        troubles.note_outcome(at(second), &failed(kind));
        assert_eq!(troubles.proxy(at(second)), None, "{kind:?}");
    }
    for second in [2, 10, 29] {
        troubles.note_outcome(at(second), &failed(FailureKind::Proxy));
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let told = troubles.proxy(at(48)).unwrap();
    assert_eq!(told, (began, "at a worker: proxy: refused".to_owned()));
    assert_eq!(troubles.proxy(at(49)), None);
}

#[tokio::test(start_paused = true)]
async fn mute_worker_is_told_also_where_the_leader_sends() {
    let mute = FleetGauges { mute: 2, ..FleetGauges::default() };
    let said = said(LocalSending::Fallback, mute, true, false, 0).await;
    let [(Part::Outcomes, text)] = &said[..] else { panic!("{said:?}") };
    assert!(text.contains("a worker on w2 is heard, and its outcomes are not"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn another_pipeline_on_the_subjects_is_told_whoever_sends() {
    let none = FleetGauges::default();
    for (local, parts) in [
        (LocalSending::Never, &[Part::Sending, Part::Bus][..]),
        (LocalSending::Fallback, &[Part::Bus]),
    ] {
        let said = said(local, none, true, false, 7).await;
        assert_eq!(said.iter().map(|(part, _)| *part).collect::<Vec<_>>(), parts);
        for (_, text) in said {
            assert!(
                text.contains("another pipeline uses the subject walhook on this bus"),
                "{text}"
            );
            assert!(text.contains("give each pipeline its own workers.subject"), "{text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_bus_refuses_is_named_where_nobody_serves_for_it() {
    let (tell, listen) = Teller::new("p");
    let subjects = Subjects::new("walhook", "p").unwrap();
    let of = async |local, gauges: FleetGauges| {
        let mut troubles = Troubles::new(&tell, &workers(local), LARGEST, &subjects);
        let mut bus = state(true);
        bus.refused = Some("the server says no to walhook.p.w.1".into());
        for _ in 0..2 {
            troubles.report(Tick(0), &gauges, &FleetCounters::default(), &bus);
            tokio::time::advance(PASSING).await;
        }
        troubles.report(Tick(1), &gauges, &FleetCounters::default(), &bus);
        let health = listen.borrow();
        let said = health.troubles.iter();
        let said: Vec<_> =
            said.map(|(part, it)| (*part, format!("{}; {}", it.error, it.fix))).collect();
        said
    };
    let none = FleetGauges::default();
    let said = of(LocalSending::Never, none).await;
    let [(Part::Sending, text)] = &said[..] else { panic!("{said:?}") };
    assert!(text.contains("no to walhook.p.w.1") && text.contains("walhook.p.lead"), "{text}");
    let unconfirmed = FleetGauges { joining: 1, unconfirmed: 1, ..none };
    let late = FleetGauges { slow: true, ..unconfirmed };
    let said = of(LocalSending::Fallback, late).await;
    let [(Part::Bus, text)] = &said[..] else { panic!("{said:?}") };
    assert!(text.contains("the bus is too slow") && !text.contains("walhook.p.w.>"), "{text}");
    for local in [LocalSending::Fallback, LocalSending::Never] {
        let said = of(local, unconfirmed).await;
        assert!(said.iter().any(|(part, _)| *part == Part::Bus), "{said:?}");
        for (_, text) in said {
            assert!(text.contains("no to walhook.p.w.1"), "{text}");
            assert!(text.contains("publish to walhook.p.w.>"), "{text}");
        }
    }
}

/// Else the next start, with what was set, would be refused.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_set_for_a_request_suffices_for_the_largest_event_too() {
    let of = async |bytes| {
        let gauges = FleetGauges { too_large: Some(bytes), serving: 1, ..FleetGauges::default() };
        let said = said(LocalSending::Never, gauges, true, false, 0).await;
        let [(Part::Oversize, text)] = &said[..] else { panic!("{said:?}") };
        let number = text.split("max_payload = ").nth(1).and_then(|it| it.split(' ').next());
        let number: u64 = number.and_then(|it| it.parse().ok()).unwrap();
        assert!(walhook_fleet::leader::largest_data(number) >= LARGEST, "{text}");
        number
    };
    assert_eq!(of(100 << 10).await, of(200 << 10).await);
    assert!(of(2 << 20).await > 2 << 20);
}
