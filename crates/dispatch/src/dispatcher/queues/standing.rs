//! The accounts with their queues, for whoever looks at all of them.

use super::lanes::Lane;
use super::{QueueNo, Queues, account_at};
use walhook_core::event::AccountId;

/// One account's.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct OfAccount<'a> {
    /// Whose.
    pub(in super::super) id: &'a AccountId,
    /// None while nothing of it is in memory.
    pub(in super::super) lane: Option<&'a Lane>,
    /// All of them, in no order that means anything.
    pub(in super::super) queues: &'a [QueueNo],
}

impl Queues {
    /// The accounts that have queues, in no order that means anything.
    pub(in super::super) fn accounts(&self) -> impl Iterator<Item = OfAccount<'_>> {
        self.accounts.iter().flatten().map(|account| OfAccount {
            id: &account.id,
            lane: account.lane.as_deref(),
            queues: &account.queues,
        })
    }

    /// The queue at this place, where there is one now; none: all places are before it.
    pub(in super::super) fn nth(&self, at: usize) -> Option<Option<QueueNo>> {
        let slot = self.slots.get(at)?;
        let index = u32::try_from(at).unwrap_or(u32::MAX);
        Some(slot.queue.as_ref().map(|_| QueueNo { index, generation: slot.generation }))
    }

    /// The account's queues; none where it has none.
    pub(in super::super) fn queues_of(&self, account: &AccountId) -> &[QueueNo] {
        self.account(account).map_or(&[], |no| &account_at(&self.accounts, no).queues)
    }
}
