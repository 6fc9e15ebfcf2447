//! What stands in the source database: its identity, the publication, the slot, published tables.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use crate::error::SourceError;
use crate::op::{EQ, GT, NE};
use crate::partitions::tree_of;
use crate::pg::Conninfo;
use crate::published::published_by;
use crate::timelines::Primary;
use walhook_core::catalog::TableName;
use walhook_core::halt::SourceIdentity;

/// The oldest server that walhook works with.
pub const OLDEST_SERVER: i32 = 140_000;

/// Row filters, column lists and publications of schemas came with version 15.
const ROW_FILTERS: i32 = 150_000;

/// Whether the role `r` may replicate. Amazon's servers give the right through a role instead.
fn may_replicate_sql() -> String {
    format!(
        "rolsuper OR rolreplication OR EXISTS (
    SELECT FROM pg_catalog.pg_roles g WHERE g.rolname {EQ} 'rds_replication'
        AND pg_catalog.pg_has_role(r.oid, g.oid, 'USAGE'))"
    )
}

/// The timeline that is written to, from the first eight digits of the name of a file of the WAL.
pub const TIMELINE: &str = "('x' OPERATOR(pg_catalog.||) pg_catalog.left(
    pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::integer";

/// The server's version as `server_version_num` has it, such as 150018.
///
/// # Errors
/// When the server does not answer.
pub async fn server_version(client: &Client) -> Result<i32, tokio_postgres::Error> {
    let row = client
        .query_one("SELECT pg_catalog.current_setting('server_version_num')::int", &[])
        .await?;
    row.try_get(0)
}

/// The session's role, and whether it may replicate.
///
/// # Errors
/// When the server does not answer.
pub async fn replication_right(client: &Client) -> Result<(String, bool), tokio_postgres::Error> {
    let sql = format!(
        "SELECT rolname::pg_catalog.text, {} FROM pg_catalog.pg_roles r
         WHERE rolname {EQ} current_user",
        may_replicate_sql()
    );
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Whether a role of this name may replicate; `None` when there is no such role.
///
/// # Errors
/// When the server does not answer.
pub async fn may_replicate(
    client: &Client,
    role: &str,
) -> Result<Option<bool>, tokio_postgres::Error> {
    let sql =
        format!("SELECT {} FROM pg_catalog.pg_roles r WHERE rolname {EQ} $1", may_replicate_sql());
    let row = client.query_opt(&sql, &[&role]).await?;
    row.map(|row| row.try_get(0)).transpose()
}

/// Refuses a standby.
///
/// # Errors
/// [`SourceError::Standby`], or when the server does not answer.
pub async fn refuse_standby(client: &Client) -> Result<(), SourceError> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?;
    if row.try_get(0)? { Err(SourceError::Standby) } else { Ok(()) }
}

/// Which primary this is.
///
/// # Errors
/// [`SourceError::Standby`], or when the server does not answer.
pub async fn primary(client: &Client) -> Result<Primary, SourceError> {
    let sql = format!(
        "SELECT in_recovery, c.system_identifier::pg_catalog.text, CASE WHEN NOT in_recovery THEN {TIMELINE} END
         FROM pg_catalog.pg_is_in_recovery() in_recovery, pg_catalog.pg_control_system() c"
    );
    let row = client.query_typed_one(&sql, &[]).await;
    let row = row.map_err(SourceError::of("cannot read the cluster's identity"))?;
    if row.try_get(0)? {
        return Err(SourceError::Standby);
    }
    // The server's type is a signed 64-bit integer that holds an unsigned one.
    let system_identifier: i64 = row.try_get::<_, &str>(1)?.parse()?;
    let (system_identifier, timeline) =
        (system_identifier.cast_unsigned(), row.try_get::<_, i32>(2)?.cast_unsigned());
    Ok(Primary { system_identifier, timeline })
}

