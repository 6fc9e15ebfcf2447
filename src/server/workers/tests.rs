//! A worker with a real bus and real requests, led by a leader that these tests play by hand.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config;
use walhook_bus::{Received, Servers};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::id::Epoch;
use walhook_fleet::frame::{
    Attempts, Body, Frame, Grant, Hello, HelloState, Lead, OLDEST, Outcomes, Request, SPOKEN,
    SessionId, WireOutcome,
};
use walhook_testkit::nats::Nats;
use walhook_testkit::program::PATIENCE;

/// Longer than what a test does under one lease takes on a busy machine, and waited for once.
const LEASE: Duration = Duration::from_secs(5);

/// An endpoint that answers each request with 200 once it may.
struct Endpoint {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<String>>>,
    answers: Arc<Semaphore>,
    _tasks: JoinSet<()>,
}

impl Endpoint {
    /// It may answer so many at once.
    async fn start(answers: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (bodies, answers) = (Arc::default(), Arc::new(Semaphore::new(answers)));
        let mut tasks = JoinSet::new();
        let (log, may) = (Arc::clone(&bodies), Arc::clone(&answers));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(answer(stream, Arc::clone(&log), Arc::clone(&may)));
            }
        });
        Ok(Self { address, bodies, answers, _tasks: tasks })
    }

    async fn until_received(&self, count: usize) -> Result<()> {
        let received = async {
            while self.bodies.lock().unwrap().len() < count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, received).await.context("the request does not come")
    }
}

async fn answer(mut stream: TcpStream, bodies: Arc<Mutex<Vec<String>>>, may: Arc<Semaphore>) {
    let mut text = String::new();
    let mut buffer = [0; 4 << 10];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let (_, length) = head.split_once("content-length: ").unwrap();
        if body.len() < length.lines().next().unwrap().parse().unwrap() {
            continue;
        }
        bodies.lock().unwrap().push(body.to_owned());
        text.clear();
        let _turn = may.acquire().await.unwrap();
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    }
}

/// The leader's side, by hand.
struct Leader {
    link: Link,
    hellos: Subscription,
    inbox: Subscription,
    epoch: Epoch,
    seq: u64,
}

async fn link(nats: &Nats) -> Result<Link> {
    let options = walhook_bus::Options {
        servers: Servers::parse([&*nats.url()])?,
        credentials: walhook_bus::Credentials::None,
        tls_ca: None,
        name: "test".to_owned(),
    };
    Ok(Link { bus: Bus::connect(&options).await?, subjects: Subjects::new("walhook", "main")? })
}

impl Leader {
    async fn start(nats: &Nats) -> Result<Self> {
        let (link, epoch) = (link(nats).await?, Epoch(7));
        let hellos = link.bus.subscribe(&link.subjects.hello()).await?;
        let inbox = link.bus.subscribe(&link.subjects.inbox(epoch)).await?;
        Ok(Self { link, hellos, inbox, epoch, seq: 0 })
    }

    fn publish(&self, subject: &str, session: SessionId, seq: u64, body: Body) {
        let frame =
            Frame { version: OLDEST, epoch: self.epoch, pipeline: None, session, seq, body };
        let _while_the_bus_is_away = self.link.bus.publish(subject, None, frame.encode());
    }

    fn say_lead(&self) {
        let lead = Lead { versions: SPOKEN, lease: LEASE, egress: None, asks: true };
        let subject = self.link.subjects.lead();
        self.publish(&subject, SessionId::default(), 0, Body::Lead(lead));
    }

    fn order(&mut self, session: SessionId, body: Body) {
        self.seq += 1;
        self.publish(&self.link.subjects.worker(session), session, self.seq, body);
    }

    fn grant(&mut self, session: SessionId, hello: &Hello, outcomes_upto: u64, closed: bool) {
        let grant = Grant { stamp_us: hello.stamp_us, lease: LEASE, outcomes_upto, closed };
        self.order(session, Body::Grant(grant));
    }

    fn send(&mut self, session: SessionId, key: u64, to: &Endpoint) {
        let request = Request {
            key,
            number: 1,
            timeout: PATIENCE,
            account: AccountId::new("42"),
            endpoint: EndpointId::new("17"),
            event: "evt_01K9Z3V8E6FQ5W2N8H4R7T0XYB".parse().unwrap(),
            delivery: None,
            url: format!("http://{}/hook", to.address),
            headers: vec![("webhook-id".to_owned(), Bytes::from_static(b"evt"))],
            body: Bytes::from(format!("request {key}")),
        };
        self.order(session, Body::Attempts(Attempts { requests: vec![request] }));
    }

