//! Reads with SQL what the publication covers of the tables that the configuration needs.

use std::collections::BTreeSet;

use tokio_postgres::{Client, Row};

use super::{Coverage, Covered, Kind, Lack, Moment, Publication};
use crate::error::SourceError;
use crate::ident::quote_ident;
use crate::source::server_version;
use walhook_core::catalog::TableName;

/// Row filters, and schemas in a publication, came with version 15.
const FILTERS: i32 = 150_000;

/// How long an `ALTER PUBLICATION` of ours waits for the lock on a table.
const LOCK_TIMEOUT: &str = "1s";

/// The publication, and every table that is named or below one that is, in one snapshot. Temporary
/// tables are nobody's but their session's; what is partitioned itself has no rows. A partition that is being detached
/// concurrently is none any more, also while that waits for open transactions: no new one writes to it as one.
///
/// The row of `pg_attribute` is the one of ctid, which nothing ever alters: its xmin made the table.
const MEMBERS: &str = r#"
    WITH RECURSIVE pub AS (
        SELECT p.oid, p.puballtables, p.pubowner FROM pg_catalog.pg_publication p
        WHERE p.pubname OPERATOR(pg_catalog.=) $3::pg_catalog.text
    ), named AS (
        SELECT c.oid, wanted.label
        FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]),
                        pg_catalog.unnest($2::pg_catalog.text[]),
                        pg_catalog.unnest($4::pg_catalog.text[])) AS wanted(nspname, relname, label)
        JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) wanted.nspname
        JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
                                  AND c.relname OPERATOR(pg_catalog.=) wanted.relname
        WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p,f}'::pg_catalog."char"[])
    ), below AS (
        SELECT named.oid, named.label FROM named
        UNION
        SELECT i.inhrelid, below.label FROM below
        JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) below.oid
                                     AND NOT i.inhdetachpending
    ), tree AS (
        SELECT below.oid, pg_catalog.array_agg(below.label) AS labels FROM below GROUP BY below.oid
    )
    SELECT c.oid, n.nspname::pg_catalog.text, c.relname::pg_catalog.text, tree.labels,
           EXISTS (SELECT FROM named WHERE named.oid OPERATOR(pg_catalog.=) c.oid) AS is_named,
           c.relispartition, c.relkind OPERATOR(pg_catalog.=) 'f' AS is_foreign,
           c.relpersistence OPERATOR(pg_catalog.=) 'u' AS is_unlogged,
           c.reltoastrelid, c.relfilenode,
           (SELECT pg_catalog.md5(pg_catalog.concat_ws(',', c.relam, c.reltablespace,
                       pg_catalog.string_agg(pg_catalog.concat_ws(':', a.atttypid, a.atttypmod), ','
                                             ORDER BY a.attnum)))
            FROM pg_catalog.pg_attribute a
            WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
              AND a.attnum OPERATOR(pg_catalog.>) 0) AS shape,
           c.relreplident OPERATOR(pg_catalog.=) 'f' AND NOT EXISTS (
               SELECT FROM pg_catalog.pg_attribute a
               WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid
                 AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
                 AND a.attgenerated OPERATOR(pg_catalog.=) 'v'
           ) OR EXISTS (
               SELECT FROM pg_catalog.pg_index i
               WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND i.indisvalid
                 AND (c.relreplident OPERATOR(pg_catalog.=) 'd' AND i.indisprimary AND i.indimmediate
                      OR c.relreplident OPERATOR(pg_catalog.=) 'i' AND i.indisreplident)
           ) AS has_identity,
           pg_catalog.pg_has_role(pub.pubowner, 'USAGE')
               AND pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_add,
           ARRAY(SELECT pg_catalog.concat('t', r.oid) FROM pg_catalog.pg_publication_rel r
                 WHERE r.prpubid OPERATOR(pg_catalog.=) pub.oid
                   AND r.prrelid OPERATOR(pg_catalog.=) ANY (chain.oids)
                 UNION ALL
                 SELECT '*' WHERE pub.puballtables {schemas}) AS by,
           EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                   WHERE r.prpubid OPERATOR(pg_catalog.=) pub.oid
                     AND r.prrelid OPERATOR(pg_catalog.=) c.oid) AS is_member,
           EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                   WHERE r.prpubid OPERATOR(pg_catalog.=) pub.oid
                     AND r.prrelid OPERATOR(pg_catalog.=) c.oid {filtered}) AS is_filtered,
           EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
                   JOIN pg_catalog.pg_inherits i ON i.inhrelid OPERATOR(pg_catalog.=) r.prrelid
                                                AND i.xmin OPERATOR(pg_catalog.=) r.xmin
                   WHERE r.prpubid OPERATOR(pg_catalog.=) pub.oid
                     AND r.prrelid OPERATOR(pg_catalog.=) c.oid) AS is_member_since_birth,
           EXISTS (SELECT FROM pg_catalog.pg_depend d
                   JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) d.objid
                                                 AND a.attnum OPERATOR(pg_catalog.=) '-1'
                                                 AND a.xmin OPERATOR(pg_catalog.=) d.xmin
                   WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
                     AND d.objid OPERATOR(pg_catalog.=) c.oid
                     AND d.objsubid OPERATOR(pg_catalog.=) 0
                     AND d.refclassid OPERATOR(pg_catalog.=)
                         'pg_catalog.pg_namespace'::pg_catalog.regclass) AS is_in_schema_since_birth,
           NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i
                       JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) i.inhrelid
                                                     AND a.attnum OPERATOR(pg_catalog.=) '-1'
                                                     AND a.xmin OPERATOR(pg_catalog.<>) i.xmin
                       WHERE i.inhrelid OPERATOR(pg_catalog.=) ANY (chain.oids)) AS is_below_since_birth
    FROM tree
    JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) tree.oid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
    LEFT JOIN pub ON true
    CROSS JOIN LATERAL (
        SELECT pg_catalog.array_append(
                   ARRAY(SELECT a.relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors(c.oid) a),
                   c.oid) AS oids) chain
    WHERE c.relpersistence OPERATOR(pg_catalog.<>) 't'
      AND (c.relkind OPERATOR(pg_catalog.<>) 'p'
           OR EXISTS (SELECT FROM named WHERE named.oid OPERATOR(pg_catalog.=) c.oid))"#;

