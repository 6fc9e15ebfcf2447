//! Which endpoints an account has: a bounded cache that is kept true by the stream itself.
//!
//! ```text
//! event ──get──► routes, or want ──poll_lookup──► (SQL) ──handle_lookup──► routes
//! change of a watched table ──handle_invalidation──► outdated, and remembered until SQL shows it
//! ```
//!
//! | Component | Invariant |
//! |---|---|
//! | `known` | what was not used for longest gives way first, nothing that is pinned does, and the bound holds |
//! | `owners` | an endpoint's owners are exactly the accounts whose known routes show it |
//! | `invalidations` | what SQL may not show yet is outdated under each snapshot that does not see it |
//! | `lines` | an account stands in one line at most: costly ones in theirs, all others in the other |
//! | `queue` | an account that was asked for is looked up again until it is answered, and never twice at once |
//! | `named` | an endpoint is named from its change until the checkpoint has passed that |
//!
//! The [`Router`] holds them, and decides nothing but the order in which they are told.
//!
//! # Why what it answers is true
//!
//! A change of the endpoint table arrives in the stream, in commit order, and outdates what it
//! concerns. But the stream can show a commit before SQL does (under synchronous replication for
//! seconds), and a look-up can overlap an invalidation. So every invalidation is remembered, with
//! its transaction's id, until some look-up's snapshot has seen that transaction. A look-up's answer
//! counts only if its snapshot sees every remembered transaction that concerns it; else it is asked
//! again. On one primary a later snapshot sees all that an earlier one saw; so what one snapshot has
//! seen, every later look-up sees. But costly accounts are looked up beside all others, in a line of their
//! own: the batch that is in flight there may have an earlier snapshot than the one that has come. So what
//! a line's snapshot has seen is kept for the other line's batch in flight, and forgotten when that has ended.
//!
//! Whether an invalidation concerns an answer is known exactly: it names the account, or one of the
//! endpoints in the answer. An endpoint that moves away from an account whose old row the WAL does
//! not name is found by its id among that account's endpoints.
//!
//! What is remembered is lost in a crash. So the dispatcher holds the frontier at a transaction that
//! invalidated something until a snapshot has seen it: else the next process would not hear of it
//! again, and believe a look-up that does not show it yet. While anything is remembered, look-ups are
//! made for their snapshot's sake alone.
//!
//! Routes also grow old (`ROUTES_TTL`): they are asked for again, so that a corrected endpoint reaches us
//! even while the stream stands still, because memory is full of what that endpoint does not take. Until
//! the answer comes they go on being used: no invalidation says that they do not hold, and an account that
//! is known must not notice that look-ups fail.
//!
//! # Which endpoints have joined
//!
//! Routes that no longer hold stay in memory, as far as there is room, to be held against the ones
//! that follow: an endpoint that they did not have, or that wanted less, has *joined* the account.
//! Where there are none to compare, every endpoint that the stream has named lately counts as joined.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use walhook_core::endpoint::{Endpoint, Routes};
use walhook_core::event::{AccountId, EndpointId, Invalidation, Scope};
use walhook_core::lsn::Lsn;
use walhook_core::tick::Tick;

use super::map::Seeded;
use invalidations::Invalidations;
pub use known::RoutesNo;
use known::{Dropped, Known, KnownRoutes};
use lines::Lines;
pub use lines::LookUpLine;
pub(crate) use lines::PerLine;
use named::Named;
use owners::Owners;

pub use snapshot::{ParseSnapshotError, Snapshot};

mod invalidations;
mod known;
mod lines;
mod named;
mod owners;
mod queue;
mod snapshot;

/// How long to wait before asking again when SQL does not show yet what the stream has shown.
const UNSEEN_RETRY: Duration = Duration::from_millis(20);

/// What a look-up has told of an account.
#[derive(Debug)]
pub struct LookedUp {
    /// The account.
    pub account: AccountId,
    /// Its routes. Large ones are pinned: unpin them where nothing is pending.
    pub routes: Arc<Routes>,
    /// The endpoints that have joined: to which earlier events of the account may not have been
    /// routed, although they would be now.
    pub joined: Vec<EndpointId>,
}

/// The routes of all accounts, as far as they are known.
///
/// Invariant: [`Router::get`] gives no routes that an invalidation of which it was told concerns; and the
/// routes of an account that is *pinned*, since deliveries of it are pending, are not dropped for room.
#[derive(Debug)]
pub struct Router {
    known: KnownRoutes,
    owners: Owners,
    named: Named,
    unseen: Invalidations,
    /// What a snapshot has seen, which the line's batch in flight may not have.
    seen_beside: PerLine<Invalidations>,
    lines: Lines,
    /// Counts the invalidations of everything.
    era: u64,
    /// Large routes that nobody needs now: kept until a batch in flight is answered, for while look-ups
    /// fail they would not come back.
    kept: BTreeSet<AccountId>,
    /// No look-up for its snapshot's sake alone before then.
    probe_at: Tick,
}