    /// The next `Hello` of a session other than `but`, led meanwhile.
    async fn hello(&mut self, but: Option<SessionId>) -> Result<(SessionId, Hello)> {
        let heard = async {
            loop {
                self.say_lead();
                let next = timeout(Duration::from_millis(100), self.hellos.next()).await;
                let Ok(Some(Received::Frame { payload, .. })) = next else { continue };
                let frame = Frame::decode(payload, SPOKEN).unwrap();
                if let Body::Hello(hello) = frame.body
                    && Some(frame.session) != but
                    && hello.state == HelloState::Serving
                {
                    return (frame.session, hello);
                }
            }
        };
        timeout(PATIENCE, heard).await.context("no worker says hello")
    }

    /// Joins a worker: its session, which may begin requests.
    async fn join(&mut self, but: Option<SessionId>) -> Result<SessionId> {
        let (session, hello) = self.hello(but).await?;
        self.seq = 0;
        self.grant(session, &hello, 0, false);
        Ok(session)
    }

    /// The next outcome of a session.
    async fn outcome(&mut self, of: SessionId) -> Result<(u64, WireOutcome)> {
        let heard = async {
            loop {
                match self.inbox.next().await {
                    Some(Received::Frame { payload, .. }) => {
                        let frame = Frame::decode(payload, SPOKEN)?;
                        if let Body::Outcomes(Outcomes { first, mut outcomes }) = frame.body
                            && frame.session == of
                        {
                            return Ok((first, outcomes.remove(0)));
                        }
                    }
                    Some(Received::NoResponders { .. }) => {}
                    None => bail!("the bus is gone"),
                }
            }
        };
        timeout(PATIENCE, heard).await.context("no outcome comes")?
    }
}

struct Running {
    drain: CancellationToken,
    health: tokio::sync::watch::Receiver<crate::server::health::Health>,
    task: JoinSet<Result<(), Stop>>,
}

