//! What waits in turns of accounts: each account's in the order in which it came, and who is served goes to the end.
//!
//! Invariant: an account has a place in the order of turns, and one only, as long as something of it waits.

use std::collections::{BTreeMap, VecDeque};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Turns<K, T> {
    turns: VecDeque<K>,
    waiting: BTreeMap<K, VecDeque<T>>,
    len: usize,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), waiting: BTreeMap::new(), len: 0 }
    }
}

impl<K: Ord + Clone, T> Turns<K, T> {
    /// One more of the account's waits.
    pub(super) fn push(&mut self, account: K, item: T) {
        self.len += 1;
        if let Some(of_account) = self.waiting.get_mut(&account) {
            of_account.push_back(item);
            return;
        }
        self.turns.push_back(account.clone());
        self.waiting.insert(account, VecDeque::from([item]));
    }

    /// The first of the account whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(K, T)> {
        let account = self.turns.pop_front()?;
        let Some(of_account) = self.waiting.get_mut(&account) else {
            panic!("an account has its turn, and nothing of it waits")
        };
        let item = of_account.pop_front()?;
        if of_account.is_empty() {
            self.waiting.remove(&account);
        } else {
            self.turns.push_back(account.clone());
        }
        self.len -= 1;
        Some((account, item))
    }

    /// The first of the account whose turn it is, of those accounts whose first `may` go.
    pub(super) fn first(&mut self, may: impl Fn(&T) -> bool) -> Option<&T> {
        let first_may = |account| {
            let first = self.waiting.get(account).and_then(VecDeque::front);
            first.is_some_and(&may)
        };
        let at = self.turns.iter().position(first_may)?;
        self.turns.rotate_left(at);
        self.waiting.get(self.turns.front()?).and_then(VecDeque::front)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether something of the account waits.
    pub(super) fn has(&self, account: &K) -> bool {
        self.waiting.contains_key(account)
    }
}
