//! TLS to PostgreSQL: every `sslmode`, certificates right and wrong, channel binding, servers that
//! misbehave; for SQL sessions and the replication connection alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail, ensure};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use walhook_core::endpoint::Secret;
use walhook_postgres::fix::Failure;
use walhook_postgres::pg::{Security, SslMode};
use walhook_postgres::sql::Connection;
use walhook_postgres::wire::{self, Class, WireError};
use walhook_testkit::cluster::Cluster;
use walhook_testkit::session::Session;

use walhook_testkit::tls::{
    Authority, Pair, by_socket, host_rules, openssl, present, private_file, rsa_key, set_ssl,
};

/// A server whose certificate is for `localhost`.
struct Server {
    cluster: Cluster,
    admin: Session,
    authority: Authority,
}

impl Server {
    async fn start() -> Result<Self> {
        let cluster = Cluster::start_copied(&std::env::temp_dir(), &[]).await?;
        let admin = by_socket(&cluster).await?;
        let authority = Authority::ecdsa(&PKCS_ECDSA_P256_SHA256)?;
        present(&cluster, &admin, &authority.issue("localhost")?, None).await?;
        Ok(Self { cluster, admin, authority })
    }

    async fn present(&self, pair: &Pair) -> Result<()> {
        present(&self.cluster, &self.admin, pair, None).await
    }

    /// Opens both kinds of sessions, which must agree on how well they are protected.
    async fn open(&self, who: &str, host: &str, options: &str) -> Result<Security, Refusal> {
        open(&format!("postgres://{who}@{host}:{}/postgres?{options}", self.cluster.port())).await
    }
}

/// What both kinds of sessions say.
#[derive(Debug)]
struct Refusal {
    texts: [String; 2],
    passing: bool,
}

async fn open(url: &str) -> Result<Security, Refusal> {
    let url = Secret::new(url);
    let sql = Connection::open(&url, "test").await;
    let replication = wire::connect(&url, "test").await;
    match (sql, replication) {
        (Ok(sql), Ok(_)) => Ok(sql.security().clone()),
        (Err(sql), Err(replication)) => {
            let passing = wire::classify(&replication) == Class::Retry;
            assert_eq!(passing, sql.fixed_by().is_waiting(), "{sql:?} {replication:?}");
            let texts = [
                format!("{:#}", anyhow::Error::from(sql)),
                format!("{:#}", anyhow::Error::from(replication)),
            ];
            assert!(!texts.concat().contains("hush"), "{texts:?}");
            Err(Refusal { texts, passing })
        }
        (sql, replication) => panic!("they differ: {sql:?}, {replication:?}"),
    }
}

impl Refusal {
    /// Whether both say so, and how it was judged.
    #[track_caller]
    fn expect(&self, expected: &str, passing: bool) {
        assert!(self.texts.iter().all(|text| text.contains(expected)), "{expected}: {self:?}");
        assert_eq!(self.passing, passing, "{self:?}");
    }
}

fn verified(security: &Security) -> Option<SslMode> {
    match security {
        Security::Tls { suite, verified } => {
            assert!(suite.starts_with("TLSv1.3 ("), "{suite}");
            *verified
        }
        Security::Local | Security::Plain => panic!("no TLS"),
    }
}

#[tokio::test]
async fn sslmode_decides_what_a_certificate_must_prove() -> Result<()> {
    let server = Server::start().await?;
    let (right, other) = (server.authority.file(), Authority::ecdsa(&PKCS_ECDSA_P256_SHA256)?);
    let wrong = other.file();
    let open = async |host: &str, options: String| server.open("postgres", host, &options).await;

    let plain = open("localhost", "sslmode=disable".to_owned()).await;
    assert_eq!(plain.unwrap(), Security::Local);
    for (host, options, mode) in [
        ("localhost", "sslmode=prefer".to_owned(), None),
        ("127.0.0.1", "sslmode=require".to_owned(), None),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={right}"), Some(SslMode::VerifyCa)),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={right}"), Some(SslMode::VerifyCa)),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={right}"),
            Some(SslMode::VerifyFull),
        ),
    ] {
        assert_eq!(verified(&open(host, options.clone()).await.unwrap()), mode, "{options}");
    }
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        let refused = open("localhost", format!("sslmode={mode}&sslrootcert={wrong}")).await;
        refused.unwrap_err().expect("is not signed by a CA in sslrootcert", false);
    }
    let named = open("127.0.0.1", format!("sslmode=verify-full&sslrootcert={right}")).await;
    named.unwrap_err().expect("\"localhost\"", false);
    // Its roots are the world's, and ours is not among them.
    let system = open("localhost", "sslrootcert=system".to_owned()).await;
    system.unwrap_err().expect("(sslmode=verify-full)", false);

    server.present(&server.authority.issue_expired("localhost")?).await?;
    let expired = open("localhost", format!("sslmode=verify-ca&sslrootcert={right}")).await;
    expired.unwrap_err().expect("has expired at 2021-01-01T00:00:00Z; renew it", false);
    assert_eq!(verified(&open("localhost", "sslmode=require".to_owned()).await.unwrap()), None);

    set_ssl(&server.cluster, &server.admin, false).await?;
    assert_eq!(open("localhost", "sslmode=prefer".to_owned()).await.unwrap(), Security::Local);
    for mode in ["require".to_owned(), format!("verify-full&sslrootcert={right}")] {
        let refused = open("localhost", format!("sslmode={mode}")).await.unwrap_err();
        refused.expect("offers no TLS", false);
        refused.expect("set ssl = on in postgresql.conf", false);
    }
    Ok(())
}

