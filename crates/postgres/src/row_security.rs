//! Does row-level security hide rows that are looked up? It does so without an error: an account's
//! endpoints would just not be there.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use super::ident::quote_ident;
use crate::op::{EQ, NE};
use walhook_core::catalog::TableName;

/// The expression `true` as the catalog holds it. `pg_get_expr` would wait for a lock on the table.
const TRUE: &str =
    r"^\{CONST :consttype 16 [^{}]*:constisnull false [^{}]*:constvalue 1 \[[0 ]*1[0 ]*\]\}$";

/// The tables that a look-up in the named tables and views reads, each with the role as which it is
/// read: a view reads as its owner, unless it says `security_invoker`.
///
/// The conditions are those of PostgreSQL's `check_enable_rls`. A policy whose expression is `true`
/// hides nothing; what any other hides, nobody can tell in advance.
fn hiding_sql() -> String {
    format!(
        "
    WITH RECURSIVE read AS (
        SELECT c.oid, (SELECT oid FROM pg_catalog.pg_roles
            WHERE rolname {EQ} current_user) AS reader
        FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS named(nspname, relname)
        JOIN pg_catalog.pg_namespace n ON n.nspname {EQ} named.nspname
        JOIN pg_catalog.pg_class c ON c.relnamespace {EQ} n.oid AND c.relname {EQ} named.relname
        UNION
        SELECT d.refobjid,
               CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_options_to_table(v.reloptions)
                                 WHERE option_name {EQ} 'security_invoker'
                                 AND option_value::boolean)
               THEN read.reader ELSE v.relowner END
        FROM read
        JOIN pg_catalog.pg_class v ON v.oid {EQ} read.oid AND v.relkind {EQ} ANY ('{{v,m}}')
        JOIN pg_catalog.pg_rewrite w ON w.ev_class {EQ} v.oid
        JOIN pg_catalog.pg_depend d ON d.classid {EQ} 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid {EQ} w.oid
                        AND d.refclassid {EQ} 'pg_catalog.pg_class'::pg_catalog.regclass
                        AND d.refobjid {NE} v.oid
    ), policies AS (
        SELECT read.oid, read.reader, p.polpermissive,
               coalesce(p.polqual::pg_catalog.text OPERATOR(pg_catalog.~) '{TRUE}',
                   false) AS shows_all
        FROM read JOIN pg_catalog.pg_policy p ON p.polrelid {EQ} read.oid
        AND p.polcmd {EQ} ANY ('{{r,*}}')
        WHERE EXISTS (SELECT FROM pg_catalog.unnest(p.polroles) AS role
                      WHERE role {EQ} 0 OR pg_catalog.pg_has_role(read.reader, role, 'USAGE'))
    )
    SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text, r.rolname::pg_catalog.text
    FROM read
    JOIN pg_catalog.pg_class c ON c.oid {EQ} read.oid
    JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
    JOIN pg_catalog.pg_roles r ON r.oid {EQ} read.reader
    WHERE c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
      AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE'))
      AND (NOT EXISTS (SELECT FROM policies p WHERE (p.oid, p.reader) {EQ} (read.oid, read.reader)
                       AND p.polpermissive AND p.shows_all)
           OR EXISTS (SELECT FROM policies p WHERE (p.oid, p.reader) {EQ} (read.oid, read.reader)
                      AND NOT p.polpermissive AND NOT p.shows_all))
    ORDER BY 1, 2"
    )
}

/// A table of which rows may be hidden from a role that reads it for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hidden {
    /// The table: the one that is named, or one behind a view.
    pub table: TableName,
    /// Our role, or a view's owner.
    pub role: String,
}

impl Hidden {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        let (table, role) = (&self.table, quote_ident(&self.role));
        format!(
            "CREATE POLICY walhook ON {table} FOR SELECT TO {role} USING (true), or ALTER ROLE {role} \
             BYPASSRLS where a restrictive policy stands against that"
        )
    }
}

/// Finds the tables of which rows may be hidden when `looked_up` are read.
///
/// # Errors
/// When the server does not answer.
pub async fn hidden(
    client: &Client,
    looked_up: &BTreeSet<TableName>,
) -> Result<Vec<Hidden>, tokio_postgres::Error> {
    let schemas: Vec<&str> = looked_up.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = looked_up.iter().map(|table| table.name.as_str()).collect();
    let found = |row: &tokio_postgres::Row| {
        let table = TableName { schema: row.try_get(0)?, name: row.try_get(1)? };
        Ok(Hidden { table, role: row.try_get(2)? })
    };
    client.query(&hiding_sql(), &[&schemas, &names]).await?.iter().map(found).collect()
}

/// Lets the session fail where row-level security would hide rows from it, instead of answering with too few.
pub const NEVER_HIDE: &str = "SET row_security = off";

/// What to do where it failed.
pub const FIX_OF_REFUSED: &str = "let our role see all rows of that table: ALTER ROLE … BYPASSRLS, or ALTER TABLE … \
     DISABLE ROW LEVEL SECURITY on each table of the state schema; drop no slot";

/// Whether a session failed for that. The code is that of every right which is missing, and the message is
/// translated: the server's function tells.
#[must_use]
pub fn is_refused(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().and_then(DbError::routine) == Some("check_enable_rls")
}

/// Tables that hide rows from a role, whatever their policies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barred {
    schema: String,
    tables: Vec<String>,
    role: String,
}

impl Barred {
    /// What is wrong.
    #[must_use]
    pub fn finding(&self) -> String {
        const SHOWN: usize = 3;
        let shown: Vec<String> = self.tables.iter().take(SHOWN).cloned().collect();
        let more = match self.tables.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "row-level security hides rows of state tables in the schema {} from the role {}: {}{more}",
            self.schema,
            self.role,
            shown.join(", ")
        )
    }

    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        let (schema, role) = (quote_ident(&self.schema), quote_ident(&self.role));
        let table = self.tables.first().map_or_else(String::new, |table| quote_ident(table));
        format!(
            "ALTER ROLE {role} BYPASSRLS, or ALTER TABLE {schema}.{table} DISABLE ROW LEVEL SECURITY, and so for \
             each of them"
        )
    }
}

/// Finds those of `tables` in `schema` that hide rows from `role`, by default the session's own.
///
/// # Errors
/// When the server does not answer.
pub async fn barred(
    client: &Client,
    schema: &str,
    tables: &[&str],
    role: Option<&str>,
) -> Result<Option<Barred>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT c.relname::pg_catalog.text, r.rolname::pg_catalog.text
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
         JOIN pg_catalog.pg_roles r ON r.rolname {EQ} coalesce($3::pg_catalog.text::pg_catalog.name, current_user)
         WHERE n.nspname {EQ} $1 AND c.relname {EQ} ANY ($2) AND c.relrowsecurity
           AND NOT r.rolsuper AND NOT r.rolbypassrls
           AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE'))
         ORDER BY 1"
    );
    let rows = client.query(&sql, &[&schema, &tables, &role]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let role = first.try_get(1)?;
    let tables = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    Ok(Some(Barred { schema: schema.to_owned(), tables, role }))
}
