//! What a person does about a server that is there and refuses a session for SQL.

use super::conninfo::Conninfo;
use crate::ident::quote_ident;

/// A server's refusal, however it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refusal<'a> {
    /// The five characters of the SQLSTATE.
    pub(crate) sqlstate: &'a str,
    /// The server's function that refuses; its name is never translated.
    pub(crate) routine: &'a str,
}

/// Where the server's table of who may connect is searched.
const OF_PG_HBA: &str = "ClientAuthentication";

impl Refusal<'_> {
    /// The fix, as an addition to a message; empty where the server's own words say it all.
    pub(crate) fn fix(self, info: &Conninfo) -> String {
        let (user, database) = (info.user(), info.database());
        let (role, of_role) = (quote_ident(user), quote_ident(database));
        let fix = match self.sqlstate {
            "28P01" => {
                let whence = info.password_whence();
                format!(
                    "correct the password, which is taken from {whence}, or ALTER ROLE {role} PASSWORD"
                )
            }
            "28000" if self.routine == OF_PG_HBA => format!(
                "add a line to the server's pg_hba.conf that lets {user} connect to the database {database} \
                 from this address, and reload it (SELECT pg_reload_conf())"
            ),
            "28000" => format!(
                "correct the user in the URL, or CREATE ROLE {role} LOGIN; for one that is there, ALTER \
                 ROLE {role} LOGIN"
            ),
            "3D000" => format!("correct the database in the URL, or create {database}"),
            "42501" => format!("GRANT CONNECT ON DATABASE {of_role} TO {role}"),
            "53300" => format!(
                "raise max_connections, or the CONNECTION LIMIT of the role {user} or the database \
                 {database}, or end sessions that are not needed; it is tried again"
            ),
            "55000" => format!("ALTER DATABASE {of_role} ALLOW_CONNECTIONS true"),
            "57P03" => {
                "the server starts up, shuts down or recovers: the connection is tried again"
                    .to_owned()
            }
            _ => return String::new(),
        };
        format!("; {fix}")
    }
}
