//! [`Conninfo`]: what a URL and the environment say about a connection.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::ChannelBinding;

use super::grammar::{self, Options};
use super::kinds::{
    CHANNEL_BINDINGS, Keepalive, Root, SESSION_ATTRS, SSL_MODES, SessionAttrs, SslMode, Tls,
};
use super::url::AsDatabaseUrl;
use crate::fix::FixedBy;
use walhook_core::endpoint::Secret;

const DEFAULT_PORT: u16 = 5432;

/// For one address, authentication included, where neither URL nor environment has a bound.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A URL that describes no connection: what is wrong with it, and the fix. Holds no part of the URL
/// but names of options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ConninfoError {
    problem: String,
    fixed_by: FixedBy,
}

impl ConninfoError {
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), fixed_by: FixedBy::Person }
    }

    /// Of a file that held a good URL before, and is perhaps just being written.
    pub(super) fn of_file(problem: String) -> Self {
        Self { problem, fixed_by: FixedBy::Waiting }
    }

    /// Whether it may pass by itself.
    #[must_use]
    pub fn fixed_by(&self) -> FixedBy {
        self.fixed_by
    }
}

/// The description of a connection.
///
/// Invariant: at least one host, a user and a database; TLS options that fit each other.
#[derive(Debug, Clone)]
pub struct Conninfo {
    hosts: Vec<Host>,
    user: String,
    database: String,
    pub(super) password: Option<Password>,
    pub(super) passfile: Option<PathBuf>,
    /// Whether the URL or the environment names it: then it is meant to hold the password.
    pub(crate) names_passfile: bool,
    /// The file that user and password were read from, where the URL stands in one.
    url_file: Option<PathBuf>,
    /// What goes into the start-up message as `options`.
    pub(crate) options: Option<String>,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Keepalive,
    pub(super) tls: Tls,
    /// Whether the password exchange must be bound to the server's certificate.
    pub(crate) channel_binding: ChannelBinding,
    /// Which of several hosts will do.
    pub(crate) attrs: SessionAttrs,
}

/// A password. Not text: the server compares bytes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Password(pub(super) Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name in the URL, or the socket's directory: what a certificate and `.pgpass` are compared
    /// with.
    pub name: String,
    /// How to get there.
    pub place: Place,
    /// The port, of which a socket's file has the number too.
    pub port: u16,
}

/// How to get to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// By its name, or the address that stands in its place.
    Name,
    /// By this address (`hostaddr`), whatever its name.
    Address(IpAddr),
    /// By the Unix socket in this directory.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, place, port } = self;
        match place {
            Place::Unix(_) => write!(f, "{name} (port {port})"),
            Place::Name | Place::Address(_) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Place::Name | Place::Address(_) => write!(f, "{name}:{port}"),
        }
    }
}

impl Conninfo {
    /// Reads a URL, and of this process's environment the `PG*` variables where it is silent. Reads no
    /// file but that of the URL itself, which is read anew each time.
    ///
    /// # Errors
    /// [`ConninfoError`]
    pub fn parse(url: &impl AsDatabaseUrl) -> Result<Self, ConninfoError> {
        Self::parse_with(url, &|name| std::env::var(name).ok())
    }