#[tokio::test]
async fn self_signed_certificate_is_trusted_when_it_is_the_root_itself() -> Result<()> {
    let server = Server::start().await?;
    let dir = TempDir::new()?;
    // As the manual of PostgreSQL makes one: marked as a CA's.
    let key = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], "")?;
    let key_file = private_file(dir.path(), "key", &key)?.display().to_string();
    let args = ["req", "-new", "-x509", "-days", "2", "-nodes", "-subj", "/CN=x", "-addext"];
    let san = "subjectAltName=DNS:localhost";
    let certificate = openssl(&[&args[..], &[san, "-key", &key_file]].concat(), "")?;
    let root = private_file(dir.path(), "root", &certificate)?.display().to_string();
    server.present(&Pair { certificate, key }).await?;
    let open = async |host: &str, mode: &str, root: &str| {
        let options = format!("sslmode={mode}&sslrootcert={root}");
        server.open("postgres", host, &options).await
    };
    for (host, mode) in [("127.0.0.1", "verify-ca"), ("localhost", "verify-full")] {
        open(host, mode, &root).await.unwrap();
    }
    open("127.0.0.1", "verify-full", &root).await.unwrap_err().expect("\"localhost\"", false);
    let other = open("localhost", "verify-ca", &server.authority.file()).await;
    assert!(!other.unwrap_err().passing);
    Ok(())
}

#[tokio::test]
async fn channel_binding_holds_whatever_signed_the_certificate() -> Result<()> {
    let server = Server::start().await?;
    let create = "CREATE ROLE bound LOGIN REPLICATION PASSWORD 'hush'";
    server.admin.batch_execute(create).await?;
    let rules = "host all bound 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 trust";
    host_rules(&server.cluster, &server.admin, rules).await?;
    let (by_ecdsa, by_rsa) = (Authority::ecdsa(&PKCS_ECDSA_P384_SHA384)?, Authority::rsa()?);
    let rsa_leaf = by_ecdsa.sign(&KeyPair::from_pem(&rsa_key()?)?, "localhost", |_| {})?;
    for (authority, pair) in [(&by_ecdsa, rsa_leaf), (&by_rsa, by_rsa.issue("localhost")?)] {
        server.present(&pair).await?;
        let root = authority.file();
        for binding in ["require", "prefer", "disable"] {
            let options =
                format!("sslmode=verify-full&sslrootcert={root}&channel_binding={binding}");
            let opened = server.open("bound:hush", "localhost", &options).await;
            assert_eq!(verified(&opened.unwrap()), Some(SslMode::VerifyFull));
        }
        // A wrong password is still a wrong password.
        let refused = server.open("bound:wrong", "localhost", "channel_binding=require").await;
        refused.unwrap_err().expect("password authentication failed", false);
    }
    for (who, options) in [
        ("bound:hush", "sslmode=disable&channel_binding=require"),
        ("postgres", "sslmode=require&channel_binding=require"),
    ] {
        let refused = server.open(who, "localhost", options).await;
        assert!(!refused.unwrap_err().passing, "{who} {options}");
    }
    Ok(())
}

