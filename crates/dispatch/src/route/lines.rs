//! The two lines in which accounts stand to be looked up: costly ones, whose endpoints take long to read, and all
//! others.

use std::collections::{BTreeSet, VecDeque};

use super::queue::LookupQueue;
use walhook_core::event::AccountId;
use walhook_core::tick::Tick;

/// Accounts looked up by one statement. Enough to make the round trip cheap, few enough to keep it
/// short.
const BATCH: usize = 500;

/// Costly accounts looked up by one statement: each takes long by itself.
const COSTLY_BATCH: usize = 1;

/// Accounts that are remembered as costly. One that is forgotten stands in the other line once more.
const COSTLY_AT_MOST: usize = 4_096;

/// A line of accounts that are looked up. Each has a batch of its own in flight, so that nobody but another costly
/// account waits for the rows of a costly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "record", serde(rename_all = "snake_case"))]
pub enum LookUpLine {
    /// Of all that nothing is known of, or not that they are costly.
    Usual,
    /// Of those that were [costly](walhook_core::endpoint::Routes::is_costly) when they were last looked up.
    Costly,
}

impl LookUpLine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Usual, Self::Costly];

    /// The one that this is not.
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Usual => Self::Costly,
            Self::Costly => Self::Usual,
        }
    }
}

/// Something for each line.
#[derive(Debug, Clone, Default)]
pub(crate) struct PerLine<T> {
    usual: T,
    costly: T,
}

impl<T> PerLine<T> {
    pub(crate) const fn new(usual: T, costly: T) -> Self {
        Self { usual, costly }
    }

    pub(crate) const fn of(&self, line: LookUpLine) -> &T {
        match line {
            LookUpLine::Usual => &self.usual,
            LookUpLine::Costly => &self.costly,
        }
    }

    pub(crate) const fn of_mut(&mut self, line: LookUpLine) -> &mut T {
        match line {
            LookUpLine::Usual => &mut self.usual,
            LookUpLine::Costly => &mut self.costly,
        }
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = &T> {
        [&self.usual, &self.costly].into_iter()
    }
}

/// The accounts that were asked for and are not answered, in their lines.
///
/// Invariant: an account stands in one of the lines at most. One that comes into a line comes into that of the costly
/// ones where it was costly when it was last answered, as far as that is remembered: of [`COSTLY_AT_MOST`].
#[derive(Debug)]
pub(super) struct Lines {
    queues: PerLine<LookupQueue>,
    costly: BTreeSet<AccountId>,
    /// Which of them has been costly for longest comes first.
    by_age: VecDeque<AccountId>,
}

impl Default for Lines {
    fn default() -> Self {
        let queues = PerLine::new(LookupQueue::new(BATCH), LookupQueue::new(COSTLY_BATCH));
        Self { queues, costly: BTreeSet::new(), by_age: VecDeque::new() }
    }
}

impl Lines {
    /// Asks for the account, unless that was done and it is not answered yet.
    pub(super) fn want(&mut self, account: &AccountId) {
        if !self.has(account) {
            let line = self.line_of(account);
            self.queues.of_mut(line).want(account);
        }
    }

    /// Whether a batch is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        self.queues.each().any(LookupQueue::is_in_flight)
    }

    /// Whether a batch of this line is in flight.
    pub(super) fn has_in_flight(&self, line: LookUpLine) -> bool {
        self.queues.of(line).is_in_flight()
    }

    /// The next batch of a line that has none in flight, where somebody is to be looked up, or else an empty one
    /// where `even_if_empty`. It ends with [`Lines::end_batch`].
    pub(super) fn next_batch(
        &mut self,
        now: Tick,
        even_if_empty: bool,
    ) -> Option<(LookUpLine, Vec<AccountId>)> {
        LookUpLine::ALL.into_iter().find_map(|line| {
            let even_if_empty = even_if_empty && line == LookUpLine::Usual;
            Some((line, self.queues.of_mut(line).next_batch(now, even_if_empty)?))
        })
    }

    /// The account of the line's batch in flight is answered. Says no where it does not stand in that.
    pub(super) fn answer(&mut self, line: LookUpLine, account: &AccountId) -> bool {
        self.queues.of_mut(line).answer(account)
    }

    /// The account of the line's batch in flight is not answered, and looked up again no earlier than `at`. Others
    /// stay where they are.
    pub(super) fn put_off(&mut self, line: LookUpLine, account: AccountId, at: Tick) {
        if self.answer(line, &account) {
            let line = self.line_of(&account);
            self.queues.of_mut(line).want_later(account, at);
        }
    }

