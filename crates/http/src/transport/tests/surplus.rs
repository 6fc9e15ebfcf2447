//! A receiver that sends more than its answers, over HTTP/1, at a host that several accounts share.

use std::collections::BTreeSet;

use super::super::users::REST;
use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const GONE: &str = "HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
const NO: &str = "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";

/// What may come behind an answer: one that others could take for theirs, or none.
const SURPLUS: [&str; 3] = [GONE, "xx", OK];

/// A host of two kinds of accounts: `spoils` gets a 200, and so long after it the surplus; all others get a 500.
struct Talkative {
    addr: SocketAddr,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// The connection of each request.
    connections: Mutex<Vec<usize>>,
    /// The accounts, other than `spoils`, whose requests were answered.
    answered: Mutex<Vec<String>>,
    /// The accounts whose answers are held back, and "surplus".
    held: Mutex<BTreeSet<&'static str>>,
}

impl Seen {
    async fn until(&self, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so(self) {
            assert!(Instant::now() < deadline, "it does not come to that");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_let_go(&self, what: &str) {
        self.until(|seen| !seen.held.lock().unwrap().contains(what)).await;
    }
}

#[derive(Debug, Clone, Copy)]
struct Manner {
    surplus: &'static str,
    /// From the answer to the surplus; none: they are one packet.
    after: Option<Duration>,
    /// From others' requests to their answers.
    pause: Duration,
}

impl Talkative {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, mut tasks) = (Arc::new(Seen::default()), JoinSet::new());
        let all = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let seen = Arc::clone(&all);
                serving.spawn(async move {
                    let (mut from, to) = stream.into_split();
                    let (to, mut late) = (Arc::new(tokio::sync::Mutex::new(to)), JoinSet::new());
                    while let Some((head, _)) = read_request(&mut from).await {
                        seen.connections.lock().unwrap().push(connection);
                        let Manner { surplus, after, pause } = manner;
                        let account = head.split(['/', ' ']).nth(2).unwrap_or_default();
                        if account != "spoils" {
                            tokio::time::sleep(pause).await;
                            seen.until_let_go(account).await;
                            let _gone = to.lock().await.write_all(NO.as_bytes()).await;
                            seen.answered.lock().unwrap().push(account.to_owned());
                            continue;
                        }
                        let Some(after) = after else {
                            let both = [OK, surplus].concat();
                            let _gone = to.lock().await.write_all(both.as_bytes()).await;
                            continue;
                        };
                        let _gone = to.lock().await.write_all(OK.as_bytes()).await;
                        let (to, seen) = (Arc::clone(&to), Arc::clone(&seen));
                        late.spawn(async move {
                            tokio::time::sleep(after).await;
                            seen.until_let_go("surplus").await;
                            let _gone = to.lock().await.write_all(surplus.as_bytes()).await;
                        });
                    }
                });
            }
        });
        Self { addr, seen, _tasks: tasks }
    }

    /// From now on it answers none of these accounts, and sends no surplus where that is among them.
    fn hold(&self, what: &[&'static str]) {
        self.seen.held.lock().unwrap().extend(what);
    }

    fn let_go(&self, what: &str) {
        self.seen.held.lock().unwrap().remove(what);
    }

    /// Waits until so many requests have come.
    async fn until_received(&self, requests: usize) {
        self.seen.until(|seen| seen.connections.lock().unwrap().len() >= requests).await;
    }

    /// Waits until it has answered a request of the account.
    async fn until_answered(&self, account: &str) {
        let is_it = |of: &String| of == account;
        self.seen.until(|seen| seen.answered.lock().unwrap().iter().any(is_it)).await;
    }

    /// What comes of a request of the account.
    async fn sent(&self, transport: &Transport, account: &str) -> Result<u16, FailureKind> {
        let url = format!("http://{}/{account}", self.addr);
        let endpoint = Endpoint { account: AccountId::new(account), ..endpoint(&url) };
        let exchange = transport.send(&attempt(endpoint)).await;
        exchange.result.map(|answer| answer.status).map_err(|failure| failure.kind)
    }

    /// The connection that the last request came on.
    fn last(&self) -> Option<usize> {
        self.seen.connections.lock().unwrap().last().copied()
    }

    fn connections(&self) -> usize {
        let connections = self.seen.connections.lock().unwrap();
        connections.iter().max().map_or(0, |last| last + 1)
    }
}

async fn rest(length: Duration) {
    tokio::time::sleep(length).await;
}

#[tokio::test]
async fn surplus_that_comes_soon_is_no_other_accounts_answer() {
    let soon = [None, Some(Duration::ZERO), Some(Duration::from_millis(2))];
    for (surplus, after) in SURPLUS.into_iter().flat_map(|it| soon.map(|after| (it, after))) {
        let server = Talkative::start(Manner { surplus, after, pause: REST / 2 }).await;
        let transport = transport();
        for n in 0..20 {
            // Others may have used the connection before.
            let other = ["a", "b", "c"][n % 3];
            let before = server.sent(&transport, other).await;
            rest(REST * 2).await;
            let spoils = server.sent(&transport, "spoils").await;
            if n % 2 == 0 {
                rest(REST * 2).await;
            }
            let behind = server.sent(&transport, other).await;
            for of_other in [before, behind] {
                assert!(
                    matches!(of_other, Ok(500) | Err(FailureKind::Lost)),
                    "{surplus:?} after {after:?}, round {n}: {of_other:?}"
                );
            }
            assert!(matches!(spoils, Ok(200) | Err(FailureKind::Lost)), "{spoils:?}");
        }
    }
}

