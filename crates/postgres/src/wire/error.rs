//! What can go wrong on the replication connection, and what to do about it.

use std::io;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;

use crate::fix::FixedBy;
use crate::pg::{ConninfoError, LinkError, tls_error};

/// An ErrorResponse or NoticeResponse.
///
/// Source: PostgreSQL manual, "Error and Notice Message Fields".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{severity} {sqlstate}: {message}{}{}", suffix("; detail: ", .detail), suffix("; hint: ", .hint))]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING` and so on, never localised.
    pub severity: String,
    /// The five characters of the SQLSTATE.
    pub sqlstate: String,
    /// The primary message, in the server's language, and where it happened, if the server says so.
    pub message: String,
    /// More about it.
    pub detail: Option<Box<str>>,
    /// What to do about it.
    pub hint: Option<Box<str>>,
    /// The server's source file that it comes from, such as `pgoutput.c`.
    pub file: Box<str>,
}

fn suffix(label: &str, text: &Option<Box<str>>) -> String {
    text.as_ref().map(|text| format!("{label}{text}")).unwrap_or_default()
}

/// The server's source file that counts its processes.
const PROCESSES: &str = "proc.c";

/// The class "insufficient resources".
const RESOURCES_CLASS: &str = "53";

impl WireError {
    /// Whether the server says that it lacks disk, memory or connections.
    #[must_use]
    pub fn is_of_resources(&self) -> bool {
        let (Self::Session(error) | Self::Start(error) | Self::Stream(error)) = self else {
            return false;
        };
        error.sqlstate.starts_with(RESOURCES_CLASS)
    }
}

impl ServerError {
    /// Whether all of max_wal_senders are in use. Limits of role and database have the same code, and are counted
    /// elsewhere; those of sessions for SQL do not hold for replication connections.
    pub(crate) fn is_without_sender(&self) -> bool {
        self.sqlstate == TOO_MANY_CONNECTIONS && &*self.file == PROCESSES
    }

    pub(super) fn parse(mut fields: ErrorFields<'_>) -> io::Result<Self> {
        let mut error = Self {
            severity: String::new(),
            sqlstate: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
            file: Box::default(),
        };
        let mut context = None;
        while let Some(field) = fields.next()? {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'V' => error.severity = text(),
                b'C' => error.sqlstate = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text().into()),
                b'H' => error.hint = Some(text().into()),
                b'F' => error.file = text().into(),
                b'W' => context = Some(text()),
                _ => {}
            }
        }
        // Of a change that cannot be sent, it holds the LSN.
        if let Some(context) = context {
            error.message = format!("{} ({context})", error.message);
        }
        Ok(error)
    }
}

