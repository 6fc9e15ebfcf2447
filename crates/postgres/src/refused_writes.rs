//! Does the publication make the customer's own UPDATE and DELETE fail? PostgreSQL refuses them on a
//! published table of which it could not log the old row as the publication wants it.

use tokio_postgres::Client;

use super::ident::{quote_ident, quote_literal};
use super::partitions::partitions_of;
use super::published::published_by;
use super::source::{OLDEST_SERVER, server_version};
use crate::op::{EQ, GT};

/// Row filters and column lists came with version 15, `publish_generated_columns` with 18.
const LISTS: i32 = 150_000;
const GENERATED: i32 = 180_000;

/// Every table that is written to: the published ones, and the partitions below them, to which the
/// list and the filter of the published one apply. A filter's columns are what it depends on.
fn written_sql(lists: &str, version: i32) -> String {
    let published = published_by("p", version);
    let below = partitions_of("p.oid");
    format!(
        "
    WITH published AS (
        SELECT c.oid, r.oid AS rel, {lists}
        FROM pg_catalog.pg_publication p
        CROSS JOIN LATERAL ({published}) t
        JOIN pg_catalog.pg_class c ON c.oid {EQ} t.oid
        LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid {EQ} p.oid AND r.prrelid {EQ} c.oid
        WHERE p.pubname {EQ} $1 AND (p.pubupdate OR p.pubdelete)
    ), written AS (
        SELECT oid AS published, oid FROM published
        UNION
        SELECT p.oid, below.oid FROM published p CROSS JOIN LATERAL ({below}) below
    ), known AS (
        SELECT c.oid, c.relreplident {EQ} 'f' AS is_full, p.prattrs IS NOT NULL AS has_list,
            p.generated,
               k.attnums,
               (SELECT a.attname FROM pg_catalog.pg_attribute a
                WHERE a.attrelid {EQ} c.oid AND a.attnum {GT} 0 AND NOT a.attisdropped
                  AND a.attgenerated {EQ} 'v' ORDER BY a.attnum LIMIT 1) AS virtual,
               ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid {EQ} c.oid AND a.attnum {EQ} ANY (k.attnums)) AS key,
               ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid {EQ} p.oid AND a.attnum {EQ} ANY (p.prattrs)) AS list,
               ARRAY(SELECT a.attname FROM pg_catalog.pg_depend d
                     JOIN pg_catalog.pg_attribute a ON a.attrelid {EQ} d.refobjid
                     AND a.attnum {EQ} d.refobjsubid
                     WHERE d.classid {EQ} 'pg_catalog.pg_publication_rel'::pg_catalog.regclass
                     AND d.objid {EQ} p.rel
                       AND d.refobjid {EQ} p.oid AND d.refobjsubid {GT} 0
                       AND p.filtered AND p.prattrs IS NULL) AS filter
        FROM written w
        JOIN published p ON p.oid {EQ} w.published
        JOIN pg_catalog.pg_class c ON c.oid {EQ} w.oid AND c.relkind {EQ} 'r'
        LEFT JOIN LATERAL (
            SELECT i.indkey::smallint[] AS attnums FROM pg_catalog.pg_index i
            WHERE i.indrelid {EQ} c.oid AND i.indisvalid AND i.indimmediate
              AND CASE WHEN c.relreplident {EQ} 'd' THEN i.indisprimary
                  ELSE c.relreplident {EQ} 'i' AND i.indisreplident END
            LIMIT 1) k ON true
    )
    SELECT oid::pg_catalog.regclass::pg_catalog.text,
           CASE
           WHEN NOT is_full AND attnums IS NULL THEN 'identity'
           WHEN is_full AND virtual IS NOT NULL THEN 'virtual'
           WHEN has_list AND (is_full OR NOT key OPERATOR(pg_catalog.<@) list) THEN 'list'
           WHEN NOT is_full AND NOT filter OPERATOR(pg_catalog.<@) key THEN 'filter'
           WHEN generated AND EXISTS (
               SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid {EQ} known.oid AND a.attnum {GT} 0 AND NOT a.attisdropped
                 AND a.attgenerated {EQ} 's' AND (is_full OR a.attnum {EQ} ANY (attnums)))
                 THEN 'generated'
           END, virtual::pg_catalog.text
    FROM known ORDER BY 1"
    )
}