async fn worker(nats: &Nats) -> Result<Running> {
    let text = "[workers]\nurl = \"nats://127.0.0.1\"\n[egress]\nallow = [\"127.0.0.0/8\"]\n";
    let config = config::parse_worker(std::path::Path::new("w.toml"), text, [])?;
    let (tell, health) = Teller::new("main");
    tell.set_role(Role::Worker);
    let serves = Serves {
        subject: "walhook".to_owned(),
        link: link(nats).await?,
        transport: Arc::new(config.transport()?),
        slots: (8, 8),
        byte_budget: 1 << 20,
        egress: egress_digest(&config.egress),
        metrics: Arc::new(Metrics::new("main", [])?),
        tell,
    };
    let (drain, mut task) = (CancellationToken::new(), JoinSet::new());
    task.spawn(serve(serves, drain.clone()));
    Ok(Running { drain, health, task })
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_sends_what_it_is_ordered_to_and_drains_when_all_of_it_was_heard() -> Result<()> {
    let nats = Nats::start("").await?;
    let endpoint = Endpoint::start(1).await?;
    let (mut leader, mut worker) = (Leader::start(&nats).await?, worker(&nats).await?);
    let session = leader.join(None).await?;
    leader.send(session, 1, &endpoint);
    let (first, WireOutcome { key, outcome, .. }) = leader.outcome(session).await?;
    assert_eq!((first, key), (0, 1));
    let outcome = outcome.context("it was begun")?;
    assert!(outcome.delivered(), "{outcome:?}");
    assert_eq!(*endpoint.bodies.lock().unwrap(), ["request 1"]);
    let ready = worker.health.wait_for(|health| health.serving.lease_until.is_some()).await?;
    assert_eq!(ready.readiness(tokio::time::Instant::now()), Ok(()));
    drop(ready);

    // It ends what it has begun, and nothing that comes after; the leader hears of both.
    endpoint.answers.forget_permits(1);
    leader.send(session, 2, &endpoint);
    endpoint.until_received(2).await?;
    worker.drain.cancel();
    worker.health.wait_for(|health| health.serving.draining).await?;
    leader.send(session, 3, &endpoint);
    endpoint.answers.add_permits(1);
    let mut told = 1;
    let acknowledged = async {
        while worker.task.try_join_next().is_none() {
            leader.say_lead();
            while let Some(received) = leader.inbox.try_next() {
                let Received::Frame { payload, .. } = received else { continue };
                if let Body::Outcomes(Outcomes { first, outcomes }) =
                    Frame::decode(payload, SPOKEN)?.body
                {
                    told = first + u64::try_from(outcomes.len())?;
                }
            }
            if let Some(Received::Frame { payload, .. }) = leader.hellos.try_next()
                && let Body::Hello(hello) = Frame::decode(payload, SPOKEN)?.body
            {
                leader.grant(session, &hello, told, hello.state != HelloState::Serving);
            }
            sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, acknowledged).await.context("it does not end")??;
    assert_eq!(told, 2, "the second one's outcome");
    assert_eq!(*endpoint.bodies.lock().unwrap(), ["request 1", "request 2"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_whose_lease_is_over_begins_nothing_and_joins_anew() -> Result<()> {
    let nats = Nats::start("").await?;
    let endpoint = Endpoint::start(8).await?;
    let (mut leader, _worker) = (Leader::start(&nats).await?, worker(&nats).await?);
    let session = leader.join(None).await?;
    leader.send(session, 1, &endpoint);
    leader.outcome(session).await?;
    // No grant comes: it gives the session up by itself.
    let (other, _) = leader.hello(Some(session)).await?;
    leader.send(session, 2, &endpoint);
    assert_ne!(other, session);
    let other = leader.join(Some(session)).await?;
    leader.send(other, 3, &endpoint);
    leader.outcome(other).await?;
    assert_eq!(*endpoint.bodies.lock().unwrap(), ["request 1", "request 3"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_whose_bus_died_ends_its_session_and_tells_outcomes_when_it_is_back() -> Result<()> {
    let mut nats = Nats::start("").await?;
    let endpoint = Endpoint::start(0).await?;
    let (mut leader, mut worker) = (Leader::start(&nats).await?, worker(&nats).await?);
    let session = leader.join(None).await?;
    leader.send(session, 1, &endpoint);
    endpoint.until_received(1).await?;
    nats.kill()?;
    worker.health.wait_for(|health| health.serving.bus_away.is_some()).await?;
    endpoint.answers.add_permits(8);
    nats.start_again().await?;
    let other = leader.join(Some(session)).await?;
    leader.send(other, 2, &endpoint);
    let (_, WireOutcome { key, outcome, .. }) = leader.outcome(other).await?;
    assert!(key == 2 && outcome.context("it was begun")?.delivered());
    let (_, WireOutcome { key, outcome, .. }) = leader.outcome(session).await?;
    assert!(key == 1 && outcome.context("it was begun")?.delivered());
    assert_eq!(*endpoint.bodies.lock().unwrap(), ["request 1", "request 2"]);
    Ok(())
}

#[test]
fn digest_of_egress_is_of_what_it_means() {
    let of = |text: &str| {
        let text = format!("[workers]\nurl = \"nats://127.0.0.1\"\n[egress]\n{text}");
        let config = config::parse_worker(std::path::Path::new("w.toml"), &text, []).unwrap();
        egress_digest(&config.egress)
    };
    let plain = of("");
    assert_eq!(plain, of("deny = []"));
    assert_eq!(
        of("deny = [\"10.1.2.3/8\", \"192.0.2.0/24\"]"),
        of("deny = [\"192.0.2.0/24\", \"10.0.0.0/8\"]")
    );
    let proxy = |password: &str| of(&format!("proxy = \"http://u:{password}@p:1\""));
    assert_eq!(proxy("a"), proxy("b"));
    let others = [
        "https_only = true",
        "allow = [\"10.0.0.0/8\"]",
        "deny = [\"10.0.0.0/8\"]",
        "only_hosts = [\"a\"]",
    ];
    let mut digests: Vec<_> = others.map(of).to_vec();
    digests.extend([plain, proxy("a")]);
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 6);
}

#[tokio::test]
async fn leader_hears_who_is_there_before_all_else_that_workers_say() -> Result<()> {
    let nats = Nats::start("").await?;
    let (leader, worker) = (Leader::start(&nats).await?, link(&nats).await?);
    let mut last = leader.link.bus.subscribe("last").await?;
    assert!(leader.link.bus.flush(PATIENCE).await && worker.bus.flush(PATIENCE).await);
    // What is written may not be read yet: the server has taken all subscriptions when this is back.
    leader.link.bus.publish("last", None, "".into())?;
    timeout(PATIENCE, last.next()).await?.context("the bus is gone")?;
    let (_tell, reports) = tokio::sync::mpsc::channel(1);
    let watch = leader.link.bus.watch();
    let Leader { hellos, inbox, epoch, link: Link { subjects, .. }, .. } = leader;
    let mut arrivals = arrivals::Arrivals { watch, reports, hellos, inbox };
    for _ in 0..2 {
        // As many outcomes as are taken at once, and then a word of another worker.
        for _ in 0..256 {
            let session = SessionId(1);
            worker.bus.publish(&subjects.leader(epoch, session), None, "outcome".into())?;
        }
        worker.bus.publish(&subjects.hello(), None, "hello".into())?;
        worker.bus.publish("last", None, "".into())?;
        timeout(PATIENCE, last.next()).await?.context("the bus is gone")?;
        let came = async {
            loop {
                if let arrivals::Came::Heard(Received::Frame { payload, .. }) =
                    arrivals.next().await
                {
                    return payload;
                }
            }
        };
        assert_eq!(timeout(PATIENCE, came).await?, "hello");
        worker.bus.publish(&subjects.hello(), None, "hello".into())?;
        worker.bus.publish("last", None, "".into())?;
        timeout(PATIENCE, last.next()).await?.context("the bus is gone")?;
        let Some(arrivals::Came::Heard(Received::Frame { payload, .. })) = arrivals.try_next()
        else {
            bail!("nothing has come")
        };
        assert_eq!(payload, "hello");
    }
    Ok(())
}
