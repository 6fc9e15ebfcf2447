use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::dispatcher::{Dispatcher, Effect, Input, LookUp, Retry, Start};
use crate::fixture;
use walhook_core::event::{AccountId, EndpointId, Event, Item};
use walhook_core::id::{DeadLetterId, JobId};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{
    EventKey, NO_ENDPOINT, SettledRange, Unrouted, UnroutedAccount, UnroutedPage,
};
use walhook_core::tick::Tick;

fn event(commit: u64) -> Arc<Event> {
    Arc::new(fixture::event("a", fixture::position(commit, commit - 10), &[1]))
}

const BEGAN: Tick = Tick(60_000_000);

/// The table of rows without an endpoint, and what became deferred rows of them.
#[derive(Default)]
struct Tables {
    unrouted: BTreeMap<EventKey, Arc<Event>>,
    deferred: BTreeMap<EventKey, Arc<Event>>,
    /// Pages show what stands in the table when they are asked for, and come behind what was stored meanwhile.
    is_slow: bool,
}

/// Lets time pass until deferred rows are read back; look-ups are answered after 40 s. Returns what stands in the
/// table of deferred rows then.
fn until_deferred_rows_are_read(dispatcher: &mut Dispatcher, tables: &mut Tables) -> Vec<u64> {
    let mut now = BEGAN;
    let mut asked: Option<LookUp> = None;
    for step in 0..1_000 {
        now = now + Duration::from_millis(100);
        let mut late = Vec::new();
        while let Some(effect) = dispatcher.poll(now) {
            match effect {
                Effect::LookUp(look_up) => asked = Some(look_up),
                Effect::ReadUnrouted(pages) => {
                    let read = |page: walhook_core::persist::UnroutedRefill| {
                        let behind =
                            |key: &&EventKey| page.after.as_ref().is_none_or(|at| at < *key);
                        let keys = tables.unrouted.keys().filter(behind);
                        let row = |key| Unrouted {
                            event: Arc::clone(&tables.unrouted[key]),
                            routed_to: None,
                        };
                        let rows = keys.map(row).collect();
                        UnroutedPage { account: page.account, rows, end: true }
                    };
                    let pages = pages.into_iter().map(read).collect();
                    match tables.is_slow {
                        true => late.push(Input::UnroutedPages(pages)),
                        false => dispatcher.handle(now, Input::UnroutedPages(pages)),
                    }
                }
                Effect::Store(batch) => {
                    let rows = batch.unrouted.iter().map(|e| (EventKey::of(e), Arc::clone(e)));
                    tables.unrouted.extend(rows);
                    let gone = batch.routed.iter().filter(|routed| routed.to.is_none());
                    gone.for_each(|routed| _ = tables.unrouted.remove(&routed.row.event));
                    let rows = batch.deferred.iter();
                    tables
                        .deferred
                        .extend(rows.map(|row| (row.id.key.event.clone(), Arc::clone(&row.event))));
                    match tables.is_slow {
                        true => late.insert(0, Input::Stored(Box::default())),
                        false => dispatcher.handle(now, Input::Stored(Box::default())),
                    }
                }
                Effect::ReadDeferred(_) => {
                    let keys = tables.deferred.keys();
                    return keys.map(|key| key.position.commit_lsn().0).collect();
                }
                Effect::Send(_)
                | Effect::Abort(_)
                | Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. } => {}
            }
        }
        late.into_iter().for_each(|input| dispatcher.handle(now, input));
        if step >= 400
            && let Some(look_up) = asked.take()
        {
            let answer =
                look_up.answered(fixture::snapshot(), |account| fixture::routes(account, ["e"]));
            dispatcher.handle(now, Input::Routes(Box::new(answer)));
        }
    }
    panic!("deferred rows are never read back: {:?}", tables.deferred)
}

