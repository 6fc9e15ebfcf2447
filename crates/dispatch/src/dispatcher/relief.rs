//! Making room: what waits may use the memory that is there, and as that fills, the account that holds most
//! gives way, its newest deliveries first.
//!
//! What an account holds is counted over all its endpoints and keys, with its events that wait to be routed: ten
//! thousand short queues of one account count as what they are. So an account is never pushed out by one that
//! holds more, however much that brings. Rows that are read back obey the same: see [`Dispatcher::may_read_back`].
//!
//! Room is made in small steps: while it is, nobody else has a turn.

use std::collections::BTreeMap;

use super::super::lane::Origin;
use super::Dispatcher;
use super::defer::Exit;
use super::queues::{AccountNo, Newest};
use walhook_core::event::AccountId;
use walhook_core::persist::DeferReason;
use walhook_core::tick::Tick;

/// Queues or accounts of a line that are looked at while memory is short.
const LOOKED_AT_SHORT: usize = 8;

impl Dispatcher {
    /// Makes room when what is queued in memory takes too much.
    pub(super) fn relieve(&mut self, now: Tick) {
        self.trim_idle();
        if !self.memory.is_tight(self.bytes_to_stay()) {
            // Whatever comes from now on is not what could not give way.
            self.memory.forget_relief();
            return;
        }
        self.relieve_of_unrouted(now);
        if !self.memory.is_short(self.bytes_to_stay()) {
            return;
        }
        let waiting = &self.routing.waiting;
        let mut holders = self.queues.holders(|account| waiting.bytes_of(account));
        let mut newest: BTreeMap<AccountNo, Newest> = BTreeMap::new();
        // What an account holds that cannot give way: in flight, say.
        let mut stays = 0;
        while !self.memory.is_relieved(self.bytes_to_stay()) {
            let Some((account, bytes)) = holders.take_most() else { break };
            let of_it = newest.entry(account).or_insert_with(|| self.queues.newest(account));
            let Some((queue, id)) = of_it.take(&self.queues) else {
                stays = stays.max(bytes);
                continue;
            };
            let in_memory = self.queues.in_use(queue);
            if !matches!(in_memory.held_mut(id).origin, Origin::Deferred { .. }) {
                // What comes for its endpoint stands behind it. A row that is read back has a place already.
                let deferred = self.queues.deferred_or_new(queue);
                deferred.backlog_mut().block_all(DeferReason::Overflow);
            }
            self.leave(queue, &[id], Exit::Other(DeferReason::Overflow), now);
            let (bytes, name) = self.queues.holds(account);
            holders.put_back(account, bytes + self.routing.waiting.bytes_of(name));
        }
        self.memory.note_relief(self.bytes_to_stay(), holders.most().max(stays));
    }

    /// What could not give way before can by now: it waited to be routed and stands in queues, say, or was in flight.
    pub(super) fn relieve_anew(&mut self, now: Tick) {
        self.memory.forget_relief();
        self.relieve(now);
    }

    /// Of those in a line that could be looked at, so many are: few where hardly any may come back, for that is
    /// looked at with every input.
    pub(super) fn looks(&self, many: usize) -> usize {
        let is_plenty = self.memory.is_plenty(self.bytes_to_stay());
        if is_plenty { many } else { many.min(LOOKED_AT_SHORT) }
    }

    /// Whether rows of the account may come back into memory: there is plenty, or it holds so little that others
    /// would give way first.
    pub(super) fn may_read_back(&self, account: &AccountId) -> bool {
        self.memory.is_plenty(self.bytes_to_stay())
            || self.queues.bytes_of(account) < self.memory.level() / 2
    }
}

#[cfg(test)]
mod tests;
