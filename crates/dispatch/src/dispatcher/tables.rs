//! What the state tables hold asserts nothing: whatever stands there, and whatever is read back, the dispatcher
//! goes on.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::rig::{event, settings};
use super::{Dispatcher, Effect, Input, OperatorInput, Start};
use crate::fixture;
use walhook_core::endpoint::{Endpoint, Routes, Secret};
use walhook_core::event::{AccountId, EndpointId, Item};
use walhook_core::id::{JobId, ReplayId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, Blocked, Deferred, DisableEndpoint, EndpointError, EventKey, GapChange, Joined,
    NO_ENDPOINT, PauseEndpoint, Persisted, Purged, QueueId, Refilled, RowKey, SettledRange,
    Unrouted, UnroutedAccount, UnroutedPage, UnroutedPurged,
};
use walhook_core::position::Position;
use walhook_core::tick::Tick;

fn account() -> impl Strategy<Value = AccountId> {
    (0u8..3).prop_map(|n| AccountId::new(n.to_string()))
}

fn endpoint() -> impl Strategy<Value = EndpointId> {
    prop_oneof![
        9 => (0u8..4).prop_map(|n| EndpointId::new(n.to_string())),
        1 => Just(EndpointId::new(NO_ENDPOINT)),
    ]
}

fn queue() -> impl Strategy<Value = QueueId> {
    (account(), endpoint()).prop_map(|(account, endpoint)| QueueId { account, endpoint })
}

fn key() -> impl Strategy<Value = EventKey> {
    (900u64..3_000).prop_map(|commit| match commit % 7 {
        0 => EventKey::before_all_at(Position::FIRST),
        _ => EventKey::of(&event("0", commit)),
    })
}

/// Numbers as somebody's hand, a bug or another version may have left them.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(i64::MIN), Just(-1), Just(0), 1i64..2_000_000_000_000_000, Just(i64::MAX)]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0u64..5, 1 => Just(1u64 << 40)]
}

fn range() -> impl Strategy<Value = SettledRange> {
    (queue(), key(), key()).prop_map(|(queue, from, to)| {
        let QueueId { account, endpoint } = queue;
        SettledRange { account, endpoint, from, to }
    })
}

prop_compose! {
    fn backlog()(
        queue in queue(), all: bool, keys in prop::collection::vec(0u64..3_000, 0..4), rows in count(),
        failing_since_us in prop::option::of(number()), stopped_us in number(),
        open_until_us in prop::option::of(number()),
    ) -> BacklogRow {
        let blocked = if all { Blocked::All } else { Blocked::Keys(keys) };
        BacklogRow { queue, blocked, rows, failing_since_us, stopped_us, open_until_us }
    }
}

prop_compose! {
    fn start()(
        frontier in 0u64..2_500,
        settled in prop::collection::vec(range(), 0..8),
        stopped in prop::collection::vec((endpoint(), number(), any::<bool>()), 0..4),
        backlog in prop::collection::vec(backlog(), 0..6),
        suspended in prop::collection::vec((queue(), count(), any::<bool>()), 0..3),
        unrouted in prop::collection::vec((account(), count(), prop::collection::vec(range(), 0..3)), 0..3),
        joined in prop::collection::vec((endpoint(), 0u64..3_000), 0..3),
        unseen in prop::collection::vec(any::<u32>(), 0..3),
        failing in prop::collection::vec((queue(), number(), count()), 0..3),
        unix_us_at_zero in number(),
    ) -> Start {
        let mut start = Start { frontier: Lsn(frontier), settled, backlog, unseen, unix_us_at_zero, ..Start::default() };
        for (endpoint, since_us, both) in stopped {
            let reason = String::new();
            start.paused.push(PauseEndpoint { endpoint: endpoint.clone(), reason: reason.clone(), since_us });
            if both {
                start.disabled.push(DisableEndpoint { endpoint, reason });
            }
        }
        start.suspended = suspended.into_iter().map(|(queue, skipped, growing)| GapChange {
            queue, opens: None, skipped, span: None, growing,
        }).collect();
        start.unrouted = unrouted.into_iter()
            .map(|(account, rows, settled)| UnroutedAccount { account, rows, settled }).collect();
        start.joined = joined.into_iter().map(|(endpoint, at)| Joined { endpoint, at: Lsn(at) }).collect();
        start.failing = failing.into_iter().map(|(queue, us, failed)| EndpointError {
            queue, since_us: us, failed, last_us: us, error: String::new(),
        }).collect();
        start
    }
}