/// Reads which database this is; `info` is what the session was opened with.
///
/// # Errors
/// When the server does not answer, or is a standby, where there is no timeline to write to.
pub async fn identity(client: &Client, info: &Conninfo) -> Result<SourceIdentity, SourceError> {
    let Primary { system_identifier, timeline } = primary(client).await?;
    let sql = "SELECT pg_catalog.current_database()::pg_catalog.text";
    let database = client.query_typed_one(sql, &[]).await?.try_get(0)?;
    Ok(SourceIdentity { system_identifier, timeline, host: hosts(info), database })
}

/// The hosts that a URL names, as one text.
#[must_use]
pub fn hosts(info: &Conninfo) -> String {
    info.hosts().iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(",")
}

/// A publication.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Whether changes of partitions are published as those of their root.
    pub via_root: bool,
    /// Whether it publishes inserts.
    pub insert: bool,
    /// Whether it publishes updates.
    pub update: bool,
    /// Whether it publishes deletes.
    pub delete: bool,
    /// Whether it publishes truncates.
    pub truncate: bool,
    /// Whether it publishes stored generated columns.
    pub generated: bool,
    /// Every table whose changes it publishes as that table's, and, where those of partitions are published under their
    /// own names, the partitioned ones that it was given.
    pub tables: BTreeSet<TableName>,
    /// Tables with a row filter.
    pub filtered: BTreeSet<TableName>,
    /// The columns of the tables with a column list.
    pub lists: BTreeMap<TableName, BTreeSet<String>>,
}

/// The publication's OID.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn publication_oid(
    client: &Client,
    name: &str,
) -> Result<Option<u32>, tokio_postgres::Error> {
    let sql = format!("SELECT oid FROM pg_catalog.pg_publication WHERE pubname {EQ} $1");
    client.query_opt(&sql, &[&name]).await?.map(|row| row.try_get(0)).transpose()
}

/// What the publication is called now that had this name once, and this OID; `None` where it is gone.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn publication_now(
    client: &Client,
    name: &str,
    oid: u32,
) -> Result<Option<String>, tokio_postgres::Error> {
    // In another cluster, as after pg_upgrade, the name tells and the OID does not.
    let sql = format!(
        "SELECT pubname::pg_catalog.text FROM pg_catalog.pg_publication WHERE pubname {EQ} $1 OR oid {EQ} $2
         ORDER BY pubname {EQ} $1 DESC LIMIT 1"
    );
    client.query_opt(&sql, &[&name, &oid]).await?.map(|row| row.try_get(0)).transpose()
}

/// Finds a publication.
///
/// # Errors
/// When the server does not answer.
pub async fn publication(
    client: &Client,
    name: &str,
) -> Result<Option<Publication>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            // The last is a column that older servers do not have.
            &format!("SELECT pubviaroot, pubinsert, pubupdate, pubdelete, pubtruncate,
                    coalesce(pg_catalog.to_jsonb(p) OPERATOR(pg_catalog.->>) 'pubgencols' {NE} 'n', false)
             FROM pg_catalog.pg_publication p WHERE pubname {EQ} $1"),
            &[&name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let members = format!(
        "FROM pg_catalog.pg_publication_rel r
        JOIN pg_catalog.pg_publication p ON p.oid {EQ} r.prpubid
                   JOIN pg_catalog.pg_class c ON c.oid {EQ} r.prrelid
                   JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
                   WHERE p.pubname {EQ} $1"
    );
    let version = server_version(client).await?;
    let published = format!(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
         FROM pg_catalog.pg_publication p CROSS JOIN LATERAL ({}) t
         JOIN pg_catalog.pg_class c ON c.oid {EQ} t.oid
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
         WHERE p.pubname {EQ} $1",
        published_by("p", version)
    );
    let mut tables = names(client, &published, name).await?;
    let select = format!("SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text {members}");
    let knows_schemas = version >= ROW_FILTERS;
    for given in [format!("{select} AND NOT p.pubviaroot"), roots_sql(knows_schemas)] {
        tables.append(&mut names(client, &given, name).await?);
    }
    let (mut filtered, mut lists) = Default::default();
    if knows_schemas {
        filtered = names(client, &format!("{select} AND r.prqual IS NOT NULL"), name).await?;
        lists = column_lists(client, name).await?;
    }
    Ok(Some(Publication {
        via_root: row.try_get(0)?,
        insert: row.try_get(1)?,
        update: row.try_get(2)?,
        delete: row.try_get(3)?,
        truncate: row.try_get(4)?,
        generated: row.try_get(5)?,
        tables,
        filtered,
        lists,
    }))
}

/// Selects the partitioned tables that a publication of all tables, or of their schemas, was given: where changes of
/// partitions are not published as theirs, the server lists the partitions alone.
fn roots_sql(knows_schemas: bool) -> String {
    let of_schema = format!(
        "OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s
                    WHERE s.pnpubid {EQ} p.oid AND s.pnnspid {EQ} n.oid)"
    );
    format!(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text
         FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
         WHERE p.pubname {EQ} $1 AND NOT p.pubviaroot AND c.relkind {EQ} 'p' AND c.relpersistence {EQ} 'p'
           AND (p.puballtables {})",
        if knows_schemas { &of_schema } else { "" }
    )
}

