//! Start-up and authentication: trust, password, md5, SCRAM-SHA-256 with and without
//! channel binding.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::config::ChannelBinding as Binding;

use super::connection::{Connection, Received, malformed, unexpected};
use super::error::{ServerError, WireError};
use crate::pg::Conninfo;
use crate::sql::OUTPUT;
use walhook_core::settings::SEARCH_PATH;
use walhook_process::failpoint;

/// Pinned beside [`OUTPUT`].
const PINNED: [(&str, &str); 2] = [
    ("client_encoding", "UTF8"),
    // Not output: a role that is set to see no warnings would not see PostgreSQL 18 skip the publication.
    ("client_min_messages", "notice"),
];

/// What the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Replication commands.
    Replication,
    /// To be looked at: it asks for nothing that a connection pooler may refuse.
    Probe,
}

/// Brings a fresh connection to the point where it takes commands. Returns the process that serves
/// it, by the word of whoever has answered.
///
/// `password`, or why there is none; `end_point`, under TLS: what the password exchange is bound to.
pub(super) async fn start_up(
    connection: &mut Connection,
    purpose: Purpose,
    info: &Conninfo,
    application_name: &str,
    password: Result<&[u8], &String>,
    end_point: Option<Vec<u8>>,
) -> Result<Option<i32>, WireError> {
    let mut parameters = vec![
        ("user", info.user()),
        ("database", info.database()),
        ("application_name", application_name),
    ];
    if purpose == Purpose::Replication {
        parameters.push(("replication", "database"));
        parameters.extend(OUTPUT);
        parameters.extend(PINNED);
        // Values of regclass and its kin name their schema unless it is searched.
        parameters.push(("search_path", failpoint::search_path().unwrap_or(SEARCH_PATH)));
    }
    parameters.extend(info.options.as_deref().map(|options| ("options", options)));
    connection.send(|out| frontend::startup_message(parameters, out)).await?;
    authenticate(connection, info, password, end_point).await?;
    let mut pid = None;
    loop {
        match connection.receive().await? {
            Received::Message(Message::ReadyForQuery(_)) => return Ok(pid),
            Received::Message(Message::BackendKeyData(body)) => pid = Some(body.process_id()),
            Received::Message(Message::ParameterStatus(_)) => {}
            Received::Message(Message::NoticeResponse(body)) => {
                connection.notice(&ServerError::parse(body.fields()).map_err(malformed)?);
            }
            other @ (Received::CopyBoth | Received::Message(_) | Received::Oversize { .. }) => {
                return Err(unexpected(&other, WireError::Session));
            }
        }
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is non-exhaustive; the rest is refused"
)]
async fn authenticate(
    connection: &mut Connection,
    info: &Conninfo,
    password: Result<&[u8], &String>,
    end_point: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let password = || password.map_err(|why| WireError::PasswordMissing { why: why.clone() });
    // What knows nothing of the certificate cannot be bound to it.
    let unbound = |method: &str| match info.channel_binding {
        Binding::Require => Err(WireError::ChannelBinding { why: format!("it wants {method}") }),
        _ => Ok(()),
    };
    let message = match connection.receive().await? {
        Received::Message(message) => message,
        other @ (Received::CopyBoth | Received::Oversize { .. }) => {
            return Err(unexpected(&other, WireError::Session));
        }
    };
    let method = match message {
        Message::AuthenticationOk => return unbound("no password"),
        Message::AuthenticationCleartextPassword => {
            unbound("the password as it is")?;
            let password = password()?;
            connection.send(|out| frontend::password_message(password, out)).await?;
            return expect_ok(connection).await;
        }
        Message::AuthenticationMd5Password(body) => {
            unbound("md5")?;
            let hash = md5_hash(info.user().as_bytes(), password()?, body.salt());
            connection.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            return expect_ok(connection).await;
        }
        Message::AuthenticationSasl(body) => {
            return scram(connection, &body, password()?, info.channel_binding, end_point).await;
        }
        Message::AuthenticationGss => "GSSAPI",
        Message::AuthenticationSspi => "SSPI",
        Message::AuthenticationKerberosV5 => "Kerberos",
        Message::AuthenticationScmCredential => "SCM credential",
        other => return Err(unexpected(&Received::Message(other), WireError::Session)),
    };
    Err(WireError::AuthenticationMethod { method: method.to_owned() })
}

/// Source: RFC 5802, RFC 7677; PostgreSQL manual, "SASL Authentication".
async fn scram(
    connection: &mut Connection,
    offer: &AuthenticationSaslBody,
    password: &[u8],
    wanted: Binding,
    end_point: Option<Vec<u8>>,
) -> Result<(), WireError> {
    let offered: Vec<_> =
        offer.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(malformed)?;
    let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
    let end_point = end_point.filter(|_| wanted != Binding::Disable);
    let (mechanism, binding) = match end_point {
        Some(end_point) if offers(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point))
        }
        _ if wanted == Binding::Require => {
            let why = "it offers no SCRAM-SHA-256-PLUS, or there is no TLS to bind to".to_owned();
            return Err(WireError::ChannelBinding { why });
        }
        _ if !offers(SCRAM_SHA_256) => {
            return Err(WireError::AuthenticationMethod { method: offered.join(", ") });
        }
        // Says that we could have: a server that could have too knows that somebody has cut its offer.
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    let mut scram = ScramSha256::new(password, binding);
    connection.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
    match connection.receive().await? {
        Received::Message(Message::AuthenticationSaslContinue(body)) => {
            scram.update(body.data()).map_err(WireError::Scram)?;
        }
        other @ (Received::CopyBoth | Received::Message(_) | Received::Oversize { .. }) => {
            return Err(unexpected(&other, WireError::Session));
        }
    }
    connection.send(|out| frontend::sasl_response(scram.message(), out)).await?;
    match connection.receive().await? {
        // Verifies that the server knows the password too.
        Received::Message(Message::AuthenticationSaslFinal(body)) => {
            scram.finish(body.data()).map_err(WireError::Scram)?;
        }
        other @ (Received::CopyBoth | Received::Message(_) | Received::Oversize { .. }) => {
            return Err(unexpected(&other, WireError::Session));
        }
    }
    expect_ok(connection).await
}

async fn expect_ok(connection: &mut Connection) -> Result<(), WireError> {
    match connection.receive().await? {
        Received::Message(Message::AuthenticationOk) => Ok(()),
        other @ (Received::CopyBoth | Received::Message(_) | Received::Oversize { .. }) => {
            Err(unexpected(&other, WireError::Session))
        }
    }
}
