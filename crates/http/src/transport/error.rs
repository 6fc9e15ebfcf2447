//! What an error of the HTTP client means, in words that may be shown.

use std::error::Error;

use super::certificate;
use super::clients::SendError;
use super::connect::ConnectError;
use crate::exchange::Failure;
use crate::resolve::ResolveError;
use walhook_core::attempt::FailureKind;
use walhook_core::escape::is_unfit;
use walhook_process::faults;

/// Of an error's text, what is kept for the operator.
pub(super) const DETAIL_MAX: usize = 1 << 10;

/// The one place that decides what an error of the HTTP client means.
pub(super) fn classify(failed: &SendError) -> Failure {
    let mut kind = match failed {
        SendError::Connect(_) => FailureKind::Connect,
        SendError::Begin(_) | SendError::Sent(..) => FailureKind::Protocol,
        SendError::HeldBack => return failure(FailureKind::Aborted, "it was held back"),
    };
    let (mut detail, mut speaks_tls) = (Vec::new(), true);
    let mut cause = failed.source();
    while let Some(error) = cause {
        let mut text = None;
        if let Some(connect) = error.downcast_ref::<ConnectError>() {
            kind = connect_kind(connect);
        } else if let Some(tls) = tls_error(error) {
            kind = FailureKind::Tls;
            let invalid = rustls::InvalidMessage::InvalidContentType;
            // Once there is a connection, it does.
            speaks_tls = !matches!(failed, SendError::Connect(_))
                || *tls != rustls::Error::InvalidMessage(invalid);
            text = Some(certificate::explain(tls));
        }
        detail.push(text.unwrap_or_else(|| error.to_string()));
        cause = error.source();
    }
    detail.dedup();
    if !speaks_tls {
        detail.push("the port answers without TLS".to_owned());
    }
    failure(kind, &detail.join(": "))
}

fn connect_kind(error: &ConnectError) -> FailureKind {
    if error.of_system().and_then(faults::note).is_some() {
        return FailureKind::Local;
    }
    match error {
        ConnectError::Resolve(ResolveError::Forbidden(_)) => FailureKind::Forbidden,
        ConnectError::Resolve(ResolveError::Crowded) => FailureKind::Local,
        ConnectError::Resolve(
            ResolveError::Dns(_)
            | ResolveError::Nothing
            | ResolveError::Silent(_)
            | ResolveError::Left(_),
        ) => FailureKind::Dns,
        ConnectError::Proxy(_) => FailureKind::Proxy,
        ConnectError::OfSome { error, .. } => connect_kind(error),
        ConnectError::Dial(_)
        | ConnectError::Tunnel(_)
        | ConnectError::Timeout
        | ConnectError::Handshake => FailureKind::Connect,
    }
}

/// rustls' errors come wrapped in I/O errors, one or more of them, whose sources they are not.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = || error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.downcast_ref().or_else(|| tls_error(wrapped()?))
}

pub(super) fn failure(kind: FailureKind, detail: &str) -> Failure {
    Failure { kind, detail: printable(detail, DETAIL_MAX) }
}

/// Text that a terminal and a log take as it is: the first `max` bytes, without control characters
/// and those that turn the direction of writing.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let shown = match c {
            '\n' => c,
            c if is_unfit(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if out.len() + shown.len_utf8() > max {
            break;
        }
        out.push(shown);
    }
    out
}