async fn names(
    client: &Client,
    sql: &str,
    name: &str,
) -> Result<BTreeSet<TableName>, tokio_postgres::Error> {
    let rows = client.query(sql, &[&name]).await?;
    let table = |row: &tokio_postgres::Row| {
        Ok(TableName { schema: row.try_get(0)?, name: row.try_get(1)? })
    };
    rows.iter().map(table).collect()
}

async fn column_lists(
    client: &Client,
    name: &str,
) -> Result<BTreeMap<TableName, BTreeSet<String>>, tokio_postgres::Error> {
    let sql = format!(
        "SELECT n.nspname::pg_catalog.text, c.relname::pg_catalog.text,
                      ARRAY(SELECT a.attname::pg_catalog.text FROM pg_catalog.pg_attribute a
                            WHERE a.attrelid {EQ} c.oid AND a.attnum {EQ} ANY (r.prattrs))
               FROM pg_catalog.pg_publication_rel r
               JOIN pg_catalog.pg_publication p ON p.oid {EQ} r.prpubid
               JOIN pg_catalog.pg_class c ON c.oid {EQ} r.prrelid
               JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
               WHERE p.pubname {EQ} $1 AND r.prattrs IS NOT NULL"
    );
    let list = |row: &tokio_postgres::Row| {
        let table = TableName { schema: row.try_get(0)?, name: row.try_get(1)? };
        Ok((table, row.try_get::<_, Vec<String>>(2)?.into_iter().collect()))
    };
    client.query(&sql, &[&name]).await?.iter().map(list).collect()
}

/// A table or view of the source.
#[derive(Debug, Clone)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// `pg_class.relkind`: `r` table, `p` partitioned, `v` view, `m` materialized view, `f` foreign.
    pub kind: char,
    /// Whether its changes are in the WAL: it is neither unlogged nor temporary.
    pub is_logged: bool,
    /// Columns with their types as SQL prints them, a domain's as what it stands on.
    pub columns: Vec<(String, String)>,
    /// The table itself or those of its partitions that have no replica identity: a publication of
    /// their updates makes the customer's own UPDATE and DELETE fail.
    pub without_identity: Vec<String>,
    /// Those of them whose whole old row could not be logged, for it has the virtual generated column that is
    /// named beside: to publish them has the same effect.
    pub whole_with_virtual: Vec<(String, String)>,
    /// Whether its replica identity, or that of a partition, holds a stored generated column.
    pub identifies_by_generated: bool,
}

impl Table {
    /// Whether it can be part of a publication.
    #[must_use]
    pub fn is_publishable(&self) -> bool {
        matches!(self.kind, 'r' | 'p')
    }

    /// The column's type, where there is such a column.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&str> {
        self.columns.iter().find(|(column, _)| column == name).map(|(_, of_type)| of_type.as_str())
    }
}