    /// The line's batch in flight has ended: those of it that are neither answered nor put off come first in its
    /// next.
    pub(super) fn end_batch(&mut self, line: LookUpLine) {
        self.queues.of_mut(line).end_batch();
    }

    /// Whether the account was costly when it was looked up just now.
    pub(super) fn note(&mut self, account: &AccountId, is_costly: bool) {
        if is_costly && self.costly.insert(account.clone()) {
            self.by_age.push_back(account.clone());
            if self.by_age.len() > COSTLY_AT_MOST {
                self.by_age.pop_front().map(|oldest| self.costly.remove(&oldest));
            }
        } else if !is_costly && self.costly.remove(account) {
            self.by_age.retain(|costly| costly != account);
        }
    }

    /// When [`Lines::next_batch`] may have another although nothing else happens.
    pub(super) fn deadline(&self) -> Option<Tick> {
        let ready = self.queues.each().filter(|queue| !queue.is_in_flight());
        ready.filter_map(LookupQueue::deadline).min()
    }

    fn has(&self, account: &AccountId) -> bool {
        self.queues.each().any(|queue| queue.has(account))
    }

    fn line_of(&self, account: &AccountId) -> LookUpLine {
        if self.costly.contains(account) { LookUpLine::Costly } else { LookUpLine::Usual }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick(0);

    fn account(n: impl std::fmt::Display) -> AccountId {
        AccountId::new(n.to_string())
    }

    fn asked(lines: &mut Lines) -> Vec<(LookUpLine, Vec<AccountId>)> {
        std::iter::from_fn(|| lines.next_batch(NOW, false)).collect()
    }

    #[test]
    fn costly_account_has_a_batch_of_its_own_beside_that_of_the_others() {
        let mut lines = Lines::default();
        lines.note(&account("whale"), true);
        lines.note(&account("orca"), true);
        ["whale", "a", "orca", "b"].iter().for_each(|name| lines.want(&account(name)));
        let expected = [
            (LookUpLine::Usual, vec![account("a"), account("b")]),
            (LookUpLine::Costly, vec![account("whale")]),
        ];
        assert_eq!(asked(&mut lines), expected);
        lines.want(&account("whale"));
        lines.want(&account("c"));
        assert!(lines.answer(LookUpLine::Usual, &account("a")));
        assert!(!lines.answer(LookUpLine::Usual, &account("whale")), "it stands in the other line");
        lines.end_batch(LookUpLine::Usual);
        let next = vec![account("b"), account("c")];
        assert_eq!(asked(&mut lines), [(LookUpLine::Usual, next)]);
        assert!(lines.answer(LookUpLine::Costly, &account("whale")));
        lines.end_batch(LookUpLine::Costly);
        assert_eq!(asked(&mut lines), [(LookUpLine::Costly, vec![account("orca")])]);
    }

    #[test]
    fn account_that_turns_out_costly_or_not_changes_its_line_with_its_answer() {
        let mut lines = Lines::default();
        for (is_costly, asked_in, next_in) in [
            (true, LookUpLine::Usual, LookUpLine::Costly),
            (false, LookUpLine::Costly, LookUpLine::Usual),
        ] {
            lines.want(&account(1));
            assert_eq!(asked(&mut lines), [(asked_in, vec![account(1)])]);
            lines.note(&account(1), is_costly);
            // What was found does not count: it is looked up again.
            lines.put_off(asked_in, account(1), NOW);
            lines.want(&account(1));
            lines.end_batch(asked_in);
            assert_eq!(asked(&mut lines), [(next_in, vec![account(1)])], "{is_costly}");
            assert!(lines.answer(next_in, &account(1)));
            lines.end_batch(next_in);
            assert_eq!(asked(&mut lines), []);
        }
    }

    #[test]
    fn costly_accounts_that_are_remembered_are_bounded_and_the_oldest_is_forgotten() {
        let mut lines = Lines::default();
        (0..=COSTLY_AT_MOST).for_each(|n| lines.note(&account(n), true));
        assert_eq!((lines.costly.len(), lines.by_age.len()), (COSTLY_AT_MOST, COSTLY_AT_MOST));
        assert_eq!(lines.line_of(&account(0)), LookUpLine::Usual);
        assert_eq!(lines.line_of(&account(1)), LookUpLine::Costly);
        [0, 1, 7, 7].iter().for_each(|n| lines.note(&account(n), false));
        let left = COSTLY_AT_MOST - 2;
        assert_eq!((lines.costly.len(), lines.by_age.len()), (left, left));
    }
}