/// An earlier leader has made a row of the event.
fn with_a_row_of(event: &Arc<Event>) -> (Dispatcher, Tables) {
    let key = EventKey::of(event);
    let settled = SettledRange {
        account: AccountId::new("a"),
        endpoint: EndpointId::new(NO_ENDPOINT),
        from: key.clone(),
        to: key.clone(),
    };
    let account = UnroutedAccount { account: AccountId::new("a"), rows: 1, settled: Vec::new() };
    let (settled, unrouted) = (vec![settled], vec![account]);
    let start = Start { frontier: Lsn(1_000), settled, unrouted, ..Start::default() };
    let dispatcher = Dispatcher::new(fixture::settings(), start, SmallRng::seed_from_u64(1));
    let mut tables = Tables::default();
    tables.unrouted.insert(key, Arc::clone(event));
    (dispatcher, tables)
}

/// The stream brings an event in each of these transactions.
fn read<const N: usize>(commits: [u64; N], dispatcher: &mut Dispatcher) {
    for commit in commits {
        let mut items = fixture::transaction(commit, [event(commit)]);
        items.push(Item::Progress { wal_end: Lsn(commit + 50) });
        dispatcher.handle(BEGAN, Input::Items(items));
    }
}

/// A page is asked for while an older event is on its way to the table, and shows nothing before that; when it
/// comes the event is stored. Another one is asked for, and all are routed.
#[test]
fn page_that_an_event_on_its_way_bounds_is_read_again_when_that_was_stored_meanwhile() {
    let (mut dispatcher, mut tables) = with_a_row_of(&event(2_000));
    tables.is_slow = true;
    read([1_500, 2_000, 2_500], &mut dispatcher);
    let deferred = until_deferred_rows_are_read(&mut dispatcher, &mut tables);
    assert_eq!(deferred, [1_500, 2_000, 2_500]);
}

/// An earlier leader has made a row of the second event, and none of the first, which is read again. It waits
/// behind an operator's retry while a page shows the second, and becomes a row behind the place that pages have
/// come to. What was deferred of the second and the third waits for it all the same.
#[test]
fn row_of_an_event_that_was_read_again_keeps_newer_deferred_rows_back() {
    let (mut dispatcher, mut tables) = with_a_row_of(&event(2_000));
    let endpoint = EndpointId::new("e");
    let retry = Retry { dead_letter: DeadLetterId(1), job: JobId(1), event: event(900), endpoint };
    dispatcher.handle(BEGAN, Input::Retry(Box::new(retry)));
    read([1_500, 2_000, 2_500], &mut dispatcher);
    let deferred = until_deferred_rows_are_read(&mut dispatcher, &mut tables);
    assert_eq!(deferred, [1_500, 2_000, 2_500]);
}

/// An earlier leader has given all rows of the account up, and ended before it said so.
#[test]
fn account_of_which_no_row_is_left_has_its_events_sent_at_once_and_its_entry_removed() {
    let account = UnroutedAccount { account: AccountId::new("a"), rows: 0, settled: Vec::new() };
    let start = Start { frontier: Lsn(1_000), unrouted: vec![account], ..Start::default() };
    let mut dispatcher = Dispatcher::new(fixture::settings(), start, SmallRng::seed_from_u64(1));
    let (mut sent, mut told) = (0, Vec::new());
    for (step, commit) in (0u64..).zip([1_500, 2_000]) {
        let now = BEGAN + Duration::from_secs(step);
        dispatcher.handle(now, Input::Items(fixture::transaction(commit, [event(commit)])));
        while let Some(effect) = dispatcher.poll(now) {
            match effect {
                Effect::LookUp(look_up) => {
                    let answer =
                        look_up.answered(fixture::snapshot(), |a| fixture::routes(a, ["e"]));
                    dispatcher.handle(now, Input::Routes(Box::new(answer)));
                }
                Effect::Send(dispatch) => {
                    sent += 1;
                    let (delivery, outcome) = (dispatch.attempt.first().id, fixture::answered(200));
                    dispatcher.handle(now, Input::Outcome { delivery, outcome });
                }
                Effect::Store(batch) => {
                    told.extend(batch.unrouted_accounts.iter().map(|account| account.rows));
                    dispatcher.handle(now, Input::Stored(Box::default()));
                }
                Effect::ReadUnrouted(_)
                | Effect::ReadDeferred(_)
                | Effect::Abort(_)
                | Effect::Flush(_)
                | Effect::Settled(_)
                | Effect::Report(_)
                | Effect::StateFull { .. } => {}
            }
        }
    }
    assert_eq!((sent, &told[..]), (2, &[0][..]));
}