    /// As [`Conninfo::parse`], with another environment.
    ///
    /// # Errors
    /// [`ConninfoError`]
    pub fn parse_with(
        url: &impl AsDatabaseUrl,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConninfoError> {
        url.to_database_url().conninfo(environment)
    }

    pub(super) fn read(
        url: &Secret,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConninfoError> {
        let given = Given(grammar::read(url.expose(), environment)?);
        let user = match given.text("user")? {
            Some(user) => user.to_owned(),
            None => whoami::username().map_err(|_| {
                ConninfoError::new("names no user; write it as postgres://user@host/database")
            })?,
        };
        if given.text("sslnegotiation")?.is_some_and(|value| value != "postgres") {
            return given.refuse("sslnegotiation", "can be postgres only; remove it");
        }
        if given.text("gssencmode")? == Some("require") {
            return given.refuse("gssencmode", "cannot be require, for GSSAPI is not spoken here");
        }
        let home = environment("HOME").map(|home| Path::new(&home).join(".pgpass"));
        let named = given.text("passfile")?.map(PathBuf::from);
        Ok(Self {
            hosts: given.hosts()?,
            database: given.text("dbname")?.unwrap_or(&user).to_owned(),
            user,
            password: given.0.get("password").map(|value| Password(value.bytes.clone())),
            names_passfile: named.is_some(),
            passfile: named.or(home),
            url_file: None,
            options: given.text("options")?.map(str::to_owned),
            connect_timeout: given.seconds("connect_timeout")?.unwrap_or(CONNECT_TIMEOUT),
            keepalive: Keepalive {
                off: given.number("keepalives")? == Some(0),
                idle: given.seconds("keepalives_idle")?,
                interval: given.seconds("keepalives_interval")?,
                count: given.number("keepalives_count")?.filter(|count| *count > 0),
                // Unlike all others, in milliseconds.
                user_timeout: given
                    .number("tcp_user_timeout")?
                    .filter(|millis| *millis > 0)
                    .map(|millis| Duration::from_millis(millis.into())),
            },
            tls: given.tls()?,
            channel_binding: given
                .one_of("channel_binding", &CHANNEL_BINDINGS)?
                .unwrap_or(ChannelBinding::Prefer),
            attrs: given
                .one_of("target_session_attrs", &SESSION_ATTRS)?
                .unwrap_or(SessionAttrs::Any),
        })
    }

    /// Whether it names several hosts, of which any will do, also a standby.
    #[must_use]
    pub fn takes_any_of_several(&self) -> bool {
        self.attrs == SessionAttrs::Any && self.hosts().len() > 1
    }

    /// The hosts, in the order in which they are tried; at least one.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// As whom we connect.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether both lead to the same database.
    pub(super) fn leads_where(&self, other: &Self) -> bool {
        (&self.hosts, &self.database) == (&other.hosts, &other.database)
    }

    /// The same for another user, or with another password.
    pub(super) fn with_credentials_of(self, other: Self, file: &Path) -> Self {
        let Self { user, password, .. } = other;
        Self { user, password, url_file: Some(file.to_owned()), ..self }
    }

    /// Whether the next connection may find another password than this one: it stands in a file.
    #[must_use]
    pub fn rereads_password(&self) -> bool {
        let is_there = || self.passfile.as_deref().is_some_and(Path::exists);
        let is_in_passfile = || self.names_passfile || is_there();
        self.url_file.is_some() || self.password.is_none() && is_in_passfile()
    }

    /// Whether the URL stands in a file.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        self.url_file.is_some()
    }

    /// Where the password is taken from, for people.
    pub(super) fn password_whence(&self) -> String {
        match (&self.url_file, &self.password, &self.passfile) {
            (Some(file), Some(_), _) => {
                format!("the file {} at each connection", file.display())
            }
            (_, Some(_), _) => "the URL or PGPASSWORD".to_owned(),
            (_, None, Some(file)) => format!("{} at each connection", file.display()),
            (_, None, None) => "nowhere".to_owned(),
        }
    }

    /// How a server that speaks TLS is verified: with a root, also in the modes that demand less.
    pub(super) fn verified(&self) -> Option<SslMode> {
        self.tls.root.as_ref().map(|_| self.tls.mode.max(SslMode::VerifyCa))
    }
}

/// Where a connection goes and as whom, for people: never the password.
impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(ToString::to_string).collect();
        write!(f, "{}, database {}, user {}", hosts.join(", "), self.database, self.user)
    }
}

/// The options as they were given.
struct Given(Options);

