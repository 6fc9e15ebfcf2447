//! The queues: what of one account goes to one endpoint, wherever it is.
//!
//! ```text
//! account ─► lane ─► rings of the queues that may send
//!    └─────► queue ─► pending   deliveries in memory, limits, hold estimate, health
//!              └────► deferred  rows of the table: backlog, breaker, suspension
//! ```
//!
//! An account's and an endpoint's name stand here once; everything else holds a [`QueueNo`]. A queue is there
//! as long as anything of it is: pending, deferred, or a subscription that starts.
//!
//! # Invariants
//!
//! - One place for each account, and one queue for each pair of account and endpoint. So whoever has something of a
//!   queue (a page that was asked for, a row) finds it by its name ([`Queues::named`]).
//! - A handle that is kept while something of its queue is there is good: [`Queues::at`] asserts that. One that
//!   is kept beyond (a timer, a place in a line) may be stale, and then finds nothing, never another queue: its
//!   generation differs.
//! - Queues are forgotten between inputs alone ([`Queues::sweep`]), so a handle is good until the input that it
//!   was found in is through.
//! - An account's bytes are the sum of what its deliveries in memory count for, and of their events, each once.
//! - The deliveries without a row are those whose origin is the stream.
//! - An account has a lane as long as one of its queues has been in memory, and the lane counts these.

mod holders;
mod lanes;
mod parts;
mod standing;
#[cfg(test)]
mod tests;

use smallvec::SmallVec;

use super::super::clock::{Clock, Reading};
use super::super::lane::{Moment, QUEUE_BYTES, Queue};
use super::super::map::{NameMap, Seeded};
use super::super::schedule::{LaneId, Pool};
use super::classes::Shared;
use super::deferred_queue::DeferredQueue;
pub(super) use holders::Newest;
pub(super) use lanes::Lane;
pub(super) use standing::OfAccount;
use walhook_core::attempt::DeliveryId;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::heap::{block, map_entry};
use walhook_core::persist::QueueId;
use walhook_core::tick::Tick;
use walhook_core::waits::Cause;

/// A queue's handle: its place, and how many queues have had it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QueueNo {
    index: u32,
    generation: u32,
}

impl QueueNo {
    /// As one number, which no other queue has.
    pub(super) fn as_number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }
}

/// An account's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountNo(u32);

/// Queues of one account that are looked through for an endpoint: more are found by its name.
const LOOKED_THROUGH: usize = 8;

/// What a queue's place takes, and its endpoint's name: of lists a third may be free.
const SLOT_BYTES: usize = (size_of::<Slot>() + 2 * size_of::<QueueNo>()) * 4 / 3
    + map_entry(size_of::<(EndpointId, SmallVec<[QueueNo; 1]>)>());

/// What an account takes: its place, its name, its lane, and the same for the scheduler.
const ACCOUNT_BYTES: usize = (size_of::<Option<Account>>() + 100) * 4 / 3
    + block(size_of::<Lane>())
    + map_entry(size_of::<(AccountId, AccountNo)>());

/// What of one account goes to one endpoint.
#[derive(Debug)]
pub(super) struct EndpointQueue {
    id: QueueId,
    account: AccountNo,
    /// Its place among the account's queues.
    place: u32,
    pending: Option<Box<Queue>>,
    deferred: Option<Box<DeferredQueue>>,
    /// Somebody else knows something of it: it stays.
    kept: bool,
    /// It is to be empty: nothing of it is sent, nor read back.
    cleared: bool,
    /// It stands among the idle ones, and was used since these were looked at.
    among_idle: bool,
    used: bool,
}

impl EndpointQueue {
    /// Its name.
    pub(super) fn id(&self) -> &QueueId {
        &self.id
    }

    /// Its account's place.
    pub(super) fn account(&self) -> AccountNo {
        self.account
    }

    /// The pool that its next request belongs to: while its breaker is open, whatever is sent is a probe.
    pub(super) fn pool(&self, now: Tick) -> Pool {
        match (&self.deferred, &self.pending) {
            (Some(deferred), _) if deferred.is_open() => Pool::Probe,
            (_, Some(pending)) => pending.health().pool(now),
            (_, None) => Pool::Fast,
        }
    }

    /// Its deliveries in memory; none where it was forgotten, or never had any.
    pub(super) fn pending(&self) -> Option<&Queue> {
        self.pending.as_deref()
    }

