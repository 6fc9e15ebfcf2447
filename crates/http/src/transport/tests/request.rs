//! What goes out, and over which connection.

use super::*;
use walhook_core::attempt::Asked;
use walhook_core::id::ReplayId;
use walhook_sign::verify;

#[tokio::test]
async fn what_is_kept_of_an_endpoint_says_nothing_of_its_path_headers_and_secrets() {
    let endpoint = endpoint(&format!("https://a.example/{HUSH}?token={HUSH}"));
    let target = transport().target(&endpoint).unwrap();
    let text = format!("{target:?}");
    assert!(text.contains("a.example") && !text.contains(HUSH), "{text}");
}

#[tokio::test]
async fn request_is_as_documented() {
    let server = Server::start([Read, ok(), Read, ok()]).await;
    let mut endpoint = endpoint(&server.url());
    endpoint.secrets =
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "another"].map(Secret::new).into();
    endpoint.headers.push(("X-Two".to_owned(), "a".to_owned()));
    let mut attempt = attempt(endpoint);
    let transport = transport();
    transport.send(&attempt).await.result.unwrap();
    let asked = Some(Box::new(Asked::Replay(ReplayId(1))));
    let again = Delivery { number: 7, asked, ..attempt.first().clone() };
    attempt.deliveries = again.into();
    transport.send(&attempt).await.result.unwrap();

    let [first, second] = <[Received; 2]>::try_from(server.received()).unwrap();
    let mut lines = first.head.trim_end().split("\r\n");
    assert_eq!(lines.next(), Some("POST /hook?token=hush HTTP/1.1"));
    let mut names: Vec<_> = lines.map(|line| line.split_once(':').unwrap().0).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "walhook-attempt",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
        "x-two",
    ];
    assert_eq!(names, expected);
    let id = attempt.first().event.id.to_string();
    for (name, value) in [
        ("accept", "*/*"),
        ("authorization", "Bearer hush"),
        ("content-type", "application/json"),
        ("host", &server.addr.to_string()),
        ("user-agent", concat!("walhook/", env!("CARGO_PKG_VERSION"))),
        ("walhook-attempt", "1"),
        ("webhook-id", &id),
        ("x-two", "a"),
    ] {
        assert_eq!(first.header(name), Some(value), "{name}");
    }
    assert_eq!(first.body, attempt.first().event.body());
    let timestamp: i64 = first.header("webhook-timestamp").unwrap().parse().unwrap();
    assert!((0..60).contains(&(unix_us() / 1_000_000 - timestamp)));
    let signature = first.header("webhook-signature").unwrap();
    assert_eq!(signature.split(' ').count(), 2);
    for secret in &attempt.endpoint.secrets {
        assert!(verify(&id, timestamp, &first.body, signature, secret));
    }
    assert_eq!(second.header("walhook-attempt"), Some("7"));
    assert_eq!(second.header("walhook-replay"), Some("true"));
    assert_eq!(second.body, first.body);
}

/// Long to sign by either secret, and sent apart.
fn large(server: &Server) -> Attempt {
    let mut endpoint = endpoint(&server.url());
    endpoint.secrets = ["one", "another"].map(Secret::new).into();
    let mut attempt = attempt(endpoint);
    let row = format!("\"data\":{{\"x\":\"{}\"}}", "y".repeat(300_000));
    let mut delivery = attempt.first().clone();
    let event = Event {
        row: row.into(),
        event_type: Arc::clone(&delivery.event.event_type),
        account: delivery.event.account.clone(),
        keys: RowKeys::new(),
        ..*delivery.event
    };
    delivery.event = Arc::new(event);
    attempt.deliveries = delivery.into();
    attempt
}

#[tokio::test]
async fn large_event_arrives_whole_and_signed() {
    let server = Server::start([Read, ok()]).await;
    let attempt = large(&server);
    transport().send(&attempt).await.result.unwrap();
    let [sent] = <[Received; 1]>::try_from(server.received()).unwrap();
    let event = &attempt.first().event;
    assert_eq!(sent.body, event.body());
    let timestamp: i64 = sent.header("webhook-timestamp").unwrap().parse().unwrap();
    let signature = sent.header("webhook-signature").unwrap();
    for secret in &attempt.endpoint.secrets {
        assert!(verify(&event.id.to_string(), timestamp, &sent.body, signature, secret));
    }
}

