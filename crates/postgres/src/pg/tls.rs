//! TLS: what is trusted, and who we are.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use super::error::LinkError;
use super::kinds::{Root, SslMode, Tls};
use walhook_process::faults;

impl Tls {
    /// The client side of a handshake. Reads the files anew, so that a renewed certificate is used
    /// from the next connection on.
    ///
    /// # Errors
    /// [`LinkError::File`], [`LinkError::SystemRoots`].
    pub(super) fn client_config(&self) -> Result<ClientConfig, LinkError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &self.root {
            Some(Root::System) => {
                let system = Verifier::new(Arc::clone(&provider));
                Arc::new(system.map_err(LinkError::SystemRoots)?)
            }
            Some(Root::File(path)) => {
                Arc::new(FileVerifier::new(self.mode, Some(path), &provider)?)
            }
            None => Arc::new(FileVerifier::new(self.mode, None, &provider)?),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(LinkError::SystemRoots)?
            .dangerous() // only to the builder: the verifier says what is verified
            .with_custom_certificate_verifier(verifier);
        let Some((certificate_path, key_path)) = &self.client else {
            return Ok(config.with_no_client_auth());
        };
        let chain = certificates("sslcert", certificate_path)?;
        let key = private_key(key_path)?;
        config.with_client_auth_cert(chain, key).map_err(|error| LinkError::File {
            option: "sslkey",
            path: key_path.clone(),
            problem: format!("does not fit sslcert: {error}"),
        })
    }
}

/// Judges by the certificates in a file, or not at all.
#[derive(Debug)]
struct FileVerifier {
    /// `None`: every certificate will do, for `prefer` and `require` without `sslrootcert`.
    roots: Option<RootCertStore>,
    /// The same as they stand in the file.
    trusted: Vec<CertificateDer<'static>>,
    /// Whether the host's name must be in the certificate.
    names: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl FileVerifier {
    fn new(
        mode: SslMode,
        path: Option<&Path>,
        provider: &CryptoProvider,
    ) -> Result<Self, LinkError> {
        let mut verifier = Self {
            roots: None,
            trusted: vec![],
            names: mode == SslMode::VerifyFull,
            algorithms: provider.signature_verification_algorithms,
        };
        let Some(path) = path else { return Ok(verifier) };
        verifier.trusted = certificates("sslrootcert", path)?;
        let mut roots = RootCertStore::empty();
        // A bundle may hold one that we cannot read; the others count.
        let (added, _) = roots.add_parsable_certificates(verifier.trusted.iter().cloned());
        if added == 0 {
            let problem = "holds no CA certificate that can be used".to_owned();
            return Err(LinkError::File { option: "sslrootcert", path: path.to_owned(), problem });
        }
        verifier.roots = Some(roots);
        Ok(verifier)
    }
}

impl ServerCertVerifier for FileVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = &self.roots else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match chain {
            Ok(()) => {}
            // A server's self-signed certificate, marked as a CA's as `openssl req -x509` does, and
            // named as the root: it is trusted itself, and its times were looked at before.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.trusted.iter().any(|trusted| trusted == end_entity) => {}
            Err(error) => return Err(error),
        }
        if self.names {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn certificates(
    option: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let file = |problem: String| LinkError::File { option, path: path.to_owned(), problem };
    let text = fs::read(path).map_err(unreadable(option, path))?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(file("holds no certificate; it must be in PEM".to_owned())),
        Err(error) => Err(file(format!("is not in PEM: {error}"))),
    }
}

/// What nobody can open at the moment is no fault of the file.
fn unreadable(option: &'static str, path: &Path) -> impl Fn(std::io::Error) -> LinkError {
    move |error| match faults::note(&error) {
        Some(_) => LinkError::Local { path: path.to_owned(), source: error },
        None => {
            let problem = format!("cannot be read: {error}");
            LinkError::File { option, path: path.to_owned(), problem }
        }
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, LinkError> {
    let file =
        |problem: String| LinkError::File { option: "sslkey", path: path.to_owned(), problem };
    let cannot = unreadable("sslkey", path);
    let metadata = fs::metadata(path).map_err(&cannot)?;
    // As libpq: a key of root's may be readable by a group.
    let (allowed, mode) = if metadata.uid() == 0 { (0o640, "640") } else { (0o600, "600") };
    if metadata.permissions().mode() & 0o777 & !allowed != 0 {
        return Err(file(format!("others may read the key: chmod {mode} it")));
    }
    let text = fs::read(path).map_err(cannot)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        file(
            "holds no key that can be used; it must be in PEM and not encrypted (openssl pkey -in \
             FILE -out NEW decrypts it)"
                .to_owned(),
        )
    })
}
