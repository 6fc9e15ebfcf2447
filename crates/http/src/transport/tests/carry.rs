//! What the leader prepares and a worker carries.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::transport::Carried;
use walhook_sign::verify;

fn worker() -> Transport {
    // Nothing of what a request says is the worker's.
    let requests = Requests {
        header_prefix: "other".to_owned(),
        user_agent: "worker".to_owned(),
        timeout: SHORT / 1_000,
        ..requests()
    };
    Transport::new(&requests, &egress(), MEMORY).unwrap()
}

#[tokio::test]
async fn carried_request_is_the_one_that_the_leader_would_have_sent() {
    let server = Server::start([Read, ok(), Read, ok()]).await;
    let mut endpoint = endpoint(&server.url());
    endpoint.headers.extend([("X-Two", "a"), ("X-Two", "b")].map(|(n, v)| (n.into(), v.into())));
    let attempt = attempt(endpoint);
    let leader = transport();
    leader.send(&attempt).await.result.unwrap();
    let prepared = leader.prepare(&attempt).await.unwrap();
    let shown = format!("{prepared:?}");
    assert!(!shown.contains(HUSH) && !shown.contains("hook"), "{shown}");
    let Carried { exchange, begun } = worker().carry(&prepared, || true).await;
    assert!(begun && exchange.delivered(), "{exchange:?}");

    let [sent, carried] = <[Received; 2]>::try_from(server.received()).unwrap();
    assert_eq!(carried.body, sent.body);
    let of_this_moment = |line: &&str| !line.starts_with("webhook-");
    let lines = |head: &str| head.lines().filter(of_this_moment).map(str::to_owned).collect();
    let (sent, lines): (Vec<String>, Vec<String>) = (lines(&sent.head), lines(&carried.head));
    assert_eq!(lines, sent);
    let timestamp = carried.header("webhook-timestamp").unwrap().parse().unwrap();
    let signature = carried.header("webhook-signature").unwrap();
    let secret = &attempt.endpoint.secrets[0];
    let id = carried.header("webhook-id").unwrap();
    assert_eq!(id, attempt.first().event.id.to_string());
    assert!(verify(id, timestamp, &carried.body, signature, secret));
}

#[tokio::test]
async fn what_cannot_be_sent_is_not_prepared_and_says_why_as_sending_does() {
    let (leader, mut endpoint) = (transport(), endpoint("http://a.example/"));
    endpoint.secrets.clear();
    let attempt = attempt(endpoint);
    let refused = leader.prepare(&attempt).await.unwrap_err();
    assert_eq!(refused, leader.send(&attempt).await);
    assert!(matches!(refused.result, Err(Failure { kind: FailureKind::Invalid, .. })));
}

#[tokio::test]
async fn worker_sends_nothing_where_its_own_egress_forbids_it() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let prepared = transport().prepare(&attempt(endpoint(&server.url()))).await.unwrap();
    let strict = Transport::new(&requests(), &Egress::default(), MEMORY).unwrap();
    let Carried { exchange, begun } = strict.carry(&prepared, || true).await;
    let kind = exchange.result.unwrap_err().kind;
    assert_eq!((kind, begun), (FailureKind::Forbidden, false));

    let mut elsewhere = Egress::default();
    elsewhere.policy.only_hosts = vec!["a.example".parse().unwrap()];
    let elsewhere = Transport::new(&requests(), &elsewhere, MEMORY).unwrap();
    let Carried { exchange, begun } = elsewhere.carry(&prepared, || true).await;
    let kind = exchange.result.unwrap_err().kind;
    assert_eq!((kind, begun), (FailureKind::Forbidden, false));
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn request_that_may_not_begin_when_its_connection_is_there_is_not_sent() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let prepared = transport().prepare(&attempt(endpoint(&server.url()))).await.unwrap();
    let asked = AtomicU32::new(0);
    let refuse = || {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    };
    let Carried { exchange, begun } = worker().carry(&prepared, refuse).await;
    let kind = exchange.result.unwrap_err().kind;
    assert_eq!((kind, begun, asked.into_inner()), (FailureKind::Aborted, false, 1));
    assert!(server.received().is_empty());
}

#[tokio::test]
async fn carrying_tells_what_was_begun_from_what_was_not() {
    let leader = transport();
    let nobody = Nobody::new();
    let url = format!("http://{}/", nobody.addr());
    let prepared = leader.prepare(&attempt(endpoint(&url))).await.unwrap();
    let Carried { exchange, begun } = worker().carry(&prepared, || true).await;
    assert_eq!((exchange.result.unwrap_err().kind, begun), (FailureKind::Connect, false));

    let silent = Server::start([Read, Read]).await;
    let prepared = hasty().prepare(&attempt(endpoint(&silent.url()))).await.unwrap();
    let Carried { exchange, begun } = worker().carry(&prepared, || true).await;
    assert_eq!((exchange.result.unwrap_err().kind, begun), (FailureKind::Timeout, true));
    assert_eq!(silent.received().len(), 1);
}

#[tokio::test]
async fn request_that_may_not_begin_again_is_not_sent_again() {
    // The kept connection closes before an answer: otherwise the request would go over another one.
    let server = Server::start([Read, ok(), Read, Close]).await;
    let prepared = transport().prepare(&attempt(endpoint(&server.url()))).await.unwrap();
    let worker = worker();
    assert!(worker.carry(&prepared, || true).await.exchange.delivered());
    let asked = AtomicU32::new(0);
    let once = || asked.fetch_add(1, Ordering::Relaxed) == 0;
    let Carried { exchange, begun } = worker.carry(&prepared, once).await;
    assert_eq!((exchange.result.unwrap_err().kind, begun), (FailureKind::Aborted, true));
    assert_eq!(server.received().len(), 2);
}
