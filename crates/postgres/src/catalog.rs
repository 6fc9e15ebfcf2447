//! Reads the [`Catalog`] with SQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio_postgres::{Client, Row};

use crate::error::SourceError;
use crate::op::{EQ, GE, GT, LE, LT, PLUS};
use crate::published::published_by;
use crate::source::server_version;
use walhook_core::catalog::ReplicaIdentity;
use walhook_core::catalog::{Catalog, Generated, Table, TableColumn, TableName};
use walhook_core::types::{TypeShape, Types};

/// How often a transaction that has committed is looked for.
const SHOWN_POLL: Duration = Duration::from_millis(10);

/// The named tables and views, with what lies below them: partitions, and tables that inherit.
///
/// Arrays are aggregated by the server, so that one statement, and so one snapshot, tells all.
/// `indisvalid`, `indimmediate` and `indisreplident`: what PostgreSQL itself asks for
/// (`RelationGetIndexList`): a deferrable primary key orders events, but is no identity.
fn tables_sql() -> String {
    format!(
        r#"
    WITH RECURSIVE covered AS (
        SELECT c.oid
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]),
                        pg_catalog.unnest($2::pg_catalog.text[])) AS wanted(nspname, relname)
        JOIN pg_catalog.pg_namespace n ON n.nspname {EQ} wanted.nspname
        JOIN pg_catalog.pg_class c ON c.relnamespace {EQ} n.oid
                                  AND c.relname {EQ} wanted.relname
        WHERE c.relkind {EQ} ANY ('{{r,p,v,m,f}}'::pg_catalog."char"[])
        UNION
        SELECT i.inhrelid FROM covered
        JOIN pg_catalog.pg_inherits i ON i.inhparent {EQ} covered.oid
    ), keys AS (
        SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate,
               pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY k.ord) AS columns
        FROM covered
        JOIN pg_catalog.pg_index i ON i.indrelid {EQ} covered.oid AND i.indisvalid
                       AND (i.indisprimary OR i.indisreplident)
        CROSS JOIN pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, ord)
        JOIN pg_catalog.pg_attribute a ON a.attrelid {EQ} i.indrelid
                                      AND a.attnum {EQ} k.attnum
        WHERE k.ord {LE} i.indnkeyatts
        GROUP BY i.indexrelid, i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate
    )
    SELECT c.oid, n.nspname::pg_catalog.text AS schema, c.relname::pg_catalog.text AS name,
           c.relkind {EQ} ANY ('{{v,m}}'::pg_catalog."char"[]) AS is_view,
           c.relkind {EQ} 'p' AS is_partitioned,
           c.relreplident::pg_catalog.text AS identity, NOT c.relispartition AND EXISTS (
               SELECT FROM pg_catalog.pg_inherits i
               WHERE i.inhrelid {EQ} c.oid) AS is_inherited,
           ARRAY(WITH RECURSIVE up AS (
                     SELECT i.inhparent AS relid, 1 AS depth FROM pg_catalog.pg_inherits i
                     WHERE i.inhrelid {EQ} c.oid
                     UNION
                     SELECT i.inhparent, up.depth {PLUS} 1 FROM up
                     JOIN pg_catalog.pg_inherits i ON i.inhrelid {EQ} up.relid)
                 SELECT up.relid FROM up GROUP BY up.relid
                 ORDER BY pg_catalog.max(up.depth), up.relid) AS ancestors,
           ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid {EQ} c.oid
                   AND a.attnum {GT} 0 AND NOT a.attisdropped
                 ORDER BY a.attnum) AS column_names,
           ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid {EQ} c.oid
                   AND a.attnum {GT} 0 AND NOT a.attisdropped
                 ORDER BY a.attnum) AS column_types,
           ARRAY(SELECT NOT a.attnotnull FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid {EQ} c.oid
                   AND a.attnum {GT} 0 AND NOT a.attisdropped
                 ORDER BY a.attnum) AS columns_nullable,
           ARRAY(SELECT EXISTS (SELECT FROM pg_catalog.pg_collation l
                                WHERE l.oid {EQ} a.attcollation
                                  AND NOT l.collisdeterministic)
                 FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid {EQ} c.oid
                   AND a.attnum {GT} 0 AND NOT a.attisdropped
                 ORDER BY a.attnum) AS columns_loose,
           pg_catalog.current_setting('server_version_num')::integer {GE} 180000 AS can_publish,
           ARRAY(SELECT a.attgenerated::pg_catalog.text FROM pg_catalog.pg_attribute a
                 WHERE a.attrelid {EQ} c.oid
                   AND a.attnum {GT} 0 AND NOT a.attisdropped
                 ORDER BY a.attnum) AS columns_generated,
           (SELECT k.columns FROM keys k
            WHERE k.indrelid {EQ} c.oid AND k.indisprimary) AS primary_key,
           EXISTS (SELECT FROM keys k
                   WHERE k.indrelid {EQ} c.oid AND k.indisprimary
                     AND k.indimmediate) AS key_identifies,
           (SELECT k.columns FROM keys k
            WHERE k.indrelid {EQ} c.oid AND k.indisreplident) AS identity_index
    FROM covered
    JOIN pg_catalog.pg_class c ON c.oid {EQ} covered.oid
    JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace"#
    )
}