/// Finds a table or view.
///
/// # Errors
/// When the server does not answer.
pub async fn table(
    client: &Client,
    name: &TableName,
) -> Result<Option<Table>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            &format!(
                "SELECT c.oid, c.relkind::pg_catalog.text, c.relpersistence::pg_catalog.text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid {EQ} c.relnamespace
             WHERE n.nspname {EQ} $1 AND c.relname {EQ} $2
             AND c.relkind {EQ} ANY ('{{r,p,v,m,f}}')"
            ),
            &[&name.schema, &name.name],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let oid: u32 = row.try_get(0)?;
    let kind: &str = row.try_get(1)?;
    let columns = client
        .query(
            &format!(
                "SELECT a.attname::pg_catalog.text,
                    pg_catalog.format_type(CASE WHEN t.typtype {EQ} 'd'
                        THEN t.typbasetype ELSE t.oid END, NULL)
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid {EQ} a.atttypid
             WHERE a.attrelid {EQ} $1 AND a.attnum {GT} 0 AND NOT a.attisdropped
             ORDER BY a.attnum"
            ),
            &[&oid],
        )
        .await?;
    let column = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    Ok(Some(Table {
        oid,
        kind: kind.chars().next().unwrap_or_default(),
        is_logged: row.try_get::<_, &str>(2)? == "p",
        columns: columns.iter().map(column).collect::<Result<_, tokio_postgres::Error>>()?,
        without_identity: without_identity(client, oid).await?,
        whole_with_virtual: whole_with_virtual(client, oid).await?,
        identifies_by_generated: identifies_by_generated(client, oid).await?,
    }))
}

async fn without_identity(client: &Client, oid: u32) -> Result<Vec<String>, tokio_postgres::Error> {
    let tree = tree_of("$1");
    let rows = client
        .query(
            &format!(
                "SELECT c.oid::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_class c
             WHERE c.oid {EQ} ANY ({tree})
               AND c.relkind {EQ} 'r'
               AND NOT CASE
                   WHEN c.relreplident {EQ} 'f' THEN true
                   WHEN c.relreplident {EQ} 'd' THEN EXISTS (SELECT FROM pg_catalog.pg_index i
                                         WHERE i.indrelid {EQ} c.oid AND i.indisprimary
                                           AND i.indimmediate AND i.indisvalid)
                   WHEN c.relreplident {EQ} 'i' THEN EXISTS (SELECT FROM pg_catalog.pg_index i
                                         WHERE i.indrelid {EQ} c.oid AND i.indisreplident
                                           AND i.indisvalid)
                   ELSE false END
             ORDER BY 1"
            ),
            &[&oid],
        )
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn whole_with_virtual(
    client: &Client,
    oid: u32,
) -> Result<Vec<(String, String)>, tokio_postgres::Error> {
    let tree = tree_of("$1");
    let rows = client
        .query(
            &format!(
                "SELECT DISTINCT ON (1) c.oid::pg_catalog.regclass::pg_catalog.text,
                    a.attname::pg_catalog.text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid {EQ} c.oid
             WHERE c.oid {EQ} ANY ({tree})
               AND c.relkind {EQ} 'r' AND c.relreplident {EQ} 'f'
               AND a.attnum {GT} 0 AND NOT a.attisdropped AND a.attgenerated {EQ} 'v'
             ORDER BY 1, a.attnum"
            ),
            &[&oid],
        )
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

async fn identifies_by_generated(client: &Client, oid: u32) -> Result<bool, tokio_postgres::Error> {
    let tree = tree_of("$1");
    let row = client
        .query_one(
            &format!(
                "SELECT EXISTS (
                 SELECT FROM pg_catalog.pg_class c
                     JOIN pg_catalog.pg_attribute a ON a.attrelid {EQ} c.oid
                 WHERE c.oid {EQ} ANY ({tree})
                   AND c.relkind {EQ} 'r' AND a.attnum {GT} 0 AND NOT a.attisdropped
                   AND a.attgenerated {EQ} 's'
                   AND CASE WHEN c.relreplident {EQ} 'f' THEN true ELSE EXISTS (
                           SELECT FROM pg_catalog.pg_index i
                           WHERE i.indrelid {EQ} c.oid AND a.attnum {EQ} ANY (i.indkey)
                             AND CASE WHEN c.relreplident {EQ} 'd' THEN i.indisprimary
                                 ELSE i.indisreplident END) END)"
            ),
            &[&oid],
        )
        .await?;
    row.try_get(0)
}
