//! What connections to endpoints hold in memory, counted against `memory.limit`.
//!
//! Each takes a fixed sum while it is open, which is never refused: how many there are follows from the
//! slots. The part of an answer that cannot be used before its end (an HTTP/2 header block) is taken
//! from what all of them share, and no account gets more than its part of that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use walhook_core::event::AccountId;

/// An open connection: the buffers of hyper and of TLS.
const CONNECTION_BYTES: usize = 16 << 10;

/// A header block is held twice: as it came, and as what it says.
const BLOCK_COPIES: usize = 2;

/// Of `memory.limit`, what unfinished answers may hold.
const SHARE_OF_LIMIT: usize = 8;

/// And of that, what those of one account may.
const SHARE_OF_ACCOUNT: usize = 4;

/// Of `memory.limit`, what idle connections may hold.
const SHARE_OF_IDLE: usize = 8;

/// Idle connections that there may be in any case.
const IDLE_MIN: usize = 64;

/// How many connections may be idle, of a `memory.limit` of so many bytes.
pub(super) fn idle_connections(memory_limit: usize) -> usize {
    (memory_limit / SHARE_OF_IDLE / CONNECTION_BYTES).max(IDLE_MIN)
}

/// What all connections hold.
#[derive(Debug)]
pub(super) struct AnswerMemory {
    /// For unfinished answers.
    limit: usize,
    connections: AtomicUsize,
    unfinished: AtomicUsize,
    accounts: Mutex<HashMap<AccountId, usize>>,
}

impl AnswerMemory {
    /// Of a `memory.limit` of so many bytes.
    pub(super) fn new(memory_limit: usize) -> Self {
        Self {
            limit: memory_limit / SHARE_OF_LIMIT,
            connections: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            accounts: Mutex::default(),
        }
    }

    /// Bytes that are held now.
    pub(super) fn bytes(&self) -> usize {
        let connections = self.connections.load(Relaxed).saturating_mul(CONNECTION_BYTES);
        connections.saturating_add(self.unfinished.load(Relaxed))
    }

    /// Changes what the account's unfinished answers hold from `old` to `new` bytes. False: it may not.
    fn change(&self, account: &AccountId, old: usize, new: usize) -> bool {
        // A panic elsewhere leaves the numbers as they were.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_account = accounts.get(account).copied().unwrap_or(0).saturating_sub(old);
        let of_all = self.unfinished.load(Relaxed).saturating_sub(old);
        let (account_after, all_after) = (of_account + new, of_all + new);
        let fits = account_after <= self.limit / SHARE_OF_ACCOUNT && all_after <= self.limit;
        if new > old && !fits {
            return false;
        }
        self.unfinished.store(all_after, Relaxed);
        if account_after == 0 {
            accounts.remove(account);
        } else {
            accounts.insert(account.clone(), account_after);
        }
        true
    }
}

/// What one connection holds. Dropped, it gives all back.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Arc<AnswerMemory>,
    account: AccountId,
    unfinished: AtomicUsize,
}

impl Charge {
    /// Of a connection that was opened for this account.
    pub(super) fn new(memory: &Arc<AnswerMemory>, account: AccountId) -> Self {
        memory.connections.fetch_add(1, Relaxed);
        Self { memory: Arc::clone(memory), account, unfinished: AtomicUsize::new(0) }
    }

    /// Its unfinished answers now have so many bytes. False: they may not, and nothing changes.
    pub(super) fn hold(&self, bytes: usize) -> bool {
        let (old, new) = (self.unfinished.load(Relaxed), bytes.saturating_mul(BLOCK_COPIES));
        if old == new {
            return true;
        }
        let may = self.memory.change(&self.account, old, new);
        if may {
            self.unfinished.store(new, Relaxed);
        }
        may
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.hold(0);
        self.memory.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_memory_gives_no_account_more_than_its_share_and_is_given_back() {
        let memory = Arc::new(AnswerMemory::new(32 << 10));
        let charge = |account: &str| Charge::new(&memory, AccountId::new(account));
        let (first, second) = (charge("a"), charge("a"));
        assert!(first.hold(400) && !second.hold(200) && second.hold(100) && first.hold(410));
        let others: Vec<Charge> = (0..8).map(|n| charge(&format!("other{n}"))).collect();
        let held = others.iter().filter(|charge| charge.hold(500)).count();
        assert_eq!(held, 3, "all together are bounded too");
        assert_eq!(memory.bytes(), 10 * CONNECTION_BYTES + 2 * (410 + 100 + 3 * 500));
        drop((first, second, others));
        assert_eq!(memory.bytes(), 0);
        assert!(memory.accounts.lock().unwrap().is_empty());
    }
}
