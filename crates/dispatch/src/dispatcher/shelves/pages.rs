//! How rows come back: who is asked for, what of a page is taken, and how far its rows are routed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::super::lane::{DELIVERY_BYTES, SharedEvent};
use super::super::pages::PageSize;
use super::shelf::Page;
use super::{Row, Shelves};
use walhook_core::event::{AccountId, EndpointId};
use walhook_core::persist::{EventKey, Unrouted, UnroutedPage, UnroutedRefill};

/// Accounts that are asked for at once, where memory is large enough: their pages take a sixteenth of it. And
/// so many times as many pages are in memory.
const ASKED_AT_ONCE: usize = 64;
const PAGES_TIMES: usize = 4;

/// How large pages are.
pub(super) fn page_size(memory_limit: usize) -> PageSize {
    PageSize::new(ASKED_AT_ONCE, memory_limit / 16)
}

/// What came of a page.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Came {
    /// Nothing is to be done.
    Nothing,
    /// Rows, which take so many bytes: they are to be routed.
    Rows(usize),
    /// It shows that none is left: the shelf is to be cleared.
    End,
}

/// What is in memory of an account's page.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum PageRows {
    /// No page is there.
    None,
    /// All of it has been routed: the page is gone.
    Through,
    /// There are some.
    Some,
}

/// The request.
impl Shelves {
    /// What the request under way may bring.
    pub(in super::super) fn reserved(&self) -> usize {
        self.reserved.unwrap_or_default()
    }

    /// Pages that may be asked for now, where so many bytes of memory are left.
    pub(in super::super) fn pages_at_most(&self, room: usize) -> usize {
        let PageSize { at_once, bytes, .. } = self.page_size;
        let more = (at_once * PAGES_TIMES).saturating_sub(self.pages);
        if self.reserved.is_some() { 0 } else { at_once.min(room / bytes).min(more) }
    }

    /// Accounts in the line.
    pub(in super::super) fn in_line(&self) -> usize {
        self.line.len()
    }

    /// The first of the line, and whether a page of it may be asked for.
    pub(in super::super) fn first_in_line(&self) -> Option<(&AccountId, bool)> {
        let account = self.line.front()?;
        // Else it is in the line since an earlier shelf of the account.
        let shelf = self.accounts.get(account);
        let wants = shelf.is_some_and(|shelf| shelf.in_line && matches!(shelf.page, Page::None));
        Some((account, wants && !self.bound.gives_up(account)))
    }

    /// The first of the line is not read now.
    pub(in super::super) fn put_off_first(&mut self) {
        if !self.line.is_empty() {
            self.line.rotate_left(1);
        }
    }

    /// The first of the line may not have what it wants.
    pub(in super::super) fn drop_first(&mut self) {
        let Some(account) = self.line.pop_front() else { return };
        if let Some(shelf) = self.accounts.get_mut(&account) {
            shelf.in_line = false;
        }
    }

    /// A page of the first of the line, of which one may be asked for.
    pub(in super::super) fn ask_first(&mut self) -> Option<UnroutedRefill> {
        let account = self.line.pop_front()?;
        let PageSize { rows, text_bytes, .. } = self.page_size;
        let shelf = self.of(&account);
        assert!(matches!(shelf.page, Page::None), "an account with a page is asked for another");
        shelf.in_line = false;
        shelf.page = Page::Asked(shelf.first_storing().cloned());
        let after = shelf.cursor.clone();
        self.pages += 1;
        Some(UnroutedRefill { account, after, rows, bytes: text_bytes as u64 })
    }

    /// So many pages are asked for. Returns what they may bring.
    pub(in super::super) fn begin(&mut self, pages: usize) -> usize {
        let reserved = pages * self.page_size.bytes;
        assert!(self.reserved.replace(reserved).is_none(), "two requests for pages at once");
        reserved
    }

    /// The pages have come. Returns what was reserved for them.
    pub(in super::super) fn end(&mut self) -> usize {
        self.reserved.take().unwrap_or_default()
    }

