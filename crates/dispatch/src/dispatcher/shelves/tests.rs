//! Against a naive model: the table itself, and what is on its way there.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fixture;
use walhook_core::event::Event;
use walhook_core::persist::{Unrouted, UnroutedPage, UnroutedRefill};
use walhook_core::tick::Tick;

const ACCOUNTS: u8 = 3;

/// Rows of one page.
const PAGE: usize = 2;

/// Rows that an earlier leader left of the first account. The last is newer than what is read again.
const OLD: [u64; 2] = [1, 104];

/// Whether an earlier leader may have known it, and newer ones.
fn is_old(commit: u64) -> bool {
    OLD.iter().any(|old| commit <= *old)
}

#[derive(Debug, Clone)]
enum Action {
    Put(u8),
    /// So many of those on their way are in the batch that is handed out, and all that goes.
    HandOut(usize),
    Stored,
    Ask,
    /// The page shows what stood there when it was asked for, or what stands there now.
    Answer {
        early: bool,
    },
    Route(u8, usize),
    GiveUp,
    /// So many rows of each account that is given up are removed.
    Purge(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        5 => (0..ACCOUNTS).prop_map(Action::Put),
        3 => (0usize..4).prop_map(Action::HandOut),
        4 => Just(Action::Stored),
        3 => Just(Action::Ask),
        3 => any::<bool>().prop_map(|early| Action::Answer { early }),
        4 => (0..ACCOUNTS, 1usize..4).prop_map(|(account, rows)| Action::Route(account, rows)),
        1 => Just(Action::GiveUp),
        2 => (1usize..3).prop_map(Action::Purge),
    ]
}

fn name(account: u8) -> AccountId {
    AccountId::new(account.to_string())
}

fn event(account: u8, commit: u64) -> Arc<Event> {
    Arc::new(fixture::event(&account.to_string(), fixture::position(commit, commit), &[]))
}

/// One account's.
#[derive(Debug, Default)]
struct Modelled {
    /// On their way to the table, with whether a batch has them.
    storing: VecDeque<(u64, bool)>,
    table: BTreeSet<u64>,
    /// Routed, in their order; they stand in the table until they are removed.
    routed: Vec<u64>,
    /// Removed to be counted in a gap.
    purged: BTreeSet<u64>,
}

/// What a batch stores, by account, and what it removes.
type UnderWay = (Vec<(u8, u64)>, Vec<UnroutedKey>);

struct World {
    shelves: Shelves,
    model: Vec<Modelled>,
    commit: u64,
    put: u64,
    under_way: Option<UnderWay>,
    asked: Option<(u8, UnroutedRefill, UnroutedPage)>,
    now: Tick,
}

impl World {
    fn new() -> Self {
        let mut shelves = Shelves::new(1 << 20);
        let mut model: Vec<Modelled> = (0..ACCOUNTS).map(|_| Modelled::default()).collect();
        model[0].table = OLD.into();
        let left = UnroutedAccount { account: name(0), rows: 2, settled: vec![] };
        assert!(!shelves.recover(vec![left], vec![], &[]));
        let (under_way, asked) = (None, None);
        Self { shelves, model, commit: 100, put: 0, under_way, asked, now: Tick(0) }
    }

    fn put(&mut self, account: u8) {
        self.commit += 1;
        self.commit += u64::from(OLD.contains(&self.commit));
        self.put += 1;
        let commit = self.commit;
        if !self.shelves.has(&name(account)) {
            self.shelves.open(&name(account), commit * 10, vec![]);
        }
        let key = EventKey::of(&event(account, commit));
        let ordinal = self.shelves.put(&name(account), key, is_old(commit), commit * 10);
        assert!(ordinal > commit, "above those before");
        let model = &mut self.model[usize::from(account)];
        model.storing.push_back((commit, false));
    }

