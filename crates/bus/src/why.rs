//! Why no server takes us, in words that say what to do.

use std::io;

use async_nats::rustls::{self, AlertDescription};
use async_nats::{ConnectError, ConnectErrorKind};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::options::{CONNECT_TIMEOUT, Servers};

/// Why a connection was not made, with what it comes from, and what the client's words leave open.
pub(crate) async fn why(error: &ConnectError, servers: &Servers) -> String {
    let said = said(error);
    if let Some(meaning) = of_tls(error, servers.tls()) {
        return format!("{said}: {meaning}");
    }
    let is_late = error.kind() == ConnectErrorKind::TimedOut;
    match if is_late { stalled(servers).await } else { None } {
        Some(stalled) => format!("{said}: {stalled}"),
        None => said,
    }
}

/// How far a server goes that does not take us in time: the client says of all of them that they timed out.
async fn stalled(servers: &Servers) -> Option<String> {
    let seconds = CONNECT_TIMEOUT.as_secs();
    for (server, name) in servers.named() {
        let connecting = TcpStream::connect((server.host(), server.port()));
        let mut stream = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(stream)) => stream,
            // That is another trouble than the one that is asked about.
            Ok(Err(_)) => continue,
            Err(_) => {
                return Some(format!(
                    "{name} takes no connection within {seconds} s; see whether its machine is up, and whether a firewall \
                     swallows what is sent there"
                ));
            }
        };
        let spoke = timeout(CONNECT_TIMEOUT, stream.read_u8()).await;
        return Some(match (spoke, servers.tls()) {
            (Ok(Err(_)), false) => continue,
            (Ok(Err(_)), true) => format!("{name} hangs up without a word; {HANDSHAKE_FIRST}"),
            (Ok(Ok(_)), true) => format!(
                "{name} has spoken, and the TLS handshake was not finished within {seconds} s; see whether what stands \
                 between here and nats-server (a proxy, a firewall, a smaller MTU) lets TLS through, and whether \
                 nats-server is overloaded"
            ),
            (Ok(Ok(_)), false) => format!(
                "{name} has spoken, and did not take us within {seconds} s; see whether nats-server is overloaded, and \
                 what stands between here and it"
            ),
            (Err(_), true) => format!(
                "{name} takes connections, and no TLS handshake was finished within {seconds} s, for no word came from it; \
                 see whether nats-server listens there, and whether it is frozen; {HANDSHAKE_FIRST}"
            ),
            (Err(_), false) => format!(
                "{name} takes connections, and no word came from it within {seconds} s; see whether nats-server listens \
                 there, and whether it is frozen"
            ),
        });
    }
    None
}

/// What keeps a server that is well from speaking.
const HANDSHAKE_FIRST: &str = "where its tls section has handshake_first, turn that off, for walhook begins with TLS only \
     when the server has spoken";

/// What it means, where servers and we do not agree on TLS.
fn of_tls(error: &ConnectError, tls: bool) -> Option<String> {
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<io::Error>());
    let of_rustls = io.and_then(io::Error::get_ref).and_then(|it| it.downcast_ref());
    match of_rustls {
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            return Some(
                "the server wants certificates of its clients (verify in its tls section), and walhook has none; give \
                 it users with passwords, nkeys or creds instead"
                    .to_owned(),
            );
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            return Some(
                "what answers there speaks no TLS; give the server a tls section, or write nats:// where it is to have none"
                    .to_owned(),
            );
        }
        Some(_) | None => {}
    }
    // A server that waits for TLS says nothing, and hangs up in the end: that is no error of the system's.
    let hung_up = matches!(error.kind(), ConnectErrorKind::Io) && io.is_none();
    (tls && hung_up).then(|| format!("no word came from it; {HANDSHAKE_FIRST}"))
}

fn said(error: &ConnectError) -> String {
    if error.kind() == ConnectErrorKind::AuthorizationViolation {
        return "it refuses the credentials, or wants some".to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
