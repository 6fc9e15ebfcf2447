//! The order of a row holds where a leader orders otherwise than the one before it.

use std::sync::Arc;
use std::time::Duration;

use crate::dispatcher::rig::{Rig, settings};
use crate::dispatcher::{Ordering, Settings};
use crate::settle::SettlePolicy;
use walhook_core::event::Event;
use walhook_core::persist::Blocked;
use walhook_core::position::EventId;

const ALL: [Ordering; 3] = [Ordering::Row, Ordering::Account, Ordering::None];

/// The first version of a row fails, and is deferred by a leader that orders so.
fn deferred_by(ordering: Ordering) -> (Rig, Arc<Event>) {
    let settle = SettlePolicy { quick_attempts: 1, ..settings().settle };
    let mut rig = Rig::new(Settings { ordering, settle, ..settings() });
    let event = rig.commit_with("7", &[5]);
    let [sent] = &rig.send()[..] else { panic!("one request") };
    rig.answer(sent.attempt.first().id, 500);
    rig.store();
    (rig, event)
}

/// What is sent within so long, all of it taken.
fn taken(rig: &mut Rig, within: Duration) -> Vec<EventId> {
    let (mut taken, end) = (Vec::new(), rig.now + within);
    while rig.now < end {
        rig.store();
        rig.read();
        for dispatch in rig.send() {
            let delivery = dispatch.attempt.first();
            taken.push(delivery.event.id);
            rig.answer(delivery.id, 204);
        }
        rig.wait(Duration::from_millis(100));
    }
    taken
}

/// `is_older`: the table was written by a version that did not say how it ordered.
fn takes_over(before: Ordering, after: Ordering, is_older: bool) {
    let (mut rig, first) = deferred_by(before);
    for row in rig.stored.iter_mut().flat_map(|batch| &mut batch.backlog) {
        if let Blocked::Keys(keys) = &mut row.blocked
            && is_older
        {
            keys.pop();
        }
    }
    rig.dispatcher.settings.ordering = after;
    rig.take_over();
    let [second, of_another_row] = [5, 6].map(|key| rig.commit_with("7", &[key]));
    let taken = taken(&mut rig, Duration::from_secs(90));
    let at = |event: &Arc<Event>| taken.iter().position(|id| *id == event.id).expect("all arrive");
    let (first, second, of_another_row) = (at(&first), at(&second), at(&of_another_row));
    let case = format!("{before:?}, then {after:?}; older: {is_older}: {taken:?}");
    assert_eq!(taken.len(), 3, "{case}");
    assert!(after == Ordering::None || first < second, "{case}");
    assert!(after != Ordering::Account || second < of_another_row, "{case}");
    assert!(after == Ordering::Account || of_another_row < first, "it waits for nothing: {case}");
}

#[test]
fn row_that_an_earlier_leader_deferred_is_followed_in_order_however_that_ordered() {
    for before in ALL {
        for after in ALL {
            takes_over(before, after, false);
            takes_over(before, after, true);
        }
    }
}

#[test]
fn queue_blocks_its_keys_and_no_others_where_a_leader_orders_as_the_one_before() {
    let (mut rig, _) = deferred_by(Ordering::Row);
    rig.take_over();
    rig.commit_with("7", &[6]);
    assert_eq!(rig.send().len(), 1, "another row waits for nothing");
    rig.commit_with("7", &[5]);
    assert_eq!(rig.send().len(), 0);
}
