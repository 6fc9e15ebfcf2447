//! What endpoints answer, each by its temper, and what they have received.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::{TIMEOUT, World};
use crate::fixture;
use walhook_core::attempt::{Attempt, FailureKind, Outcome};
use walhook_core::event::Event;
use walhook_core::position::Position;
use walhook_core::tick::Tick;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::dispatcher::simulation) enum Temper {
    Fast,
    Slow,
    Flaky,
    Hanging,
    Refusing,
    Gone,
    /// Refuses until then.
    Back(Tick),
    /// Refuses some rows, always.
    Picky,
    /// Refuses from the one moment to the other, and a few events always.
    Down(Tick, Tick),
    /// Refuses every other hour.
    Flapping,
    /// Refuses some events twice, and asks for a wait: sensible, none at all, or absurd.
    Asking,
}

/// One event in forty: where many are refused for days, what stands behind them never ends.
fn is_chosen(event: &Event, which: u64) -> bool {
    let Position::Wal(position) = event.position;
    position.change_lsn.0 % 41 == which
}

impl World {
    pub(in crate::dispatcher::simulation) fn answer(
        &self,
        rng: &mut SmallRng,
        attempt: &Attempt,
        now: Tick,
    ) -> Outcome {
        let status = fixture::answered;
        let failure = |kind| Outcome::failed(kind, "simulated", Duration::ZERO);
        let ms = Duration::from_millis;
        let (outcome, elapsed) = match self.tempers[attempt.endpoint.id.as_str()] {
            // We have nothing to send it with: now and then, and in spells of a second.
            _ if rng.random_bool(0.005) || (now.0 / 1_000_000) % 53 == 11 => {
                (failure(FailureKind::Local), Duration::ZERO)
            }
            Temper::Back(since) if now < since => (status(500), ms(3)),
            Temper::Down(from, until) if (from..until).contains(&now) => (status(500), ms(3)),
            Temper::Down(..) if is_chosen(&attempt.first().event, 7) => (status(422), ms(2)),
            Temper::Flapping if (now.0 / 3_600_000_000).is_multiple_of(2) => (status(502), ms(3)),
            Temper::Asking
                if is_chosen(&attempt.first().event, 0) && attempt.first().number < 3 =>
            {
                let asks = [0, 600, 6 * 3_600, 10 * 365 * 86_400];
                let asks = asks[rng.random_range(0..asks.len())];
                let retry_after = Some(Duration::from_secs(asks));
                (fixture::answer(429, retry_after, ""), ms(4))
            }
            Temper::Picky if attempt.first().event.keys[0].is_multiple_of(3) => {
                (status(422), ms(2))
            }
            Temper::Fast
            | Temper::Back(_)
            | Temper::Picky
            | Temper::Down(..)
            | Temper::Flapping
            | Temper::Asking => (status(200), ms(rng.random_range(1..30))),
            Temper::Slow => (status(200), ms(rng.random_range(1_000..5_000))),
            Temper::Flaky if rng.random_bool(0.3) => (status(503), ms(5)),
            Temper::Flaky => (status(200), ms(20)),
            Temper::Hanging => (failure(FailureKind::Timeout), TIMEOUT),
            Temper::Refusing => (failure(FailureKind::Connect), ms(1)),
            Temper::Gone => (status(410), ms(10)),
        };
        Outcome { elapsed, ..outcome }
    }

    /// First deliveries of one row's events come in commit order.
    pub(in crate::dispatcher::simulation) fn receive(&mut self, attempt: &Attempt) {
        let (event, endpoint) = (&attempt.first().event, attempt.endpoint.id.to_string());
        if attempt.first().asked.is_some() {
            *self.replayed.entry((event.id, endpoint)).or_default() += 1;
            return;
        }
        let times = self.received.entry((event.id, endpoint.clone())).or_default();
        *times += 1;
        if *times > 1 {
            self.duplicates += 1;
            return;
        }
        for key in &event.keys {
            let row = (endpoint.clone(), event.account.clone(), *key);
            let before = self.last_first.insert(row.clone(), event.position);
            let in_order = before < Some(event.position);
            let (id, position) = (event.id, event.position);
            assert!(in_order, "{id} at {position:?} came to {row:?} after {before:?}");
        }
    }
}