#[tokio::test]
async fn surplus_parts_the_accounts_of_its_connection_once() {
    let after = Some(Duration::ZERO);
    let server = Talkative::start(Manner { surplus: OK, after, pause: Duration::ZERO }).await;
    let transport = transport();
    let mut lost = 0;
    for _ in 0..20 {
        for account in ["a", "spoils", "b"] {
            lost += u32::from(server.sent(&transport, account).await == Err(FailureKind::Lost));
            rest(REST).await;
        }
    }
    assert!(lost <= 1, "{lost} requests counted for nobody");
    // All but the one have a connection each, which they keep.
    let connections = server.connections();
    for account in ["a", "b", "a", "b"] {
        assert_eq!(server.sent(&transport, account).await, Ok(500));
    }
    assert_eq!(server.connections(), connections);
}

#[tokio::test]
async fn surplus_on_a_connection_of_one_account_parts_that_one() {
    let after = Some(Duration::ZERO);
    let server = Talkative::start(Manner { surplus: GONE, after, pause: Duration::ZERO }).await;
    let transport = transport();
    assert_eq!(server.sent(&transport, "spoils").await, Ok(200));
    rest(REST).await;
    for account in ["a", "b", "c"] {
        assert_eq!(server.sent(&transport, account).await, Ok(500));
        assert_eq!(server.last(), Some(1), "they share one");
        rest(REST).await;
    }
    assert_eq!(server.sent(&transport, "spoils").await, Ok(200));
    assert_eq!(server.last(), Some(2), "it has its own");
}

#[tokio::test]
async fn surplus_amid_another_accounts_request_is_no_410_and_no_failure_of_it() {
    for surplus in [GONE, "xx"] {
        let after = Some(Duration::ZERO);
        let server = Talkative::start(Manner { surplus, after, pause: Duration::ZERO }).await;
        server.hold(&["surplus", "a"]);
        let transport = transport();
        assert_eq!(server.sent(&transport, "spoils").await, Ok(200));
        rest(REST * 2).await;
        let (amid, ()) = tokio::join!(server.sent(&transport, "a"), async {
            server.until_received(2).await;
            server.let_go("surplus");
        });
        assert_eq!(amid, Err(FailureKind::Lost));
        assert_eq!(server.connections(), 1);
        server.let_go("a");
        for _ in 0..3 {
            assert_eq!(server.sent(&transport, "a").await, Ok(500), "on a connection of its own");
        }
    }
}

#[tokio::test]
async fn surplus_amid_another_accounts_request_is_told_by_what_comes_behind_it() {
    let after = Some(Duration::ZERO);
    let server = Talkative::start(Manner { surplus: OK, after, pause: Duration::ZERO }).await;
    server.hold(&["surplus", "a", "b", "c", "d"]);
    let transport = transport();
    let first = tokio::join!(server.sent(&transport, "a"), server.sent(&transport, "b"), async {
        server.until_received(2).await;
        ["a", "b"].map(|account| server.let_go(account))
    });
    assert_eq!((first.0, first.1), (Ok(500), Ok(500)));
    rest(REST * 2).await;
    assert_eq!(server.sent(&transport, "spoils").await, Ok(200));
    rest(REST * 2).await;
    let has_taken = tokio::sync::Notify::new();
    let (takes, in_flight, sees) = tokio::join!(
        async {
            let takes = server.sent(&transport, "c").await;
            has_taken.notify_one();
            takes
        },
        async {
            // While the other connection is in use.
            server.until_received(4).await;
            server.sent(&transport, "d").await
        },
        async {
            server.until_received(5).await;
            server.let_go("surplus");
            has_taken.notified().await;
            // The answer to the first one's request comes, and not that to the second one's.
            server.let_go("c");
            server.until_answered("c").await;
            // Another account's request looks at a connection when that has rested.
            rest(REST * 2).await;
            let sees = server.sent(&transport, "e").await;
            server.let_go("d");
            sees
        }
    );
    // What one account takes so late is not told from its own. But from when it is seen on, nothing of it counts.
    assert_eq!((takes, in_flight, sees), (Ok(200), Err(FailureKind::Lost), Ok(500)));
    assert_eq!(server.connections(), 3);
    for account in ["a", "b", "c", "d"] {
        assert_eq!(server.sent(&transport, account).await, Ok(500));
    }
    assert_eq!(server.connections(), 7, "each has its own");
}

#[tokio::test]
async fn answer_410_on_a_connection_of_several_accounts_is_asked_for_again() {
    let server = Server::start([Read, ok(), Read, write(GONE), Read, write(GONE)]).await;
    let transport = transport();
    let sent = async |account: &str| {
        let endpoint = Endpoint { account: AccountId::new(account), ..endpoint(&server.url()) };
        transport.send(&attempt(endpoint)).await.result
    };
    assert_eq!(sent("a").await.map(|answer| answer.status), Ok(200));
    rest(REST).await;
    assert_eq!(sent("b").await.map_err(|failure| failure.kind), Err(FailureKind::Lost));
    assert_eq!(sent("b").await.map(|answer| answer.status), Ok(200));
    assert_eq!(sent("b").await.map(|answer| answer.status), Ok(410));
    assert_eq!(server.received().last().map(|received| received.connection), Some(1));
}
