//! What a gap counts of deliveries that were in flight when their queue was suspended. What comes of many of them
//! across crashes: `simulation/gaps.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::dispatcher::rig::{Rig, settings};
use walhook_core::persist::RowId;

#[test]
fn delivery_that_ended_while_its_row_was_on_its_way_counts_in_no_gap() {
    let mut rig = Rig::new(settings());
    rig.commit("7");
    rig.commit("7");
    let sent: Vec<_> = rig.send().iter().map(|sent| sent.attempt.first().id).collect();
    assert_eq!(sent.len(), 2);
    // Both have held the frontier for too long: they get rows, which are not stored yet.
    rig.wait(Duration::from_secs(31));
    rig.dispatcher.release_frontier(rig.now);
    rig.answer(sent[0], 204);
    let queue = rig.dispatcher.queues.iter().next().unwrap().0;
    rig.dispatcher.suspend(queue, rig.now);
    rig.store();
    rig.answer(sent[1], 204);
    rig.store();
    let mut table = BTreeSet::<RowId>::new();
    for batch in &rig.stored {
        table.extend(batch.deferred.iter().map(|row| row.id.clone()));
        for row in &batch.resolved {
            assert!(table.remove(row), "a row is removed that is not there");
        }
        assert!(batch.backlog.iter().all(|told| told.rows == table.len() as u64), "{batch:?}");
        assert!(batch.gaps.iter().all(|gap| gap.skipped == 0), "{:?}", batch.gaps);
    }
    assert!(table.is_empty() && rig.stored.iter().any(|batch| !batch.backlog_gone.is_empty()));
}
