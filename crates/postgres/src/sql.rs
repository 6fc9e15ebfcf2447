//! SQL sessions.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::fix::{self, Failure, FixedBy, Line};
use super::pg::{
    self, AsDatabaseUrl, Conninfo, ConninfoError, Link, LinkError, Refusal, Security, SessionAttrs,
    StartUp,
};
use walhook_core::settings::SEARCH_PATH;
use walhook_process::failpoint;

/// The class "invalid authorization specification".
const AUTHORIZATION_CLASS: &str = "28";

/// What tokio-postgres says where the server wants a password that it was not given.
const PASSWORD_MISSING: &str = "password missing";

/// Settings that text output depends on, pinned against what a role, a database or the server says: so
/// that a key has the same text in a look-up as in the stream.
pub const OUTPUT: [(&str, &str); 7] = [
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("xmlbinary", "base64"),
    // Of types and tables whose names are values, and of types that are told by name.
    ("quote_all_identifiers", "off"),
];

/// A statement whose client is gone is given up within a second, also while it waits for a lock: without this the
/// server notices only when it has something to say.
const NOTICE_THE_END: &str = "SET client_connection_check_interval = '1s'";

/// What a server searches where nobody says otherwise: for sessions that carry out the statements of
/// others, such as the demo's customers.
pub const SERVER_SEARCH_PATH: &str = "\"$user\", public";

/// A SQL session together with the task that drives it; both end when this is dropped.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    driver: JoinSet<Result<(), tokio_postgres::Error>>,
    security: Security,
    server_encoding: Option<String>,
}

/// Why there is no session. Names where and as whom; holds no password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL describes no connection.
    #[error("the database URL {0}")]
    Conninfo(#[from] ConninfoError),
    /// No way to a server.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server is there, and there is no session.
    #[error("no session with {at}: {}{fix}", error_text(.source))]
    Session {
        /// Host, database and user.
        at: String,
        /// What to do about it, behind a semicolon, or nothing.
        fix: String,
        /// Whether another password may be found the next time.
        rereads_password: bool,
        /// Whether all of the URL may be another the next time that the process starts.
        is_in_file: bool,
        /// What the server or the protocol says.
        source: tokio_postgres::Error,
    },
    /// The server wants a password and there is none.
    #[error(
        "no session with {at}: the server wants a password, and there is {why}; set it in the URL, in \
         PGPASSWORD or in a password file"
    )]
    PasswordMissing {
        /// Host, database and user.
        at: String,
        /// Where it was looked for.
        why: String,
        /// Whether that was in a file which is said to hold it.
        is_in_file: bool,
    },
    /// None of the hosts is of the kind that `target_session_attrs` wants.
    #[error("{target} is not what target_session_attrs asks for")]
    WrongHost {
        /// Host and port.
        target: String,
    },
}

impl Failure for ConnectError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::Conninfo(error) => error.fixed_by(),
            Self::Link(error) => error.fixed_by(),
            // The new one is in the file before the server knows it, or after.
            Self::Session { source, rereads_password: true, .. } if is_of_password(source) => {
                FixedBy::Waiting
            }
            // A name that was cut while the file was being written.
            Self::Session { source, is_in_file: true, .. }
                if source.code() == Some(&SqlState::INVALID_CATALOG_NAME) =>
            {
                FixedBy::Waiting
            }
            Self::Session { source, .. } => source.fixed_by(),
            Self::PasswordMissing { is_in_file: true, .. } => FixedBy::Waiting,
            Self::PasswordMissing { .. } => FixedBy::Person,
            Self::WrongHost { .. } => FixedBy::Waiting,
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::Session { source, .. } => source.fix(),
            Self::Conninfo(_) => fix::BAD_URL.into(),
            Self::Link(error) => error.fix().into(),
            Self::PasswordMissing { .. } => fix::PASSWORD_MISSING.into(),
            Self::WrongHost { .. } => fix::WRONG_HOST.into(),
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            Self::Session { source, .. } => {
                line.push(&self.to_string());
                source.say(line);
            }
            Self::Conninfo(_)
            | Self::Link(_)
            | Self::PasswordMissing { .. }
            | Self::WrongHost { .. } => line.push_error(self),
        }
    }
}

/// Whether the server does not take the password, or does not know the user that came with it.
fn is_of_password(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::INVALID_PASSWORD)
        || code == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
            && error.as_db_error().and_then(|error| error.routine())
                == Some("InitializeSessionUserId")
}

struct SqlStartUp<'a> {
    info: &'a Conninfo,
    application_name: &'a str,
    search_path: &'a str,
}

