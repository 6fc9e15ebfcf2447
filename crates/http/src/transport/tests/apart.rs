//! Accounts on the connections of one host, of which one spoils what all share.

use std::sync::atomic::Ordering::Relaxed;

use super::super::users::{REST, SILENT_FOR};
use super::http2::{RawServer, Say, frame, goaway, hints, ok_200};
use super::*;

/// No answer.
const NOTHING: Say = Say::Frames(Vec::new());

/// An answer that HTTP/2 forbids, and that ends the whole connection: a name in capital letters.
fn capital(stream: u32) -> Say {
    Say::Frames(frame(1, 5, stream, b"\x88\x00\x05X-Bad\x011"))
}

/// What comes of a request of the account, which may have a connection of another: the kind of its failure, if it
/// failed.
async fn sent(transport: &Transport, url: &str, account: &str) -> Option<FailureKind> {
    let exchange = exchange(transport, url, account).await;
    assert_eq!(exchange.resends, 0);
    exchange.result.err().map(|failure| failure.kind)
}

/// How often a request of the account is sent again until it is taken, and how many of these say something of its
/// endpoint.
async fn resends(transport: &Transport, url: &str, account: &str) -> (u32, u32) {
    let exchange = exchange(transport, url, account).await;
    assert!(exchange.delivered(), "{exchange:?}");
    (exchange.resends, exchange.own_resends)
}

async fn exchange(transport: &Transport, url: &str, account: &str) -> Exchange {
    tokio::time::sleep(REST).await;
    let endpoint = Endpoint { account: AccountId::new(account), ..endpoint(url) };
    transport.send(&attempt(endpoint)).await
}

