//! An instance, asked over its admin server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use url::Url;

use crate::config::Admin;

/// An instance answers from memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Its answers are a few lines.
const ANSWER_MAX: usize = 1 << 20;

/// What it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Whether the status is 200.
    pub(super) is_ok: bool,
    /// The body, without white space around it.
    pub(super) text: String,
}

/// Where it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance(Url);

impl Instance {
    /// The one that runs on this machine with this configuration.
    pub(super) fn here(admin: &Admin) -> Result<Self> {
        let address = reachable(admin.listen);
        Ok(Self(Url::parse(&format!("http://{address}/"))?))
    }

    /// The one whose admin server is there.
    pub(super) fn at(url: Url) -> Self {
        Self(url)
    }

    /// Where it is, for a person.
    pub(super) fn address(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0
            .port_or_known_default()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Asks it, for three seconds at most. Proxies and redirects are nothing for an admin server.
    ///
    /// # Errors
    /// When it does not answer, or answers with more than a mebibyte.
    pub(super) async fn get(&self, path: &str) -> Result<Answer> {
        // Where one is installed already it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()?;
        let url = self.0.join(path)?;
        let mut answer = client.get(url).send().await.map_err(plain)?;
        let is_ok = answer.status() == reqwest::StatusCode::OK;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(plain)? {
            if body.len() + chunk.len() > ANSWER_MAX {
                bail!("its answer is no admin server's: it is longer than 1 MiB");
            }
            body.extend_from_slice(&chunk);
        }
        let text = String::from_utf8(body).context("its answer is no UTF-8")?;
        Ok(Answer { is_ok, text: text.trim().to_owned() })
    }
}

/// Without the URL, which whoever asked knows.
fn plain(error: reqwest::Error) -> anyhow::Error {
    if error.is_timeout() {
        return anyhow::anyhow!("no answer within {PATIENCE:?}");
    }
    error.without_url().into()
}

/// Who listens on every interface is reached on the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_means_every_interface_is_asked_on_the_loopback_one() {
        for (listen, asked) in [
            ("0.0.0.0:9723", "127.0.0.1:9723"),
            ("[::]:9723", "[::1]:9723"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            let here = Instance::here(&Admin { listen: listen.parse().unwrap() }).unwrap();
            assert_eq!(here.address(), asked);
        }
        let there = Instance::at("https://walhook.internal/".parse().unwrap());
        assert_eq!(there.address(), "walhook.internal:443");
    }
}
