//! Why there is no leader yet: what passes by itself, what a person has to fix, and what ends the process.

use std::borrow::Cow;

use crate::server::prepared::PreparedError;
use crate::server::rulebook::RulesError;
use crate::server::stop::{Fatal, Stop};
use walhook_core::halt::Halt;
use walhook_postgres::error::SourceError;
use walhook_postgres::fix::{Failure, FixedBy, Line, line_of};
use walhook_postgres::lookup::LookupError;
use walhook_postgres::preflight::Fault;
use walhook_postgres::refused_writes::RefusedWrites;
use walhook_postgres::row_security;
use walhook_postgres::sql::ConnectError;
use walhook_postgres::wire::{self, WireError};
use walhook_state::{Class, StateError};

/// Why the source could not be opened this time.
#[derive(Debug)]
pub(in crate::server) enum OpenError {
    /// Another process streams from the slot.
    SlotInUse,
    /// May pass by itself.
    Passing(Box<StartError>),
    /// Waiting does not fix it: `run` refuses to start with it. Once started, it is waited for, unless
    /// going on would lose changes.
    Refused {
        /// What, and the fix.
        problem: Box<StartError>,
        /// What it means after the start, where it is not waited for.
        later: Option<Halt>,
    },
    /// Does not.
    Stop(Stop),
}

/// What is not in place, or does not answer, so that nobody can lead.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state database.
    #[error(transparent)]
    State(StateError),
    /// The same, where `walhook setup` helps.
    #[error("{}; {fix}", refused.line())]
    StateLacks {
        /// What it says.
        refused: StateError,
        /// How to set it up.
        fix: &'static str,
    },
    /// The source's catalog.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No session with the source.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No stream from the source.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The endpoint table.
    #[error(transparent)]
    LookUp(#[from] LookupError),
    /// The server is of an old version.
    #[error("the server is PostgreSQL {version}; walhook needs 14 or later")]
    OldServer {
        /// The major version.
        version: i32,
    },
    /// Settings, rights and columns that are not what they must be: a line for each.
    #[error("{}", lines(faults.iter().map(ToString::to_string)))]
    NotInPlace {
        /// What is wrong.
        faults: Vec<Fault>,
    },
    /// The rules do not fit the tables.
    #[error(transparent)]
    Rules(RulesError),
    /// To be published makes somebody's own writes fail: a line for each table.
    #[error("{}", lines(tables.iter().map(|table| format!("{}; {}", writes(publication, table), table.fix))))]
    RefusedWrites {
        /// The publication.
        publication: String,
        /// The tables.
        tables: Vec<RefusedWrites>,
    },
    /// What would be a halt after the start.
    #[error(transparent)]
    Halt(Halt),
}

fn lines(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join("\n")
}

fn writes(publication: &str, RefusedWrites { table, problem, .. }: &RefusedWrites) -> String {
    format!("publication {publication:?} makes UPDATE and DELETE of {table} fail: it {problem}")
}

fn all_of(fixes: impl Iterator<Item = String>) -> Cow<'static, str> {
    fixes.collect::<Vec<_>>().join("; ").into()
}

impl Failure for StartError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::State(error) | Self::StateLacks { refused: error, .. } => error.fixed_by(),
            Self::Source(error) => error.fixed_by(),
            Self::Connect(error) => error.fixed_by(),
            Self::Wire(error) => error.fixed_by(),
            Self::LookUp(error) => error.fixed_by(),
            Self::Rules(RulesError::Source(error)) => error.fixed_by(),
            Self::OldServer { .. }
            | Self::NotInPlace { .. }
            | Self::Rules(RulesError::Broken(_))
            | Self::RefusedWrites { .. }
            | Self::Halt(_) => FixedBy::Person,
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::State(error) => error.fix(),
            Self::Source(error) | Self::Rules(RulesError::Source(error)) => error.fix(),
            Self::Connect(error) => error.fix(),
            Self::Wire(error) => error.fix(),
            Self::LookUp(error) => error.fix(),
            Self::StateLacks { fix, .. } => (*fix).into(),
            Self::OldServer { .. } => "upgrade the server to PostgreSQL 14 or later".into(),
            Self::NotInPlace { faults } => {
                all_of(faults.iter().map(|Fault { what, fix, .. }| format!("{what}: {fix}")))
            }
            Self::RefusedWrites { tables, .. } => {
                all_of(tables.iter().map(|table| table.fix.clone()))
            }
            Self::Rules(RulesError::Broken(_)) | Self::Halt(_) => {
                "run `walhook check`, do what its failures say, and start walhook again".into()
            }
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            Self::State(error) | Self::StateLacks { refused: error, .. } => error.say(line),
            Self::RefusedWrites { publication, tables } => {
                line.push(&lines(tables.iter().map(|table| writes(publication, table))));
            }
            Self::Source(error) | Self::Rules(RulesError::Source(error)) => error.say(line),
            Self::Connect(error) => error.say(line),
            Self::Wire(error) => error.say(line),
            Self::LookUp(error) => error.say(line),
            Self::OldServer { .. }
            | Self::NotInPlace { .. }
            | Self::Rules(RulesError::Broken(_))
            | Self::Halt(_) => line.push_error(self),
        }
    }
}

impl OpenError {
    /// By who fixes it.
    pub(super) fn of(problem: impl Into<StartError>) -> Self {
        let problem = problem.into();
        match problem.fixed_by() {
            FixedBy::Waiting => Self::passing(problem),
            FixedBy::Person => Self::refused(problem),
        }
    }

