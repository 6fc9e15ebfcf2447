//! One process's life: a dispatcher, what it has asked for, and what is to happen next, until it ends or crashes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use smallvec::smallvec;

use super::super::*;
use super::world::{Change, UNIX_US, World};
use crate::dispatcher::LookUp as Ask;
use crate::route::{LookUpLine, Snapshot};
use walhook_core::attempt::{Attempt, DeliveryId, FailureKind, Outcome};
use walhook_core::endpoint::Routes;
use walhook_core::event::{Invalidation, Item, Scope};
use walhook_core::persist::{
    DisableEndpoint, PauseEndpoint, PersistBatch, Refill, Refilled, UnroutedPage,
};

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happens {
    Streamed,
    Answered(DeliveryId),
    LookedUp,
    Refilled,
    Routable,
    Stored,
    Measured,
    Wake,
}

/// What was asked of the table of deferred rows: read at once, or when it is answered.
enum Page {
    Asked(Vec<Refill>),
    Read(Vec<Refilled>),
}

/// A look-up under way: its answer, or what was asked while look-ups fail.
enum LookUp {
    Asked(Vec<AccountId>),
    Answered(Snapshot, Vec<(AccountId, Routes)>),
}

/// One process's life.
pub(super) struct Life {
    pub(super) dispatcher: Dispatcher,
    slots: usize,
    agenda: BinaryHeap<Reverse<(Tick, u64, Happens)>>,
    pub(super) in_flight: BTreeMap<DeliveryId, (Attempt, Outcome)>,
    lookup: Option<LookUp>,
    unrouted: Option<Vec<UnroutedPage>>,
    /// Where the endpoints joined that it was told of.
    pub(super) joined: BTreeMap<EndpointId, Lsn>,
    /// Of the rows that were inserted, how many were looked at.
    pub(super) insertions: crate::lane::Insertion,
    refill: Option<Page>,
    batch: Option<PersistBatch>,
    /// What became of endpoints, and nobody has looked at.
    pub(super) reports: Vec<EndpointChanged>,
    pub(super) next_txn: usize,
    /// The operator's job that was handed over last, and the endpoints that may not be sent to.
    asked: Option<walhook_core::id::JobId>,
    paused: BTreeSet<EndpointId>,
    /// Outcomes in the batch that is being stored, and since it was handed out.
    storing: u64,
    unstored: u64,
}

impl Life {
    pub(super) fn new(world: &World, settings: &Settings, rng: &mut SmallRng, now: Tick) -> Self {
        let slots = (settings.fast_slots + settings.slow_slots) as usize;
        let disabled = world.disabled.iter();
        let disabled =
            disabled.map(|(e, r)| DisableEndpoint { endpoint: e.clone(), reason: r.clone() });
        let paused = world.paused.iter().map(|(endpoint, since_us)| PauseEndpoint {
            endpoint: endpoint.clone(),
            reason: String::new(),
            since_us: *since_us,
        });
        let start = Start {
            frontier: world.frontier,
            settled: world.settled.iter().flat_map(|(_, ranges)| ranges.clone()).collect(),
            disabled: disabled.collect(),
            paused: paused.collect(),
            backlog: world.backlog.values().cloned().collect(),
            suspended: world.growing().collect(),
            failing: Vec::new(),
            unrouted: world.unrouted.accounts.values().cloned().collect(),
            joined: world.unrouted.joined(),
            unseen: world.unrouted.unseen.iter().copied().collect(),
            unix_us_at_zero: UNIX_US,
            written_us: None,
        };
        let next_txn = world.txns.iter().take_while(|t| t.end_lsn <= world.frontier).count();
        let mut life = Self {
            dispatcher: Dispatcher::new(settings.clone(), start, SmallRng::from_rng(rng)),
            slots,
            agenda: BinaryHeap::new(),
            in_flight: BTreeMap::new(),
            lookup: None,
            unrouted: None,
            joined: world.unrouted.joined().into_iter().map(|j| (j.endpoint, j.at)).collect(),
            insertions: crate::lane::Insertion::default(),
            refill: None,
            batch: None,
            reports: Vec::new(),
            next_txn,
            asked: None,
            paused: world.paused.keys().cloned().collect(),
            storing: 0,
            unstored: 0,
        };
        life.plan(now, Happens::Streamed, rng);
        if world.bound.is_some() {
            life.plan(now, Happens::Measured, rng);
        }
        life
    }

