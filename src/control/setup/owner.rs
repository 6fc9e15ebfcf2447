//! Whose is the state schema that is there already? A role that may CREATE in the database could have
//! made it first, with triggers on tables of its own, which run as whoever writes to them.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use walhook_postgres::op::{EQ, NE};

/// Refuses a schema of which something belongs to somebody who is not the session's
/// role or one that it is a member of, not `ours`, not the database's owner, and no superuser.
pub(super) async fn ensure_ours(client: &Client, schema: &str, ours: &str) -> Result<()> {
    let sql = format!(
        "SELECT DISTINCT o.rolname::pg_catalog.text
         FROM pg_catalog.pg_namespace n
         LEFT JOIN pg_catalog.pg_class c ON c.relnamespace {EQ} n.oid
         JOIN pg_catalog.pg_roles o ON o.oid {EQ} n.nspowner OR o.oid {EQ} c.relowner
         JOIN pg_catalog.pg_roles me ON me.rolname {EQ} current_user
         JOIN pg_catalog.pg_database d ON d.datname {EQ} pg_catalog.current_database()
         WHERE n.nspname {EQ} $1 AND NOT o.rolsuper
           AND o.oid {NE} me.oid AND o.rolname {NE} $2 AND o.oid {NE} d.datdba
           AND (me.rolsuper OR NOT pg_catalog.pg_has_role(o.oid, 'USAGE'))
         ORDER BY 1"
    );
    let rows = client.query(&sql, &[&schema, &ours]).await?;
    let others = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let them = others.join(", ");
    ensure!(
        others.is_empty(),
        "the state schema {schema} is there, and it or something in it belongs to {them}, who could \
         have statements run as whoever sets up; name another state.schema; or, if you know them and it is \
         for walhook alone, set up as that role, or change the owner (ALTER SCHEMA, ALTER TABLE ... OWNER TO)"
    );
    Ok(())
}
