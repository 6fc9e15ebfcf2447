//! What waits in turns of accounts: each account's in the order in which it came, and who is served goes to the end.
//! An account may be put aside, and has no turn until it goes on.
//!
//! Invariant: an account has a place in the order of turns, and one only, as long as something of it waits and it is
//! not aside.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Turns<K, T> {
    turns: VecDeque<K>,
    waiting: BTreeMap<K, VecDeque<T>>,
    aside: BTreeSet<K>,
    /// Of the accounts that are not aside.
    len: usize,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Self {
        let (turns, waiting, aside) = (VecDeque::new(), BTreeMap::new(), BTreeSet::new());
        Self { turns, waiting, aside, len: 0 }
    }
}

impl<K: Ord + Clone, T> Turns<K, T> {
    /// One more of the account's waits.
    pub(super) fn push(&mut self, account: K, item: T) {
        let of_account = self.waiting.entry(account.clone()).or_default();
        of_account.push_back(item);
        if self.aside.contains(&account) {
            return;
        }
        if of_account.len() == 1 {
            self.turns.push_back(account);
        }
        self.len += 1;
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

    /// The account, of which one has been taken out just now, has no turn until it goes on.
    pub(super) fn put_aside(&mut self, account: K) {
        if let Some(of_account) = self.waiting.get(&account) {
            self.len -= of_account.len();
            assert!(self.turns.pop_back().as_ref() == Some(&account), "another had its turn last");
        }
        self.aside.insert(account);
    }

    /// The account has its turns again, where it was aside.
    pub(super) fn go_on(&mut self, account: &K) {
        if self.aside.remove(account)
            && let Some(of_account) = self.waiting.get(account)
        {
            self.len += of_account.len();
            self.turns.push_back(account.clone());
        }
    }

    /// How many wait, but for those aside.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether something of the account waits.
    pub(super) fn has(&self, account: &K) -> bool {
        self.waiting.contains_key(account)
    }
}

impl<K: Ord + Clone, T: PartialEq> Turns<K, T> {
    /// One of the account's goes that stands anywhere.
    pub(super) fn remove(&mut self, account: &K, item: &T) {
        let Some(of_account) = self.waiting.get_mut(account) else { return };
        let before = of_account.len();
        of_account.retain(|other| other != item);
        if !self.aside.contains(account) {
            self.len -= before - of_account.len();
        }
        if of_account.is_empty() {
            self.waiting.remove(account);
            self.turns.retain(|other| other != account);
        }
    }
}
