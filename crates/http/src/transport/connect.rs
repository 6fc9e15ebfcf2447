//! Connections to endpoints: directly, or through a proxy's tunnel; to permitted addresses alone.
//!
//! ```text
//! URL's host ─► Resolver (judged) ─► TCP to an address ────────────► TLS for the host's name
//!                                └─► TCP to the proxy, CONNECT address ─┘
//! ```
//!
//! Between the two stands a layer of TLS that hands on the URL and nothing else. On whose account's behalf a
//! connection is opened, and how far it has come, stands in [`OPENING`].

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::HttpsConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tower_service::Service;
use url::Host;

use super::guard::{Answers, Metered};
use super::memory::{AnswerMemory, Charge};
use super::spread::spread;
use super::tunnels::{TUNNELS_MAX, Tunnels};
use crate::resolve::{ResolveError, Resolver};
use walhook_core::event::AccountId;
use walhook_process::faults::Fault;

tokio::task_local! {
    /// The connection that is being opened.
    static OPENING: Opening;
}

/// A connection while it is opened.
#[derive(Debug, Clone)]
struct Opening {
    /// For whom: its look-ups take their turn among the account's.
    account: AccountId,
    /// Whether TCP is connected, or the tunnel open.
    is_reached: Arc<AtomicBool>,
}

impl Opening {
    fn new(account: AccountId) -> Self {
        Self { account, is_reached: Arc::default() }
    }
}

/// The next address is tried beside the last one after this time. Source: RFC 8305, section 5.
pub(super) const HEAD_START: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried for a connection: a name has as many as its owner likes.
pub(super) const ADDRESSES_MAX: usize = 8;

/// Why there is no connection. Found among the causes of the client's error.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// There is no address to connect to.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// None of the addresses takes a connection; this is what the last one said.
    #[error("{0}")]
    Dial(io::Error),
    /// The proxy opens no tunnel to any of the addresses, and does to others.
    #[error("the proxy opens no tunnel: {0}")]
    Tunnel(String),
    /// The proxy opens none to anybody.
    #[error("the proxy opens no tunnel: {0}")]
    Proxy(String),
    /// It took too long.
    #[error("no connection within delivery.connect_timeout")]
    Timeout,
    /// The receiver was reached, and TLS took too long.
    #[error(
        "no connection within delivery.connect_timeout: the receiver was reached, but the TLS handshake did not end"
    )]
    Handshake,
    /// Those addresses that were tried take none.
    #[error("{error}; {tried} of the name's {of} addresses were tried, and the next time others")]
    OfSome {
        /// What the last one said.
        error: Box<ConnectError>,
        /// So many.
        tried: usize,
        /// Of all.
        of: usize,
    },
}

impl ConnectError {
    /// The operating system's error, where it is one.
    pub(super) fn of_system(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Dial(error) => Some(error),
            Self::Resolve(ResolveError::Dns(error)) => Some(&**error),
            Self::OfSome { error, .. } => error.of_system(),
            Self::Resolve(_)
            | Self::Tunnel(_)
            | Self::Proxy(_)
            | Self::Timeout
            | Self::Handshake => None,
        }
    }
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;
type Tcp = TokioIo<Metered>;

/// Connects, the handshake of TLS included.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: HttpsConnector<TcpConnector>,
    /// For all of it.
    patience: Duration,
}

impl Connector {
    pub(super) fn new(tcp: TcpConnector, tls: ClientConfig) -> Self {
        let patience = tcp.patience;
        Self { tls: HttpsConnector::from((tcp, tls)), patience }
    }

    /// A connection to where the URL leads, for this account.
    pub(super) fn connect(
        &self,
        to: Uri,
        account: AccountId,
    ) -> impl Future<Output = Result<Answers, BoxError>> + Send + 'static {
        let mut tls = self.tls.clone();
        let opening = Opening::new(account);
        let connecting = OPENING.sync_scope(opening.clone(), || tls.call(to));
        let patience = self.patience;
        async move {
            let connected = timeout(patience, connecting).await;
            let stream = connected.unwrap_or_else(|_| {
                let is_reached = opening.is_reached.load(Relaxed);
                Err(if is_reached { ConnectError::Handshake } else { ConnectError::Timeout }.into())
            })?;
            Ok(Answers::new(stream))
        }
    }
}

/// Connects up to where the endpoint's own bytes begin.
#[derive(Debug, Clone)]
pub(super) struct TcpConnector {
    resolver: Resolver,
    tunnels: Option<Arc<Tunnels>>,
    patience: Duration,
    memory: Arc<AnswerMemory>,
    /// Where the next one begins of those addresses that are too many to be tried.
    turn: Arc<AtomicU32>,
}

impl Service<Uri> for TcpConnector {
    type Response = Tcp;
    type Error = ConnectError;
    type Future = Connecting<Tcp, ConnectError>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        // Here and not in the future, which is not within the scope.
        let opening = OPENING.try_with(Opening::clone);
        let opening = opening.unwrap_or_else(|_| Opening::new(AccountId::new("")));
        let connector = self.clone();
        Box::pin(async move {
            let Opening { account, is_reached } = opening;
            let stream = connector.connect(&to, &account).await?;
            is_reached.store(true, Relaxed);
            stream.set_nodelay(true).map_err(ConnectError::Dial)?;
            Ok(TokioIo::new(Metered::new(stream, Charge::new(&connector.memory, account))))
        })
    }
}

