//! Names that lead elsewhere than they should.

use std::net::IpAddr;

use super::*;
use crate::resolve::Found;

/// A transport for which these names resolve to these addresses, and no other name resolves.
pub(super) fn naming(names: &[(&str, &[&str])], egress: &Egress) -> Transport {
    Transport::with(
        &requests(),
        egress,
        MEMORY,
        bounds(MEMORY),
        tls_config([]).unwrap(),
        lookup(names),
    )
    .unwrap()
}

pub(super) fn lookup(names: &[(&str, &[&str])]) -> Arc<Lookup> {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let names: Vec<(String, Vec<IpAddr>)> =
        names.iter().map(|(name, texts)| ((*name).to_owned(), addresses(texts))).collect();
    Arc::new(move |name| {
        let found = names.iter().find(|(known, _)| *known == name);
        let served = |addresses| Found { addresses, by_servers: true };
        let found = found.map(|(_, addresses)| served(addresses.clone()));
        Box::pin(std::future::ready(found.ok_or(std::io::ErrorKind::NotFound.into())))
    })
}

/// 127.0.0.1 plays the public address, 127.0.0.2 the private one. Only what asks the system for a
/// connection can reach either, so a connection to the second would show.
fn half_private() -> Egress {
    Egress {
        policy: Policy { allow: vec!["127.0.0.1/32".parse().unwrap()], ..Policy::default() },
        proxy: None,
    }
}

/// Counts the connections to 127.0.0.2 at the port of a server at 127.0.0.1.
async fn private_neighbour(port: u16) -> (Arc<Mutex<usize>>, JoinSet<()>) {
    let listener = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let connections = Arc::new(Mutex::new(0));
    let count = Arc::clone(&connections);
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let _closed_at_once = listener.accept().await.unwrap();
            *count.lock().unwrap() += 1;
        }
    });
    (connections, task)
}

#[tokio::test]
async fn case_31_name_with_a_private_address_is_never_connected_to_there() {
    let public = Server::start([Read, ok()]).await;
    let port = public.addr.port();
    let (connections, _task) = private_neighbour(port).await;
    let names = [
        ("private.example", &["127.0.0.2"][..]),
        ("mapped.example", &["::ffff:127.0.0.2"]),
        ("both.example", &["127.0.0.2", "127.0.0.1", "10.0.0.1"]),
    ];
    let transport = naming(&names, &half_private());
    for name in ["private.example", "mapped.example"] {
        let url = format!("http://{name}:{port}/?token={HUSH}");
        let detail = refusal(&transport, &url, FailureKind::Forbidden).await;
        assert!(detail.contains("loopback; egress.allow"), "{detail}");
    }
    let url = format!("http://both.example:{port}/");
    assert_eq!(answer(&transport, &url).await.status, 200);
    assert_eq!((public.received().len(), *connections.lock().unwrap()), (1, 0));
}

#[tokio::test]
async fn case_31_name_that_resolves_otherwise_the_second_time_is_judged_the_second_time() {
    // The public server closes its first connection, and the address is gone with the server.
    let public =
        Server::start([Read, write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Close]).await;
    let port = public.addr.port();
    let (connections, _task) = private_neighbour(port).await;
    let turn = Arc::new(Mutex::new(["127.0.0.2", "127.0.0.1"].to_vec()));
    let asked = Arc::clone(&turn);
    let rebinding: Arc<Lookup> = Arc::new(move |_| {
        let address = asked.lock().unwrap().pop().unwrap();
        let addresses = vec![address.parse().unwrap()];
        Box::pin(std::future::ready(Ok(Found { addresses, by_servers: true })))
    });
    let tls = tls_config([]).unwrap();
    let transport =
        Transport::with(&requests(), &half_private(), MEMORY, bounds(MEMORY), tls, rebinding)
            .unwrap();
    let url = format!("http://rebinding.example:{port}/");
    assert_eq!(answer(&transport, &url).await.status, 200);
    drop(public);
    // Refused at the address that is known, the name is asked for anew; the new address is judged.
    refusal(&transport, &url, FailureKind::Connect).await;
    refusal(&transport, &url, FailureKind::Forbidden).await;
    assert_eq!(turn.lock().unwrap().len(), 0);
    assert_eq!(*connections.lock().unwrap(), 0);
}

#[tokio::test]
async fn address_that_is_silent_does_not_keep_the_next_one_from_being_tried() {
    let server = Server::start([Read, ok()]).await;
    let port = server.addr.port();
    // Nobody accepts at the first address: when the backlog is full, the kernel answers no more.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 3], port))).unwrap();
    let silent = socket.listen(1).unwrap();
    let mut filling = Vec::new();
    let filled = silent.local_addr().unwrap();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(filled)).await {
        filling.push(stream.unwrap());
    }
    let names = [("two.example", &["127.0.0.3", "127.0.0.1"][..])];
    let transport = naming(&names, &egress());
    assert_eq!(answer(&transport, &format!("http://two.example:{port}/")).await.status, 200);
}

#[tokio::test]
async fn name_is_reached_at_whichever_of_its_many_addresses_takes_connections() {
    let server = Server::start([Read, ok()]).await;
    let port = server.addr.port();
    // Nobody listens at all others.
    let dead: Vec<String> = (1..=39).map(|n| format!("127.0.9.{n}")).collect();
    let mut many: Vec<&str> = dead.iter().map(String::as_str).collect();
    many.insert(20, "127.0.0.1");
    let names = [("many.example", &many[..]), ("dead.example", &many[..9])];
    let transport = naming(&names, &egress());
    let url = format!("http://many.example:{port}/");
    let mut failed = 0;
    while let Err(failure) = send(&transport, &url).await {
        let tried = "; 8 of the name's 40 addresses were tried, and the next time others";
        assert!(failure.detail.ends_with(tried), "{failure:?}");
        assert_eq!(failure.kind, FailureKind::Connect);
        failed += 1;
        assert!(failed < 20, "it is not reached");
    }
    let url = format!("http://dead.example:{port}/");
    let detail = refusal(&transport, &url, FailureKind::Connect).await;
    assert!(detail.contains("; 8 of the name's 9 addresses were tried"), "{detail}");
}

#[tokio::test]
async fn look_up_that_is_silent_is_a_dns_failure_within_the_time_for_connecting() {
    let silent: Arc<Lookup> = Arc::new(|_| Box::pin(std::future::pending()));
    let requests = Requests { connect_timeout: SHORT, ..requests() };
    let transport = Transport::with(
        &requests,
        &egress(),
        MEMORY,
        bounds(MEMORY),
        tls_config([]).unwrap(),
        silent,
    )
    .unwrap();
    let detail = refusal(&transport, "https://silent.example/", FailureKind::Dns).await;
    assert_eq!(detail, "the name is not resolved within 250ms");
}

#[tokio::test]
async fn name_that_waits_for_other_names_is_no_failure_of_its_endpoint() {
    let silent: Arc<Lookup> = Arc::new(|_| Box::pin(std::future::pending()));
    let requests = Requests { connect_timeout: SHORT, ..requests() };
    let tls = tls_config([]).unwrap();
    let transport =
        Transport::with(&requests, &egress(), MEMORY, bounds(MEMORY), tls, silent).unwrap();
    let (_, detail) = tokio::join!(
        refusal(&transport, "https://first.example/", FailureKind::Dns),
        refusal(&transport, "https://second.example/", FailureKind::Local)
    );
    assert!(detail.contains("had no turn to be asked for: too many others"), "{detail}");
}
