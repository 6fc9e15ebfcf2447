//! What lies in the spool, and what is to be written there and read back.

use super::super::log::Log;
use super::super::{Done, FileId, Order, Room, StreamedError};
use super::OpenTransactions;

enum Largest {
    Open(u32),
    Committed(usize),
}

impl OpenTransactions {
    /// Whether more may be read from the stream.
    #[must_use]
    pub fn room(&self) -> Room {
        if self.memory_bytes() < self.settings.memory_bytes {
            Room::Free
        } else if !self.committed.is_empty() || self.writing.is_some() || self.largest().is_some() {
            Room::Wait
        } else {
            Room::None
        }
    }

    /// What they take in the spool.
    #[must_use]
    pub fn spooled_bytes(&self) -> u64 {
        self.open().map(|open| open.spooled_bytes).sum()
    }

    /// Whether there is a spool from now on. A write that is under way and will not be answered is taken back:
    /// what was to be written is still in memory.
    pub fn set_spool(&mut self, spool: bool) {
        self.settings.spool = spool;
        if let Some(file) = self.writing.take_if(|_| !spool) {
            self.change_writing(file, Log::handle_not_written);
        }
    }

    /// What the spool is to do next. Give it each order, in this order.
    pub fn poll_order(&mut self) -> Option<Order> {
        if let Some(file) = self.useless.pop_front() {
            return Some(Order::Remove { file });
        }
        self.next_read().or_else(|| self.next_write())
    }

    fn next_read(&mut self) -> Option<Order> {
        let front = self.committed.front_mut()?;
        let (offset, bytes) = front.log.reading()?.next_fetch()?;
        Some(Order::Read { file: front.file?, offset, bytes })
    }

    fn next_write(&mut self) -> Option<Order> {
        let is_needed = self.memory_bytes() >= self.settings.memory_bytes / 2;
        if self.writing.is_some() || !is_needed {
            return None;
        }
        let new_file = FileId(self.files + 1);
        let (offset, chunks, file) = match self.largest()? {
            Largest::Open(xid) => {
                let write = |log: &mut Log, file: &mut Option<FileId>| {
                    let (offset, chunks) = log.next_write()?;
                    Some((offset, chunks, *file.get_or_insert(new_file)))
                };
                self.change_open(xid, write)??
            }
            Largest::Committed(at) => {
                let waiting = self.committed.get_mut(at)?;
                let (offset, chunks) = waiting.log.whole()?.next_write()?;
                (offset, chunks, *waiting.file.get_or_insert(new_file))
            }
        };
        self.files = self.files.max(file.0);
        self.writing = Some(file);
        Some(Order::Write { file, offset, chunks })
    }

    /// Does this to the log of an open transaction, and counts what that does to its memory.
    fn change_open<T>(
        &mut self,
        xid: u32,
        change: impl FnOnce(&mut Log, &mut Option<FileId>) -> T,
    ) -> Option<T> {
        let open = self.open.get_mut(&xid)?;
        let before = open.memory_bytes();
        let (log, file) = open.writable();
        let changed = change(log, file);
        if self.block != Some(xid) {
            self.open_bytes = self.open_bytes - before + open.memory_bytes();
        }
        Some(changed)
    }

    /// The transaction of which most can be written.
    fn largest(&self) -> Option<Largest> {
        if !self.settings.spool {
            return None;
        }
        let open = self.open.iter().map(|(xid, open)| (open.writable_bytes(), Largest::Open(*xid)));
        let committed = self.committed.iter().enumerate();
        let committed =
            committed.map(|(at, waiting)| (waiting.log.writable_bytes(), Largest::Committed(at)));
        let largest = open.chain(committed).max_by_key(|(bytes, _)| *bytes)?;
        (largest.0 > 0).then_some(largest.1)
    }

    /// The spool has carried out an order.
    ///
    /// # Errors
    /// [`StreamedError::Damaged`]: what it read is not what was asked for.
    pub fn handle_done(&mut self, done: Done) -> Result<(), StreamedError> {
        match done {
            Done::Written { file } => {
                if self.writing.take_if(|writing| *writing == file).is_some() {
                    self.change_writing(file, Log::handle_written);
                }
                Ok(())
            }
            Done::Read { file, offset, bytes } => {
                let front = self.committed.front_mut().filter(|front| front.file == Some(file));
                // Of one that was forgotten meanwhile.
                let Some(front) = front else { return Ok(()) };
                let reading = front.log.reading().ok_or(StreamedError::Damaged)?;
                reading.handle_fetched(offset, bytes)
            }
        }
    }

    /// Does this to the log that is being written to `file`, if its transaction is still there.
    fn change_writing(&mut self, file: FileId, change: fn(&mut Log)) {
        let open = self.open.iter().find(|(_, open)| open.file() == Some(file));
        if let Some(xid) = open.map(|(xid, _)| *xid) {
            self.change_open(xid, |log, _| change(log));
            return;
        }
        let committed = self.committed.iter_mut().find(|waiting| waiting.file == Some(file));
        if let Some(log) = committed.and_then(|waiting| waiting.log.whole()) {
            change(log);
        }
    }
}
