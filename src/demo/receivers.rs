//! The accounts' endpoints: real sockets that verify what comes and enter it into the books.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, StatusCode, Uri};
use rand::RngExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::ledger::Receipt;
use super::plan::{Class, Endpoint};
use super::receive::{Example, change_in};
use super::writer::Books;

/// How long the slow endpoint takes.
const SLOW: Duration = Duration::from_secs(2);

/// How long the whale's endpoint takes: with it, the flood holds every slot it can get.
const WHALE: Duration = Duration::from_millis(100);

/// How often the flaky endpoint fails.
const FLAKY: f64 = 0.3;

/// All endpoints, until dropped.
#[derive(Debug)]
pub struct Receivers {
    address: SocketAddr,
    /// Bound and never listened on, so that connections are refused.
    dead: TcpSocket,
    shared: Arc<Shared>,
    server: JoinSet<std::io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    endpoints: HashMap<i64, Endpoint>,
    books: Books,
    example: Mutex<Option<Example>>,
    example_taken: AtomicBool,
}

impl Receivers {
    /// Listens on a loopback port.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(endpoints: &[Endpoint], books: Books) -> Result<Self> {
        let dead = TcpSocket::new_v4()?;
        dead.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let endpoints = endpoints.iter().map(|endpoint| (endpoint.id, *endpoint)).collect();
        let example_taken = AtomicBool::new(false);
        let shared =
            Arc::new(Shared { endpoints, books, example: Mutex::new(None), example_taken });
        let router =
            Router::new().route("/hooks/{endpoint}", post(receive)).with_state(shared.clone());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, dead, shared, server })
    }

    /// Where an endpoint's webhooks go.
    ///
    /// # Errors
    /// When the dead endpoint's port cannot be told.
    pub fn url(&self, endpoint: &Endpoint) -> Result<String> {
        let address = match endpoint.class {
            Class::Dead => self.dead.local_addr()?,
            Class::Small | Class::Slow | Class::Flaky | Class::Whale => self.address,
        };
        Ok(format!("http://{address}/hooks/{}", endpoint.id))
    }

    /// The first request of a small account, once.
    #[must_use]
    pub fn take_example(&self) -> Option<Example> {
        self.shared.example.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Says when the server has ended, which it does only by an error. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.server.join_next().await {
            Some(Ok(Err(error))) => anyhow::Error::new(error).context("the mock endpoints"),
            Some(Err(error)) => anyhow::Error::new(error).context("the mock endpoints"),
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("the mock endpoints have ended"),
        }
    }
}

/// One request: scripted as its endpoint's class says, entered when it is answered. A request that
/// the pipeline has given up, or was killed over, is not answered and not entered.
async fn receive(
    State(shared): State<Arc<Shared>>,
    Path(endpoint): Path<i64>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Some(endpoint) = shared.endpoints.get(&endpoint) else { return StatusCode::NOT_FOUND };
    if !is_signed(endpoint, &headers, &body) {
        shared.books.with(|ledger, _| ledger.handle_unverified());
        return StatusCode::UNAUTHORIZED;
    }
    match endpoint.class {
        Class::Slow => sleep(SLOW).await,
        Class::Whale => sleep(WHALE).await,
        Class::Flaky if rand::rng().random_bool(FLAKY) => return StatusCode::SERVICE_UNAVAILABLE,
        Class::Small | Class::Flaky | Class::Dead => {}
    }
    let (Some(event_id), Ok(change)) = (header(&headers, "webhook-id"), change_in(&body)) else {
        return StatusCode::BAD_REQUEST;
    };
    let receipt = Receipt { endpoint: endpoint.id, event_id, change };
    shared.books.with(|ledger, at| ledger.handle_received(receipt, at));
    if endpoint.class == Class::Small && !shared.example_taken.swap(true, Ordering::Relaxed) {
        let example = Example::new(endpoint, uri.path(), &headers, &body);
        *shared.example.lock().unwrap_or_else(PoisonError::into_inner) = Some(example);
    }
    StatusCode::NO_CONTENT
}

/// Whether one of the request's signatures is ours: Standard Webhooks, HMAC-SHA256.
fn is_signed(endpoint: &Endpoint, headers: &HeaderMap, body: &[u8]) -> bool {
    let (Some(id), Some(timestamp), Some(signatures)) = (
        header(headers, "webhook-id"),
        header(headers, "webhook-timestamp"),
        header(headers, "webhook-signature"),
    ) else {
        return false;
    };
    let Ok(mut mac) = Hmac::<sha2::Sha256>::new_from_slice(endpoint.key().as_bytes()) else {
        return false;
    };
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    signatures
        .split(' ')
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::ledger::Ledger;
    use crate::demo::plan;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    const BODY: &str = r#"{"type":"subscriber.created","data":{"id":7,"version":7}}"#;

    async fn post(url: &str, key: &str) -> String {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(format!("evt_1.1700000000.{BODY}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let request = format!(
            "POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\
             webhook-id: evt_1\r\nwebhook-timestamp: 1700000000\r\n\
             webhook-signature: v1,AAAA v1,{signature}\r\n\r\n{BODY}",
            BODY.len()
        );
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    }

    #[tokio::test]
    async fn receivers_enter_what_verifies_and_refuse_what_does_not() {
        let endpoints = plan::endpoints(&plan::accounts());
        let books = Books::open(Ledger::new(&endpoints));
        let receivers = Receivers::start(&endpoints, books.clone()).await.unwrap();
        let small = endpoints.iter().find(|e| e.class == Class::Small).unwrap();
        let url = receivers.url(small).unwrap();

        assert_eq!(post(&url, "another key").await, "401");
        let seen = |ledger: &mut Ledger, _| (ledger.verified(), ledger.violations().unverified);
        assert_eq!(books.with(seen), (0, 1));
        assert!(receivers.take_example().is_none());

        assert_eq!(post(&url, &small.key()).await, "204");
        assert_eq!(books.with(seen), (1, 1));
        assert!(receivers.take_example().unwrap().to_string().contains(BODY));
        assert!(receivers.take_example().is_none(), "only the first");
    }

    #[tokio::test]
    async fn dead_endpoint_refuses_connections() {
        let endpoints = plan::endpoints(&plan::accounts());
        let books = Books::open(Ledger::new(&endpoints));
        let receivers = Receivers::start(&endpoints, books).await.unwrap();
        let dead = endpoints.iter().find(|e| e.class == Class::Dead).unwrap();
        let url = receivers.url(dead).unwrap();
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let refused = TcpStream::connect(host).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
