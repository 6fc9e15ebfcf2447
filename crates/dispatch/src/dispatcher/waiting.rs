//! The events that wait to be routed, by account: for its routes, behind its earlier events, or for their slices.
//!
//! # Invariants
//!
//! - An account has an entry while an event of it waits, or it stands in the line; its events are in stream order.
//! - It stands in the line once at most, which its `in_line` says. Whoever takes it out puts it back, or says that
//!   it has left, or forgets it.
//! - Its bytes are the sum of its events'.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::super::lane::SharedEvent;
use super::super::tracker::TxnSeq;
use walhook_core::attempt::Asked;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::position::{EventId, Position};
use walhook_core::tick::{Tick, micros};
use walhook_core::waits::{Cause, Waits};

/// Accounts in line that are looked at for one slice.
const LOOKED_AT_ONCE: usize = 64;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) held: Arc<SharedEvent>,
    pub(super) to: To,
    /// The last endpoint that a slice came to.
    pub(super) after: Option<EndpointId>,
    /// What it waited for until it came: microseconds.
    memory_us: u64,
    read_us: u64,
    /// What its account's events had waited for then.
    mark: [u64; PARKED.len()],
}

/// What an event waits for before it is routed.
const PARKED: [Cause; 3] = [Cause::Lookup, Cause::Memory, Cause::Turn];

/// How long the events of an account have waited for what: microseconds.
#[derive(Debug)]
struct Held {
    cause: Cause,
    since: Tick,
    before_us: [u64; PARKED.len()],
}

impl Held {
    fn read(&self, now: Tick) -> [u64; PARKED.len()] {
        let mut us = self.before_us;
        let holds = us.iter_mut().zip(PARKED).filter(|(_, cause)| *cause == self.cause);
        holds.for_each(|(us, _)| *us = us.saturating_add(micros(now.since(self.since))));
        us
    }

    fn set(&mut self, cause: Cause, now: Tick) {
        if self.cause != cause {
            *self = Self { cause, since: now, before_us: self.read(now) };
        }
    }
}

/// Which of the account's endpoints an event is for.
#[derive(Debug)]
pub(super) enum To {
    /// All that want it; the transaction counts it as one delivery until it is routed.
    All(TxnSeq),
    /// One, on an operator's wish.
    One { endpoint: EndpointId, asked: Asked },
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    accounts: BTreeMap<AccountId, Events>,
    /// Events of the stream that wait, of all accounts.
    of_stream: usize,
    /// Accounts whose routes are known.
    line: VecDeque<AccountId>,
    /// Nobody has seen yet that none of them can go on.
    is_ready: bool,
}

/// One account's.
#[derive(Debug)]
struct Events {
    events: VecDeque<Parked>,
    bytes: usize,
    in_line: bool,
    /// When the first of them moved last.
    moved: Tick,
    held: Held,
    /// Those of transactions up to this one hold the frontier back for too long.
    overdue: Option<TxnSeq>,
}

impl Waiting {
    /// Whether something of the account waits, or has just waited.
    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Events of the stream that wait, operators' wishes apart.
    pub(super) fn of_stream(&self) -> usize {
        self.of_stream
    }

    /// What the account's events take.
    pub(super) fn bytes_of(&self, account: &AccountId) -> usize {
        self.accounts.get(account).map_or(0, |events| events.bytes)
    }

    /// The first of the account's events.
    pub(super) fn first(&self, account: &AccountId) -> Option<&Parked> {
        self.accounts.get(account)?.events.front()
    }

    /// Whether the first of the account's events holds the frontier back for too long.
    pub(super) fn is_first_overdue(&self, account: &AccountId) -> bool {
        let Some(events) = self.accounts.get(account) else { return false };
        let first = events.events.front().and_then(Parked::txn);
        events.overdue.is_some_and(|last| first.is_some_and(|first| first <= last))
    }

    /// Where the first of the account's events stands that waits, operators' wishes apart.
    pub(super) fn first_position(&self, account: &AccountId) -> Option<Position> {
        let mut events = self.accounts.get(account)?.events.iter();
        let first = events.find(|parked| parked.txn().is_some())?;
        Some(first.held.event.position)
    }

