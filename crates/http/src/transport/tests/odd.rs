//! Answers whose status can be read, and little else.

use super::*;

/// Answers that say 2xx.
fn odd_answers() -> Vec<String> {
    let ok = |headers: &str| format!("HTTP/1.1 200 OK\r\n{headers}content-length: 2\r\n\r\nok");
    let big = format!("x-big: {}\r\n", "v".repeat(100_000));
    let name = format!("{}: 1\r\n", "n".repeat(70_000));
    vec![
        ok(&"x-many: 1\r\n".repeat(101)),
        ok(&(0..3_000).map(|n| format!("x-{n}: {n}\r\n")).collect::<String>()),
        ok(&big),
        ok(&name),
        ok("x-folded: a\r\n b\r\n\tc\r\n"),
        ok(" begins folded\r\n"),
        ok("bad name: 1\r\n: none\r\n@[]: 2\r\nx\u{e9}: 3\r\n"),
        ok("no colon at all\r\n"),
        ok("x-bytes: \u{e9}\u{0}\u{1}\u{7f}\r\n"),
        ok("content-length : 2\r\n"),
        ok("transfer-encoding: identity\r\n"),
        ok("connection: close\r\nconnection: keep-alive\r\n"),
        "HTTP/1.1 200 OK\ncontent-length: 2\n\nok".to_owned(),
        "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 \u{e9}\u{7f}\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "\r\nHTTP/1.1   299   x\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_owned(),
        "HTTP/2 200\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nok".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok and more".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno chunk".to_owned(),
        "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok".to_owned(),
        "HTTP/1.1 204 No Content\r\n\r\nok".to_owned(),
        "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nbad name: 1\r\n\r\nHTTP/1.1 201 C\r\n\
         content-length: 0\r\n\r\n"
            .to_owned(),
    ]
}

#[tokio::test]
async fn case_40_answer_whose_status_can_be_read_counts_however_odd_it_is() {
    let transport = transport();
    for text in odd_answers() {
        let server = Server::answering(&text).await;
        let outcome = transport.send(&attempt(endpoint(&server.url()))).await;
        assert!(outcome.delivered(), "{text:.200}: {:?}", outcome.result);
    }
}

#[tokio::test]
async fn case_40_answer_without_a_length_that_can_be_read_counts_when_its_connection_ends() {
    for framing in ["", "transfer-encoding: gzip\r\n", "transfer-encoding: chunked, gzip\r\n"] {
        let text = format!("HTTP/1.1 500 X\r\n{framing}\r\nno end");
        let server = Server::start([Read, write(text), Close]).await;
        let answer = answer(&transport(), &server.url()).await;
        assert_eq!((answer.status, answer.excerpt.as_str()), (500, "no end"), "{framing}");
    }
}

#[tokio::test]
async fn case_40_odd_answer_does_not_spoil_the_next_request() {
    let transport = transport();
    for text in odd_answers() {
        // Each connection gives the odd answer first, then waits for a request that it answers too.
        let server = Server::start([Read, write(text.as_str()), Read, ok()]).await;
        for n in 0..2 {
            let outcome = transport.send(&attempt(endpoint(&server.url()))).await;
            assert!(outcome.delivered(), "{n} of {text:.200}: {:?}", outcome.result);
        }
        assert_eq!(server.received().len(), 2, "{text:.200}");
    }
}
