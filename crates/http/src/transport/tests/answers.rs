//! What is made of an answer.

use super::*;

fn bare(status: u16) -> Answer {
    Answer { status, retry_after: None, excerpt: String::new() }
}

#[tokio::test]
async fn answer_of_success_has_its_status_and_no_excerpt() {
    for (text, status) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
        ("HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 202),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", 204),
    ] {
        let server = Server::answering(text).await;
        let outcome = transport().send(&attempt(endpoint(&server.url()))).await;
        assert!(outcome.delivered(), "{text}");
        assert_eq!(outcome.result, Ok(bare(status)), "{text}");
    }
}

#[tokio::test]
async fn answer_of_refusal_has_a_printable_excerpt_of_at_most_1_kib() {
    let bad = ["\u{0}\u{1b}[31m\u{202E}", &"\u{7}é".repeat(50_000)].concat();
    let text = format!("HTTP/1.1 500 Oops\r\ncontent-length: {}\r\n\r\n{bad}", bad.len());
    let server = Server::answering(&text).await;
    let answer = answer(&transport(), &server.url()).await;
    assert_eq!(answer.status, 500);
    assert!(answer.excerpt.starts_with("\u{FFFD}\u{FFFD}[31m\u{FFFD}"), "{}", answer.excerpt);
    assert!((1020..=1024).contains(&answer.excerpt.len()), "{}", answer.excerpt.len());
    assert!(!answer.excerpt.chars().any(char::is_control));
}

#[tokio::test]
async fn answers_retry_after_is_read_in_every_form() {
    let cases = [
        ("7", Some(Duration::from_secs(7))),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(Duration::ZERO)),
        ("99999999999999999999999", Some(Duration::from_secs(u64::MAX))),
        ("soon", None),
        ("\u{e9}", None),
    ];
    for status in [429, 503] {
        for (value, expected) in cases {
            let head = format!("HTTP/1.1 {status} No\r\nretry-after: {value}\r\n");
            let server = Server::answering(&format!("{head}content-length: 0\r\n\r\n")).await;
            let answer = answer(&transport(), &server.url()).await;
            assert_eq!(answer, Answer { retry_after: expected, ..bare(status) }, "{value}");
        }
    }
    let text = "HTTP/1.1 503 No\r\nretry-after: Fri, 01 Jan 2100 00:00:00 GMT\r\n\
                content-length: 0\r\n\r\n";
    let server = Server::answering(text).await;
    let wait = answer(&transport(), &server.url()).await.retry_after.unwrap();
    let until = i64::try_from(wait.as_secs()).unwrap() + unix_us() / 1_000_000;
    assert!((4_102_444_800 - 60..=4_102_444_800).contains(&until), "{until}");
}

#[tokio::test]
async fn answers_retry_after_is_by_the_clock_of_whoever_answers() {
    let now = jiff::Timestamp::from_microsecond(unix_us()).unwrap();
    let date = |seconds: i64| {
        let at = now + jiff::SignedDuration::from_secs(seconds);
        at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    };
    let (date, until) = (date(-3_000), date(90 - 3_000));
    let head = format!("HTTP/1.1 503 No\r\ndate: {date}\r\nretry-after: {until}\r\n");
    let server = Server::answering(&format!("{head}content-length: 0\r\n\r\n")).await;
    let answer = answer(&transport(), &server.url()).await;
    assert_eq!(answer.retry_after, Some(Duration::from_secs(90)));
}

#[tokio::test]
async fn case_30_redirect_is_an_answer_and_is_not_followed() {
    let target = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    for status in [301, 302, 307, 308] {
        let head = format!("HTTP/1.1 {status} Go\r\nlocation: {}\r\n", target.url());
        let server = Server::answering(&format!("{head}content-length: 0\r\n\r\n")).await;
        assert_eq!(answer(&transport(), &server.url()).await, bare(status));
    }
    assert_eq!(target.received().len(), 0);
}

#[tokio::test]
async fn case_30_endless_answer_is_left_at_the_bound_with_its_connection() {
    const CHUNK: &str =
        "40\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n";
    for (status, excerpt) in [(200, 0), (500, EXCERPT_MAX)] {
        let head = format!("HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n\r\n");
        let server = Server::start([Read, write(head), WriteForever(CHUNK)]).await;
        let transport = transport();
        for connection in 0..2 {
            let answer = answer(&transport, &server.url()).await;
            assert_eq!((answer.status, answer.excerpt.len()), (status, excerpt));
            assert_eq!(server.received().last().unwrap().connection, connection);
            // The rest lies in the sockets' buffers.
            assert!(server.written().await < 32 << 20);
        }
    }
}

#[tokio::test]
async fn case_30_status_counts_although_the_body_breaks_off() {
    for (status, excerpt) in [(200, ""), (410, "gone f"), (503, "gone f")] {
        for framing in ["content-length: 90\r\n\r\n", "transfer-encoding: chunked\r\n\r\n50\r\n"] {
            let text = format!("HTTP/1.1 {status} X\r\nretry-after: 3\r\n{framing}gone f");
            let server = Server::start([Read, write(text), Close]).await;
            let expected = Answer {
                status,
                retry_after: Some(Duration::from_secs(3)),
                excerpt: excerpt.to_owned(),
            };
            assert_eq!(answer(&transport(), &server.url()).await, expected);
        }
    }
}