/// A statement that makes the publication and fails where that would make the customer's own writes fail, so that there
/// is none then: what a script can do that knows no server. `create` is what makes it, without lists and filters.
#[must_use]
pub fn create_guarded(publication: &str, create: &str) -> String {
    let generated = format!(
        "coalesce(pg_catalog.to_jsonb(p) OPERATOR(pg_catalog.->>) 'pubgencols' {EQ} 'n', false)"
    );
    // It is given tables alone, which every server knows.
    let lists = format!("NULL::smallint[] AS prattrs, false AS filtered, {generated} AS generated");
    let sql = written_sql(&lists, OLDEST_SERVER);
    let sql = sql.replace("$1", &quote_literal(publication));
    format!(
        "DO $walhook$
DECLARE
    refused pg_catalog.text;
BEGIN
    {create};
    SELECT pg_catalog.string_agg(written.oid OPERATOR(pg_catalog.||) ' (' OPERATOR(pg_catalog.||)
        CASE WHEN written.problem {EQ} 'virtual' THEN 'REPLICA IDENTITY FULL, and a virtual generated column'
             WHEN written.problem {EQ} 'generated' THEN 'a generated column in its replica identity'
             ELSE 'no replica identity' END OPERATOR(pg_catalog.||) ')', ', ')
    INTO refused FROM ({sql}) AS written (oid, problem, virtual) WHERE written.problem IS NOT NULL;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'your own UPDATE and DELETE would fail, were it published: %. Give a table without \
identity a primary key that is not deferrable, or ALTER TABLE ... REPLICA IDENTITY FULL; one with a virtual generated \
column a primary key and REPLICA IDENTITY DEFAULT; for another generated column see publish_generated_columns. Then run \
this again', refused;
    END IF;
END
$walhook$"
    )
}

/// A table whose UPDATE and DELETE fail because it is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedWrites {
    /// The table, as SQL writes it.
    pub table: String,
    /// Why they fail, in words that follow the table's name.
    pub problem: String,
    /// What to do.
    pub fix: String,
}

/// Why a table with REPLICA IDENTITY FULL and a virtual generated column cannot be published, whatever the
/// publication says of generated columns, in words that follow the table's name; and what to do.
#[must_use]
pub fn unpublishable_column(table: &str, column: &str) -> (String, String) {
    (
        format!(
            "has REPLICA IDENTITY FULL, which does not go with its virtual generated column {}",
            quote_ident(column)
        ),
        format!(
            "ALTER TABLE {table} REPLICA IDENTITY DEFAULT, which goes by its primary key, or USING INDEX, or \
             drop the column"
        ),
    )
}

/// Finds such tables, whoever needs them published.
///
/// # Errors
/// When the server does not answer.
pub async fn refused_writes(
    client: &Client,
    publication: &str,
) -> Result<Vec<RefusedWrites>, tokio_postgres::Error> {
    let version = server_version(client).await?;
    let lists = match version {
        LISTS.. => "r.prattrs::smallint[] AS prattrs, r.prqual IS NOT NULL AS filtered",
        _ => "NULL::smallint[] AS prattrs, false AS filtered",
    };
    let generated =
        if version >= GENERATED { "p.pubgencols OPERATOR(pg_catalog.=) 'n'" } else { "false" };
    let sql = written_sql(&format!("{lists}, {generated} AS generated"), version);
    let mut found = Vec::new();
    for row in client.query(&sql, &[&publication]).await? {
        let table: String = row.try_get(0)?;
        let again = format!("publish {table} again without it");
        let (problem, fix) = match row.try_get(1)? {
            Some("virtual") => {
                let (problem, fix) = unpublishable_column(&table, row.try_get(2)?);
                found.push(RefusedWrites { table, problem, fix });
                continue;
            }
            Some("identity") => (
                "has no replica identity",
                format!(
                    "give it a primary key that is not deferrable, or ALTER TABLE {table} REPLICA \
                     IDENTITY FULL"
                ),
            ),
            Some("list") => ("has a column list that its replica identity does not fit", again),
            Some("filter") => ("has a row filter that its replica identity does not fit", again),
            Some("generated") => (
                "has a generated column in its replica identity, which is not published",
                format!(
                    "ALTER PUBLICATION {} SET (publish_generated_columns = stored)",
                    quote_ident(publication)
                ),
            ),
            Some(_) | None => continue,
        };
        found.push(RefusedWrites { table, problem: problem.to_owned(), fix });
    }
    Ok(found)
}
