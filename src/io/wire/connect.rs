//! From a URL to a connection that takes replication commands.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation, TargetSessionAttrs};

use super::auth::{Identity, start_up};
use super::connection::{Connection, Socket};
use super::error::WireError;
use super::replication::Replication;
use crate::engine::endpoint::Secret;

const DEFAULT_PORT: u16 = 5432;

/// For one host, authentication included, where the URL has no `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The class "invalid authorization specification".
const AUTHORIZATION_CLASS: &str = "28";

/// Opens a replication connection to the first of the URL's hosts that can be used.
///
/// Shape: the URL's grammar is that of `tokio_postgres::Config`, so that one URL serves SQL and
/// replication: several hosts, Unix sockets by `host=/directory`, `options`, `connect_timeout`,
/// `target_session_attrs`.
///
/// # Errors
/// [`WireError`]. As in libpq, a host that refuses the authentication ends the search: the others
/// would only hide it.
pub async fn connect(url: &Secret, application_name: &str) -> Result<Replication, WireError> {
    let config = parse(url)?;
    let user = config.get_user().ok_or(WireError::UrlIncomplete { missing: "user" })?;
    let identity = Identity {
        user,
        password: config.get_password(),
        database: config.get_dbname().unwrap_or(user),
        application_name,
        options: config.get_options(),
    };
    let limit = config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let mut last = WireError::UrlIncomplete { missing: "host" };
    for target in targets(&config) {
        let attempt = connect_one(&target, &identity, config.get_target_session_attrs());
        last = match timeout(limit, attempt).await {
            Ok(Ok(replication)) => return Ok(replication),
            Ok(Err(error)) if is_authentication(&error) => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => WireError::Connect {
                target: target.to_string(),
                source: io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {limit:?}")),
            },
        };
    }
    Err(last)
}

fn parse(url: &Secret) -> Result<Config, WireError> {
    let text = url.expose();
    // The grammar does not know these two, and would only say that the value is invalid.
    for setting in ["sslmode=verify-full", "sslmode=verify-ca"] {
        if text.contains(setting) {
            return Err(WireError::Tls { setting });
        }
    }
    let config: Config = text.parse().map_err(WireError::Url)?;
    let setting = match (config.get_ssl_mode(), config.get_ssl_negotiation()) {
        (SslMode::Disable | SslMode::Prefer, SslNegotiation::Postgres) => None,
        (SslMode::Disable | SslMode::Prefer, _) => Some("sslnegotiation=direct"),
        (_, _) => Some("sslmode=require"),
    };
    let binding = (config.get_channel_binding() == ChannelBinding::Require)
        .then_some("channel_binding=require");
    match setting.or(binding) {
        Some(setting) => Err(WireError::Tls { setting }),
        None => Ok(config),
    }
}

/// Where a server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Tcp(String, u16),
    Unix(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host} port {port}"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

/// The URL's hosts in their order. A `hostaddr` stands in for the host's name.
fn targets(config: &Config) -> Vec<Target> {
    let ports = config.get_ports();
    let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
    let addresses = config.get_hostaddrs();
    if !addresses.is_empty() {
        let tcp =
            |(i, address): (usize, &std::net::IpAddr)| Target::Tcp(address.to_string(), port(i));
        return addresses.iter().enumerate().map(tcp).collect();
    }
    let target = |(i, host): (usize, &Host)| match host {
        Host::Tcp(name) => Target::Tcp(name.clone(), port(i)),
        Host::Unix(directory) => Target::Unix(socket_path(directory, port(i))),
    };
    config.get_hosts().iter().enumerate().map(target).collect()
}

fn socket_path(directory: &Path, port: u16) -> String {
    directory.join(format!(".s.PGSQL.{port}")).to_string_lossy().into_owned()
}

async fn connect_one(
    target: &Target,
    identity: &Identity<'_>,
    wanted: TargetSessionAttrs,
) -> Result<Replication, WireError> {
    let refused = |source| WireError::Connect { target: target.to_string(), source };
    let socket: Box<dyn Socket> = match target {
        Target::Tcp(host, port) => {
            // Tries all of the name's addresses in turn.
            let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(refused)?;
            // A status update is small and must not wait for company.
            stream.set_nodelay(true).map_err(refused)?;
            Box::new(stream)
        }
        Target::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(refused)?),
    };
    let mut connection = Connection::new(socket);
    start_up(&mut connection, identity).await?;
    let mut replication = Replication::new(connection);
    let read_only = match wanted {
        TargetSessionAttrs::ReadWrite => Some(false),
        TargetSessionAttrs::ReadOnly => Some(true),
        TargetSessionAttrs::Any | _ => None,
    };
    if let Some(read_only) = read_only
        && replication.is_read_only().await? != read_only
    {
        return Err(WireError::WrongHost { target: target.to_string() });
    }
    Ok(replication)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a question about few of many errors")]
fn is_authentication(error: &WireError) -> bool {
    match error {
        WireError::Session(server) => server.sqlstate.starts_with(AUTHORIZATION_CLASS),
        WireError::PasswordMissing
        | WireError::AuthenticationMethod { .. }
        | WireError::Scram(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets_of(url: &str) -> Vec<String> {
        targets(&parse(&Secret::new(url)).unwrap()).iter().map(Target::to_string).collect()
    }

    #[test]
    fn connect_takes_hosts_in_the_urls_order() {
        assert_eq!(targets_of("postgres://u@a/d"), ["a port 5432"]);
        assert_eq!(targets_of("postgres://u@a:1,b:2/d"), ["a port 1", "b port 2"]);
        assert_eq!(targets_of("host=a,b port=7 user=u"), ["a port 7", "b port 7"]);
        assert_eq!(targets_of("postgres://u@a/d?hostaddr=10.0.0.1"), ["10.0.0.1 port 5432"]);
        assert_eq!(targets_of("postgres:///d?host=/run/pg&port=6000"), ["/run/pg/.s.PGSQL.6000"]);
    }

    #[test]
    fn connect_refuses_a_url_that_asks_for_tls_rather_than_going_on_in_plain_text() {
        for setting in [
            "sslmode=require",
            "sslmode=verify-ca",
            "sslmode=verify-full",
            "sslnegotiation=direct",
            "channel_binding=require",
        ] {
            let error =
                parse(&Secret::new(format!("postgres://u:hush@a/d?{setting}"))).unwrap_err();
            assert!(error.to_string().contains(setting), "{setting}: {error}");
        }
        for setting in ["sslmode=disable", "sslmode=prefer"] {
            assert!(parse(&Secret::new(format!("postgres://u@a/d?{setting}"))).is_ok());
        }
    }

    #[test]
    fn connect_shows_no_password_when_the_url_cannot_be_read() {
        for url in ["postgres://u:hush@a:port/d", "user=u password=hush nonsense=hush", "hush"] {
            let error = parse(&Secret::new(url)).unwrap_err();
            let text = format!("{error} {error:?} {:?}", std::error::Error::source(&error));
            assert!(!text.contains("hush"), "{text}");
        }
    }
}
