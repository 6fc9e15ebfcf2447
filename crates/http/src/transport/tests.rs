//! The transport against real sockets. The servers are written by hand: an HTTP library would be too
//! polite to misbehave.

mod answers;
mod apart;
mod carry;
mod connections;
mod dns;
mod failures;
mod floods;
mod http2;
mod nginx;
mod odd;
mod proxy;
mod request;
mod resends;
mod spans;
mod surplus;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::error::DETAIL_MAX;
use super::*;
use walhook_core::attempt::{Deliveries, DeliveryId};
use walhook_core::endpoint::{Endpoint, Secret};
use walhook_core::event::{AccountId, EndpointId, Event, Operation, RowKeys};
use walhook_core::lsn::Lsn;
use walhook_core::position::{EventId, Position, WalPosition};

/// `memory.limit`, in bytes.
const MEMORY: usize = 256 << 20;

/// What no exchange of a test needs even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// For what is to time out.
const SHORT: Duration = Duration::from_millis(500);

/// For exchanges of which some are to time out, and others have an answer although the machine is busy.
const HASTE: Duration = Duration::from_millis(1_500);

/// What must never stand in a detail; every URL, secret and header of these tests holds it.
const HUSH: &str = "hush";

/// A request as it came over the wire.
#[derive(Debug, Clone)]
struct Received {
    /// Counts connections from 0.
    connection: usize,
    head: String,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| *n == name).map(|(_, value)| value).next()
    }
}

/// What a server does on each connection, in this order; then it waits for the client to close.
#[derive(Debug, Clone)]
enum Step {
    /// Reads one request.
    Read,
    Write(String),
    /// Writes this again and again until the client has gone.
    WriteForever(&'static str),
    /// Writes a byte from time to time, for ever.
    Drip,
    Close,
}
use Step::{Close, Drip, Read, WriteForever};

fn write(text: impl Into<String>) -> Step {
    Step::Write(text.into())
}

/// A server that runs until it is dropped.
struct Server {
    addr: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    /// Bytes that [`WriteForever`] got rid of, once the client has gone.
    written: Arc<Mutex<Option<usize>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(script: impl Into<Vec<Step>>) -> Self {
        let script = script.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::new(Mutex::new(None));
        let mut tasks = JoinSet::new();
        let (log, count) = (Arc::clone(&received), Arc::clone(&written));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, log, count) = (script.clone(), Arc::clone(&log), Arc::clone(&count));
                connections
                    .spawn(async move { play(stream, connection, script, log, count).await });
            }
        });
        Self { addr, received, written, _tasks: tasks }
    }

    /// One that gives this answer to all requests.
    async fn answering(answer: &str) -> Self {
        Self::start([Read, write(answer)]).await
    }

    fn url(&self) -> String {
        format!("http://{}/hook?token={HUSH}", self.addr)
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    async fn written(&self) -> usize {
        for _ in 0..PATIENCE.as_millis() {
            if let Some(written) = *self.written.lock().unwrap() {
                return written;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the client still reads");
    }
}

/// An address where nobody listens, and nobody else comes to listen.
struct Nobody(TcpSocket);

impl Nobody {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self(socket)
    }

    fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

async fn play(
    mut stream: TcpStream,
    connection: usize,
    script: Vec<Step>,
    received: Arc<Mutex<Vec<Received>>>,
    written: Arc<Mutex<Option<usize>>>,
) {
    for step in script {
        match step {
            Read => match read_request(&mut stream).await {
                Some((head, body)) => {
                    received.lock().unwrap().push(Received { connection, head, body });
                }
                None => return,
            },
            Step::Write(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            WriteForever(text) => {
                let mut sum = 0;
                while stream.write_all(text.as_bytes()).await.is_ok() {
                    sum += text.len();
                }
                *written.lock().unwrap() = Some(sum);
            }
            Drip => {
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Close => return,
        }
    }
    let _until_closed = stream.read_to_end(&mut Vec::new()).await;
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let (_, length) = head.split_once("content-length: ").unwrap();
    let mut body = vec![0; length.lines().next().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

fn ok() -> Step {
    write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
}

fn requests() -> Requests {
    Requests {
        header_prefix: "walhook".to_owned(),
        user_agent: concat!("walhook/", env!("CARGO_PKG_VERSION")).to_owned(),
        timeout: PATIENCE,
        connect_timeout: PATIENCE,
    }
}

/// Loopback is allowed, as nothing else is there to talk to.
fn egress() -> Egress {
    Egress {
        policy: Policy { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Policy::default() },
        proxy: None,
    }
}

fn transport() -> Transport {
    Transport::new(&requests(), &egress(), MEMORY).unwrap()
}

/// As [`transport`], with so many connections.
fn transport_with(bounds: Bounds) -> Transport {
    let tls = tls_config([]).unwrap();
    Transport::with(&requests(), &egress(), MEMORY, bounds, tls, system_lookup()).unwrap()
}

fn hasty() -> Transport {
    Transport::new(&Requests { timeout: HASTE, ..requests() }, &egress(), MEMORY).unwrap()
}

pub(super) fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        id: EndpointId::new("1"),
        account: AccountId::new("1"),
        url: url.to_owned(),
        event_types: vec!["*".to_owned()],
        secrets: vec![Secret::new(HUSH)],
        enabled: true,
        headers: vec![("authorization".to_owned(), format!("Bearer {HUSH}"))],
        max_in_flight: None,
        rate_per_second: None,
        invalid: None,
    }
}

pub(super) fn attempt(endpoint: Endpoint) -> Attempt {
    let wal = WalPosition { commit_lsn: Lsn(2), change_lsn: Lsn(1), relation: 3, n: 0 };
    let position = Position::Wal(wal);
    let event = Event {
        id: EventId::derive(1, &position, "t", 1_763_919_960_123_456),
        position,
        event_type: "t".into(),
        account: AccountId::new("1"),
        operation: Operation::Insert,
        commit_time_us: 1_763_919_960_123_456,
        keys: RowKeys::new(),
        row: Bytes::from_static("\"data\":{\"id\":1,\"name\":\"Zoë\"}".as_bytes()),
    };
    Attempt {
        endpoint: Arc::new(endpoint),
        deliveries: Deliveries::from(Delivery {
            id: DeliveryId(1),
            event: Arc::new(event),
            number: 1,
            asked: None,
        }),
    }
}

async fn send(transport: &Transport, url: &str) -> Result<Answer, Failure> {
    let outcome = transport.send(&attempt(endpoint(url))).await;
    if let Err(failure) = &outcome.result {
        let Failure { kind, detail } = failure;
        assert!(!detail.is_empty() && detail.len() <= DETAIL_MAX, "{kind:?}: {detail}");
        assert!(!detail.contains(HUSH), "{kind:?}: {detail}");
    }
    outcome.result
}

async fn answer(transport: &Transport, url: &str) -> Answer {
    send(transport, url).await.unwrap()
}

/// The failure's detail, once its kind is checked.
async fn refusal(transport: &Transport, url: &str, kind: FailureKind) -> String {
    let failure = send(transport, url).await.unwrap_err();
    assert_eq!(failure.kind, kind, "{url}: {}", failure.detail);
    failure.detail
}
