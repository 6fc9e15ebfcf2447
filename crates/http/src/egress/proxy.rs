//! `egress.proxy`: what its URL says, and the words of CONNECT.
//!
//! The tunnel is asked for by address, never by name: a proxy that resolved the name itself could be
//! led to an address that was not checked.
//!
//! Source: RFC 9110, section 9.3.6, "CONNECT"; RFC 7617, "The 'Basic' HTTP Authentication Scheme".

use core::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use walhook_core::endpoint::Secret;

/// A proxy that opens tunnels by CONNECT.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its name or address; not judged by the policy, since it is the operator's own.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The value of `proxy-authorization`, where the URL holds a user.
    authorization: Option<Secret>,
}

/// The URL names no proxy that can be used. Holds nothing of the URL, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It is no URL, or has no host.
    #[error("is not a URL; write http://proxy.internal:3128")]
    NotUrl,
    /// Not `http://`.
    #[error(
        "is not http://, the one way to reach a proxy; what goes through the tunnel may be https"
    )]
    Scheme,
    /// There is more than an address.
    #[error("has a path or a query; write http://proxy.internal:3128")]
    Path,
}

/// What a proxy said to CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelAnswer {
    /// More bytes are needed to tell.
    Partial,
    /// The tunnel is open.
    Open,
    /// It is not, for this reason, which may be the address's.
    Refused(String),
    /// It is not, nor is any other: the proxy takes us for a stranger, or is none.
    Failed(String),
}

/// What a proxy said to [`Proxy::greeting_request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Greeting {
    /// More bytes are needed to tell.
    Partial,
    /// It speaks HTTP.
    Answers,
    /// It does not, or takes us for a stranger.
    Failed(String),
}

/// A proxy's whole answer to CONNECT has at most so many bytes.
pub const TUNNEL_ANSWER_MAX: usize = 8 << 10;

impl Proxy {
    /// Reads the URL.
    ///
    /// # Errors
    /// [`ProxyError`]
    pub fn parse(url: &Secret) -> Result<Self, ProxyError> {
        let url = Url::parse(url.expose()).map_err(|_| ProxyError::NotUrl)?;
        if url.scheme() != "http" {
            return Err(ProxyError::Scheme);
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(ProxyError::Path);
        }
        let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
        let authorization = (!url.username().is_empty() || url.password().is_some()).then(|| {
            let password = decoded(url.password().unwrap_or_default());
            let pair = [decoded(url.username()), password].join(&b':');
            Secret::new(format!("Basic {}", STANDARD.encode(pair)))
        });
        Ok(Self {
            host: url.host().ok_or(ProxyError::NotUrl)?.to_owned(),
            // The scheme's own port, 80, is what the URL means without one.
            port: url.port_or_known_default().ok_or(ProxyError::NotUrl)?,
            authorization,
        })
    }

    /// The request for a tunnel to this address.
    #[must_use]
    pub fn connect_request(&self, to: SocketAddr) -> String {
        format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n{}\r\n", self.authorization())
    }

    /// A request that concerns the proxy alone: whoever speaks HTTP answers it in some way.
    #[must_use]
    pub fn greeting_request(&self) -> String {
        let Self { host, port, .. } = self;
        let authorization = self.authorization();
        format!(
            "OPTIONS * HTTP/1.1\r\nhost: {host}:{port}\r\n{authorization}connection: close\r\n\r\n"
        )
    }

    /// The header, where there is one.
    fn authorization(&self) -> String {
        self.authorization.as_ref().map_or_else(String::new, |value| {
            format!("proxy-authorization: {}\r\n", value.expose())
        })
    }
}

