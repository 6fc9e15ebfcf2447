//! The tables `unrouted`, `unrouted_accounts`, `unrouted_joined` and `unseen`.

use walhook_core::event::EndpointId;
use walhook_core::persist::{
    EventKey, PersistBatch, QueueId, Routed, Unrouted, UnroutedPage, UnroutedPurge, UnroutedPurged,
    UnroutedRefill,
};

use super::State;
use super::gaps::Kind;

impl State {
    pub(super) fn write_unrouted(&mut self, batch: &PersistBatch) -> Vec<UnroutedPurged> {
        for event in &batch.unrouted {
            let rows = self.unrouted.entry(event.account.clone()).or_default();
            rows.entry(EventKey::of(event)).or_insert_with(|| (event.clone(), None));
        }
        for Routed { row, to } in &batch.routed {
            let Some(rows) = self.unrouted.get_mut(&row.account) else { continue };
            match to {
                None => _ = rows.remove(&row.event),
                Some(_) => {
                    if let Some((_, routed_to)) = rows.get_mut(&row.event) {
                        routed_to.clone_from(to);
                    }
                }
            }
        }
        self.unrouted.retain(|_, rows| !rows.is_empty());
        for account in &batch.unrouted_accounts {
            if account.rows > 0 {
                self.unrouted_accounts.insert(account.account.clone(), account.clone());
            } else {
                self.unrouted_accounts.remove(&account.account);
            }
        }
        let purged = batch.unrouted_purges.iter().map(|purge| self.purge_unrouted(purge)).collect();
        if batch.joined_passed {
            self.joined.clear();
        }
        let mut joined: Vec<_> = batch.joined.iter().collect();
        joined.sort_by(|a, b| (&a.endpoint, b.at).cmp(&(&b.endpoint, a.at)));
        joined.dedup_by(|a, b| a.endpoint == b.endpoint);
        self.joined.extend(joined.into_iter().map(|joined| (joined.endpoint.clone(), joined.at)));
        self.unseen.extend(&batch.unseen);
        self.unseen.retain(|xid| !batch.seen.contains(xid));
        purged
    }

    fn purge_unrouted(
        &mut self,
        UnroutedPurge { account, rows }: &UnroutedPurge,
    ) -> UnroutedPurged {
        let queue = QueueId { account: account.clone(), endpoint: EndpointId::new("") };
        let mut removed = 0;
        while removed < u64::from(*rows)
            && let Some((key, _)) =
                self.unrouted.get_mut(account).and_then(std::collections::BTreeMap::pop_first)
        {
            removed += 1;
            let record = self.record(&queue, Kind::Unrouted);
            record.removed += 1;
            record.widen(key.position.commit_lsn());
        }
        self.unrouted.retain(|_, rows| !rows.is_empty());
        if let Some(of_account) = self.unrouted_accounts.get_mut(account) {
            of_account.rows = of_account.rows.saturating_sub(removed);
        }
        UnroutedPurged { account: account.clone(), rows: removed, all: removed < u64::from(*rows) }
    }

    /// Pages of events without an endpoint, in their order.
    #[must_use]
    pub fn read_unrouted(&self, pages: &[UnroutedRefill]) -> Vec<UnroutedPage> {
        let read = |page: &UnroutedRefill| {
            let rows = self.unrouted.get(&page.account).into_iter().flatten();
            let mut behind = rows
                .filter(|(key, _)| page.after.as_ref().is_none_or(|after| after < key))
                .peekable();
            let (mut rows, mut bytes) = (Vec::new(), 0);
            while let Some((_, (event, routed_to))) = behind.peek() {
                bytes += event.row.len() as u64;
                let fits =
                    rows.len() < page.rows as usize && (bytes <= page.bytes || rows.is_empty());
                if !fits {
                    break;
                }
                rows.push(Unrouted { event: event.clone(), routed_to: routed_to.clone() });
                behind.next();
            }
            let end = behind.peek().is_none() && rows.len() < page.rows as usize;
            UnroutedPage { account: page.account.clone(), rows, end }
        };
        pages.iter().map(read).collect()
    }
}