#[tokio::test]
async fn client_certificate_opens_what_asks_for_one() -> Result<()> {
    let server = Server::start().await?;
    let clients = Authority::ecdsa(&PKCS_ECDSA_P256_SHA256)?;
    let pair = server.authority.issue("localhost")?;
    present(&server.cluster, &server.admin, &pair, Some(&clients)).await?;
    host_rules(&server.cluster, &server.admin, "hostssl all all 127.0.0.1/32 cert").await?;
    let dir = TempDir::new()?;
    let root = server.authority.file();
    let open = async |options: String| {
        let options = format!("sslmode=verify-full&sslrootcert={root}{options}");
        server.open("postgres", "localhost", &options).await
    };
    let with = |certificate: &str, key: &str| -> Result<String> {
        let certificate =
            private_file(dir.path(), "client.crt", certificate)?.display().to_string();
        let key = private_file(dir.path(), "client.key", key)?.display().to_string();
        Ok(format!("&sslcert={certificate}&sslkey={key}"))
    };
    // PKCS #8, SEC 1 and PKCS #1.
    let elliptic = clients.issue("postgres")?;
    let rsa = clients.sign(&KeyPair::from_pem(&rsa_key()?)?, "postgres", |_| {})?;
    let sec1 = openssl(&["ec"], &elliptic.key)?;
    let pkcs1 = openssl(&["rsa", "-traditional"], &rsa.key)?;
    ensure!(sec1.contains("BEGIN EC PRIVATE KEY") && pkcs1.contains("BEGIN RSA PRIVATE KEY"));
    for (certificate, key) in [
        (&elliptic.certificate, &elliptic.key),
        (&elliptic.certificate, &sec1),
        (&rsa.certificate, &pkcs1),
    ] {
        open(with(certificate, key)?).await.unwrap();
    }

    open(String::new()).await.unwrap_err().expect("valid client certificate", false);
    let unknown = server.authority.issue("postgres")?;
    let refused = open(with(&unknown.certificate, &unknown.key)?).await.unwrap_err();
    refused.expect("alert", false);
    let refused = open(with(&elliptic.certificate, &rsa.key)?).await.unwrap_err();
    refused.expect("does not fit sslcert", false);
    let encrypted = openssl(&["pkey", "-aes256", "-passout", "pass:hush"], &elliptic.key)?;
    let refused = open(with(&elliptic.certificate, &encrypted)?).await.unwrap_err();
    refused.expect("not encrypted", false);
    let options = with(&elliptic.certificate, &elliptic.key)?;
    std::fs::set_permissions(
        dir.path().join("client.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )?;
    open(options).await.unwrap_err().expect("others may read the key: chmod 6", false);
    let refused = open("&sslcert=/nowhere.crt&sslkey=/nowhere.key".to_owned()).await.unwrap_err();
    refused.expect("sslcert /nowhere.crt: cannot be read", false);
    Ok(())
}

/// A listener that answers the request for TLS with these bytes, if any, reads once more and closes.
struct Impostor {
    port: u16,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Impostor {
    async fn answering(answer: &'static [u8]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let mut request = [0; 8];
                let _ = socket.read_exact(&mut request).await;
                let _ = socket.write_all(answer).await;
                if !answer.is_empty() {
                    let _ = socket.read(&mut [0; 4096]).await;
                }
            }
        });
        Ok(Self { port, connections, _task: task })
    }

    async fn open(&self, mode: &str) -> Refusal {
        let url = format!("postgres://u:hush@127.0.0.1:{}/d?sslmode={mode}", self.port);
        open(&url).await.unwrap_err()
    }
}

#[tokio::test]
async fn server_that_breaks_the_handshake_is_never_spoken_to_in_plain_text() -> Result<()> {
    for (answer, expected, passing) in [
        (&b"S"[..], "ended the connection in the TLS handshake", true),
        (b"", "ended the connection in the TLS handshake", true),
        // Plain text behind the answer, which a careless client would take for the server's.
        (b"SR\0\0\0\x08\0\0\0\0", "the TLS handshake with", false),
        (b"E\0\0\0\x05\0", "does not answer the request for TLS", true),
    ] {
        let impostor = Impostor::answering(answer).await?;
        for mode in ["prefer", "require"] {
            impostor.open(mode).await.expect(expected, passing);
        }
        // One for each session, and none of them once more without TLS.
        assert_eq!(impostor.connections.load(Ordering::Relaxed), 4, "{answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn server_without_tls_gets_no_password_when_tls_is_asked_for() -> Result<()> {
    let impostor = Impostor::answering(b"N").await?;
    impostor.open("require").await.expect("offers no TLS", false);
    let url = Secret::new(format!("postgres://u@127.0.0.1:{}/d?sslmode=require", impostor.port));
    let Err(WireError::Link(error)) = wire::connect(&url, "test").await else { bail!("connected") };
    let fix = "use sslmode=disable over a network that you trust";
    assert!(error.to_string().ends_with(fix), "{error}");
    Ok(())
}
