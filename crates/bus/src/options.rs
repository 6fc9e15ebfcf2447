//! Which servers, and as whom.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectError, ConnectOptions, ServerAddr};
use rand::RngExt;
use walhook_core::endpoint::Secret;

use crate::why::why;

/// For a server to take a connection, from the first packet to its answer.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An idle connection is asked for a sign of life so often; the client takes it for broken when a third
/// question would be due. A network that swallows everything is found out in this time thrice.
const PING_EVERY: Duration = Duration::from_secs(1);

/// Messages on their way to the connection, at most. Most are of 64 KiB at most; a frame with one large request is as large
/// as the bus takes.
const OUTGOING: usize = 1_024;

/// Messages of one subscription that nobody has taken yet, at most.
const INCOMING: usize = 1_024;

/// The first wait before a server is tried again.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// The wait after some tries: a bus that is back is found within a second.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// The wait after many.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Tries that wait no longer than [`RETRY_SOON`].
const RETRY_SOON_TRIES: usize = 30;

/// The servers of the bus, all of them plain or all of them with TLS.
///
/// Shape: `nats://host[:port]` or `tls://host[:port]`, port 4222 where there is none; no user and no
/// password, which have keys of their own and do not end up in a log with the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers(Vec<ServerAddr>);

/// A URL of the bus cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There is none.
    #[error("names no server")]
    Empty,
    /// It is none; it is not shown, for it may hold a password.
    #[error("is not a URL such as tls://nats.internal:4222")]
    Malformed,
    /// It has another scheme.
    #[error("begins with {0}://; there are nats:// and tls://")]
    Scheme(String),
    /// It holds a user or a password.
    #[error("holds a user or a password; put them into workers.user and workers.password")]
    Credentials,
    /// It holds what nobody would heed.
    #[error("holds more than a host and a port")]
    More,
    /// Some have TLS and some have not.
    #[error("mixes nats:// and tls://; use one of them for all servers")]
    Mixed,
}

impl Servers {
    /// Reads the URLs.
    ///
    /// # Errors
    /// [`UrlError`]
    pub fn parse<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, UrlError> {
        let servers = urls.into_iter().map(server).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = servers.first() else { return Err(UrlError::Empty) };
        let tls = first.tls_required();
        if servers.iter().any(|server| server.tls_required() != tls) {
            return Err(UrlError::Mixed);
        }
        Ok(Self(servers))
    }

    /// Whether connections are encrypted, to each of them.
    #[must_use]
    pub fn tls(&self) -> bool {
        self.0.iter().all(ServerAddr::tls_required)
    }

    /// Each of them, and its name.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&ServerAddr, String)> {
        self.0.iter().map(|server| (server, name(server)))
    }

    /// The first server beyond this machine, as `host:port`.
    #[must_use]
    pub fn beyond_loopback(&self) -> Option<String> {
        let is_loopback = |server: &ServerAddr| match server.host() {
            "localhost" => true,
            host => host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback()),
        };
        self.0.iter().find(|server| !is_loopback(server)).map(name)
    }
}

/// As `host:port`, separated by commas.
impl std::fmt::Display for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(name).collect::<Vec<_>>().join(", "))
    }
}

fn server(text: &str) -> Result<ServerAddr, UrlError> {
    let (scheme, rest) = text.split_once("://").ok_or(UrlError::Malformed)?;
    if !matches!(scheme, "nats" | "tls") {
        return Err(UrlError::Scheme(scheme.to_owned()));
    }
    if rest.contains('@') {
        return Err(UrlError::Credentials);
    }
    if rest.trim_end_matches('/').contains(['/', '?', '#']) {
        return Err(UrlError::More);
    }
    let server: ServerAddr = text.parse().map_err(|_| UrlError::Malformed)?;
    if server.host().is_empty() { Err(UrlError::Malformed) } else { Ok(server) }
}

fn name(server: &ServerAddr) -> String {
    let (host, port) = (server.host(), server.port());
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// As whom the bus is used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// As nobody.
    #[default]
    None,
    /// By a password.
    Password {
        /// The user.
        user: String,
        /// Its password.
        password: Secret,
    },
    /// By the seed of an nkey (`SU...`): it signs what the server asks, and does not travel.
    Nkey(Secret),
    /// By the text of a credentials file: a JWT and the seed that goes with it.
    Creds(Secret),
}