    /// Takes a page that was asked for.
    pub(in super::super) fn take_page(&mut self, page: UnroutedPage) -> Came {
        let UnroutedPage { account, rows, end } = page;
        let gives_up = self.bound.gives_up(&account);
        let Some(shelf) = self.accounts.get_mut(&account) else { return Came::Nothing };
        let Page::Asked(ceiling) = &mut shelf.page else { return Came::Nothing };
        let ceiling = ceiling.take();
        shelf.page = Page::None;
        let (is_all, mut bytes) = (rows.is_empty() && end, 0);
        let mut read = VecDeque::with_capacity(rows.len());
        for Unrouted { event, routed_to: after } in rows {
            let key = EventKey::of(&event);
            if gives_up || ceiling.as_ref().is_some_and(|ceiling| *ceiling <= key) {
                break;
            }
            bytes += event.size_bytes() + DELIVERY_BYTES;
            shelf.cursor = Some(key);
            let wanted = after.is_some();
            read.push_back(Row { held: Arc::new(SharedEvent::new(event)), after, wanted });
        }
        shelf.unread = shelf.unread.saturating_sub(read.len() as u64);
        if !read.is_empty() {
            shelf.page = Page::Read(read);
            return Came::Rows(bytes);
        }
        self.pages -= 1;
        if is_all && ceiling.is_none() && shelf.going == 0 && !gives_up {
            return self.count_anew(&account);
        }
        if shelf.first_storing() != ceiling.as_ref() {
            // What bounded the page was stored while the page was asked for.
            self.join_line(&account);
        }
        Came::Nothing
    }

    /// Rows are counted, but none is where it was looked for: it stands before the others (in another cluster
    /// positions began anew), or somebody has removed them.
    fn count_anew(&mut self, account: &AccountId) -> Came {
        let shelf = self.of(account);
        if shelf.cursor.take().is_some() {
            self.join_line(account);
        } else if shelf.storing.is_empty() {
            (shelf.rows, shelf.in_table, shelf.unread, shelf.old) = (0, 0, 0, 0);
            self.outdate(account);
            return Came::End;
        }
        Came::Nothing
    }
}

/// Rows in memory.
impl Shelves {
    /// What of the account's page is to be routed. One that is through leaves memory.
    pub(in super::super) fn page_rows(&mut self, account: &AccountId) -> PageRows {
        let Some(shelf) = self.accounts.get_mut(account) else { return PageRows::None };
        let Page::Read(rows) = &shelf.page else { return PageRows::None };
        if !rows.is_empty() {
            return PageRows::Some;
        }
        shelf.page = Page::None;
        self.pages -= 1;
        self.join_line(account);
        PageRows::Through
    }

    /// The first of the account's rows in memory.
    ///
    /// # Panics
    /// None is.
    pub(in super::super) fn first_row(&self, account: &AccountId) -> &Row {
        let page = self.accounts.get(account).map(|shelf| &shelf.page);
        match page {
            Some(Page::Read(rows)) => rows.front(),
            Some(Page::None | Page::Asked(_)) | None => None,
        }
        .unwrap_or_else(|| panic!("no row is in memory to be routed"))
    }

    /// The first of the account's rows in memory was routed up to this endpoint; `wanted`: one of them wants it.
    /// `is_through`: to all, and it is returned.
    ///
    /// # Panics
    /// None is in memory.
    pub(in super::super) fn advance(
        &mut self,
        account: &AccountId,
        after: Option<EndpointId>,
        wanted: bool,
        is_through: bool,
    ) -> Option<Row> {
        let shelf = self.of(account);
        let rows = match &mut shelf.page {
            Page::Read(rows) => Some(rows),
            Page::None | Page::Asked(_) => None,
        };
        let Some((rows, row)) = rows.and_then(|rows| {
            let row = rows.pop_front()?;
            Some((rows, row))
        }) else {
            panic!("no row is in memory to be routed")
        };
        let row = Row { after: after.or(row.after), wanted: row.wanted || wanted, held: row.held };
        if !is_through {
            rows.push_front(row);
            return None;
        }
        shelf.going += 1;
        Some(row)
    }

    /// The account has a page, and waits for room.
    pub(in super::super) fn wait_for_room(&mut self, account: &AccountId) {
        if !self.going.contains(account) {
            self.going.push_back(account.clone());
        }
    }

    /// Accounts that wait for room.
    pub(in super::super) fn waiting_for_room(&self) -> usize {
        self.going.len()
    }

    /// The first that waits for room.
    pub(in super::super) fn next_for_room(&mut self) -> Option<AccountId> {
        self.going.pop_front()
    }
}