    /// Its rows in the table; none where it has none, nor anything to be remembered for its next ones.
    pub(super) fn deferred(&self) -> Option<&DeferredQueue> {
        self.deferred.as_deref()
    }

    /// Both, to be changed.
    pub(super) fn parts_mut(&mut self) -> (Option<&mut Queue>, Option<&mut DeferredQueue>) {
        (self.pending.as_deref_mut(), self.deferred.as_deref_mut())
    }

    fn is_empty(&self) -> bool {
        self.pending.is_none() && self.deferred.is_none() && !self.kept
    }
}

#[derive(Debug)]
struct Account {
    id: AccountId,
    queues: SmallVec<[QueueNo; 2]>,
    /// Boxed, for the list of accounts moves as it grows.
    lane: Option<Box<Lane>>,
    /// What its deliveries in memory take, each event once.
    bytes: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    queue: Option<EndpointQueue>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queues {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    by_endpoint: NameMap<EndpointId, SmallVec<[QueueNo; 1]>>,
    accounts: Vec<Option<Account>>,
    vacant_accounts: Vec<AccountNo>,
    by_account: NameMap<AccountId, AccountNo>,
    by_lane: Vec<AccountNo>,
    in_memory: usize,
    deferred: usize,
    /// Deliveries in memory that have no row, and would need one to leave it.
    rowless: usize,
    /// Queues in memory in which nothing was pending when they came here; in some there is again.
    idle: Vec<QueueNo>,
    /// The place of the one that is looked at next.
    hand: usize,
    /// How often one came there.
    rested: usize,
    /// Those that may have become empty.
    emptied: Vec<QueueNo>,
    next_delivery: u64,
    /// The last moment that was told.
    now: Tick,
    /// Counts for why nothing at all is sent, while nothing is.
    gate: Clock,
    /// Of each pool the lane whose turn it is.
    heads: [Option<LaneId>; Pool::ALL.len()],
    /// What all accounts share.
    shared: Shared,
}

impl Queues {
    /// None. Names are hashed with `seed`.
    pub(super) fn new(seed: u64) -> Self {
        let names = Seeded::new(seed);
        Self {
            slots: Vec::new(),
            vacant: Vec::new(),
            by_endpoint: NameMap::with_hasher(names),
            accounts: Vec::new(),
            vacant_accounts: Vec::new(),
            by_account: NameMap::with_hasher(names),
            by_lane: Vec::new(),
            in_memory: 0,
            deferred: 0,
            rowless: 0,
            idle: Vec::new(),
            hand: 0,
            rested: 0,
            emptied: Vec::new(),
            next_delivery: 0,
            now: Tick(0),
            gate: Clock::default(),
            heads: [None; Pool::ALL.len()],
            shared: Shared { slots: 0, pending: 0 },
        }
    }

    /// The queue with this name, where there is one.
    pub(super) fn find(&self, queue: &QueueId) -> Option<QueueNo> {
        self.find_of(&queue.account, &queue.endpoint)
    }

    /// The queue with this name, of which there is something.
    ///
    /// # Panics
    /// There is none.
    pub(super) fn named(&self, queue: &QueueId) -> QueueNo {
        match self.find(queue) {
            Some(no) => no,
            None => panic!("a queue was forgotten although something of it is there"),
        }
    }

    /// The account's queue to this endpoint, where there is one.
    pub(super) fn find_of(&self, account: &AccountId, endpoint: &EndpointId) -> Option<QueueNo> {
        self.find_in(self.account(account)?, endpoint)
    }

    fn find_in(&self, account: AccountNo, endpoint: &EndpointId) -> Option<QueueNo> {
        let queues = &account_at(&self.accounts, account).queues;
        if queues.len() <= LOOKED_THROUGH {
            return queues.iter().copied().find(|no| self.at(*no).id.endpoint == *endpoint);
        }
        let numbers = self.by_endpoint.get(endpoint)?;
        numbers.iter().copied().find(|no| self.at(*no).account == account)
    }

    /// The account's number, where there is a queue of it.
    pub(super) fn account(&self, account: &AccountId) -> Option<AccountNo> {
        self.by_account.get(account).copied()
    }

    /// The account's queue to this endpoint, made where there is none.
    pub(super) fn intern(&mut self, account: &AccountId, endpoint: &EndpointId) -> QueueNo {
        let (queue, _) = self.intern_in(None, account, endpoint);
        queue
    }

