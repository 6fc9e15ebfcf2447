//! Certificates made for one test, and servers that present them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_RSA_SHA512,
    SignatureAlgorithm, date_time_ymd,
};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::cluster::Cluster;
use crate::program::PATIENCE;
use crate::scratch::Scratch;
use crate::session::Session;

/// A certificate authority, with its certificate in a file.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: Scratch,
}

/// A certificate and its key in PEM.
#[derive(Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// With an elliptic key of this kind.
    ///
    /// # Errors
    /// When it fails.
    pub fn ecdsa(algorithm: &'static SignatureAlgorithm) -> Result<Self> {
        Self::of(KeyPair::generate_for(algorithm)?)
    }

    /// With an RSA key, signing by SHA-512.
    ///
    /// # Errors
    /// When it fails.
    pub fn rsa() -> Result<Self> {
        Self::of(KeyPair::from_pkcs8_pem_and_sign_algo(&rsa_key()?, &PKCS_RSA_SHA512)?)
    }

    fn of(key: KeyPair) -> Result<Self> {
        let mut params = CertificateParams::new(vec![])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let dir = Scratch::new()?;
        fs::write(dir.path().join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, dir })
    }

    /// Where its certificate stands.
    #[must_use]
    pub fn file(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A certificate for this key and name.
    ///
    /// # Errors
    /// When it fails.
    pub fn sign(
        &self,
        key: &KeyPair,
        name: &str,
        edit: fn(&mut CertificateParams),
    ) -> Result<Pair> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        edit(&mut params);
        let certificate = params.signed_by(key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }

    /// As [`Authority::sign`], for a new elliptic key.
    ///
    /// # Errors
    /// When it fails.
    pub fn issue(&self, name: &str) -> Result<Pair> {
        self.sign(&KeyPair::generate()?, name, |_| {})
    }

    /// One that was good once.
    ///
    /// # Errors
    /// When it fails.
    pub fn issue_expired(&self, name: &str) -> Result<Pair> {
        self.sign(&KeyPair::generate()?, name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }
}

/// An RSA key in PEM, as PKCS #8. Its library makes none, so OpenSSL does.
///
/// # Errors
/// When it fails.
pub fn rsa_key() -> Result<String> {
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "")
}

/// What `openssl` makes of its input.
///
/// # Errors
/// When it fails.
pub fn openssl(args: &[&str], input: &str) -> Result<String> {
    let dir = Scratch::new()?;
    let file = dir.path().join("input");
    fs::write(&file, input)?;
    let mut command = Command::new("openssl");
    command.args(args);
    if !input.is_empty() {
        command.arg("-in").arg(&file);
    }
    let output = command.output().context("openssl")?;
    ensure!(
        output.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it fails.
pub fn private_file(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(path)
}

/// Makes a server present this certificate, and take client certificates of this authority.
///
/// # Errors
/// When it fails.
pub async fn present(
    cluster: &Cluster,
    admin: &Client,
    pair: &Pair,
    clients: Option<&Authority>,
) -> Result<()> {
    let data = cluster.data();
    let owned = |name: &str, text: &str| -> Result<()> {
        let path = data.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let owner = fs::metadata(&data)?;
        Ok(chown(&path, Some(owner.uid()), Some(owner.gid()))?)
    };
    owned("server.crt", &pair.certificate)?;
    owned("server.key", &pair.key)?;
    let mut clients_file = "";
    if let Some(clients) = clients {
        owned("clients.crt", &clients.pem())?;
        clients_file = "clients.crt";
    }
    admin.batch_execute(&format!("ALTER SYSTEM SET ssl_ca_file = '{clients_file}'")).await?;
    set_ssl(cluster, admin, true).await
}

/// Turns TLS on or off at the server, or reads the files again.
///
/// # Errors
/// When it fails.
pub async fn set_ssl(cluster: &Cluster, admin: &Client, on: bool) -> Result<()> {
    admin.batch_execute(&format!("ALTER SYSTEM SET ssl = {on}")).await?;
    reload(cluster, admin).await
}

/// Replaces the rules of `pg_hba.conf` for TCP; the Unix socket stays open to all.
///
/// # Errors
/// When it fails.
pub async fn host_rules(cluster: &Cluster, admin: &Client, rules: &str) -> Result<()> {
    let path = cluster.data().join("pg_hba.conf");
    fs::write(path, format!("local all all trust\nlocal replication all trust\n{rules}\n"))?;
    reload(cluster, admin).await
}

/// Makes the server read its configuration, and waits until it has: until its answers to new
/// sessions come from it.
async fn reload(cluster: &Cluster, admin: &Client) -> Result<()> {
    let loaded = "SELECT pg_conf_load_time()::text";
    let before: String = admin.query_one(loaded, &[]).await?.get(0);
    admin.batch_execute("SELECT pg_reload_conf()").await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A new session inherits what the postmaster has loaded.
        let session = by_socket(cluster).await?;
        let now: String = session.query_one(loaded, &[]).await?.get(0);
        if now != before {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the server does not load its configuration");
    }
}

/// A session that no rule for TCP and no certificate keeps out.
///
/// # Errors
/// When it fails.
pub async fn by_socket(cluster: &Cluster) -> Result<Session> {
    let (dir, port) = (cluster.socket_dir().display(), cluster.port());
    Session::open(&format!("host={dir} port={port} user=postgres dbname=postgres")).await
}
