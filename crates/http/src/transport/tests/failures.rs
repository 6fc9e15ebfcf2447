//! What goes wrong before there is an answer.

use super::*;

#[tokio::test]
async fn case_30_attempt_times_out_whatever_the_endpoint_has_begun_to_say() {
    for script in [
        vec![Read],
        vec![Read, write("HTTP/1.1 103 Early Hints\r\n\r\n")],
        vec![Read, write("HTTP/1.1 200 OK\r\nx: "), Drip],
        vec![Read, write("HTTP/1.1 200 OK\r\ncontent-length: 65000\r\n\r\n"), Drip],
        vec![Read, write("HTTP/1.1 500 Oops\r\ncontent-length: 65000\r\n\r\n"), Drip],
    ] {
        let server = Server::start(script.clone()).await;
        let started = Instant::now();
        let detail = refusal(&hasty(), &server.url(), FailureKind::Timeout).await;
        assert_eq!(detail, "no whole answer within 1.5s", "{script:?}");
        assert!((HASTE..PATIENCE).contains(&started.elapsed()), "{script:?}");
        assert_eq!(server.received().len(), 1);
    }
}

#[tokio::test]
async fn case_30_answer_that_is_no_http_is_a_protocol_failure() {
    for (script, expected) in [
        (vec![Read, write("220 mail.example ESMTP\r\n"), Close], "HTTP"),
        (vec![Read, Close], "connection closed before message completed"),
        (vec![Read, write("HTTP/1.1 200 OK\r\ncontent-le"), Close], "connection closed"),
        (vec![Read, write("HTTP/1.1 2000 OK\r\n\r\n"), Close], "status line"),
    ] {
        let server = Server::start(script).await;
        let detail = refusal(&transport(), &server.url(), FailureKind::Protocol).await;
        assert!(detail.contains(expected), "{detail}");
        assert_eq!(server.received().len(), 1, "{detail}");
    }
}

#[tokio::test]
async fn case_30_endless_header_is_a_protocol_failure_and_is_not_held() {
    let start = write("HTTP/1.1 200 OK\r\nx: ");
    let server = Server::start([Read, start, WriteForever("xxxxxxxxxxxxxxxxxxxxxxxxxxxx")]).await;
    let detail = refusal(&transport(), &server.url(), FailureKind::Protocol).await;
    assert!(detail.contains("too large"), "{detail}");
    assert!(server.written().await < 32 << 20);
}

#[tokio::test]
async fn refused_connection_is_a_connect_failure() {
    let nobody = Nobody::new();
    let url = format!("http://{}/?token={HUSH}", nobody.addr());
    let detail = refusal(&transport(), &url, FailureKind::Connect).await;
    assert!(detail.contains("refused"), "{detail}");
}

#[tokio::test]
async fn blackhole_is_a_connect_failure_within_the_time_for_connecting() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    // Nobody accepts: when the backlog is full, the kernel answers no more.
    let mut filling = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(addr)).await {
        filling.push(stream.unwrap());
    }
    let requests = Requests { connect_timeout: SHORT, ..requests() };
    let transport = Transport::new(&requests, &egress(), MEMORY).unwrap();
    let started = Instant::now();
    let detail = refusal(&transport, &format!("http://{addr}/"), FailureKind::Connect).await;
    assert_eq!(detail, "no connection within delivery.connect_timeout");
    assert!((SHORT..PATIENCE / 2).contains(&started.elapsed()));
}

#[tokio::test]
async fn name_that_does_not_resolve_is_a_dns_failure() {
    let url = format!("https://nonexistent.invalid/?token={HUSH}");
    let detail = refusal(&transport(), &url, FailureKind::Dns).await;
    assert!(detail.contains("does not resolve"), "{detail}");
}

#[tokio::test]
async fn address_that_is_not_allowed_is_forbidden_by_name_and_in_every_form() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = server.addr.port();
    let strict = Transport::new(&requests(), &Egress::default(), MEMORY).unwrap();
    for host in [
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.1.",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "１２７.０.０.１",
        "%31%32%37.0.0.1",
    ] {
        let url = format!("http://{host}:{port}/?token={HUSH}");
        let detail = refusal(&strict, &url, FailureKind::Forbidden).await;
        assert!(detail.contains("egress.allow"), "{host}: {detail}");
    }
    assert_eq!(server.received().len(), 0);
    let by_name = format!("http://localhost:{port}/");
    assert_eq!(answer(&transport(), &by_name).await.status, 200);
}

#[tokio::test]
async fn url_that_cannot_be_used_fails_without_being_told() {
    let transport = transport();
    for (url, kind) in [
        ("hush", FailureKind::Invalid),
        ("", FailureKind::Invalid),
        ("http://[::1/hush", FailureKind::Invalid),
        ("http:///", FailureKind::Invalid),
        ("data:hush", FailureKind::Invalid),
        ("ftp://example.com/hush", FailureKind::Invalid),
        ("https://me:hush@example.com/", FailureKind::Forbidden),
    ] {
        refusal(&transport, url, kind).await;
    }
}
