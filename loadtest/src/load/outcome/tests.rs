use super::*;
use crate::load::scenario;

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Ten seconds each of calm and disturbed, with a commit every tenth of a second that takes so many ms.
fn measured(calm_ms: f64, disturbed_ms: f64, samples: Vec<Sample>) -> Measured {
    let delivery = |n: u32| {
        let due = f64::from(n) / 10.0;
        let took = if (10.0..20.0).contains(&due) { disturbed_ms } else { calm_ms };
        Delivery { account: 1, due: at(due), at: Some(at(due + took / 1_000.0)) }
    };
    Measured {
        deliveries: (0..300).map(delivery).collect(),
        lines: vec![],
        phases: vec![
            ("calm", at(0.0)),
            ("disturbed", at(10.0)),
            ("calm again", at(20.0)),
            ("over", at(30.0)),
        ],
        samples,
        facts: vec![],
        capacity: Some(Capacity { in_flight: 64, delay: at(0.05), after: at(0.5) }),
        load: [0.0, 0.0],
        audit: Audited::default(),
    }
}

fn outcome(measured: Measured) -> Outcome {
    let options = Options { disturbed: at(10.0), soak: at(0.0), scale: 1.0, seed: 1 };
    Outcome::of(&scenario::named("whale-50ms").unwrap(), &options, measured)
}

fn reached(outcome: &Outcome) -> Vec<bool> {
    outcome.goals.iter().map(|goal| goal.is_reached).collect()
}

#[test]
fn goal_compares_the_disturbed_with_both_calms() {
    let near = outcome(measured(5.0, 6.9, vec![]));
    assert_eq!(reached(&near), [true]);
    assert_eq!(near.phases.len(), 3);
    let far = outcome(measured(5.0, 7.1, vec![]));
    assert_eq!(reached(&far), [false]);
    assert!((far.goals[0].value - 2.1).abs() < 1e-6, "{:?}", far.goals);
}

#[test]
fn work_is_conserved_where_endpoints_work_while_something_waits() {
    let sample = |seconds: f64, others: u64, waiting: u64| Sample {
        seconds,
        others,
        waiting,
        ..Sample::default()
    };
    // 1,280 a second are possible: half of them, and all. What comes in the calm, while limits grow, or when little
    // waits, does not count.
    let samples = vec![
        sample(5.0, 0, 10_000),
        sample(10.4, 0, 10_000),
        sample(11.0, 500, 10_000),
        sample(12.0, 1_140, 10_000),
        sample(13.0, 2_420, 10_000),
        sample(14.0, 2_420, 100),
    ];
    let outcome = outcome(measured(5.0, 5.0, samples));
    assert_eq!(outcome.work_conservation, Some(0.75));
    assert_eq!(reached(&outcome), [true, false]);
}

#[test]
fn memory_is_flat_where_its_last_quarter_is_as_its_second() {
    let sample = |resident| Sample { resident, ..Sample::default() };
    let of = |quarters: [u64; 4]| {
        let samples: Vec<Sample> = quarters.iter().flat_map(|r| [sample(*r); 5]).collect();
        growth(&samples)
    };
    assert_eq!(of([10, 100, 120, 150]), Some(1.5));
    assert_eq!(of([900, 100, 120, 100]), Some(1.0));
    assert_eq!(growth(&[sample(1)]), None);
}

#[test]
fn run_fails_by_its_audit_and_not_by_its_goals() {
    let mut outcome = outcome(measured(5.0, 500.0, vec![]));
    outcome.ensure().unwrap();
    outcome.audit.lost = 1;
    let problem = outcome.ensure().unwrap_err().to_string();
    assert!(problem.contains("lost 1"), "{problem}");
}

#[test]
fn run_on_a_machine_without_free_cpu_says_so() {
    let sample = |seconds, free| Sample { seconds, free, ..Sample::default() };
    let of = |calm, disturbed| {
        outcome(measured(
            5.0,
            5.0,
            vec![sample(5.0, calm), sample(15.0, disturbed), sample(25.0, calm)],
        ))
    };
    assert!(of(0.02, 0.0).doubt().is_some());
    assert!(of(0.5, 0.0).doubt().is_none());
}
