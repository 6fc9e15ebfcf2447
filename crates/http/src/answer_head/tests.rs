//! Heads as receivers write them, and as nobody should.

use proptest::prelude::*;

use super::*;

/// The plain head, and what is left for the body, of an answer that comes in pieces of this size.
fn read_in(answer: &[u8], piece: usize) -> Result<Option<(String, Vec<u8>)>, HeadError> {
    let mut reader = HeadReader::default();
    let mut at = 0;
    for bytes in answer.chunks(piece) {
        if let Some(head) = reader.read(bytes)? {
            let plain = String::from_utf8(head.plain).unwrap();
            return Ok(Some((plain, answer[at + head.used..].to_vec())));
        }
        at += bytes.len();
    }
    Ok(None)
}

fn plain(answer: &str) -> String {
    let (plain, _) = read_in(answer.as_bytes(), usize::MAX).unwrap().unwrap();
    plain
        .strip_suffix("\r\n\r\n")
        .unwrap()
        .replace(" \r\n", "|")
        .replace("\r\n", "|")
        .trim_end()
        .to_owned()
}

#[test]
fn head_in_any_odd_form_has_its_status_and_a_frame() {
    let many = "x: y\r\n".repeat(5_000);
    let long = format!("x-{}: {}\r\n", "n".repeat(60_000), "v".repeat(60_000));
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200|content-length: 2"),
        ("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n", "HTTP/1.1 200|content-length: 2"),
        ("\r\n\nHTTP/1.1   202   \ncontent-length:2\n\n", "HTTP/1.1 202|content-length: 2"),
        ("http/1.1 200 ok\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200|content-length: 0"),
        (
            &format!("HTTP/1.1 200 OK\r\n{many}content-length: 0\r\n\r\n"),
            "HTTP/1.1 200|content-length: 0",
        ),
        (
            &format!("HTTP/1.1 200 OK\r\n{long}content-length: 0\r\n\r\n"),
            "HTTP/1.1 200|content-length: 0",
        ),
        (
            "HTTP/1.1 200 OK\r\nno colon\r\nbad name: 1\r\n: 2\r\nx\u{0}: \u{1}\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200|content-length: 0",
        ),
        (
            "HTTP/1.1 429 \u{e9}\u{e9}\r\nx: 1\r\n 2\r\n\t3\r\nretry-after:\r\n  7\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 429|content-length: 0|retry-after: 7",
        ),
        (
            "HTTP/1.1 429 No\r\nDate: Sun, 06 Nov 1994\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 429|content-length: 0|retry-after: 7|date: Sun, 06 Nov 1994",
        ),
        (
            "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200|content-length: 0",
        ),
        (
            "HTTP/1.1 503 No\r\nretry-after: \u{e9}\r\ncontent-length : 0\r\n\r\n",
            "HTTP/1.1 503|content-length: 0",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
            "HTTP/1.1 200|transfer-encoding: chunked",
        ),
    ] {
        assert_eq!(plain(answer), expected, "{answer:.200}");
    }
}

#[test]
fn head_that_frames_no_body_for_sure_ends_its_connection() {
    for (answer, expected) in [
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n", "HTTP/1.1 200|content-length: 2"),
        ("HTTP/2 200\r\ncontent-length: 2\r\n\r\n", "HTTP/1.1 200|content-length: 2"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x, Close\r\n\r\n",
            "HTTP/1.1 200|content-length: 2",
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nok", "HTTP/1.1 200|content-length: 1"),
        ("HTTP/1.1 200 OK\r\ncontent-length: a\r\n\r\nok", "HTTP/1.1 200|content-length: 2"),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "HTTP/1.1 200|content-length: 0"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 200|content-length: 2",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200|content-length: 0",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200|transfer-encoding: chunked",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200|transfer-encoding: chunked",
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ncontent-length: 9\r\n\r\n", "HTTP/1.1 200"),
        (
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200|transfer-encoding: chunked",
        ),
        ("HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\nok", "HTTP/1.1 204"),
        ("HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 204"),
        ("HTTP/1.1 204 No\r\n\r\nok", "HTTP/1.1 204"),
    ] {
        assert_eq!(plain(answer), format!("{expected}|connection: close"), "{answer}");
    }
    for kept in [
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 2\r\n\r\n",
    ] {
        assert_eq!(plain(kept), "HTTP/1.1 200|content-length: 2", "{kept}");
    }
    assert_eq!(plain("HTTP/1.1 204 No Content\r\n\r\n"), "HTTP/1.1 204");
}

#[test]
fn head_of_a_final_answer_is_found_behind_a_bounded_number_of_others() {
    let hints = |n: usize| "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(n);
    let last = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(plain(&[&hints(16), last].concat()), "HTTP/1.1 200|content-length: 0");
    let read = |answer: &str| read_in(answer.as_bytes(), 100).unwrap_err();
    assert_eq!(read(&hints(17)), HeadError::Informational);
    assert_eq!(
        read(&format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(HEAD_MAX))),
        HeadError::TooLarge
    );
    assert_eq!(read(&"\r\n".repeat(HEAD_MAX)), HeadError::TooLarge);
    for no_http in [
        "220 mail.example ESMTP",
        "SSH-2.0-x",
        "HTTP/1.1 20\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1\r\n",
        "HTTP/1.1 099 X\r\n",
        "\u{0}",
    ] {
        assert_eq!(read(no_http), HeadError::NoStatus, "{no_http}");
    }
}

proptest! {
    #[test]
    fn head_reads_the_same_however_its_bytes_are_cut(
        lines in proptest::collection::vec(
            prop_oneof![
                Just("content-length: 3".to_owned()), Just("transfer-encoding: chunked".to_owned()),
                Just("retry-after: 9".to_owned()), Just("connection: close".to_owned()),
                Just("HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 Y".to_owned()), "[ -~]{0,40}", "\\PC{0,20}",
            ],
            0..20,
        ),
        piece in 1usize..50,
    ) {
        let answer = format!("HTTP/1.1 200 OK\r\n{}\r\n\r\nabc", lines.join("\r\n")).into_bytes();
        let whole = read_in(&answer, usize::MAX);
        let cut = read_in(&answer, piece);
        // What has come of the body counts where its length cannot be told, and for whether the
        // connection is kept.
        let status = |read: &Result<Option<(String, Vec<u8>)>, HeadError>| {
            read.clone().map(|read| read.map(|(plain, rest)| (plain[..12].to_owned(), rest)))
        };
        prop_assert_eq!(status(&whole), status(&cut));
        if let Ok(Some((plain, _))) = &whole {
            prop_assert!(plain.lines().count() <= 5, "{}", plain);
        }
    }

    #[test]
    fn head_reader_takes_any_bytes_and_holds_few(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000), piece in 1usize..200,
    ) {
        let mut reader = HeadReader::default();
        let _begins_well = reader.read(b"HTTP/1.1 200 OK\r\n");
        for bytes in bytes.chunks(piece) {
            match reader.read(bytes) {
                Ok(None) => prop_assert!(reader.line.len() <= LINE_MAX && reader.fields.len() <= FIELDS_MAX),
                Ok(Some(_)) | Err(_) => break,
            }
        }
    }
}

#[test]
fn head_says_where_more_came_than_its_answer() {
    for (answer, surplus) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", true),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\nto the end", false),
        ("HTTP/1.1 204 No\r\n\r\nok", true),
        // It says so itself.
        ("HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\nok", false),
    ] {
        let head = HeadReader::default().read(answer.as_bytes()).unwrap().unwrap();
        assert_eq!(head.surplus, surplus, "{answer}");
    }
}