    /// What waiting may fix.
    pub(super) fn passing(problem: impl Into<StartError>) -> Self {
        Self::Passing(Box::new(problem.into()))
    }

    /// What a person has to fix.
    pub(super) fn refused(problem: impl Into<StartError>) -> Self {
        Self::Refused { problem: Box::new(problem.into()), later: None }
    }

    /// The same, where after the start it halts.
    pub(super) fn refused_or_halts(problem: StartError) -> Self {
        // Lines are for the terminal; a halt's reason is one.
        let later = Some(Halt::RuleBroken(problem.to_string().replace('\n', "; ")));
        Self::Refused { problem: Box::new(problem), later }
    }

    /// What is missing from the publication, or comes of it under another name, or is hidden from our role, and a publication by another name, is
    /// refused at the start. That there is none is more than that: the slot cannot be read past what was
    /// written without it.
    pub(super) fn of_halt(halt: Halt) -> Self {
        if matches!(
            halt,
            Halt::Unpublished { .. }
                | Halt::RuleBroken(_)
                | Halt::RowsHidden { .. }
                | Halt::OtherPublication { .. }
        ) {
            let problem = Box::new(StartError::Halt(halt.clone()));
            return Self::Refused { problem, later: Some(halt) };
        }
        halt.into()
    }

    /// The same where another instance streams from the slot: what would halt is refused, for nothing is lost while that
    /// one goes on, and whether it has to halt it knows itself.
    pub(super) fn beside_a_leader(self) -> Self {
        match self {
            Self::Stop(Stop::Halted(halt)) => Self::refused(StartError::Halt(halt)),
            other @ (Self::SlotInUse | Self::Passing(_) | Self::Refused { .. } | Self::Stop(_)) => {
                other
            }
        }
    }
}

impl From<Stop> for OpenError {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Halt> for OpenError {
    fn from(halt: Halt) -> Self {
        Self::Stop(Stop::Halted(halt))
    }
}

impl From<SourceError> for OpenError {
    fn from(error: SourceError) -> Self {
        Self::of(error)
    }
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::of(SourceError::from(error))
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        Self::of(error)
    }
}

impl From<RulesError> for OpenError {
    fn from(error: RulesError) -> Self {
        match error {
            // A server that goes away in the middle of a question is no reason to give up.
            RulesError::Source(error) => Self::of(error),
            error @ RulesError::Broken(_) => Self::refused_or_halts(StartError::Rules(error)),
        }
    }
}

impl From<PreparedError> for OpenError {
    fn from(error: PreparedError) -> Self {
        match error {
            PreparedError::State(error) => error.into(),
            PreparedError::Source(error) => error.into(),
        }
    }
}

/// What to do where the state tables refuse a statement for what is missing.
fn fix_of_state(refused: &tokio_postgres::Error) -> Option<&'static str> {
    match refused.code()?.code() {
        _ if row_security::is_refused(refused) => Some(row_security::FIX_OF_REFUSED),
        "42501" => Some("run `walhook setup --admin-url`, which grants our role what it needs"),
        // A schema, a table, a column or a function.
        "3F000" | "42P01" | "42703" | "42883" => {
            Some("run `walhook setup`, which adds what is missing")
        }
        _ => None,
    }
}

impl From<StateError> for OpenError {
    fn from(error: StateError) -> Self {
        match error.class() {
            Class::Fenced => Self::Stop(Stop::Fenced),
            Class::WentBack => Self::Stop(Stop::WentBack),
            Class::Defect => Self::Stop(Fatal::State(error).into()),
            Class::SchemaTooNew | Class::Fixable => match error.refused().and_then(fix_of_state) {
                Some(fix) => Self::refused(StartError::StateLacks { refused: error, fix }),
                None => Self::of(StartError::State(error)),
            },
        }
    }
}

impl From<WireError> for OpenError {
    fn from(error: WireError) -> Self {
        match wire::classify(&error) {
            wire::Class::SlotInUse => Self::SlotInUse,
            // The slot's row says which of them it is, and since when: `open` reads it first. Here
            // it changed in between.
            wire::Class::SlotUnusable
            | wire::Class::SlotMissing
            | wire::Class::Shutdown
            | wire::Class::Retry => Self::passing(error),
            wire::Class::PublicationMissing => {
                Halt::PublicationMissing { problem: line_of(&error) }.into()
            }
            wire::Class::Access => Self::refused(error),
            // What the server says of a configuration or a right, not of what it sends.
            wire::Class::Fatal if matches!(error, WireError::Session(_) | WireError::Start(_)) => {
                Self::refused(error)
            }
            wire::Class::Unsendable | wire::Class::Fatal => Self::Stop(Fatal::Wire(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_writes_are_told_with_their_fix_once() {
        let table = |table: &str| RefusedWrites {
            table: table.to_owned(),
            problem: "has no replica identity".to_owned(),
            fix: format!("give {table} a key"),
        };
        let tables = vec![table("a"), table("b")];
        let error = StartError::RefusedWrites { publication: "p".to_owned(), tables };
        assert_eq!(
            error.line(),
            "publication \"p\" makes UPDATE and DELETE of a fail: it has no replica identity; \
             publication \"p\" makes UPDATE and DELETE of b fail: it has no replica identity"
        );
        assert_eq!(error.fix(), "give a a key; give b a key");
        assert!(error.to_string().contains("no replica identity; give a a key\n"), "{error}");
    }
}
