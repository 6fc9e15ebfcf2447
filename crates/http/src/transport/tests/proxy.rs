//! Through a proxy: a real one, that opens tunnels by CONNECT.

use tokio::io::copy_bidirectional;

use super::dns::{lookup, naming};
use super::tls::{authority, params, serve, trusting_with};
use super::*;

/// What a proxy answers to a head, where it opens no tunnel: then it closes the connection.
type Answer = fn(&str) -> Option<&'static str>;

const REFUSED: &str = "HTTP/1.1 502 Bad Gateway\r\n\r\n";

/// Stands for no answer, on a connection that stays.
const HANGS: &str = "hangs";

/// Opens every tunnel that it is asked for, to that port of this machine, but where it has another answer.
struct TunnelServer {
    addr: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    /// The heads of what it was asked.
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl TunnelServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(|_| None));
        let (log, other) = (Arc::clone(&asked), Arc::clone(&answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (log, other) = (Arc::clone(&log), Arc::clone(&other));
                tunnels.spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    let head = String::from_utf8(head).unwrap();
                    let target = head.split(' ').nth(1).unwrap();
                    let port = target.parse::<SocketAddr>().map(|address| address.port());
                    let answer = other.lock().unwrap()(&head);
                    log.lock().unwrap().push(head);
                    if answer == Some(HANGS) {
                        return std::future::pending().await;
                    }
                    if let Some(answer) = answer {
                        let _gone = stream.write_all(answer.as_bytes()).await;
                        return;
                    }
                    let mut endpoint =
                        TcpStream::connect(("127.0.0.1", port.unwrap())).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 Connected\r\nvia: x\r\n\r\n").await.unwrap();
                    let _until_one_closes = copy_bidirectional(&mut stream, &mut endpoint).await;
                });
            }
        });
        Self { addr, answer, asked, _tasks: tasks }
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn through(proxy: SocketAddr) -> Egress {
    let url = format!("http://{HUSH}-user:{HUSH}-password@{proxy}");
    Egress { proxy: Some(Secret::new(url)), ..egress() }
}

#[tokio::test]
async fn proxy_is_asked_for_the_checked_address_while_host_and_certificate_are_the_names() {
    let proxy = TunnelServer::start().await;
    let names = [("hooks.example", &["127.0.0.1"][..])];

    let plain = Server::start([Read, ok(), Read, ok()]).await;
    let transport = naming(&names, &through(proxy.addr));
    let url = format!("http://hooks.example:{}/hook?token={HUSH}", plain.addr.port());
    for _ in 0..2 {
        assert_eq!(answer(&transport, &url).await.status, 200);
    }
    let received = plain.received();
    assert_eq!(received[0].header("host"), Some(&*format!("hooks.example:{}", plain.addr.port())));
    assert!(received[0].head.starts_with("POST /hook?token=hush HTTP/1.1\r\n"));
    assert_eq!(received[1].connection, 0, "the tunnel is used again");
    assert!(!received[0].head.contains("proxy-authorization"), "that is for the proxy alone");

    let authority = authority();
    let secure = serve(Some(&authority), params("hooks.example"), &["h2"]).await;
    let url = secure.url.replace("localhost", "hooks.example");
    let transport = trusting_with(&authority, &names, &through(proxy.addr));
    assert_eq!(answer(&transport, &url).await.status, 200);

    let asked = proxy.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[0].starts_with(&format!("CONNECT {} HTTP/1.1\r\n", plain.addr)), "{}", asked[0]);
    assert!(asked[1].starts_with("CONNECT 127.0.0.1:"), "{}", asked[1]);
    let basic = "proxy-authorization: Basic aHVzaC11c2VyOmh1c2gtcGFzc3dvcmQ=\r\n";
    assert!(asked.iter().all(|head| head.contains(basic) && !head.contains("hooks.example")));
}

#[tokio::test]
async fn proxy_is_not_asked_for_an_address_that_is_forbidden() {
    let proxy = TunnelServer::start().await;
    let names = [("private.example", &["10.0.0.1"][..])];
    let transport = naming(&names, &through(proxy.addr));
    for url in ["https://private.example/", "http://10.0.0.1/", "http://[::ffff:10.0.0.1]/"] {
        let detail = refusal(&transport, url, FailureKind::Forbidden).await;
        assert!(detail.contains("egress.allow"), "{detail}");
    }
    assert_eq!(proxy.asked().len(), 0);
}

