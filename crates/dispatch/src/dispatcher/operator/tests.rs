//! What an operator asks of an endpoint or its rows, and what happens to them in the same moment.

use std::sync::Arc;

use crate::dispatcher::OperatorInput;
use crate::dispatcher::rig::{Rig, settings};
use crate::fixture;
use walhook_core::event::{AccountId, EndpointId, Event, Item};
use walhook_core::id::JobId;
use walhook_core::lsn::Lsn;
use walhook_core::persist::{Deferred, EventKey, QueueId, Refilled, RowKey};

fn key(event: &Event) -> RowKey {
    RowKey { event: EventKey::of(event), replay: None }
}

/// Reads the endpoint's rows back, of which these are in the table.
fn read_back(rig: &mut Rig, rows: &[Arc<Event>]) {
    while let Some(pages) = rig.dispatcher.poll_refill(rig.now) {
        let read = |event: &Arc<Event>| Deferred {
            key: key(event),
            event: Arc::clone(event),
            attempts: 0,
            first_attempt_us: None,
            due_us: None,
        };
        let answers = pages.into_iter().map(|page| {
            let rows =
                rows.iter().filter(|row| page.from.as_ref().is_none_or(|at| *at <= key(row)));
            Refilled { queue: page.queue, rows: rows.map(read).collect(), end: true }
        });
        rig.dispatcher.handle_refilled(answers.collect(), rig.now);
    }
}

#[test]
fn row_made_due_while_it_waits_in_memory_is_not_overtaken_by_what_stands_behind_it() {
    for changed in [0, 1] {
        let mut rig = Rig::new(settings());
        let endpoint = || EndpointId::new("7");
        let pause =
            OperatorInput::Pause { job: JobId(1), endpoint: endpoint(), reason: "why".into() };
        assert!(rig.dispatcher.handle_operator(pause, rig.now));
        // Three changes of one row.
        let commits = [2_000, 3_000, 4_000];
        let event = |at| Arc::new(fixture::event("7", fixture::position(at, at - 10), &[1]));
        let mut rows: Vec<Arc<Event>> = commits.map(event).into();
        for (commit, event) in commits.into_iter().zip(&rows) {
            for item in fixture::transaction(commit, [Arc::clone(event)]) {
                rig.dispatcher.handle_item(item, rig.now);
            }
            rig.look_up();
            rig.send();
        }
        rig.dispatcher.handle_item(Item::Progress { wal_end: Lsn(4_050) }, rig.now);
        rig.store();
        assert_eq!(rig.stored.iter().map(|batch| batch.deferred.len()).sum::<usize>(), 3);
        let resume = OperatorInput::Resume { job: JobId(2), endpoint: endpoint() };
        assert!(rig.dispatcher.handle_operator(resume, rig.now));
        read_back(&mut rig, &rows);
        let queue = QueueId { account: AccountId::new("7"), endpoint: endpoint() };
        let due = OperatorInput::RowsChanged(vec![(queue, key(&rows[changed]))]);
        assert!(rig.dispatcher.handle_operator(due, rig.now));
        let mut order = Vec::new();
        while !rows.is_empty() && order.len() < 10 {
            for dispatch in rig.send() {
                let first = dispatch.attempt.first();
                order.push(first.event.position.commit_lsn());
                rig.answer(first.id, 204);
                rows.retain(|row| row.id != first.event.id);
            }
            rig.store();
            read_back(&mut rig, &rows);
        }
        assert_eq!(order, commits.map(Lsn), "row {changed} was made due");
    }
}

#[test]
fn endpoint_that_wants_no_more_right_after_it_was_resumed_is_not_stored_as_paused() {
    let mut rig = Rig::new(settings());
    let endpoint = EndpointId::new("7");
    let pause =
        OperatorInput::Pause { job: JobId(1), endpoint: endpoint.clone(), reason: "why".into() };
    assert!(rig.dispatcher.handle_operator(pause, rig.now));
    rig.store();
    let resume = OperatorInput::Resume { job: JobId(2), endpoint: endpoint.clone() };
    assert!(rig.dispatcher.handle_operator(resume, rig.now));
    rig.commit("7");
    let sent = rig.send();
    assert_eq!(sent.len(), 1);
    rig.answer(sent[0].attempt.first().id, 410);
    rig.store();
    // As the table takes them.
    let mut table = None;
    for batch in &rig.stored {
        if batch.enabled.contains(&endpoint) {
            table = None;
        }
        if batch.disabled.iter().any(|disabled| disabled.endpoint == endpoint) {
            table.get_or_insert("disabled");
        }
        if batch.paused.iter().any(|paused| paused.endpoint == endpoint) {
            table = Some("paused");
        }
    }
    assert_eq!(table, Some("disabled"));
}

#[test]
fn pause_and_resume_tell_whose_the_endpoint_is_where_its_routes_or_its_queue_know() {
    let mut rig = Rig::new(settings());
    let endpoint = || EndpointId::new("7");
    let pause = |job| OperatorInput::Pause { job, endpoint: endpoint(), reason: "why".into() };
    let resume = |job| OperatorInput::Resume { job, endpoint: endpoint() };
    assert!(rig.dispatcher.handle_operator(pause(JobId(1)), rig.now));
    assert!(rig.dispatcher.handle_operator(resume(JobId(2)), rig.now));
    rig.commit("7");
    assert!(rig.dispatcher.handle_operator(pause(JobId(3)), rig.now));
    assert!(rig.dispatcher.handle_operator(resume(JobId(4)), rig.now));
    let told: Vec<_> = rig.changes().into_iter().map(|changed| changed.account).collect();
    let known = || Some(AccountId::new("7"));
    assert_eq!(
        told,
        [None, None, known(), known()],
        "nobody knew it before its account had an event"
    );
}
