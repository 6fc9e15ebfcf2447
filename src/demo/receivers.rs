//! The accounts' endpoints: real sockets that verify what comes and enter it into the oracle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use tokio::net::TcpSocket;
use walhook_testkit::change::Change;
use walhook_testkit::oracle::{Receipt, Shared};
use walhook_testkit::receiver::{Behaviour, Received, Receiver, Settings};

use super::plan::{Class, Endpoint};
use super::receive::Example;

/// How long the slow endpoint takes.
const SLOW: Duration = Duration::from_secs(2);

/// How long the whale's endpoint takes: with it, the flood holds every slot it can get.
const WHALE: Duration = Duration::from_millis(100);

/// How often the flaky endpoint fails.
const FLAKY: f64 = 0.3;

/// All endpoints, until dropped.
#[derive(Debug)]
pub struct Receivers {
    receiver: Receiver,
    /// Bound and never listened on, so that connections are refused.
    dead: TcpSocket,
    example: Arc<OnceLock<Example>>,
    example_taken: bool,
}

impl Receivers {
    /// Listens on a loopback port. A request is entered into the oracle when it is answered: one that the
    /// pipeline has given up, or was killed over, is not.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(endpoints: &[Endpoint], oracle: Shared) -> Result<Self> {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let dead = TcpSocket::new_v4()?;
        dead.bind(any_port)?;
        let of_path: Arc<HashMap<String, Endpoint>> =
            Arc::new(endpoints.iter().map(|endpoint| (path(endpoint), *endpoint)).collect());
        let example = Arc::new(OnceLock::new());
        let (shown, secrets) = (Arc::clone(&example), Arc::clone(&of_path));
        let settings = Settings {
            verify: Some(Arc::new(move |signed| {
                secrets.get(signed.path).is_some_and(|endpoint| signed.fits(&endpoint.secret()))
            })),
            strict: true,
            keep: 0,
            on_request: Some(Arc::new(move |request| enter(request, &of_path, &oracle, &shown))),
            default: Some(Behaviour::status(StatusCode::NOT_FOUND)),
            ..Settings::default()
        };
        let receiver = Receiver::start(any_port, settings).await?;
        for endpoint in endpoints {
            receiver.set_behaviour(&path(endpoint), behaviour(endpoint.class));
        }
        Ok(Self { receiver, dead, example, example_taken: false })
    }

    /// Where an endpoint's webhooks go.
    ///
    /// # Errors
    /// When the dead endpoint's port cannot be told.
    pub fn url(&self, endpoint: &Endpoint) -> Result<String> {
        let address = match endpoint.class {
            Class::Dead => self.dead.local_addr()?,
            Class::Small | Class::Slow | Class::Flaky | Class::Whale => self.receiver.address(),
        };
        Ok(format!("http://{address}{}", path(endpoint)))
    }

    /// The first request of a small account, once.
    #[must_use]
    pub fn take_example(&mut self) -> Option<Example> {
        let example = self.example.get().filter(|_| !self.example_taken)?;
        self.example_taken = true;
        Some(example.clone())
    }

    /// Says when the server has ended, which it does only by an error. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.receiver.failed().await
    }
}

fn path(endpoint: &Endpoint) -> String {
    format!("/hooks/{}", endpoint.id)
}

fn behaviour(class: Class) -> Behaviour {
    let status = StatusCode::NO_CONTENT;
    let delay = match class {
        Class::Slow => SLOW,
        Class::Whale => WHALE,
        Class::Small | Class::Flaky | Class::Dead => Duration::ZERO,
    };
    let fail_rate = if class == Class::Flaky { FLAKY } else { 0.0 };
    Behaviour { status, delay, fail_rate, ..Behaviour::ok() }
}

/// Enters a request that is about to be answered.
fn enter(
    request: &Received,
    endpoints: &HashMap<String, Endpoint>,
    oracle: &Shared,
    example: &OnceLock<Example>,
) -> Result<()> {
    let Some(endpoint) = endpoints.get(&request.path) else { return Ok(()) };
    if !request.verified {
        oracle.with(|oracle, _| oracle.unverified());
    }
    if !request.is_taken() {
        return Ok(());
    }
    let receipt = Receipt {
        endpoint: endpoint.id,
        event_id: &request.id,
        change: Change::in_body(&request.body)?,
        body: &request.body,
        taken: true,
        replay: request.replay,
    };
    oracle.with(|oracle, at| oracle.received(receipt, at));
    if endpoint.class == Class::Small {
        let Received { path, headers, body, .. } = request;
        example.get_or_init(|| Example::new(endpoint, path, headers, body));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use walhook_testkit::clock::unix_us;
    use walhook_testkit::oracle::Oracle;
    use walhook_testkit::sign::sign;

    const BODY: &str = r#"{"type":"subscriber.created","data":{"id":7,"version":7}}"#;

    async fn post(url: &str, secret: &str) -> String {
        let now = unix_us() / 1_000_000;
        let signature = sign(secret, "evt_1", now, BODY.as_bytes());
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let request = format!(
            "POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\
             webhook-id: evt_1\r\nwebhook-timestamp: {now}\r\n\
             webhook-signature: v1,AAAA {signature}\r\n\r\n{BODY}",
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
        let oracle = Shared::open(Oracle::new(&plan::owed(&endpoints)));
        let mut receivers = Receivers::start(&endpoints, oracle.clone()).await.unwrap();
        let small = endpoints.iter().find(|e| e.class == Class::Small).unwrap();
        let url = receivers.url(small).unwrap();

        assert_eq!(post(&url, "another key").await, "401");
        let seen = |oracle: &mut Oracle, _| (oracle.taken(), oracle.faults().unverified);
        assert_eq!(oracle.with(seen), (0, 1));
        assert!(receivers.take_example().is_none());

        assert_eq!(post(&url, &small.secret()).await, "204");
        assert_eq!(oracle.with(seen), (1, 1));
        assert!(receivers.take_example().unwrap().to_string().contains(BODY));
        assert!(receivers.take_example().is_none(), "only the first");
    }

    #[tokio::test]
    async fn dead_endpoint_refuses_connections() {
        let endpoints = plan::endpoints(&plan::accounts());
        let oracle = Shared::open(Oracle::new(&plan::owed(&endpoints)));
        let receivers = Receivers::start(&endpoints, oracle).await.unwrap();
        let dead = endpoints.iter().find(|e| e.class == Class::Dead).unwrap();
        let url = receivers.url(dead).unwrap();
        let host = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
        let refused = TcpStream::connect(host).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}
