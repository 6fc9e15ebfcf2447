//! TLS against servers with certificates of our own making.

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::*;

pub(super) struct TlsServer {
    pub(super) url: String,
    protocol: Arc<Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

pub(super) fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Accepts with a certificate of the authority, or with one that signs itself.
pub(super) fn acceptor(
    authority: Option<&CertifiedIssuer<'static, KeyPair>>,
    params: CertificateParams,
    alpn: &[&str],
) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let certificate = match authority {
        Some(authority) => params.signed_by(&key, authority).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers 200 over HTTP/1.1, or over HTTP/2 when that is agreed upon.
pub(super) async fn serve(
    authority: Option<&CertifiedIssuer<'static, KeyPair>>,
    params: CertificateParams,
    alpn: &[&str],
) -> TlsServer {
    let acceptor = acceptor(authority, params, alpn);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/?token={HUSH}", listener.local_addr().unwrap().port());
    let protocol = Arc::new(Mutex::new(Vec::new()));
    let agreed = Arc::clone(&protocol);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let alpn = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
            agreed.lock().unwrap().clone_from(&alpn);
            if alpn == b"h2" {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_response(http::Response::new(()), true).unwrap();
                }
            } else if read_request(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        }
    });
    TlsServer { url, protocol, _tasks: tasks }
}

pub(super) fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).unwrap()
}

pub(super) fn trusting(authority: &CertifiedIssuer<'static, KeyPair>) -> Transport {
    trusting_with(authority, &[("localhost", &["127.0.0.1"])], &egress())
}

pub(super) fn trusting_with(
    authority: &CertifiedIssuer<'static, KeyPair>,
    names: &[(&str, &[&str])],
    egress: &Egress,
) -> Transport {
    let tls = tls_config([authority.der().clone()]).unwrap();
    Transport::with(&requests(), egress, MEMORY, bounds(MEMORY), tls, super::dns::lookup(names))
        .unwrap()
}

#[tokio::test]
async fn https_speaks_the_http_version_that_the_server_chooses() {
    let authority = authority();
    let transport = trusting(&authority);
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1"), (&[], "")]
    {
        let server = serve(Some(&authority), params("localhost"), offered).await;
        assert_eq!(answer(&transport, &server.url).await.status, 200);
        assert_eq!(*server.protocol.lock().unwrap(), agreed.as_bytes());
    }
}

#[tokio::test]
async fn case_30_certificate_that_proves_nothing_is_a_tls_failure() {
    let authority = authority();
    let mut expired = params("localhost");
    expired.not_before = date_time_ymd(2020, 1, 1);
    expired.not_after = date_time_ymd(2021, 1, 1);
    let mut early = params("localhost");
    early.not_before = date_time_ymd(2999, 1, 1);
    early.not_after = date_time_ymd(3000, 1, 1);
    let mut its_own = params("localhost");
    its_own.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let many = (0..9).map(|n| format!("{n}.example")).collect::<Vec<_>>();
    let many = CertificateParams::new(many).unwrap();
    let trusting = trusting(&authority);
    let untrusted = "the certificate is not signed by an authority that this system trusts; let ";
    for (transport, server, expected) in [
        (&transport(), serve(None, params("localhost"), &[]).await, untrusted),
        (&transport(), serve(Some(&authority), params("localhost"), &[]).await, untrusted),
        (
            &trusting,
            serve(Some(&authority), expired, &[]).await,
            "the certificate has expired at 2021-01-01T00:00:00Z; the receiver must renew it",
        ),
        (
            &trusting,
            serve(Some(&authority), early, &[]).await,
            "the certificate is valid from 2999-01-01T00:00:00Z only; is the clock right here?",
        ),
        (
            &trusting,
            serve(Some(&authority), params("other.example"), &[]).await,
            "the certificate is not valid for localhost but for other.example; use ",
        ),
        (
            &trusting,
            serve(Some(&authority), many, &[]).await,
            " but for 0.example, 1.example, 2.example, 3.example, 4.example and others; use ",
        ),
        (
            &transport(),
            serve(None, its_own, &[]).await,
            "the certificate is that of an authority, as one that signs itself mostly is, and ",
        ),
    ] {
        let detail = refusal(transport, &server.url, FailureKind::Tls).await;
        assert!(detail.contains(expected), "{detail}");
        assert!(!detail.contains("invalid peer certificate"), "{detail}");
    }
}

#[tokio::test]
async fn server_without_tls_behind_https_is_a_tls_failure() {
    let server = Server::start([write("HTTP/1.1 400 Bad Request\r\n\r\n"), Close]).await;
    let url = server.url().replace("http://", "https://");
    let detail = refusal(&transport(), &url, FailureKind::Tls).await;
    assert!(detail.contains("corrupt message"), "{detail}");
    assert!(detail.ends_with(": the port answers without TLS"), "{detail}");
}

#[tokio::test]
async fn handshake_that_does_not_end_says_that_the_receiver_was_reached() {
    let server = Server::start([]).await;
    let requests = Requests { connect_timeout: SHORT, ..requests() };
    let transport = Transport::new(&requests, &egress(), MEMORY).unwrap();
    let url = server.url().replace("http://", "https://");
    let detail = refusal(&transport, &url, FailureKind::Connect).await;
    let expected = "within delivery.connect_timeout: the receiver was reached, but the TLS handshake did not end";
    assert!(detail.ends_with(expected), "{detail}");
}

#[tokio::test]
async fn receiver_that_stops_to_speak_tls_is_not_said_to_have_none() {
    let authority = authority();
    let acceptor = acceptor(Some(&authority), params("localhost"), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        read_request(&mut stream).await.unwrap();
        let (mut stream, _) = stream.into_inner();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _until_closed = stream.read_to_end(&mut Vec::new()).await;
    });
    let detail = refusal(&trusting(&authority), &url, FailureKind::Tls).await;
    assert!(detail.ends_with("corrupt message of type InvalidContentType"), "{detail}");
}