    fn hand_out(&mut self, rows: usize) -> Result<(), TestCaseError> {
        if self.under_way.is_some() {
            return Ok(());
        }
        let mut stored = Vec::new();
        for (account, model) in (0u8..).zip(&mut self.model) {
            for (commit, in_batch) in model.storing.iter_mut().take(rows) {
                (*in_batch, _) = (true, stored.push((account, *commit)));
                self.shelves.handed_out(&name(account));
            }
        }
        let gone = self.shelves.take_gone(usize::MAX, Insertion(0));
        let mut batch = PersistBatch::default();
        self.shelves.hand_out(&mut batch, true);
        for UnroutedAccount { account, rows, .. } in &batch.unrouted_accounts {
            let model = &self.model[account.as_str().parse::<usize>().unwrap()];
            let going = gone.iter().filter(|row| row.account == *account).count();
            let in_batch = model.storing.iter().filter(|(_, in_batch)| *in_batch).count();
            prop_assert_eq!(*rows, (model.table.len() + in_batch - going) as u64, "{}", account);
        }
        self.under_way = Some((stored, gone));
        Ok(())
    }

    fn stored(&mut self) {
        let Some((stored, gone)) = self.under_way.take() else { return };
        for (account, commit) in stored {
            let model = &mut self.model[usize::from(account)];
            assert_eq!(model.storing.pop_front(), Some((commit, true)));
            model.table.insert(commit);
            self.shelves.stored(&name(account));
        }
        for row in gone {
            let account: usize = row.account.as_str().parse().unwrap();
            let commit = row.event.position.commit_lsn().0;
            assert!(self.model[account].table.remove(&commit), "it is removed once");
            self.shelves.removed(&row.account, is_old(commit));
            self.shelves.forget_if_over(&row.account);
        }
    }

    fn page(&self, account: u8, refill: &UnroutedRefill) -> UnroutedPage {
        let after = refill.after.as_ref().map(|after| after.position.commit_lsn().0);
        let table = &self.model[usize::from(account)].table;
        let mut behind = table.iter().filter(|commit| after.is_none_or(|after| **commit > after));
        let rows = behind.by_ref().take(PAGE);
        let rows = rows.map(|commit| Unrouted { event: event(account, *commit), routed_to: None });
        let rows = rows.collect::<Vec<_>>();
        UnroutedPage { account: name(account), end: rows.len() < PAGE, rows }
    }

    fn ask(&mut self) {
        // Nothing is read before the stream has come to what the earlier leader knew.
        let is_caught_up = !is_old(self.commit);
        if !is_caught_up || self.asked.is_some() || self.shelves.pages_at_most(1 << 20) == 0 {
            return;
        }
        match self.shelves.first_in_line() {
            Some((_, true)) => {}
            Some((_, false)) => return self.shelves.drop_first(),
            None => return,
        }
        let refill = self.shelves.ask_first().unwrap();
        self.shelves.begin(1);
        let account = refill.account.as_str().parse().unwrap();
        let page = self.page(account, &refill);
        self.asked = Some((account, refill, page));
    }

    fn answer(&mut self, early: bool) {
        let Some((account, refill, page)) = self.asked.take() else { return };
        assert!(self.shelves.end() > 0);
        let page = if early { page } else { self.page(account, &refill) };
        match self.shelves.take_page(page) {
            Came::Nothing => {}
            Came::Rows(bytes) => assert!(bytes > 0),
            Came::End => _ = self.shelves.forget_if_over(&name(account)),
        }
    }

