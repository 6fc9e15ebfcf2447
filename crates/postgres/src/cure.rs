//! What waiting cures, and what a person has to: the one place that tells them apart.
//!
//! `run` refuses at its start what waiting does not cure, and waits for all else. Once it has started,
//! nothing of this kind ends it: what a person has to cure is waited for too, and said.

use std::error::Error;

use tokio_postgres::error::SqlState;

use super::lookup::LookupError;
use super::pg::{LinkError, tls_error};
use super::sql::ConnectError;
use super::wire::{self, Class, WireError};

/// Who cures what a server, or the way to it, refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cure {
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

impl Cure {
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

    /// Of a statement, or of a session's opening.
    #[must_use]
    pub fn of_sql(error: &tokio_postgres::Error) -> Self {
        let waiting = match error.code().map(SqlState::code) {
            Some(code) => return Self::of_sqlstate(code),
            // Not an answer of the server: the connection failed, unless it was our own doing.
            None => error.is_closed() || is_of_socket(error),
        };
        if waiting { Self::Waiting } else { Self::Person }
    }

    /// Of one error alone, without its causes; `None` where it is not known here.
    #[must_use]
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return Some(error.cure());
        }
        if let Some(error) = error.downcast_ref::<LinkError>() {
            return Some(error.cure());
        }
        if let Some(error) = error.downcast_ref::<WireError>() {
            return Some(Self::of_wire(error));
        }
        if let Some(error) = error.downcast_ref::<LookupError>() {
            return Some(error.cure());
        }
        error.downcast_ref::<tokio_postgres::Error>().map(Self::of_sql)
    }

    /// Of the replication connection; [`wire::classify`] knows more of it.
    #[must_use]
    pub fn of_wire(error: &WireError) -> Self {
        match wire::classify(error) {
            Class::SlotInUse | Class::Shutdown | Class::Retry => Self::Waiting,
            Class::SlotMissing
            | Class::SlotUnusable
            | Class::PublicationMissing
            | Class::Access
            | Class::Unsendable
            | Class::Fatal => Self::Person,
        }
    }

    /// Whether waiting may cure it.
    #[must_use]
    pub fn is_waiting(self) -> bool {
        self == Self::Waiting
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cure_of_a_sqlstate_is_a_person_only_where_waiting_changes_nothing() {
        for (code, cure) in [
            ("08006", Cure::Waiting), // connection failure
            ("53300", Cure::Waiting), // too many connections
            ("53100", Cure::Waiting), // disk full
            ("53400", Cure::Waiting), // all replication slots are in use
            ("55P03", Cure::Waiting), // lock not available
            ("55006", Cure::Waiting), // object in use
            ("57P03", Cure::Waiting), // starting up
            ("57014", Cure::Waiting), // statement timeout
            ("40P01", Cure::Waiting), // deadlock
            ("25006", Cure::Waiting), // read-only
            ("25P03", Cure::Waiting), // idle in transaction for too long
            ("58030", Cure::Waiting), // I/O error
            ("HV00N", Cure::Waiting), // a foreign server is away
            ("28P01", Cure::Person),  // wrong password
            ("28000", Cure::Person),  // no line of pg_hba.conf, or no such role
            ("3D000", Cure::Person),  // no such database
            ("3F000", Cure::Person),  // no such schema
            ("42501", Cure::Person),  // no right
            ("42P01", Cure::Person),  // no such table
            ("42703", Cure::Person),  // no such column
            ("42704", Cure::Person),  // no such object
            ("42883", Cure::Person),  // no such function
            ("22P02", Cure::Person),  // a value
            ("XX001", Cure::Person),  // corrupted
            ("", Cure::Waiting),
        ] {
            assert_eq!(Cure::of_sqlstate(code), cure, "{code}");
        }
    }
}
