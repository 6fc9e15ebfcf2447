//! Ranges of WAL: the checkpoint, gaps, recoveries and replays.

use std::collections::BTreeMap;

use crate::control::checkpoint::{PositionsView, RangeView, SkippedView};
use crate::control::gaps::{ClosedGap, GapList, GapView, ReplayableGap};
use crate::control::recover::skip::SkippedChange;
use crate::control::recover::{NothingView, Recovered, RecoveredView};
use crate::control::replay::{CancelledView, CountsView, FilterView, ReplayList, ReplayView};

use super::{EVENT, at, text};

fn range(from: &str, to: &str) -> RangeView {
    RangeView { from: from.into(), to: to.into() }
}

pub(crate) fn positions() -> PositionsView {
    PositionsView {
        frontier: "0/100".into(),
        written_at: at(0),
        confirmed_flush_lsn: text("0/200"),
        restart_lsn: text("0/80"),
        current_lsn: "0/300".into(),
        possible: Some(range("0/200", "0/300")),
        lost: None,
        lag_bytes: 512,
        missing_bytes: 256,
        replayable: Some(range("0/80", "0/100")),
        no_replay: None,
    }
}

pub(crate) fn positions_of_a_lost_slot() -> PositionsView {
    PositionsView {
        confirmed_flush_lsn: None,
        restart_lsn: None,
        possible: None,
        lost: text("max_slot_wal_keep_size was exceeded. Raise it"),
        missing_bytes: 0,
        replayable: None,
        no_replay: text("no window"),
        ..positions()
    }
}

pub(crate) fn skipped() -> SkippedView {
    SkippedView { skipped: range("0/100", "0/200") }
}

pub(super) fn gap() -> GapView {
    GapView {
        id: 3,
        from_lsn: "0/10".into(),
        to_lsn: "0/FF".into(),
        endpoint: text("7"),
        account: text("42"),
        table: None,
        find: None,
        removed: 5,
        skipped: 2,
        growing: false,
        dead_letters: false,
        last_at: None,
        unreadable: false,
        other_wal: false,
        unrouted: false,
        reason: "suspended".into(),
        recorded_at: at(0),
        closed_at: None,
        note: None,
    }
}

pub(super) fn replayable_gap() -> ReplayableGap {
    let replay = text("walhook replay start --from 0/10 --to 0/100 --endpoint 7 --account 42");
    ReplayableGap { gap: gap(), replay, no_replay: None }
}

fn unpublished() -> ReplayableGap {
    let gap = GapView {
        endpoint: None,
        account: None,
        table: text("public.subscribers"),
        find: text("SELECT * FROM public.subscribers"),
        removed: 0,
        skipped: 0,
        ..gap()
    };
    ReplayableGap { gap, replay: None, no_replay: text("it is in no slot's stream") }
}

pub(crate) fn gap_list() -> GapList {
    GapList { gaps: vec![replayable_gap(), unpublished()] }
}

pub(crate) fn closed_gap() -> ClosedGap {
    ClosedGap { closed: GapView { closed_at: Some(at(5)), note: text("sent by hand"), ..gap() } }
}

pub(crate) fn recovered() -> Recovered<RecoveredView> {
    let recovered = RecoveredView {
        from: "0/100".into(),
        to: "0/200".into(),
        bytes: Some(256),
        reason: "the slot is lost".into(),
        epoch: 4,
        gap: Some(replayable_gap()),
    };
    Recovered { recovered }
}

pub(crate) fn nothing_to_recover() -> NothingView {
    NothingView { detail: "the slot reaches back to the checkpoint".into(), recovered: None }
}

pub(crate) fn skipped_change() -> Recovered<SkippedChange> {
    let recovered = SkippedChange {
        bytes: None,
        epoch: 4,
        from: "0/100".into(),
        reason: "the transaction cannot be read to its end".into(),
        to: "0/101".into(),
    };
    Recovered { recovered }
}

pub(crate) fn replay() -> ReplayView {
    let filter = FilterView { account: text("42"), ..FilterView::default() };
    ReplayView {
        id: 3,
        from: "0/64".into(),
        to: "0/C8".into(),
        from_oldest: false,
        filter,
        position: "0/96".into(),
        delivered: 5,
        waiting: 2,
        dead: 1,
        dropped: 0,
        in_gaps: 0,
        done: 5,
        failed: 1,
        created_at: at(0),
        finished: false,
        error: None,
        waits_for: None,
        fraction: 0.5,
    }
}

pub(crate) fn plain_replay() -> ReplayView {
    let filter = FilterView::default();
    let (finished, error) = (true, text("cancelled"));
    ReplayView { from_oldest: true, filter, finished, error, ..replay() }
}

pub(crate) fn replay_list() -> ReplayList {
    let filter = FilterView {
        account: text("42"),
        endpoint: text("7"),
        types: vec!["subscriber.*".into()],
        since_us: Some(1_763_919_960_000_000),
        until_us: Some(1_763_919_970_000_000),
        events: vec![EVENT.into()],
    };
    ReplayList { replays: vec![ReplayView { filter, ..replay() }, plain_replay()] }
}

pub(crate) fn cancelled() -> CancelledView {
    CancelledView { cancelled: 3 }
}

pub(crate) fn counts() -> CountsView {
    let by_type = BTreeMap::from([("subscriber.updated".to_owned(), 8)]);
    CountsView {
        events: 4,
        other_events: 3,
        deliveries: 8,
        by_type,
        unroutable: 1,
        left_out_bytes: 512,
        left_out_events: None,
    }
}