impl Router {
    /// A router whose cache of accounts without pending deliveries takes at most `cache_bytes`, and which
    /// hashes their names so.
    #[must_use]
    pub fn new(cache_bytes: usize, names: Seeded) -> Self {
        Self {
            known: KnownRoutes::new(cache_bytes, names),
            owners: Owners::default(),
            named: Named::default(),
            unseen: Invalidations::default(),
            seen_beside: PerLine::default(),
            lines: Lines::default(),
            era: 0,
            kept: BTreeSet::new(),
            probe_at: Tick(0),
        }
    }

    /// The account's routes, where they are known and hold. Old ones are asked for again beside that.
    #[must_use]
    pub fn get(&mut self, account: &AccountId, now: Tick) -> Option<Arc<Routes>> {
        let known = self.known.get(account).filter(|known| known.holds(self.era))?;
        if known.is_old(now) {
            self.lines.want(account);
        }
        Some(Arc::clone(known.routes()))
    }

    /// As [`Router::get`], of an account that is pinned.
    #[must_use]
    pub fn get_pinned(&mut self, no: RoutesNo, now: Tick) -> Option<Arc<Routes>> {
        let known = self.known.at(no).filter(|known| known.holds(self.era))?;
        if known.is_old(now) {
            self.lines.want(self.known.account(no));
        }
        Some(Arc::clone(known.routes()))
    }

    /// Whether the account's routes are known and hold.
    #[must_use]
    pub fn holds(&self, account: &AccountId) -> bool {
        self.known.peek(account).is_some_and(|known| known.holds(self.era))
    }

    /// The account's last routes, whether they hold or not.
    #[must_use]
    pub fn last(&self, account: &AccountId) -> Option<Arc<Routes>> {
        self.known.peek(account).map(|known| Arc::clone(known.routes()))
    }

    /// The account whose routes show the endpoint, as far as they are known.
    #[must_use]
    pub fn owner(&self, endpoint: &EndpointId) -> Option<&AccountId> {
        self.owners.of(endpoint).last()
    }

    /// How many enabled endpoints in known routes cannot be used.
    #[must_use]
    pub fn invalid(&self) -> usize {
        self.owners.invalid()
    }

    /// Asks for the account's routes; they come through [`Router::handle_lookup`].
    pub fn want(&mut self, account: &AccountId) {
        self.lines.want(account);
    }

    /// Keeps the account's routes until [`Router::unpin`]. For so long it has this number.
    pub fn pin(&mut self, account: &AccountId) -> RoutesNo {
        self.known.pin(account)
    }

