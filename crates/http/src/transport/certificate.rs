//! What is wrong with a receiver's certificate, and what helps.

use std::error::Error;

use rustls::CertificateError;
use walhook_core::event::rfc3339_of_seconds;

/// Names of a certificate that are shown: it may have a hundred.
const NAMES_MAX: usize = 5;

/// For a person. Where it needs more than the library's words, those are not shown.
pub(super) fn explain(error: &rustls::Error) -> String {
    let rustls::Error::InvalidCertificate(certificate) = error else { return error.to_string() };
    problem(certificate).unwrap_or_else(|| error.to_string())
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is non-exhaustive; the rest is shown")]
fn problem(error: &CertificateError) -> Option<String> {
    let problem = match error {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the certificate is not signed by an authority that this system trusts; let the receiver send the \
             intermediate certificates along, or have the authority's own among the CA certificates of the machine \
             that walhook runs on (or in the file that SSL_CERT_FILE names)"
                .to_owned()
        }
        CertificateError::Expired => "the certificate has expired; the receiver must renew it".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate has expired at {}; the receiver must renew it", rfc3339_of_seconds(not_after.as_secs()))
        }
        CertificateError::NotValidYet => {
            "the certificate is not valid yet; is the clock right here?".to_owned()
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is valid from {} only; is the clock right here?", rfc3339_of_seconds(not_before.as_secs()))
        }
        CertificateError::NotValidForName => {
            "the certificate is not valid for the name in the URL; it needs that one too".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let expected = expected.to_str();
            format!(
                "the certificate is not valid for {expected} but for {}; use such a name in the URL, or let the \
                 certificate have this one",
                names(presented)
            )
        }
        CertificateError::Other(other) if signs_itself(&*other.0) => {
            "the certificate is that of an authority, as one that signs itself mostly is, and not one for a server; \
             let an authority issue one (with CA:FALSE), and have the authority's own trusted where walhook runs"
                .to_owned()
        }
        CertificateError::Other(other) if is_of_old_version(&*other.0) => {
            "the certificate is of an X.509 version before 3, which has no place for names; the receiver needs a new one"
                .to_owned()
        }
        _ => return None,
    };
    Some(problem)
}

fn signs_itself(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref() == Some(&webpki::Error::CaUsedAsEndEntity)
}

fn is_of_old_version(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref() == Some(&webpki::Error::UnsupportedCertVersion)
}

/// The library has them as `DnsName("a.example")`.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| name.split('"').nth(1).unwrap_or(name).to_owned();
    let names: Vec<String> = presented.iter().take(NAMES_MAX).map(plain).collect();
    match presented.len() {
        0 => "no name (a common name does not count)".to_owned(),
        all if all > NAMES_MAX => format!("{} and others", names.join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    #[test]
    fn certificate_of_version_1_is_explained_without_the_words_of_the_library() {
        let error =
            CertificateError::Other(OtherError(Arc::new(webpki::Error::UnsupportedCertVersion)));
        let explained = explain(&rustls::Error::InvalidCertificate(error));
        assert!(
            explained.starts_with("the certificate is of an X.509 version before 3"),
            "{explained}"
        );
    }
}
