//! From a URL to a connection that takes replication commands.

use super::auth::{Purpose, start_up};
use super::connection::Connection;
use super::error::WireError;
use super::replication::Replication;
use crate::pg::{self, AsDatabaseUrl, Conninfo, Link, SessionAttrs, StartUp};

/// The class "invalid authorization specification".
const AUTHORIZATION_CLASS: &str = "28";

/// Opens a replication connection to the first of the URL's hosts that can be used.
///
/// # Errors
/// [`WireError`]. As in libpq, a host that refuses the authentication ends the search: the others
/// would only hide it.
pub async fn connect(
    url: &impl AsDatabaseUrl,
    application_name: &str,
) -> Result<Replication, WireError> {
    let info = Conninfo::parse(url)?;
    let purpose = Purpose::Replication;
    Ok(pg::open(&info, WireStartUp { purpose, info: &info, application_name }).await?.0)
}

/// Whether sessions of this URL are lent by a connection pooler: then the process that serves one is
/// another than the start-up said.
///
/// # Errors
/// [`WireError`]
pub async fn is_pooled(
    url: &impl AsDatabaseUrl,
    application_name: &str,
) -> Result<bool, WireError> {
    let info = Conninfo::parse(url)?;
    let start_up = WireStartUp { purpose: Purpose::Probe, info: &info, application_name };
    let (mut session, pid) = pg::open(&info, start_up).await?;
    Ok(Some(session.backend_pid().await?) != pid)
}

struct WireStartUp<'a> {
    purpose: Purpose,
    info: &'a Conninfo,
    application_name: &'a str,
}

impl StartUp for WireStartUp<'_> {
    /// With the process that serves it, as the start-up said.
    type Session = (Replication, Option<i32>);
    type Error = WireError;

    async fn start_up(&self, link: Link) -> Result<Self::Session, WireError> {
        session(link, self.purpose, self.info, self.application_name).await
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "a question about few of many errors")]
    fn is_final(error: &WireError) -> bool {
        match error {
            WireError::Session(server) => server.sqlstate.starts_with(AUTHORIZATION_CLASS),
            WireError::PasswordMissing { .. }
            | WireError::AuthenticationMethod { .. }
            | WireError::ChannelBinding { .. }
            | WireError::Scram(_) => true,
            _ => false,
        }
    }
}

async fn session(
    link: Link,
    purpose: Purpose,
    info: &Conninfo,
    application_name: &str,
) -> Result<(Replication, Option<i32>), WireError> {
    let Link { target, socket, end_point, password, .. } = link;
    let mut connection = Connection::new(socket);
    let password = password.as_deref();
    let pid =
        start_up(&mut connection, purpose, info, application_name, password, end_point).await?;
    let mut replication = Replication::new(connection);
    if info.attrs != SessionAttrs::Any {
        let (in_recovery, read_only) = replication.session_attrs().await?;
        if !info.attrs.accepts(in_recovery, read_only) {
            return Err(WireError::WrongHost { target });
        }
    }
    Ok((replication, pid))
}
