//! Deliveries that are settled ahead of the frontier, as ranges: collected, stored, and asked for
//! after a restart.
//!
//! ```text
//! outcome ─► Ahead ──SettledRange──► encode ─► state database ─► decode ─► Recovered ─► route skips
//! ```
//!
//! Why a range is right. Within one account and endpoint, deliveries are routed in the order of the
//! stream, and each takes the next ordinal; so ordinals and keys ascend together, across the
//! boundaries of transactions too. Consecutive ordinals therefore leave no room between them: a range
//! covers exactly what was routed to that endpoint for that account between its ends, and each of
//! those is settled. A delivery that is skipped because it was recorded as settled takes no ordinal,
//! and a range may close over it: it is settled.
//!
//! After a restart the routes may be others. What lies in a range and was not routed to the endpoint
//! then (it did not want the type yet, the rule did not exist) is not owed to it: who was registered
//! when the event was first routed is who it is owed to. What was routed elsewhere has other ranges.
//!
//! A change that makes events of two types has two keys, since the type is part of the key, so a
//! change of which one event is settled is exact as well.
//!
//! When a stream is read again within one process, keys fall back while ordinals go on; a range ends
//! there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use super::tracker::TxnSeq;
use walhook_core::event::{AccountId, EndpointId, Event};
use walhook_core::lsn::Lsn;
use walhook_core::persist::{EventKey, SettledRange};

/// Collects what is settled ahead of the frontier between two persisted batches.
#[derive(Debug, Default)]
pub struct Ahead {
    settled: Vec<Settled>,
}

#[derive(Debug)]
struct Settled {
    account: AccountId,
    endpoint: EndpointId,
    ordinal: u64,
    key: EventKey,
    txn: TxnSeq,
}

impl Ahead {
    /// Nothing is settled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The delivery of `event` to `endpoint` is settled.
    ///
    /// `ordinal`: the how-manieth delivery routed to this account and endpoint it is since the process
    /// began. Invariant: the caller counts in stream order, and counts no delivery that it skips as
    /// settled already.
    pub fn push(
        &mut self,
        account: &AccountId,
        endpoint: &EndpointId,
        ordinal: u64,
        event: &Event,
        txn: TxnSeq,
    ) {
        self.settled.push(Settled {
            account: account.clone(),
            endpoint: endpoint.clone(),
            ordinal,
            key: EventKey::of(event),
            txn,
        });
    }

    /// The number of deliveries collected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.settled.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settled.is_empty()
    }

    /// Takes everything out, as ranges of those whose transaction the frontier has not passed; what it
    /// has passed needs no record.
    #[must_use]
    pub fn take(&mut self, is_passed: impl Fn(TxnSeq) -> bool) -> Vec<SettledRange> {
        let mut settled = std::mem::take(&mut self.settled);
        settled.retain(|delivery| !is_passed(delivery.txn));
        settled.sort_unstable_by(|a, b| {
            (&a.account, &a.endpoint, a.ordinal).cmp(&(&b.account, &b.endpoint, b.ordinal))
        });

        let mut ranges: Vec<SettledRange> = Vec::new();
        let mut last_ordinal = 0;
        for Settled { account, endpoint, ordinal, key, .. } in settled {
            match ranges.last_mut() {
                Some(range)
                    if range.account == account
                        && range.endpoint == endpoint
                        && ordinal == last_ordinal + 1
                        && range.to < key =>
                {
                    range.to = key;
                }
                Some(_) | None => {
                    let from = key.clone();
                    ranges.push(SettledRange { account, endpoint, from, to: key });
                }
            }
            last_ordinal = ordinal;
        }
        ranges
    }
}

/// The deliveries that recovery found to be settled.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Invariant: within one endpoint, ranges ascend and do not overlap; none is left without ranges.
    ranges: BTreeMap<AccountId, BTreeMap<EndpointId, VecDeque<(EventKey, EventKey)>>>,
    /// Where each range ends, the first to be forgotten last.
    ends: Vec<(Lsn, AccountId, EndpointId)>,
}

impl Recovered {
    /// Gathers ranges, in any order and overlapping or not.
    #[must_use]
    pub fn from_ranges(ranges: impl IntoIterator<Item = SettledRange>) -> Self {
        let mut sorted: Vec<SettledRange> = ranges.into_iter().collect();
        sorted.sort_unstable_by(|a, b| {
            (&a.account, &a.endpoint, &a.from).cmp(&(&b.account, &b.endpoint, &b.from))
        });
        let mut recovered = Self::default();
        for SettledRange { account, endpoint, from, to } in sorted {
            let endpoints = recovered.ranges.entry(account).or_default();
            let ranges = endpoints.entry(endpoint).or_default();
            match ranges.back_mut() {
                Some((_, last)) if from <= *last => *last = to.max(last.clone()),
                Some(_) | None => ranges.push_back((from, to)),
            }
        }
        for (account, endpoints) in &recovered.ranges {
            for (endpoint, ranges) in endpoints {
                let end = |(_, to): &(EventKey, EventKey)| {
                    (to.position.commit_lsn(), account.clone(), endpoint.clone())
                };
                recovered.ends.extend(ranges.iter().map(end));
            }
        }
        recovered.ends.sort_unstable_by_key(|(end, _, _)| Reverse(*end));
        recovered
    }

    /// Whether the delivery of the event with this key is settled.
    #[must_use]
    pub fn contains(&self, account: &str, endpoint: &str, key: &EventKey) -> bool {
        let ranges = self.ranges.get(account).and_then(|endpoints| endpoints.get(endpoint));
        let Some(ranges) = ranges else { return false };
        let first_not_before = ranges.partition_point(|(_, to)| to < key);
        ranges.get(first_not_before).is_some_and(|(from, _)| from <= key)
    }

    /// What is known of one account, of all its endpoints.
    #[must_use]
    pub fn of(&self, account: &AccountId) -> Vec<SettledRange> {
        let endpoints = self.ranges.get(account).into_iter().flatten();
        let of_endpoint = |(endpoint, ranges): (&EndpointId, &VecDeque<(EventKey, EventKey)>)| {
            let range = |(from, to): &(EventKey, EventKey)| SettledRange {
                account: account.clone(),
                endpoint: endpoint.clone(),
                from: from.clone(),
                to: to.clone(),
            };
            ranges.iter().map(range).collect::<Vec<_>>()
        };
        endpoints.flat_map(of_endpoint).collect()
    }

    /// Forgets the ranges that the frontier has passed. Each costs once; with none to forget, it is
    /// one comparison.
    pub fn prune(&mut self, frontier: Lsn) {
        // A commit record ends after it begins, so the frontier has passed a transaction when it is
        // above the commit LSN.
        while let Some((_, account, endpoint)) = self.ends.pop_if(|(end, _, _)| *end < frontier) {
            let Some(endpoints) = self.ranges.get_mut(&account) else { continue };
            let Some(ranges) = endpoints.get_mut(&endpoint) else { continue };
            // Of one endpoint's ranges, which ascend, the first ends first.
            ranges.pop_front();
            if ranges.is_empty() {
                endpoints.remove(&endpoint);
            }
            if endpoints.is_empty() {
                self.ranges.remove(&account);
            }
        }
    }

    /// The ranges that are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether nothing is left to skip.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

#[cfg(test)]
mod tests;
