//! Why nothing was looked up: who fixes it, and how.

use std::borrow::Cow;

use crate::fix::{Failure, FixedBy, Line};
use crate::sql::{ConnectError, error_text};

/// Why nothing was looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is no table or view of this name.
    #[error("there is no table {table}; correct `{section}.table`")]
    NoTable {
        /// The table, as the configuration names it.
        table: String,
        /// The configuration's section.
        section: &'static str,
    },
    /// The table has no such column.
    #[error("{table} has no column {column}; correct `{key}`")]
    NoColumn {
        /// The table, as the configuration names it.
        table: String,
        /// The column.
        column: String,
        /// The configuration's key.
        key: &'static str,
    },
    /// Values of the column's type cannot be compared, so that no account would be found.
    #[error(
        "{table}.{column} is {kind}, or is made of it, which has no equality, so that no account would be \
         found; give the column another type, or let `{key}` name another"
    )]
    Incomparable {
        /// The table, as the configuration names it.
        table: String,
        /// The column.
        column: String,
        /// The configuration's key.
        key: &'static str,
        /// The type.
        kind: String,
    },
    /// The row's columns are not what they must be.
    #[error("the endpoint table cannot be read: {0}")]
    Shape(String),
    /// A column has another type since we started, with values that cannot be used.
    #[error("{table}.{column} is {is} now and was {was}, and no endpoint can be used any more")]
    Retyped {
        /// The table, as the configuration names it.
        table: String,
        /// The column.
        column: String,
        /// Its type before.
        was: String,
        /// Its type now.
        is: String,
    },
    /// Row-level security may hide rows.
    #[error(
        "row-level security may hide rows of {table} from the role {role}, so that an account's endpoints \
         would just not be there"
    )]
    Hidden {
        /// The table, which may stand behind a view.
        table: String,
        /// Who reads it: our role, or the view's owner.
        role: String,
        /// The statement.
        fix: String,
    },
    /// No session.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The look-up fails for more accounts than are told apart from the others.
    #[error("cannot look up {0} accounts, each for itself; see what their rows have in common")]
    Many(usize),
    /// A column's type changes faster than it can be read.
    #[error("the type of an account column has just been changed")]
    TypeChanged,
    /// The server refused, or the session was lost.
    #[error("cannot look endpoints up: {}", error_text(.0))]
    Sql(#[from] tokio_postgres::Error),
}

impl Failure for LookupError {
    fn fixed_by(&self) -> FixedBy {
        match self {
            Self::NoTable { .. }
            | Self::NoColumn { .. }
            | Self::Incomparable { .. }
            | Self::Retyped { .. }
            | Self::Hidden { .. }
            | Self::Shape(_) => FixedBy::Person,
            Self::TypeChanged | Self::Many(_) => FixedBy::Waiting,
            Self::Connect(error) => error.fixed_by(),
            Self::Sql(error) => error.fixed_by(),
        }
    }

    fn fix(&self) -> Cow<'static, str> {
        match self {
            Self::NoTable { table, section } => format!(
                "put the table {table} back, where it was renamed or dropped, or correct {section}.table in the \
                 configuration and start again"
            )
            .into(),
            Self::NoColumn { table, column, key } => format!(
                "put the column {column} of {table} back, or correct {key} in the configuration and start again"
            )
            .into(),
            Self::Incomparable { table, column, key, .. } => format!(
                "give {table}.{column} a type that has an equality, or let {key} name another column and start \
                 again"
            )
            .into(),
            Self::Retyped { table, column, was, is } => format!(
                "give {table}.{column} its type {was} back, or write values of {is} into it that can be used; \
                 `walhook check` names endpoints that cannot"
            )
            .into(),
            Self::Hidden { fix, .. } => fix.clone().into(),
            Self::Shape(_) => {
                "let the endpoint table, where it is a view, give the same rows each time that it is read; \
                 `walhook check` looks an endpoint up as walhook does"
                    .into()
            }
            Self::TypeChanged => {
                "let whoever alters the endpoint table come to an end; pg_stat_activity shows who does".into()
            }
            Self::Many(_) => {
                "find out what the rows of these accounts have in common, such as a function of the view that \
                 fails for them, and correct that"
                    .into()
            }
            Self::Connect(error) => error.fix(),
            Self::Sql(error) => error.fix(),
        }
    }

    fn say(&self, line: &mut Line) {
        match self {
            Self::Connect(error) => error.say(line),
            Self::Sql(error) => {
                line.push(&self.to_string());
                error.say(line);
            }
            Self::NoTable { .. }
            | Self::NoColumn { .. }
            | Self::Incomparable { .. }
            | Self::Retyped { .. }
            | Self::Hidden { .. }
            | Self::Shape(_)
            | Self::TypeChanged
            | Self::Many(_) => line.push_error(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walhook_testkit::wording::is_imperative;

    #[test]
    fn fix_names_table_and_column_and_is_something_to_do() {
        let (table, column) = (|| "public.hooks".to_owned(), || "enabled".to_owned());
        let key = "endpoints.enabled";
        let retyped = LookupError::Retyped {
            table: table(),
            column: column(),
            was: "boolean".to_owned(),
            is: "text".to_owned(),
        };
        for error in [
            LookupError::NoColumn { table: table(), column: column(), key },
            LookupError::Incomparable {
                table: table(),
                column: column(),
                key,
                kind: "json".to_owned(),
            },
            retyped,
        ] {
            let fix = error.fix();
            assert!(fix.contains("public.hooks") && fix.contains("enabled"), "{fix}");
            assert!(is_imperative(&fix), "{fix}");
        }
        for error in [
            LookupError::NoTable { table: table(), section: "endpoints" },
            LookupError::Shape("no row".to_owned()),
            LookupError::TypeChanged,
            LookupError::Many(3),
        ] {
            assert!(is_imperative(&error.fix()), "{}", error.fix());
        }
    }
}
