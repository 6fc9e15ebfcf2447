//! Tunnels of `egress.proxy`: asked for by address, and no more often than the proxy is well ([`ProxyHealth`]).
//!
//! A proxy that has not answered for one address may be waiting for that one. So a name's addresses are asked for
//! beside each other, and only where none was answered for, the proxy is asked whether it answers at all.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use super::connect::{ADDRESSES_MAX, ConnectError, HEAD_START, choose, dial, permitted, race};
use super::error::{DETAIL_MAX, printable};
use crate::egress::{
    Blame, Greeting, Opened, Proxy, ProxyHealth, ProxyTrouble, TUNNEL_ANSWER_MAX, TunnelAnswer,
    greeting, tunnel_answer,
};
use crate::resolve::Resolver;
use walhook_core::event::AccountId;
use walhook_process::faults::Fault;

/// Addresses of one name that a proxy is asked for.
pub(super) const TUNNELS_MAX: usize = 3;

/// The proxy, and what is known of it.
#[derive(Debug)]
pub(super) struct Tunnels {
    proxy: Proxy,
    resolver: Resolver,
    /// For a whole connection.
    patience: Duration,
    health: Mutex<ProxyHealth>,
    /// Where the next one begins of the proxy's addresses, where they are too many to be tried.
    turn: AtomicU32,
}

/// Why there is no tunnel.
enum NoTunnel {
    /// We have nothing left to reach the proxy with.
    Local(ConnectError),
    /// The proxy fails, whoever is asked for.
    Proxy(String),
    /// It said no to this address.
    Refused(String),
    /// It was reached, and has not answered: for this address, or at all.
    Silent(String),
}

impl NoTunnel {
    /// As it may be shown.
    fn into_said(self) -> String {
        match self {
            Self::Local(error) => said(&error.to_string()),
            Self::Proxy(reason) | Self::Refused(reason) | Self::Silent(reason) => said(&reason),
        }
    }
}

impl Tunnels {
    pub(super) fn new(proxy: Proxy, resolver: Resolver, patience: Duration) -> Self {
        let health = Mutex::new(ProxyHealth::new(patience));
        Self { proxy, resolver, patience, health, turn: AtomicU32::default() }
    }

    /// What is wrong with the proxy now.
    pub(super) fn trouble(&self) -> Option<ProxyTrouble> {
        self.health().trouble(Instant::now())
    }

    /// Somebody answered through a tunnel.
    pub(super) fn answered(&self) {
        self.health().answered();
    }

    /// A tunnel to the first of the host's addresses for which the proxy opens one. `began`: since when a connection
    /// is waited for.
    pub(super) async fn open(
        self: &Arc<Self>,
        host: &Host,
        to: &[SocketAddr],
        began: Instant,
    ) -> Result<TcpStream, ConnectError> {
        self.health().admit(host, Instant::now()).map_err(ConnectError::Proxy)?;
        // Short of the time for the whole connection, so that there is some left to find out whose fault it is.
        let (patience, by) = (self.patience * 7 / 10, began + self.patience * 9 / 10);
        match self.first_of(to, HEAD_START, began, patience).await {
            Ok((stream, address)) => {
                self.health().opened(Opened { host: host.clone(), address });
                Ok(stream)
            }
            Err(NoTunnel::Local(error)) => Err(error),
            Err(NoTunnel::Proxy(reason)) => Err(self.fails(&reason)),
            Err(NoTunnel::Refused(reason)) => Err(self.judge(host, &reason, by).await),
            Err(NoTunnel::Silent(reason)) => match timeout_at(by, self.greet()).await {
                Ok(Ok(())) => Err(self.judge(host, &reason, by).await),
                Ok(Err(NoTunnel::Local(error))) => Err(error),
                Ok(Err(NoTunnel::Proxy(reason))) => Err(self.fails(&reason)),
                Ok(Err(NoTunnel::Refused(_) | NoTunnel::Silent(_))) | Err(_) => {
                    Err(self.fails(&reason))
                }
            },
        }
    }

    /// Whether the proxy answers at all, and takes its user and password.
    pub(super) async fn look(&self) -> Result<(), String> {
        let looked = timeout_at(Instant::now() + self.patience, self.greet()).await;
        looked.unwrap_or_else(|_| Err(late(self.patience))).map_err(NoTunnel::into_said)
    }

    /// Whether the proxy opens a tunnel to where this URL leads; `None` where it does not lead anywhere.
    pub(super) async fn look_for(self: &Arc<Self>, url: &Url) -> Option<Result<(), String>> {
        let (host, port) = (url.host()?.to_owned(), url.port_or_known_default()?);
        let nobody = AccountId::new("");
        let mut addresses = permitted(&self.resolver, &host, port, &nobody).await.ok()?;
        addresses.truncate(TUNNELS_MAX);
        let looked = self.first_of(&addresses, HEAD_START, Instant::now(), self.patience).await;
        Some(looked.map(|_closed| ()).map_err(NoTunnel::into_said))
    }

    /// Whose fault it is that the proxy opens no tunnel to this host.
    async fn judge(self: &Arc<Self>, host: &Host, reason: &str, by: Instant) -> ConnectError {
        let now = Instant::now();
        let blame = self.health().refused(host, now);
        match blame {
            Blame::Endpoint => ConnectError::Tunnel(reason.to_owned()),
            Blame::Proxy => self.opens_none(host, reason),
            Blame::Unless(opened) => {
                let to: Vec<SocketAddr> = opened.iter().map(|it| it.address).collect();
                // All at once: there may be little time left.
                let left = by.saturating_duration_since(now);
                match self.first_of(&to, Duration::ZERO, now, left).await {
                    Ok((_closed, address)) => {
                        let again = opened.into_iter().find(|it| it.address == address);
                        again.into_iter().for_each(|it| self.health().opened(it));
                        ConnectError::Tunnel(reason.to_owned())
                    }
                    Err(NoTunnel::Local(error)) => error,
                    Err(NoTunnel::Proxy(reason)) => self.fails(&reason),
                    Err(NoTunnel::Refused(_) | NoTunnel::Silent(_)) => {
                        self.opens_none(host, reason)
                    }
                }
            }
        }
    }