const SCHEMAS: &str = "
                 UNION ALL
                 SELECT pg_catalog.concat('s', s.oid, ':', m.oid, '@', d.xmin)
                 FROM pg_catalog.pg_publication_namespace s
                 JOIN pg_catalog.pg_class m ON m.relnamespace OPERATOR(pg_catalog.=) s.pnnspid
                                           AND m.oid OPERATOR(pg_catalog.=) ANY (chain.oids)
                 JOIN pg_catalog.pg_depend d
                   ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
                  AND d.objid OPERATOR(pg_catalog.=) m.oid AND d.objsubid OPERATOR(pg_catalog.=) 0
                  AND d.refclassid OPERATOR(pg_catalog.=)
                      'pg_catalog.pg_namespace'::pg_catalog.regclass
                 WHERE s.pnpubid OPERATOR(pg_catalog.=) pub.oid";

/// The options as text, whatever this version has: all columns but those that are compared apart.
const PUBLICATION: &str = "
    SELECT p.oid, p.pubowner, p.xmin::pg_catalog.text,
           (SELECT d.xmin::pg_catalog.text FROM pg_catalog.pg_shdepend d
            JOIN pg_catalog.pg_database b ON b.oid OPERATOR(pg_catalog.=) d.dbid
            WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
              AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_publication'::pg_catalog.regclass
              AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'o'),
           pg_catalog.pg_stat_get_tuples_updated('pg_catalog.pg_publication'::pg_catalog.regclass),
           ARRAY(SELECT o.key FROM pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(p)) o
                 WHERE o.key OPERATOR(pg_catalog.<>) ALL ('{oid,pubname,pubowner}'::pg_catalog.text[])
                 ORDER BY o.key),
           ARRAY(SELECT o.value FROM pg_catalog.jsonb_each_text(pg_catalog.to_jsonb(p)) o
                 WHERE o.key OPERATOR(pg_catalog.<>) ALL ('{oid,pubname,pubowner}'::pg_catalog.text[])
                 ORDER BY o.key),
           {schemas}, pg_catalog.pg_has_role(p.pubowner, 'USAGE')
    FROM pg_catalog.pg_publication p WHERE p.pubname OPERATOR(pg_catalog.=) $1::pg_catalog.text";