impl StartUp for SqlStartUp<'_> {
    type Session = Connection;
    type Error = ConnectError;

    async fn start_up(&self, link: Link) -> Result<Connection, ConnectError> {
        Connection::over(link, self).await
    }

    fn is_final(error: &ConnectError) -> bool {
        match error {
            ConnectError::Session { source, .. } => {
                let authorization = |code: &SqlState| code.code().starts_with(AUTHORIZATION_CLASS);
                source.code().map_or_else(|| !source.fixed_by().is_waiting(), authorization)
            }
            ConnectError::PasswordMissing { .. } => true,
            ConnectError::Conninfo(_) | ConnectError::Link(_) | ConnectError::WrongHost { .. } => {
                false
            }
        }
    }
}

impl Connection {
    /// Connects and pins the session's settings that others rely on, [`SEARCH_PATH`] among them.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn open(
        url: &impl AsDatabaseUrl,
        application_name: &str,
    ) -> Result<Self, ConnectError> {
        Self::open_with_path(url, application_name, SEARCH_PATH).await
    }

    /// The same with another `search_path`, for statements that call what is not ours: a customer's view
    /// may rely on one. Our own statements are safe under any.
    ///
    /// # Errors
    /// [`ConnectError`], also where `search_path` is no list of names.
    pub async fn open_with_path(
        url: &impl AsDatabaseUrl,
        application_name: &str,
        search_path: &str,
    ) -> Result<Self, ConnectError> {
        let info = Conninfo::parse(url)?;
        pg::open(&info, SqlStartUp { info: &info, application_name, search_path }).await
    }

    async fn over(link: Link, start_up: &SqlStartUp<'_>) -> Result<Self, ConnectError> {
        let SqlStartUp { info, application_name, search_path } = *start_up;
        let Link { target, security, socket, end_point, password } = link;
        let at = || format!("{target} (database {}, user {})", info.database(), info.user());
        let no_password = password.as_ref().err().cloned();
        let refused = |source: tokio_postgres::Error| match &no_password {
            Some(why) if is_missing_password(&source) => {
                let is_in_file = info.names_passfile;
                ConnectError::PasswordMissing { at: at(), why: why.clone(), is_in_file }
            }
            _ => {
                let (sqlstate, routine) = source.as_db_error().map_or(("", ""), |error| {
                    (error.code().code(), error.routine().unwrap_or_default())
                });
                let fix = Refusal { sqlstate, routine }.fix(info);
                let rereads_password = info.rereads_password();
                let is_in_file = info.is_in_file();
                ConnectError::Session { at: at(), fix, rereads_password, is_in_file, source }
            }
        };
        let mut config = tokio_postgres::Config::new();
        config
            .user(info.user())
            .dbname(info.database())
            .application_name(application_name)
            .channel_binding(info.channel_binding)
            // No further request for TLS, and what `Linked` gives is taken for the outcome.
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        if let Ok(password) = &password {
            config.password(password);
        }
        if let Some(options) = &info.options {
            config.options(options);
        }
        let linked = pg::Linked { end_point };
        let (client, connection) = config.connect_raw(socket, linked).await.map_err(refused)?;
        let server_encoding = connection.parameter("server_encoding").map(str::to_owned);
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        // The path before anything else, so that no statement of ours runs without it.
        // `on` even where the database's default is `off`: what is acknowledged must be durable.
        // No timeout for idling: most of our sessions do little else, and one watches for the server's
        // shutdown by idling.
        // No compiling: the estimates of our questions to the catalog are high and their answers short;
        // a takeover would wait for the compiler, for 0.2 to 4 s.
        let pin = failpoint::search_path().unwrap_or(SEARCH_PATH);
        let output: String =
            OUTPUT.iter().map(|(name, value)| format!("SET {name} = '{value}'; ")).collect();
        let settings = format!(
            "SET search_path = {pin}; {output}SET synchronous_commit = on; SET jit = off;
             SET idle_session_timeout = 0"
        );
        let (pinned, noticed) =
            tokio::join!(client.batch_execute(&settings), client.batch_execute(NOTICE_THE_END));
        pinned.map_err(refused)?;
        // A server of a system where it cannot be told whether the client is there refuses it.
        if let Err(error) = noticed
            && error.as_db_error().is_none()
        {
            return Err(refused(error));
        }
        if search_path != SEARCH_PATH {
            let set = "SELECT pg_catalog.set_config('search_path', $1, false)";
            let path: [(&(dyn ToSql + Sync), Type); 1] = [(&search_path, Type::TEXT)];
            client.query_typed_one(set, &path).await.map_err(refused)?;
        }
        if info.attrs != SessionAttrs::Any {
            let row = client.query_typed_one(SessionAttrs::QUERY, &[]).await.map_err(refused)?;
            let bits = (row.try_get(0).map_err(refused)?, row.try_get(1).map_err(refused)?);
            if !info.attrs.accepts(bits.0, bits.1) {
                return Err(ConnectError::WrongHost { target });
            }
        }
        Ok(Self { client, driver, security, server_encoding })
    }

    /// Runs `reads` as one read-only transaction, in which each statement has a snapshot of its own: what is
    /// asked in rounds, for ever, is one transaction a round to the server's counters.
    ///
    /// `reads` goes on to no further statement after one that failed.
    ///
    /// # Errors
    /// What `reads` ends with; the session has no open transaction then.
    pub async fn in_one_transaction<T, E: From<tokio_postgres::Error>>(
        &self,
        reads: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.in_transaction("READ COMMITTED", reads).await
    }

    /// The same with one snapshot for all of them.
    ///
    /// # Errors
    /// As [`Connection::in_one_transaction`].
    pub async fn in_one_snapshot<T, E: From<tokio_postgres::Error>>(
        &self,
        reads: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.in_transaction("REPEATABLE READ", reads).await
    }

    async fn in_transaction<T, E: From<tokio_postgres::Error>>(
        &self,
        isolation: &str,
        reads: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let start = format!("START TRANSACTION ISOLATION LEVEL {isolation}, READ ONLY");
        self.batch_execute(&start).await?;
        let read = reads.await;
        // Where a statement failed this rolls back.
        let ended = self.batch_execute("COMMIT").await;
        let read = read?;
        ended?;
        Ok(read)
    }

    /// How well it is protected.
    #[must_use]
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// The encoding of the database, as PostgreSQL names it.
    #[must_use]
    pub fn server_encoding(&self) -> Option<&str> {
        self.server_encoding.as_deref()
    }

    /// Waits until the session ends, and says why (`None`: it was closed in order).
    ///
    /// Cancel-safe. Used as a sentinel: PostgreSQL's shutdown ends ordinary sessions at once.
    pub async fn closed(&mut self) -> Option<tokio_postgres::Error> {
        match self.driver.join_next().await {
            Some(Ok(Err(error))) => Some(error),
            Some(Ok(Ok(())) | Err(_)) | None => None,
        }
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

fn is_missing_password(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.to_string() == PASSWORD_MISSING)
}

