//! Why there is no way to a server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::CertificateError;

use super::kinds::SslMode;
use crate::fix::{FixedBy, UNREACHABLE};
use walhook_core::event::rfc3339_of_seconds;
use walhook_process::faults::Fault;

/// No way to a host. Names the host, what was asked for and the fix; holds no password.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody answers there.
    #[error("cannot connect to {target}: {}", unreachable(.why))]
    Unreachable {
        /// Host and port.
        target: String,
        /// Why.
        why: io::Error,
    },
    /// The name is unknown, or nobody can be asked for it.
    #[error(
        "cannot connect to {target}: there is no such host name ({why}); correct it in the URL, or the \
         name service of this machine"
    )]
    UnknownName {
        /// Host and port.
        target: String,
        /// What the name service says.
        why: io::Error,
    },
    /// Connecting, authentication included, took too long.
    #[error(
        "cannot connect to {target}: no session within {after:?}; is the address right, and does a \
         firewall let us through?"
    )]
    Timeout {
        /// Host and port.
        target: String,
        /// How long it was given: `connect_timeout`.
        after: Duration,
    },
    /// The server has no TLS.
    #[error(
        "{target} offers no TLS, which {mode} asks for; set ssl = on in postgresql.conf, or use \
         sslmode=disable over a network that you trust"
    )]
    NoTls {
        /// Host and port.
        target: String,
        /// What was asked for.
        mode: SslMode,
    },
    /// Not a server of PostgreSQL, or one in trouble.
    #[error(
        "{target} does not answer the request for TLS as PostgreSQL does; is it the right port?"
    )]
    NoAnswer {
        /// Host and port.
        target: String,
    },
    /// The connection ended within the handshake.
    #[error("{target} ended the connection in the TLS handshake ({mode})")]
    Broken {
        /// Host and port.
        target: String,
        /// What was asked for.
        mode: SslMode,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The server is not, or may not be, the one that we want.
    #[error("the certificate of {target} {problem} ({mode})")]
    Certificate {
        /// Host and port.
        target: String,
        /// What was asked for.
        mode: SslMode,
        /// What is wrong with it, and the fix.
        problem: String,
    },
    /// The two sides agree on no TLS, or the server does not like our certificate.
    #[error("the TLS handshake with {target} failed ({mode})")]
    Handshake {
        /// Host and port.
        target: String,
        /// What was asked for.
        mode: SslMode,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A file that the URL names cannot be used.
    #[error("{option} {}: {problem}", path.display())]
    File {
        /// The URL's option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong, and the fix.
        problem: String,
    },
    /// A file that the URL names cannot be opened now, for want of something of our own.
    #[error("cannot read {}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What is used up.
        #[source]
        source: io::Error,
    },
    /// There is nothing to judge certificates by.
    #[error(
        "sslrootcert=system: cannot read the system's CA certificates; install ca-certificates"
    )]
    SystemRoots(#[source] rustls::Error),
}

impl LinkError {
    /// Whether it may pass by itself.
    #[must_use]
    pub fn fixed_by(&self) -> FixedBy {
        match self {
            Self::Unreachable { .. }
            | Self::UnknownName { .. }
            | Self::Timeout { .. }
            | Self::Local { .. }
            | Self::NoAnswer { .. }
            | Self::Broken { .. } => FixedBy::Waiting,
            Self::NoTls { .. }
            | Self::Certificate { .. }
            | Self::Handshake { .. }
            | Self::File { .. }
            | Self::SystemRoots(_) => FixedBy::Person,
        }
    }

    /// What to do about it.
    pub(crate) fn fix(&self) -> &'static str {
        match self {
            // What is used up on our side is no fault of the server's.
            Self::Unreachable { why, .. } => Fault::of(why).map_or(UNREACHABLE, Fault::fix),
            Self::UnknownName { .. } => {
                "correct the host in the URL, or the name service of this machine"
            }
            Self::Timeout { .. } => {
                "correct host and port in the URL, or let us through the firewall that is between"
            }
            Self::NoTls { .. } => {
                "set ssl = on in postgresql.conf, or use sslmode=disable over a network that you trust"
            }
            Self::NoAnswer { .. } => {
                "correct the port in the URL, for what answers there is not PostgreSQL"
            }
            Self::Broken { .. } => {
                "find out in the server's log why the TLS handshake ends, and what is between that may cut it off"
            }
            Self::Certificate { .. } => {
                "renew the server's certificate, or correct sslrootcert or the host in the URL"
            }
            Self::Handshake { .. } => {
                "correct sslcert and sslkey in the URL, or what versions of TLS the server takes"
            }
            Self::File { .. } => "correct the file that the error names, or who may read it",
            Self::Local { .. } => {
                "give walhook more of what is used up, such as open files (LimitNOFILE= in its systemd unit)"
            }
            Self::SystemRoots(_) => "install ca-certificates",
        }
    }

    /// What an error of the handshake means.
    pub(super) fn handshake(target: String, mode: SslMode, error: io::Error) -> Self {
        match tls_error(&error).cloned() {
            Some(rustls::Error::InvalidCertificate(invalid)) => {
                Self::Certificate { problem: certificate_problem(&invalid), target, mode }
            }
            Some(source) => Self::Handshake { target, mode, source },
            None => Self::Broken { target, mode, source: error },
        }
    }
}

/// The cause and the fix.
fn unreachable(why: &io::Error) -> String {
    if let Some(fault) = Fault::of(why) {
        return format!("{why}; {}", fault.fix());
    }
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kinds are many; the rest is shown")]
    let fix = match why.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there; start the server, let its listen_addresses take this address in, or \
             correct host and port in the URL"
        }
        io::ErrorKind::NotFound => {
            "the server's socket is not there; start it, or correct host and port in the URL"
        }
        io::ErrorKind::PermissionDenied => "this user may not open the server's socket",
        _ => "is the address right, and is there a way to it from here?",
    };
    format!("{why}; {fix}")
}

/// The TLS library's error inside one of the socket's.
#[must_use]
pub fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// For people: what is wrong with a certificate, and the fix.
#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is non-exhaustive; the rest is shown")]
fn certificate_problem(error: &CertificateError) -> String {
    match error {
        // The latter: one there has the name of the CA, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "is not signed by a CA in sslrootcert; name the file of the CA that signed it"
                .to_owned()
        }
        CertificateError::Expired => "has expired; renew it".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("has expired at {}; renew it", rfc3339_of_seconds(not_after.as_secs()))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!(
                "is valid from {} only; is the clock right here?",
                rfc3339_of_seconds(not_before.as_secs())
            )
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names = if presented.is_empty() {
                "names no host (a common name does not count)".to_owned()
            } else {
                format!("is for {}", presented.join(", "))
            };
            format!(
                "{names}; connect by a name that it has, or use sslmode=verify-ca to compare none"
            )
        }
        CertificateError::Other(inner) => format!("cannot be used: {inner}"),
        other => format!("cannot be used: {other}"),
    }
}
