//! Virtual receivers: what each endpoint answers.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use walhook_core::attempt::{Attempt, FailureKind, Meaning, Outcome, Record};
use walhook_core::event::EndpointId;
use walhook_core::tick::Tick;

use crate::counts::Counts;
use crate::faults::Fault;
use crate::plan::{Plan, pick};
use crate::postgres::Postgres;

/// When a request is given up by the one who sends it.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How an endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temper {
    Fast,
    Slow,
    Hanging,
    Refusing,
    /// Refuses a third of all events for ever.
    Picky,
    /// 410 from then on.
    Gone(Tick),
    Throttling,
    Resetting,
    Flapping,
    /// Refuses until then.
    Back(Tick),
    Flaky,
}

#[derive(Debug)]
pub(crate) struct Receivers {
    tempers: BTreeMap<EndpointId, Temper>,
    rng: SmallRng,
    local: bool,
}

impl Receivers {
    pub(crate) fn new(plan: &Plan, postgres: &Postgres) -> Self {
        let mut rng = plan.rng("tempers");
        let mut temper = || {
            // Always as many draws, so that a fault that is left out changes no other endpoint.
            let (kind, until) = (rng.random_range(0..28), Tick(rng.random_range(0..90_000_000)));
            let when = |fault, temper| if plan.has(fault) { temper } else { Temper::Fast };
            match kind {
                0 | 1 => when(Fault::Slow, Temper::Slow),
                2 => when(Fault::Hanging, Temper::Hanging),
                3 => when(Fault::Refusing, Temper::Refusing),
                4 | 5 => when(Fault::Refusing, Temper::Picky),
                6 => when(Fault::Gone, Temper::Gone(until)),
                7 => when(Fault::Throttling, Temper::Throttling),
                8 => when(Fault::Reset, Temper::Resetting),
                9 => when(Fault::Flapping, Temper::Flapping),
                10 | 11 => when(Fault::Refusing, Temper::Back(until)),
                12 => when(Fault::Refusing, Temper::Flaky),
                _ => Temper::Fast,
            }
        };
        let tempers = postgres.versions.keys().map(|id| (id.clone(), temper())).collect();
        Self { tempers, rng: plan.rng("answers"), local: plan.has(Fault::Local) }
    }

    pub(crate) fn temper(&self, endpoint: &EndpointId) -> Temper {
        self.tempers.get(endpoint).copied().unwrap_or(Temper::Fast)
    }

    /// What comes of a request that is sent now.
    pub(crate) fn answer(&mut self, attempt: &Attempt, now: Tick, counts: &mut Counts) -> Outcome {
        let rng = &mut self.rng;
        let status = |status| answered(status, None);
        let failure = |kind| Outcome::failed(kind, "simulated", Duration::ZERO);
        let ms = Duration::from_millis;
        if self.local && (rng.random_bool(0.002) || (now.0 / 1_000_000) % 53 == 11) {
            counts.fault(Fault::Local);
            return failure(FailureKind::Local);
        }
        let temper = self.tempers.get(&attempt.endpoint.id).copied().unwrap_or(Temper::Fast);
        let fast = |rng: &mut SmallRng| (status(200), ms(rng.random_range(1..30)));
        let chosen = attempt.first().event.commit_time_us.rem_euclid(3) == 0;
        let (fault, ended) = match temper {
            Temper::Fast => return plain(fast(rng)),
            Temper::Slow => (Fault::Slow, (status(200), ms(rng.random_range(1_000..5_000)))),
            Temper::Hanging => (Fault::Hanging, (failure(FailureKind::Timeout), TIMEOUT)),
            Temper::Refusing if rng.random_bool(0.5) => (Fault::Refusing, (status(500), ms(4))),
            Temper::Refusing => (Fault::Refusing, (failure(FailureKind::Connect), ms(1))),
            Temper::Picky if chosen => (Fault::Refusing, (status(422), ms(2))),
            Temper::Gone(since) if now >= since => (Fault::Gone, (status(410), ms(10))),
            Temper::Throttling if rng.random_bool(0.3) => {
                let seconds = pick(rng, [0, 1, 30, 100_000]);
                let retry_after = Some(Duration::from_secs(seconds));
                let status = if rng.random_bool(0.5) { 429 } else { 503 };
                (Fault::Throttling, (answered(status, retry_after), ms(4)))
            }
            Temper::Resetting if rng.random_bool(0.3) => {
                let kinds = [
                    FailureKind::Protocol,
                    FailureKind::Tls,
                    FailureKind::Dns,
                    FailureKind::Proxy,
                    FailureKind::Forbidden,
                    FailureKind::Invalid,
                ];
                let kind = pick(rng, kinds);
                (Fault::Reset, (failure(kind), ms(8)))
            }
            Temper::Flapping if (now.0 / 20_000_000).is_multiple_of(2) => {
                (Fault::Flapping, (status(502), ms(3)))
            }
            Temper::Back(until) if now < until => (Fault::Refusing, (status(500), ms(3))),
            Temper::Flaky if rng.random_bool(0.3) => (Fault::Refusing, (status(503), ms(5))),
            Temper::Picky
            | Temper::Gone(_)
            | Temper::Throttling
            | Temper::Resetting
            | Temper::Flapping
            | Temper::Back(_)
            | Temper::Flaky => return plain(fast(rng)),
        };
        counts.fault(fault);
        plain(ended)
    }
}

fn plain((outcome, elapsed): (Outcome, Duration)) -> Outcome {
    Outcome { elapsed, ..outcome }
}

/// What an answer over HTTP with this status comes to.
pub(crate) fn answered(status: u16, retry_after: Option<Duration>) -> Outcome {
    let (meaning, text) = match status {
        200..300 => (Meaning::Delivered, String::new()),
        410 => (Meaning::Gone, format!("status {status}")),
        _ => {
            let overloaded = matches!(status, 429 | 503);
            (Meaning::Refused { retry_after, overloaded }, format!("status {status}"))
        }
    };
    let record = Record { status: Some(status), failure: None, text };
    Outcome { record, ..Outcome::new(meaning, Duration::ZERO) }
}