/// A look.
#[derive(Debug, Clone)]
pub struct Looked {
    /// Before it began.
    pub before: Moment,
    /// What it saw; `None` where there is no publication.
    pub coverage: Option<Coverage>,
    /// The tables that it saw.
    pub tables: Vec<Seen>,
    /// Whether our role may alter the publication.
    pub owns_publication: bool,
    /// After it had ended.
    pub after: Moment,
}

/// A table that was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: TableName,
    /// What it is and what it lacks.
    pub covered: Covered,
    /// Whether it lacks nothing but to be added to the publication, and our role may do that.
    pub can_be_added: bool,
}

/// Looks at the publication and the `named` tables, with all that lies below these.
///
/// # Errors
/// When the server does not answer.
pub async fn look(
    client: &Client,
    publication: &str,
    named: &BTreeSet<TableName>,
    system_identifier: u64,
) -> Result<Looked, SourceError> {
    let before = moment(client, "xmin").await?;
    let version = server_version(client).await?;
    let (schemas, filtered) = match version {
        FILTERS.. => (SCHEMAS, "AND r.prqual IS NOT NULL"),
        _ => ("", "AND false"),
    };
    let members = MEMBERS.replace("{schemas}", schemas).replace("{filtered}", filtered);
    let schemas: Vec<&str> = named.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = named.iter().map(|table| table.name.as_str()).collect();
    let labels: Vec<String> = named.iter().map(ToString::to_string).collect();
    let cannot = "cannot read what the publication covers";
    // Another alteration may come between the two: it is found by the next look, if not by this one.
    let found =
        read_publication(client, publication, version).await.map_err(SourceError::of(cannot))?;
    let rows = client.query(&members, &[&schemas, &names, &publication, &labels]).await;
    let tables = rows.map_err(SourceError::of(cannot))?;
    let tables = tables.iter().map(seen).collect::<Result<Vec<_>, _>>()?;
    let owns_publication = found.as_ref().is_some_and(|(_, owns)| *owns);
    let coverage = found.map(|(publication, _)| Coverage {
        cluster: format!("{system_identifier}, version {}", version / 10_000),
        publication,
        tables: tables.iter().map(|seen| (seen.oid, seen.covered.clone())).collect(),
    });
    Ok(Looked { before, coverage, tables, owns_publication, after: moment(client, "xmax").await? })
}

/// Adds a table, without what inherits from it, to the publication.
///
/// # Errors
/// When the server refuses it, or another session holds the table's lock.
pub async fn add(client: &Client, publication: &str, table: &TableName) -> Result<(), SourceError> {
    let (publication, schema, name) =
        (quote_ident(publication), quote_ident(&table.schema), quote_ident(&table.name));
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
         ALTER PUBLICATION {publication} ADD TABLE ONLY {schema}.{name}; COMMIT"
    );
    if let Err(source) = client.batch_execute(&sql).await {
        client.batch_execute("ROLLBACK").await?;
        return Err(SourceError::NotAdded { table: table.clone(), source });
    }
    Ok(())
}