/// Judges what a proxy has answered so far.
#[must_use]
pub fn tunnel_answer(read: &[u8]) -> TunnelAnswer {
    let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return if read.len() < TUNNEL_ANSWER_MAX {
            TunnelAnswer::Partial
        } else {
            TunnelAnswer::Failed(ENDLESS.to_owned())
        };
    };
    let head = String::from_utf8_lossy(read.get(..end).unwrap_or_default());
    let Some(status) = status_of(&head) else {
        return TunnelAnswer::Failed(NO_HTTP.to_owned());
    };
    match status.split(' ').next().unwrap_or_default() {
        // An endpoint speaks after us, never before: what follows is not the endpoint's.
        code if code.len() == 3 && code.starts_with('2') => match read.len() == end + 4 {
            true => TunnelAnswer::Open,
            false if has_body(&head) => TunnelAnswer::Failed(format!(
                "it answered {status} with a page of its own; it is no proxy, or wants a log-in first"
            )),
            false => TunnelAnswer::Refused("it sent more than its answer".to_owned()),
        },
        "407" => TunnelAnswer::Failed(stranger(status)),
        _ => TunnelAnswer::Refused(format!("it answered {status}")),
    }
}

/// Judges what a proxy has answered so far to [`Proxy::greeting_request`].
#[must_use]
pub fn greeting(read: &[u8]) -> Greeting {
    let Some(end) = read.iter().position(|byte| *byte == b'\n') else {
        return match read.len() < TUNNEL_ANSWER_MAX {
            true => Greeting::Partial,
            false => Greeting::Failed(ENDLESS.to_owned()),
        };
    };
    let line = String::from_utf8_lossy(read.get(..end).unwrap_or_default());
    match status_of(&line) {
        None => Greeting::Failed(NO_HTTP.to_owned()),
        Some(status) if status.starts_with("407") => Greeting::Failed(stranger(status)),
        Some(_) => Greeting::Answers,
    }
}

const ENDLESS: &str = "its answer does not end";
const NO_HTTP: &str = "its answer is not HTTP";

fn stranger(status: &str) -> String {
    format!("it answered {status}; give the user and password in egress.proxy")
}

/// Whether a head announces a body. A proxy that opens a tunnel announces none, or does so by mistake and sends none.
fn has_body(head: &str) -> bool {
    head.lines().filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("transfer-encoding")
            || name.eq_ignore_ascii_case("content-length") && value.trim() != "0"
    })
}

