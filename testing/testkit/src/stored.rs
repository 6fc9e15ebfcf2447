//! What the tables of state hold: deliveries that wait, and dead letters, each with its event's row.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use flate2::read::ZlibDecoder;
use tokio_postgres::Client;

use crate::oracle::Stored;

/// A delivery that a table of state holds.
#[derive(Debug)]
pub struct StoredDelivery {
    /// Where it stands.
    pub table: Stored,
    /// The event's id.
    pub event_id: String,
    /// The endpoint's id; empty for a dead letter without one.
    pub endpoint: String,
    /// Where the event's transaction committed.
    pub commit_lsn: u64,
    /// The event's type.
    pub event_type: String,
    /// The event's row, as JSON.
    pub row: Vec<u8>,
}

/// All of them, of one moment: what goes from one table to another meanwhile is in neither, or in both, to one who
/// reads them one after the other. Events without a route that wait are none.
///
/// # Errors
/// When a query fails, or a page is not as walhook's documentation has it.
pub async fn deliveries(sql: &Client) -> Result<Vec<StoredDelivery>> {
    sql.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    let all = read_all(sql).await;
    sql.batch_execute("ROLLBACK").await?;
    all
}

async fn read_all(sql: &Client) -> Result<Vec<StoredDelivery>> {
    let mut all = of_table(sql, Stored::DeadLetter, "dead_letters").await?;
    all.extend(of_table(sql, Stored::Deferred, "deferred").await?);
    let query = "SELECT p.endpoint, p.event_ids, p.event_types, p.data,
                        ARRAY (SELECT (lsn - '0/0'::pg_lsn)::bigint FROM unnest(p.commit_lsns) lsn),
                        coalesce(d.slots, '{}')
                 FROM walhook.pages p LEFT JOIN walhook.page_done d USING (pipeline, page)";
    for page in sql.query(query, &[]).await? {
        let endpoint: String = page.try_get(0)?;
        let (ids, types): (Vec<String>, Vec<String>) = (page.try_get(1)?, page.try_get(2)?);
        let (data, commits): (&[u8], Vec<i64>) = (page.try_get(3)?, page.try_get(4)?);
        let gone: Vec<i16> = page.try_get(5)?;
        let rows = rows_in_page(data)?;
        let count = ids.len();
        ensure!([types.len(), commits.len(), rows.len()] == [count; 3], "a page of {endpoint}");
        let parts = ids.into_iter().zip(types).zip(commits.into_iter().zip(rows));
        for (slot, ((event_id, event_type), (commit_lsn, row))) in (1i16..).zip(parts) {
            if !gone.contains(&slot) {
                let (endpoint, commit_lsn) = (endpoint.clone(), u64::try_from(commit_lsn)?);
                let table = Stored::Deferred;
                all.push(StoredDelivery { table, event_id, endpoint, commit_lsn, event_type, row });
            }
        }
    }
    Ok(all)
}

async fn of_table(sql: &Client, stands: Stored, table: &str) -> Result<Vec<StoredDelivery>> {
    let query = format!(
        "SELECT d.event_id, d.endpoint, (b.commit_lsn - '0/0'::pg_lsn)::bigint, b.event_type, b.row
         FROM walhook.{table} d JOIN walhook.bodies b USING (pipeline, event_id)"
    );
    let read = |row: &tokio_postgres::Row| {
        Ok(StoredDelivery {
            table: stands,
            event_id: row.try_get(0)?,
            endpoint: row.try_get(1)?,
            commit_lsn: u64::try_from(row.try_get::<_, i64>(2)?)?,
            event_type: row.try_get(3)?,
            row: row.try_get(4)?,
        })
    };
    sql.query(&query, &[]).await?.iter().map(read).collect()
}

/// The events' rows in the `data` of a page.
fn rows_in_page(data: &[u8]) -> Result<Vec<Vec<u8>>> {
    let packed = data.strip_prefix(&[1]).context("a page of another version")?;
    let (mut plain, mut rows) = (Vec::new(), Vec::new());
    ZlibDecoder::new(packed).read_to_end(&mut plain)?;
    let mut rest = &*plain;
    while !rest.is_empty() {
        // The operation and the commit time.
        take(&mut rest, 1 + 8)?;
        let keys = take(&mut rest, 1)?.first().copied().map_or(0, usize::from);
        take(&mut rest, 8 * keys)?;
        let length = u32::from_le_bytes(take(&mut rest, 4)?.try_into()?);
        rows.push(take(&mut rest, usize::try_from(length)?)?.to_vec());
    }
    Ok(rows)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (part, behind) = rest.split_at_checked(length).context("a page ends too early")?;
    *rest = behind;
    Ok(part)
}
