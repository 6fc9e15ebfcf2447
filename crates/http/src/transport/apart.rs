//! Accounts that have connections of their own to a host, for they or others spoilt those that all share.
//!
//! ```text
//! request ended by others on its connection ─► its account: apart
//! it had waited behind another account ──────► that account: suspected ─► a second time: apart
//! request sent again from where others were ─► its account: likewise
//! apart ─► a pool of its own at that host ─► after APART_FOR: shared again
//!
//! more than answers on an HTTP/1 connection of several accounts ─► all accounts of the host: apart
//! ```
//!
//! Who is to blame for a connection that all share cannot be seen on it. So its account is put apart, which
//! costs it handshakes and nothing else: what happens there is its own doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use moka::sync::Cache;
use walhook_core::event::AccountId;

use super::pool::Host;

/// So long an account has its own connections to a host: a handshake for each pause in its requests, against one
/// request of each other account that is sent twice.
const APART_FOR: Duration = Duration::from_secs(600);

/// Accounts of hosts that are remembered.
const APART_MAX: u64 = 10_000;

type Key = (Arc<Host>, AccountId);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Apart {
    /// The host as it is for the account alone.
    apart: Cache<Key, Arc<Host>>,
    suspected: Cache<Key, ()>,
    /// Where all accounts are.
    hosts: Cache<Arc<Host>, ()>,
    /// Whether any account ever was: most never are.
    any: AtomicBool,
}

impl Apart {
    pub(super) fn new() -> Self {
        Self {
            apart: Cache::builder().max_capacity(APART_MAX).time_to_live(APART_FOR).build(),
            suspected: Cache::builder().max_capacity(APART_MAX).time_to_live(APART_FOR).build(),
            hosts: Cache::builder().max_capacity(APART_MAX).time_to_live(APART_FOR).build(),
            any: AtomicBool::new(false),
        }
    }

    /// The host whose connections the account's requests use.
    pub(super) fn host(&self, host: &Arc<Host>, account: &AccountId) -> Arc<Host> {
        if !self.any.load(Relaxed) {
            return Arc::clone(host);
        }
        let own_anyway = || self.hosts.contains_key(host).then(|| own(host, account));
        let of_account = self.apart.get(&key(host, account)).or_else(own_anyway);
        of_account.unwrap_or_else(|| Arc::clone(host))
    }

    /// All accounts of the host have their own connections from now on.
    pub(super) fn put_all(&self, host: &Arc<Host>) {
        self.hosts.insert(Arc::clone(host), ());
        self.any.store(true, Relaxed);
        tracing::debug!(authority = %host.authority, "its accounts' connections are kept apart");
    }

    /// Whether all accounts of the host have.
    pub(super) fn are_all(&self, host: &Arc<Host>) -> bool {
        self.any.load(Relaxed) && self.hosts.contains_key(host)
    }

    /// The account has its own connections from now on.
    pub(super) fn put(&self, host: &Arc<Host>, account: &AccountId) {
        self.apart.insert(key(host, account), own(host, account));
        self.any.store(true, Relaxed);
        tracing::debug!(authority = %host.authority, %account, "its connections are kept apart");
    }

    /// Another account's request waited behind one of this account's, or one of this account's had to be sent again
    /// from a connection of several: once, that may have its own reason.
    pub(super) fn suspect(&self, host: &Arc<Host>, account: &AccountId) {
        let key = key(host, account);
        if self.suspected.contains_key(&key) {
            self.put(host, account);
        } else {
            self.suspected.insert(key, ());
        }
    }
}

/// The host as it is for the account alone.
pub(super) fn own(host: &Arc<Host>, account: &AccountId) -> Arc<Host> {
    let (https, http1, authority) = (host.https, host.http1, host.authority.clone());
    Arc::new(Host { https, http1, authority, account: Some(account.clone()) })
}

fn key(host: &Arc<Host>, account: &AccountId) -> Key {
    (Arc::clone(host), account.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_that_is_suspected_twice_at_a_host_is_apart_there_alone() {
        let host = |name: &str| {
            Arc::new(Host { https: true, http1: false, authority: name.to_owned(), account: None })
        };
        let (one, two) = (host("one.example"), host("two.example"));
        let (apart, a, b) = (Apart::new(), AccountId::new("a"), AccountId::new("b"));
        apart.suspect(&one, &a);
        apart.suspect(&one, &b);
        assert_eq!(apart.host(&one, &a), one);
        apart.suspect(&one, &a);
        assert_eq!(apart.host(&one, &a).account, Some(a.clone()));
        assert_eq!((apart.host(&one, &b), apart.host(&two, &a)), (one.clone(), two.clone()));

        apart.put_all(&one);
        assert_eq!(apart.host(&one, &b).account, Some(b.clone()));
        assert_eq!(apart.host(&two, &b), two);
        assert!(apart.are_all(&one) && !apart.are_all(&two));
    }
}