/// The status and its words, where the answer is one of HTTP/1.
fn status_of(head: &str) -> Option<&str> {
    let line = head.lines().next()?.trim_end();
    line.strip_prefix("HTTP/1.")?.split_once(' ').map(|(_, status)| status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(url: &str, to: &str) -> String {
        Proxy::parse(&Secret::new(url)).unwrap().connect_request(to.parse().unwrap())
    }

    #[test]
    fn proxy_is_asked_for_an_address_with_what_its_url_says() {
        assert_eq!(
            request("http://proxy.internal:3128", "192.0.2.7:443"),
            "CONNECT 192.0.2.7:443 HTTP/1.1\r\nhost: 192.0.2.7:443\r\n\r\n"
        );
        let with_user = request("http://me:p%40ss%3A@10.0.0.1:3128/", "[2001:db8::7]:80");
        let basic = STANDARD.encode("me:p@ss:");
        assert_eq!(
            with_user,
            format!(
                "CONNECT [2001:db8::7]:80 HTTP/1.1\r\nhost: [2001:db8::7]:80\r\n\
                 proxy-authorization: Basic {basic}\r\n\r\n"
            )
        );
    }

    #[test]
    fn proxy_url_that_cannot_be_used_is_refused_without_its_password() {
        for (url, expected) in [
            ("", ProxyError::NotUrl),
            ("proxy.internal", ProxyError::NotUrl),
            ("http://me:hush@:3128", ProxyError::NotUrl),
            ("https://me:hush@proxy:3128", ProxyError::Scheme),
            ("socks5://me:hush@proxy:1080", ProxyError::Scheme),
            ("proxy.internal:3128", ProxyError::Scheme),
            ("http://proxy:3128/path", ProxyError::Path),
            ("http://proxy:3128?hush", ProxyError::Path),
        ] {
            let error = Proxy::parse(&Secret::new(url)).unwrap_err();
            assert_eq!(error, expected, "{url}");
            assert!(!error.to_string().contains("hush"));
        }
        let proxy = Proxy::parse(&Secret::new("http://me:hush@proxy")).unwrap();
        assert!(!format!("{proxy:?}").contains("hush") && proxy.port == 80);
    }

    #[test]
    fn answer_opens_the_tunnel_only_when_it_is_whole_and_2xx() {
        let refused = |text: &[u8]| match tunnel_answer(text) {
            TunnelAnswer::Refused(reason) => reason,
            other @ (TunnelAnswer::Partial | TunnelAnswer::Open | TunnelAnswer::Failed(_)) => {
                panic!("{other:?}")
            }
        };
        let failed = |text: &[u8]| match tunnel_answer(text) {
            TunnelAnswer::Failed(reason) => reason,
            other @ (TunnelAnswer::Partial | TunnelAnswer::Open | TunnelAnswer::Refused(_)) => {
                panic!("{other:?}")
            }
        };
        let open = b"HTTP/1.1 200 Connection established\r\nvia: x\r\n\r\n";
        for end in 0..open.len() {
            assert_eq!(tunnel_answer(&open[..end]), TunnelAnswer::Partial);
        }
        assert_eq!(tunnel_answer(open), TunnelAnswer::Open);
        assert_eq!(tunnel_answer(b"HTTP/1.0 204\r\n\r\n"), TunnelAnswer::Open);
        assert!(refused(&[open, &b"x"[..]].concat()).contains("more than its answer"));
        for body in ["Content-Length: 5", "transfer-encoding: chunked"] {
            let announced = format!("HTTP/1.1 200 OK\r\nvia: x\r\n{body}\r\n\r\n");
            assert_eq!(tunnel_answer(announced.as_bytes()), TunnelAnswer::Open, "and not sent");
            let sent = announced + "<html>";
            assert!(failed(sent.as_bytes()).contains("200 OK with a page of its own"));
        }
        let empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nSSH-2.0-x";
        assert!(refused(empty).contains("more than its answer"), "an endpoint may have said that");
        assert!(
            failed(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").contains("egress.proxy")
        );
        assert_eq!(refused(b"HTTP/1.1 403 Forbidden\r\n\r\n"), "it answered 403 Forbidden");
        assert_eq!(failed(b"220 mail ESMTP\r\n\r\n"), "its answer is not HTTP");
        assert_eq!(refused(b"HTTP/1.1 2000 x\r\n\r\n"), "it answered 2000 x");
        assert_eq!(failed(&[b'x'; TUNNEL_ANSWER_MAX]), "its answer does not end");
    }
    #[test]
    fn proxy_answers_a_greeting_by_any_line_of_http() {
        for line in ["HTTP/1.1 200 OK\r\n", "HTTP/1.0 400 Bad Request\r\nx: ", "HTTP/1.1 405\n"] {
            assert_eq!(greeting(line.as_bytes()), Greeting::Answers, "{line:?}");
            assert_eq!(greeting(&line.as_bytes()[..8]), Greeting::Partial);
        }
        let failed = |text: &[u8]| match greeting(text) {
            Greeting::Failed(reason) => reason,
            other @ (Greeting::Partial | Greeting::Answers) => panic!("{other:?}"),
        };
        assert!(failed(b"HTTP/1.1 407 Authenticate\r\n\r\n").contains("egress.proxy"));
        assert_eq!(failed(b"SSH-2.0-x\r\n"), NO_HTTP);
        assert_eq!(failed(&[b'x'; TUNNEL_ANSWER_MAX]), ENDLESS);
        let url = Secret::new("http://me:hush@[::1]:3128");
        let request = Proxy::parse(&url).unwrap().greeting_request();
        assert!(request.starts_with("OPTIONS * HTTP/1.1\r\nhost: [::1]:3128\r\nproxy-auth"));
    }
}