/// A row as it is read back.
fn row() -> impl Strategy<Value = RowTold> {
    let replay = prop_oneof![4 => Just(None), 1 => number().prop_map(|id| Some(ReplayId(id)))];
    (900u64..3_000, replay, prop::option::of(number()), any::<u32>(), any::<bool>())
}

/// Commit LSN, replay, time, attempts, whether it was tried.
type RowTold = (u64, Option<ReplayId>, Option<i64>, u32, bool);

#[derive(Debug, Clone)]
enum Step {
    Transaction(u8),
    Rows(Vec<RowTold>, bool),
    Stored(u64, bool),
    Answer(u16),
    Command(EndpointId, bool),
    Changed(QueueId, u64, u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0u8..3).prop_map(Step::Transaction),
        5 => (prop::collection::vec(row(), 0..5), any::<bool>()).prop_map(|(rows, end)| Step::Rows(rows, end)),
        5 => (count(), any::<bool>()).prop_map(|(rows, all)| Step::Stored(rows, all)),
        4 => prop_oneof![Just(200u16), Just(410), Just(503)].prop_map(Step::Answer),
        1 => (endpoint(), any::<bool>()).prop_map(|(endpoint, pause)| Step::Command(endpoint, pause)),
        1 => (queue(), 900u64..3_000, 0u8..3)
            .prop_map(|(queue, commit, how)| Step::Changed(queue, commit, how)),
        4 => prop_oneof![0u64..2_000_000, Just(3_600_000_000)].prop_map(Step::Pass),
    ]
}

/// The database as the dispatcher sees it, which answers what it likes.
struct World {
    dispatcher: Dispatcher,
    now: Tick,
    commit: u64,
    asked: Vec<Effect>,
}

