//! A position's columns in the state tables: named here, and nowhere else.
//!
//! Another kind of position (of a row that is not from the WAL, say) is an edit of this file, and of
//! `sql/state.sql`.

use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use walhook_core::lsn::Lsn;
use walhook_core::position::{Position, WalPosition};
use walhook_postgres::op::EQ;

use super::{Param, StateError, unreadable};

/// The columns, in the order in which they order positions.
const COLUMNS: [&str; 4] = [COMMIT, "change_lsn", "relation", COUNT];

/// The column of them that says where the transaction committed.
pub(super) const COMMIT: &str = "commit_lsn";

/// The last of them: the how-manieth it is of the changes that share the others.
pub(super) const COUNT: &str = "n";

/// How many parameters a position takes: those of [`Places::params`].
pub(super) const WIDTH: usize = COLUMNS.len();

/// The columns, with a comma between, each after `of`: nothing, or a table's alias and a dot.
pub(super) fn columns(of: &str) -> String {
    COLUMNS.map(|column| format!("{of}{column}")).join(", ")
}

/// Whether two rows have the same position, by the aliases of their tables.
pub(super) fn same(a: &str, b: &str) -> String {
    COLUMNS.map(|column| format!("{a}.{column} {EQ} {b}.{column}")).join(" AND ")
}

/// The columns that hold them as arrays, of positions in a row each.
pub(super) fn arrays(of: &str) -> String {
    COLUMNS.map(|column| format!("{of}{column}s")).join(", ")
}

/// The first of what [`arrays`] hold.
pub(super) fn firsts(of: &str) -> String {
    COLUMNS.map(|column| format!("{of}{column}s[1]")).join(", ")
}

/// What [`Places::params`] are as `$first` and those behind it, each at the place `at` of its array.
pub(super) fn elements(first: usize, at: &str) -> String {
    let all: Vec<String> =
        (first..first + WIDTH).map(|param| format!("(${param})[{at}]")).collect();
    all.join(", ")
}

/// Reads the positions back from a row that has [`arrays`].
pub(super) fn read_all(row: &Row, what: &str) -> Result<Vec<Position>, StateError> {
    let [commit, change, relation, n] = COLUMNS.map(|column| format!("{column}s"));
    let commits: Vec<PgLsn> = row.try_get(&*commit)?;
    let changes: Vec<PgLsn> = row.try_get(&*change)?;
    let relations: Vec<u32> = row.try_get(&*relation)?;
    let ns: Vec<i64> = row.try_get(&*n)?;
    let all = commits.into_iter().zip(changes).zip(relations.into_iter().zip(ns));
    all.map(|((commit, change), (relation, n))| {
        Ok(Position::Wal(WalPosition {
            commit_lsn: Lsn(commit.into()),
            change_lsn: Lsn(change.into()),
            relation,
            n: u32::try_from(n).map_err(unreadable(&format!("a position in {what}")))?,
        }))
    })
    .collect()
}

/// So many parameters from `$first` on, with a comma between.
pub(super) fn dollars(first: usize, count: usize) -> String {
    let all: Vec<String> = (first..first + count).map(|number| format!("${number}")).collect();
    all.join(", ")
}

/// Reads the position back from a row that has [`columns`].
pub(super) fn read(row: &Row, what: &str) -> Result<Position, StateError> {
    let [commit, change, relation, n] = COLUMNS;
    Ok(Position::Wal(WalPosition {
        commit_lsn: Lsn(row.try_get::<_, PgLsn>(commit)?.into()),
        change_lsn: Lsn(row.try_get::<_, PgLsn>(change)?.into()),
        relation: row.try_get(relation)?,
        n: u32::try_from(row.try_get::<_, i64>(n)?)
            .map_err(unreadable(&format!("{n} of {what}")))?,
    }))
}

/// Positions, as an array for each column.
#[derive(Debug)]
pub(super) struct Places {
    commits: Vec<PgLsn>,
    changes: Vec<PgLsn>,
    relations: Vec<u32>,
    ns: Vec<i64>,
}

impl Places {
    pub(super) fn new(positions: impl Iterator<Item = Position> + Clone) -> Self {
        let wal = positions.map(|Position::Wal(position)| position);
        Self {
            commits: wal.clone().map(|p| p.commit_lsn.0.into()).collect(),
            changes: wal.clone().map(|p| p.change_lsn.0.into()).collect(),
            relations: wal.clone().map(|p| p.relation).collect(),
            ns: wal.map(|p| i64::from(p.n)).collect(),
        }
    }

    /// The arrays, in the order of [`columns`]: what `unnest` makes rows of.
    pub(super) fn params(&self) -> [Param<'_>; WIDTH] {
        [
            (&self.commits, Type::PG_LSN_ARRAY),
            (&self.changes, Type::PG_LSN_ARRAY),
            (&self.relations, Type::OID_ARRAY),
            (&self.ns, Type::INT8_ARRAY),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_has_as_many_parameters_as_columns() {
        let position = |n| {
            let relation = 3;
            Position::Wal(WalPosition { commit_lsn: Lsn(2), change_lsn: Lsn(1), relation, n })
        };
        let places = Places::new([position(0), position(1)].into_iter());
        let params = places.params();
        assert_eq!(columns("q."), "q.commit_lsn, q.change_lsn, q.relation, q.n");
        assert_eq!(columns("q.").split(", ").count(), params.len());
        assert_eq!(same("a", "b").matches(" AND ").count() + 1, params.len());
        assert_eq!(dollars(9, 3), "$9, $10, $11");
        assert!(!places.ns.is_empty() && places.ns == [0, 1]);
    }
}