    pub(super) fn plan(&mut self, at: Tick, what: Happens, rng: &mut SmallRng) {
        self.agenda.push(Reverse((at, rng.random(), what)));
    }

    /// Lets the dispatcher do all that it can at this moment.
    pub(super) fn poll(&mut self, world: &mut World, rng: &mut SmallRng, now: Tick) {
        self.ask(world, now);
        while let Some(effect) = self.dispatcher.poll(now) {
            self.check_routed();
            world.trace.note(now, &effect);
            self.carry_out(effect, world, rng, now);
        }
        self.check_routed();
        assert!(self.in_flight.len() <= self.slots, "more requests than slots");
    }

    fn carry_out(&mut self, effect: Effect, world: &mut World, rng: &mut SmallRng, now: Tick) {
        match effect {
            Effect::Send(Dispatch { attempt, .. }) => {
                assert!(!self.paused.contains(&attempt.endpoint.id), "sent to a paused endpoint");
                self.check_alone(&attempt);
                let outcome = world.answer(rng, &attempt, now);
                let id = attempt.first().id;
                self.plan(now + outcome.elapsed, Happens::Answered(id), rng);
                self.in_flight.insert(id, (attempt, outcome));
            }
            Effect::Abort(id) => self.abort(id, world, rng, now),
            Effect::LookUp(Ask { accounts, .. }) => {
                let takes = Duration::from_millis(rng.random_range(1..20));
                if let Some(until) = world.unrouted.outage(now) {
                    self.lookup = Some(LookUp::Asked(accounts));
                    self.plan(until + takes, Happens::LookedUp, rng);
                } else {
                    self.lookup = Some(self.look_up(accounts, world, rng));
                    self.plan(now + takes, Happens::LookedUp, rng);
                }
            }
            Effect::ReadDeferred(pages) => {
                assert!(self.refill.is_none(), "two pages at once");
                let at_once = rng.random_bool(0.5);
                let page =
                    if at_once { Page::Read(world.refill(&pages)) } else { Page::Asked(pages) };
                self.refill = Some(page);
                let slow = if rng.random_bool(0.05) { 500 } else { 3 };
                self.plan(now + Duration::from_millis(slow), Happens::Refilled, rng);
            }
            Effect::ReadUnrouted(pages) => {
                assert!(self.unrouted.is_none(), "two pages at once");
                self.unrouted = Some(world.unrouted.read(&pages));
                let slow = if rng.random_bool(0.05) { 500 } else { 3 };
                self.plan(now + Duration::from_millis(slow), Happens::Routable, rng);
            }
            Effect::Store(batch) => {
                assert!(self.batch.is_none(), "two state transactions at once");
                self.batch = Some(*batch);
                self.storing = std::mem::take(&mut self.unstored);
                let slow = if rng.random_bool(0.05) { 1_500 } else { 5 };
                self.plan(now + Duration::from_millis(slow), Happens::Stored, rng);
            }
            Effect::Flush(lsn) => assert_eq!(lsn, world.frontier, "the source forgets too much"),
            Effect::Report(changed) => self.reports.push(*changed),
            Effect::Settled(Settled { event, measured: Some(measured), .. }) => {
                let since_commit = UNIX_US + i64::try_from(now.0).unwrap() - event.commit_time_us;
                let waits = measured.waits;
                let waited = i64::try_from(waits.total_us()).unwrap();
                assert_eq!(waited, since_commit, "the causes do not add up: {waits:?}");
                waits.iter().for_each(|(cause, us)| world.waited.add_us(cause, us));
            }
            Effect::Settled(_) | Effect::StateFull { .. } => {}
        }
    }

