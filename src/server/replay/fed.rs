//! How far a replay was fed by this process: whoever reads its range again, for a connection was lost, feeds nothing once
//! more.
//!
//! Events come in the order of their positions, batch by batch. In a batch some accounts have their turn together, and
//! their deliveries go one after the other, again in the order of positions. So of an account that had its turn all is fed
//! up to its last position, and single deliveries are named for one position alone; those of a batch's last position for
//! longer, for the next batch may hold more of it.

use std::collections::HashMap;

use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Fed {
    /// Deliveries, those that earlier leaders counted included.
    total: i64,
    /// The end of the last transaction of which all was fed.
    to: Option<Lsn>,
    /// All before this position was fed.
    before: Option<Position>,
    /// Of the batch under way, or of one that was not fed to its end: up to where all of an account was fed.
    accounts: HashMap<AccountId, Position>,
    /// Single deliveries: of which account, and where.
    named: HashMap<(EventId, EndpointId), (AccountId, Position)>,
    /// The position that is being fed, and of which accounts something of it was.
    at: Option<(Position, Vec<AccountId>)>,
    /// The last position of the batch under way.
    last: Option<Position>,
}

impl Fed {
    /// So many, by earlier leaders.
    pub(super) fn new(total: i64) -> Self {
        Self { total, ..Self::default() }
    }

    pub(super) fn total(&self) -> i64 {
        self.total
    }

    /// Where the range is to be read from, because it is read again.
    pub(super) fn begin_again(&mut self) -> Option<Lsn> {
        (self.at, self.last) = (None, None);
        self.to
    }

    /// The next batch has its last event there; none: it has no event.
    pub(super) fn begin_batch(&mut self, last: Option<Position>) {
        self.last = last;
    }

    /// The batch was fed to its end, with which transactions up to `to` are complete, where any is.
    pub(super) fn end_batch(&mut self, to: Option<Lsn>) {
        self.leave_position();
        self.before = self.before.max(self.last.take());
        self.to = self.to.max(to);
        let before = self.before;
        self.accounts.retain(|_, up_to| Some(*up_to) >= before);
        self.named.retain(|_, (_, at)| Some(*at) >= before);
    }

    /// Whether a batch that was fed to its end had what is there.
    pub(super) fn had(&self, position: Position) -> bool {
        self.before.is_some_and(|before| position <= before)
    }

    /// Whether the delivery was fed.
    pub(super) fn has(&self, event: &Event, endpoint: &EndpointId) -> bool {
        self.before.is_some_and(|before| event.position < before)
            || self.accounts.get(&event.account).is_some_and(|up_to| event.position <= *up_to)
            || self.named.contains_key(&(event.id, endpoint.clone()))
    }

    /// The delivery is fed.
    pub(super) fn add(&mut self, event: &Event, endpoint: &EndpointId) {
        if self.at.as_ref().is_none_or(|(at, _)| *at != event.position) {
            self.leave_position();
        }
        self.total += 1;
        let name = (event.id, endpoint.clone());
        self.named.insert(name, (event.account.clone(), event.position));
        let (_, accounts) = self.at.get_or_insert_with(|| (event.position, Vec::new()));
        if !accounts.contains(&event.account) {
            accounts.push(event.account.clone());
        }
    }

    /// All of these accounts was fed of the batch.
    pub(super) fn leave_position(&mut self) {
        let Some((left, accounts)) = self.at.take().filter(|(at, _)| self.last != Some(*at)) else {
            return;
        };
        self.named.retain(|_, (account, at)| *at != left || !accounts.contains(account));
        self.accounts.extend(accounts.into_iter().map(|account| (account, left)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use walhook_core::event::{Operation, RowKeys};
    use walhook_core::position::WalPosition;

    /// Changes of one transaction each: of each the accounts of its events, by type.
    fn stream(changes: &[Vec<u8>]) -> Vec<Arc<Event>> {
        let event = |(n, change): (usize, &Vec<u8>)| -> Vec<Arc<Event>> {
            let lsn = Lsn(n as u64 * 10 + 10);
            let place = WalPosition { commit_lsn: lsn, change_lsn: lsn, relation: 1, n: 0 };
            let position = Position::Wal(place);
            let of_type = |(no, account): (usize, &u8)| {
                let event_type = no.to_string();
                let id = EventId::derive(1, &position, &event_type, 0);
                Arc::new(Event {
                    id,
                    position,
                    event_type: event_type.into(),
                    account: AccountId::new(account.to_string()),
                    operation: Operation::Insert,
                    commit_time_us: 0,
                    keys: RowKeys::new(),
                    row: Bytes::new(),
                })
            };
            change.iter().enumerate().map(of_type).collect()
        };
        changes.iter().enumerate().flat_map(event).collect()
    }

    proptest! {
        #[test]
        fn each_delivery_is_fed_once_however_often_the_range_is_read_again(
            changes in prop::collection::vec(prop::collection::vec(0u8..4, 1..4), 1..20),
            tries in prop::collection::vec((1usize..6, 0usize..40, any::<bool>()), 0..6),
        ) {
            let events = stream(&changes);
            let endpoints = ["a", "b"].map(EndpointId::new);
            let (mut fed, mut received) = (Fed::default(), Vec::new());
            let tries = tries.into_iter().chain([(3, usize::MAX, false)]);
            for (size, mut left, together) in tries {
                let from = fed.begin_again().unwrap_or_default();
                let rest: Vec<_> = events.iter().filter(|e| e.position.commit_lsn() >= from).collect();
                'read: for batch in rest.chunks(size) {
                    fed.begin_batch(batch.last().map(|event| event.position));
                    let turns: Vec<Vec<u8>> =
                        if together { vec![vec![0, 2], vec![1, 3]] } else { (0..4).map(|n| vec![n]).collect() };
                    for turn in turns {
                        let of_turn = |e: &&&Arc<Event>| turn.iter().any(|n| e.account.as_str() == n.to_string());
                        for event in batch.iter().filter(of_turn) {
                            for endpoint in endpoints.iter().filter(|to| !fed.has(event, to)).cloned().collect::<Vec<_>>() {
                                if left == 0 {
                                    break 'read;
                                }
                                left -= 1;
                                fed.add(event, &endpoint);
                                received.push((event.id, endpoint));
                            }
                        }
                        fed.leave_position();
                    }
                    // A transaction is complete where the next one begins.
                    let last = batch.last().unwrap().position;
                    let is_complete = rest.iter().rfind(|e| e.position == last).unwrap().id == batch.last().unwrap().id;
                    let end = Lsn(last.commit_lsn().0 + u64::from(is_complete));
                    fed.end_batch(Some(end));
                }
            }
            prop_assert_eq!(received.len(), 2 * events.len());
            prop_assert_eq!(usize::try_from(fed.total()).unwrap(), received.len());
            received.sort();
            received.dedup();
            prop_assert_eq!(received.len(), 2 * events.len());
            prop_assert!(fed.accounts.len() <= 4 && fed.named.len() <= 12, "{:?}", fed);
        }
    }
}
