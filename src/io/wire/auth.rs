//! Start-up and authentication: trust, password, md5, SCRAM-SHA-256.

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::connection::{Connection, Received, malformed, notice, unexpected};
use super::error::{ServerError, WireError};

/// Settings that text output depends on, pinned against what a role, a database or the server says.
const PINNED: [(&str, &str); 9] = [
    ("replication", "database"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    // Values of regclass and its kin name their schema unless it is searched.
    ("search_path", "pg_catalog"),
];

/// Who we are.
pub(super) struct Identity<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a [u8]>,
    pub(super) database: &'a str,
    pub(super) application_name: &'a str,
    pub(super) options: Option<&'a str>,
}

/// Brings a fresh connection to the point where it takes commands.
pub(super) async fn start_up(
    connection: &mut Connection,
    identity: &Identity<'_>,
) -> Result<(), WireError> {
    let parameters = [
        ("user", identity.user),
        ("database", identity.database),
        ("application_name", identity.application_name),
    ]
    .into_iter()
    .chain(PINNED)
    .chain(identity.options.map(|options| ("options", options)));
    connection.send(|out| frontend::startup_message(parameters, out)).await?;
    authenticate(connection, identity).await?;
    loop {
        match connection.receive().await? {
            Received::Message(Message::ReadyForQuery(_)) => return Ok(()),
            Received::Message(Message::ParameterStatus(_) | Message::BackendKeyData(_)) => {}
            Received::Message(Message::NoticeResponse(body)) => {
                notice(&ServerError::parse(body.fields()).map_err(malformed)?);
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
    identity: &Identity<'_>,
) -> Result<(), WireError> {
    let password = || identity.password.ok_or(WireError::PasswordMissing);
    let message = match connection.receive().await? {
        Received::Message(message) => message,
        other @ (Received::CopyBoth | Received::Oversize { .. }) => {
            return Err(unexpected(&other, WireError::Session));
        }
    };
    let method = match message {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            let password = password()?;
            connection.send(|out| frontend::password_message(password, out)).await?;
            return expect_ok(connection).await;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(identity.user.as_bytes(), password()?, body.salt());
            connection.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            return expect_ok(connection).await;
        }
        Message::AuthenticationSasl(body) => return scram(connection, &body, password()?).await,
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
) -> Result<(), WireError> {
    let offered: Vec<_> =
        offer.mechanisms().map(|name| Ok(name.to_owned())).collect().map_err(malformed)?;
    if !offered.iter().any(|name| name == SCRAM_SHA_256) {
        return Err(WireError::AuthenticationMethod { method: offered.join(", ") });
    }
    // Without TLS there is no channel to bind to.
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    connection
        .send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out))
        .await?;
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