/// Which types are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichTypes {
    /// All: a stream describes tables as they were.
    All,
    /// Those that the tables' columns have now. Each table has two of its own, which need not be read.
    OfColumns,
}

/// Domains and arrays: all else is written as text, or built in. `$1` are the types of columns.
///
/// An array is the `typarray` of its element: int2vector and point have a `typelem` too, and are
/// none.
fn types_sql(which: WhichTypes) -> String {
    let of_columns = format!(
        "AND (t.oid {LT} 16384 OR t.typtype {EQ} 'd' OR t.oid {EQ} ANY ($1::pg_catalog.oid[])
              OR t.oid {EQ} ANY (ARRAY(SELECT d.typbasetype FROM pg_catalog.pg_type d
                                       WHERE d.typtype {EQ} 'd')))"
    );
    let which = match which {
        WhichTypes::All => "AND $1::pg_catalog.oid[] IS NOT NULL",
        WhichTypes::OfColumns => &of_columns,
    };
    format!(
        "
    SELECT t.oid, t.typbasetype, e.oid AS element, e.typdelim::pg_catalog.text AS delimiter
    FROM pg_catalog.pg_type t
    LEFT JOIN pg_catalog.pg_type e ON e.typarray {EQ} t.oid
    WHERE (t.typtype {EQ} 'd' OR e.oid IS NOT NULL OR t.oid {GE} 16384) {which}"
    )
}

/// Reads what the catalog says about the tables that `names` lists, as the configuration writes
/// them. A table that does not exist is left out.
///
/// # Errors
/// When a name cannot be read, or the server refuses the query.
pub async fn load<N: AsRef<str>>(
    client: &Client,
    names: impl IntoIterator<Item = N>,
) -> Result<Catalog, SourceError> {
    load_with(client, names, WhichTypes::All).await
}

/// The same with these types.
///
/// # Errors
/// As [`load`].
pub async fn load_with<N: AsRef<str>>(
    client: &Client,
    names: impl IntoIterator<Item = N>,
    which: WhichTypes,
) -> Result<Catalog, SourceError> {
    let mut schemas = Vec::new();
    let mut tables = Vec::new();
    for name in names {
        let TableName { schema, name } = name.as_ref().parse()?;
        schemas.push(schema);
        tables.push(name);
    }
    let rows = client.query(&tables_sql(), &[&schemas, &tables]).await;
    let rows = rows.map_err(SourceError::of("cannot read the tables from the source's catalog"))?;
    let tables = rows.iter().map(table).collect::<Result<Vec<_>, _>>()?;
    let columns = tables.iter().flat_map(|table: &Table| &table.columns);
    let of_columns: BTreeSet<u32> = columns.map(|column| column.type_oid).collect();
    let of_columns: Vec<u32> = of_columns.into_iter().collect();
    let rows = client.query(&types_sql(which), &[&of_columns]).await;
    let rows = rows.map_err(SourceError::of("cannot read the types from the source's catalog"))?;
    let shapes = rows.iter().map(shape).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(Catalog::new(tables, Types::with_catalog(&shapes)))
}

/// The labels of those of the types that are enums, in their order.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn enum_labels(
    client: &Client,
    types: &[u32],
) -> Result<BTreeMap<u32, Vec<String>>, SourceError> {
    let sql = format!(
        "SELECT enumtypid, pg_catalog.array_agg(enumlabel::pg_catalog.text ORDER BY enumsortorder)
         FROM pg_catalog.pg_enum WHERE enumtypid {EQ} ANY ($1::pg_catalog.oid[]) GROUP BY enumtypid"
    );
    let rows = client.query(&sql, &[&types]).await;
    let rows = rows.map_err(SourceError::of("cannot read the enums from the source's catalog"))?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Waits until the catalog shows what the transaction with this 32-bit id has done: the stream can show
/// a commit before SQL does, under synchronous replication by seconds.
///
/// # Errors
/// When the server does not answer.
pub async fn until_shown(client: &Client, xid: u32) -> Result<(), SourceError> {
    // The server gives the lock up after it has shown the transaction as ended.
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l
                        WHERE l.locktype {EQ} 'transactionid' AND l.granted
                          AND l.transactionid {EQ} $1::pg_catalog.text::pg_catalog.xid)"
    );
    let xid = xid.to_string();
    while client.query_one(&sql, &[&xid]).await?.try_get(0)? {
        tokio::time::sleep(SHOWN_POLL).await;
    }
    Ok(())
}

