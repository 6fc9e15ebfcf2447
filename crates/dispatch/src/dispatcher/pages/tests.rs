use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::dispatcher::{Dispatcher, Effect, Input, Settings, Start};
use crate::fixture;
use walhook_core::event::{AccountId, EndpointId, Item};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    BacklogRow, Blocked, Deferred, EventKey, QueueId, Refill, Refilled, RowKey, Unrouted,
    UnroutedAccount, UnroutedPage,
};
use walhook_core::tick::{Tick, micros};

#[test]
fn pages_of_a_small_memory_are_fewer_and_smaller() {
    let large = PageSize::new(32, 64 << 20);
    assert_eq!((large.at_once, large.rows, large.bytes), (32, PAGE_ROWS, 2 << 20));
    let small = PageSize::new(32, 256 << 10);
    assert_eq!((small.at_once, small.bytes), (16, 16 << 10));
    let none = PageSize::new(64, 0);
    assert_eq!((none.at_once, none.bytes), (1, 16 << 10));
}

proptest! {
    #[test]
    fn rows_of_all_pages_take_no_more_than_their_share(at_once in 1usize..64, share in (1usize << 16)..(1 << 30)) {
        let size = PageSize::new(at_once, share);
        let rows = size.rows as usize;
        let most = rows * (DELIVERY_BYTES + Event::FIXED_BYTES) + size.text_bytes;
        prop_assert!(most <= size.bytes);
        prop_assert!(size.at_once * size.bytes <= share);
    }
}

/// So long that a state transaction has few rows.
const STORES_FOR: Duration = Duration::from_millis(400);

/// More of the stream than can be sent: a whale whose endpoint never answers, and a state database that takes its
/// time, so that the stream alone keeps memory above three quarters of its limit.
struct Flood {
    dispatcher: Dispatcher,
    now: Tick,
    commit: u64,
    stored_at: Option<Tick>,
    /// What was asked for of the small account's rows.
    asked: Option<Effect>,
}

impl Flood {
    fn new(start: Start) -> Self {
        let settings = Settings { memory_limit: 1 << 20, ..fixture::settings() };
        let slots = settings.fast_slots + settings.slow_slots;
        let dispatcher = Dispatcher::new(settings, start, SmallRng::seed_from_u64(1));
        let (now, commit) = (Tick(60_000_000), 2_000);
        let mut flood = Self { dispatcher, now, commit, stored_at: None, asked: None };
        // What is in flight cannot leave: half of the limit.
        (0..slots).for_each(|_| flood.commit((1 << 19) / slots as usize));
        flood
    }

    fn event(account: &str, commit: u64, bytes: usize) -> Arc<Event> {
        let position = fixture::position(commit, commit - 10);
        let row = Bytes::from(vec![b' '; bytes]);
        Arc::new(Event { row, ..fixture::event(account, position, &[commit]) })
    }

    fn commit(&mut self, bytes: usize) {
        self.commit += 100;
        let mut items =
            fixture::transaction(self.commit, [Self::event("whale", self.commit, bytes)]);
        items.push(Item::Progress { wal_end: Lsn(self.commit + 20) });
        self.dispatcher.handle(self.now, Input::Items(items));
    }

    fn stream(&mut self) {
        while self.dispatcher.wants_input() {
            self.commit(1 << 10);
        }
    }

    /// A millisecond passes.
    fn pass(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        if self.stored_at.take_if(|at| *at <= self.now).is_some() {
            self.dispatcher.handle(self.now, Input::Stored(Box::default()));
        }
        while let Some(effect) = self.dispatcher.poll(self.now) {
            match effect {
                Effect::LookUp(look_up) => {
                    let routes = |account: &AccountId| fixture::routes(account, [&**account]);
                    let answer = look_up.answered(fixture::snapshot(), routes);
                    self.dispatcher.handle(self.now, Input::Routes(Box::new(answer)));
                }
                Effect::Store(_) => self.stored_at = Some(self.now + STORES_FOR),
                Effect::ReadDeferred(pages) if *pages[0].queue.account == *"whale" => {
                    let read =
                        |page: Refill| Refilled { queue: page.queue, rows: Vec::new(), end: true };
                    let pages = pages.into_iter().map(read).collect();
                    self.dispatcher.handle(self.now, Input::DeferredPages(pages));
                }
                Effect::ReadDeferred(_) | Effect::ReadUnrouted(_) => self.asked = Some(effect),
                Effect::Send(sent) if *sent.attempt.endpoint.account == *"small" => {
                    let (delivery, outcome) = (sent.attempt.first().id, fixture::answered(200));
                    self.dispatcher.handle(self.now, Input::Outcome { delivery, outcome });
                }
                Effect::Send(_)
                | Effect::Abort(_)
                | Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. } => {}
            }
        }
        self.stream();
    }

    /// The small account's first row, and no end of them.
    fn read_back(&mut self) {
        let event = Self::event("small", 1_100, 10);
        let end = false;
        let input = match self.asked.take() {
            Some(Effect::ReadDeferred(pages)) => {
                let key = RowKey { event: EventKey::of(&event), replay: None };
                let (attempts, first_attempt_us, due_us) = (0, None, None);
                let row = Deferred { key, event, attempts, first_attempt_us, due_us };
                let queue = pages[0].queue.clone();
                Input::DeferredPages(vec![Refilled { queue, rows: vec![row], end }])
            }
            Some(Effect::ReadUnrouted(pages)) => {
                let (account, rows) =
                    (pages[0].account.clone(), vec![Unrouted { event, routed_to: None }]);
                Input::UnroutedPages(vec![UnroutedPage { account, rows, end }])
            }
            asked => panic!("no page was asked for, but {asked:?}"),
        };
        self.dispatcher.handle(self.now, input);
    }
}

/// In the midst of it a page comes, and another one is wanted: after how many milliseconds it is asked for.
fn second_page_is_asked_for_after(start: Start) -> u64 {
    let mut flood = Flood::new(start);
    (0..10_000).for_each(|_| flood.pass());
    flood.read_back();
    let (commit, began) = (flood.commit, flood.now);
    while flood.asked.is_none() {
        flood.pass();
        assert!(flood.now.since(began) < Duration::from_secs(60), "it is never asked for");
    }
    let after = micros(flood.now.since(began)) / 1_000;
    (0..3_000).for_each(|_| flood.pass());
    assert!(flood.commit > commit + 10_000, "the stream stands still");
    after
}

#[test]
fn page_of_deferred_rows_is_read_although_the_stream_keeps_memory_short() {
    let queue = QueueId { account: AccountId::new("small"), endpoint: EndpointId::new("small") };
    let row = BacklogRow {
        queue,
        blocked: Blocked::All,
        rows: 1_000,
        failing_since_us: None,
        stopped_us: 0,
        open_until_us: None,
    };
    let start = Start { frontier: Lsn(1_000), backlog: vec![row], ..Start::default() };
    let after = second_page_is_asked_for_after(start);
    assert!(after < 100, "after {after} ms");
}

#[test]
fn page_of_unrouted_rows_is_read_although_the_stream_keeps_memory_short() {
    let (account, settled) = (AccountId::new("small"), Vec::new());
    let account = UnroutedAccount { account, rows: 1_000, settled };
    let start = Start { frontier: Lsn(1_000), unrouted: vec![account], ..Start::default() };
    let after = second_page_is_asked_for_after(start);
    assert!(after < 100, "after {after} ms");
}
