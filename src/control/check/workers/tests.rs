//! Against a nats-server.

use super::*;
use crate::config::Config;
use crate::control::check::{Finding, Verdict};
use walhook_fleet::frame::WorkerId;
use walhook_testkit::nats::Nats;

fn config(url: &str, more: &str) -> Config {
    let text = format!(
        "[source]\nurl = \"postgres://x@127.0.0.1:1/x\"\n[endpoints]\ntable = \"public.webhooks\"\n\
         [[events]]\ntype = \"a.b\"\ntable = \"public.subscribers\"\non = [\"update\"]\n\
         account = \"account_id\"\ncolumns = [\"id\"]\n[workers]\nurl = \"{url}\"\nlease = \"1s\"\n{more}"
    );
    crate::config::parse(std::path::Path::new("test.toml"), &text, []).unwrap()
}

async fn findings(config: &Config) -> Vec<Finding> {
    let mut report = Report::default();
    check(config, &mut report).await;
    report.0
}

/// The findings that begin so are there.
fn assert_found(found: &[Finding], expected: &[&str]) {
    let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
    for expected in expected {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected}: {lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
}

/// Says as a worker does, until dropped.
async fn say_hello(nats: &Nats, host: &str, egress: Digest) -> tokio::task::JoinSet<()> {
    say_hello_of(nats, None, host, egress).await
}

async fn say_hello_of(
    nats: &Nats,
    pipeline: Option<PipelineId>,
    host: &str,
    egress: Digest,
) -> tokio::task::JoinSet<()> {
    say_hello_as(nats, (pipeline, None), host, egress).await
}

async fn say_hello_as(
    nats: &Nats,
    (pipeline, worker): (Option<PipelineId>, Option<WorkerId>),
    host: &str,
    egress: Digest,
) -> tokio::task::JoinSet<()> {
    let config = config(&nats.url(), "");
    let workers = config.workers.as_ref().unwrap();
    let bus = Bus::connect_now(&workers.bus("worker").unwrap()).await.unwrap();
    let subject = Subjects::new("walhook", "walhook").unwrap().hello();
    let hello = Hello {
        versions: SPOKEN,
        fast_slots: 256,
        slow_slots: 1_024,
        byte_budget: 1 << 20,
        stamp_us: 1,
        received_upto: 0,
        state: HelloState::Serving,
        host: host.to_owned(),
        build: "0.1.0".to_owned(),
        egress,
        kept: 0,
        former: vec![],
        worker,
    };
    let body = Body::Hello(hello);
    let session = SessionId(rand::random());
    let frame = Frame { version: 1, epoch: Epoch(1), pipeline, session, seq: 1, body };
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move {
        loop {
            let _away = bus.publish(&subject, None, frame.encode());
            sleep(Duration::from_millis(100)).await;
        }
    });
    task
}

#[tokio::test]
async fn check_of_workers_says_that_the_bus_takes_us_and_who_is_there() {
    let nats = Nats::start("max_payload: 2MB").await.unwrap();
    let config = config(&nats.url(), "");
    let none = findings(&config).await;
    let takes = "pass  bus: takes events of 1.9 MiB at most, and the rules allow 1.0 MiB";
    let ours = format!("pass  bus: {} takes us, on this machine and without TLS", nats.url());
    let may = "pass  bus: we may publish to walhook.walhook.* and hear ourselves";
    assert_found(&none, &[&ours, takes, may, "warn  workers: none was heard; start some"]);

    let alike = egress_digest(&config.egress);
    let _one = say_hello(&nats, "one", alike).await;
    let _two = say_hello(&nats, "two", alike).await;
    let _other = say_hello(&nats, "other\u{1b}[2J", Digest([7; 32])).await;
    let some = findings(&config).await;
    let refused =
        "fail  workers: other\\u001b[2J, version 0.1.0, [egress] 0707070707070707; has another";
    let two = format!("pass  workers: 2 of version 0.1.0, [egress] {alike}, with 2560 slots");
    assert_found(&some, &[&ours, takes, may, refused, &two]);
}

#[tokio::test]
async fn check_of_workers_names_one_that_was_refused_and_asks_only_now_and_then() {
    let nats = Nats::start("max_payload: 2MB").await.unwrap();
    let config = config(&nats.url(), "");
    let asks_again = async {
        sleep(REFUSED_FOR / 2).await;
        say_hello(&nats, "late", Digest([7; 32])).await
    };
    let (found, _late) = tokio::join!(findings(&config), asks_again);
    let last = found.last().unwrap().to_string();
    assert!(last.starts_with("fail  workers: late, version 0.1.0, [egress] 0707"), "{last}");
    assert!(last.contains("has another [egress] than this configuration"), "{last}");
}

#[tokio::test]
async fn check_of_workers_says_that_another_pipeline_uses_the_subject() {
    let nats = Nats::start("max_payload: 2MB").await.unwrap();
    let config = config(&nats.url(), "");
    let alike = egress_digest(&config.egress);
    let _one = say_hello_of(&nats, Some(PipelineId([1; 16])), "one", alike).await;
    let one = findings(&config).await;
    assert!(one.iter().all(|it| it.verdict == Verdict::Pass), "it may be ours: {one:?}");
    let _other = say_hello_of(&nats, Some(PipelineId([2; 16])), "other", alike).await;
    let both = findings(&config).await;
    let failed: Vec<_> = both.iter().filter(|it| it.verdict == Verdict::Fail).collect();
    let [failed] = &failed[..] else { panic!("{both:?}") };
    let said = failed.to_string();
    assert!(said.contains("another pipeline uses the subject walhook on this bus"), "{said}");
    assert!(said.contains("give each pipeline its own workers.subject"), "{said}");
}

