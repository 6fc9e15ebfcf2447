//! Rows that somebody else removes.

use super::*;

const DUE: Tick = Tick(1_000_000);

const ROOM: PageBudget = PageBudget { rows: 10, bytes: 1 << 20, heads: 10 };

fn read(event: &Arc<Event>) -> Read {
    let (key, event, keys) = (key(event), Arc::clone(event), event.keys.clone());
    let row = Deferred { key, event, attempts: 0, first_attempt_us: None, due_us: None };
    Read { row, keys, due: None }
}

/// Rows of these events, each with a key of its own, which failed and are due then.
fn failed<const N: usize>(events: [u64; N]) -> (Backlog, [Arc<Event>; N]) {
    let mut backlog = Backlog::new(Blocked::Keys(vec![]), DeferReason::Behind);
    let events = events.map(|n| event(n, &[n]));
    for event in &events {
        backlog.defer(&key(event), &event.keys, &Tried::default(), Some(DUE), false);
        backlog.handed_out();
        backlog.stored(&key(event));
    }
    (backlog, events)
}

#[test]
fn head_that_an_operator_has_removed_is_not_taken_from_a_page_that_was_read_before() {
    let (mut backlog, [event]) = failed([7]);
    let row = key(&event);
    assert_eq!(backlog.begin_page(Page::Rows, DUE), Some(row.clone()));
    backlog.look_again(&row, DUE);
    assert!(backlog.take_page(vec![read(&event)], true, ROOM, DUE).is_empty());
    // It is read again: the row is there after all, or it is gone.
    assert_eq!(backlog.begin_page(Page::Rows, DUE), Some(row));
    assert!(backlog.take_page(vec![], true, ROOM, DUE).is_empty());
    assert_eq!((backlog.rows(), backlog.in_table()), (0, 0));
}

#[test]
fn what_stands_behind_a_discarded_head_is_read_back_although_another_head_waits() {
    let mut backlog = Backlog::new(Blocked::Keys(vec![]), DeferReason::Behind);
    let (now, due) = (Tick(0), Some(Tick(1_000_000)));
    let events = [event(1, &[1]), event(2, &[2]), event(3, &[1])];
    for (event, due) in events.iter().zip([due, due, None]) {
        backlog.defer(&key(event), &event.keys, &Tried::default(), due, due.is_none());
        backlog.handed_out();
        backlog.stored(&key(event));
    }
    backlog.begin_page(Page::Rows, now);
    let loads = backlog.take_page(events.iter().map(read).collect(), true, ROOM, now);
    assert!(loads.is_empty() && !backlog.wants_page(Page::Rows, now), "all wait behind heads");

    let discarded = key(&events[0]);
    backlog.may_be_removed(&discarded);
    backlog.look_again(&discarded, now);
    backlog.removed_by_others(&discarded);
    assert!(backlog.wants_page(Page::Rows, now));
    assert_eq!(backlog.begin_page(Page::Rows, now), Some(discarded));
    let loads = backlog.take_page(events[1..].iter().map(read).collect(), true, ROOM, now);
    let loaded: Vec<RowKey> = loads.into_iter().map(|load| load.row.key).collect();
    assert_eq!(loaded, [key(&events[2])]);
}

#[test]
fn removed_head_counts_once_where_a_page_shows_it_before_it_is_told() {
    let (mut backlog, events) = failed([1, 2]);
    let removed = key(&events[0]);
    backlog.may_be_removed(&removed);
    assert_eq!(backlog.begin_page(Page::Rows, DUE), Some(removed.clone()));
    backlog.take_page(vec![], false, ROOM, DUE);
    assert_eq!((backlog.rows(), backlog.in_table()), (1, 1));
    backlog.look_again(&removed, DUE);
    backlog.removed_by_others(&removed);
    assert_eq!((backlog.rows(), backlog.in_table()), (1, 1), "the other one is there");
}

#[test]
fn removed_row_counts_once_where_its_delivery_ended_before_it_is_told() {
    let (mut backlog, events) = failed([1, 2]);
    let removed = key(&events[0]);
    backlog.begin_page(Page::Rows, DUE);
    assert_eq!(backlog.take_page(vec![read(&events[0])], false, ROOM, DUE).len(), 1);
    backlog.may_be_removed(&removed);
    backlog.resolve(&removed);
    backlog.taken_out();
    backlog.removed(&removed);
    backlog.removed_by_others(&removed);
    assert_eq!((backlog.rows(), backlog.in_table()), (1, 1), "the other one is there");
}

#[test]
fn rows_of_which_nobody_says_that_they_are_gone_count_until_a_walk_finds_none() {
    let (mut backlog, rows) =
        (Backlog::recovered(Blocked::All, 2), [event(1, &[1]), event(2, &[2])]);
    rows.iter().for_each(|row| backlog.may_be_removed(&key(row)));
    backlog.forget_removals();
    backlog.removed_by_others(&key(&rows[0]));
    assert_eq!(backlog.rows(), 2);
    backlog.begin_page(Page::Rows, DUE);
    backlog.take_page(vec![], true, ROOM, DUE);
    assert_eq!((backlog.rows(), backlog.in_table()), (0, 0));
}
