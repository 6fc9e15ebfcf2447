//! The resolver with name servers that behave as told.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::task::JoinSet;

use super::*;

/// What nothing here needs even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// As in a process with the default `delivery.connect_timeout`.
const DEFAULT_PATIENCE: Duration = Duration::from_millis(2500);

/// A name server that answers no name that ends in `.silent` until it is told to, none that ends in
/// `.absent`, one that ends in `.slow` after three seconds, one that ends in `.late` shortly before it would count as
/// slow, and every other one with what it was told last.
#[derive(Default)]
struct NameServer {
    asked: AtomicUsize,
    speaks: Mutex<bool>,
    down: Mutex<bool>,
    answer: Mutex<Vec<IpAddr>>,
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

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn resolver(self: &Arc<Self>, patience: Duration) -> Resolver {
        let server = Arc::clone(self);
        let lookup = move |name: String| -> Answer {
            server.asked.fetch_add(1, SeqCst);
            let server = Arc::clone(&server);
            Box::pin(async move {
                if name.ends_with(".silent") && !*server.speaks.lock().unwrap() {
                    std::future::pending::<()>().await;
                }
                if name.ends_with(".slow") {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
                if name.ends_with(".late") {
                    tokio::time::sleep(QUICK * 9 / 10).await;
                }
                if name.ends_with(".absent") || *server.down.lock().unwrap() {
                    return Err(io::Error::other("no such name"));
                }
                let addresses = server.answer.lock().unwrap().clone();
                Ok(Found { addresses, by_servers: true })
            })
        };
        let resolver = Resolver::new(Arc::default(), Arc::new(lookup), patience);
        // As in a process that may have many descriptors, whatever this one may have.
        let Ok(mut inner) = Arc::try_unwrap(resolver.0).map_err(|_| ()) else { unreachable!() };
        inner.places = Arc::new(Places::new(65_536));
        Resolver(Arc::new(inner))
    }
}

fn account(id: &str) -> AccountId {
    AccountId::new(id)
}

/// The resolver's time is virtual in these tests: what takes none took no turn of anybody.
async fn resolve_others(resolver: &Resolver, round: usize) {
    for n in 0..100 {
        let start = Instant::now();
        let id = format!("other {round} {n}");
        let found = resolver.endpoint(&format!("{n}.{round}.example"), &account(&id)).await;
        assert_eq!(found.unwrap(), ["1.1.1.1".parse::<IpAddr>().unwrap()]);
        assert!(start.elapsed() <= Duration::from_millis(100), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn name_servers_that_are_silent_for_a_thousand_accounts_delay_no_other() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(DEFAULT_PATIENCE);
    // All of them try ten names each, again and again, and others come in between.
    let mut silent = JoinSet::new();
    for n in 0..1000 {
        for name in 0..10 {
            let resolver = resolver.clone();
            silent.spawn(async move {
                let id = account(&format!("silent {n}"));
                let name = format!("{name}.{n}.silent");
                for _ in 0..10 {
                    assert!(resolver.endpoint(&name, &id).await.is_err());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            });
        }
    }
    for round in 0..20 {
        resolve_others(&resolver, round).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    while let Some(ended) = silent.join_next().await {
        ended.unwrap();
    }
    // Each name was asked for a few times at most, and left alone in between.
    assert!(server.asked() < 20_000 + 2000, "{}", server.asked());
    tokio::time::sleep(QUICK + SLOW).await;
    let all = Places::new(65_536).counts();
    assert_eq!(resolver.0.places.counts(), all);
    assert!(resolver.0.asking().is_empty());
}

#[tokio::test(start_paused = true)]
async fn name_server_that_speaks_again_is_heard_within_a_minute() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(DEFAULT_PATIENCE);
    let id = account("a");
    let start = Instant::now();
    let first = resolver.endpoint("x.silent", &id).await;
    assert!(matches!(first, Err(ResolveError::Silent(_))), "{first:?}");
    while start.elapsed() < Duration::from_secs(300) {
        assert!(resolver.endpoint("x.silent", &id).await.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // 2, 4, 8 … 60 s lie between two questions: attempts fail at once meanwhile.
    assert!(server.asked() < 12, "{}", server.asked());
    let waited = Instant::now();
    let left = resolver.endpoint("x.silent", &id).await;
    assert!(matches!(left, Err(ResolveError::Left(_) | ResolveError::Silent(_))), "{left:?}");
    *server.speaks.lock().unwrap() = true;
    while resolver.endpoint("x.silent", &id).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(waited.elapsed() < Duration::from_secs(75), "{:?}", waited.elapsed());
    }
    // Its other names are nobody's fault any more.
    assert!(resolver.endpoint("y.silent", &id).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn name_that_had_no_turn_is_not_to_blame_and_is_asked_for_later() {
    let server = NameServer::answering(&["1.1.1.1"]);
    // Its account's turn comes no more within the first, and within the second it is a slow one.
    for patience in [QUICK / 2, DEFAULT_PATIENCE] {
        let resolver = server.resolver(patience);
        let id = account("a");
        let (silent, other) =
            tokio::join!(resolver.endpoint("x.silent", &id), resolver.endpoint("y.example", &id));
        assert!(matches!(silent, Err(ResolveError::Silent(_))), "{silent:?}");
        assert!(matches!(other, Err(ResolveError::Crowded)), "{other:?}");
        tokio::time::sleep(QUICK + SLOW).await;
        assert!(resolver.endpoint("y.example", &id).await.is_ok());
    }
    // One that was asked for just before the end had no time to be answered.
    let (resolver, id) = (server.resolver(QUICK + QUICK / 10), account("a"));
    let (_, other) =
        tokio::join!(resolver.endpoint("x.late", &id), resolver.endpoint("y.slow", &id));
    assert!(matches!(other, Err(ResolveError::Crowded)), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn name_that_is_slow_is_known_once_it_was_answered_for() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(DEFAULT_PATIENCE);
    let first = resolver.endpoint("x.slow", &account("a")).await;
    assert!(matches!(first, Err(ResolveError::Silent(DEFAULT_PATIENCE))), "{first:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    assert!(resolver.endpoint("x.slow", &account("a")).await.is_ok());
    assert_eq!((start.elapsed(), server.asked()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn known_addresses_are_used_while_their_name_server_is_silent() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(DEFAULT_PATIENCE);
    let old = Known {
        since: Instant::now() - FRESH,
        ..Known::new(Arc::from(["1.1.1.9".parse().unwrap()]))
    };
    resolver.0.known.insert("x.silent".to_owned(), old);
    for _ in 0..100 {
        let start = Instant::now();
        let found = resolver.endpoint("x.silent", &account("a")).await.unwrap();
        assert_eq!(found, ["1.1.1.9".parse::<IpAddr>().unwrap()]);
        assert!(start.elapsed() <= STALE_PATIENCE, "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(server.asked() < 10, "{}", server.asked());
}

#[tokio::test(start_paused = true)]
async fn name_that_many_ask_for_at_once_is_asked_for_once() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(PATIENCE);
    let mut many = JoinSet::new();
    for n in 0..100 {
        let resolver = resolver.clone();
        many.spawn(async move { resolver.endpoint("x.slow", &account(&n.to_string())).await });
    }
    while let Some(found) = many.join_next().await {
        assert!(found.unwrap().is_ok());
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn known_addresses_are_used_while_fresh_and_while_the_name_server_fails() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(PATIENCE);
    let first = resolver.endpoint("a.example", &account("1")).await.unwrap();
    server.tell(&["1.1.1.2"]);
    assert_eq!(resolver.endpoint("a.example", &account("1")).await.unwrap(), first);
    assert_eq!(server.asked(), 1);

    // An address that takes no connection is asked for anew.
    resolver.outdate("a.example");
    let second = resolver.endpoint("a.example", &account("1")).await.unwrap();
    assert_eq!(second, ["1.1.1.2".parse::<IpAddr>().unwrap()]);

    // What was known before an outage of the name server is used through it.
    let stale = Known {
        since: Instant::now().checked_sub(FRESH).unwrap(),
        ..Known::new(Arc::from(second.clone()))
    };
    resolver.0.known.insert("a.example".to_owned(), stale);
    *server.down.lock().unwrap() = true;
    assert_eq!(resolver.endpoint("a.example", &account("1")).await.unwrap(), second);
    assert_eq!(server.asked(), 3);
    let other = resolver.endpoint("b.example", &account("1")).await;
    assert!(matches!(other, Err(ResolveError::Dns(_))), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn address_that_takes_no_connection_of_one_account_is_used_by_others_while_the_name_server_is_silent()
 {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(DEFAULT_PATIENCE);
    *server.speaks.lock().unwrap() = true;
    let first = resolver.endpoint("a.silent", &account("1")).await.unwrap();
    *server.speaks.lock().unwrap() = false;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(120) {
        // Another account's port is closed.
        resolver.outdate("a.silent");
        let start = Instant::now();
        assert_eq!(resolver.endpoint("a.silent", &account("1")).await.unwrap(), first);
        assert!(start.elapsed() <= STALE_PATIENCE, "{:?}", start.elapsed());
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    // Once it speaks again, it is heard.
    server.tell(&["1.1.1.2"]);
    *server.speaks.lock().unwrap() = true;
    tokio::time::sleep(SILENCE_MAX).await;
    let second = resolver.endpoint("a.silent", &account("1")).await.unwrap();
    assert_eq!(second, ["1.1.1.2".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn known_addresses_are_judged_each_time() {
    let server = NameServer::answering(&["1.1.1.1"]);
    let resolver = server.resolver(PATIENCE);
    resolver.endpoint("a.example", &account("1")).await.unwrap();

    let private = Known::new(Arc::from(["10.0.0.1".parse().unwrap()]));
    resolver.0.known.insert("a.example".to_owned(), private);
    let refused = resolver.endpoint("a.example", &account("1")).await;
    assert!(matches!(refused, Err(ResolveError::Forbidden(_))), "{refused:?}");
    assert_eq!(resolver.own("a.example").await.unwrap(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);

    server.tell(&[]);
    let nothing = resolver.endpoint("b.example", &account("1")).await;
    assert!(matches!(nothing, Err(ResolveError::Nothing)), "{nothing:?}");
    assert!(resolver.own("b.example").await.is_err());
}