/// What went wrong. Holds no password.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The URL describes no connection.
    #[error("the database URL {0}")]
    Conninfo(#[from] ConninfoError),
    /// No way to a server.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A step of the set-up took too long.
    #[error("{what} was not done after {after:?}")]
    Timeout {
        /// Which step.
        what: &'static str,
        /// How long it was given.
        after: Duration,
    },
    /// None of the URL's hosts is of the kind that its `target_session_attrs` wants.
    #[error("{target} is not what target_session_attrs asks for")]
    WrongHost {
        /// Host and port.
        target: String,
    },
    /// The server wants a password and there is none.
    #[error("the server wants a password, and there is {why}")]
    PasswordMissing {
        /// Where it was looked for.
        why: String,
    },
    /// The server does not bind the authentication to its certificate.
    #[error("the server does not authenticate as channel_binding=require asks: {why}")]
    ChannelBinding {
        /// What it does instead.
        why: String,
    },
    /// The server wants to be authenticated to in a way that is not spoken here.
    #[error("the server wants {method} authentication; use scram-sha-256, md5, password or trust")]
    AuthenticationMethod {
        /// Which.
        method: String,
    },
    /// The exchange of SCRAM messages failed: for one, the server does not know our password.
    #[error("SCRAM authentication failed")]
    Scram(#[source] io::Error),
    /// The server refused the connection or a command before the stream.
    #[error("the server refused")]
    Session(#[source] ServerError),
    /// The server refused START_REPLICATION.
    #[error("the server refused to start replication")]
    Start(#[source] ServerError),
    /// The server ended the stream with an error.
    #[error("the server ended the replication stream")]
    Stream(#[source] ServerError),
    /// The server goes on without the publication, skipping its rows (PostgreSQL 18).
    #[error(
        "the server skips the publication and would silently leave out its changes; create the \
         publication before the slot"
    )]
    PublicationSkipped(#[source] ServerError),
    /// The server ended the stream in order, as it does when it shuts down.
    #[error("the server ended the replication stream because it shuts down")]
    Ended,
    /// The connection ended without a word.
    #[error("the server closed the replication connection")]
    Closed,
    /// For the caller: the server said nothing for too long.
    #[error("the server has been silent for too long on the replication connection")]
    Silent,
    /// The socket failed.
    #[error("the replication connection broke")]
    Io(#[source] io::Error),
    /// A message larger than we read.
    #[error(
        "the server sends a message of {bytes} bytes, more than the {limit} that are read at once; \
         a row is too large"
    )]
    Oversize {
        /// Its length.
        bytes: u64,
        /// The longest that is read.
        limit: u64,
    },
    /// A message that does not belong here.
    #[error("the server sent what the protocol does not allow here: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
}

/// What to do about a [`WireError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Another instance streams from the slot: stand by, and try again with jitter.
    SlotInUse,
    /// There is no such slot: halt, never create it silently.
    SlotMissing,
    /// The slot cannot be used: lost (`wal_status` in `pg_replication_slots` says so), without its
    /// WAL, or not a logical slot of this database. Halt.
    SlotUnusable,
    /// The publication does not exist, or did not when the slot was created: halt.
    PublicationMissing,
    /// The server shuts down, starts up or ended our session: reconnect after a moment.
    Shutdown,
    /// The server does not let us in, or is not the one that we trust. When it has never been
    /// otherwise, the configuration is wrong; later it may pass, as a password is changed on both sides
    /// or a certificate renewed.
    Access,
    /// Something passing: reconnect with backoff.
    Retry,
    /// The server cannot send a change that it has come to. It comes to it again each time, unless
    /// something passing was in the way.
    Unsendable,
    /// Will fail again until a person changes something: configuration or privileges.
    Fatal,
}

/// The one place that decides what an error means.
#[must_use]
pub fn classify(error: &WireError) -> Class {
    match error {
        WireError::Conninfo(error) if error.fixed_by().is_waiting() => Class::Retry,
        WireError::Conninfo(_)
        | WireError::PasswordMissing { .. }
        | WireError::AuthenticationMethod { .. }
        | WireError::ChannelBinding { .. }
        | WireError::Scram(_) => Class::Access,
        WireError::Link(error) if error.fixed_by().is_waiting() => Class::Retry,
        WireError::Link(_) => Class::Access,
        WireError::Oversize { .. } | WireError::Protocol { .. } => Class::Fatal,
        // The server's refusal of our certificate comes as an error of the socket.
        WireError::Io(error) if tls_error(error).is_some() => Class::Access,
        WireError::Timeout { .. }
        | WireError::WrongHost { .. }
        | WireError::Closed
        | WireError::Silent
        | WireError::Io(_) => Class::Retry,
        WireError::Ended => Class::Shutdown,
        WireError::PublicationSkipped(_) => Class::PublicationMissing,
        WireError::Session(server) => match server.sqlstate.get(..2).unwrap_or_default() {
            // Authorization, no such database.
            "28" | "3D" => Class::Access,
            _ => by_sqlstate(&server.sqlstate),
        },
        WireError::Start(server) => match server.sqlstate.as_str() {
            OBJECT_IN_USE => Class::SlotInUse,
            UNDEFINED_OBJECT => Class::SlotMissing,
            OBJECT_NOT_IN_PREREQUISITE_STATE | UNDEFINED_FILE => Class::SlotUnusable,
            other => by_sqlstate(other),
        },
        error if error.is_of_unreadable_wal() => Class::SlotUnusable,
        WireError::Stream(server) => match server.sqlstate.as_str() {
            UNDEFINED_OBJECT => Class::PublicationMissing,
            OBJECT_NOT_IN_PREREQUISITE_STATE | UNDEFINED_FILE => Class::SlotUnusable,
            // A value that has no UTF-8 (22), a row above 1 GB as text: "invalid memory alloc request
            // size" (XX) or "cannot enlarge string buffer" (54); and whatever else is internal.
            other if matches!(other.get(..2), Some("22" | "54" | "XX")) => Class::Unsendable,
            other => by_sqlstate(other),
        },
    }
}

const TOO_MANY_CONNECTIONS: &str = "53300";
const OBJECT_IN_USE: &str = "55006";
const UNDEFINED_OBJECT: &str = "42704";
pub(super) const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
/// "requested WAL segment has already been removed".
const UNDEFINED_FILE: &str = "58P01";

/// Where the server raises what it says of WAL that it cannot read, as an internal error or as corrupted data.
/// What it cannot send of a change is raised elsewhere.
const READS_WAL: [&str; 3] = ["walsender.c", "xlogutils.c", "xlogreader.c"];

impl WireError {
    /// Whether WAL that the stream needs is missing on the server, or damaged.
    #[must_use]
    pub fn is_of_unreadable_wal(&self) -> bool {
        let (Self::Start(server) | Self::Stream(server)) = self else { return false };
        match server.sqlstate.as_str() {
            UNDEFINED_FILE => true,
            "XX000" | "XX001" => READS_WAL.contains(&&*server.file),
            _ => false,
        }
    }
}

/// Source: PostgreSQL manual, "PostgreSQL Error Codes".
fn by_sqlstate(sqlstate: &str) -> Class {
    match sqlstate.get(..2) {
        // Operator intervention: shutdown, crash, starting up, terminated.
        Some("57") => Class::Shutdown,
        Some(_) | None => match FixedBy::of_sqlstate(sqlstate) {
            FixedBy::Waiting => Class::Retry,
            FixedBy::Person => Class::Fatal,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str) -> ServerError {
        ServerError {
            severity: "ERROR".to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: "no".to_owned(),
            detail: Some("because".into()),
            hint: None,
            file: Box::default(),
        }
    }

    #[test]
    fn classify_tells_by_sqlstate_and_phase() {
        for (error, class) in [
            (WireError::Start(server("55006")), Class::SlotInUse),
            (WireError::Start(server("42704")), Class::SlotMissing),
            (WireError::Stream(server("42704")), Class::PublicationMissing),
            (WireError::Start(server("55000")), Class::SlotUnusable),
            (WireError::Stream(server("58P01")), Class::SlotUnusable),
            (WireError::Stream(server("57P01")), Class::Shutdown),
            (WireError::Session(server("57P03")), Class::Shutdown),
            (WireError::Session(server("28P01")), Class::Access),
            (WireError::Session(server("53300")), Class::Retry),
            (WireError::Stream(server("XX000")), Class::Unsendable),
            (WireError::Start(server("XX000")), Class::Fatal),
            (WireError::Stream(server("")), Class::Retry),
        ] {
            assert_eq!(classify(&error), class, "{error:?}");
        }
    }

    #[test]
    fn damaged_wal_is_told_from_a_change_that_cannot_be_sent() {
        let raised_in = |file: &str| {
            let error = ServerError { file: file.into(), ..server("XX000") };
            classify(&WireError::Stream(error))
        };
        assert_eq!(raised_in("walsender.c"), Class::SlotUnusable);
        assert_eq!(raised_in("mcxt.c"), Class::Unsendable);
    }

    #[test]
    fn server_error_prints_its_sqlstate_and_detail() {
        assert_eq!(server("55000").to_string(), "ERROR 55000: no; detail: because");
    }
}