/// What a table is to others that may have partitions or children.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A partition of one of them, or one that inherits.
    Descendant,
    /// None: it is published for itself.
    Independent,
    /// It may have been one, for it is neither one nor published now.
    Unclear,
}

/// Asks how a published table stands to `parents`, now.
///
/// # Errors
/// When the server does not answer.
pub async fn standing(
    client: &Client,
    publication: &str,
    table: u32,
    parents: &[u32],
) -> Result<Standing, SourceError> {
    let version = server_version(client).await?;
    let published = published_by("p", version);
    let row = client
        .query_one(
            &format!(
                "WITH RECURSIVE up AS (
                 SELECT i.inhparent AS relid FROM pg_catalog.pg_inherits i
                 WHERE i.inhrelid {EQ} $1::pg_catalog.oid
                 UNION
                 SELECT i.inhparent FROM up
                 JOIN pg_catalog.pg_inherits i ON i.inhrelid {EQ} up.relid)
             SELECT EXISTS (SELECT FROM up
                            WHERE up.relid {EQ} ANY ($2::pg_catalog.oid[])),
                    EXISTS (SELECT FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
                            WHERE p.pubname {EQ} $3::pg_catalog.text
                              AND c.oid {EQ} $1::pg_catalog.oid
                              AND (p.puballtables
                                   OR EXISTS (SELECT FROM ({published}) t
                                              WHERE t.oid {EQ} c.oid)))"
            ),
            &[&table, &parents, &publication],
        )
        .await
        .map_err(SourceError::of("cannot ask the source's catalog about a table"))?;
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => Standing::Descendant,
        (false, true) => Standing::Independent,
        (false, false) => Standing::Unclear,
    })
}

fn table(row: &Row) -> Result<Table, tokio_postgres::Error> {
    let names: Vec<String> = row.try_get("column_names")?;
    let types: Vec<u32> = row.try_get("column_types")?;
    let nullable: Vec<bool> = row.try_get("columns_nullable")?;
    let loose: Vec<bool> = row.try_get("columns_loose")?;
    let generated: Vec<String> = row.try_get("columns_generated")?;
    let can_publish: bool = row.try_get("can_publish")?;
    let columns: Vec<_> = names
        .into_iter()
        .zip(types)
        .zip(nullable)
        .zip(loose)
        .zip(generated)
        .map(|((((name, type_oid), is_nullable), is_loose), generated)| TableColumn {
            name,
            type_oid,
            is_nullable,
            is_loose,
            generated: match &*generated {
                "" => Generated::No,
                "s" if can_publish => Generated::Unpublished,
                "s" => Generated::Unpublishable,
                _ => Generated::Virtual,
            },
            is_left_out: false,
        })
        .collect();
    let primary_key: Vec<String> = row.try_get::<_, Option<_>>("primary_key")?.unwrap_or_default();
    let (identity, identity_columns) = match row.try_get("identity")? {
        "f" => (ReplicaIdentity::Full, columns.iter().map(|c| c.name.clone()).collect()),
        "d" if row.try_get("key_identifies")? => (ReplicaIdentity::Default, primary_key.clone()),
        "d" => (ReplicaIdentity::Default, Vec::new()),
        "i" => {
            let index: Option<_> = row.try_get("identity_index")?;
            (ReplicaIdentity::Index, index.unwrap_or_default())
        }
        _ => (ReplicaIdentity::Nothing, Vec::new()),
    };
    Ok(Table {
        oid: row.try_get("oid")?,
        schema: row.try_get("schema")?,
        name: row.try_get("name")?,
        is_view: row.try_get("is_view")?,
        is_partitioned: row.try_get("is_partitioned")?,
        is_inherited: row.try_get("is_inherited")?,
        ancestors: row.try_get("ancestors")?,
        columns,
        primary_key,
        identity,
        identity_columns,
    })
}

fn shape(row: &Row) -> Result<(u32, TypeShape), tokio_postgres::Error> {
    let oid = row.try_get("oid")?;
    let base: u32 = row.try_get("typbasetype")?;
    let element: Option<u32> = row.try_get("element")?;
    let delimiter: Option<&str> = row.try_get("delimiter")?;
    let delimiter = delimiter.and_then(|text| text.bytes().next()).unwrap_or(b',');
    let shape = match element {
        Some(element) => TypeShape::Array { element, delimiter },
        None if base != 0 => TypeShape::Domain { base },
        None => TypeShape::Plain,
    };
    Ok((oid, shape))
}

#[cfg(test)]
mod tests;
