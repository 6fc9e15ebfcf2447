//! Whether the instance of this configuration does its part, asked of the instance itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;
use crate::config::Admin;

/// An instance answers from memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Its answers are a few lines.
const ANSWER_MAX: u64 = 64 << 10;

/// What the instance says of itself.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HealthView {
    /// Whether it does its part.
    pub(crate) healthy: bool,
    /// Its own words.
    pub(crate) answer: String,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// Whether it is alive: also a halted instance is, until it has ended.
    Live,
    /// Whether it is ready.
    Ready,
}

/// Asks the instance that runs here with this configuration.
///
/// # Errors
/// When none answers.
pub(crate) async fn read(admin: &Admin, question: Question) -> Result<HealthView, Failure> {
    let address = reachable(admin.listen);
    let path = match question {
        Question::Live => "/livez",
        Question::Ready => "/readyz",
    };
    let health = timeout(PATIENCE, ask(address, path))
        .await
        .unwrap_or_else(|_| bail!("no answer within {PATIENCE:?}"))
        .with_context(|| format!("no instance answers at {address} (`admin.listen`)"))?;
    Ok(health)
}

/// Who listens on every interface is reached on the loopback one.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

pub(super) async fn ask(address: SocketAddr, path: &str) -> Result<HealthView> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("its answer is not HTTP")?;
    let status = head.split(' ').nth(1).context("its answer has no status")?;
    Ok(HealthView { healthy: status == "200", answer: body.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::server::admin;
    use crate::server::health::{self, Role};
    use crate::server::metrics::Metrics;

    #[tokio::test]
    async fn health_is_what_the_instance_says_of_itself() {
        let listener = admin::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let listen = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new("walhook", []).unwrap());
        let (tell, health) = watch::channel(health::Health::default());
        let mut server = JoinSet::new();
        server.spawn(admin::serve(listener, metrics, health, CancellationToken::new()));
        for (role, healthy, answer) in [
            (Role::Standby, true, "ready"),
            (Role::Halted("the slot is lost".into()), false, "halted: the slot is lost"),
        ] {
            tell.send_modify(|health| health.role = role);
            let expected = HealthView { healthy, answer: answer.to_owned() };
            assert_eq!(ask(reachable(listen), "/readyz").await.unwrap(), expected);
            assert!(ask(reachable(listen), "/livez").await.unwrap().healthy);
        }
        server.shutdown().await;
        assert!(ask(reachable(listen), "/readyz").await.is_err());
    }

    #[test]
    fn address_that_means_every_interface_is_asked_on_the_loopback_one() {
        for (listen, asked) in [
            ("0.0.0.0:9723", "127.0.0.1:9723"),
            ("[::]:9723", "[::1]:9723"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }
}
