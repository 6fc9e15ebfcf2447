//! What is to become a dead letter, until a batch takes it: accounts take turns.
//!
//! Those whose last attempt has just ended go before all others: nothing tells the next leader of that attempt, so as
//! many may wait as outcomes may (see [`UNPERSISTED_MAX`](super::UNPERSISTED_MAX)). The others were not sent
//! since what the tables say of them: however many wait, they keep nobody from sending.
//!
//! Each keeps its place in memory meanwhile, and counts for that.

use super::super::lane::Insertion;
use super::batch_size::{BatchSize, Taken};
use super::outgoing::{Body, Dying};
use super::turns::Turns;
use walhook_core::event::AccountId;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Letters {
    attempted: Turns<AccountId, Dying>,
    others: Turns<AccountId, Dying>,
    bytes: usize,
}

impl Letters {
    /// One more. `attempted`: an attempt has just ended with it.
    pub(super) fn push(&mut self, dying: Dying, attempted: bool) {
        self.bytes += dying.bytes();
        let line = if attempted { &mut self.attempted } else { &mut self.others };
        line.push(dying.letter.event.account.clone(), dying);
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.attempted.len() + self.others.len()
    }

    /// How many wait whose attempt no table tells of.
    pub(super) fn attempted(&self) -> usize {
        self.attempted.len()
    }

    /// Whether so many wait as a batch may take.
    pub(super) fn is_full(&self, size: &BatchSize) -> bool {
        self.len() >= size.letters() || self.bytes >= size.bytes()
    }

    /// Whether more of the account may come that were not sent: sooner they would only wait here.
    pub(super) fn takes(&self, account: &AccountId, size: &BatchSize) -> bool {
        !self.is_full(size) || !self.others.has(account)
    }

    /// The next one, where the batch, which has taken so much, has room for it. Its row, where it has one, was handed
    /// out before.
    pub(super) fn next(
        &mut self,
        handed_out: Insertion,
        size: &BatchSize,
        taken: &mut Taken,
    ) -> Option<Dying> {
        let may = |dying: &Dying| dying.is_inserted(handed_out);
        for line in [&mut self.attempted, &mut self.others] {
            let Some(first) = line.first(may) else { continue };
            if !size.take_letter(taken, first.letter.event.id, first.bytes()) {
                return None;
            }
            let (_, dying) = line.pop()?;
            self.bytes -= dying.bytes();
            return Some(dying);
        }
        None
    }
}

impl Dying {
    /// What it adds to its state transaction: where it has a row, its event is in the database already.
    fn bytes(&self) -> usize {
        match &self.body {
            Body::Row { .. } => 0,
            Body::Unroutable { .. } | Body::Unrouted { .. } | Body::Delivery { .. } => {
                self.letter.event.size_bytes()
            }
        }
    }

    /// Whether its row, where it has one, was handed out.
    fn is_inserted(&self, handed_out: Insertion) -> bool {
        match &self.body {
            Body::Row { insertion, .. } => *insertion <= Some(handed_out),
            Body::Unrouted { insertion, .. } => *insertion <= handed_out,
            Body::Unroutable { .. } | Body::Delivery { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests;