    fn fails(&self, reason: &str) -> ConnectError {
        let reason = said(reason);
        self.health().failed(reason.clone(), Instant::now());
        ConnectError::Proxy(reason)
    }

    fn opens_none(&self, host: &Host, reason: &str) -> ConnectError {
        let reason = said(reason);
        self.health().opens_none(host, reason.clone(), Instant::now());
        ConnectError::Proxy(reason)
    }

    fn health(&self) -> MutexGuard<'_, ProxyHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tunnel to the first of the addresses for which the proxy opens one, if it does within so long of `began`.
    /// Each has the head start before the next.
    async fn first_of(
        self: &Arc<Self>,
        to: &[SocketAddr],
        head_start: Duration,
        began: Instant,
        within: Duration,
    ) -> Result<(TcpStream, SocketAddr), NoTunnel> {
        let first = race(to, head_start, |address| {
            let tunnels = Arc::clone(self);
            async move {
                let asked = timeout_at(began + within, tunnels.ask_for(address)).await;
                match asked.unwrap_or_else(|_| Err(late(within))) {
                    Ok(stream) => ControlFlow::Break(Ok((stream, address))),
                    Err(why @ NoTunnel::Proxy(_)) => ControlFlow::Break(Err(why)),
                    Err(NoTunnel::Refused(why)) => {
                        ControlFlow::Continue(NoTunnel::Refused(format!("{address}: {why}")))
                    }
                    Err(why @ (NoTunnel::Local(_) | NoTunnel::Silent(_))) => {
                        ControlFlow::Continue(why)
                    }
                }
            }
        });
        first.await.unwrap_or_else(|failed| {
            // What we could not ask for might have been opened. And a proxy that answered for one address is there, so
            // that it need not be asked whether it is.
            let told = failed.into_iter().max_by_key(|why| match why {
                NoTunnel::Local(_) | NoTunnel::Proxy(_) => 2,
                NoTunnel::Refused(_) => 1,
                NoTunnel::Silent(_) => 0,
            });
            Err(told.unwrap_or_else(|| NoTunnel::Refused("there is no address".to_owned())))
        })
    }

    async fn ask_for(&self, to: SocketAddr) -> Result<TcpStream, NoTunnel> {
        let mut stream = self.reach().await?;
        let asked = stream.write_all(self.proxy.connect_request(to).as_bytes()).await;
        asked.map_err(broken)?;
        let mut answer = Vec::with_capacity(256);
        loop {
            read_more(&mut stream, &mut answer).await?;
            match tunnel_answer(&answer) {
                TunnelAnswer::Partial => {}
                TunnelAnswer::Open => return Ok(stream),
                TunnelAnswer::Refused(reason) => return Err(NoTunnel::Refused(reason)),
                TunnelAnswer::Failed(reason) => return Err(NoTunnel::Proxy(reason)),
            }
        }
    }

    /// Asks the proxy for something of its own: that it answers is enough.
    async fn greet(&self) -> Result<(), NoTunnel> {
        let mut stream = self.reach().await?;
        let asked = stream.write_all(self.proxy.greeting_request().as_bytes()).await;
        asked.map_err(broken)?;
        let mut answer = Vec::with_capacity(256);
        loop {
            read_more(&mut stream, &mut answer).await?;
            match greeting(&answer) {
                Greeting::Partial => {}
                Greeting::Answers => return Ok(()),
                Greeting::Failed(reason) => return Err(NoTunnel::Proxy(reason)),
            }
        }
    }

    /// A connection to the proxy.
    async fn reach(&self) -> Result<TcpStream, NoTunnel> {
        let unreachable = |error: ConnectError| match error.of_system().and_then(Fault::of) {
            Some(_) => NoTunnel::Local(error),
            None => NoTunnel::Proxy(format!("cannot reach it: {error}")),
        };
        let addresses = match &self.proxy.host {
            Host::Domain(name) => {
                self.resolver.own(name).await.map_err(|e| unreachable(e.into()))?
            }
            Host::Ipv4(address) => vec![(*address).into()],
            Host::Ipv6(address) => vec![(*address).into()],
        };
        let addresses: Vec<SocketAddr> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, self.proxy.port))
            .collect();
        let addresses = choose(&self.turn, addresses, ADDRESSES_MAX);
        dial(&addresses).await.map_err(|e| unreachable(ConnectError::Dial(e)))
    }
}

async fn read_more(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), NoTunnel> {
    let room = TUNNEL_ANSWER_MAX.saturating_sub(answer.len());
    let mut bounded = stream.take(u64::try_from(room).unwrap_or_default());
    match bounded.read_buf(answer).await.map_err(broken)? {
        0 => Err(NoTunnel::Silent("it closed the connection".to_owned())),
        _ => Ok(()),
    }
}

fn late(within: Duration) -> NoTunnel {
    NoTunnel::Silent(format!("it has not answered within {within:?}"))
}

fn broken(error: io::Error) -> NoTunnel {
    NoTunnel::Silent(format!("the connection to it broke: {error}"))
}

/// What a proxy said, as it may be shown.
fn said(reason: &str) -> String {
    printable(reason, DETAIL_MAX)
}