    /// What all routes hold in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.known.bytes() + self.owners.bytes()
    }

    /// Lets the account's routes be dropped for room again. Large ones are kept while a look-up is under way:
    /// see [`Router::take_kept`].
    pub fn unpin(&mut self, account: &AccountId) {
        if self.lines.is_in_flight() && self.known.is_pinned_and_large(account) {
            self.kept.insert(account.clone());
            return;
        }
        let dropped = self.known.unpin(account);
        self.forget_owners(dropped);
    }

    /// The accounts whose routes were kept although nobody needed them. Call it after
    /// [`Router::handle_lookup`], and unpin those again for which nothing is pending.
    pub fn take_kept(&mut self) -> BTreeSet<AccountId> {
        std::mem::take(&mut self.kept)
    }

    /// A watched table changed: what it concerns is looked up again. `received`: how far the stream
    /// was read, the transaction that made the change included.
    pub fn handle_invalidation(&mut self, invalidation: Invalidation, received: Lsn) {
        self.named.name(&invalidation.scope, received);
        match &invalidation.scope {
            Scope::All => self.era += 1,
            Scope::Endpoint { endpoints, accounts } => {
                let owners = endpoints.iter().flat_map(|id| self.owners.of(id));
                owners.chain(accounts).for_each(|account| self.known.outdate(account));
            }
        }
        self.unseen.remember(invalidation);
    }

    /// An earlier leader has heard of a change that look-ups may not show yet.
    pub fn expect(&mut self, xid: u32) {
        self.unseen.remember(Invalidation::new(xid, Scope::All));
    }

    /// The checkpoint is stored at `frontier`: nothing before it will be read again.
    pub fn handle_checkpoint(&mut self, frontier: Lsn) {
        self.named.forget(frontier);
    }

    /// The next accounts to look up, where there are some whose line has no batch in flight.
    ///
    /// An empty batch asks for a snapshot alone. Each batch is answered once, by
    /// [`Router::handle_lookup`].
    pub fn poll_lookup(&mut self, now: Tick) -> Option<(LookUpLine, Vec<AccountId>)> {
        let probes = !self.unseen.is_empty() && self.probe_at <= now;
        self.lines.next_batch(now, probes)
    }

    /// These of the line's batch in flight take long to read, and are asked for in the line of those. Call it before
    /// [`Router::put_off`].
    pub fn move_costly(&mut self, line: LookUpLine, accounts: Vec<AccountId>, now: Tick) {
        for account in accounts {
            self.lines.note(&account, true);
            self.lines.put_off(line, account, now);
        }
    }

    /// These of the line's batch in flight are not answered for, and asked for again no earlier than so long from
    /// now. Call it before [`Router::handle_lookup`].
    pub fn put_off(&mut self, line: LookUpLine, accounts: Vec<(AccountId, Duration)>, now: Tick) {
        for (account, wait) in accounts {
            self.lines.put_off(line, account, now + wait);
        }
    }

    /// Takes the answer to a line's batch and returns what is now known.
    ///
    /// Some may be missing; these are asked for again. What was not asked for is not taken.
    /// Accounts for which SQL does not show yet what the stream has shown are asked again shortly.
    pub fn handle_lookup(
        &mut self,
        line: LookUpLine,
        snapshot: &Snapshot,
        answers: Vec<(AccountId, Routes)>,
        now: Tick,
    ) -> Vec<LookedUp> {
        let mut ready = Vec::with_capacity(answers.len());
        for (account, routes) in answers {
            self.lines.note(&account, routes.is_costly);
            let changes = [&self.unseen, self.seen_beside.of(line)];
            if changes.iter().any(|changes| changes.outdate(snapshot, &account, &routes)) {
                self.lines.put_off(line, account, now + UNSEEN_RETRY);
            } else if self.lines.answer(line, &account) {
                ready.push(self.take(account, Arc::new(routes), now));
            }
        }
        self.lines.end_batch(line);
        *self.seen_beside.of_mut(line) = Invalidations::default();
        let seen = self.unseen.take_seen(snapshot);
        if self.lines.has_in_flight(line.other()) {
            self.seen_beside.of_mut(line.other()).add(seen);
        }
        self.probe_at = now + UNSEEN_RETRY;
        ready
    }

    /// When [`Router::poll_lookup`] may have something although nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        let probes = !self.unseen.is_empty() && !self.lines.has_in_flight(LookUpLine::Usual);
        self.lines.deadline().into_iter().chain(probes.then_some(self.probe_at)).min()
    }

    fn take(&mut self, account: AccountId, routes: Arc<Routes>, now: Tick) -> LookedUp {
        for endpoint in &routes.endpoints {
            // SQL shows a move that the stream will show later: what the old account's routes say
            // is outdated already. Or both texts are one key, and they are looked up once more.
            for before in self.owners.add(endpoint, &account) {
                self.known.outdate(&before);
            }
        }
        let joined = self.joined(&account, &routes);
        let dropped = self.known.put(&account, Known::new(Arc::clone(&routes), self.era, now));
        self.forget_owners(dropped);
        LookedUp { account, routes, joined }
    }

    fn joined(&self, account: &AccountId, routes: &Routes) -> Vec<EndpointId> {
        let known = self.known.peek(account).map(Known::routes);
        let before = known.map_or(&[][..], |known| &known.endpoints);
        let has_joined = |(endpoint, before): &(&Arc<Endpoint>, Option<&Arc<Endpoint>>)| {
            let takes_what_it_took = match before {
                Some(before) => before.covers(endpoint),
                None => known.is_none() && !self.named.has(&endpoint.id),
            };
            endpoint.enabled && !takes_what_it_took
        };
        let joined = beside(&routes.endpoints, before).filter(has_joined);
        joined.map(|(endpoint, _)| endpoint.id.clone()).collect()
    }

    /// Forgets whose the endpoints are that stand in no known routes any more.
    fn forget_owners(&mut self, dropped: Dropped) {
        for (account, old) in dropped {
            let current = self.known.peek(&account).map(Known::routes);
            let current = current.map_or(&[][..], |current| &current.endpoints);
            for (endpoint, current) in beside(&old.routes().endpoints, current) {
                if current.is_none() {
                    self.owners.remove(&endpoint.id, &account);
                }
            }
        }
    }
}

/// Each endpoint with the one of the others that has its id. Both are in the order of their ids: a search for each of
/// hundreds of thousands would hold everybody up.
fn beside<'a>(
    endpoints: &'a [Arc<Endpoint>],
    others: &'a [Arc<Endpoint>],
) -> impl Iterator<Item = (&'a Arc<Endpoint>, Option<&'a Arc<Endpoint>>)> {
    let mut others = others.iter().peekable();
    endpoints.iter().map(move |endpoint| {
        while others.next_if(|other| other.id < endpoint.id).is_some() {}
        (endpoint, others.next_if(|other| other.id == endpoint.id))
    })
}

#[cfg(test)]
mod tests;
