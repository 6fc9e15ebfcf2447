//! Which accounts of one line are looked up next.

use std::collections::{BTreeMap, VecDeque};

use walhook_core::event::AccountId;
use walhook_core::tick::Tick;

/// Where an account stands that was asked for and is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the line for the next batch.
    InLine,
    /// It comes into the line no earlier than then; the number tells accounts of one moment apart.
    Later(Tick, u64),
    /// In the batch in flight.
    InFlight,
}

/// The accounts that were asked for and are not answered.
///
/// Invariant: each of them stands in exactly one place, the line, a later time or the batch in flight, so
/// that each is looked up again until it is answered, and nobody twice at once. One batch is in
/// flight at most.
#[derive(Debug)]
pub(super) struct LookupQueue {
    /// Accounts of one batch at most.
    batch_max: usize,
    places: BTreeMap<AccountId, Place>,
    line: VecDeque<AccountId>,
    later: BTreeMap<(Tick, u64), AccountId>,
    in_flight: Option<Vec<AccountId>>,
    next_number: u64,
}

impl LookupQueue {
    /// Nobody was asked for. A batch will have at most so many accounts.
    pub(super) fn new(batch_max: usize) -> Self {
        Self {
            batch_max,
            places: BTreeMap::new(),
            line: VecDeque::new(),
            later: BTreeMap::new(),
            in_flight: None,
            next_number: 0,
        }
    }

    /// Whether the account was asked for and is not answered.
    pub(super) fn has(&self, account: &AccountId) -> bool {
        self.places.contains_key(account)
    }

    /// Asks for the account, unless that was done and it is not answered yet.
    pub(super) fn want(&mut self, account: &AccountId) {
        if !self.has(account) {
            self.places.insert(account.clone(), Place::InLine);
            self.line.push_back(account.clone());
        }
    }

    /// Asks for the account as [`LookupQueue::want`] does; it is looked up no earlier than `at`.
    pub(super) fn want_later(&mut self, account: AccountId, at: Tick) {
        if !self.has(&account) {
            self.next_number += 1;
            self.places.insert(account.clone(), Place::Later(at, self.next_number));
            self.later.insert((at, self.next_number), account);
        }
    }

    /// Whether a batch is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The next batch, where none is in flight and somebody is to be looked up, or else an empty one where
    /// `even_if_empty`. It ends with [`LookupQueue::end_batch`].
    pub(super) fn next_batch(&mut self, now: Tick, even_if_empty: bool) -> Option<Vec<AccountId>> {
        if self.in_flight.is_some() {
            return None;
        }
        while let Some(first) = self.later.first_entry()
            && first.key().0 <= now
        {
            let account = first.remove();
            let account = self.moved(account, Place::InLine);
            self.line.push_back(account);
        }
        if self.line.is_empty() && !even_if_empty {
            return None;
        }
        let count = self.line.len().min(self.batch_max);
        let next: Vec<AccountId> = self.line.drain(..count).collect();
        let batch: Vec<_> =
            next.into_iter().map(|account| self.moved(account, Place::InFlight)).collect();
        self.in_flight = Some(batch.clone());
        Some(batch)
    }

    /// The account is answered. Says no where it does not stand in the batch in flight.
    pub(super) fn answer(&mut self, account: &AccountId) -> bool {
        let is_asked = self.places.get(account) == Some(&Place::InFlight);
        if is_asked {
            self.places.remove(account);
        }
        is_asked
    }

    /// The batch in flight has ended: those of it that are not answered come first in the next.
    pub(super) fn end_batch(&mut self) {
        let Some(batch) = self.in_flight.take() else {
            panic!("the answer to a look-up comes while that look-up is in flight")
        };
        for account in batch.into_iter().rev() {
            if self.places.get(&account) == Some(&Place::InFlight) {
                let account = self.moved(account, Place::InLine);
                self.line.push_front(account);
            }
        }
    }

