//! The dispatcher, beside whom everything succeeds at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use walhook_core::attempt::{DeliveryId, Meaning, Outcome, Record};
use walhook_core::delivery_log::Keep;
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{EndpointId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;
use walhook_dispatch::dispatcher::{
    Dispatcher, Effect, Input, LookUp, LookUpAnswer, Ordering, Settings, Start,
};
use walhook_dispatch::retry::RetryPolicy;
use walhook_dispatch::settle::SettlePolicy;

use crate::events::{account, event};

/// Accounts, with an endpoint each, that have events in turn.
const ACCOUNTS: u64 = 1_000;

/// Items that come at once.
const BATCH: u64 = 100;

/// From one batch to the next.
const STEP: Duration = Duration::from_millis(5);

pub(crate) struct Work {
    dispatcher: Dispatcher,
    batches: Vec<Vec<Item>>,
    /// Of the accounts, by their number.
    routes: Vec<Routes>,
    count: u64,
}

impl Work {
    /// So many deliveries.
    pub(crate) fn of(count: u64) -> Result<Self> {
        let start = Start { frontier: Lsn(1_000), ..Start::default() };
        let dispatcher = Dispatcher::new(settings()?, start, SmallRng::seed_from_u64(1));
        let numbers: Vec<u64> = (0..count).collect();
        let batch = |numbers: &[u64]| numbers.iter().flat_map(|n| transaction(*n)).collect();
        let batches = numbers.chunks(usize::try_from(BATCH)?).map(batch).collect();
        Ok(Self { dispatcher, batches, routes: (0..ACCOUNTS).map(routes).collect(), count })
    }

    pub(crate) fn run(mut self) -> Result<()> {
        let mut now = Tick(60_000_000);
        for batch in std::mem::take(&mut self.batches) {
            now = now + STEP;
            self.dispatcher.handle(now, Input::Items(batch));
            self.settle(now)?;
        }
        while self.dispatcher.counters().delivered < self.count {
            now = now + STEP;
            ensure!(self.settle(now)?, "the dispatcher stands still");
        }
        Ok(())
    }

    /// Does all that is asked for; whether anything was.
    fn settle(&mut self, now: Tick) -> Result<bool> {
        let mut any = false;
        let mut in_flight: Vec<DeliveryId> = Vec::new();
        loop {
            while let Some(effect) = self.dispatcher.poll(now) {
                any = true;
                match effect {
                    Effect::Send(dispatch) => in_flight.push(dispatch.attempt.first().id),
                    Effect::LookUp(LookUp { line, accounts }) => {
                        let found = |id: &walhook_core::event::AccountId| {
                            let n: usize = id.as_str().parse().ok()?;
                            Some((id.clone(), self.routes.get(n)?.clone()))
                        };
                        let answers = accounts.iter().filter_map(found).collect();
                        let (snapshot, costly, put_off) =
                            ("1000:1000:".parse()?, Vec::new(), Vec::new());
                        let answer = LookUpAnswer { line, snapshot, costly, put_off, answers };
                        self.dispatcher.handle(now, Input::Routes(Box::new(answer)));
                    }
                    Effect::Store(_) => self.dispatcher.handle(now, Input::Stored(Box::default())),
                    Effect::Abort(_)
                    | Effect::ReadDeferred(_)
                    | Effect::ReadUnrouted(_)
                    | Effect::Flush(_)
                    | Effect::Settled(_)
                    | Effect::Report(_)
                    | Effect::StateFull { .. } => {}
                }
            }
            if in_flight.is_empty() {
                return Ok(any);
            }
            for delivery in in_flight.drain(..) {
                self.dispatcher.handle(now, Input::Outcome { delivery, outcome: delivered() });
            }
        }
    }
}

fn transaction(n: u64) -> [Item; 3] {
    let commit = Lsn(2_000 + n * 100);
    [
        Item::Begin { commit_lsn: commit },
        Item::Event(event(n, n % ACCOUNTS, commit)),
        Item::Commit { end_lsn: Lsn(commit.0 + 10) },
    ]
}

fn routes(n: u64) -> Routes {
    let endpoint = Endpoint {
        id: EndpointId::new(n.to_string().as_str()),
        account: account(n),
        url: "http://127.0.0.1:9/".to_owned(),
        event_types: vec!["subscriber.*".to_owned()],
        secrets: vec![Secret::new("instructions")],
        enabled: true,
        headers: Vec::new(),
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    };
    Routes::new(vec![Arc::new(endpoint)], 1.0)
}

fn delivered() -> Outcome {
    Outcome {
        meaning: Meaning::Delivered,
        record: Record { status: Some(200), failure: None, text: String::new() },
        elapsed: Duration::from_millis(1),
        resends: 0,
        own_resends: 0,
    }
}

/// As the program's by default.
fn settings() -> Result<Settings> {
    let retry = RetryPolicy::new(Duration::from_secs(5), Duration::from_secs(8 * 3_600))
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(Settings {
        memory_limit: 256 << 20,
        slice: 256,
        lane_max: 4_096,
        fast_slots: 256,
        slow_slots: 256,
        ordering: Ordering::Row,
        settle: SettlePolicy { quick_attempts: 2, retry, retry_for: Duration::from_secs(86_400) },
        disable_after: Duration::from_secs(86_400),
        max_hold: Duration::from_secs(30),
        max_retained: 256 << 20,
        notifies: false,
        state_max: u64::MAX,
        log: Keep::All,
        log_excerpts: true,
    })
}
