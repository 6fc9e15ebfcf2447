//! Who holds most of the memory, and which of its deliveries came last: what gives way where memory is short.
//!
//! Nothing is kept in order for that while there is room. An index of the accounts is made when it is needed, by
//! one look at each, and serves until some thousands of deliveries have given way; so a delivery that gives way
//! costs O(log n) and some looks, and one that does not costs an addition.
//!
//! # Invariants
//!
//! - The account taken is one that holds most; of several that hold as much, the one with the least number: the
//!   same in every run.
//! - Of one account's deliveries that may leave, the one taken came last, in whichever queue it stands. So what
//!   holds a key leaves after all that stands behind it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{AccountNo, QueueNo, Queues, account_at};
use walhook_core::attempt::DeliveryId;
use walhook_core::event::AccountId;

/// The accounts that have deliveries in memory, by what they hold.
#[derive(Debug)]
pub(in super::super) struct Holders(BinaryHeap<(usize, Reverse<AccountNo>)>);

impl Holders {
    /// The account that holds most, and how much.
    pub(in super::super) fn take_most(&mut self) -> Option<(AccountNo, usize)> {
        self.0.pop().map(|(bytes, Reverse(account))| (account, bytes))
    }

    /// What the account that holds most holds; 0 where none is left.
    pub(in super::super) fn most(&self) -> usize {
        self.0.peek().map_or(0, |(bytes, _)| *bytes)
    }

    /// The account was taken, and holds so much by now.
    pub(in super::super) fn put_back(&mut self, account: AccountNo, bytes: usize) {
        self.0.push((bytes, Reverse(account)));
    }
}

/// One account's deliveries that may leave memory, the one that came last first.
#[derive(Debug)]
pub(in super::super) struct Newest(BinaryHeap<(DeliveryId, QueueNo)>);

impl Newest {
    /// The one that came last, with its queue.
    pub(in super::super) fn take(&mut self, queues: &Queues) -> Option<(QueueNo, DeliveryId)> {
        let (id, queue) = self.0.pop()?;
        let before = queues.pending(queue).and_then(|pending| pending.last_to_leave(Some(id)));
        self.0.extend(before.map(|before| (before, queue)));
        Some((queue, id))
    }
}

impl Queues {
    /// The accounts that have deliveries in memory; each holds what `beside` says beside these.
    pub(in super::super) fn holders(&self, beside: impl Fn(&AccountId) -> usize) -> Holders {
        let numbered = (0u32..).map(AccountNo).zip(&self.accounts);
        let there = numbered.filter_map(|(no, account)| Some((no, account.as_ref()?)));
        let holders = there.filter(|(_, account)| account.bytes > 0);
        let by_bytes = |(no, account): (AccountNo, &super::Account)| {
            (account.bytes + beside(&account.id), Reverse(no))
        };
        Holders(holders.map(by_bytes).collect())
    }

    /// What the account's deliveries in memory take.
    pub(in super::super) fn bytes_of(&self, account: &AccountId) -> usize {
        let no = self.by_account.get(account);
        no.map_or(0, |no| account_at(&self.accounts, *no).bytes)
    }

    /// What the account's deliveries in memory take, and its name.
    pub(in super::super) fn holds(&self, account: AccountNo) -> (usize, &AccountId) {
        let account = account_at(&self.accounts, account);
        (account.bytes, &account.id)
    }

    /// The account's deliveries that may leave memory.
    pub(in super::super) fn newest(&self, account: AccountNo) -> Newest {
        let queues = account_at(&self.accounts, account).queues.iter().copied();
        let last = |queue| Some((self.pending(queue)?.last_to_leave(None)?, queue));
        Newest(queues.filter_map(last).collect())
    }
}