    /// When [`LookupQueue::next_batch`] may have another although nothing else happens.
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.later.first_key_value().map(|((at, _), _)| *at)
    }

    fn moved(&mut self, account: AccountId, to: Place) -> AccountId {
        let Some(place) = self.places.get_mut(&account) else {
            panic!("an account that is to be looked up has its place")
        };
        *place = to;
        account
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BATCH: usize = 500;

    #[derive(Debug, Clone)]
    enum Action {
        Want(u8),
        WantMany,
        WantLater(u8, u64),
        Poll(bool),
        Answer(u8),
        End,
        Wait(u64),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            8 => (0u8..6).prop_map(Action::Want),
            1 => Just(Action::WantMany),
            2 => (0u8..6, 0u64..30).prop_map(|(n, ms)| Action::WantLater(n, ms)),
            4 => any::<bool>().prop_map(Action::Poll),
            4 => (0u8..6).prop_map(Action::Answer),
            3 => Just(Action::End),
            2 => (0u64..20).prop_map(Action::Wait),
        ]
    }

    fn account(n: impl std::fmt::Display) -> AccountId {
        AccountId::new(n.to_string())
    }

    /// Lists alone, searched through.
    #[derive(Debug, Default)]
    struct Model {
        line: Vec<AccountId>,
        later: Vec<(Tick, AccountId)>,
        in_flight: Option<Vec<AccountId>>,
    }

    impl Model {
        fn all(&self) -> BTreeSet<&AccountId> {
            let later = self.later.iter().map(|(_, account)| account);
            self.line.iter().chain(later).chain(self.in_flight.iter().flatten()).collect()
        }

        fn want(&mut self, accounts: impl Iterator<Item = AccountId>) {
            let all: BTreeSet<AccountId> = self.all().into_iter().cloned().collect();
            self.line.extend(accounts.filter(|account| !all.contains(account)));
        }

        fn take(&mut self, account: &AccountId) -> bool {
            let batch = self.in_flight.as_mut();
            let at = batch.as_ref().and_then(|batch| batch.iter().position(|a| a == account));
            batch.zip(at).map(|(batch, at)| batch.remove(at)).is_some()
        }

        fn next_batch(&mut self, now: Tick, even_if_empty: bool) -> Option<Vec<AccountId>> {
            if self.in_flight.is_some() {
                return None;
            }
            self.later.sort_by_key(|(at, _)| *at);
            let due = self.later.iter().filter(|(at, _)| *at <= now).count();
            self.line.extend(self.later.drain(..due).map(|(_, account)| account));
            if self.line.is_empty() && !even_if_empty {
                return None;
            }
            let rest = self.line.split_off(self.line.len().min(BATCH));
            self.in_flight = Some(std::mem::replace(&mut self.line, rest));
            self.in_flight.clone()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn lookup_queue_forgets_nobody_who_is_not_answered_and_asks_for_nobody_twice(
            actions in proptest::collection::vec(action(), 1..100),
        ) {
            let (mut queue, mut model) = (LookupQueue::new(BATCH), Model::default());
            let mut now = Tick(0);
            for action in actions {
                match action {
                    Action::Want(n) => {
                        queue.want(&account(n));
                        model.want([account(n)].into_iter());
                    }
                    Action::WantMany => {
                        (0..BATCH).for_each(|n| queue.want(&account(n)));
                        model.want((0..BATCH).map(account));
                    }
                    Action::Poll(even_if_empty) => prop_assert_eq!(
                        queue.next_batch(now, even_if_empty),
                        model.next_batch(now, even_if_empty)
                    ),
                    Action::Answer(n) => {
                        prop_assert_eq!(queue.answer(&account(n)), model.take(&account(n)));
                    }
                    Action::WantLater(n, ms) => {
                        let at = now + Duration::from_millis(ms);
                        queue.want_later(account(n), at);
                        if !model.all().contains(&account(n)) {
                            model.later.push((at, account(n)));
                        }
                    }
                    Action::End if model.in_flight.is_some() => {
                        queue.end_batch();
                        let missing = model.in_flight.take().unwrap();
                        model.line.splice(..0, missing);
                    }
                    Action::Wait(ms) => now = now + Duration::from_millis(ms),
                    Action::End => {}
                }
                prop_assert_eq!(queue.is_in_flight(), model.in_flight.is_some());
                prop_assert_eq!(queue.deadline(), model.later.iter().map(|(at, _)| *at).min());
                prop_assert!(queue.places.keys().eq(model.all()));
            }
        }
    }
}