#[tokio::test]
async fn proxy_that_opens_no_tunnel_to_anybody_is_a_want_of_ours_with_its_reason() {
    let denied = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
    for (script, expected) in [
        (vec![write(denied)], "407 Proxy Authentication Required; give the user and password"),
        (vec![write("HTTP/1.1 403 Forbidden\r\n\r\n")], "it answered 403 Forbidden"),
        (vec![write("HTTP/1.1 502 Bad\u{1b}[31m Gateway\r\n\r\n")], "502 Bad\u{FFFD}[31m Gateway"),
        (vec![write("SSH-2.0-x\r\n\r\n")], "not HTTP"),
        (vec![write("HTTP/1.1 200 OK\r\nx: "), WriteForever("xxxxxxxx")], "does not end"),
        (vec![write("HTTP/1.1 200 OK\r\n\r\nhello")], "more than its answer"),
        (vec![write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlogin")], "a page of its own"),
        (vec![write("HTTP/1.1 2"), Close], "closed the connection"),
        (vec![write("HTTP/1.1 200 OK\r\nx: "), Drip], "has not answered within 350ms"),
        (vec![], "has not answered within 350ms"),
    ] {
        let is_silent = expected.starts_with("has not answered");
        let proxy = Server::start(script).await;
        let connect_timeout = if is_silent { SHORT } else { PATIENCE };
        let requests = Requests { connect_timeout, ..requests() };
        let transport = Transport::new(&requests, &through(proxy.addr), MEMORY).unwrap();
        let detail = refusal(&transport, "https://127.0.0.1:9/", FailureKind::Proxy).await;
        assert!(detail.contains(expected), "{detail}");
        let trouble = transport.proxy_trouble().unwrap();
        assert!(trouble.reason.contains(expected) && !trouble.reason.contains('\u{1b}'));
        assert!(!trouble.reason.contains(HUSH));
    }
    let nobody = Nobody::new();
    let transport = Transport::new(&requests(), &through(nobody.addr()), MEMORY).unwrap();
    let detail = refusal(&transport, "http://127.0.0.1:9/", FailureKind::Proxy).await;
    assert!(detail.contains("cannot reach it") && detail.contains("refused"), "{detail}");
}

/// The first of two addresses gets no tunnel.
fn first_gets(head: &str, answer: &'static str) -> Option<&'static str> {
    head.starts_with("CONNECT 127.0.0.3:").then_some(answer)
}

#[tokio::test]
async fn proxy_is_asked_for_the_next_address_when_one_gets_no_tunnel() {
    let answers: [Answer; 3] = [
        |head| first_gets(head, REFUSED),
        |head| first_gets(head, ""),
        |head| first_gets(head, HANGS),
    ];
    let endpoint = Server::start([Read, ok()]).await;
    let names = [("two.example", &["127.0.0.3", "127.0.0.1"][..])];
    let url = format!("http://two.example:{}/", endpoint.addr.port());
    for answers in answers {
        let proxy = TunnelServer::start().await;
        proxy.answers(answers);
        let transport = naming(&names, &through(proxy.addr));
        assert_eq!(answer(&transport, &url).await.status, 200);
        let asked = proxy.asked();
        assert!(asked[0].starts_with("CONNECT 127.0.0.3:") && asked.len() == 2, "{asked:?}");
        assert_eq!(transport.look_for_tunnel(&url).await, Some(Ok(())));
    }
}

#[tokio::test]
async fn proxy_that_is_silent_for_all_addresses_is_asked_whether_it_lives() {
    let proxy = TunnelServer::start().await;
    let requests = Requests { connect_timeout: 4 * SHORT, ..requests() };
    let names = [("two.example", &["127.0.0.3", "127.0.0.4"][..])];
    let tls = tls_config([]).unwrap();
    let (egress, bounds) = (through(proxy.addr), bounds(MEMORY));
    let transport =
        Transport::with(&requests, &egress, MEMORY, bounds, tls, lookup(&names)).unwrap();
    proxy
        .answers(|head| Some(if head.starts_with("CONNECT 127.0.0.4:") { REFUSED } else { HANGS }));
    let url = "http://two.example:9/";
    let detail = refusal(&transport, url, FailureKind::Proxy).await;
    assert!(detail.contains("127.0.0.4:9: it answered 502"), "it answered for one: {detail}");
    assert!(!proxy.asked().iter().any(|head| head.starts_with("OPTIONS")));

    proxy.answers(|_| Some(HANGS));
    let asked = proxy.asked().len();
    let detail = loop {
        // While it fails it is asked once a second.
        let detail = refusal(&transport, url, FailureKind::Proxy).await;
        if proxy.asked().len() > asked {
            break detail;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(detail.contains("has not answered within 1.4s"), "{detail}");
    let asked = proxy.asked().split_off(asked);
    assert!(asked.len() == 3 && asked[2].starts_with("OPTIONS"), "{asked:?}");
}

/// No tunnel to 127.0.0.2 and so on: all but the first.
fn only_the_first(head: &str) -> Option<&'static str> {
    (!head.starts_with("CONNECT 127.0.0.1:")).then_some(REFUSED)
}

/// Has tunnels opened to these hosts, of 127.0.0.1 and so on.
async fn open_for(hosts: impl IntoIterator<Item = usize>, transport: &Transport, to: &Server) {
    for n in hosts {
        let url = format!("http://127.0.0.{n}:{}/", to.addr.port());
        assert_eq!(answer(transport, &url).await.status, 200);
    }
}

#[tokio::test]
async fn endpoint_is_to_blame_that_the_proxy_reaches_others_and_not_it() {
    let (proxy, endpoint) = (TunnelServer::start().await, Server::start([Read, ok()]).await);
    let transport = Transport::new(&requests(), &through(proxy.addr), MEMORY).unwrap();
    open_for(1..=3, &transport, &endpoint).await;
    // More hosts than it takes to wonder, and nothing else meanwhile: those that it served are asked for, of which
    // one still works.
    proxy.answers(only_the_first);
    for n in 2..=9 {
        let url = format!("http://127.0.0.{n}:9/");
        let detail = refusal(&transport, &url, FailureKind::Connect).await;
        assert!(detail.contains("502 Bad Gateway"), "{detail}");
        assert_eq!(transport.proxy_trouble(), None);
    }
    let probes = proxy.asked().iter().filter(|head| only_the_first(head).is_none()).count();
    assert!((2..=5).contains(&probes), "{probes} tunnels to the one that works");

    // One that is silent is not to be confused with a proxy that is: that answers.
    proxy.answers(|head| match head.starts_with("OPTIONS") {
        true => Some("HTTP/1.1 400 Bad Request\r\n\r\n"),
        false => only_the_first(head).map(|_| ""),
    });
    for n in 2..=5 {
        let url = format!("http://127.0.0.{n}:9/");
        let detail = refusal(&transport, &url, FailureKind::Connect).await;
        assert!(detail.contains("closed the connection"), "{detail}");
    }
    assert_eq!(transport.proxy_trouble(), None);
}

#[tokio::test]
async fn endpoints_are_to_blame_when_the_only_one_that_worked_dies_as_well() {
    let (proxy, endpoint) = (TunnelServer::start().await, Server::start([Read, ok()]).await);
    let transport = Transport::new(&requests(), &through(proxy.addr), MEMORY).unwrap();
    open_for([1], &transport, &endpoint).await;
    proxy.answers(|_| Some(REFUSED));
    for n in (1..=9).chain(1..=9) {
        refusal(&transport, &format!("http://127.0.0.{n}:9/"), FailureKind::Connect).await;
        assert_eq!(transport.proxy_trouble(), None);
    }
}

#[tokio::test]
async fn endpoint_that_the_proxy_reaches_gets_its_tunnel_at_once_beside_dead_ones_after_a_start() {
    let (proxy, endpoint) = (TunnelServer::start().await, Server::start([Read, ok()]).await);
    let transport = Transport::new(&requests(), &through(proxy.addr), MEMORY).unwrap();
    proxy.answers(only_the_first);
    for n in 2..=40 {
        refusal(&transport, &format!("http://127.0.0.{n}:9/"), FailureKind::Proxy).await;
    }
    assert!(transport.proxy_trouble().is_some(), "nobody knows better yet");
    assert_eq!(answer(&transport, &endpoint.url()).await.status, 200);
    assert_eq!(transport.proxy_trouble(), None);
    refusal(&transport, "http://127.0.0.2:9/", FailureKind::Connect).await;
}

#[tokio::test]
async fn proxy_that_answers_with_a_page_is_to_blame_though_one_host_alone_is_asked_for() {
    let (proxy, endpoint) = (TunnelServer::start().await, Server::start([Read, ok()]).await);
    let transport = Transport::new(&requests(), &through(proxy.addr), MEMORY).unwrap();
    open_for([1], &transport, &endpoint).await;
    proxy.answers(|_| Some("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nlogin"));
    let detail = refusal(&transport, "http://127.0.0.1:9/", FailureKind::Proxy).await;
    assert!(detail.contains("wants a log-in first"), "{detail}");
    assert!(transport.proxy_trouble().is_some());
}

#[tokio::test]
async fn proxy_that_opens_no_tunnel_any_more_is_left_alone_and_well_again_with_the_first() {
    let (proxy, endpoint) = (TunnelServer::start().await, Server::start([Read, ok()]).await);
    let transport = Transport::new(&requests(), &through(proxy.addr), MEMORY).unwrap();
    open_for(1..=3, &transport, &endpoint).await;
    proxy.answers(|_| Some(REFUSED));
    let began = Instant::now();
    let mut last = None;
    for n in 0..200 {
        let url = format!("http://127.0.0.{}:9/", 1 + n % 9);
        last = send(&transport, &url).await.err().map(|failure| failure.kind);
    }
    assert_eq!(last, Some(FailureKind::Proxy));
    assert!(transport.proxy_trouble().is_some());
    // For eight of those that wait, and the three that it served.
    let most = 30 + 11 * usize::try_from(began.elapsed().as_secs()).unwrap();
    assert!(proxy.asked().len() <= most, "{} of at most {most}", proxy.asked().len());

    proxy.answers(|_| None);
    let other = Server::start([Read, ok()]).await;
    let deadline = Instant::now() + PATIENCE;
    while send(&transport, &other.url()).await.is_err() {
        assert!(Instant::now() < deadline, "it does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(transport.proxy_trouble(), None);
}
