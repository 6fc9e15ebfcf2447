//! Requests that are sent again within their attempt, and those that are not.

use super::http2::{RawServer, Say, goaway, hints, ok_200, reset};
use super::*;

const REFUSED_STREAM: u32 = 7;
const HTTP_1_1_REQUIRED: u32 = 13;

async fn outcome(transport: &Transport, server: &Server) -> Exchange {
    transport.send(&attempt(endpoint(&server.url()))).await
}

#[tokio::test]
async fn case_40_kept_connection_that_closes_before_an_answer_costs_no_attempt() {
    // The first bytes of the next request may already be on their way when it closes.
    for script in [vec![Read, ok(), Read, Close], vec![Read, ok(), Close]] {
        let server = Server::start(script.clone()).await;
        let transport = transport();
        let mut resends = 0;
        for _ in 0..9 {
            let outcome = outcome(&transport, &server).await;
            assert!(outcome.delivered(), "{script:?}: {outcome:?}");
            resends += outcome.resends;
        }
        assert!(script.len() == 3 || resends == 4, "{script:?}: {resends}");
    }
}

#[tokio::test]
async fn case_40_new_connection_that_closes_before_an_answer_is_a_failed_attempt() {
    let server = Server::start([Read, Close]).await;
    let ended = outcome(&transport(), &server).await;
    assert_eq!(ended.result.unwrap_err().kind, FailureKind::Protocol);
    assert_eq!((ended.resends, server.received().len()), (0, 1));
}

#[tokio::test]
async fn case_40_new_connection_that_closes_before_an_answer_is_a_failed_attempt_whatever_the_body()
{
    // Large enough that the kernel takes it piece by piece, of which many begin as a request does.
    let body = "POST ".repeat(1 << 20);
    let server = Server::start([Read, Close]).await;
    let endpoint = endpoint(&server.url());
    let id = attempt(endpoint.clone()).first().event.id;
    let ended = transport().post_notice(&endpoint, id, body.into(), 1).await;
    assert_eq!(ended.result.unwrap_err().kind, FailureKind::Protocol);
    assert_eq!((ended.resends, server.received().len()), (0, 1));
}

#[tokio::test]
async fn case_40_kept_connection_that_closes_within_an_answer_is_a_failed_attempt() {
    for begun in ["H", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Hints\r\n\r\n"] {
        let server = Server::start([Read, ok(), Read, write(begun), Close]).await;
        let transport = transport();
        assert!(outcome(&transport, &server).await.delivered());
        let ended = outcome(&transport, &server).await;
        assert_eq!(ended.result.unwrap_err().kind, FailureKind::Protocol, "{begun}");
        assert_eq!((ended.resends, server.received().len()), (0, 2), "{begun}");
    }
}

#[tokio::test]
async fn case_40_stream_that_was_surely_not_processed_costs_no_attempt() {
    type Manner = fn(usize, usize, u32) -> Say;
    let manners: [(&str, Manner); 5] = [
        ("refused, on a connection that was in use", |connection, request, stream| {
            let refuses = connection == 0 && request > 0;
            Say::Frames(if refuses { reset(stream, REFUSED_STREAM) } else { ok_200(stream) })
        }),
        ("refused, on two new connections", |connection, _, stream| {
            Say::Frames(if connection < 2 { reset(stream, REFUSED_STREAM) } else { ok_200(stream) })
        }),
        ("above the last stream", |connection, request, stream| {
            let leaves = connection == 0 && request > 0;
            Say::Frames(if leaves { goaway(stream - 2, 0) } else { ok_200(stream) })
        }),
        ("above the last stream, with an error", |connection, _, stream| {
            Say::Frames(if connection == 0 { goaway(0, 11) } else { ok_200(stream) })
        }),
        ("closed, on a connection that was in use", |connection, request, stream| {
            if connection == 0 && request > 0 { Say::Close } else { Say::Frames(ok_200(stream)) }
        }),
    ];
    for (name, manner) in manners {
        let server = RawServer::start(manner).await;
        let transport = server.transport();
        let mut resends = 0;
        for _ in 0..4 {
            let outcome = server.outcome(&transport).await;
            assert!(outcome.delivered(), "{name}: {outcome:?}");
            resends += outcome.resends;
        }
        let connections = server.connections.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(u32::try_from(connections).unwrap(), 1 + resends, "{name}");
        assert!((1..=2).contains(&resends), "{name}: {resends}");
    }
}

#[tokio::test]
async fn case_40_stream_that_is_always_refused_is_sent_three_times_and_is_a_failed_attempt() {
    let server = RawServer::start(|_, _, id| Say::Frames(reset(id, REFUSED_STREAM))).await;
    let ended = server.outcome(&server.transport()).await;
    assert_eq!(ended.result.unwrap_err().kind, FailureKind::Protocol);
    assert_eq!(ended.resends, 2);
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test]
async fn case_40_stream_that_may_have_been_processed_is_a_failed_attempt() {
    type Manner = fn(usize, usize, u32) -> Say;
    let manners: [Manner; 4] = [
        |_, _, stream| Say::Frames(reset(stream, 2)),
        |_, _, stream| Say::Frames(reset(stream, 8)),
        |_, _, _| Say::Close,
        |_, _, stream| Say::Frames([hints(stream), reset(stream, 1)].concat()),
    ];
    for manner in manners {
        let server = RawServer::start(manner).await;
        let ended = server.outcome(&server.transport()).await;
        assert_eq!(ended.result.unwrap_err().kind, FailureKind::Protocol);
        assert_eq!(ended.resends, 0);
    }
}

#[tokio::test]
async fn case_40_receiver_that_requires_http_1_1_gets_it_from_then_on() {
    type Manner = fn(usize, usize, u32) -> Say;
    let manners: [Manner; 2] = [
        |_, _, stream| Say::Frames(reset(stream, HTTP_1_1_REQUIRED)),
        |_, _, _| Say::Frames(goaway(0, HTTP_1_1_REQUIRED)),
    ];
    for manner in manners {
        let server = RawServer::start(manner).await;
        let transport = server.transport();
        for resends in [1, 0, 0] {
            let outcome = server.outcome(&transport).await;
            assert!(outcome.delivered(), "{outcome:?}");
            assert_eq!(outcome.resends, resends);
        }
        assert_eq!(server.connections.load(std::sync::atomic::Ordering::Relaxed), 2);
    }
}