#[tokio::test]
async fn check_of_workers_counts_processes_and_not_their_sessions() {
    let nats = Nats::start("max_payload: 2MB").await.unwrap();
    let config = config(&nats.url(), "");
    let alike = egress_digest(&config.egress);
    let worker = Some(WorkerId(7));
    let _one = say_hello_as(&nats, (None, worker), "one", alike).await;
    let _again = say_hello_as(&nats, (None, worker), "one", alike).await;
    let _other = say_hello_as(&nats, (None, Some(WorkerId(8))), "one", alike).await;
    let found = findings(&config).await;
    let last = found.last().unwrap().to_string();
    assert!(last.contains("2 of version 0.1.0") && last.contains("with 2560 slots"), "{last}");
}

#[tokio::test]
async fn check_of_workers_names_the_subject_that_a_permission_is_missing_for() {
    let (publishes, hears) = Subjects::new("walhook", "walhook").unwrap().of_leader();
    let all = [publishes.clone(), hears.clone()].concat();
    for missing in [None, Some(0), Some(1), Some(2), Some(3)] {
        let allowed = |of: &[String]| {
            let of: Vec<_> = of
                .iter()
                .filter(|subject| missing.is_none_or(|n: usize| all[n] != **subject))
                .map(|subject| format!("\"{subject}\""))
                .collect();
            of.join(", ")
        };
        let users = format!(
            "authorization {{ users: [ {{ user: leader, password: hush, permissions: {{ \
             publish: {{ allow: [{}] }}, subscribe: {{ allow: [{}] }} }} }} ] }}",
            allowed(&publishes),
            allowed(&hears)
        );
        let nats = Nats::start(&users).await.unwrap();
        let found = findings(&config(&nats.url(), "user = \"leader\"\npassword = \"hush\"")).await;
        let json = serde_json::to_string(&found).unwrap();
        assert!(!json.contains("hush"), "{json}");
        let failed: Vec<_> = found.iter().filter(|it| it.verdict == Verdict::Fail).collect();
        let Some(missing) = missing else {
            assert!(failed.is_empty(), "{failed:?}");
            continue;
        };
        let [failed] = &failed[..] else { panic!("{missing}: {found:?}") };
        let subject = all[missing].trim_end_matches(['>', '*']).trim_end_matches('.');
        assert!(failed.finding.contains(subject), "{subject}: {failed}");
        assert!(failed.fix.as_ref().unwrap().contains(&all[missing]), "{failed}");
    }
    let nats = Nats::start("authorization { user: a, password: b }").await.unwrap();
    let found = findings(&config(&nats.url(), "user = \"a\"\npassword = \"hush\"")).await;
    let [refused] = &found[..] else { panic!("{found:?}") };
    assert!(refused.verdict == Verdict::Fail && !refused.to_string().contains("hush"), "{refused}");
}

#[tokio::test]
async fn check_of_workers_refuses_events_that_nobody_could_send() {
    let nats = Nats::start("max_payload: 1MB").await.unwrap();
    let never = findings(&config(&nats.url(), "local = \"never\"")).await;
    let failed: Vec<_> = never.iter().filter(|it| it.verdict == Verdict::Fail).collect();
    let [failed] = &failed[..] else { panic!("{never:?}") };
    let said = failed.to_string();
    assert!(
        said.contains("nobody could send larger ones; set max_payload = 1114112 or more"),
        "{said}"
    );
    let fallback = findings(&config(&nats.url(), "")).await;
    assert!(
        fallback.iter().any(|it| it.finding.contains("the leader itself sends larger ones")),
        "{fallback:?}"
    );
    assert!(fallback.iter().all(|it| it.verdict != Verdict::Fail), "{fallback:?}");
}

#[tokio::test]
async fn check_of_workers_says_what_becomes_of_deliveries_while_the_bus_is_away() {
    for (local, says) in [("never", "nothing is sent"), ("fallback", "the leader sends all")] {
        let away = config("nats://127.0.0.1:1", &format!("local = \"{local}\""));
        let found = findings(&away).await;
        let [failed] = &found[..] else { panic!("{found:?}") };
        let fix = failed.fix.as_ref().unwrap();
        assert!(failed.verdict == Verdict::Fail && fix.contains(says), "{failed}");
    }
}

#[tokio::test]
async fn check_of_workers_names_those_that_follow_a_leader_that_the_tables_do_not_know() {
    let ours = Some(PipelineId([1; 16]));
    let nats = Nats::start("max_payload: 2MB").await.unwrap();
    let config = config(&nats.url(), "");
    let workers = config.workers.as_ref().unwrap();
    let bus = Bus::connect_now(&workers.bus("check").unwrap()).await.unwrap();
    let hellos = Subjects::new("walhook", "walhook").unwrap().hello();
    let hellos = bus.subscribe(&hellos).await.unwrap();
    let _one = say_hello_of(&nats, ours, "one", Digest([7; 32])).await;
    let mut seen = listen(workers, hellos).await;
    for epoch in [None, Some(Epoch(1))] {
        let mut report = Report::default();
        seen = without_those_ahead(seen, epoch, ours, &mut report);
        assert!(seen.len() == 1 && report.0.is_empty(), "{epoch:?}: {report:?}");
    }
    let mut report = Report::default();
    let left = without_those_ahead(seen, Some(Epoch(0)), ours, &mut report);
    let [failed] = &report.0[..] else { panic!("{report:?}") };
    let said = "fail  workers: some follow a leader of epoch 1, and the state tables have 0";
    assert!(failed.to_string().starts_with(said) && left.is_empty(), "{failed}");
}
