//! Who fixes what a database refuses, and how: the one place that tells what waiting fixes from what a
//! person has to.
//!
//! `run` refuses at its start what waiting does not fix, and waits for all else. Once it has started,
//! nothing of this kind ends it: what a person has to fix is waited for too, and said.

use std::borrow::Cow;
use std::error::Error;

use tokio_postgres::error::SqlState;

use super::pg::tls_error;
use super::row_security;
use super::sql::error_text;
use super::wire::{self, Class, WireError};
use walhook_process::faults::Fault;

/// What to do where nothing is known but that there was no answer.
pub const UNREACHABLE: &str =
    "see to it that the server runs and can be reached at the configured URL";

/// What to do where the URL describes no connection.
pub(crate) const BAD_URL: &str =
    "correct the database URL, or the file that it is read from, as the error says";

/// What to do where the server wants a password and there is none.
pub(crate) const PASSWORD_MISSING: &str =
    "set the password in the URL, in PGPASSWORD or in a password file";

/// What to do where no host is of the kind that is wanted.
pub(crate) const WRONG_HOST: &str =
    "let the URL name a host of the kind that its target_session_attrs asks for, or promote one";

/// What to do where a standby answers.
pub(crate) const STANDBY: &str =
    "let the URL lead to the primary (target_session_attrs=read-write)";

/// What to do where a primary answers that was failed over from.
pub(crate) const OLD_PRIMARY: &str =
    "stop it or let the URL lead to the other; where that is gone for good, start walhook again";

/// What to do where the server takes no further replication connection.
pub(crate) const NO_SENDER: &str = "raise max_wal_senders and start the server again, or end a replication connection \
     that is not needed; `walhook check` says how many are left";

/// What to do where the server tells what no server of PostgreSQL would.
pub const NOT_POSTGRESQL: &str = "let the URL lead to PostgreSQL itself, past all that may change its answers; if it \
     does, report this as a defect";

/// What fails at a database, or on the way to it.
pub trait Failure: Error {
    /// Who fixes it.
    fn fixed_by(&self) -> FixedBy;

    /// What to do about it: a phrase in the imperative, which somebody can follow who is woken at night and sees
    /// nothing else.
    fn fix(&self) -> Cow<'static, str>;

    /// Puts the error and its causes behind what `line` holds.
    fn say(&self, line: &mut Line);

    /// The error with its causes, on one line.
    fn line(&self) -> String {
        let mut line = Line::default();
        self.say(&mut line);
        line.0.replace('\n', "; ")
    }
}

/// An error and its causes, from the outermost inwards.
#[derive(Debug, Default)]
pub struct Line(String);

impl Line {
    /// Puts one text behind the others, unless one of them holds it.
    pub fn push(&mut self, text: &str) {
        if self.0.is_empty() {
            text.clone_into(&mut self.0);
        } else if !self.0.contains(text) {
            self.0.push_str(": ");
            self.0.push_str(text);
        }
    }

    /// An error as it prints itself, and its causes.
    pub fn push_error(&mut self, error: &dyn Error) {
        self.push(&error.to_string());
        self.push_causes(error);
    }

    fn push_causes(&mut self, error: &dyn Error) {
        let mut cause = error.source();
        while let Some(error) = cause {
            self.push(&error.to_string());
            cause = error.source();
        }
    }
}

/// The error with its causes, on one line.
#[must_use]
pub fn line_of(error: &dyn Error) -> String {
    let mut line = Line::default();
    line.push_error(error);
    line.0.replace('\n', "; ")
}

/// Who fixes what a server, or the way to it, refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FixedBy {
    /// It may pass by itself: the server is away, full, busy or starting, a lock is held, a name does not
    /// resolve. The same may well succeed later, on a new connection if need be.
    Waiting,
    /// Somebody has to change something: configuration, a right, an object, a value.
    Person,
}