#[tokio::test]
async fn time_to_be_signed_is_no_time_of_the_endpoints() {
    let server = Server::start([Read, ok()]).await;
    let requests = Requests { timeout: SHORT, ..requests() };
    let (attempt, transport) =
        (large(&server), Transport::new(&requests, &egress(), MEMORY).unwrap());
    let others = ["a", "b"].map(AccountId::new);
    let mut turns = Vec::new();
    for other in &others {
        turns.push(transport.signing.take(other, 1).await);
    }
    let waits = async {
        tokio::time::sleep(SHORT + Duration::from_millis(100)).await;
        turns.clear();
    };
    let (exchange, ()) = tokio::join!(transport.send(&attempt), waits);
    assert_eq!(exchange.result.unwrap().status, 200);

    // Too long is a want of our own, and nothing was sent.
    for other in &others {
        turns.push(transport.signing.take(other, 1).await);
    }
    let failure = transport.send(&attempt).await.result.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Local, "{}", failure.detail);
    assert_eq!(server.received().len(), 1);
}

#[tokio::test]
async fn header_that_the_row_may_not_set_makes_the_endpoint_invalid() {
    let server = Server::start([Read, ok()]).await;
    for (name, value) in [
        ("Host", HUSH),
        ("webhook-id", HUSH),
        ("Webhook-Signature", HUSH),
        ("content-length", "4"),
        ("Walhook-Attempt", HUSH),
        ("walhook-replay", HUSH),
        ("transfer-encoding", "chunked"),
        ("two words", HUSH),
        ("", HUSH),
        ("x", "hush\r\ny: z"),
        ("x", "hush\0"),
    ] {
        let mut endpoint = endpoint(&server.url());
        endpoint.headers = vec![(name.to_owned(), value.to_owned())];
        let failure = transport().send(&attempt(endpoint)).await.result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid, "{name}");
        assert!(!failure.detail.contains(HUSH), "{}", failure.detail);
        assert!(failure.detail.contains(&name.to_lowercase()), "{}", failure.detail);
    }
    assert_eq!(server.received().len(), 0);
}

#[tokio::test]
async fn header_of_the_row_is_sensitive() {
    let attempt = attempt(endpoint("http://127.0.0.1/"));
    let transport = transport();
    let target = Arc::new(transport.target(&attempt.endpoint).unwrap());
    let Attempt { endpoint, deliveries } = &attempt;
    let Delivery { event, number, asked, .. } = deliveries.first();
    let post = Post {
        target,
        account: &endpoint.account,
        id: event.id,
        body: Content::of(event),
        number: *number,
        replay: asked.is_some(),
    };
    let signed = transport.sign(&post).await.unwrap();
    for http2 in [false, true] {
        let request = transport.request(&post, &signed, http2);
        assert!(request.headers().contains_key("authorization"));
        assert!(!format!("{:?}", request.headers()).contains(HUSH));
    }
}

#[tokio::test]
async fn secret_that_cannot_sign_makes_the_endpoint_invalid() {
    for secrets in [vec![], vec![""], vec!["whsec_hush!"], vec!["good", "whsk_hush"]] {
        let mut endpoint = endpoint("http://127.0.0.1:1/");
        endpoint.secrets = secrets.into_iter().map(Secret::new).collect();
        let failure = transport().send(&attempt(endpoint)).await.result.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(!failure.detail.contains(HUSH), "{}", failure.detail);
    }
}

#[tokio::test]
async fn connection_is_used_again_after_success_and_after_refusal() {
    let server = Server::start([
        Read,
        ok(),
        Read,
        write("HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\nno"),
        Read,
        ok(),
    ])
    .await;
    let transport = transport();
    for status in [200, 500, 200] {
        assert_eq!(answer(&transport, &server.url()).await.status, status);
    }
    let connections: Vec<_> = server.received().iter().map(|one| one.connection).collect();
    assert_eq!(connections, [0, 0, 0]);
}

#[tokio::test]
async fn request_goes_over_a_new_connection_when_the_kept_one_was_closed() {
    let server = Server::start([Read, ok(), Close]).await;
    let transport = transport();
    for number in 1..=20 {
        // Either the client has seen the close by now, or nothing of the request got through and it is
        // sent again.
        answer(&transport, &server.url()).await;
        assert_eq!(server.received().len(), number);
    }
}