    /// The accounts of which events wait, each with how many, in their order.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&AccountId, usize)> {
        self.accounts.iter().map(|(account, events)| (account, events.events.len()))
    }

    /// How many of the account's events wait.
    pub(super) fn count_of(&self, account: &AccountId) -> usize {
        self.accounts.get(account).map_or(0, |events| events.events.len())
    }

    /// Where this event waits, by account.
    pub(super) fn of_event(&self, id: EventId) -> impl Iterator<Item = (&AccountId, &Parked)> {
        self.accounts.iter().flat_map(move |(account, events)| {
            let is_it = move |parked: &&Parked| parked.held.event.id == id;
            events.events.iter().filter(is_it).map(move |parked| (account, parked))
        })
    }

    /// The first of the stream's events that wait, in the order of commits.
    pub(super) fn oldest(&self) -> Option<(TxnSeq, &Parked)> {
        let first = |events: &'_ Events| events.events.iter().position(|it| it.txn().is_some());
        let firsts = self.accounts.values().filter_map(|events| {
            let parked = events.events.get(first(events)?)?;
            Some((parked.txn()?, parked))
        });
        firsts.min_by_key(|(txn, _)| *txn)
    }

    /// Accounts of whose events none has moved since `moved`, with the bytes that they take.
    pub(super) fn not_moved_since(&self, moved: Tick) -> impl Iterator<Item = (usize, &AccountId)> {
        let stands = self.accounts.iter().filter(move |(_, events)| events.moved <= moved);
        stands.map(|(account, events)| (events.bytes, account))
    }

    /// Accounts of whose events the first of the stream's is overdue, in their order.
    pub(super) fn overdue(&self) -> impl Iterator<Item = &AccountId> {
        let is_overdue = |events: &Events| {
            let first = events.events.iter().find_map(Parked::txn);
            events.overdue.is_some_and(|last| first.is_some_and(|first| first <= last))
        };
        self.accounts
            .iter()
            .filter(move |(_, events)| is_overdue(events))
            .map(|(account, _)| account)
    }

    /// An event waits, behind those of its account.
    pub(super) fn push(&mut self, account: AccountId, mut parked: Parked, now: Tick) {
        let new = || Events {
            events: VecDeque::new(),
            bytes: 0,
            in_line: false,
            moved: now,
            held: Held { cause: Cause::Lookup, since: now, before_us: Default::default() },
            overdue: None,
        };
        let events = self.accounts.entry(account).or_insert_with(new);
        events.bytes += parked.held.event.size_bytes();
        parked.mark = events.held.read(now);
        self.of_stream += usize::from(parked.txn().is_some());
        events.events.push_back(parked);
    }

    /// What the first of the account's events has waited for until now.
    ///
    /// # Panics
    /// None waits.
    pub(super) fn waits_of_first(&mut self, account: &AccountId, now: Tick) -> Waits {
        let events = self.of(account);
        let held = events.held.read(now);
        let Some(first) = events.events.front() else { panic!("nothing waits to be routed") };
        let mut waits = Waits::default();
        waits.add_us(Cause::Read, first.read_us);
        waits.add_us(Cause::Memory, first.memory_us);
        for ((us, before), cause) in held.into_iter().zip(first.mark).zip(PARKED) {
            waits.add_us(cause, us.saturating_sub(before));
        }
        waits
    }

    /// What the account's events wait for.
    pub(super) fn cause_of(&self, account: &AccountId) -> Cause {
        self.accounts.get(account).map_or(Cause::Lookup, |events| events.held.cause)
    }

    /// The first of the account's events moves.
    ///
    /// # Panics
    /// None waits.
    pub(super) fn first_mut(&mut self, account: &AccountId, now: Tick) -> &mut Parked {
        let events = self.of(account);
        events.moved = now;
        let Some(first) = events.events.front_mut() else { panic!("nothing waits to be routed") };
        first
    }

    /// The first of the account's events has been routed.
    ///
    /// # Panics
    /// None waits.
    pub(super) fn take_first(&mut self, account: &AccountId) -> Parked {
        let events = self.of(account);
        let Some(first) = events.events.pop_front() else { panic!("nothing waits to be routed") };
        events.bytes -= first.held.event.size_bytes();
        self.of_stream -= usize::from(first.txn().is_some());
        first
    }

    /// The account's events of the stream wait no longer: they become rows. Operators' wishes stay.
    pub(super) fn take_stream(
        &mut self,
        account: &AccountId,
        now: Tick,
    ) -> Vec<(Arc<SharedEvent>, TxnSeq)> {
        let Some(events) = self.accounts.get_mut(account) else { return Vec::new() };
        let mut taken = Vec::new();
        for parked in std::mem::take(&mut events.events) {
            if let To::All(txn) = parked.to {
                events.bytes -= parked.held.event.size_bytes();
                taken.push((parked.held, txn));
            } else {
                events.events.push_back(parked);
            }
        }
        self.of_stream -= taken.len();
        (events.moved, events.overdue) = (now, None);
        if events.events.is_empty() && !events.in_line {
            self.accounts.remove(account);
        }
        taken
    }

    /// The account's events, of which some wait.
    fn of(&mut self, account: &AccountId) -> &mut Events {
        match self.accounts.get_mut(account) {
            Some(events) => events,
            None => panic!("events of an account are to be routed, and none waits"),
        }
    }

    /// The account's routes are known, and it stands at the line's end, where it does not stand in it.
    pub(super) fn join_line(&mut self, account: &AccountId, now: Tick) {
        if self.begin_turn(account, now) {
            self.line.push_back(account.clone());
            self.is_ready = true;
        }
    }

    /// The account is to have a turn now, as if it had just left the line. False: it stands in it, or nothing of it
    /// waits.
    pub(super) fn begin_turn(&mut self, account: &AccountId, now: Tick) -> bool {
        let Some(events) = self.accounts.get_mut(account) else { return false };
        let was_in_line = std::mem::replace(&mut events.in_line, true);
        if !was_in_line {
            events.held.set(Cause::Turn, now);
        }
        !was_in_line
    }

    /// Whether the account stands in the line.
    pub(super) fn is_in_line(&self, account: &AccountId) -> bool {
        self.accounts.get(account).is_some_and(|events| events.in_line)
    }

    /// The line is looked at: at so many accounts, the first ones.
    pub(super) fn begin_looks(&mut self) -> usize {
        self.is_ready = false;
        self.line.len().min(LOOKED_AT_ONCE)
    }

    /// The first of the line.
    pub(super) fn next_in_line(&mut self) -> Option<AccountId> {
        self.line.pop_front()
    }

    /// An account whose turn it was has more that waits, for this cause.
    pub(super) fn put_back(&mut self, account: AccountId, why: Cause, now: Tick) {
        self.of(&account).held.set(why, now);
        self.line.push_back(account);
    }

    /// An account whose turn it was stands in the line no longer.
    pub(super) fn leave_line(&mut self, account: &AccountId, now: Tick) {
        let events = self.of(account);
        events.in_line = false;
        events.held.set(Cause::Lookup, now);
    }

    /// Nothing of an account waits whose turn it was.
    pub(super) fn forget(&mut self, account: &AccountId) {
        let events = self.accounts.remove(account);
        assert!(events.is_none_or(|events| events.events.is_empty()), "events are forgotten");
    }

    /// One of the line has moved: perhaps another one can.
    pub(super) fn note_moved(&mut self) {
        self.is_ready |= !self.line.is_empty();
    }

    /// Whether something may be possible at this moment.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Events of transactions up to `last` are overdue, where none of the account's has moved since then.
    pub(super) fn note_overdue(&mut self, last: TxnSeq, since: Tick) {
        for events in self.accounts.values_mut().filter(|events| events.moved <= since) {
            events.overdue = Some(last);
            self.is_ready |= events.in_line;
        }
    }
}

impl Parked {
    /// The endpoint, where it is for one.
    pub(super) fn endpoint(&self) -> Option<&EndpointId> {
        match &self.to {
            To::All(_) => None,
            To::One { endpoint, .. } => Some(endpoint),
        }
    }

    /// The operator's wish on which it is sent; none: it is the stream's.
    pub(super) fn asked(&self) -> Option<Asked> {
        match self.to {
            To::All(_) => None,
            To::One { asked, .. } => Some(asked),
        }
    }

    /// An event that comes now, and waited for this before.
    pub(super) fn new(held: Arc<SharedEvent>, to: To, waits: &Waits) -> Self {
        let (memory_us, read_us) = (waits.us(Cause::Memory), waits.us(Cause::Read));
        Self { held, to, after: None, memory_us, read_us, mark: Default::default() }
    }

    /// The transaction that waits for it; none: an operator's wish.
    fn txn(&self) -> Option<TxnSeq> {
        match self.to {
            To::All(txn) => Some(txn),
            To::One { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
