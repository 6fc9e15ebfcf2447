//! When look-ups fail, of all accounts or of single ones.

use std::time::Duration;

use rand::RngExt;

use walhook_core::endpoint::Routes;
use walhook_core::event::AccountId;
use walhook_core::tick::Tick;

use crate::faults::Fault;
use crate::plan::Plan;

/// What the database says where it refuses to read an account's rows.
pub(crate) const REFUSED: &str = "simulated";

#[derive(Debug, Default)]
pub(crate) struct Outages {
    all: Vec<(Tick, Tick)>,
    put_off: Vec<(AccountId, Tick, Tick)>,
    refused: Vec<(AccountId, Tick, Tick)>,
    /// Somebody else's rows fill the tables.
    others: Vec<(Tick, Tick)>,
    /// The state database does not answer.
    state: Vec<(Tick, Tick)>,
    /// The most that the tables took.
    pub(crate) largest: u64,
}

fn inside(spans: &[(Tick, Tick)], now: Tick) -> Option<Tick> {
    spans.iter().find(|(from, until)| (*from..*until).contains(&now)).map(|(_, until)| *until)
}

impl Outages {
    pub(crate) fn new(plan: &Plan, span: Tick) -> Self {
        let mut rng = plan.rng("outages");
        let mut outages = Self::default();
        let mut at = Tick(rng.random_range(0..=span.0 / 2));
        for _ in 0..rng.random_range(0..4) {
            // A long one, or many short ones with moments between.
            let (times, ms) = if rng.random_bool(0.5) { (1, 200..20_000) } else { (8, 10..1_500) };
            for _ in 0..times {
                let until = at + Duration::from_millis(rng.random_range(ms.clone()));
                outages.all.push((at, until));
                at = until + Duration::from_millis(rng.random_range(5..300));
            }
            at = at + Duration::from_micros(rng.random_range(0..=span.0 / 2));
        }
        let mut one = |times: u32, seconds: u64| {
            let mut spans = Vec::new();
            for _ in 0..times {
                let account = rng.random_range(1..plan.options.accounts.max(2));
                let from = Tick(rng.random_range(0..=span.0));
                let until = from + Duration::from_millis(rng.random_range(1..seconds * 1_000));
                spans.push((AccountId::new(format!("a{account}")), from, until));
            }
            spans
        };
        outages.put_off = one(3, 20);
        outages.refused = one(2, 5);
        // Early on, nothing stands in the tables that could be given up.
        let early = rng.random_bool(0.5);
        let from = Tick(if early { 0 } else { rng.random_range(0..=span.0) });
        let lasts = Duration::from_millis(rng.random_range(1_000..60_000));
        if rng.random_bool(0.4) {
            outages.others.push((from, from + lasts));
        }
        let from = Tick(rng.random_range(0..=span.0));
        let lasts = Duration::from_secs(rng.random_range(5..180));
        if rng.random_bool(0.15) && plan.has(Fault::StateOutage) {
            outages.state.push((from, from + lasts));
        }
        let faults = [Fault::LookUpOutage, Fault::LookUpPutOff, Fault::LookUpRefused];
        let [all, put_off, refused] = faults.map(|fault| plan.has(fault));
        outages.all.retain(|_| all);
        outages.put_off.retain(|_| put_off);
        outages.refused.retain(|_| refused);
        outages
    }

    /// When look-ups work again, where they fail.
    pub(crate) fn until(&self, now: Tick) -> Option<Tick> {
        inside(&self.all, now)
    }

    /// When the state database answers again, where it does not.
    pub(crate) fn of_state(&self, now: Tick) -> Option<Tick> {
        inside(&self.state, now)
    }

    /// Of this account alone nothing can be told now.
    pub(crate) fn puts_off(&self, account: &AccountId, now: Tick) -> Option<Duration> {
        let mut spans = self.put_off.iter().filter(|(of, ..)| of == account);
        let found = spans.find(|(_, from, until)| (*from..*until).contains(&now));
        found.map(|_| Duration::from_secs(1))
    }

    /// The database refuses to read this account's rows.
    pub(crate) fn refuses(&self, account: &AccountId, now: Tick) -> Option<Routes> {
        let mut spans = self.refused.iter().filter(|(of, ..)| of == account);
        let found = spans.find(|(_, from, until)| (*from..*until).contains(&now));
        found.map(|_| Routes::refused(REFUSED.to_owned(), 1.0))
    }

    /// Whether others' rows fill the tables.
    pub(crate) fn others_rows(&self, now: Tick) -> bool {
        inside(&self.others, now).is_some()
    }
}
