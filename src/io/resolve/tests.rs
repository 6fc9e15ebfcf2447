//! The resolver with name servers that behave as told.

use std::sync::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::task::JoinSet;

use super::*;

/// What nothing here needs even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// For look-ups that are to be given up.
const SHORT: Duration = Duration::from_millis(300);

/// A name server that answers no name that ends in `.silent` until it is released, none that ends in
/// `.absent`, and every other one with what it was told last.
#[derive(Default)]
struct NameServer {
    asked: AtomicUsize,
    waiting: AtomicUsize,
    down: Mutex<bool>,
    answer: Mutex<Vec<IpAddr>>,
    released: Mutex<bool>,
    release: Condvar,
}

impl NameServer {
    fn answering(addresses: &[&str]) -> Arc<Self> {
        let server = Self::default();
        server.tell(addresses);
        Arc::new(server)
    }

    fn tell(&self, addresses: &[&str]) {
        *self.answer.lock().unwrap() = addresses.iter().map(|a| a.parse().unwrap()).collect();
    }

    fn release(&self) {
        *self.released.lock().unwrap() = true;
        self.release.notify_all();
    }

    fn resolver(self: &Arc<Self>, patience: Duration) -> Resolver {
        let server = Arc::clone(self);
        let lookup = move |name: &str| {
            server.asked.fetch_add(1, SeqCst);
            if name.ends_with(".silent") {
                server.waiting.fetch_add(1, SeqCst);
                let released = server.released.lock().unwrap();
                drop(server.release.wait_while(released, |released| !*released).unwrap());
            }
            if name.ends_with(".absent") || *server.down.lock().unwrap() {
                return Err(io::Error::other("no such name"));
            }
            Ok(server.answer.lock().unwrap().clone())
        };
        Resolver::new(Arc::default(), Arc::new(lookup), patience)
    }
}

fn account(id: &str) -> AccountId {
    AccountId::new(id)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn name_server_that_is_silent_for_one_account_delays_no_other() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(SHORT);
    let mut silent = JoinSet::new();
    for n in 0..200 {
        let resolver = resolver.clone();
        silent.spawn(
            async move { resolver.endpoint(&format!("{n}.silent"), &account("whale")).await },
        );
    }
    until("its turns are taken", || server.waiting.load(SeqCst) == LOOKUPS_PER_ACCOUNT).await;
    for id in ["a", "b", "c"] {
        let found = resolver.endpoint(&format!("{id}.example"), &account(id)).await;
        assert_eq!(found.unwrap(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
    }
    assert_eq!(server.waiting.load(SeqCst), LOOKUPS_PER_ACCOUNT);
    while let Some(ended) = silent.join_next().await {
        assert!(matches!(ended.unwrap(), Err(ResolveError::Silent(_))));
    }
    // Nobody waits any more, but the system still does: the account has no further turn.
    assert_eq!(resolver.0.turns.available_permits(), LOOKUPS_MAX - LOOKUPS_PER_ACCOUNT);
    server.release();
    until("the turns come back", || {
        let accounts = resolver.0.accounts.0.lock().unwrap();
        accounts.is_empty() && resolver.0.turns.available_permits() == LOOKUPS_MAX
    })
    .await;
    // The late answers are remembered.
    let asked = server.asked.load(SeqCst);
    let known = (0..200).filter(|n| resolver.0.known.contains_key(&format!("{n}.silent"))).count();
    assert_eq!((known, asked), (LOOKUPS_PER_ACCOUNT, LOOKUPS_PER_ACCOUNT + 3));
}

#[tokio::test]
async fn known_addresses_are_used_while_fresh_and_while_the_name_server_fails() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(PATIENCE);
    let first = resolver.endpoint("a.example", &account("1")).await.unwrap();
    server.tell(&["1.1.1.2"]);
    assert_eq!(resolver.endpoint("a.example", &account("1")).await.unwrap(), first);
    assert_eq!(server.asked.load(SeqCst), 1);

    // An address that takes no connection is asked for anew.
    resolver.forget("a.example");
    let second = resolver.endpoint("a.example", &account("1")).await.unwrap();
    assert_eq!(second, ["1.1.1.2".parse::<IpAddr>().unwrap()]);

    // What was known before an outage of the name server is used through it.
    let old = Known {
        addresses: Arc::from(second.clone()),
        since: Instant::now().checked_sub(FRESH).unwrap(),
    };
    resolver.0.known.insert("a.example".to_owned(), old);
    *server.down.lock().unwrap() = true;
    assert_eq!(resolver.endpoint("a.example", &account("1")).await.unwrap(), second);
    assert_eq!(server.asked.load(SeqCst), 3);
    let other = resolver.endpoint("b.example", &account("1")).await;
    assert!(matches!(other, Err(ResolveError::Dns(_))), "{other:?}");
}

#[tokio::test]
async fn known_addresses_are_judged_each_time_and_a_name_has_only_so_many() {
    let many: Vec<String> = (0..100).map(|n| format!("1.1.1.{n}")).collect();
    let server = NameServer::answering(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let resolver = server.resolver(PATIENCE);
    let found = resolver.endpoint("a.example", &account("1")).await.unwrap();
    assert_eq!(found.len(), ADDRESSES_MAX);

    let private =
        Known { addresses: Arc::from(["10.0.0.1".parse().unwrap()]), since: Instant::now() };
    resolver.0.known.insert("a.example".to_owned(), private);
    let refused = resolver.endpoint("a.example", &account("1")).await;
    assert!(matches!(refused, Err(ResolveError::Forbidden(_))), "{refused:?}");
    assert_eq!(resolver.own("a.example").await.unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);

    server.tell(&[]);
    let nothing = resolver.endpoint("b.example", &account("1")).await;
    assert!(matches!(nothing, Err(ResolveError::Nothing)), "{nothing:?}");
    assert!(resolver.own("b.example").await.is_err());
}