/// The server's own words, which tokio-postgres prints only as "db error".
#[must_use]
pub fn error_text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(
        || error.to_string(),
        |db| format!("{} (SQLSTATE {})", db.message(), db.code().code()),
    )
}

/// Whether the server refuses the statement for the values in it: a data exception, a violated
/// constraint, or a program limit (a row or an index entry that is too large, say). Other values may pass.
#[must_use]
pub fn is_data_error(error: &tokio_postgres::Error) -> bool {
    let class = error.code().and_then(|code| code.code().get(..2));
    class.is_some_and(|class| ["22", "23", "54"].contains(&class))
}

/// Classes of errors that say nothing of the rows that a statement read: warnings, connections,
/// features, transactions, rights, missing objects, resources, the server's and its operator's doing.
///
/// Source: PostgreSQL manual, "PostgreSQL Error Codes".
const NOT_THE_ROWS: [&str; 33] = [
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "24", "25", "26", "27",
    "28", "2B", "2D", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "72", "F0", "HV",
    "XX",
];

/// Whether the rows that the statement read are to blame, so that it may succeed for others: as
/// [`is_data_error`], and every exception that a function or a view of the customer's raises.
#[must_use]
pub fn is_row_error(error: &tokio_postgres::Error) -> bool {
    let class = error.code().and_then(|code| code.code().get(..2));
    class.is_some_and(|class| !NOT_THE_ROWS.contains(&class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{session, start};
    use walhook_core::endpoint::Secret;

    #[tokio::test]
    async fn connection_error_names_host_and_port_and_may_pass() {
        // Port 1 of the loopback address: nobody listens there.
        let url = Secret::new("postgres://u:hush@127.0.0.1:1/d");
        let error = Connection::open(&url, "test").await.unwrap_err();
        assert!(error.fixed_by().is_waiting());
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.starts_with("cannot connect to 127.0.0.1:1: "), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[tokio::test]
    async fn statement_that_is_given_up_ends_at_the_server_also_while_it_waits_for_a_lock() {
        let (cluster, client) = start().await;
        client.batch_execute("CREATE TABLE held (id bigint)").await.unwrap();
        client.batch_execute("BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE").await.unwrap();
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        let waits_for_it = async |count: i64| {
            while client.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) != count {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let given_up = session(&cluster).await;
        tokio::select! {
            read = given_up.batch_execute("TABLE held") => panic!("{read:?}"),
            () = waits_for_it(1) => {}
        }
        drop(given_up);
        waits_for_it(0).await;
    }

    #[tokio::test]
    async fn connection_by_a_url_that_says_nothing_does_not_pass() {
        let error = Connection::open(&Secret::new("hush"), "test").await.unwrap_err();
        assert!(!error.fixed_by().is_waiting());
        assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    }
}