/// Waits until the server has a second request.
async fn second_request(server: &RawServer) {
    while server.requests.load(Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn request_without_an_answer_on_a_connection_of_another_account_is_no_failure_of_its_own() {
    // After an answer, nothing more is served on a connection.
    let server = Server::start([Read, ok(), Read]).await;
    let (transport, url) = (hasty(), server.url());
    assert_eq!(sent(&transport, &url, "bad").await, None);
    assert_eq!(sent(&transport, &url, "good").await, Some(FailureKind::Lost));
    // Apart, it opens one of its own, and what happens there is its own.
    assert_eq!(sent(&transport, &url, "good").await, None);
    assert_eq!(sent(&transport, &url, "good").await, Some(FailureKind::Timeout));

    // The other one was suspected once. Twice, it is apart too: its connections are lent to nobody.
    assert_eq!(sent(&transport, &url, "bad").await, None);
    assert_eq!(sent(&transport, &url, "third").await, Some(FailureKind::Lost));
    assert_eq!(sent(&transport, &url, "bad").await, None);
    assert_eq!(sent(&transport, &url, "fourth").await, None);
}

#[tokio::test]
async fn account_whose_request_waits_behind_another_accounts_uses_none_of_their_connections() {
    let server = Server::start([Read, ok(), Read]).await;
    let (transport, url) = (transport(), server.url());
    assert_eq!(sent(&transport, &url, "bad").await, None);
    let mut waits = JoinSet::new();
    let of_good = (transport.clone(), url.clone());
    waits.spawn(async move { sent(&of_good.0, &of_good.1, "good").await });
    while server.received().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(SILENT_FOR).await;
    assert_eq!(sent(&transport, &url, "bad").await, None, "on a second connection");
    assert_eq!(sent(&transport, &url, "good").await, None, "on a third");
    assert_eq!(server.received().last().map(|received| received.connection), Some(2));
}

#[tokio::test]
async fn request_without_an_answer_on_a_connection_of_its_account_is_its_failure() {
    let server = Server::start([Read, ok(), Read]).await;
    let (transport, url) = (hasty(), server.url());
    for _ in 0..3 {
        assert_eq!(sent(&transport, &url, "bad").await, None);
        assert_eq!(sent(&transport, &url, "bad").await, Some(FailureKind::Timeout));
    }
}

#[tokio::test]
async fn half_an_answer_on_a_connection_of_another_account_is_a_failure_of_its_own() {
    let server = Server::start([Read, ok(), Read, write("HTTP/1.1 200")]).await;
    let (transport, url) = (hasty(), server.url());
    assert_eq!(sent(&transport, &url, "a").await, None);
    assert_eq!(sent(&transport, &url, "b").await, Some(FailureKind::Timeout));
}

#[tokio::test]
async fn http2_connection_that_ends_with_several_accounts_is_no_ones_failure_once() {
    let server = RawServer::start(|connection, request, stream| match (connection, request) {
        (0, 1) => NOTHING,
        (0, 2) => capital(stream),
        // The connection that the second of them has to itself.
        (_, 1) => capital(stream),
        _ => Say::Frames(ok_200(stream)),
    })
    .await;
    let (transport, url) = (server.transport(), &server.url);
    assert_eq!(sent(&transport, url, "good").await, None);
    let (good, bad) = tokio::join!(sent(&transport, url, "good"), async {
        second_request(&server).await;
        sent(&transport, url, "bad").await
    });
    assert_eq!([good, bad], [Some(FailureKind::Lost); 2]);
    assert_eq!(sent(&transport, url, "bad").await, None);
    let (good, bad) = tokio::join!(sent(&transport, url, "good"), sent(&transport, url, "bad"));
    assert_eq!([good, bad], [None, Some(FailureKind::Protocol)], "apart");
    assert_eq!(sent(&transport, url, "third").await, None);
    assert_eq!(server.connections.load(Relaxed), 4);
}

#[tokio::test]
async fn http2_request_sent_again_from_a_connection_of_several_accounts_parts_its_account_at_the_second_time()
 {
    let server = RawServer::start(|connection, request, stream| match (connection, request) {
        // It takes no more, and the last one neither.
        (0, 1) | (1, 2) | (2, 1) => Say::Frames(goaway(stream - 2, 0)),
        _ => Say::Frames(ok_200(stream)),
    })
    .await;
    let (transport, url) = (server.transport(), &server.url);
    assert_eq!(resends(&transport, url, "bad").await, (0, 0));
    assert_eq!(resends(&transport, url, "good").await, (1, 0), "to where others go too");
    assert_eq!(resends(&transport, url, "bad").await, (0, 0));
    assert_eq!(resends(&transport, url, "good").await, (1, 0), "to a connection of its own");
    assert_eq!(resends(&transport, url, "good").await, (1, 1), "of which that is said");
    assert_eq!(resends(&transport, url, "bad").await, (0, 0));
    assert_eq!(server.connections.load(Relaxed), 5);
}

#[tokio::test]
async fn http1_request_sent_again_from_a_connection_of_several_accounts_says_nothing_of_its_endpoint()
 {
    let server = Server::start([Read, ok(), Read, Close]).await;
    let (transport, url) = (transport(), server.url());
    assert_eq!(resends(&transport, &url, "bad").await, (0, 0));
    assert_eq!(resends(&transport, &url, "good").await, (1, 0));
    assert_eq!(resends(&transport, &url, "alone").await, (0, 0));
}

#[tokio::test]
async fn http2_request_behind_one_of_another_account_that_is_not_answered_is_no_failure_of_its_own()
{
    let server = RawServer::start(|connection, request, stream| {
        if connection == 0 && request > 0 { NOTHING } else { Say::Frames(ok_200(stream)) }
    })
    .await;
    let (transport, url) = (server.hasty(), &server.url);
    assert_eq!(sent(&transport, url, "bad").await, None);
    let (bad, good) = tokio::join!(sent(&transport, url, "bad"), async {
        second_request(&server).await;
        sent(&transport, url, "good").await
    });
    assert_eq!([bad, good], [FailureKind::Timeout, FailureKind::Lost].map(Some));
    assert_eq!(sent(&transport, url, "good").await, None);
}

#[tokio::test]
async fn http2_requests_beside_one_of_another_account_that_is_not_answered_are_no_failures() {
    let server = RawServer::start(|connection, request, stream| match (connection, request) {
        (0, 1 | 3 | 4) => NOTHING,
        _ => Say::Frames(ok_200(stream)),
    })
    .await;
    let (transport, url) = (server.hasty(), &server.url);
    assert_eq!(sent(&transport, url, "bad").await, None);
    let (bad, good) = tokio::join!(sent(&transport, url, "bad"), async {
        second_request(&server).await;
        // One is answered; the next ones are the first that are not, and come after one of their own account.
        assert_eq!(sent(&transport, url, "good").await, None);
        tokio::join!(sent(&transport, url, "good"), sent(&transport, url, "good"))
    });
    let lost = Some(FailureKind::Lost);
    assert_eq!((bad, good), (Some(FailureKind::Timeout), (lost, lost)));
}

#[tokio::test]
async fn http2_connection_that_is_silent_for_another_account_is_not_shared() {
    let server = RawServer::start(|connection, request, stream| match (connection, request) {
        (0, 1) => NOTHING,
        // It is not answered either.
        (0, 2..) => Say::Frames(hints(stream)),
        _ => Say::Frames(ok_200(stream)),
    })
    .await;
    let (transport, url) = (server.transport(), &server.url);
    assert_eq!(sent(&transport, url, "bad").await, None);
    let mut silent = JoinSet::new();
    for _request in 0..2 {
        let waits = (transport.clone(), url.clone());
        silent.spawn(async move { sent(&waits.0, &waits.1, "bad").await });
    }
    while server.requests.load(Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(SILENT_FOR).await;
    for account in ["good", "third", "good"] {
        assert_eq!(sent(&transport, url, account).await, None);
    }
    assert_eq!(server.connections.load(Relaxed), 2);
}

#[tokio::test]
async fn http2_connection_with_as_many_requests_as_its_receiver_takes_is_not_shared() {
    // It takes two at once.
    let two = frame(4, 0, 0, &[0, 3, 0, 0, 0, 2]);
    let server = RawServer::start(move |connection, request, stream| {
        if connection == 0 && request > 0 {
            return NOTHING;
        }
        Say::Frames([two.clone(), ok_200(stream)].concat())
    })
    .await;
    let (transport, url) = (server.transport(), &server.url);
    assert_eq!(sent(&transport, url, "1").await, None);
    let mut held = JoinSet::new();
    for _ in 0..2 {
        let (transport, url) = (transport.clone(), url.clone());
        held.spawn(async move { sent(&transport, &url, "1").await });
    }
    while server.requests.load(Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(sent(&transport, url, "1").await, None);
    assert_eq!(server.connections.load(Relaxed), 2);
}

#[tokio::test]
async fn http2_connection_is_one_for_all_accounts_while_they_are_answered() {
    // It has read the request's body: the next ones may come.
    let read = |_, _, stream| {
        Say::Frames([frame(8, 0, 0, &4_096_u32.to_be_bytes()), ok_200(stream)].concat())
    };
    let server = RawServer::start(read).await;
    let (transport, url) = (server.transport(), server.url.clone());
    assert_eq!(sent(&transport, &url, "first").await, None);
    for _round in 0..20 {
        let mut at_once = JoinSet::new();
        for account in 0..64 {
            let (transport, url) = (transport.clone(), url.clone());
            at_once.spawn(async move { sent(&transport, &url, &account.to_string()).await });
        }
        assert!(at_once.join_all().await.iter().all(Option::is_none));
    }
    assert_eq!(server.connections.load(Relaxed), 1);
}
