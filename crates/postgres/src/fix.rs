//! What to do about an error of the server, or on the way to it.

use std::error::Error;

use super::lookup::LookupError;
use super::wire::ServerError;

/// What to do about an error, by what caused it.
#[must_use]
pub fn fix(error: &(dyn Error + 'static)) -> &'static str {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(LookupError::NoColumn { .. } | LookupError::Incomparable { .. }) =
            error.downcast_ref()
        {
            return "put the table or the column back, or correct the configuration and start again";
        }
        if let Some(LookupError::Hidden { .. } | LookupError::Retyped { .. }) = error.downcast_ref()
        {
            return "what it names";
        }
        let code = error
            .downcast_ref::<tokio_postgres::Error>()
            .and_then(|sql| sql.code().map(|code| code.code().to_owned()))
            .or_else(|| error.downcast_ref::<ServerError>().map(|e| e.sqlstate.clone()));
        if let Some(code) = code {
            return fix_of_sqlstate(&code);
        }
        cause = error.source();
    }
    "see to it that the server runs and can be reached at the configured URL"
}

/// By the code of the server's error.
///
/// Source: PostgreSQL manual, "PostgreSQL Error Codes".
fn fix_of_sqlstate(code: &str) -> &'static str {
    match code {
        "42501" => {
            "grant our role the right that it lacks; `walhook setup --print-sql` shows the grants"
        }
        "42P01" | "3F000" | "42703" | "42883" | "42704" => {
            "put back what it names, or correct the configuration and start again; `walhook check` shows \
             what is missing"
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
        "53100" => "make room on the server's disk",
        "53200" => "give the server memory",
        "25006" => {
            "the server is a standby or read-only: let the URL name the primary, or set \
             default_transaction_read_only = off"
        }
        "28P01" | "28000" => {
            "correct the password or the role in the URL, or the line in pg_hba.conf"
        }
        "3D000" => "create the database, or correct its name in the URL",
        "55000" => "see the error: the object is not in a state in which it can be used",
        "55006" => "see who uses the slot: active_pid in pg_replication_slots",
        "57P03" => "wait until the server has started; see its log if it does not",
        _ if code.starts_with("57P") => "start the server again",
        _ if code.starts_with("08") => "see to it that the server can be reached",
        _ => "see the error",
    }
}
