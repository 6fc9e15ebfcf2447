//! How many connections are made, and how long they are kept.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use tokio::io::BufReader;
use tokio::sync::Semaphore;

use super::super::pool::IDLE_FOR;
use super::*;

/// A receiver that answers at a pace, and counts.
struct Paced {
    addr: SocketAddr,
    pace: Arc<Pace>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Pace {
    /// From a request to its answer; each third one takes twice as long.
    delay_us: AtomicU64,
    /// Whether each answer says that it closes the connection.
    closes: AtomicBool,
    /// Connections that must be there before a request is answered.
    crowd: AtomicUsize,
    accepted: AtomicUsize,
    open: AtomicUsize,
    answered: AtomicUsize,
}

impl Paced {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (pace, mut tasks) = (Arc::new(Pace::default()), JoinSet::new());
        let counts = Arc::clone(&pace);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let pace = Arc::clone(&counts);
                pace.accepted.fetch_add(1, Relaxed);
                pace.open.fetch_add(1, Relaxed);
                connections.spawn(async move {
                    serve(BufReader::new(stream), &pace).await;
                    pace.open.fetch_sub(1, Relaxed);
                });
            }
        });
        Self { addr, pace, _tasks: tasks }
    }

    fn url(&self) -> String {
        format!("http://{}/hook?token={HUSH}", self.addr)
    }

    fn accepted(&self) -> usize {
        self.pace.accepted.load(Relaxed)
    }

    fn open(&self) -> usize {
        self.pace.open.load(Relaxed)
    }

    async fn wait_until_open(&self, at_most: usize) {
        let started = Instant::now();
        while self.open() > at_most {
            assert!(started.elapsed() < PATIENCE, "{} are open", self.open());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn serve(mut stream: BufReader<TcpStream>, pace: &Pace) {
    while read_request(&mut stream).await.is_some() {
        let number = pace.answered.fetch_add(1, Relaxed);
        while pace.accepted.load(Relaxed) < pace.crowd.load(Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let delay = pace.delay_us.load(Relaxed) << u32::from(number.is_multiple_of(3));
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        let closes = pace.closes.load(Relaxed);
        let connection = if closes { "connection: close\r\n" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\n{connection}content-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() || closes {
            return;
        }
    }
}

/// Sends so many requests, so many at a time, in turn for a hundred accounts, and says how often one was
/// sent again.
async fn deliver(transport: &Transport, url: &str, requests: usize, at_once: usize) -> u32 {
    let accounts: Vec<Arc<Endpoint>> = (0..100)
        .map(|n| {
            let account = AccountId::new(n.to_string());
            Arc::new(Endpoint { account, ..endpoint(url) })
        })
        .collect();
    let (mut tasks, slots) = (JoinSet::new(), Arc::new(Semaphore::new(at_once)));
    for n in 0..requests {
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        let attempt =
            Attempt { endpoint: Arc::clone(&accounts[n % 100]), ..attempt(endpoint(url)) };
        let transport = transport.clone();
        tasks.spawn(async move {
            let outcome = transport.send(&attempt).await;
            drop(slot);
            assert!(outcome.delivered(), "{outcome:?}");
            outcome.resends
        });
    }
    tasks.join_all().await.into_iter().sum()
}

#[tokio::test]
async fn connections_of_a_shared_host_are_kept_as_many_as_are_in_flight() {
    let server = Paced::start().await;
    server.pace.delay_us.store(1_000, Relaxed);
    let transport = transport();
    deliver(&transport, &server.url(), 2_000, 256).await;
    let before = server.accepted();
    assert!(before <= 2 * 256, "{before}");
    let resends = deliver(&transport, &server.url(), 5_000, 256).await;
    let made = server.accepted() - before;
    assert!(made <= 50, "{made} new connections for 5,000 deliveries");
    assert_eq!(resends, 0);
}

#[tokio::test]
async fn connections_that_each_answer_closes_are_one_a_delivery_and_leave_nothing() {
    let server = Paced::start().await;
    server.pace.closes.store(true, Relaxed);
    let transport = transport();
    let resends = deliver(&transport, &server.url(), 500, 20).await;
    assert_eq!((server.accepted(), resends), (500, 0));
    server.wait_until_open(0).await;
    assert_eq!(transport.held_bytes(), 0);
}

#[tokio::test]
async fn connections_of_a_host_follow_its_pace() {
    let server = Paced::start().await;
    server.pace.crowd.store(200, Relaxed);
    let (transport, started) = (transport(), Instant::now());
    deliver(&transport, &server.url(), 200, 200).await;
    assert_eq!(server.open(), 200);

    // Fast again, it needs four and those that rest: no new one, and the others are closed although it is busy.
    server.pace.delay_us.store(1_000, Relaxed);
    let busy = Instant::now();
    while server.open() > 100 {
        deliver(&transport, &server.url(), 100, 4).await;
        assert!(busy.elapsed() < PATIENCE, "{} are open", server.open());
    }
    assert!(started.elapsed() >= IDLE_FOR, "{:?}", started.elapsed());
    assert_eq!(server.accepted(), 200);

    // Quiet, it needs none.
    server.wait_until_open(0).await;
    assert_eq!(transport.held_bytes(), 0);
}

#[tokio::test]
async fn connections_are_no_more_than_there_are_descriptors_however_many_hosts_there_are() {
    let mut servers = Vec::new();
    for _ in 0..40 {
        servers.push(Paced::start().await);
    }
    let transport = transport_with(Bounds { open: 10, idle: 64 });
    for round in 1..=3 {
        for server in &servers {
            deliver(&transport, &server.url(), 1, 1).await;
            assert_eq!(server.accepted(), round);
        }
    }
    let open = || servers.iter().map(Paced::open).sum::<usize>();
    let started = Instant::now();
    while open() > 10 {
        assert!(started.elapsed() < PATIENCE, "{} are open", open());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What is in flight is never refused.
    let server = &servers[0];
    server.pace.delay_us.store(100_000, Relaxed);
    deliver(&transport, &server.url(), 30, 30).await;
    assert!(server.accepted() >= 30);
}

#[tokio::test]
async fn connection_that_its_receiver_closed_is_not_used_again() {
    // It says nothing of it, but has closed before the next request begins.
    let server = Server::start([Read, ok(), Close]).await;
    let transport = transport();
    for _ in 0..20 {
        let outcome = transport.send(&attempt(endpoint(&server.url()))).await;
        assert!(outcome.delivered(), "{outcome:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(server.received().len(), 20);
}
