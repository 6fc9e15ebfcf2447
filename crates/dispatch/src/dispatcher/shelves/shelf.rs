//! One account's shelf.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::super::lane::SharedEvent;
use super::super::super::settled::Recovered;
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{EventKey, SettledRange};

/// See the invariants of [`super::Shelves`], which alone changes it.
#[derive(Debug)]
pub(in super::super) struct Shelf {
    /// Rows that are not durably gone, those on their way to the table included.
    pub(super) rows: u64,
    /// Of these, what the table has once the batch that was handed out last is stored.
    pub(super) in_table: u64,
    /// Of these, the durable ones that no page has shown.
    pub(super) unread: u64,
    /// Not durable yet, in the order of the stream, with whether it counts in `old`.
    pub(super) storing: VecDeque<(EventKey, bool)>,
    /// Routed, and not durably gone.
    pub(super) going: u64,
    /// So many may be older than deferred rows of the account: an earlier leader's, and those that were read
    /// again.
    pub(super) old: u64,
    pub(super) page: Page,
    pub(super) in_line: bool,
    /// The last row that a page showed.
    pub(super) cursor: Option<EventKey>,
    /// What the table says of it is outdated.
    pub(super) is_stale: bool,
    /// Of the last event that became a row.
    pub(super) ordinal: u64,
    settled: Option<Box<Settled>>,
}

/// Deliveries of an account's events that an earlier leader had settled.
#[derive(Debug)]
struct Settled {
    ranges: Vec<SettledRange>,
    lookup: Recovered,
}

/// What is in memory of a shelf.
#[derive(Debug)]
pub(super) enum Page {
    None,
    /// Being read; only rows before this one are taken, since it may not show what stands in between.
    Asked(Option<EventKey>),
    Read(VecDeque<Row>),
}

/// A row in memory.
#[derive(Debug)]
pub(in super::super) struct Row {
    /// Its event.
    pub(in super::super) held: Arc<SharedEvent>,
    /// The last endpoint that it was routed to.
    pub(in super::super) after: Option<EndpointId>,
    /// Some endpoint wanted it.
    pub(in super::super) wanted: bool,
}

impl Shelf {
    pub(super) fn new(ordinal: u64, ranges: Vec<SettledRange>) -> Self {
        let mut shelf = Self {
            rows: 0,
            in_table: 0,
            unread: 0,
            storing: VecDeque::new(),
            going: 0,
            old: 0,
            page: Page::None,
            in_line: false,
            cursor: None,
            is_stale: false,
            ordinal,
            settled: None,
        };
        shelf.note_settled(ranges);
        shelf
    }

    /// So many rows of an earlier leader's.
    pub(super) fn recovered(rows: u64, settled: Vec<SettledRange>) -> Self {
        Self { rows, in_table: rows, unread: rows, old: rows, ..Self::new(0, settled) }
    }

    pub(super) fn note_settled(&mut self, mut ranges: Vec<SettledRange>) {
        if !ranges.is_empty() {
            ranges.extend(self.settled.take().into_iter().flat_map(|settled| settled.ranges));
            let lookup = Recovered::from_ranges(ranges.iter().cloned());
            self.settled = Some(Box::new(Settled { ranges, lookup }));
        }
    }

    pub(super) fn was_settled(
        &self,
        account: &AccountId,
        endpoint: &EndpointId,
        event: &EventKey,
    ) -> bool {
        let settled = self.settled.as_ref();
        settled.is_some_and(|settled| settled.lookup.contains(account, endpoint, event))
    }

    /// The first row that is not durable: a page may not show what stands from there on.
    pub(super) fn first_storing(&self) -> Option<&EventKey> {
        self.storing.front().map(|(event, _)| event)
    }

    /// What the table is to say: its rows, and what was settled.
    pub(super) fn hand_out(&mut self) -> (u64, Vec<SettledRange>) {
        self.is_stale = false;
        let settled = self.settled.as_ref().map(|settled| settled.ranges.clone());
        (self.in_table, settled.unwrap_or_default())
    }

    pub(super) fn is_over(&self) -> bool {
        // The table may have said less than there is.
        self.rows == 0
            && self.storing.is_empty()
            && self.going == 0
            && matches!(self.page, Page::None)
    }
}