    fn look_up(&self, accounts: Vec<AccountId>, world: &mut World, rng: &mut SmallRng) -> LookUp {
        // SQL may lag behind the stream, or run ahead of it.
        let lag = rng.random_range(0..3);
        let ahead = rng.random_range(0..3);
        let end = (self.next_txn + ahead).saturating_sub(lag).min(world.txns.len());
        // What one snapshot has seen, every later one sees.
        let end = end.max(world.visible);
        world.visible = end;
        let xmax = world.txns.get(end).map_or(1 << 20, |t| u64::from(t.xid));
        let snapshot = format!("{xmax}:{xmax}:").parse().unwrap();
        let routes = accounts.into_iter().map(|a| (a.clone(), world.routes(end, &a)));
        LookUp::Answered(snapshot, routes.collect())
    }

    /// A request is given up; half of those that would have been taken have been.
    fn abort(&mut self, id: DeliveryId, world: &mut World, rng: &mut SmallRng, now: Tick) {
        let (attempt, outcome) = self.in_flight.get_mut(&id).unwrap();
        if outcome.delivered() && rng.random_bool(0.5) {
            world.receive(attempt);
            world.excused += 1;
        }
        *outcome = Outcome::failed(FailureKind::Aborted, "", Duration::from_secs(1));
        world.aborts += 1;
        self.agenda.retain(|Reverse((.., what))| *what != Happens::Answered(id));
        self.plan(now, Happens::Answered(id), rng);
    }

    /// Hands over what an operator asks, once in a life.
    fn ask(&mut self, world: &World, now: Tick) {
        let Some((job, endpoint, pause)) = world.job.clone() else { return };
        if self.asked.replace(job) == Some(job) {
            return;
        }
        let (changed, input) = if pause {
            let reason = String::new();
            let changed = self.paused.insert(endpoint.clone());
            (changed, OperatorInput::Pause { job, endpoint, reason })
        } else {
            let changed = self.paused.remove(&endpoint);
            (changed, OperatorInput::Resume { job, endpoint })
        };
        assert_eq!(self.dispatcher.handle_operator(input, now), changed);
    }

    /// What happens next, and when: of the agenda, or that the dispatcher's own time has come, or that
    /// an operator does something.
    pub(super) fn next(&mut self, world: &World, now: Tick) -> Option<(Tick, Happens)> {
        let operator = world.resume_at.as_ref().map(|(at, _)| *at);
        let wake = self.dispatcher.deadline().into_iter().chain(operator).min();
        let wake = wake.map(|due| due.max(now + Duration::from_micros(1)));
        let first = self.agenda.peek().map(|Reverse((at, ..))| *at);
        if let Some(wake) = wake.filter(|wake| first.is_none_or(|at| *wake < at)) {
            return Some((wake, Happens::Wake));
        }
        self.agenda.pop().map(|Reverse((at, _, what))| (at, what))
    }

    /// No two events of one row are in flight to one endpoint.
    fn check_alone(&self, attempt: &Attempt) {
        for (other, _) in self.in_flight.values() {
            let shares =
                other.first().event.keys.iter().any(|k| attempt.first().event.keys.contains(k));
            let same = other.endpoint.id == attempt.endpoint.id
                && other.first().event.account == attempt.first().event.account;
            let ordered = other.first().asked.is_none() && attempt.first().asked.is_none();
            assert!(
                !(ordered && same && shares),
                "two events of one row in flight to one endpoint"
            );
        }
    }

