//! From a description to a socket, encrypted as it says, with one of its hosts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::binding::tls_server_end_point;
use super::conninfo::{Conninfo, Host, Password, Place};
use super::error::LinkError;
use super::kinds::{Keepalive, SslMode};
use walhook_process::faults;

/// A socket of any kind.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A way to a server, before the protocol's start-up.
pub struct Link {
    /// Host and port, for people.
    pub target: String,
    /// How well it is protected.
    pub security: Security,
    pub(crate) socket: Box<dyn Socket>,
    /// For channel binding; `None` without TLS.
    pub(crate) end_point: Option<Vec<u8>>,
    /// The password, or why there is none.
    pub(crate) password: Result<Vec<u8>, String>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("target", &self.target)
            .field("security", &self.security)
            .finish_non_exhaustive()
    }
}

/// How well a connection is protected against others on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// It does not leave this machine.
    Local,
    /// Others may read and change it.
    Plain,
    /// Encrypted.
    Tls {
        /// Version and cipher suite.
        suite: String,
        /// How the server was verified, if at all.
        verified: Option<SslMode>,
    },
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("on this machine"),
            Self::Plain => f.write_str("without TLS"),
            Self::Tls { suite, verified: Some(mode) } => write!(f, "over {suite}, {mode}"),
            Self::Tls { suite, verified: None } => {
                write!(f, "over {suite}, its certificate not verified")
            }
        }
    }
}

/// What makes a session of a [`Link`].
pub(crate) trait StartUp {
    /// What it makes.
    type Session;
    /// Why it does not.
    type Error: From<LinkError> + fmt::Display + Send;

    /// Authenticates, and looks whether the host will do.
    fn start_up(
        &self,
        link: Link,
    ) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// Whether no further host is to be tried: as for libpq, one that refuses the authentication ends
    /// the search, for the others would only hide it.
    fn is_final(error: &Self::Error) -> bool;
}

/// Opens a session with the first of the hosts that can be used. A name that has several addresses
/// counts as so many hosts.
///
/// # Errors
/// That of the last host, or the first final one.
pub(crate) async fn open<S: StartUp>(info: &Conninfo, start_up: S) -> Result<S::Session, S::Error> {
    let tls = match info.tls.mode {
        SslMode::Disable => None,
        SslMode::Prefer | SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            Some(Arc::new(info.tls.client_config()?))
        }
    };
    let mut last = None;
    for host in info.hosts() {
        let ways = match within(info, host, ways(host)).await {
            Ok(ways) => ways,
            Err(error) => {
                last = Some(S::Error::from(error));
                continue;
            }
        };
        for way in ways {
            let attempt =
                async { start_up.start_up(link(info, host, &way, tls.as_ref()).await?).await };
            match within(info, host, attempt).await {
                Ok(session) => return Ok(session),
                Err(error) if S::is_final(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(%host, %error, "cannot use this host");
                    last = Some(error);
                }
            }
        }
    }
    // A name without addresses is an error of its look-up, so this is for the compiler.
    let why = std::io::Error::other("there is no address");
    Err(last.unwrap_or_else(|| {
        S::Error::from(LinkError::Unreachable { target: info.to_string(), why })
    }))
}

async fn within<T, E: From<LinkError>>(
    info: &Conninfo,
    host: &Host,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let after = info.connect_timeout;
    let too_slow = |_| E::from(LinkError::Timeout { target: host.to_string(), after });
    timeout(after, future).await.map_err(too_slow).flatten()
}