impl TcpConnector {
    pub(super) fn new(
        resolver: Resolver,
        tunnels: Option<Arc<Tunnels>>,
        patience: Duration,
        memory: Arc<AnswerMemory>,
    ) -> Self {
        Self { resolver, tunnels, patience, memory, turn: Arc::default() }
    }

    async fn connect(&self, to: &Uri, account: &AccountId) -> Result<TcpStream, ConnectError> {
        let began = Instant::now();
        let host = Host::parse(to.host().unwrap_or_default()).map_err(|_| ResolveError::Nothing)?;
        let default = if to.scheme() == Some(&http::uri::Scheme::HTTPS) { 443 } else { 80 };
        let port = to.port_u16().unwrap_or(default);
        let addresses = permitted(&self.resolver, &host, port, account).await?;
        let (of, max) =
            (addresses.len(), if self.tunnels.is_some() { TUNNELS_MAX } else { ADDRESSES_MAX });
        let addresses = choose(&self.turn, addresses, max);
        let tried = addresses.len();
        let dialing = async { dial(&addresses).await.map_err(ConnectError::Dial) };
        let connected = match &self.tunnels {
            Some(tunnels) => tunnels.open(&host, &addresses, began).await,
            None if tried == of => dialing.await,
            None => {
                let dialed = timeout(self.patience_to_explain(), dialing).await;
                dialed.unwrap_or(Err(ConnectError::Timeout))
            }
        };
        if let (Err(ConnectError::Dial(_) | ConnectError::Tunnel(_)), Host::Domain(name)) =
            (&connected, &host)
        {
            self.resolver.outdate(name);
        }
        connected.map_err(|error| match tried == of {
            true => error,
            false => ConnectError::OfSome { error: Box::new(error), tried, of },
        })
    }

    /// Short of the time for the whole connection, so that the reason says what was tried.
    fn patience_to_explain(&self) -> Duration {
        self.patience * 9 / 10
    }
}

/// These addresses, or of more than `max` so many: others each time.
pub(super) fn choose(
    turn: &AtomicU32,
    mut addresses: Vec<SocketAddr>,
    max: usize,
) -> Vec<SocketAddr> {
    if addresses.len() > max {
        let turn = turn.fetch_add(1, Relaxed);
        let all = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        addresses.rotate_left(spread(turn, all) as usize);
        addresses.truncate(max);
    }
    addresses
}

/// The host's addresses, judged.
pub(super) async fn permitted(
    resolver: &Resolver,
    host: &Host,
    port: u16,
    account: &AccountId,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let literal = |address: IpAddr| resolver.check(address).map(|()| vec![address]);
    let addresses = match host {
        Host::Domain(name) => resolver.endpoint(name, account).await?,
        Host::Ipv4(address) => literal((*address).into())?,
        Host::Ipv6(address) => literal((*address).into())?,
    };
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// The first connection that one of the addresses takes.
pub(super) async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let connected = race(addresses, HEAD_START, |address| async move {
        match connect(address).await {
            Ok(stream) => ControlFlow::Break(stream),
            Err(error) => ControlFlow::Continue(error),
        }
    });
    connected.await.map_err(|mut failed| {
        // What we could not try may have taken the connection.
        let local = failed.iter().position(|error| Fault::of(error).is_some());
        let told = local.map(|at| failed.swap_remove(at)).or_else(|| failed.pop());
        let nothing = || io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no address");
        told.unwrap_or_else(nothing)
    })
}

/// What the first of the addresses breaks off with; or why each of them did not, in the order in which that was known.
/// They are tried in order, each with such a head start: an address that is silent delays the next one by that only.
pub(super) async fn race<T, E, F>(
    addresses: &[SocketAddr],
    head_start: Duration,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = ControlFlow<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    let mut waiting = addresses.iter().copied();
    let mut racing = JoinSet::new();
    let mut failed = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            racing.spawn(attempt(address));
        } else if racing.is_empty() {
            return Err(failed);
        }
        let ended = if waiting.len() == 0 {
            racing.join_next().await
        } else {
            timeout(head_start, racing.join_next()).await.unwrap_or_default()
        };
        match ended {
            Some(Ok(ControlFlow::Break(first))) => return Ok(first),
            Some(Ok(ControlFlow::Continue(why))) => failed.push(why),
            Some(Err(_)) | None => {}
        }
    }
}

/// EADDRNOTAVAIL means that no local port is left for the address, and also that this machine has no
/// address of its family: only the first is a lack that passes. A datagram socket has ports of its own.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let error = match TcpStream::connect(address).await {
        Err(error) if Fault::of(&error) == Some(Fault::Ports) => error,
        ended => return ended,
    };
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = async { UdpSocket::bind((any, 0)).await?.connect(address).await };
    match probe.await {
        Err(probe) if probe.kind() != io::ErrorKind::AddrNotAvailable => {}
        Err(_) => {
            let reason = format!("this machine has no address from which {address} can be reached");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, reason));
        }
        Ok(()) => {}
    }
    Err(error)
}