    pub(super) fn handle(
        &mut self,
        what: Happens,
        world: &mut World,
        rng: &mut SmallRng,
        now: Tick,
    ) {
        match what {
            Happens::Streamed => {
                if self.dispatcher.wants_input() && self.next_txn < world.txns.len() {
                    self.stream(world, now);
                }
                if self.next_txn < world.txns.len() {
                    let next = Duration::from_micros(rng.random_range(world.pause_us.clone()));
                    self.plan(now + next, Happens::Streamed, rng);
                } else {
                    let wal_end = Lsn(world.txns.last().unwrap().end_lsn.0 + 500);
                    self.dispatcher.handle(now, Input::Items(vec![Item::Progress { wal_end }]));
                }
            }
            Happens::Answered(id) => {
                let (attempt, outcome) = self.in_flight.remove(&id).unwrap();
                if outcome.delivered() {
                    world.receive(&attempt);
                }
                self.unstored += 1;
                self.dispatcher.handle(now, Input::Outcome { delivery: id, outcome });
            }
            Happens::LookedUp => {
                let looked_up = match self.lookup.take().unwrap() {
                    LookUp::Asked(accounts) if world.unrouted.outage(now).is_some() => {
                        let again = now + Duration::from_millis(rng.random_range(1..200));
                        self.lookup = Some(LookUp::Asked(accounts));
                        self.plan(again, Happens::LookedUp, rng);
                        return;
                    }
                    LookUp::Asked(accounts) => self.look_up(accounts, world, rng),
                    answered @ LookUp::Answered(..) => answered,
                };
                let LookUp::Answered(snapshot, answers) = looked_up else { return };
                let (line, costly, put_off) = (LookUpLine::Usual, Vec::new(), Vec::new());
                let answer = LookUpAnswer { line, snapshot, costly, put_off, answers };
                self.dispatcher.handle(now, Input::Routes(Box::new(answer)));
            }
            Happens::Refilled => {
                let pages = match self.refill.take().unwrap() {
                    Page::Asked(pages) => world.refill(&pages),
                    Page::Read(pages) => pages,
                };
                self.dispatcher.handle(now, Input::DeferredPages(pages));
            }
            Happens::Routable => {
                let pages = self.unrouted.take().unwrap();
                self.dispatcher.handle(now, Input::UnroutedPages(pages));
            }
            Happens::Stored => {
                let persisted = world.store(self.batch.take().unwrap());
                self.dispatcher.handle(now, Input::Stored(Box::new(persisted)));
                self.storing = 0;
            }
            Happens::Measured => {
                self.dispatcher.handle(now, Input::StateSize(Box::new(world.size())));
                self.plan(now + Duration::from_millis(500), Happens::Measured, rng);
            }
            Happens::Wake => {}
        }
    }

    fn stream(&mut self, world: &mut World, now: Tick) {
        let txn = world.txns[self.next_txn].clone();
        let mut items = vec![Item::Begin { commit_lsn: txn.commit_lsn }];
        for change in &txn.changes {
            let item = match change {
                Change::Row(event) => {
                    let recognised = self.dispatcher.was_shelved(event);
                    world.unrouted.recognised += u64::from(recognised);
                    Item::Event(Arc::clone(event))
                }
                Change::Endpoint { id, row } => {
                    let joined = world.joins(self.next_txn, id);
                    let at = txn.commit_lsn;
                    self.joined.extend(joined.iter().map(|endpoint| (endpoint.clone(), at)));
                    let accounts = row.iter().map(|(a, _)| AccountId::new(a.to_string()));
                    let endpoints = smallvec![EndpointId::new(id.as_str())];
                    let scope = Scope::Endpoint { endpoints, accounts: accounts.collect() };
                    Item::Invalidate(Invalidation { xid: txn.xid, scope, joined })
                }
            };
            items.push(item);
        }
        items.push(Item::Commit { end_lsn: txn.end_lsn });
        self.dispatcher.handle(now, Input::Items(items));
        self.next_txn += 1;
    }

    /// What it had not stored is lost.
    pub(super) fn crash(&mut self, world: &mut World, rng: &mut SmallRng) {
        world.unrouted.crashes += u64::from(!world.unrouted.accounts.is_empty());
        world.excused += self.in_flight.len() as u64 + self.storing + self.unstored;
        // The state transaction under way may have been committed.
        if let Some(batch) = self.batch.take_if(|_| rng.random_bool(0.5)) {
            world.store(batch);
        }
    }

    pub(super) fn is_done(&self, world: &World) -> bool {
        self.next_txn == world.txns.len()
            && self.dispatcher.frontier() > world.txns.last().unwrap().end_lsn
            && world.frontier == self.dispatcher.frontier()
            && world.backlog.is_empty()
            && world.unrouted.accounts.is_empty()
            && world.job.is_none()
            && world.resume_at.is_none()
            && world.growing().next().is_none()
            && self.refill.is_none()
    }
}