impl Credentials {
    /// Whether they can be used at all: an nkey's seed has a checksum, a credentials file a form.
    ///
    /// # Errors
    /// [`BusError::Credentials`]
    pub fn verify(&self) -> Result<(), BusError> {
        self.add_to(ConnectOptions::new()).map(drop)
    }

    fn add_to(&self, options: ConnectOptions) -> Result<ConnectOptions, BusError> {
        match self {
            Self::None => Ok(options),
            Self::Password { user, password } => {
                Ok(options.user_and_password(user.clone(), password.expose().to_owned()))
            }
            Self::Nkey(seed) => {
                let seed = seed.expose().trim();
                if !seed.starts_with("SU") || nkeys::KeyPair::from_seed(seed).is_err() {
                    let what = "the seed of a user's nkey: SU and 56 more letters and digits, of which the last are a \
                                checksum of the others";
                    return Err(BusError::Credentials { key: "nkey", what });
                }
                Ok(options.nkey(seed.to_owned()))
            }
            Self::Creds(text) => {
                let what = "a credentials file with a JWT and a seed";
                let refused = |_| BusError::Credentials { key: "creds", what };
                // The client wants its last line to end, which whoever reads a secret from a file takes away.
                options.credentials(&format!("{}\n", text.expose())).map_err(refused)
            }
        }
    }
}

/// How the bus is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Its servers.
    pub servers: Servers,
    /// As whom.
    pub credentials: Credentials,
    /// PEM file of the authorities that sign the servers' certificates; without it the system's.
    pub tls_ca: Option<PathBuf>,
    /// What the server's operator sees of us, such as `walhook worker`.
    pub name: String,
}

/// The bus cannot be used as it is configured, or is not reached.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The authorities cannot be read.
    #[error("cannot read workers.tls_ca {}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no certificate in their file.
    #[error("workers.tls_ca {} holds no certificate in PEM", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The credentials are none. Why is not said, for that might show them.
    #[error("workers.{key} is not {what}")]
    Credentials {
        /// The configuration's key.
        key: &'static str,
        /// What it should be.
        what: &'static str,
    },
    /// No server takes us.
    #[error("cannot reach the bus at {servers}: {why}")]
    Unreached {
        /// As `host:port`.
        servers: String,
        /// In words.
        why: String,
    },
    /// The subject cannot be subscribed to, or the bus is closed.
    #[error("cannot subscribe to {subject}")]
    Subscribe {
        /// It.
        subject: String,
    },
}

impl Options {
    /// The client's own options.
    ///
    /// # Errors
    /// [`BusError`] where the files and secrets are not what they should be.
    pub(crate) fn of_client(&self) -> Result<ConnectOptions, BusError> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_EVERY)
            .client_capacity(OUTGOING)
            .subscription_capacity(INCOMING)
            .reconnect_delay_callback(|tries| jittered(delay(tries)))
            .ignore_discovered_servers()
            .require_tls(self.servers.tls());
        if let Some(path) = &self.tls_ca {
            holds_authorities(path)?;
            options = options.add_root_certificates(path.clone());
        }
        self.credentials.add_to(options)
    }

    /// The servers, as the client takes them.
    pub(crate) fn addresses(&self) -> Vec<ServerAddr> {
        self.servers.0.clone()
    }

    /// Why no server takes us, in words; `None`: one does.
    pub(crate) async fn why_unreached(&self) -> Option<String> {
        match self.of_client() {
            Ok(client) => {
                let error = client.connect(self.addresses()).await.err()?;
                Some(why(&error, &self.servers).await)
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// That no server took us, in words.
    pub(crate) async fn unreached(&self, error: &ConnectError) -> BusError {
        BusError::Unreached {
            servers: self.servers.to_string(),
            why: why(error, &self.servers).await,
        }
    }
}

fn holds_authorities(path: &Path) -> Result<(), BusError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| BusError::Authorities { path: path.to_owned(), source })?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(())
    } else {
        Err(BusError::NoAuthority { path: path.to_owned() })
    }
}