/// A way to a host.
enum Way {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

async fn ways(host: &Host) -> Result<Vec<Way>, LinkError> {
    Ok(match &host.place {
        Place::Unix(directory) => {
            vec![Way::Unix(directory.join(format!(".s.PGSQL.{}", host.port)))]
        }
        Place::Address(address) => vec![Way::Tcp(SocketAddr::new(*address, host.port))],
        Place::Name => {
            let addresses = lookup_host((host.name.as_str(), host.port)).await;
            let target = host.to_string();
            let unknown = |why| match faults::note(&why) {
                Some(_) => LinkError::Unreachable { target, why },
                None => LinkError::UnknownName { target, why },
            };
            addresses.map_err(unknown)?.map(Way::Tcp).collect()
        }
    })
}

fn unreachable(host: &Host) -> impl Fn(std::io::Error) -> LinkError {
    |why| {
        faults::note(&why);
        LinkError::Unreachable { target: host.to_string(), why }
    }
}

async fn link(
    info: &Conninfo,
    host: &Host,
    way: &Way,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Link, LinkError> {
    let plain = |socket: Box<dyn Socket>, security| Link {
        target: host.to_string(),
        security,
        socket,
        end_point: None,
        password: info.password_for(host).map(|Password(bytes)| bytes),
    };
    let address = match way {
        // As for libpq, no TLS whatever the mode: there is no network.
        Way::Unix(path) => {
            let socket = UnixStream::connect(path).await.map_err(unreachable(host))?;
            return Ok(plain(Box::new(socket), Security::Local));
        }
        Way::Tcp(address) => address,
    };
    let mut socket = TcpStream::connect(address).await.map_err(unreachable(host))?;
    tune(&socket, info.keepalive).map_err(unreachable(host))?;
    let without_tls = if address.ip().is_loopback() { Security::Local } else { Security::Plain };
    let Some(tls) = tls else { return Ok(plain(Box::new(socket), without_tls)) };
    let (target, mode) = (host.to_string(), info.tls.mode);
    if !offers_tls(&mut socket, &target, mode).await? {
        return match mode {
            SslMode::Disable | SslMode::Prefer => Ok(plain(Box::new(socket), without_tls)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                Err(LinkError::NoTls { target, mode })
            }
        };
    }
    let name = server_name(host, address.ip(), mode)?;
    let connected = TlsConnector::from(Arc::clone(tls)).connect(name, socket).await;
    let stream = connected.map_err(|error| LinkError::handshake(target, mode, error))?;
    let (_, session) = stream.get_ref();
    let suite = match (session.protocol_version(), session.negotiated_cipher_suite()) {
        (Some(version), Some(suite)) => {
            let version = format!("{version:?}").replace('_', ".");
            format!("{version} ({:?})", suite.suite())
        }
        _ => "TLS".to_owned(),
    };
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let end_point = leaf.and_then(|certificate| tls_server_end_point(certificate));
    let verified = info.verified();
    Ok(Link { end_point, ..plain(Box::new(stream), Security::Tls { suite, verified }) })
}

/// Small messages do not wait for company, and a peer that is gone is noticed.
fn tune(socket: &TcpStream, keepalive: Keepalive) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    if keepalive.off {
        return Ok(());
    }
    socket.set_keepalive(true)?;
    let mut times = TcpKeepalive::new();
    if let Some(idle) = keepalive.idle {
        times = times.with_time(idle);
    }
    if let Some(interval) = keepalive.interval {
        times = times.with_interval(interval);
    }
    if let Some(count) = keepalive.count {
        times = times.with_retries(count);
    }
    socket.set_tcp_keepalive(&times)
}

/// Asks for TLS. Reads one byte and no more, so that nothing which somebody put behind it in plain
/// text is taken for the server's words under TLS (CVE-2021-23222): the handshake stumbles over it.
///
/// Source: PostgreSQL manual, "SSL Session Encryption".
async fn offers_tls(
    socket: &mut TcpStream,
    target: &str,
    mode: SslMode,
) -> Result<bool, LinkError> {
    let broken = |source| LinkError::Broken { target: target.to_owned(), mode, source };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(broken)?;
    match socket.read_u8().await.map_err(broken)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(LinkError::NoAnswer { target: target.to_owned() }),
    }
}

/// What the certificate must be for. An address stands in for a name that can be in none, where none
/// is compared.
fn server_name(
    host: &Host,
    address: IpAddr,
    mode: SslMode,
) -> Result<ServerName<'static>, LinkError> {
    match ServerName::try_from(host.name.clone()) {
        Ok(name) => Ok(name),
        Err(_) if mode < SslMode::VerifyFull => Ok(ServerName::from(address)),
        Err(_) => Err(LinkError::Certificate {
            target: host.to_string(),
            mode,
            problem: "can be for no such host; connect by a name, or use sslmode=verify-ca"
                .to_owned(),
        }),
    }
}
