//! Rows that an operator's transaction removes: why each is counted once.
//!
//! The dispatcher hears which rows these are before that transaction may commit ([`Backlog::may_be_removed`]), and so before
//! anything that follows from it: a page without the row, or that a batch with the row's removal is stored. Afterwards it
//! hears that they are gone ([`Backlog::removed_by_others`]). Whatever shows first that such a row is no more counts it
//! off, and ends that it is `removing`; what comes later finds that, and counts nothing.
//!
//! Where nobody says whether the transaction has committed, the rows that it may have removed stay counted until a page
//! shows that they are gone. Too many rows only let too many deliveries join; with too few, a delivery would overtake.

use super::Backlog;
use walhook_core::persist::RowKey;

impl Backlog {
    /// Somebody else removes this row from the table, by a transaction that commits from now on, if it does.
    pub fn may_be_removed(&mut self, key: &RowKey) {
        if !self.gone.contains_key(key) {
            self.removing.entry(key.clone()).or_insert(false);
        }
    }

    /// Nobody will say any more whether the rows are gone of which that is not known.
    pub fn forget_removals(&mut self) {
        self.removing.retain(|_, committed| *committed);
        self.give_room_back();
    }

    /// Somebody else has removed this row, by a transaction that has committed: it is counted off, unless something else
    /// has shown that before. What is in memory of it counts until it leaves.
    pub fn removed_by_others(&mut self, key: &RowKey) {
        let Some(committed) = self.removing.get_mut(key) else { return };
        *committed = true;
        if self.loaded.contains(key) {
            return;
        }
        self.removing.remove(key);
        self.give_room_back();
        self.rows = self.rows.saturating_sub(1);
        self.in_table = self.in_table.saturating_sub(1);
        self.end_head(key);
    }
}