    fn route(&mut self, account: u8, rows: usize) -> Result<(), TestCaseError> {
        for _ in 0..rows {
            match self.shelves.page_rows(&name(account)) {
                PageRows::None => return Ok(()),
                PageRows::Through => {
                    self.shelves.forget_if_over(&name(account));
                    return Ok(());
                }
                PageRows::Some => {}
            }
            let first = EventKey::of(&self.shelves.first_row(&name(account)).held.event);
            // In two slices.
            let one = Some(EndpointId::new("7"));
            prop_assert!(self.shelves.advance(&name(account), one, true, false).is_none());
            let row = self.shelves.advance(&name(account), None, false, true).unwrap();
            prop_assert_eq!((row.after.as_deref(), row.wanted), (Some("7"), true));
            let commit = first.position.commit_lsn().0;
            let model = &mut self.model[usize::from(account)];
            let is_next = model.routed.iter().all(|before| *before < commit);
            prop_assert!(is_next, "{commit} behind {:?}", model.routed);
            prop_assert!(!model.purged.contains(&commit), "it was given up");
            model.routed.push(commit);
            let event = EventKey::of(&row.held.event);
            self.shelves.go(Insertion(0), UnroutedKey { account: name(account), event });
        }
        Ok(())
    }

    fn purge(&mut self, rows: usize) {
        if self.under_way.is_some() {
            return;
        }
        for purge in self.shelves.purges(u32::try_from(rows).unwrap()) {
            let account: usize = purge.account.as_str().parse().unwrap();
            let model = &mut self.model[account];
            let gone: Vec<u64> = model.table.iter().copied().take(rows).collect();
            model.table.retain(|commit| !gone.contains(commit));
            let all = model.table.is_empty();
            model.purged.extend(&gone);
            self.shelves.purged(&purge.account, gone.len() as u64, all, self.now);
            if all {
                self.shelves.forget_if_over(&purge.account);
            }
        }
    }

    fn act(&mut self, action: Action) -> Result<(), TestCaseError> {
        self.now = self.now + std::time::Duration::from_secs(5);
        match action {
            Action::Put(account) => self.put(account),
            Action::HandOut(rows) => self.hand_out(rows)?,
            Action::Stored => self.stored(),
            Action::Ask => self.ask(),
            Action::Answer { early } => self.answer(early),
            Action::Route(account, rows) => self.route(account, rows)?,
            Action::GiveUp => {
                if let Some((account, _)) = self.shelves.give_up_most(self.now) {
                    self.shelves.forget_if_over(&account);
                }
            }
            Action::Purge(rows) => self.purge(rows),
        }
        self.check()
    }

    /// What is counted is what is there.
    fn check(&self) -> Result<(), TestCaseError> {
        let mut all = 0;
        for (account, model) in (0u8..).zip(&self.model) {
            let rows = model.storing.len() + model.table.len();
            all += rows as u64;
            prop_assert!(rows == 0 || self.shelves.has(&name(account)), "{account} has no shelf");
            let old = model.table.iter().any(|commit| is_old(*commit));
            prop_assert!(!old || self.shelves.holds_back(&name(account)), "{account} holds back");
        }
        prop_assert_eq!(self.shelves.rows(), all);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn shelves_route_each_row_once_and_in_order_or_give_it_up(
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut world = World::new();
        for action in actions {
            world.act(action)?;
        }
        // All goes on until nothing is left.
        world.commit = world.commit.max(OLD[1] + 1);
        for _ in 0..2_000 {
            world.act(Action::Purge(2))?;
            world.act(Action::HandOut(3))?;
            world.act(Action::Stored)?;
            world.act(Action::Ask)?;
            world.act(Action::Answer { early: false })?;
            for account in 0..ACCOUNTS {
                world.act(Action::Route(account, 3))?;
            }
            if world.shelves.is_empty() {
                break;
            }
        }
        prop_assert!(world.shelves.is_empty(), "{:?}", world.shelves);
        for (account, model) in world.model.iter().enumerate() {
            prop_assert!(model.table.is_empty() && model.storing.is_empty(), "{account}: {model:?}");
        }
        let routed = world.model.iter().map(|model| model.routed.len()).sum::<usize>();
        let purged = world.model.iter().map(|model| model.purged.len()).sum::<usize>();
        prop_assert_eq!((routed + purged) as u64, world.put + 2);
    }
}