    /// As [`Queues::intern`], for an account whose number may be known, from this input. That it had none says nothing:
    /// it may have one by now. Returns which it has.
    pub(super) fn intern_in(
        &mut self,
        known: Option<AccountNo>,
        account: &AccountId,
        endpoint: &EndpointId,
    ) -> (QueueNo, AccountNo) {
        let known = known.or_else(|| self.account(account));
        if let Some(account) = known
            && let Some(no) = self.find_in(account, endpoint)
        {
            return (no, account);
        }
        let account_no = known.unwrap_or_else(|| self.add_account(account));
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, queue: None });
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let no = QueueNo { index, generation: slot_mut(&mut self.slots, index).generation };
        let of_account = account_mut(&mut self.accounts, account_no);
        let id = QueueId { account: of_account.id.clone(), endpoint: endpoint.clone() };
        let at = u32::try_from(of_account.queues.len()).unwrap_or(u32::MAX);
        of_account.queues.push(no);
        self.by_endpoint.entry(endpoint.clone()).or_default().push(no);
        slot_mut(&mut self.slots, index).queue = Some(EndpointQueue {
            id,
            account: account_no,
            place: at,
            pending: None,
            deferred: None,
            kept: false,
            cleared: false,
            among_idle: false,
            used: false,
        });
        self.emptied.push(no);
        (no, account_no)
    }

    fn add_account(&mut self, account: &AccountId) -> AccountNo {
        let no = self.vacant_accounts.pop().unwrap_or_else(|| {
            self.accounts.push(None);
            AccountNo(u32::try_from(self.accounts.len() - 1).unwrap_or(u32::MAX))
        });
        let entry = Account { id: account.clone(), queues: SmallVec::new(), lane: None, bytes: 0 };
        if let Some(vacant) = self.accounts.get_mut(place(no.0)) {
            *vacant = Some(entry);
        }
        let before = self.by_account.insert(account.clone(), no);
        assert!(before.is_none(), "an account has two places");
        no
    }

    /// Forgets the queues of which nothing is there any more. Call it between inputs.
    pub(super) fn sweep(&mut self) {
        while let Some(no) = self.emptied.pop() {
            let Some(queue) = self.get(no) else { continue };
            if !queue.is_empty() {
                continue;
            }
            let slot = slot_mut(&mut self.slots, no.index);
            let Some(queue) = slot.queue.take() else { continue };
            slot.generation = slot.generation.wrapping_add(1);
            self.vacant.push(no.index);
            if let Some(numbers) = self.by_endpoint.get_mut(&queue.id.endpoint) {
                numbers.retain(|other| *other != no);
                if numbers.is_empty() {
                    self.by_endpoint.remove(&queue.id.endpoint);
                }
            }
            let account = account_mut(&mut self.accounts, queue.account);
            account.queues.swap_remove(place(queue.place));
            if let Some(moved) = account.queues.get(place(queue.place)).copied() {
                self.at_mut(moved).place = queue.place;
            } else if account.queues.is_empty() {
                assert!(account.lane.is_none(), "a lane without queues");
                _ = self.accounts.get_mut(place(queue.account.0)).and_then(Option::take);
                self.by_account.remove(&queue.id.account);
                self.vacant_accounts.push(queue.account);
            }
        }
    }

    /// The queue with this handle, where it has not been forgotten.
    pub(super) fn get(&self, no: QueueNo) -> Option<&EndpointQueue> {
        let slot = self.slots.get(place(no.index))?;
        slot.queue.as_ref().filter(|_| slot.generation == no.generation)
    }

    /// The queue with this handle.
    ///
    /// # Panics
    /// It was forgotten, although something of it was there.
    pub(super) fn at(&self, no: QueueNo) -> &EndpointQueue {
        match self.get(no) {
            Some(queue) => queue,
            None => gone(no),
        }
    }

    /// As [`Queues::at`].
    pub(super) fn at_mut(&mut self, no: QueueNo) -> &mut EndpointQueue {
        let slot = slot_mut(&mut self.slots, no.index);
        match &mut slot.queue {
            Some(queue) if slot.generation == no.generation => queue,
            Some(_) | None => gone(no),
        }
    }

    /// All queues, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (QueueNo, &EndpointQueue)> {
        let numbered = |(index, slot): (usize, &'_ Slot)| {
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            QueueNo { index, generation: slot.generation }
        };
        let queues = self.slots.iter().enumerate();
        queues.filter_map(move |(at, slot)| Some((numbered((at, slot)), slot.queue.as_ref()?)))
    }

    /// The queues to this endpoint: one, or several while it moves from one account to another.
    pub(super) fn of_endpoint(&self, endpoint: &EndpointId) -> &[QueueNo] {
        self.by_endpoint.get(endpoint).map_or(&[], |numbers| numbers)
    }

    /// It is this moment. Moments never decrease.
    pub(super) fn enter(&mut self, now: Tick) {
        self.now = self.now.max(now);
    }

    /// Nothing at all is sent for this cause from now on; `None`: what may be sent is.
    pub(super) fn set_gate(&mut self, cause: Option<Cause>, now: Tick) {
        if self.gate.holds() != cause {
            self.gate.hold(cause, &Reading::at(now));
        }
    }

    /// What the clock of all lanes shows.
    fn gate_reading(&self, now: Tick) -> Reading {
        self.gate.read(&Reading::at(now))
    }

    /// What all accounts share.
    pub(super) fn shared(&self) -> Shared {
        self.shared
    }

    /// As [`Queues::shared`], to be changed.
    pub(super) fn shared_mut(&mut self) -> &mut Shared {
        &mut self.shared
    }

    /// The lane of the queue's account, the next delivery's handle, and what all accounts share.
    pub(super) fn lane_in_class(&mut self, no: QueueNo) -> (&mut Lane, DeliveryId, Shared) {
        let (coming, shared) = (self.coming_delivery(), self.shared);
        (self.lane_at(no), coming, shared)
    }

    /// This moment, for the queue.
    pub(super) fn moment(&self, no: QueueNo, now: Tick) -> Moment {
        let gate = self.gate_reading(now);
        let lane = account_at(&self.accounts, self.at(no).account).lane.as_deref();
        Moment { now, below: lane.map_or(gate, |lane| lane.reading(&gate)) }
    }

    /// The queue's name.
    pub(super) fn id(&self, no: QueueNo) -> &QueueId {
        &self.at(no).id
    }

    /// What names, lanes, and queues without their deliveries take.
    pub(super) fn bytes(&self) -> usize {
        self.in_memory * QUEUE_BYTES
            + (self.slots.len() - self.vacant.len()) * SLOT_BYTES
            + (self.accounts.len() - self.vacant_accounts.len()) * ACCOUNT_BYTES
    }

    /// Deliveries in memory that have no row, and would need one to leave it.
    pub(super) fn rowless(&self) -> usize {
        self.rowless
    }

    /// Queues that have rows, or something to be remembered for them.
    pub(super) fn with_rows(&self) -> usize {
        self.deferred
    }

    /// A handle for a delivery, above all earlier ones.
    pub(super) fn next_delivery(&mut self) -> DeliveryId {
        self.skip_deliveries(1);
        DeliveryId(self.next_delivery - 1)
    }

    /// What the next delivery's handle will be.
    pub(super) fn coming_delivery(&self) -> DeliveryId {
        DeliveryId(self.next_delivery)
    }

    /// So many handles are never given out.
    pub(super) fn skip_deliveries(&mut self, count: u64) {
        self.next_delivery += count;
    }

    /// Handles below this one are never given out.
    pub(super) fn skip_deliveries_to(&mut self, coming: u64) {
        self.next_delivery = self.next_delivery.max(coming);
    }

    /// The queue stays although nothing is pending or deferred, or does not any more.
    pub(super) fn keep(&mut self, no: QueueNo, kept: bool) {
        self.at_mut(no).kept = kept;
        if !kept {
            self.emptied.push(no);
        }
    }
}

fn place(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn slot_mut(slots: &mut [Slot], index: u32) -> &mut Slot {
    match slots.get_mut(place(index)) {
        Some(slot) => slot,
        None => panic!("queue {index} was never there"),
    }
}

fn gone(no: QueueNo) -> ! {
    panic!("{no:?} was forgotten although something of it is there")
}

fn account_at(accounts: &[Option<Account>], no: AccountNo) -> &Account {
    match accounts.get(place(no.0)).and_then(Option::as_ref) {
        Some(account) => account,
        None => panic!("{no:?} was forgotten although it has queues"),
    }
}

fn account_mut(accounts: &mut [Option<Account>], no: AccountNo) -> &mut Account {
    match accounts.get_mut(place(no.0)).and_then(Option::as_mut) {
        Some(account) => account,
        None => panic!("{no:?} was forgotten although it has queues"),
    }
}