/// The end of the WAL now, and that end of the transactions that are not over.
async fn moment(client: &Client, end: &str) -> Result<Moment, SourceError> {
    let sql = format!(
        "SELECT pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text,
                pg_catalog.pg_snapshot_{end}(pg_catalog.pg_current_snapshot())::pg_catalog.text"
    );
    let row = client.query_one(&sql, &[]).await;
    let row = row.map_err(SourceError::of("cannot ask where the WAL ends"))?;
    Ok(Moment {
        lsn: row.try_get::<_, &str>(0)?.parse()?,
        xid: row.try_get::<_, &str>(1)?.parse()?,
    })
}

async fn read_publication(
    client: &Client,
    name: &str,
    version: i32,
) -> Result<Option<(Publication, bool)>, tokio_postgres::Error> {
    let schemas = match version {
        FILTERS.. => {
            "ARRAY(SELECT s.oid FROM pg_catalog.pg_publication_namespace s
                   WHERE s.pnpubid OPERATOR(pg_catalog.=) p.oid)"
        }
        _ => "ARRAY[]::pg_catalog.oid[]",
    };
    let sql = PUBLICATION.replace("{schemas}", schemas);
    let Some(row) = client.query_opt(&sql, &[&name]).await? else { return Ok(None) };
    let (keys, values): (Vec<String>, Vec<Option<String>>) = (row.try_get(5)?, row.try_get(6)?);
    let values = values.into_iter().map(Option::unwrap_or_default);
    let publication = Publication {
        oid: row.try_get(0)?,
        name: name.to_owned(),
        owner: row.try_get(1)?,
        version: row.try_get(2)?,
        owned_since: row.try_get(3)?,
        options: keys.into_iter().zip(values).collect(),
        alterations: row.try_get(4)?,
        schemas: row.try_get::<_, Vec<u32>>(7)?.into_iter().collect(),
        since: None,
    };
    Ok(Some((publication, row.try_get(8)?)))
}

fn seen(row: &Row) -> Result<Seen, tokio_postgres::Error> {
    let name = TableName { schema: row.try_get(1)?, name: row.try_get(2)? };
    let kind = match (row.try_get("is_named")?, row.try_get("relispartition")?) {
        (true, _) => Kind::Named,
        (false, true) => Kind::Partition,
        (false, false) => Kind::Child,
    };
    let mut under: BTreeSet<String> =
        row.try_get::<_, Vec<String>>("labels")?.into_iter().collect();
    if kind != Kind::Named {
        under.remove(&name.to_string());
    }
    let by: BTreeSet<String> = row.try_get::<_, Vec<String>>("by")?.into_iter().collect();
    let has_identity: bool = row.try_get("has_identity")?;
    let is_member: bool = row.try_get("is_member")?;
    let filters =
        row.try_get::<_, bool>("is_filtered")? && !by.iter().any(|by| !by.starts_with('t'));
    let is_foreign: bool = row.try_get("is_foreign")?;
    let lack = match (is_foreign, row.try_get("is_unlogged")?) {
        (true, _) => Some(Lack::Foreign),
        (false, true) => Some(Lack::Unlogged),
        (false, false) if by.is_empty() && kind == Kind::Child && !has_identity => {
            Some(Lack::Identityless)
        }
        (false, false) if by.is_empty() => Some(Lack::Unpublished),
        (false, false) => filters.then_some(Lack::Filtered),
    };
    let since_birth = if is_member {
        row.try_get("is_member_since_birth")?
    } else {
        row.try_get("is_in_schema_since_birth")?
    };
    let may_add: Option<bool> = row.try_get("may_add")?;
    Ok(Seen {
        oid: row.try_get("oid")?,
        can_be_added: kind == Kind::Child
            && lack == Some(Lack::Unpublished)
            && may_add.unwrap_or_default(),
        covered: Covered {
            name: name.to_string(),
            kind,
            under,
            by,
            is_member,
            since_birth,
            below_since_birth: row.try_get("is_below_since_birth")?,
            toast: row.try_get("reltoastrelid")?,
            file: row.try_get("relfilenode")?,
            shape: row.try_get("shape")?,
            lack,
            lacking_since: None,
        },
        name,
    })
}
