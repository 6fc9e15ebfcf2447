//! Pages go into the table: one with each state transaction that has lines.

use std::collections::BTreeSet;

use futures_util::join;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::super::{Param, Scope, StateError, StateStore, Transaction};
use super::codes::outcome_bit;
use super::{FILTERED, columns, filter};
use walhook_core::delivery_log::Entry;
use walhook_postgres::op::{EQ, PLUS};

/// After a page was refused, so many go untried: each that is costs its state transaction twice.
const UNTRIED: u32 = 100;

/// Whether the server takes pages, as far as this session knows.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    /// Why it took none last.
    error: Option<StateError>,
    untried: u32,
}

impl Refusal {
    /// Whether the lines of a state transaction are worth a try.
    pub(crate) fn is_worth_a_try(&mut self) -> bool {
        self.untried = self.untried.saturating_sub(1);
        self.untried == 0
    }

    /// A page was refused.
    pub(crate) fn refused(&mut self, error: StateError) {
        self.untried = if is_locked(&error) { 1 } else { UNTRIED };
        self.error = Some(error);
    }

    /// There may be room for the next one.
    pub(crate) fn has_room(&mut self) {
        self.untried = self.untried.min(1);
    }

    /// A page was taken.
    pub(crate) fn taken(&mut self) {
        *self = Self::default();
    }
}

impl StateStore {
    /// Whether the last page of the delivery log found no room on the disk, and nothing was done about that yet:
    /// [`StateStore::yield_deliveries`] does.
    #[must_use]
    pub fn log_lacks_room(&self) -> bool {
        self.log.untried == UNTRIED && self.log.error.as_ref().is_some_and(StateError::is_disk_full)
    }

    /// Why the last page of the delivery log was refused, where it was. All else was stored, and its lines were
    /// counted as left out.
    #[must_use]
    pub fn log_refused(&self) -> Option<&StateError> {
        self.log.error.as_ref()
    }
}

/// What the table says of a page beside its data.
#[derive(Debug)]
pub(crate) struct Page {
    pub(super) lines: i32,
    pub(super) outcomes: i32,
    pub(super) from_us: i64,
    pub(super) to_us: i64,
    pub(super) from_committed_us: i64,
    pub(super) to_committed_us: i64,
    pub(super) filter: Option<Vec<u8>>,
    pub(super) data: Vec<u8>,
}

impl Page {
    /// That of these lines; `None`: there are none.
    pub(crate) fn of(entries: &[Entry]) -> Option<Self> {
        let ats = || entries.iter().map(|entry| entry.at_us);
        let committed = || entries.iter().map(|entry| entry.committed_us);
        let words: BTreeSet<&str> = entries.iter().map(Entry::word).collect();
        Some(Self {
            lines: i32::try_from(entries.len()).unwrap_or(i32::MAX),
            outcomes: words.into_iter().filter_map(outcome_bit).fold(0, |bits, bit| bits | bit),
            from_us: ats().min()?,
            to_us: ats().max()?,
            from_committed_us: committed().min()?,
            to_committed_us: committed().max()?,
            filter: (entries.len() >= FILTERED).then(|| filter::filter(entries)),
            data: columns::encode(entries),
        })
    }

    /// The same of a page that is not merged any more, however few lines it has.
    pub(super) fn large(entries: &[Entry]) -> Option<Self> {
        let page = Self::of(entries)?;
        let filter = page.filter.or_else(|| Some(filter::filter(entries)));
        Some(Self { filter, ..page })
    }
}

/// The columns of [`Page`], in the order of [`values`].
pub(super) const COLUMNS: &str =
    "lines, outcomes, from_us, to_us, from_committed_us, to_committed_us, filter, data";

/// The page's values, as statements take them.
pub(super) fn values(page: &Page) -> [Param<'_>; 8] {
    [
        (&page.lines, Type::INT4),
        (&page.outcomes, Type::INT4),
        (&page.from_us, Type::INT8),
        (&page.to_us, Type::INT8),
        (&page.from_committed_us, Type::INT8),
        (&page.to_committed_us, Type::INT8),
        (&page.filter, Type::BYTEA),
        (&page.data, Type::BYTEA),
    ]
}

/// Appends a page of lines, within a state transaction whose other statements are under way meanwhile.
///
/// It waits for no lock: whoever works on the table must not stop what settles deliveries.
///
/// # Errors
/// [`StateError::LogRefused`], [`StateError::Sql`].
pub(crate) async fn append(
    tx: &Transaction<'_>,
    Scope { s, pipeline, partition, .. }: &Scope,
    page: Option<&Page>,
) -> Result<(), StateError> {
    let Some(page) = page else { return Ok(()) };
    let lock = format!("LOCK TABLE {s}.delivery_log IN ROW EXCLUSIVE MODE NOWAIT");
    let insert = format!(
        "INSERT INTO {s}.delivery_log (pipeline, partition, last, {COLUMNS})
         SELECT $1, $2, coalesce(
             (SELECT l.last FROM {s}.delivery_log l WHERE l.pipeline {EQ} $1 AND l.partition {EQ} $2
              ORDER BY l.pipeline DESC, l.partition DESC, l.last DESC LIMIT 1), 0::bigint) {PLUS} $3::bigint,
             $3, $4, $5, $6, $7, $8, $9, $10"
    );
    let mut params: Vec<Param<'_>> = vec![(pipeline, Type::TEXT), (partition, Type::INT4)];
    params.extend(values(page));
    let (locked, inserted) =
        join!(tx.execute_typed(&lock, &[]), tx.execute_typed(&insert, &params));
    match locked.and(inserted) {
        Ok(_) => Ok(()),
        Err(error) if is_refused(&error) => Err(StateError::LogRefused(error)),
        Err(error) => Err(error.into()),
    }
}

/// Whether the server refuses the page, not everything.
fn is_refused(error: &Error) -> bool {
    let passes = |class: &str| matches!(class, "08" | "40" | "57");
    error.code().is_some_and(|code| !code.code().get(..2).is_some_and(passes))
}

/// Whether the table was only locked.
fn is_locked(error: &StateError) -> bool {
    let StateError::LogRefused(error) = error else { return false };
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}