/// Classes of SQLSTATE that say the same each time, until somebody changes something: features, data,
/// constraints, authorization, routines, names of databases, cursors and schemas, syntax and rights,
/// limits, configuration files, what functions raise, and internal errors.
///
/// Source: PostgreSQL manual, "PostgreSQL Error Codes".
const PERSONS: [&str; 21] = [
    "0A", "0L", "0P", "21", "22", "23", "26", "28", "2F", "38", "39", "3B", "3D", "3F", "42", "44",
    "54", "F0", "HV", "P0", "XX",
];

/// Of those, what a foreign server says that is away for the moment.
const FOREIGN_SERVER_AWAY: [&str; 2] = ["HV00N", "HV00K"];

impl FixedBy {
    /// By the five characters of a SQLSTATE. What nobody thought of is waited for, and stays visible,
    /// rather than ending what would heal.
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Self {
        if FOREIGN_SERVER_AWAY.contains(&code) {
            return Self::Waiting;
        }
        match code.get(..2) {
            Some(class) if PERSONS.contains(&class) => Self::Person,
            Some(_) | None => Self::Waiting,
        }
    }

    /// Whether waiting may fix it.
    #[must_use]
    pub fn is_waiting(self) -> bool {
        self == Self::Waiting
    }
}

impl Failure for tokio_postgres::Error {
    /// Of a statement, or of a session's opening.
    fn fixed_by(&self) -> FixedBy {
        let waiting = match self.code().map(SqlState::code) {
            Some(code) => return FixedBy::of_sqlstate(code),
            // Not an answer of the server: the connection failed, unless it was our own doing.
            None => self.is_closed() || is_of_socket(self),
        };
        if waiting { FixedBy::Waiting } else { FixedBy::Person }
    }

    fn fix(&self) -> Cow<'static, str> {
        let Some(error) = self.as_db_error() else { return unreachable(self).into() };
        if row_security::is_refused(self) {
            return row_security::FIX_OF_REFUSED.into();
        }
        fix_of_server(error.code().code(), error.file().unwrap_or_default()).into()
    }

    fn say(&self, line: &mut Line) {
        line.push(&error_text(self));
        line.push_causes(self);
    }
}

impl Failure for WireError {
    /// [`wire::classify`] knows more of it.
    fn fixed_by(&self) -> FixedBy {
        match wire::classify(self) {
            Class::SlotInUse | Class::Shutdown | Class::Retry => FixedBy::Waiting,
            Class::SlotMissing
            | Class::SlotUnusable
            | Class::PublicationMissing
            | Class::Access
            | Class::Unsendable
            | Class::Fatal => FixedBy::Person,
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        let fix = match self {
            Self::Session(error) if error.is_without_sender() => NO_SENDER,
            error if error.is_of_unreadable_wal() => WAL_UNREADABLE,
            Self::Session(error)
            | Self::Start(error)
            | Self::Stream(error)
            | Self::PublicationSkipped(error) => fix_of_server(&error.sqlstate, &error.file),
            Self::Conninfo(_) => BAD_URL,
            Self::Link(error) => error.fix(),
            Self::WrongHost { .. } => WRONG_HOST,
            Self::PasswordMissing { .. } => PASSWORD_MISSING,
            Self::Scram(_) => "correct the password in the URL, or that of our role on the server",
            Self::ChannelBinding { .. } => {
                "let the server ask for scram-sha-256 over TLS, or leave channel_binding=require out of the URL"
            }
            Self::AuthenticationMethod { .. } => {
                "let the server's pg_hba.conf ask our role for scram-sha-256, md5 or a password"
            }
            Self::Protocol { .. } => NOT_POSTGRESQL,
            Self::Oversize { .. } => {
                "raise memory.limit, of which one message may take a quarter, and start walhook again"
            }
            Self::Io(error) => unreachable(error),
            Self::Timeout { .. } | Self::Ended | Self::Closed | Self::Silent => UNREACHABLE,
        };
        fix.into()
    }

    fn say(&self, line: &mut Line) {
        line.push_error(self);
    }
}

/// The library's error has its cause as an error of any kind: here alone it must be asked which.
fn is_of_socket(error: &tokio_postgres::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            // The other side's refusal of our certificate comes as an error of the socket.
            return tls_error(error).is_none();
        }
        source = cause.source();
    }
    false
}

