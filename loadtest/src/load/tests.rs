//! A small scenario from end to end, without goose, against a real PostgreSQL and the real walhook.

use std::time::Duration;

use walhook_core::waits::Cause;
use walhook_testkit::scratch::Scratch;

use super::explained::APART_MAX;
use super::outcome::Phase;
use super::{Options, drive, run, scenario};

#[test]
fn scenarios_have_names_of_their_own_that_stand_in_the_documentation() {
    let documentation = include_str!("../../../docs/fairness.md");
    let mut names: Vec<&str> = scenario::all().iter().map(|scenario| scenario.name).collect();
    for name in &names {
        assert!(documentation.contains(&format!("`{name}`")), "{name}");
    }
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// Sizes at which a scenario takes some seconds beside its waits.
const SMALL: Options =
    Options { disturbed: Duration::from_secs(4), soak: Duration::ZERO, scale: 0.02, seed: 1 };

#[expect(clippy::cast_precision_loss, reason = "some events")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whale_disturbs_and_all_of_it_is_counted_and_delivered_once_in_order() {
    let whale = scenario::named("whale-50ms").unwrap();
    let outcome = run(whale, &SMALL, drive).await.unwrap();
    outcome.ensure().unwrap();
    let phases: Vec<&str> = outcome.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(phases, ["calm", "disturbed", "ebbing", "calm again"]);
    // 200 accounts that commit once a second, with their webhooks counted in each phase.
    for phase in &outcome.phases {
        let wanted = phase.seconds * 200.0;
        let counted = phase.felt.latency_ms.n as f64;
        assert!((wanted * 0.7..wanted * 1.3).contains(&counted), "{}: {counted}", phase.name);
        assert!(phase.felt.latency_ms.p50 > 0.0 && phase.felt.jain > 0.0);
        // An answer is read, and travels back from a worker, after the receiver's own end; all else is before that.
        let slowest = &phase.slowest;
        let is_before = |cause: &Cause| !matches!(cause, Cause::Attempt | Cause::Bus);
        let before = Cause::ALL.into_iter().filter(is_before);
        let before_ms: f64 = before.map(|cause| slowest.causes_ms.ms(cause)).sum();
        // The log has each time to within a sixty-fourth, and the line may be of the delivery beside it.
        let at_most_ms = slowest.took_ms * 1.02 + 2.0 * APART_MAX.as_secs_f64() * 1_000.0;
        assert!(slowest.deliveries > 0 && before_ms <= at_most_ms, "{slowest:?}");
        assert!(slowest.causes_ms.ms(Cause::Attempt) > 0.0, "{slowest:?}");
    }
    // The log has all of it, and its lines are found again: some of them in the next phase, where commits were late.
    let in_all = |count: fn(&Phase) -> usize| outcome.phases.iter().map(count).sum::<usize>();
    let counted = in_all(|phase| phase.felt.latency_ms.n);
    let found = in_all(|phase| phase.from_commit_ms.n);
    assert!(found as f64 > counted as f64 * 0.9, "{found} of {counted}");
    assert!(outcome.audit.delivered >= 1_000, "{:?}", outcome.audit);
    assert_eq!((outcome.audit.in_tables, outcome.audit.duplicates), (0, 0));
    assert_eq!(outcome.goals.len(), 2);

    let directory = Scratch::new().unwrap();
    outcome.write(directory.path()).unwrap();
    let page = std::fs::read_to_string(directory.path().join("whale-50ms.html")).unwrap();
    assert!(page.contains("calm again") && page.contains("</svg>"));
    let json = std::fs::read_to_string(directory.path().join("whale-50ms.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["audit"]["lost"], 0);
}
