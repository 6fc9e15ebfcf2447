//! Receivers that send without end.

use std::sync::atomic::Ordering::Relaxed;

use super::http2::{RawServer, Say, fields, frame, hints, ok_200};
use super::*;

/// What an attempt reads of a flood, with what lies in the sockets' buffers.
const READ_MAX: usize = 32 << 20;

#[tokio::test]
async fn case_40_informational_answers_without_end_are_a_failed_attempt() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let server = Server::start([Read, WriteForever(HINTS)]).await;
    let detail = refusal(&transport(), &server.url(), FailureKind::Protocol).await;
    assert!(detail.contains("more than 16 informational"), "{detail}");
    assert!(server.written().await < READ_MAX);

    let server = RawServer::start(|_, _, stream| Say::Forever(hints(stream).repeat(100))).await;
    let detail = refusal(&server.transport(), &server.url, FailureKind::Protocol).await;
    assert!(detail.contains("informational"), "{detail}");
    assert!(server.written.load(Relaxed) < READ_MAX);
}

#[tokio::test]
async fn case_40_frames_without_end_are_a_failed_attempt() {
    type Frames = fn(u32) -> Vec<u8>;
    let floods: [(&str, Frames); 5] = [
        ("pings", |_| frame(6, 0, 0, &[7; 8])),
        ("settings", |_| frame(4, 0, 0, &[])),
        ("window updates", |_| frame(8, 0, 0, &[0, 0, 0, 1])),
        ("unknown frames", |_| frame(77, 0, 0, &[])),
        ("header block", |stream| {
            let more = frame(9, 0, stream, &fields(16_000)).repeat(6);
            [frame(1, 0, stream, &[0x88]), more].concat()
        }),
    ];
    for (name, flood) in floods {
        let server =
            RawServer::start(move |_, _, stream| Say::Forever(flood(stream).repeat(50))).await;
        let detail = refusal(&server.transport(), &server.url, FailureKind::Protocol).await;
        assert!(server.written.load(Relaxed) < READ_MAX, "{name}: {detail}");
    }
}

#[tokio::test]
async fn case_40_answer_counts_although_its_body_is_frames_without_end() {
    let server = RawServer::start(|_, request, stream| match request {
        0 => Say::Forever(
            [frame(1, 4, stream, &[0x88]), frame(0, 0, stream, &[]).repeat(999)].concat(),
        ),
        _ => Say::Close,
    })
    .await;
    assert_eq!(answer(&server.transport(), &server.url).await.status, 200);
    assert!(server.written.load(Relaxed) < READ_MAX);
}

#[tokio::test]
async fn case_40_many_honest_answers_are_no_flood() {
    let server = RawServer::start(|_, _, stream| {
        let pings = frame(6, 0, 0, &[7; 8]).repeat(50);
        Say::Frames([pings, hints(stream).repeat(16), ok_200(stream)].concat())
    })
    .await;
    let transport = server.transport();
    for _ in 0..200 {
        let outcome = server.outcome(&transport).await;
        assert!(outcome.delivered(), "{outcome:?}");
    }
    assert_eq!(server.connections.load(Relaxed), 1);
}

#[tokio::test]
async fn case_40_unfinished_answers_hold_no_more_than_their_accounts_share_of_the_memory() {
    let unfinished =
        |stream| [frame(1, 0, stream, &[0x88]), frame(9, 0, stream, &fields(5_000))].concat();
    let server = RawServer::start(move |_, _, stream| Say::Frames(unfinished(stream))).await;
    // An eighth of it is for unfinished answers, and a quarter of that for one account.
    let transport = server.transport_within(256 << 10);
    let detail = refusal(&transport, &server.url, FailureKind::Protocol).await;
    assert!(detail.contains("memory.limit"), "{detail}");
    for _ in 0..PATIENCE.as_millis() {
        if transport.held_bytes() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} bytes are still held", transport.held_bytes());
}

/// Every kind of flood at once, many times, and an honest receiver beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_40_victim_is_answered_in_time_beside_every_kind_of_flood() {
    let ping = RawServer::start(|_, _, _| Say::Forever(frame(6, 0, 0, &[7; 8]).repeat(500))).await;
    let hints = Server::start([Read, WriteForever("HTTP/1.1 103 Early Hints\r\n\r\n")]).await;
    let head =
        Server::start([Read, write("HTTP/1.1 200 OK\r\n"), WriteForever("x-long: 12345678\r\n")])
            .await;
    let victim =
        Server::start(std::iter::repeat_n([Read, ok()], 100).flatten().collect::<Vec<_>>()).await;
    let transport = ping.transport();
    let floods = [ping.url.clone(), hints.url(), head.url()];
    let (mut attempts, threads) = (JoinSet::new(), transport.threads().to_vec());
    for n in 0..150 {
        let (transport, url) = (transport.clone(), floods[n % floods.len()].clone());
        attempts.spawn_on(
            async move { transport.send(&attempt(endpoint(&url))).await },
            &threads[n % threads.len()],
        );
    }
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        let outcome = transport.send(&attempt(endpoint(&victim.url()))).await;
        assert!(outcome.delivered(), "{outcome:?}");
        longest = longest.max(outcome.elapsed);
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    while let Some(ended) = attempts.join_next().await {
        assert!(!ended.unwrap().delivered());
    }
}