impl Given {
    fn text(&self, name: &str) -> Result<Option<&str>, ConninfoError> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        match std::str::from_utf8(&value.bytes) {
            Ok(text) if !text.contains('\0') => Ok(Some(text)),
            Ok(_) | Err(_) => self.refuse(name, "is not text in UTF-8"),
        }
    }

    fn refuse<T>(&self, name: &str, problem: &str) -> Result<T, ConninfoError> {
        let from = self.0.get(name).map_or(name, |value| value.from);
        Err(ConninfoError::new(format!("{from} {problem}")))
    }

    fn one_of<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, ConninfoError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(Some(*value));
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.refuse(name, &format!("is none of {}", words.join(", ")))
    }

    /// A whole number. Negative ones mean the default, as none does.
    fn number(&self, name: &str) -> Result<Option<u32>, ConninfoError> {
        match self.text(name)?.map(str::parse::<i32>) {
            Some(Ok(number)) => Ok(u32::try_from(number).ok()),
            Some(Err(_)) => self.refuse(name, "is not a whole number"),
            None => Ok(None),
        }
    }

    /// Zero means the default too: nothing here waits for ever.
    fn seconds(&self, name: &str) -> Result<Option<Duration>, ConninfoError> {
        let seconds = self.number(name)?.filter(|seconds| *seconds > 0);
        Ok(seconds.map(|seconds| Duration::from_secs(seconds.into())))
    }

    fn hosts(&self) -> Result<Vec<Host>, ConninfoError> {
        let list = |text: Option<&str>| -> Vec<String> {
            text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
        };
        let (names, addresses) = (list(self.text("host")?), list(self.text("hostaddr")?));
        let ports = list(self.text("port")?);
        let count = names.len().max(addresses.len());
        if count == 0 || names.iter().any(String::is_empty) {
            return Err(ConninfoError::new(
                "names no host; write it as postgres://user@host:5432/database, or set PGHOST",
            ));
        }
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return self.refuse("hostaddr", "has not as many addresses as there are hosts");
        }
        if ports.len() > 1 && ports.len() != count {
            return self.refuse("port", "has not as many ports as there are hosts");
        }
        let host = |n: usize| {
            let port = match ports.get(n).or(ports.first()).map(String::as_str) {
                None | Some("") => DEFAULT_PORT,
                Some(port) => match port.parse() {
                    Ok(port) if port > 0 => port,
                    Ok(_) | Err(_) => return self.refuse("port", "is not a port number"),
                },
            };
            let name = names.get(n).or(addresses.get(n)).cloned().unwrap_or_default();
            let place = match addresses.get(n).map(|address| address.parse()) {
                Some(Ok(address)) => Place::Address(address),
                Some(Err(_)) => return self.refuse("hostaddr", "is not an IP address"),
                None if name.starts_with('/') => Place::Unix(PathBuf::from(&name)),
                None => Place::Name,
            };
            Ok(Host { name, place, port })
        };
        (0..count).map(host).collect()
    }

    fn tls(&self) -> Result<Tls, ConninfoError> {
        let root = self.text("sslrootcert")?.map(|text| match text {
            "system" => Root::System,
            file => Root::File(PathBuf::from(file)),
        });
        if self.text("sslmode")? == Some("allow") {
            return self.refuse(
                "sslmode",
                "cannot be allow, which sends the password before it asks for TLS; use prefer or \
                 require",
            );
        }
        let default = match root {
            Some(Root::System) => SslMode::VerifyFull,
            Some(Root::File(_)) | None => SslMode::Prefer,
        };
        let mode = self.one_of("sslmode", &SSL_MODES)?.unwrap_or(default);
        if root == Some(Root::System) && !matches!(mode, SslMode::VerifyFull | SslMode::Disable) {
            return self.refuse(
                "sslmode",
                "must be verify-full where sslrootcert is system: any name has a certificate there",
            );
        }
        if mode >= SslMode::VerifyCa && root.is_none() {
            return self.refuse(
                "sslmode",
                "needs sslrootcert: a file with the CA's certificate in PEM, or system",
            );
        }
        let client = match (self.text("sslcert")?, self.text("sslkey")?) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some(_), None) => return self.refuse("sslcert", "needs sslkey, the file of its key"),
            (None, Some(_)) => {
                return self.refuse("sslkey", "needs sslcert, the certificate's file");
            }
        };
        Ok(Tls { mode, root, client })
    }
}

#[cfg(test)]
mod tests;