/// How long a try waits that comes after so many.
fn delay(tries: usize) -> Duration {
    if tries > RETRY_SOON_TRIES {
        return RETRY_MAX;
    }
    let doublings = u32::try_from(tries.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(RETRY_SOON)
}

/// Somewhere in the second half of it, so that a hundred workers do not come back at one moment.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_urls_without_secrets_and_all_alike() {
        let parse = |urls: &[&str]| Servers::parse(urls.iter().copied());
        let servers = parse(&["tls://a.internal:5222", "tls://[::1]"]).unwrap();
        assert!(servers.tls());
        assert_eq!(servers.to_string(), "a.internal:5222, [::1]:4222");
        assert_eq!(servers.beyond_loopback().as_deref(), Some("a.internal:5222"));
        let here = parse(&["nats://localhost", "nats://127.0.0.2:1", "nats://[::1]:1/"]).unwrap();
        assert!(!here.tls());
        assert_eq!(here.beyond_loopback(), None);

        assert_eq!(parse(&[]), Err(UrlError::Empty));
        assert_eq!(parse(&["a.internal"]), Err(UrlError::Malformed));
        assert_eq!(parse(&["nats://"]), Err(UrlError::Malformed));
        assert_eq!(parse(&["nats://a:b:c"]), Err(UrlError::Malformed));
        assert_eq!(parse(&["ws://a"]), Err(UrlError::Scheme("ws".to_owned())));
        assert_eq!(parse(&["nats://u:hush@a"]), Err(UrlError::Credentials));
        assert_eq!(parse(&["nats://a/b"]), Err(UrlError::More));
        assert_eq!(parse(&["nats://a", "tls://a"]), Err(UrlError::Mixed));
    }

    #[test]
    fn tries_wait_longer_and_longer_and_never_less_than_half() {
        let waits: Vec<u128> = [0, 1, 2, 3, 4, 5, 6, RETRY_SOON_TRIES, RETRY_SOON_TRIES + 1]
            .map(|tries| delay(tries).as_millis())
            .to_vec();
        assert_eq!(waits, [100, 100, 200, 400, 800, 1_000, 1_000, 1_000, 5_000]);
        assert!(delay(usize::MAX) == RETRY_MAX);
        for _ in 0..100 {
            let wait = jittered(RETRY_SOON);
            assert!(wait >= RETRY_SOON / 2 && wait <= RETRY_SOON, "{wait:?}");
        }
    }

    /// The seed is that of NATS' own documentation.
    #[test]
    fn credentials_of_a_file_need_no_line_feed_at_its_end() {
        let file = "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJKV1QifQ.e30.c2ln\n------END NATS USER JWT------\n\n\
                    -----BEGIN USER NKEY SEED-----\n\
                    SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n------END USER NKEY SEED------";
        for end in ["", "\n", "\n\n*****\n"] {
            let credentials = Credentials::Creds(Secret::new(format!("{file}{end}")));
            assert!(credentials.verify().is_ok(), "{end:?}");
        }
    }

    #[test]
    fn credentials_that_are_none_are_refused_without_being_shown() {
        let servers = Servers::parse(["nats://localhost"]).unwrap();
        let options = |credentials| Options {
            servers: servers.clone(),
            credentials,
            tls_ca: None,
            name: "test".to_owned(),
        };
        for credentials in [
            Credentials::Nkey(Secret::new("SUhush")),
            // One letter is another: its checksum is not that of the rest.
            Credentials::Nkey(Secret::new(
                "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VZ",
            )),
            Credentials::Creds(Secret::new("-----BEGIN hush-----")),
        ] {
            let options = options(credentials);
            assert!(!format!("{options:?}").contains("hush"));
            let error = options.of_client().unwrap_err().to_string();
            assert!(error.starts_with("workers.") && !error.contains("hush"), "{error}");
            assert!(!error.contains("SUACS"), "{error}");
            assert_eq!(options.credentials.verify().unwrap_err().to_string(), error);
        }
        let mut missing = options(Credentials::None);
        missing.tls_ca = Some("/nowhere/ca.pem".into());
        let error = missing.of_client().unwrap_err().to_string();
        assert_eq!(error, "cannot read workers.tls_ca /nowhere/ca.pem");
    }
}