/// Where the connection failed: what is used up on our side is no fault of the server's.
fn unreachable(error: &(dyn Error + 'static)) -> &'static str {
    Fault::of(error).map_or(UNREACHABLE, Fault::fix)
}

/// By the code of the server's error, and by the source file where it was raised.
fn fix_of_server(code: &str, file: &str) -> &'static str {
    match (code, file) {
        // `temp_file_limit` shares the code with the limits on slots.
        ("53400", "fd.c") => {
            "raise temp_file_limit for our role (ALTER ROLE … SET temp_file_limit, as a superuser), or its work_mem, \
             so that less is written to temporary files"
        }
        _ => fix_of_sqlstate(code),
    }
}

/// What to do where a stream needs WAL that is not there or is damaged, although the slot is not lost.
const WAL_UNREADABLE: &str = "put the WAL that the error names back into pg_wal, from the archive or a copy; if it is \
     gone for good, stop walhook and run `walhook recover --accept-gap`";

/// By the code of the server's error.
///
/// Source: PostgreSQL manual, "PostgreSQL Error Codes".
fn fix_of_sqlstate(code: &str) -> &'static str {
    match code {
        "42501" => {
            "grant our role the right that it lacks; `walhook setup --print-sql` shows the grants"
        }
        "42P01" | "3F000" | "42703" | "42883" | "42704" => {
            "put back the table, column or function that the error names, or correct the configuration and \
             start again; `walhook check` shows what is missing"
        }
        "42804" | "42P18" | "42846" => {
            "give the column its type back, or correct the configuration and start again"
        }
        "55P03" => {
            "let the transaction end that holds the lock; pg_locks shows which one it is, and \
             pg_stat_activity what it does"
        }
        "57014" => {
            "find out what makes the statement slow: an index on the endpoint table's account column that \
             is missing, a lock, a busy server"
        }
        "53300" => {
            "end other sessions, or raise max_connections (or CONNECTION LIMIT of our role or database); \
             `walhook check` says how many we need"
        }
        "53400" => {
            "raise the limit that the error is about, such as max_replication_slots, or drop a slot that is not used"
        }
        "53100" => "make room on the server's disk",
        "53200" => "give the server memory",
        "25006" => {
            "let the URL name the primary, for this server is a standby or read-only; or set \
             default_transaction_read_only = off"
        }
        "25P04" => {
            "set transaction_timeout of our role to 0, or to more than a transaction of ours takes"
        }
        "28P01" | "28000" => {
            "correct the password or the role in the URL, or the line in pg_hba.conf"
        }
        "3D000" => "create the database, or correct its name in the URL",
        "55000" => {
            "bring what the error names into a state in which it can be used; `walhook check` tests slot, \
             publication and tables"
        }
        "55006" => {
            "find out who uses the slot, by active_pid in pg_replication_slots, and end it where it is no \
             walhook"
        }
        "57P03" => "wait until the server has started; see its log if it does not",
        _ if code.starts_with("57P") => "start the server again",
        _ if code.starts_with("08") => "see to it that the server can be reached",
        _ => {
            "correct what the error complains of: the server's log has the whole statement, and `walhook \
             check` tests all that walhook needs"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::ServerError;
    use super::*;
    use walhook_testkit::wording::is_imperative;

    #[test]
    fn sqlstate_is_fixed_by_a_person_only_where_waiting_changes_nothing() {
        for (code, by) in [
            ("08006", FixedBy::Waiting), // connection failure
            ("53300", FixedBy::Waiting), // too many connections
            ("53100", FixedBy::Waiting), // disk full
            ("53400", FixedBy::Waiting), // all replication slots are in use
            ("55P03", FixedBy::Waiting), // lock not available
            ("55006", FixedBy::Waiting), // object in use
            ("57P03", FixedBy::Waiting), // starting up
            ("57014", FixedBy::Waiting), // statement timeout
            ("40P01", FixedBy::Waiting), // deadlock
            ("25006", FixedBy::Waiting), // read-only
            ("25P03", FixedBy::Waiting), // idle in transaction for too long
            ("25P04", FixedBy::Waiting), // in a transaction for too long
            ("58030", FixedBy::Waiting), // I/O error
            ("HV00N", FixedBy::Waiting), // a foreign server is away
            ("28P01", FixedBy::Person),  // wrong password
            ("28000", FixedBy::Person),  // no line of pg_hba.conf, or no such role
            ("3D000", FixedBy::Person),  // no such database
            ("3F000", FixedBy::Person),  // no such schema
            ("42501", FixedBy::Person),  // no right
            ("42P01", FixedBy::Person),  // no such table
            ("42703", FixedBy::Person),  // no such column
            ("42704", FixedBy::Person),  // no such object
            ("42883", FixedBy::Person),  // no such function
            ("22P02", FixedBy::Person),  // a value
            ("XX001", FixedBy::Person),  // corrupted
            ("", FixedBy::Waiting),
        ] {
            assert_eq!(FixedBy::of_sqlstate(code), by, "{code}");
        }
    }

    #[test]
    fn fix_of_what_is_used_up_here_is_a_local_one() {
        // EMFILE and ENFILE.
        for (errno, fix) in [(24, "LimitNOFILE"), (23, "fs.file-max")] {
            let why = || std::io::Error::from_raw_os_error(errno);
            let link =
                super::super::pg::LinkError::Unreachable { target: "h:5432".into(), why: why() };
            let said = link.to_string();
            assert!(said.contains(fix) && !said.contains("address right"), "{said}");
            for error in [WireError::Link(link), WireError::Io(why())] {
                assert!(error.fix().contains(fix), "{}", error.fix());
            }
        }
        let gone = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(WireError::Io(gone).fix(), UNREACHABLE);
    }

    #[test]
    fn limits_that_share_a_sqlstate_are_told_apart() {
        assert!(fix_of_server("53400", "fd.c").contains("temp_file_limit"));
        assert!(fix_of_server("53400", "slot.c").contains("max_replication_slots"));
    }

    #[test]
    fn missing_wal_is_told_with_the_way_back() {
        let error = ServerError {
            severity: "ERROR".to_owned(),
            sqlstate: "58P01".to_owned(),
            message: "requested WAL segment 0 has already been removed".to_owned(),
            detail: None,
            hint: None,
            file: Box::default(),
        };
        let fix = WireError::Stream(error).fix();
        assert!(fix.contains("pg_wal") && fix.contains("recover --accept-gap"), "{fix}");
    }

    #[test]
    fn fix_of_each_sqlstate_is_something_to_do() {
        for code in [
            "42501", "42P01", "42804", "55P03", "57014", "53300", "53400", "53100", "53200",
            "25006", "28P01", "3D000", "55000", "55006", "57P03", "57P01", "08006", "XX000", "",
        ] {
            assert!(is_imperative(fix_of_sqlstate(code)), "{code}: {}", fix_of_sqlstate(code));
        }
        for fix in [
            UNREACHABLE,
            NO_SENDER,
            NOT_POSTGRESQL,
            BAD_URL,
            PASSWORD_MISSING,
            WRONG_HOST,
            STANDBY,
            OLD_PRIMARY,
            WAL_UNREADABLE,
            row_security::FIX_OF_REFUSED,
            fix_of_server("53400", "fd.c"),
        ] {
            assert!(is_imperative(fix), "{fix}");
        }
        for fault in Fault::ALL {
            assert!(is_imperative(fault.fix()), "{}", fault.fix());
        }
        assert!(!is_imperative("what it names") && !is_imperative("see"));
    }
}
