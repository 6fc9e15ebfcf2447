//! The endpoint of a measurement: counts and answers, nothing else.
//!
//! The kit's receiver does much more for a request (it keeps headers and bodies, tells deliveries apart and
//! takes one lock three times), on the two cores that the measured programs run on too. So what is
//! measured in requests a second is answered by this one, and it counts connections, which that does not.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use walhook_testkit::tls::Authority;

/// For all requests of one run.
const PATIENCE: Duration = Duration::from_secs(600);

/// Hosts that a sink can be asked for as, each a loopback address of its own.
pub(crate) const HOSTS_MAX: u8 = 200;

/// Is told of each body, with the path that it came to.
pub(crate) type Hook = Arc<dyn Fn(&str, &[u8]) + Send + Sync>;

/// Serves all loopback addresses at one port until it is dropped.
pub(crate) struct Sink {
    port: u16,
    counts: Arc<Counts>,
    authority: Option<Authority>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    fails: AtomicBool,
    holds: AtomicBool,
    closes: AtomicBool,
    delay_ms: AtomicU64,
}

/// What came in one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Came {
    /// From the first request to the last.
    pub(crate) took: Duration,
    pub(crate) connections: u64,
    pub(crate) bytes: u64,
}

impl Sink {
    /// Plain HTTP.
    pub(crate) async fn start(hook: Option<Hook>) -> Result<Self> {
        Self::serve(None, hook).await
    }

    /// HTTPS, with a certificate for every host.
    pub(crate) async fn start_tls() -> Result<Self> {
        let authority = Authority::ecdsa(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        Self::serve(Some(authority), None).await
    }

    async fn serve(authority: Option<Authority>, hook: Option<Hook>) -> Result<Self> {
        let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let tls = authority.as_ref().map(acceptor).transpose()?;
        let mut server = JoinSet::new();
        server.spawn(accept(listener, tls, Arc::clone(&counts), hook));
        Ok(Self { port, counts, authority, _server: server })
    }

    /// Where its host of this number listens.
    pub(crate) fn url(&self, host: u8) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}/", host_address(host), self.port)
    }

    /// What a process that sends to it has in its environment: where the certificate stands that vouches for it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let file = self.authority.as_ref().map(Authority::file);
        file.map(|file| ("SSL_CERT_FILE".to_owned(), file)).into_iter().collect()
    }

    /// Whether it answers 503 from now on, and counts nothing.
    pub(crate) fn fail(&self, fails: bool) {
        self.counts.fails.store(fails, Relaxed);
    }

    /// From now on it does not answer.
    pub(crate) fn hold(&self) {
        self.counts.holds.store(true, Relaxed);
    }

    /// From now on it answers after so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.counts.delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// From now on each connection serves one request.
    pub(crate) fn close(&self) {
        self.counts.closes.store(true, Relaxed);
    }

    /// Begins to count anew.
    pub(crate) fn reset(&self) {
        for count in [&self.counts.requests, &self.counts.bytes, &self.counts.connections] {
            count.store(0, Relaxed);
        }
    }

    /// Requests since then.
    pub(crate) fn requests(&self) -> u64 {
        self.counts.requests.load(Relaxed)
    }

    /// Waits until so many came since [`Sink::reset`].
    pub(crate) async fn until(&self, requests: u64) -> Result<Came> {
        let waiting = async {
            while self.requests() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let began = Instant::now();
            while self.requests() < requests {
                sleep(Duration::from_millis(1)).await;
            }
            began.elapsed()
        };
        let Ok(took) = timeout(PATIENCE, waiting).await else {
            bail!("{} of {requests} requests came within {PATIENCE:?}", self.requests());
        };
        let Counts { bytes, connections, .. } = &*self.counts;
        Ok(Came { took, connections: connections.load(Relaxed), bytes: bytes.load(Relaxed) })
    }
}

/// The loopback address that the host of this number has.
fn host_address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, host)
}

fn acceptor(authority: &Authority) -> Result<TlsAcceptor> {
    let pair = authority.sign(&KeyPair::generate()?, "localhost", |params| {
        let hosts = (0..=HOSTS_MAX).map(|host| SanType::IpAddress(host_address(host).into()));
        params.subject_alt_names.extend(hosts);
    })?;
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .context("the certificate made for the sink")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    counts: Arc<Counts>,
    hook: Option<Hook>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Where a descriptor is missing, the next attempt may find one.
                let Ok((socket, _)) = accepted else { continue };
                counts.connections.fetch_add(1, Relaxed);
                let (tls, counts, hook) = (tls.clone(), Arc::clone(&counts), hook.clone());
                connections.spawn(connection(socket, tls, counts, hook));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    counts: Arc<Counts>,
    hook: Option<Hook>,
) {
    // Of a connection that breaks, the requests that came are counted.
    let _ = socket.set_nodelay(true);
    match tls {
        None => serve(socket, counts, hook).await,
        Some(tls) => {
            if let Ok(socket) = tls.accept(socket).await {
                serve(socket, counts, hook).await;
            }
        }
    }
}

async fn serve<S>(socket: S, counts: Arc<Counts>, hook: Option<Hook>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let service = service_fn(|request| answer(request, &counts, hook.as_ref()));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

async fn answer(
    request: Request<Incoming>,
    counts: &Counts,
    hook: Option<&Hook>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    let (head, body) = request.into_parts();
    if counts.closes.load(Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let delay_ms = counts.delay_ms.load(Relaxed);
    let body = body.collect().await;
    if delay_ms > 0 {
        sleep(Duration::from_millis(delay_ms)).await;
    }
    match body {
        Ok(_) if counts.holds.load(Relaxed) => std::future::pending().await,
        Ok(_) if counts.fails.load(Relaxed) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(body) => {
            let body = body.to_bytes();
            if let Some(hook) = hook {
                hook(head.uri.path(), &body);
            }
            counts.bytes.fetch_add(body.len() as u64, Relaxed);
            counts.requests.fetch_add(1, Relaxed);
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    Ok(response)
}
