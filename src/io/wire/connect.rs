//! From a URL to a connection that takes replication commands.

use super::auth::start_up;
use super::connection::Connection;
use super::error::WireError;
use super::replication::Replication;
use crate::engine::endpoint::Secret;
use crate::io::pg::{self, Conninfo, Link, SessionAttrs, StartUp};

/// The class "invalid authorization specification".
const AUTHORIZATION_CLASS: &str = "28";

/// Opens a replication connection to the first of the URL's hosts that can be used.
///
/// # Errors
/// [`WireError`]. As in libpq, a host that refuses the authentication ends the search: the others
/// would only hide it.
pub async fn connect(url: &Secret, application_name: &str) -> Result<Replication, WireError> {
    let info = Conninfo::parse(url)?;
    pg::open(&info, ReplicationStartUp { info: &info, application_name }).await
}

struct ReplicationStartUp<'a> {
    info: &'a Conninfo,
    application_name: &'a str,
}

impl StartUp for ReplicationStartUp<'_> {
    type Session = Replication;
    type Error = WireError;

    async fn start_up(&self, link: Link) -> Result<Replication, WireError> {
        session(link, self.info, self.application_name).await
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
    info: &Conninfo,
    application_name: &str,
) -> Result<Replication, WireError> {
    let Link { target, socket, end_point, password, .. } = link;
    let mut connection = Connection::new(socket);
    start_up(&mut connection, info, application_name, password.as_deref(), end_point).await?;
    let mut replication = Replication::new(connection);
    if info.attrs != SessionAttrs::Any {
        let (in_recovery, read_only) = replication.session_attrs().await?;
        if !info.attrs.accepts(in_recovery, read_only) {
            return Err(WireError::WrongHost { target });
        }
    }
    Ok(replication)
}