impl World {
    fn poll(&mut self) {
        while let Some(effect) = self.dispatcher.poll(self.now) {
            match effect {
                Effect::LookUp(look_up) => {
                    let routes = |account: &AccountId| {
                        let endpoint = |n: u8| Endpoint {
                            id: EndpointId::new(n.to_string()),
                            account: account.clone(),
                            url: String::new(),
                            event_types: vec!["*".into()],
                            secrets: vec![Secret::new("s")],
                            enabled: true,
                            headers: vec![],
                            max_in_flight: None,
                            rate_per_second: None,
                            invalid: None,
                        };
                        let endpoints = (0..3).map(|n| Arc::new(endpoint(n))).collect();
                        Routes::new(endpoints, 1.0)
                    };
                    let answer = look_up.answered("9:9:".parse().unwrap(), routes);
                    self.dispatcher.handle(self.now, Input::Routes(Box::new(answer)));
                }
                Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. }
                | Effect::Abort(_) => {}
                asked @ (Effect::Send(_)
                | Effect::ReadDeferred(_)
                | Effect::ReadUnrouted(_)
                | Effect::Store(_)) => self.asked.push(asked),
            }
        }
    }

    /// The first thing that was asked of this kind, taken.
    fn take(&mut self, kind: fn(&Effect) -> bool) -> Option<Effect> {
        let at = self.asked.iter().position(kind)?;
        Some(self.asked.remove(at))
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each step")]
    fn step(&mut self, step: Step) {
        let input = match step {
            Step::Transaction(n) => {
                if !self.dispatcher.wants_input() {
                    return;
                }
                self.commit += 100;
                let account = n.to_string();
                Input::Items(vec![
                    Item::Begin { commit_lsn: Lsn(self.commit) },
                    Item::Event(event(&account, self.commit)),
                    Item::Commit { end_lsn: Lsn(self.commit + 10) },
                ])
            }
            Step::Rows(rows, end) => {
                let is_read =
                    |e: &Effect| matches!(e, Effect::ReadDeferred(_) | Effect::ReadUnrouted(_));
                match self.take(is_read) {
                    Some(Effect::ReadDeferred(pages)) => {
                        let read =
                            |(commit, replay, due_us, attempts, tried): &(_, _, _, _, bool)| {
                                let event = event("0", *commit);
                                let key = RowKey { event: EventKey::of(&event), replay: *replay };
                                let (attempts, due_us) = (*attempts, *due_us);
                                let first_attempt_us = tried.then_some(i64::MAX);
                                Deferred { key, event, attempts, first_attempt_us, due_us }
                            };
                        let page =
                            |queue| Refilled { queue, rows: rows.iter().map(read).collect(), end };
                        Input::DeferredPages(pages.into_iter().map(|p| page(p.queue)).collect())
                    }
                    Some(Effect::ReadUnrouted(pages)) => {
                        let read = |row: &RowTold| Unrouted {
                            event: event("0", row.0),
                            routed_to: row.4.then(|| EndpointId::new("1")),
                        };
                        let page = |account| UnroutedPage {
                            account,
                            rows: rows.iter().map(read).collect(),
                            end,
                        };
                        Input::UnroutedPages(pages.into_iter().map(|p| page(p.account)).collect())
                    }
                    _ => return,
                }
            }
            Step::Stored(rows, all) => {
                let Some(Effect::Store(batch)) = self.take(|e| matches!(e, Effect::Store(_)))
                else {
                    return;
                };
                let purged = |queue: &QueueId| Purged { queue: queue.clone(), rows, all };
                Input::Stored(Box::new(Persisted {
                    purged: batch.purges.iter().map(|purge| purged(&purge.queue)).collect(),
                    letters_purged: batch.letter_purges.iter().map(|p| purged(&p.queue)).collect(),
                    unrouted_purged: batch
                        .unrouted_purges
                        .iter()
                        .map(|p| UnroutedPurged { account: p.account.clone(), rows, all })
                        .collect(),
                    ..Persisted::default()
                }))
            }
            Step::Answer(status) => {
                let Some(Effect::Send(sent)) = self.take(|e| matches!(e, Effect::Send(_))) else {
                    return;
                };
                let outcome = fixture::answered(status);
                Input::Outcome { delivery: sent.attempt.first().id, outcome }
            }
            Step::Command(endpoint, true) => {
                let reason = String::new();
                Input::Command(Box::new(OperatorInput::Pause { job: JobId(1), endpoint, reason }))
            }
            Step::Command(endpoint, false) => {
                Input::Command(Box::new(OperatorInput::Resume { job: JobId(1), endpoint }))
            }
            Step::Changed(queue, commit, how) => {
                let key = RowKey { event: EventKey::of(&event("0", commit)), replay: None };
                let rows = vec![(queue, key)];
                Input::Command(Box::new(match how {
                    0 => OperatorInput::RowsBeingRemoved(rows),
                    1 => OperatorInput::RowsRemoved(rows),
                    _ => OperatorInput::RowsChanged(rows),
                }))
            }
            Step::Pass(us) => {
                self.now = self.now + Duration::from_micros(us);
                return;
            }
        };
        self.dispatcher.handle(self.now, input);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn dispatcher_goes_on_whatever_the_tables_hold(
        start in start(), steps in prop::collection::vec(step(), 0..120),
    ) {
        let commit = 3_000;
        let dispatcher = Dispatcher::new(settings(), start, SmallRng::seed_from_u64(1));
        let mut world = World { dispatcher, now: Tick(60_000_000), commit, asked: Vec::new() };
        world.poll();
        for step in steps {
            world.step(step);
            world.poll();
            let _ = world.dispatcher.deadline();
            let _ = world.dispatcher.gauges();
        }
    }
}
